"""A worker under load, and how fast and at what cost it goes."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu.load import Load, Replies
from benchmarks.cpu.messages import Message, our_job
from benchmarks.cpu.processes import MeasuredProcess, python, running

IN_FLIGHT = 64
WARM_UP = 1000
"""Jobs, at least, before a measurement starts: SQLite's log has then been as long as it gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a worker runs."""

    amqp_url: str
    database_url: str
    openai_url: str
    folder: Path

    @property
    def database(self) -> str:
        """What kind of database it is."""
        return self.database_url.partition(":")[0]

    @property
    def settings(self) -> dict[str, str]:
        """Its environment, as far as everybody calls it the same."""
        return {
            "AMQP_URL": self.amqp_url,
            "DATABASE_URL": self.database_url,
            "OPENAI_BASE_URL": self.openai_url,
            "OPENAI_API_KEY": "sk-not-a-key",
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """How a stretch of jobs went."""

    cpu: float
    """Seconds a job."""
    rate: float
    """Jobs a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A running worker."""

    name: str
    processes: tuple[MeasuredProcess, ...]
    replies: Replies
    job: Callable[[int], Message]
    """Returns a job with a request of so many messages."""
    in_flight: int

    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(process.cpu() for process in self.processes)


async def pace(contender: Contender, load: Load, *, messages: int, jobs: int, warm_rounds: int = 2) -> Pace:
    """Measure over so many jobs of this size, while all places are filled."""
    async with loaded(contender, load, messages=messages, jobs=jobs, warm_rounds=warm_rounds) as waiting:
        return await draining(contender, waiting)


@asynccontextmanager
async def loaded(
    contender: Contender, load: Load, *, messages: int, jobs: int, warm_rounds: int = 2
) -> AsyncIterator[int]:
    """Give it a backlog and let it get warm; yield how many jobs may be measured, then wait for the rest.

    To get warm takes so many times as many jobs as there are places.
    """
    before = contender.replies.count
    tail = contender.in_flight * len(contender.processes)
    warm_up = max(WARM_UP, warm_rounds * tail)
    total = warm_up + jobs + tail
    with ExitStack() as held:  # who is quick would else be done before all is published
        for process in contender.processes:
            held.enter_context(process.held())
        await load.publish(contender.job(messages).copies(total))
    await contender.replies.reach(before + warm_up)
    yield before + total - tail - contender.replies.count
    await contender.replies.reach(before + total)


async def draining(contender: Contender, jobs: int) -> Pace:
    """Measure over so many of the jobs that wait already."""
    begun, cpu, count = time.monotonic(), contender.cpu(), contender.replies.count
    await contender.replies.reach(count + jobs)
    done = contender.replies.count - count
    return Pace((contender.cpu() - cpu) / done, done / (time.monotonic() - begun))


@asynccontextmanager
async def ours(
    load: Load,
    site: Site,
    *,
    in_flight: int = IN_FLIGHT,
    limits: bool = False,
    processes: int = 1,
) -> AsyncIterator[Contender]:
    """Run this project's worker as an operator would. `limits` may be set, too high to hold anything back."""
    kind = site.database
    settings = {
        **site.settings,
        "WORKER_CONCURRENCY": str(in_flight),
        "WORKER_HTTP_PORT": "0",
        "WORKER_LOG_LEVEL": "info",
        "WORKER_LOG_FORMAT": "json",
    }
    if limits:
        settings |= {"WORKER_REQUESTS_PER_MINUTE": "30000000", "WORKER_TOKENS_PER_MINUTE": "1000000000"}
    replies = await load.replies(f"bench.replies.ours.{kind}")
    async with AsyncExitStack() as stack:
        measured = []
        for number in range(processes):
            process = await stack.enter_async_context(
                running(
                    python("worker", "run"),
                    name=f"ours-{kind}-{number}",
                    folder=site.folder,
                    settings=settings,
                )
            )
            await process.logged('"ready"')
            measured.append(process)
        yield Contender(
            name=f"ours_{kind}{'_limits' if limits else ''}",
            processes=tuple(measured),
            replies=replies,
            job=lambda messages: our_job(messages, replies.queue),
            in_flight=in_flight,
        )
