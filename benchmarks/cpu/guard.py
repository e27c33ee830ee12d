"""How many calls one job costs, from its frames to its acknowledgement; exit 1 where they have become more.

`python -m benchmarks.cpu.guard [--show]`. Calls, of Python functions and of C functions from Python, do not
depend on how busy the machine is. The worker is the real one, on an SQLite file; broker and OpenAI are small
stand-ins in another thread, which is not counted, nor is the event loop. `--show` lists where the calls are.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks.cpu.messages import LARGE, SMALL, Message, our_job
from benchmarks.cpu.small_broker import AmqpConnection, SmallBroker
from benchmarks.cpu.upstream import Connection
from worker.adapters.logs import LogObserver, configure_logging
from worker.assembly import assemble
from worker.config import load_settings


class Case(NamedTuple):
    """Jobs of so many messages, so many at a time, and the calls that one may cost on `PYTHON`."""

    messages: int
    at_a_time: int
    calls: int


CASES: Final = (
    Case(messages=SMALL, at_a_time=1, calls=2063),
    Case(messages=LARGE, at_a_time=1, calls=2297),
    Case(messages=SMALL, at_a_time=32, calls=1845),
)
"""To be lowered whenever a job has become cheaper. Many at a time share their commits."""
PYTHON: Final = (3, 11)
MORE, LESS = 1.03, 0.95
"""Tolerated. A number that is lower has to be written down here: else the next change may spend the gain."""
WARM_UP, ROUNDS = 8, 15
QUEUE: Final = "openai.jobs.completion"
REPLIES: Final = "replies"
JOB_SECONDS: Final = 20
UNCOUNTED: Final = ("/asyncio/", "/selectors.py", "/threading.py", "/guard.py")
SETTINGS: Final = {
    "OPENAI_API_KEY": "sk-not-a-key",
    "WORKER_HTTP_PORT": "0",
    "WORKER_REQUESTS_PER_MINUTE": "30000000",
    "WORKER_TOKENS_PER_MINUTE": "1000000000",
}


class Counting:
    """Calls of one job, by the file that calls, or is called."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Count an event of the interpreter."""
        if event in {"call", "c_call"}:
            self.files[frame.f_code.co_filename] += 1

    def calls(self) -> Counter[str]:
        """Return what counts: the loop's own calls depend on the system's moods."""
        return Counter(
            {name: n for name, n in self.files.items() if not any(part in name for part in UNCOUNTED)}
        )


class Surroundings:
    """Broker and OpenAI, in a thread of their own."""

    def __init__(self) -> None:
        self.broker = SmallBroker()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.amqp_port = self._serve(partial(AmqpConnection, self.broker))
        self.http_port = self._serve(partial(Connection, 0.0))

    def _serve(self, protocol: Any) -> int:
        async def serve() -> int:
            server = await self.loop.create_server(protocol, "127.0.0.1", 0)
            return int(server.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(serve(), self.loop).result(JOB_SECONDS)

    async def handle(self, messages: list[Message]) -> Counter[str]:
        """Have jobs handled at the same time; return their calls."""
        acknowledged, mine = asyncio.Semaphore(0), asyncio.get_running_loop()
        self.broker.on_ack = partial(mine.call_soon_threadsafe, acknowledged.release)
        counting = Counting()
        sys.setprofile(counting)
        try:
            self.loop.call_soon_threadsafe(self._deliver, messages)
            async with asyncio.timeout(JOB_SECONDS):
                for _ in messages:
                    await acknowledged.acquire()
        finally:
            sys.setprofile(None)
        return counting.calls()

    def _deliver(self, messages: list[Message]) -> None:
        for message in messages:
            self.broker.deliver(QUEUE, message)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for a while, without any others of the program."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("OPENAI_", "WORKER_")):
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def rounds(case: Case) -> Iterator[list[Message]]:
    """Yield the jobs of each round."""
    for _ in range(WARM_UP + ROUNDS):
        yield list(our_job(case.messages, REPLIES).copies(case.at_a_time))


async def count(folder: Path) -> list[list[Counter[str]]]:
    """Return the calls of each round of each case."""
    around = Surroundings()
    servers = {
        "AMQP_URL": f"amqp://guest:guest@127.0.0.1:{around.amqp_port}/",
        "DATABASE_URL": f"sqlite:///{folder / 'guard.db'}",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{around.http_port}/v1",
    }
    with environment(SETTINGS | servers):
        settings = load_settings()
    with (folder / "log").open("w") as stream:
        log = configure_logging(level="info", style="json", stream=stream)
        async with assemble(settings, LogObserver(log)) as parts:
            parts.consumer.start()
            async with asyncio.timeout(JOB_SECONDS):
                while not parts.consumer.consuming:  # noqa: ASYNC110 (a state of several channels)
                    await asyncio.sleep(0.01)
            found = [[await around.handle(jobs) for jobs in rounds(case)][WARM_UP:] for case in CASES]
            await parts.consumer.stop()
    return found


def judge(case: Case, calls: float) -> bool:
    """Say whether it is well."""
    line = (
        f"{case.messages} messages, {case.at_a_time} at a time: {calls:.0f} calls a job, {case.calls} known"
    )
    if sys.version_info[:2] != PYTHON:
        print(f"{line} for another Python: not judged")
        return True
    if calls > MORE * case.calls:
        print(f"{line}: its way has become longer")
        return False
    if calls < LESS * case.calls:
        print(f"{line}: its way has become shorter; write that down")
        return False
    print(line)
    return True


def main() -> int:
    """Count and judge. The best round counts: housekeeping and a busy machine can only add calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="list the files where the calls are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(count(Path(folder)))
    good = True
    for case, counted in zip(CASES, found, strict=True):
        ordered = sorted(counted, key=Counter.total)
        good &= judge(case, ordered[0].total() / case.at_a_time)
        if options.show:
            print(f"  up to {ordered[-1].total() / case.at_a_time:.0f} in other rounds; of the best one:")
            for name, calls in ordered[0].most_common(30):
                print(f"  {calls / case.at_a_time:6.0f} {name}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
