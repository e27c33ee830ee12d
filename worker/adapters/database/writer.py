"""Group commit: what arrives within a few milliseconds is written in one transaction."""

import asyncio
import random
import time
from asyncio import Future, Task, TimerHandle
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from itertools import count
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from worker.adapters.database.batch import Work
from worker.adapters.database.errors import (
    DatabaseClosedError,
    NotConnectedError,
    Trouble,
    safe,
    trouble,
)
from worker.adapters.database.reach import SERVER
from worker.adapters.database.reasons import reason
from worker.adapters.database.work import Operation, Step
from worker.domain.events import Broken, ServerTrouble
from worker.domain.job import JobKey
from worker.ports import Observer

ResultT = TypeVar("ResultT")

_GATHER_SECONDS: Final = 0.02
_QUIET_SECONDS: Final = 0.0003
_QUIET_TURNS: Final = 2
_LAZY_SECONDS: Final = 0.05
_BATCH_LIMIT: Final = 256
_CROWD: Final = 16
"""Where more than that wait, their transaction takes long: draws, and intents of what may start, go first."""
_BATCH_BYTES: Final = 2**26
"""PostgreSQL takes no message of a gigabyte, and a transaction must not keep others waiting for long."""
_BACKOFF_SECONDS: Final = 0.1
_BACKOFF_CAP_SECONDS: Final = 5.0


class RunBatch(Protocol):
    """Runs work as a transaction of a connection; it must bear being run again."""

    async def __call__(self, connection: AsyncConnection, work: Sequence[Work], /) -> list[Any]:
        """Return one result each, in order."""


