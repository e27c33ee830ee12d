"""The limits as operators see them, and their hand on them."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from worker.adapters.database.quota import SEEN_SECONDS
from worker.adapters.database.sql import sql_of
from worker.adapters.database.statements import Statements
from worker.adapters.database.tables import account_gates, bucket_users, buckets
from worker.adapters.database.work import Step
from worker.adapters.database.writer import GroupCommit
from worker.domain.bucket import HANDFUL, Opening, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRow:
    """One limit. Limits and rates a minute; levels below zero are promised to requests that wait."""

    account: str
    name: str
    requests_limit: float | None
    requests_level: float | None
    tokens_limit: float | None
    tokens_level: float | None
    waiting: int
    running: int
    reserved: float
    """Tokens of running requests."""
    closed_seconds: float
    closed_for: str
    paused: bool
    learned_from: str
    """`settings`, `headers`, or `-` where no limit is known."""
    wait_seconds: float
    """Until a small request that comes now could start."""

    def concerns(self, model: str | None) -> bool:
        """Whether requests of this model draw from it."""
        return model is not None and (self.name == model or fnmatchcase(model, self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedAccount:
    """Credentials that OpenAI does not accept for now."""

    account: str
    closed_seconds: float
    closed_for: str


async def limit_rows(connection: AsyncConnection) -> list[LimitRow]:
    """Return all limits that were ever used, with what waits for them now."""
    now = float(await connection.scalar(select(sql_of(connection.dialect.name).epoch())) or 0.0)
    found = (await connection.execute(_listed(now))).mappings()
    return [_row(row, now) for row in found]


async def closed_accounts(connection: AsyncConnection) -> list[ClosedAccount]:
    """Return the credentials that are closed."""
    now = float(await connection.scalar(select(sql_of(connection.dialect.name).epoch())) or 0.0)
    found = await connection.execute(select(account_gates).order_by(account_gates.c.account))
    return [
        ClosedAccount(account=row.account, closed_seconds=row.closed_until - now, closed_for=row.closed_for)
        for row in found
    ]


def _listed(now: float) -> Select[Any]:
    users = bucket_users.c
    at_work = (
        select(
            users.account,
            users.name,
            func.sum(users.waiting).label("waiting"),
            func.sum(users.running).label("running"),
            func.sum(users.reserved).label("reserved"),
        )
        .where(users.seen_at > now - SEEN_SECONDS)
        .group_by(users.account, users.name)
        .subquery()
    )
    same = (at_work.c.account == buckets.c.account) & (at_work.c.name == buckets.c.name)
    return (
        select(buckets, at_work.c.waiting, at_work.c.running, at_work.c.reserved)
        .outerjoin(at_work, same)
        .order_by(buckets.c.account, buckets.c.name)
    )


def _row(row: Any, now: float) -> LimitRow:
    requests, requests_wait = _level(row, "requests", now, HANDFUL)
    tokens, tokens_wait = _level(row, "tokens", now, 0.0)
    closed = max(0.0, row["closed_until"] - now)
    told = any(row[f"{meter}_told"] and row[f"{meter}_limit"] == row[f"{meter}_told"] for meter in _METERS)
    limited = any(row[f"{meter}_limit"] for meter in _METERS)
    return LimitRow(
        account=row["account"],
        name=row["name"],
        requests_limit=row["requests_limit"],
        requests_level=requests,
        tokens_limit=row["tokens_limit"],
        tokens_level=tokens,
        waiting=int(row["waiting"] or 0),
        running=int(row["running"] or 0),
        reserved=float(row["reserved"] or 0),
        closed_seconds=closed,
        closed_for=row["closed_for"] if closed else "",
        paused=bool(row["paused"]),
        learned_from="headers" if told else "settings" if limited else "-",
        wait_seconds=max(closed, requests_wait, tokens_wait),
    )


_METERS: Final = ("requests", "tokens")


def _level(row: Any, meter: str, now: float, handful: float) -> tuple[float | None, float]:
    """Return the level as of now, and the seconds until it is above zero."""
    limit = row[f"{meter}_limit"]
    if not limit:
        return None, 0.0
    size = Size(limit, handful)
    drawn_at = row["updated_at"]
    refilled = _opening(row, drawn_at).refilled(max(0.0, now - drawn_at))
    level = min(size.burst, row[f"{meter}_level"] + refilled * size.rate)
    return level, _opening(row, now).until(-level / size.rate) if level < 0 else 0.0


def _opening(row: Any, at: float) -> Opening:
    return Opening(row["closed_until"] - at, row["gentle_until"] - at)


@dataclass(frozen=True, slots=True)
class SetPaused(Step[list[tuple[str, str]]]):
    """Pauses limits, or opens them again; returns which."""

    name: str
    account: str | None
    default: str
    paused: bool

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> list[tuple[str, str]]:
        mine = [buckets.c.name == self.name]
        if self.account is not None:
            mine.append(buckets.c.account == self.account)
        values: dict[str, Any] = {"paused": int(self.paused)}
        if not self.paused:
            values |= {"closed_until": 0.0, "gentle_until": 0.0}
        changed = update(buckets).where(*mine).values(values).returning(buckets.c.account, buckets.c.name)
        found = [(row.account, row.name) for row in await connection.execute(changed)]
        if not found and self.paused:
            found = [(self.account or self.default, self.name)]
            new = {"account": found[0][0], "name": self.name, "paused": 1}
            await connection.execute(buckets.insert(), new)
        return found


class LimitControl:
    """What operators may do to limits."""

    def __init__(self, writer: GroupCommit) -> None:
        self._writer = writer

    async def set_paused(
        self, name: str, account: str | None, *, paused: bool, default: str = "default"
    ) -> list[tuple[str, str]]:
        """Pause or resume limits of that name, on one account or all; return account and name of each.

        What is not in use yet is paused on `default`, unless an account is named.
        """
        return await self._writer.submit(SetPaused(name, account, default, paused))
