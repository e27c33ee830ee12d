"""Limits and budgets while workers come, go and crowd; and prices that change under way."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from statistics import quantiles
from typing import Any

import pytest

from tests.support.good_answers import text_of, tokens
from tests.support.rows import rows
from tests.support.scene import SECRET, Scene
from tests.support.upstream import ALWAYS, Act, Seen

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
NANO = 10**9
NOBODY_DIES: dict[str, Any] = {"WORKER_LEASE_SECONDS": 60}
"""However busy the machine is, no living worker is taken for dead."""

HANDFUL = 5
SLACK_SECONDS = 5
"""So many requests may go at once; and for so long workers may hold quota in hand, or lag behind."""


async def test_e01_limit_is_kept_while_workers_die_and_come(scene: Scene) -> None:
    """Three workers share 300 requests a minute; one is killed, another one starts: no window has more."""
    limit = 300
    burst = HANDFUL + SLACK_SECONDS * limit / 60  # far below the 150 jobs that wait, and the minute's 300
    settings: dict[str, Any] = {"WORKER_REQUESTS_PER_MINUTE": limit, "WORKER_CONCURRENCY": 32}
    workers = await asyncio.gather(*(scene.worker(**settings) for _ in range(3)))
    for number in range(150):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(50, timeout=60)
    await workers[0].kill()
    await scene.worker(**settings)
    await scene.replied(150, within=120)
    lost = 32
    await scene.holds(
        extra_calls=lost, unknown=lost, unsent=lost, requests_per_minute=limit, burst=burst, within=120
    )


@ON_SQLITE
async def test_e02_job_larger_than_its_bucket(scene: Scene) -> None:
    """It fails at once as too large instead of waiting for ever."""
    await scene.worker(WORKER_TOKENS_PER_MINUTE=500)
    request = {
        "model": "gpt-6-luna",
        "max_tokens": 10_000,
        "messages": [{"role": "user", "content": "<one>"}],
    }
    await scene.send("one", request=request)
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "too_large")
    assert scene.upstream.requests == []
    await scene.holds()


PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
LOW_DETAIL = 85
"""What OpenAI's guide counts for an image that is looked at with low detail by this model."""
TILED = "gpt-4o"


def demanding(job_id: str, *, most: int, copies: int, images: int) -> dict[str, Any]:
    """Return the request of a job that asks for so many answers, of so many tokens at most, about images."""
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
    text = {"type": "text", "text": f"{SECRET} <{job_id}> " + "word " * 40}
    return {
        "model": TILED,
        "n": copies,
        "max_completion_tokens": most,
        "messages": [{"role": "user", "content": [text, *[image] * images]}],
    }


def usage_at_most(seen: Seen, part: float = 1.0) -> Act:
    """Answer with all the tokens that the request allows, or a part of them."""
    content = seen.body["messages"][0]["content"]
    prompt = tokens(text_of(seen.body)) + LOW_DETAIL * sum(one["type"] == "image_url" for one in content)
    output = int(part * seen.body["max_completion_tokens"] * seen.body["n"])
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return Act(delay=0.2, text="done", patch={"usage": usage})


def used_at(requests: Iterable[Seen]) -> list[tuple[float, int]]:
    """Return when requests came, and the tokens that they used."""
    return sorted((seen.monotonic, seen.answer["usage"]["total_tokens"]) for seen in requests)


def most_above(times: Sequence[tuple[float, int]], rate: float) -> float:
    """Return by how many tokens the fullest window exceeds what flows in during it."""
    most = level = 0.0
    before = times[0][0]
    for at, used in times:
        level = max(0.0, level - (at - before) * rate) + used
        most, before = max(most, level), at
    return most


@ON_SQLITE
async def test_e03_admission_counts_all_that_may_be_used(scene: Scene) -> None:
    """Prompt, images and n times the largest output are reserved, and no window of tokens is overfull."""
    limit = 60_000
    scene.upstream._gate = usage_at_most
    settings = {"WORKER_TOKENS_PER_MINUTE": limit, "WORKER_CONCURRENCY": 32, **NOBODY_DIES}
    await asyncio.gather(*(scene.worker(**settings) for _ in range(2)))
    for number in range(60):
        shape = {"most": 100 + 10 * (number % 7), "copies": 1 + number % 4, "images": number % 3}
        job_id = f"job-{number}"
        await scene.send(job_id, request=demanding(job_id, **shape))
    await scene.replied(60, within=120)
    for row in await reservations(scene):
        assert row["reserved"]["input_tokens"] >= row["input_tokens"], row
        assert row["reserved"]["output_tokens"] >= row["output_tokens"], row
    used = used_at(scene.upstream.requests)
    assert sum(count for _, count in used) > limit / 4
    assert most_above(used, limit / 60) <= (0.5 + SLACK_SECONDS) * limit / 60 + max(used, key=weight)[1]
    await scene.holds()


def weight(one: tuple[float, int]) -> int:
    """Return the tokens of a request."""
    return one[1]


async def reservations(scene: Scene) -> list[dict[str, Any]]:
    """Return what each attempt had reserved beside what it has used."""
    found = await rows(
        scene.database_url,
        "SELECT a.reserved_usage, l.input_tokens, l.output_tokens FROM attempts a JOIN usage_ledger l"
        " ON l.tenant = a.tenant AND l.job_id = a.job_id AND l.attempt_no = a.attempt_no",
    )
    assert found
    return [row | {"reserved": document(row["reserved_usage"])} for row in found]