class _State(Enum):
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class _Entry:
    """Work that waits for its transaction; without a future nobody waits for it."""

    __slots__ = ("future", "key", "size", "urgent", "work")

    def __init__(self, work: Work, future: Future[Any] | None) -> None:
        self.work = work
        self.future = future
        self.urgent = work.urgent
        self.key: JobKey | None = work.key
        self.size = work.size

    def done(self, result: object) -> None:
        # The caller may be gone: its cancellation reaches the future, never the transaction.
        if self.future is not None and not self.future.done():
            self.future.set_result(result)

    def failed(self, error: Exception) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class GroupCommit:
    """One writer per process: it owns a connection and a task, and never gives up on a server.

    While a transaction runs, the next batch gathers. A batch whose commit was not
    confirmed is run again, so all work must bear repetition. A batch that is refused
    is run again one by one, so that only the work at fault fails.
    """

    def __init__(self, engine: AsyncEngine, run: RunBatch, observer: Observer) -> None:
        self._engine = engine
        self._run_batch = run
        self._observer = observer
        self._queue: deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._lazy_timer: TimerHandle | None = None
        self._connection: AsyncConnection | None = None
        self._task: Task[None] | None = None
        self._state = _State.OPEN
        self._up = True
        self._hurried = False

    @override
    def __repr__(self) -> str:
        return f"<GroupCommit {self._state.name} {'up' if self._up else 'down'} queued={len(self._queue)}>"

    @property
    def healthy(self) -> bool:
        """Whether the last transaction went through and the next one can be taken."""
        running = self._task is not None and not self._task.done()
        return self._up and running and self._state is _State.OPEN

    def start(self) -> None:
        """Start to write what is submitted."""
        self._task = asyncio.get_running_loop().create_task(self._write(), name="database-writer")

    async def submit(self, work: Operation[ResultT] | Step[ResultT]) -> ResultT:
        """Return once the work is durable. Raises DatabaseRefusedError, DatabaseClosedError."""
        if self._state is not _State.OPEN:
            raise DatabaseClosedError
        future: Future[ResultT] = asyncio.get_running_loop().create_future()
        self._queue.append(_Entry(work, future))
        self._wake.set()
        return await future

    def submit_lazily(self, work: Work) -> None:
        """Let work ride along with the next transaction, or start one soon."""
        if self._state is not _State.OPEN:
            return
        self._queue.append(_Entry(work, None))
        if self._lazy_timer is None:
            loop = asyncio.get_running_loop()
            self._lazy_timer = loop.call_later(_LAZY_SECONDS, self._wake.set)

    async def close(self, seconds: float) -> None:
        """Write what is queued, for as long as given, and stop; what is left then fails."""
        if self._task is None or self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._wake.set()
        await asyncio.wait({self._task}, timeout=seconds)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._state = _State.CLOSED
        self._stop_timer()
        for entry in self._queue:
            entry.failed(DatabaseClosedError())
        self._queue.clear()

    async def _write(self) -> None:
        try:
            while self._state is _State.OPEN or self._queue:
                await self._wake.wait()
                await self._gather()
                if batch := self._take():
                    await self._settle(batch)
        finally:
            await self._disconnect()

    def _stop_timer(self) -> None:
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None

    async def _gather(self) -> None:
        """Let the event loop finish what it has to do: whoever is at work may have something to write.

        A transaction costs the same for one job as for fifty. But where the loop is quiet nobody
        is about to come, and a lone job is not held up.
        """
        turn = time.monotonic()
        end, quiet = turn + _GATHER_SECONDS, 0
        while quiet < _QUIET_TURNS and turn < end and len(self._queue) < _BATCH_LIMIT:
            await asyncio.sleep(0)
            before, turn = turn, time.monotonic()
            quiet = quiet + 1 if turn - before < _QUIET_SECONDS else 0

    def _take(self) -> list[_Entry]:
        """Take a batch with at most one operation a job; the order of a job's operations stays."""
        self._wake.clear()
        self._stop_timer()
        hurried = self._hurried = self._hurries()
        batch: list[_Entry] = []
        later: list[_Entry] = []
        keys: set[JobKey] = set()
        room = _BATCH_BYTES
        while self._queue and len(batch) < _BATCH_LIMIT:
            room -= self._queue[0].size
            if batch and room < 0:
                break
            entry = self._queue.popleft()
            left = entry.key in keys or (hurried and not entry.urgent)
            (later if left else batch).append(entry)
            if entry.key is not None:
                keys.add(entry.key)
        self._queue.extendleft(reversed(later))
        if self._queue:
            self._wake.set()
        return batch

    def _hurries(self) -> bool:
        """Whether only what is urgent is to be taken; not twice in a row, so that nothing waits for ever."""
        if self._hurried or len(self._queue) <= _CROWD:
            return False
        return any(entry.urgent for entry in self._queue)

    async def _settle(self, batch: list[_Entry]) -> bool:
        """Write a batch and answer its callers; False where some of it was refused."""
        try:
            results = await self._write_durably([entry.work for entry in batch])
        except asyncio.CancelledError:
            for entry in batch:
                entry.failed(DatabaseClosedError())
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, it belongs to the callers
            await self._settle_refused(batch, error)
            return False
        for entry, result in zip(batch, results, strict=True):
            entry.done(result)
        return True

    async def _settle_refused(self, batch: list[_Entry], error: Exception) -> None:
        if len(batch) > 1:
            fine = [await self._settle([entry]) for entry in batch]
            if all(fine):
                # Nobody is told otherwise, but a batch that only works piece by piece is a fault.
                self._observer(Broken(key=None, where="database batch", error=safe(error)))
            return
        (entry,) = batch
        entry.failed(safe(error))
        if entry.future is None:
            self._observer(Broken(key=entry.key, where="database", error=safe(error)))

    async def _write_durably(self, work: list[Work]) -> list[Any]:
        """Run until it is confirmed, through any outage. Raises what would fail again."""
        for failures in count():
            try:
                results = await self._transact(work)
            except Exception as error:
                if (kind := trouble(error)) is Trouble.REFUSED:
                    raise
                await self._back_off(kind, failures, error)
            else:
                self._note(up=True)
                return results
        raise AssertionError  # pragma: no cover

    async def _transact(self, work: list[Work]) -> list[Any]:
        try:
            if self._connection is None:
                self._connection = await self._connect()
            return await self._run_batch(self._connection, work)
        except BaseException as error:
            await self._disconnect(broken=trouble(error) is not Trouble.REFUSED)
            raise

    async def _connect(self) -> AsyncConnection:
        try:
            return await self._engine.connect()
        except Exception as error:
            raise NotConnectedError from error

    async def _disconnect(self, *, broken: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(Exception):  # it is given up anyway
            if broken:
                await connection.invalidate()
            await connection.close()

    async def _back_off(self, kind: Trouble, failures: int, error: Exception) -> None:
        if kind is Trouble.AWAY:
            self._note(up=False, error=reason(error))
        longest = min(_BACKOFF_CAP_SECONDS, _BACKOFF_SECONDS * 2 ** min(failures, 10))
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 spreads workers, no secret

    def _note(self, *, up: bool, error: str | None = None) -> None:
        if up is not self._up:
            self._up = up
            self._observer(ServerTrouble(server=SERVER, up=up, error=error))
