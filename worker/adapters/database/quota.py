"""The limits, shared by all workers: each draw is one statement on the database's clock."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Select, Update, bindparam, case, delete, func, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Double
from typing_extensions import override

from worker.adapters.database.sql import Sql, sql_of
from worker.adapters.database.statements import Statements
from worker.adapters.database.tables import account_gates, bucket_users, buckets, model_samples
from worker.adapters.database.work import Step
from worker.adapters.database.writer import GroupCommit
from worker.domain.bucket import UP_PER_SECOND, Size
from worker.domain.quota import Exchange, Exchanged, Grant, MeterGrant, MeterOrder, Order, Sample
from worker.ports import QuotaStore

_METERS: Final = ("requests", "tokens")
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
        self.draw = _draw(sql)
        self.tell = sql.upsert(bucket_users)
        self.now = select(sql.epoch())
        users = bucket_users.c
        self.others: Select[Any] = (
            select(users.account, users.name, func.count())
            .where(users.worker_id != bindparam("me"), users.waiting > 0, users.seen_at > bindparam("since"))
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


def _draw(sql: Sql) -> Update:
    """Return the one statement that refills, corrects, closes and takes."""
    columns, now = buckets.c, sql.epoch()
    elapsed = sql.greatest(type_coerce(0.0, Double), now - columns.updated_at)
    values: dict[str, Any] = {}
    answers: list[Any] = []
    for meter in _METERS:
        given = {name: bindparam(f"{meter}_{name}", type_=Double) for name in _GIVEN}
        level, drift = columns[f"{meter}_level"], columns[f"{meter}_drift"]
        wished = given["weight"] * (given["drift"] - drift)
        correction = sql.least(wished, UP_PER_SECOND * given["rate"] * elapsed) - given["extra"]
        refilled = level + elapsed * given["rate"] + given["unused"] + correction
        values |= {
            f"{meter}_limit": given["limit"],
            f"{meter}_told": func.coalesce(given["told"], columns[f"{meter}_told"]),
            f"{meter}_gap": func.coalesce(given["gap"], columns[f"{meter}_gap"]),
            f"{meter}_level": sql.least(given["burst"], refilled) - given["units"],
            f"{meter}_drift": drift + correction,
        }
        answers += [level + given["units"], drift, columns[f"{meter}_told"], columns[f"{meter}_gap"]]
    close = bindparam("close_seconds", type_=Double)
    values |= {
        "updated_at": now,
        "closed_until": case(
            (close > 0, sql.greatest(columns.closed_until, now + close)), else_=columns.closed_until
        ),
        "closed_for": case((close > 0, bindparam("close_reason")), else_=columns.closed_for),
    }
    answers += [columns.closed_until - now, columns.closed_for, columns.paused]
    mine = (columns.account == bindparam("of_account"), columns.name == bindparam("of_name"))
    labelled = [answer.label(f"answer_{number}") for number, answer in enumerate(answers)]
    return update(buckets).where(*mine).values(values).returning(*labelled)


_GIVEN: Final = ("limit", "told", "gap", "rate", "burst", "units", "unused", "drift", "weight", "extra")


@dataclass(frozen=True, slots=True)
class RunExchange(Step[Exchanged]):
    """One round with the buckets. Repeated after a commit that was not confirmed, it costs a chunk."""

    statements: QuotaStatements
    worker_id: str
    exchange: Exchange

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> Exchanged:
        others = await self._others(connection) if self.exchange.census else None
        # Always in the same order, so that no two workers can wait for each other.
        ordered = sorted(enumerate(self.exchange.orders), key=lambda item: (item[1].account, item[1].name))
        grants = {place: await self._draw(connection, order, others) for place, order in ordered}
        return Exchanged(
            grants=[grants[place] for place in range(len(grants))],
            accounts=await self._accounts(connection) if self.exchange.census else None,
            samples=await self._samples(connection),
        )

    async def _draw(
        self, connection: AsyncConnection, order: Order, others: dict[tuple[str, str], int] | None
    ) -> Grant:
        given = _parameters(order)
        row = (await connection.execute(self.statements.draw, given)).one_or_none()
        if row is None:
            await connection.execute(self.statements.open_bucket, _new_bucket(order))
            row = (await connection.execute(self.statements.draw, given)).one()
        return Grant(
            requests=MeterGrant(level=row[0], drift=row[1], told=row[2], gap=row[3]),
            tokens=MeterGrant(level=row[4], drift=row[5], told=row[6], gap=row[7]),
            closed_seconds=row[8],
            closed_for=row[9],
            paused=bool(row[10]),
            others=None if others is None else others.get((order.account, order.name), 0),
        )

    async def _others(self, connection: AsyncConnection) -> dict[tuple[str, str], int]:
        """Tell the others what waits here, and return how many of them wait at each gate."""
        rows: list[dict[str, Any]] = [
            {
                "worker_id": self.worker_id,
                "account": order.account,
                "name": order.name,
                "waiting": order.waiting,
                "running": order.running,
                "reserved": order.reserved,
            }
            for order in self.exchange.orders
        ]
        if not rows:
            return {}
        now = float(await connection.scalar(self.statements.now) or 0.0)
        for row in rows:
            row["seen_at"] = now
        rows.sort(key=lambda row: (row["account"], row["name"]))
        await connection.execute(self.statements.tell, rows)
        asked = {"me": self.worker_id, "since": now - SEEN_SECONDS}
        found = await connection.execute(self.statements.others, asked)
        return {(row[0], row[1]): row[2] for row in found}

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

    def __init__(self, writer: GroupCommit, worker_id: str, dialect: str) -> None:
        self._writer = writer
        self._worker_id = worker_id
        self._statements = QuotaStatements(dialect)

    @override
    async def exchange(self, exchange: Exchange) -> Exchanged:
        return await self._writer.submit(RunExchange(self._statements, self._worker_id, exchange))

    @override
    async def probe(self, account: str) -> bool:
        return await self._writer.submit(TakeProbe(self._statements, account))

    def close(self) -> None:
        """Leave with the last transaction."""
        self._writer.submit_lazily(LeaveBuckets(self._statements, self._worker_id))


def _parameters(order: Order) -> dict[str, Any]:
    return {
        "of_account": order.account,
        "of_name": order.name,
        "close_seconds": order.close_seconds,
        "close_reason": order.close_reason,
        **_meter_parameters("requests", order.requests),
        **_meter_parameters("tokens", order.tokens),
    }


def _meter_parameters(meter: str, order: MeterOrder) -> dict[str, float | None]:
    size = Size(order.limit, order.handful) if order.limit else None
    draw = order.draw
    return {
        f"{meter}_limit": order.limit,
        f"{meter}_told": order.told,
        f"{meter}_gap": order.gap,
        f"{meter}_rate": size.rate if size else 0.0,
        f"{meter}_burst": size.burst if size else 0.0,
        f"{meter}_units": draw.units,
        f"{meter}_unused": draw.unused,
        f"{meter}_drift": draw.drift,
        f"{meter}_weight": draw.weight,
        f"{meter}_extra": draw.extra,
    }


def _new_bucket(order: Order) -> dict[str, Any]:
    """Return a bucket that is full up to its burst once it has refilled for a moment."""
    return {"account": order.account, "name": order.name, "updated_at": 0.0}
