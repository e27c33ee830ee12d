"""What a job's admission costs on PostgreSQL, in CPU time of the worker."""

import asyncio
import time
from statistics import median

from benchmarks.limits.scenarios import Figure
from worker.adapters.database.opening import open_database
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Limiter, Need
from worker.domain.attempt import Account
from worker.domain.events import Event
from worker.domain.job import JobKey
from worker.domain.usage import Usage

RATE = 500
"""Jobs a second."""
ROUNDS = 3
"""Each with and without limits, one after the other; the median counts."""
BOOK = LimitBook(default=Limit(requests_per_minute=60_000, tokens_per_minute=60_000_000), by_model={})


async def overhead(database_url: str, seconds: float) -> Figure:
    """Admit and settle at a steady rate; count what it takes beyond the loop itself."""
    costs: list[float] = []
    async with open_database(database_url, observer=_ignore, lease_seconds=60) as database:
        for _ in range(ROUNDS):
            async with SharedLimiter.opened(BOOK, database.quota, database.clock, _ignore) as limiter:
                await _cost(limiter, 1)
                with_limits = await _cost(limiter, seconds)
            costs.append(with_limits - await _cost(None, seconds))
    return Figure(figure="overhead_500_jobs_s", value=median(costs), unit="us CPU per job", goal="<= 50")


async def _cost(limiter: Limiter | None, seconds: float) -> float:
    """Return microseconds of CPU time a job."""
    began = time.process_time()
    jobs = await _run(limiter, seconds)
    return 1e6 * (time.process_time() - began) / jobs


async def _run(limiter: Limiter | None, seconds: float) -> int:
    """Start jobs at the rate, ten at a time; each holds its permit for a moment."""
    account, jobs = Account(), 0
    headers = {
        "x-ratelimit-limit-requests": "60000",
        "x-ratelimit-remaining-requests": "59000",
        "x-ratelimit-limit-tokens": "60000000",
        "x-ratelimit-remaining-tokens": "59000000",
    }

    async def job(number: int) -> None:
        if limiter is None:
            await asyncio.sleep(0.05)
            return
        need = Need(
            key=JobKey("t", str(number)),
            account=account,
            model="m",
            input_tokens=500,
            output_tokens=100,
            received_at=time.time(),
        )
        permit = await limiter.try_admit(need) or await limiter.admit(need, 5)
        await asyncio.sleep(0.05)
        permit.heard(headers)
        permit.answered(Usage(input_tokens=480, output_tokens=90))

    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            while jobs < elapsed * RATE:
                group.create_task(job(jobs))
                jobs += 1
            await asyncio.sleep(0.02)
    return jobs


def _ignore(event: Event) -> None:
    _ = event
