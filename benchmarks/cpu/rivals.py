"""The peers: how each is started, and what its producer publishes."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.cpu.contender import IN_FLIGHT, Contender, Site
from benchmarks.cpu.load import Load
from benchmarks.cpu.messages import LARGE, SMALL
from benchmarks.cpu.peers.sample import SAMPLE_ID
from benchmarks.cpu.processes import ROOT, running

PACKAGE: Final = "benchmarks.cpu.peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One library, as its documentation says to run it for work that waits for the network."""

    name: str
    command: tuple[str, ...]
    """`{in_flight}` is the number of jobs at a time."""
    ready: str
    """What its log says once it consumes."""
    module: str
    declares_replies: bool = False
    """Whether its producer declares the reply queue, in a form of its own."""

    @property
    def queue(self) -> str:
        """Where its jobs are."""
        return f"bench.{self.module}"

    @property
    def reply_queue(self) -> str:
        """Where its replies are."""
        return f"bench.replies.{self.module}"


PEERS: Final = (
    Peer(
        name="faststream",
        module="faststream",
        command=("faststream", "run", f"{PACKAGE}.faststream_peer:app"),
        ready="FastStream app started successfully",
    ),
    Peer(
        name="taskiq",
        module="taskiq",
        command=(
            *("taskiq", "worker", f"{PACKAGE}.taskiq_peer:broker", "--workers", "1"),
            *("--max-async-tasks", "{in_flight}", "--ack-type", "when_saved"),
        ),
        ready="tasks may come",
    ),
    Peer(
        name="celery",
        module="celery",
        command=(
            *("celery", "--app", f"{PACKAGE}.celery_peer", "worker", "--pool", "threads"),
            *("--concurrency", "{in_flight}", "--without-gossip", "--without-mingle"),
        ),
        ready="tasks may come",
    ),
    Peer(
        name="dramatiq",
        module="dramatiq",
        command=(
            *("dramatiq", f"{PACKAGE}.dramatiq_peer", "--processes", "1"),
            *("--threads", "{in_flight}", "--queues", "bench.dramatiq"),
        ),
        ready="Worker process is ready for action.",
        declares_replies=True,
    ),
)


@asynccontextmanager
async def rival(
    peer: Peer,
    load: Load,
    site: Site,
    *,
    environment: Path,
    in_flight: int = IN_FLIGHT,
) -> AsyncIterator[Contender]:
    """Run a peer's worker, of one process. `environment` is the peers' own, an absolute path."""
    binaries = environment / "bin"
    settings = {
        "PATH": f"{binaries}:/usr/bin:/bin",
        **site.settings,
        "IN_FLIGHT": str(in_flight),
        "dramatiq_queue_prefetch": str(in_flight),
    }
    if peer.module != "dramatiq":
        replies = await load.replies(peer.reply_queue)
    await _submit(peer, binaries, settings)
    if peer.module == "dramatiq":
        replies = await load.replies(peer.reply_queue, declare=False)
    jobs = {size: await load.take(peer.queue, SAMPLE_ID) for size in (SMALL, LARGE)}
    command = [part.format(in_flight=in_flight) for part in peer.command]
    command[0] = str(binaries / command[0])
    async with running(command, name=peer.name, folder=site.folder, settings=settings) as process:
        await process.logged(peer.ready)
        yield Contender(
            name=f"{peer.name}_{site.database}",
            processes=(process,),
            replies=replies,
            job=jobs.__getitem__,
            in_flight=in_flight,
        )


async def _submit(peer: Peer, binaries: Path, settings: Mapping[str, str]) -> None:
    """Have its own producer publish a sample of each size."""
    command = [str(binaries / "python"), "-m", f"{PACKAGE}.{peer.module}_peer", peer.reply_queue]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={"PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{peer.name} could not publish: {done.stderr[-2000:]}")
