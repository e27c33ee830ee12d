"""Processes that race for one budget, and are killed on the way."""

import asyncio
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import a_claim, a_finish, a_job, a_ledger_entry, a_record, a_token, a_wait, rows
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.upkeep import Upkeep
from worker.domain.budget import OverBudget
from worker.ports import Claimed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
PROCESSES, LANES, KILLED = 8, 4, 3
LEASE = 6.0
HELD = 200_000
"""What `an_intent` reserves."""
BUDGET = 500 * HELD
SPENT = "SELECT CAST(coalesce(sum(cost_nano_usd), 0) AS BIGINT) FROM usage_ledger"


async def race(url: str, name: str) -> dict[str, Any]:
    """Run jobs until the budget is spent; return what the ledger held whenever one was refused."""
    seen: list[int] = []
    async with open_database(
        url, observer=lambda _: None, lease_seconds=LEASE, budgets={"acme": BUDGET}
    ) as database:
        print("open", flush=True)  # noqa: T201 read by the test
        await asyncio.to_thread(sys.stdin.readline)
        sweeping = asyncio.create_task(sweep(url, database))
        await asyncio.gather(*(run_lane(url, database, f"{name}-{lane}", seen) for lane in range(LANES)))
        # As long as the dead have leases: what they held is swept by those who live.
        async with asyncio.timeout(60):
            while await rows(url, "SELECT * FROM budget_holds"):  # noqa: ASYNC110 polls the database
                await asyncio.sleep(0.2)
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
    return {"seen": seen}


async def run_lane(url: str, database: Database, name: str, seen: list[int]) -> None:
    """Run one job after the other, until three were refused."""
    chance = random.Random(name)
    number, refused = 0, 0
    while refused < 3:
        number += 1
        if await run(database, f"{name}-{number}", chance) is not None:
            refused += 1
            ((spent,),) = await rows(url, SPENT)
            seen.append(spent)


async def run(database: Database, job_id: str, chance: random.Random) -> OverBudget | None:
    """Run one job as a worker does: wait while the budget is only held, stop where it is spent."""
    while True:
        job, token, now = a_job(job_id), a_token(), database.clock.now()
        claimed = await database.store.claim(a_claim(job, token, at=now))
        assert isinstance(claimed, Claimed)
        over = claimed.over_budget
        if over is None:
            await asyncio.sleep(chance.uniform(0, 0.05))  # OpenAI is at work
            entry = a_ledger_entry(
                cost_nano_usd=chance.randrange(HELD // 4, HELD), occurred_at=database.clock.now()
            )
            record = a_record(job.key, claimed.attempt_no, ledger=entry)
            assert await database.store.finish(a_finish(job, token, record=record))
            return None
        if over.wait_seconds is None:
            await database.store.finish(a_finish(job, token, record=None))
            return over
        await database.store.wait(a_wait(job, token, seconds=0, at=now))
        await asyncio.sleep(chance.uniform(0, 0.02))


async def sweep(url: str, database: Database) -> None:
    """Look after budgets as every worker does, only more often."""
    engine = open_engine(url, Use.WRITE)
    upkeep = Upkeep(engine, database, budgets={"acme": BUDGET}, keep_days={}, observer=lambda _: None)
    try:
        while True:
            await upkeep.look_after_budgets()
            await asyncio.sleep(0.1)
    finally:
        await engine.dispose()


async def start(url: str, name: str) -> Process:
    """Start a process, and return it once it is signed on."""
    module = "tests.e2e.test_budget_race"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, url, name, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    return process


async def test_budget_is_kept_by_processes_that_are_killed(migrated_url: str) -> None:
    """Eight processes, three of them killed: the overshoot is less than one reservation.

    Nobody is refused while money is left, no hold outlives its holder, and every
    request is in the ledger once, those of the dead at what they had reserved.
    """
    racing = [await start(migrated_url, str(number)) for number in range(PROCESSES)]
    for process in racing:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    for part, process in enumerate(racing[:KILLED], 1):
        async with asyncio.timeout(60):
            while (await rows(migrated_url, SPENT))[0][0] < BUDGET * part // (KILLED + 1):  # noqa: ASYNC110 likewise
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    ended = [(await process.communicate(), process.returncode) for process in racing]

    assert [code for _, code in ended] == [-signal.SIGKILL] * KILLED + [0] * (PROCESSES - KILLED), ended
    ((spent,),) = await rows(migrated_url, SPENT)
    assert BUDGET <= spent < BUDGET + HELD
    assert await rows(migrated_url, "SELECT spent_nano_usd FROM budget_months") == [(spent,)]
    refusals = [figure for (out, _), code in ended if code == 0 for figure in json.loads(out)["seen"]]
    assert len(refusals) == (PROCESSES - KILLED) * LANES * 3
    assert min(refusals) >= BUDGET
    assert await rows(migrated_url, "SELECT * FROM budget_holds") == []
    assert await rows(migrated_url, "SELECT * FROM attempts WHERE state = 'in_flight'") == []
    one_each = (
        "SELECT count(*), count(DISTINCT job_id), (SELECT count(*) FROM attempts) FROM usage_ledger"
        " WHERE entry <> 'correction'"
    )
    ((booked, jobs, made),) = await rows(migrated_url, one_each)
    assert booked == jobs == made
    lost = await rows(migrated_url, "SELECT cost_nano_usd FROM usage_ledger WHERE entry = 'estimated'")
    assert lost == [(HELD,)] * len(lost) != []


if __name__ == "__main__":
    print(json.dumps(asyncio.run(race(*sys.argv[1:]))))  # noqa: T201 read by the test
