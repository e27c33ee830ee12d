"""What all measurements share: servers, a load, an upstream of each latency, and how long to measure."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu.contender import Contender, Site, ours
from benchmarks.cpu.echo import echo
from benchmarks.cpu.load import Load, loading
from benchmarks.cpu.processes import MeasuredProcess, upstream
from benchmarks.cpu.rivals import Peer, rival
from tests.support.databases import fresh_postgres


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    times: int = 3
    """Repetitions, of which medians are taken."""
    jobs: int = 1200
    peer_jobs: int = 500
    seconds: float = 5.0
    """Of a measurement of latencies."""
    long: bool = False


QUICK = Scale(times=1, jobs=300, peer_jobs=150, seconds=2.0)


@dataclass(kw_only=True)
class Bench:
    """The servers of a run, and what was found so far."""

    scale: Scale
    load: Load
    amqp_url: str
    databases: Mapping[str, str]
    folder: Path
    environment: Path
    """The virtual environment of the peers."""
    stack: AsyncExitStack
    cheapest: list[Peer] = field(default_factory=list)
    """The peers, the one that needs least CPU first, once that is known."""
    _upstreams: dict[float, tuple[str, MeasuredProcess]] = field(default_factory=dict)

    async def upstream(self, latency: float = 0.0) -> tuple[str, MeasuredProcess]:
        """Return the base URL of an upstream of this latency, in seconds, and its process."""
        if latency not in self._upstreams:
            opened = await self.stack.enter_async_context(upstream(self.folder, latency))
            self._upstreams[latency] = opened
        return self._upstreams[latency]

    @asynccontextmanager
    async def ours(
        self, database: str = "postgresql", *, latency: float = 0.0, **options: Any
    ) -> AsyncIterator[Contender]:
        """Run our worker; options are those of `contender.ours`."""
        async with ours(self.load, await self._site(database, latency), **options) as contender:
            yield contender

    @asynccontextmanager
    async def rival(
        self, peer: Peer, database: str = "postgresql", *, latency: float = 0.0, **options: Any
    ) -> AsyncIterator[Contender]:
        """Run a peer's worker; options are those of `rivals.rival`."""
        site = await self._site(database, latency)
        async with rival(peer, self.load, site, environment=self.environment, **options) as contender:
            yield contender

    async def _site(self, database: str, latency: float) -> Site:
        url, _ = await self.upstream(latency)
        return Site(
            amqp_url=self.amqp_url,
            database_url=self.databases[database],
            openai_url=url,
            folder=self.folder,
        )

    def echo(self) -> AbstractAsyncContextManager[Contender]:
        """Run a consumer that does nothing but answer."""
        return echo(self.load, self.amqp_url, self.folder)


@asynccontextmanager
async def benching(scale: Scale, *, amqp_url: str, environment: Path, folder: Path) -> AsyncIterator[Bench]:
    """Open what all measurements share."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        yield Bench(
            scale=scale,
            load=await enter(loading(amqp_url)),
            amqp_url=amqp_url,
            databases={
                "sqlite": f"sqlite:///{folder / 'jobs.db'}",
                "postgresql": await enter(fresh_postgres()),
            },
            folder=folder,
            environment=environment,
            stack=stack,
        )
