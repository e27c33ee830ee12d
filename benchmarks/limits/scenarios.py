"""What is measured, each on the upstream's own log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.limits.fleet import Fleet, a_job
from benchmarks.limits.strict import Logged, Quota
from tests.support.good_answers import estimate

REQUESTS, TOKENS = 600.0, 90_000.0
BACKLOG = 1.5
"""Jobs published, as a multiple of what the quota lets through."""
FLOOD, SMALL = 10_000, 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure. `goal` is `>=` or `<=` and a number."""

    figure: str
    value: float
    unit: str
    goal: str

    @property
    def ok(self) -> bool:
        """Whether it is met."""
        sign, _, bound = self.goal.partition(" ")
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)


Scenario: TypeAlias = Callable[[Fleet, float], Awaitable[list[Figure]]]


def quota(fleet: Fleet, model: str, **options: bool) -> Quota:
    """Give a model a quota."""
    fleet.quotas.of[model] = Quota(requests=REQUESTS, tokens=TOKENS, **options)
    return fleet.quotas.of[model]


async def first(quota: Quota, count: int = 1) -> float:
    """Wait for requests to arrive; return when the first did."""
    async with asyncio.timeout(60):
        while len(quota.log) < count:  # noqa: ASYNC110 (it is the upstream that notes them)
            await asyncio.sleep(0.02)
    return quota.log[0].at


def used(log: Iterable[Logged], begin: float, end: float) -> float:
    """Return the part, in percent, of the binding quota that was used between two times."""
    inside = [one for one in log if one.admitted and begin <= one.at < end]
    minutes = (end - begin) / 60
    requests = len(inside) / (REQUESTS * minutes)
    return 100 * max(requests, sum(one.tokens for one in inside) / (TOKENS * minutes))


def refused(log: Iterable[Logged]) -> int:
    """Return how many were refused."""
    return sum(not one.admitted for one in log)


def backlog(model: str, seconds: float) -> list[dict[str, object]]:
    """Return jobs for a while."""
    return [a_job(model) for _ in range(int(BACKLOG * seconds * REQUESTS / 60))]


async def steady(fleet: Fleet, seconds: float) -> list[Figure]:
    """Run a backlog on known limits, by the minute and by the second."""
    found = []
    for name, slices in (("steady", False), ("steady_by_the_second", True)):
        model = f"limited-{name}"
        strict = quota(fleet, model, slices=slices)
        await fleet.publish(backlog(model, seconds))
        begin = await first(strict) + 1
        await asyncio.sleep(seconds)
        found += [
            Figure(
                figure=f"{name}_used",
                value=used(strict.log, begin, begin + seconds - 1),
                unit="%",
                goal=">= 98",
            ),
            Figure(figure=f"{name}_refused", value=refused(strict.log), unit="requests", goal="<= 0"),
        ]
        await fleet.purge()
    return found


async def change(fleet: Fleet, seconds: float) -> list[Figure]:
    """Kill a worker and start another one in the middle."""
    strict = quota(fleet, "limited-change")
    await fleet.publish(backlog("limited-change", seconds + 10))
    begin = await first(strict) + 1
    await asyncio.sleep(seconds / 3)
    await fleet.workers.pop(0).kill()
    await fleet.start()
    await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
    return [
        Figure(figure="change_used", value=used(strict.log, begin, time.monotonic()), unit="%", goal=">= 95"),
        Figure(figure="change_refused", value=refused(strict.log), unit="requests", goal="<= 0"),
    ]


async def mixed(fleet: Fleet, _seconds: float) -> list[Figure]:
    """Send large requests among small ones: it is fair to wait for the tokens of all that came before."""
    strict = quota(fleet, "limited-mixed")
    small = [a_job("limited-mixed", output=1200) for _ in range(45)]
    large = [a_job("limited-mixed", tenant="large", prompt=int(part * TOKENS)) for part in (0.6, 0.85)]
    jobs = [*small[:15], large[0], *small[15:30], large[1], *small[30:]]
    began = time.monotonic()
    await fleet.publish(jobs)
    waits = list[float]()
    for number, one in enumerate(large, start=1):
        at = await admitted(strict, one["job_id"])
        before = sum(tokens_of(other) for other in jobs[: jobs.index(one)])
        waits.append((at - began) / (before / (TOKENS / 60) + number))
    return [
        Figure(figure="mixed_large_wait", value=max(waits), unit="x fair", goal="<= 2"),
        Figure(figure="mixed_refused", value=refused(strict.log), unit="requests", goal="<= 0"),
    ]


async def admitted(quota: Quota, job_id: str) -> float:
    """Wait until a job's request is admitted; return when that was."""
    async with asyncio.timeout(300):
        while True:
            for one in quota.log:
                if one.job_id == job_id and one.admitted:
                    return one.at
            await asyncio.sleep(0.1)


def tokens_of(job: Mapping[str, Any]) -> int:
    """Return what the upstream counts for a job."""
    return estimate("/chat/completions", job["request"])


