"""The limits, shared by all workers: each draw is one statement on the database's clock."""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final

from sqlalchemy import Select, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from worker.adapters.database.draw import draw_parameters, draw_statement, read_grant
from worker.adapters.database.engine import reading
from worker.adapters.database.sql import sql_of
from worker.adapters.database.statements import Statements
from worker.adapters.database.tables import account_gates, bucket_users, buckets, model_samples
from worker.adapters.database.work import Step
from worker.adapters.database.writer import GroupCommit
from worker.domain.quota import Exchange, Exchanged, Glance, Grant, Order, Sample
from worker.ports import QuotaStore

PROBE_SECONDS: Final = 60.0
"""Credentials that were refused are tried by one request a minute, over all workers."""
SEEN_SECONDS: Final = 3.0
"""A worker that has not spoken for so long no longer counts as waiting."""
_FORGOTTEN_SECONDS: Final = 60.0
_KEEP: Final = 0.98
"""What remains of older samples at each new one."""


class QuotaStatements:
    """The statements for one engine."""

    def __init__(self, dialect: str) -> None:
        sql = sql_of(dialect)
        self.open_bucket = sql.insert_new(buckets)
        self.draw = draw_statement(sql)
        columns = buckets.c
        self.look: Select[Any] = select(columns.closings, columns.paused).where(
            columns.account == bindparam("of_account"), columns.name == bindparam("of_name")
        )
        self.tell = sql.upsert(bucket_users)
        self.now = select(sql.epoch())
        users = bucket_users.c
        self.others: Select[Any] = (
            select(users.account, users.name, func.count())
            .where(
                users.worker_id != bindparam("me"),
                users.waiting > 0,
                # Not later than now either: the clock may have gone back since a dead worker spoke.
                users.seen_at.between(bindparam("since"), bindparam("until")),
            )
            .group_by(users.account, users.name)
        )
        self.forget = delete(bucket_users).where(users.seen_at < bindparam("before"))
        gates = account_gates.c
        self.close_account = sql.upsert(account_gates)
        self.open_account = delete(account_gates).where(gates.account == bindparam("of_account"))
        self.accounts: Select[Any] = select(gates.account, gates.closed_until - sql.epoch(), gates.closed_for)
        self.probe = (
            update(account_gates)
            .where(gates.account == bindparam("of_account"), gates.closed_until <= sql.epoch())
            .values(closed_until=sql.epoch() + PROBE_SECONDS)
        )
        self.sample: Select[Any] = (
            select(model_samples).where(model_samples.c.model == bindparam("of_model")).with_for_update()
        )
        self.save_sample = sql.upsert(model_samples)