def document(value: Any) -> Any:
    """Decode a column that SQLite keeps as text."""
    return json.loads(value) if isinstance(value, str) else value


@ON_SQLITE
async def test_e03_what_was_not_used_is_given_back(scene: Scene) -> None:
    """Jobs that reserve more than a minute's quota, and use little of it, are done within the minute."""
    limit, count = 60_000, 200
    scene.upstream._gate = lambda seen: usage_at_most(seen, part=0.02)
    await scene.worker(WORKER_TOKENS_PER_MINUTE=limit, WORKER_CONCURRENCY=16, **NOBODY_DIES)
    began = time.monotonic()
    for number in range(count):
        job_id = f"job-{number}"
        await scene.send(job_id, request=demanding(job_id, most=150, copies=2, images=0))
    await scene.replied(count, within=120)
    assert time.monotonic() - began < 60
    assert sum(sum(row["reserved"].values()) for row in await reservations(scene)) > limit
    await scene.holds()


@ON_POSTGRESQL
@pytest.mark.timeout(600)
async def test_e04_flood_of_one_tenant(scene: Scene) -> None:
    """Ten thousand jobs wait when ten of another tenant come: they are answered long before the flood."""
    flood, rate = 10_000, 20
    quiet = {"WORKER_LOG_LEVEL": "info", "OPENAI_LOG": "info", "WORKER_CONCURRENCY": 64, **NOBODY_DIES}
    workers = [await scene.worker(WORKER_REQUESTS_PER_MINUTE=60 * rate, **quiet) for _ in range(2)]
    for first in range(0, flood, 100):
        await asyncio.gather(*(scene.send(f"flood-{first + number}", tenant="a") for number in range(100)))
    sent = time.monotonic()
    for number in range(10):
        await scene.send(f"few-{number}", tenant="b")
    waits = [await answered_after(scene, f"few-{number}", sent) for number in range(10)]
    alone = flood / rate
    assert quantiles(waits, n=20)[-1] < alone / 4
    for worker in workers:
        assert await worker.terminate() == 0
    for _ in range(2):
        await scene.worker(**quiet)
    await scene.replied(flood + 10, within=400)
    # Who is claimed ahead of a place gives its permit back when the machine stands still for half a second.
    ahead = 64 // 4
    await scene.holds(within=200, unsent=2 * ahead)


async def answered_after(scene: Scene, job_id: str, sent: float) -> float:
    """Return how many seconds after a moment a job of tenant b was answered."""
    async with asyncio.timeout(300):
        while ("b", job_id) not in scene.producer.jobs_answered():  # noqa: ASYNC110 (what has come so far)
            await asyncio.sleep(0.05)
    return time.monotonic() - sent


def prices(**dollars: int) -> str:
    """Return the configuration of a model's prices, in dollars a million."""
    named = {"cached_input": dollars["input"], "cache_write": dollars["input"], **dollars}
    return '[prices."gpt-6-luna"]\n' + "".join(f"{name} = {price}\n" for name, price in named.items())


async def test_f11_budget_is_spent_in_the_middle_of_the_queue(scene: Scene) -> None:
    """Eight workers: later jobs are refused with a code, and no more is overspent than was in flight."""
    scene.configure("[tenants.acme]\nbudget_usd_per_month = 1\n" + prices(input=0, output=1000))
    cost, budget = 16 * NANO // 1000, NANO  # at 1,000 dollars a million, sixteen tokens cost 1.6 cents
    usage = {"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 26}
    scene.upstream.script(Act(delay=0.3, patch={"usage": usage}, times=ALWAYS))
    settings = {"WORKER_CONCURRENCY": 4, **NOBODY_DIES}
    workers = await asyncio.gather(*(scene.worker(**settings) for _ in range(8)))
    for number in range(120):
        job_id = f"job-{number}"
        message = {"role": "user", "content": f"{SECRET} <{job_id}>"}
        request = {"model": "gpt-6-luna", "max_completion_tokens": 20, "messages": [message]}
        await scene.send(job_id, request=request)
    replies = await scene.replied(120, within=120)
    ends = [reply["error"]["code"] if reply["error"] else "succeeded" for reply in replies]
    assert set(ends) == {"succeeded", "budget_exceeded"}
    good = ends.count("succeeded")
    reserved_in_flight = 8 * 4 * 20 * NANO // 1000
    assert budget <= good * cost < budget + reserved_in_flight
    assert len(scene.upstream.requests) == good
    (month,) = await scene.rows("SELECT spent_nano_usd FROM budget_months")
    assert month["spent_nano_usd"] == good * cost
    assert await scene.rows("SELECT * FROM budget_holds") == []
    assert sum(bool(worker.lines("job finished")) for worker in workers) > 1
    await scene.holds()


async def test_c06_price_that_changes_under_way(scene: Scene) -> None:
    """What was asked at the old price is booked at the old, what is answered at the new one at the new."""
    scene.configure(prices(input=1, output=2))
    await scene.died_on("finish:before:kill")
    scene.configure(prices(input=10, output=20))
    await scene.worker()
    await scene.replied(1)
    old, new = await scene.rows("SELECT * FROM usage_ledger ORDER BY attempt_no")
    assert (old["entry"], new["entry"]) == ("estimated", "measured")
    for row, price in ((old, 1), (new, 10)):
        assert document(row["prices"])["input"] == str(price)
        cost = 1000 * price * (row["input_tokens"] + 2 * row["output_tokens"])
        assert row["cost_nano_usd"] == cost
    await scene.holds(extra_calls=1, unknown=1)