async def unknown(fleet: Fleet, seconds: float) -> list[Figure]:
    """Find the limits out from the headers."""
    strict = quota(fleet, "unknown")
    await fleet.publish(backlog("unknown", seconds + 10))
    begin = await first(strict) + 1
    await asyncio.sleep(seconds + 10)
    wasted = 100 * refused(strict.log) / len(strict.log)
    return [
        Figure(
            figure="unknown_used", value=used(strict.log, begin, time.monotonic()), unit="%", goal=">= 95"
        ),
        Figure(figure="unknown_refused", value=wasted, unit="% of requests", goal="<= 1"),
    ]


async def storm(fleet: Fleet, seconds: float) -> list[Figure]:
    """Cut the quota, with headers that tell what remains though not the new limit."""
    return await cut(fleet, seconds, "storm", headers=True)


async def silent_storm(fleet: Fleet, seconds: float) -> list[Figure]:
    """Cut the quota of an upstream that says nothing but 429."""
    return await cut(fleet, seconds, "silent_storm", headers=False)


async def cut(fleet: Fleet, seconds: float, name: str, *, headers: bool) -> list[Figure]:
    """Halve the quota for a minute without announcing it, and take away what was in stock."""
    seconds = max(seconds, 60)
    strict = quota(fleet, f"limited-{name}", headers=headers)
    await fleet.publish(backlog(f"limited-{name}", seconds + 30))
    await first(strict)
    await asyncio.sleep(5)
    strict.requests.resize(REQUESTS / 2)
    strict.tokens.resize(TOKENS / 2)
    strict.requests.level = strict.tokens.level = 0.0
    await asyncio.sleep(seconds)
    strict.requests.resize(REQUESTS)
    strict.tokens.resize(TOKENS)
    ended = time.monotonic()
    await asyncio.sleep(12)
    wasted = 100 * refused(strict.log) / len(strict.log)
    recovered = used(strict.log, ended + 5, ended + 12)
    return [
        Figure(figure=f"{name}_wasted", value=wasted, unit="% of requests", goal="<= 2"),
        Figure(figure=f"{name}_recovered_after_5s", value=recovered, unit="% of the quota", goal=">= 95"),
    ]


async def closed(fleet: Fleet, seconds: float) -> list[Figure]:
    """Close one of two models in the same lane; compare the other's rate with its rate alone."""
    solo = quota(fleet, "limited-solo")
    await fleet.publish(backlog("limited-solo", seconds / 2))
    begin = await first(solo) + 1
    await asyncio.sleep(seconds / 2)
    alone = used(solo.log, begin, begin + seconds / 2 - 1)
    await fleet.purge()
    shut, open_ = quota(fleet, "limited-shut"), quota(fleet, "limited-open")
    shut.requests.limit = 1e-6  # with that, Retry-After is long
    shut.requests.level = 0.0
    shut.headers = False
    pairs = zip(backlog("limited-shut", seconds), backlog("limited-open", seconds), strict=True)
    await fleet.publish(job for pair in pairs for job in pair)
    begin = await first(open_) + 1
    await asyncio.sleep(seconds)
    beside = used(open_.log, begin, begin + seconds - 1)
    return [
        Figure(figure="closed_other_model", value=100 * beside / alone, unit="% of solo", goal=">= 95"),
        Figure(figure="closed_wasted", value=refused(shut.log), unit="requests", goal="<= 8"),
    ]


async def shares(fleet: Fleet, seconds: float) -> list[Figure]:
    """Let a tenant of weight 3 and one of weight 1 contend."""
    model, seconds = "limited-shares", max(seconds, 60)  # one request must not decide
    strict = quota(fleet, model)
    count = int(BACKLOG * seconds * REQUESTS / 60)
    await fleet.publish(a_job(model, tenant=tenant) for _ in range(count) for tenant in ("heavy", "light"))
    # Until every worker has jobs of both, whoever has only one kind lets those go.
    begin = await first(strict) + 10
    await asyncio.sleep(seconds + 10)
    inside = [one for one in strict.log if one.admitted and begin <= one.at < begin + seconds]
    heavy = sum(one.tenant == "heavy" for one in inside)
    ratio = heavy / max(1, len(inside) - heavy)
    return [
        Figure(figure="shares_deviation", value=100 * abs(ratio / 3 - 1), unit="% off 3:1", goal="<= 5"),
    ]


async def flood(fleet: Fleet, _seconds: float) -> list[Figure]:
    """Send ten jobs of a small tenant while ten thousand of another one wait."""
    strict = quota(fleet, "limited-flood")
    await fleet.publish(a_job("limited-flood", tenant="flood") for _ in range(FLOOD))
    await first(strict)
    await fleet.looked_through()
    published = time.monotonic()
    await fleet.publish(a_job("limited-flood", tenant="small") for _ in range(SMALL))
    async with asyncio.timeout(120):
        while sum(one.admitted and one.tenant == "small" for one in strict.log) < SMALL:  # noqa: ASYNC110 (likewise)
            await asyncio.sleep(0.05)
    last = max(one.at for one in strict.log if one.tenant == "small")
    fair = SMALL / (REQUESTS / 60 / 2)
    return [
        Figure(figure="flood_small_tenant", value=(last - published) / fair, unit="x fair", goal="<= 2"),
    ]


SCENARIOS: Sequence[Scenario] = (steady, change, mixed, unknown, storm, silent_storm, closed, shares, flood)
