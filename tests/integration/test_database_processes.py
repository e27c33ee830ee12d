"""Several worker processes on one database."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.databases import a_claim, a_finish, a_job, a_token, rows
from worker.adapters.database.opening import open_database
from worker.domain.events import Event
from worker.ports import Claimed

ROOT = Path(__file__).parents[2]
PROCESSES = 8
JOBS = 200
AT_ONCE = 20


async def work(url: str) -> dict[str, Any]:
    """Race for the same jobs as all others; finish what we get."""
    events: list[Event] = []
    async with open_database(url, observer=events.append, lease_seconds=60.0) as database:
        places = asyncio.Semaphore(AT_ONCE)

        async def run(number: int) -> int:
            job, token = a_job(f"job-{number}"), a_token()
            async with places:
                if not isinstance(await database.store.claim(a_claim(job, token)), Claimed):
                    return 0
                assert await database.store.finish(a_finish(job, token))
                database.outbox.sent(job.key)
                return 1

        won = sum(await asyncio.gather(*(run(number) for number in range(JOBS))))
    return {"pid": os.getpid(), "won": won, "events": len(events)}


def race(url: str) -> int:
    """Run processes that share nothing but their imports; return how many failed."""
    for _ in range(PROCESSES):
        if os.fork() == 0:
            report = json.dumps(asyncio.run(work(url)))
            os.write(1, f"{report}\n".encode())  # at one go, between those of the others
            os._exit(0)
    return sum(os.wait()[1] != 0 for _ in range(PROCESSES))


async def test_processes_share_one_database(migrated_url: str) -> None:
    """Eight processes that race for the same jobs see no lock error, lose nothing and double nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.test_database_processes",
        migrated_url,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    reports = [json.loads(line) for line in out.splitlines()]
    assert len({report["pid"] for report in reports}) == len(reports) == PROCESSES
    assert sum(report["won"] for report in reports) == JOBS
    assert [report["events"] for report in reports] == [0] * PROCESSES
    statuses = Counter(await rows(migrated_url, "SELECT status, reply_status, attempts FROM jobs"))
    assert statuses == {("succeeded", "sent", 1): JOBS}
    assert await rows(migrated_url, "SELECT count(*), sum(cost_nano_usd) FROM usage_ledger") == [
        (JOBS, JOBS * 120_000)
    ]
    assert await rows(migrated_url, "SELECT count(*) FROM results") == [(JOBS,)]
    assert await rows(migrated_url, "SELECT * FROM workers") == []


if __name__ == "__main__":
    sys.exit(race(sys.argv[1]))
