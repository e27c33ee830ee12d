"""The one statement of a draw: by the database's clock a bucket is refilled, closed and drawn from."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Integer, Update, bindparam, case, func, type_coerce, update
from sqlalchemy.types import Double

from worker.adapters.database.sql import Sql
from worker.adapters.database.tables import buckets
from worker.domain.bucket import (
    GENTLE_SECONDS,
    LONGEST_GENTLE,
    REFUSED_SOON,
    TRICKLE,
    UP_PER_SECOND,
    Size,
)
from worker.domain.quota import Grant, MeterGrant, MeterOrder, Order

_METERS: Final = ("requests", "tokens")
_GIVEN: Final = ("limit", "told", "gap", "rate", "burst", "units", "unused", "drift", "weight", "extra")
_CLOSE: Final = bindparam("close_seconds", type_=Double)
_LONGEST: Final = type_coerce(LONGEST_GENTLE, Double)


def draw_statement(sql: Sql) -> Update:
    """Return the one statement that refills, corrects, closes and takes."""
    clock = _Clock(sql)
    values: dict[str, Any] = {"updated_at": clock.now, **_closing(sql, clock)}
    answers: list[Any] = []
    for meter in _METERS:
        changed, found = _taking(sql, clock, meter)
        values |= changed
        answers += found
    columns = buckets.c
    answers += [columns.closed_until - clock.now, columns.gentle_until - clock.now]
    answers += [columns.closings, columns.closed_for, columns.paused, columns.updated_at]
    mine = (columns.account == bindparam("of_account"), columns.name == bindparam("of_name"))
    labelled = [answer.label(f"answer_{number}") for number, answer in enumerate(answers)]
    return update(buckets).where(*mine).values(values).returning(*labelled)


class _Clock:
    """What has passed since a bucket was last drawn from, by the database's clock."""

    def __init__(self, sql: Sql) -> None:
        zero, columns, self.now = type_coerce(0.0, Double), buckets.c, sql.epoch()
        since, closed, gentle = columns.updated_at, columns.closed_until, columns.gentle_until
        self.elapsed = sql.greatest(zero, self.now - since)
        shut = sql.greatest(zero, sql.least(self.now, closed) - since)
        trickling = sql.greatest(zero, sql.least(self.now, gentle) - sql.greatest(since, closed))
        self.held_back = (1 - TRICKLE) * trickling
        self.refill = self.elapsed - shut - self.held_back
        # Nothing gathers meanwhile: what is given back would else go out at once when it opens.
        self.gentle = (_CLOSE > 0) | (self.now < gentle)
        back = sql.least(zero, self.now - since)
        # Where the clock has gone back, so do the times noted by it: nothing stays closed for longer.
        self.closed_until, self.gentle_until = closed + back, gentle + back


def _taking(sql: Sql, clock: _Clock, meter: str) -> tuple[dict[str, Any], list[Any]]:
    """Return what changes for requests or tokens, and what is answered: the level as the draw found it."""
    columns = buckets.c
    given = {name: bindparam(f"{meter}_{name}", type_=Double) for name in _GIVEN}
    level, drift = columns[f"{meter}_level"], columns[f"{meter}_drift"]
    wished = given["weight"] * (given["drift"] - drift)
    raised = UP_PER_SECOND * given["rate"] * clock.elapsed
    correction = sql.least(wished, raised) - given["extra"]
    refilled = level + clock.refill * given["rate"] + given["unused"] + correction
    most = case((clock.gentle, 0.0), else_=given["burst"])
    values = {
        f"{meter}_limit": given["limit"],
        f"{meter}_told": func.coalesce(given["told"], columns[f"{meter}_told"]),
        f"{meter}_gap": func.coalesce(given["gap"], columns[f"{meter}_gap"]),
        f"{meter}_level": sql.least(most, refilled) - given["units"],
        f"{meter}_drift": drift + correction - clock.held_back * given["rate"],
    }
    return values, [level + given["units"], drift, columns[f"{meter}_told"], columns[f"{meter}_gap"]]


def _closing(sql: Sql, clock: _Clock) -> dict[str, Any]:
    """Return what a refusal changes: the longer time wins, and a trickle follows.

    The trickle lasts twice as long where it, or the full speed after it, was refused
    at once; it is short again when the full speed was fine for long enough.
    """
    columns, last = buckets.c, buckets.c.gentle_seconds
    # Else it is the same news from another worker, or of a request that was under way before.
    again = bindparam("close_after", type_=Integer) == columns.closings
    usual = sql.greatest(type_coerce(GENTLE_SECONDS, Double), last)
    seconds = case(
        (again & (clock.now < clock.gentle_until + REFUSED_SOON), sql.least(_LONGEST, 2 * usual)),
        (again & (clock.now >= clock.gentle_until + last), GENTLE_SECONDS),
        else_=usual,
    )
    closed_until = sql.greatest(clock.closed_until, clock.now + _CLOSE)
    return {
        "closed_until": case((_CLOSE > 0, closed_until), else_=clock.closed_until),
        "gentle_until": case((_CLOSE > 0, closed_until + seconds), else_=clock.gentle_until),
        "closings": columns.closings + case((again & (_CLOSE > 0), 1), else_=0),
        "gentle_seconds": case((_CLOSE > 0, seconds), else_=last),
        "closed_for": case((_CLOSE > 0, bindparam("close_reason")), else_=columns.closed_for),
    }


def draw_parameters(order: Order) -> dict[str, Any]:
    """Return what the statement needs for an order."""
    return {
        "of_account": order.account,
        "of_name": order.name,
        "close_seconds": order.close_seconds,
        "close_reason": order.close_reason,
        "close_after": order.close_after,
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


def read_grant(row: Sequence[Any]) -> tuple[Grant, float]:
    """Return the answer to a draw, and the time by the database's clock."""
    grant = Grant(
        requests=MeterGrant(level=row[0], drift=row[1], told=row[2], gap=row[3]),
        tokens=MeterGrant(level=row[4], drift=row[5], told=row[6], gap=row[7]),
        closed_seconds=row[8],
        gentle_seconds=row[9],
        closings=row[10],
        closed_for=row[11],
        paused=bool(row[12]),
    )
    return grant, row[13]
