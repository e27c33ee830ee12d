"""A worker's sign of life, and the database's clock that it is measured by.

A claim holds while its worker is alive, so keeping thousands of claims costs one
small update now and then.
"""

import os
import socket
import time
from asyncio import sleep
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from worker.adapters.database.errors import DatabaseRefusedError
from worker.adapters.database.statements import Statements
from worker.adapters.database.work import Step
from worker.adapters.database.writer import GroupCommit
from worker.domain.events import Broken
from worker.ports import Clock, Observer

_FORGOTTEN_AFTER: Final = timedelta(days=1)
"""How long the row of a worker that never signed off is kept for operators."""


class DatabaseClock(Clock):
    """The database's time, carried on by this machine's monotonic clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    @override
    def now(self) -> datetime:
        return datetime.fromtimestamp(self._offset + time.monotonic(), UTC)

    # As it is: it is asked ten times a job.
    monotonic = staticmethod(time.monotonic)

    @override
    async def sleep(self, seconds: float) -> None:
        await sleep(seconds)

    def learn(self, now: datetime, *, asked: float, told: float) -> None:
        """Take in a reading made between two monotonic times; move no further than it proves."""
        reading = now.timestamp()
        self._offset = min(max(self._offset, reading - told), reading - asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who holds the claims of this process."""

    worker_id: str
    started_at: datetime

    def row(self) -> dict[str, Any]:
        """Return the columns that stay the same."""
        return {
            "worker_id": self.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self.started_at,
        }


@dataclass(frozen=True, slots=True)
class SignOn(Step[bool]):
    """Writes the sign of life; False where the former one had run out."""

    worker: Worker
    clock: DatabaseClock
    lease: timedelta

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> bool:
        asked = self.clock.monotonic()
        look = await connection.execute(statements.look_at_clock, {"of_worker": self.worker.worker_id})
        now, alive_until = look.one()
        self.clock.learn(now, asked=asked, told=self.clock.monotonic())
        row = self.worker.row() | {"alive_until": now + self.lease}
        await connection.execute(statements.renew_worker, row)
        return alive_until is not None and alive_until > now


@dataclass(frozen=True, slots=True)
class SignOff(Step[None]):
    """Ends a lease, so that others need not wait for it to run out."""

    worker_id: str
    now: datetime

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> None:
        await connection.execute(statements.remove_worker, {"of_worker": self.worker_id})
        await connection.execute(statements.forget_workers, {"before": self.now - _FORGOTTEN_AFTER})


class WorkerLease:
    """Keeps a worker alive in the eyes of the others."""

    def __init__(
        self,
        writer: GroupCommit,
        worker: Worker,
        clock: DatabaseClock,
        *,
        seconds: float,
        observer: Observer,
    ) -> None:
        self._writer = writer
        self._worker = worker
        self._clock = clock
        self._seconds = seconds
        self._observer = observer
        self.lapses = 0

    @property
    def worker_id(self) -> str:
        """The worker's name in `workers` and in its claims."""
        return self._worker.worker_id

    async def open(self) -> None:
        """Register the worker."""
        await self.renew()

    async def renew(self) -> bool:
        """Show a sign of life; False where the lease had run out, so that claims may be lost."""
        step = SignOn(self._worker, self._clock, timedelta(seconds=self._seconds))
        return await self._writer.submit(step)

    async def keep(self) -> None:
        """Renew until cancelled, counting the `lapses`."""
        while True:
            await self._clock.sleep(self._seconds / 3)
            try:
                self.lapses += not await self.renew()
            except DatabaseRefusedError as error:
                self._observer(Broken(key=None, where="lease", error=error))

    def close(self) -> None:
        """Sign off with the last transaction: what is left undone may then be taken over at once."""
        self._writer.submit_lazily(SignOff(self.worker_id, self._clock.now()))