@dataclass(frozen=True, slots=True)
class RunExchange(Step[Exchanged]):
    """One round with the buckets. Repeated after a commit that was not confirmed, it costs a chunk."""

    statements: QuotaStatements
    worker_id: str
    exchange: Exchange
    urgent: ClassVar[bool] = True

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> Exchanged:
        # Always in the same order, so that no two workers can wait for each other.
        ordered = sorted(enumerate(self.exchange.orders), key=lambda item: (item[1].account, item[1].name))
        found, now = dict[int, Grant](), 0.0
        for place, order in ordered:
            found[place], now = await self._draw(connection, order)
        grants = [found[place] for place in range(len(found))]
        if not self.exchange.census:
            return Exchanged(grants=grants, samples=await self._samples(connection))
        return Exchanged(
            grants=await self._with_others(connection, grants, now),
            accounts=await self._accounts(connection),
            samples=await self._samples(connection),
        )

    async def _draw(self, connection: AsyncConnection, order: Order) -> tuple[Grant, float]:
        given = draw_parameters(order)
        row = (await connection.execute(self.statements.draw, given)).one_or_none()
        if row is None:
            await connection.execute(self.statements.open_bucket, _new_bucket(order))
            row = (await connection.execute(self.statements.draw, given)).one()
        return read_grant(row)

    async def _with_others(self, connection: AsyncConnection, grants: list[Grant], now: float) -> list[Grant]:
        """Tell the others what waits here, and add how many of them wait at each gate."""
        orders = self.exchange.orders
        if not orders:
            return grants
        rows = [
            {
                "worker_id": self.worker_id,
                "account": order.account,
                "name": order.name,
                "waiting": order.waiting,
                "running": order.running,
                "reserved": order.reserved,
                "seen_at": now,
            }
            for order in sorted(orders, key=lambda order: (order.account, order.name))
        ]
        await connection.execute(self.statements.tell, rows)
        asked = {"me": self.worker_id, "since": now - SEEN_SECONDS, "until": now + SEEN_SECONDS}
        others = {(row[0], row[1]): row[2] for row in await connection.execute(self.statements.others, asked)}
        return [
            replace(grant, others=others.get((order.account, order.name), 0))
            for order, grant in zip(orders, grants, strict=True)
        ]

    async def _accounts(self, connection: AsyncConnection) -> dict[str, tuple[float, str]]:
        now = float(await connection.scalar(self.statements.now) or 0.0) if self.exchange.closed else 0.0
        for account, (seconds, reason) in sorted(self.exchange.closed.items()):
            row = {"account": account, "closed_until": now + seconds, "closed_for": reason}
            await connection.execute(self.statements.close_account, row)
        for account in sorted(self.exchange.opened):
            await connection.execute(self.statements.open_account, {"of_account": account})
        found = await connection.execute(self.statements.accounts)
        return {row[0]: (row[1], row[2]) for row in found}

    async def _samples(self, connection: AsyncConnection) -> dict[str, Sample]:
        merged: dict[str, Sample] = {}
        for model, more in sorted(self.exchange.samples.items()):
            found = (await connection.execute(self.statements.sample, {"of_model": model})).mappings().first()
            known = Sample(**{name: found[name] for name in asdict(more)}) if found else Sample()
            merged[model] = known.plus(more, keep=_KEEP)
            row = {"model": model, **asdict(merged[model])}
            await connection.execute(self.statements.save_sample, row)
        return merged


@dataclass(frozen=True, slots=True)
class TakeProbe(Step[bool]):
    """Takes the turn to try closed credentials."""

    statements: QuotaStatements
    account: str

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> bool:
        taken = await connection.execute(self.statements.probe, {"of_account": self.account})
        return taken.rowcount > 0


@dataclass(frozen=True, slots=True)
class LeaveBuckets(Step[None]):
    """Takes a worker out of every line."""

    statements: QuotaStatements
    worker_id: str

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> None:
        now = float(await connection.scalar(self.statements.now) or 0.0)
        await connection.execute(
            delete(bucket_users).where(bucket_users.c.worker_id == self.worker_id),
        )
        await connection.execute(self.statements.forget, {"before": now - _FORGOTTEN_SECONDS})


class SqlQuotaStore(QuotaStore):
    """Limits in the database."""

    def __init__(self, writer: GroupCommit, engine: AsyncEngine, worker_id: str) -> None:
        self._writer = writer
        self._engine = engine
        self._worker_id = worker_id
        self._statements = QuotaStatements(engine.dialect.name)

    @override
    async def exchange(self, exchange: Exchange) -> Exchanged:
        return await self._writer.submit(RunExchange(self._statements, self._worker_id, exchange))

    @override
    async def look(self, account: str, name: str) -> Glance:
        asked = {"of_account": account, "of_name": name}
        async with reading(self._engine) as connection:
            found = (await connection.execute(self._statements.look, asked)).one_or_none()
        return Glance(closings=found.closings, paused=bool(found.paused)) if found else Glance()

    @override
    async def probe(self, account: str) -> bool:
        return await self._writer.submit(TakeProbe(self._statements, account))

    def close(self) -> None:
        """Leave with the last transaction."""
        self._writer.submit_lazily(LeaveBuckets(self._statements, self._worker_id))


def _new_bucket(order: Order) -> dict[str, Any]:
    """Return a bucket that is full up to its burst once it has refilled for a moment."""
    return {"account": order.account, "name": order.name, "updated_at": 0.0}
