"""Loads what lies behind jobs that are not fresh."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.ledger import Booked, Reserved
from worker.adapters.database.sql import KEYS, keys_value
from worker.adapters.database.statements import Statements
from worker.adapters.database.work import OpenAttempt, Past
from worker.domain.attempt import Account, AttemptState, Entry, LedgerEntry
from worker.domain.job import JobKey
from worker.domain.usage import Usage


async def load_past(
    connection: AsyncConnection, statements: Statements, keys: list[JobKey]
) -> dict[JobKey, Past]:
    """Return the past of each job, in three statements however many there are."""
    if not keys:
        return {}
    wanted = {KEYS: keys_value(keys)}
    past = {_key(row): _past(row) for row in (await connection.execute(statements.past, wanted)).all()}
    for row in (await connection.execute(statements.open_attempts, wanted)).all():
        past[_key(row)].open_attempts[row.attempt_no] = _attempt(row)
    for row in (await connection.execute(statements.booked, wanted)).all():
        past[_key(row)].booked.append(_booked(row))
    return past


def _key(row: Any) -> JobKey:
    return JobKey(row.tenant, row.job_id)


def _past(row: Any) -> Past:
    return Past(
        labels=row.labels,
        started_at=row.started_at,
        next_attempt_at=row.next_attempt_at,
        worked_seconds=row.worked_ms / 1000,
        reply_to=row.reply_to,
        correlation_id=row.correlation_id,
        owner_alive_until=row.alive_until,
        checkpoint=row.checkpoint,
        result=row.result,
    )


def _attempt(row: Any) -> OpenAttempt:
    return OpenAttempt(
        attempt_no=row.attempt_no,
        state=AttemptState(row.state),
        lease_token=row.lease_token,
        started_at=row.started_at,
        model=row.model,
        service_tier=row.service_tier,
        account=_account(row),
        reserved=Reserved(
            usage=Usage(**row.reserved_usage),
            cost_nano_usd=row.reserved_cost_nano_usd,
            prices=row.reserved_prices,
        ),
    )


def _booked(row: Any) -> Booked:
    return Booked(
        received_at=row.received_at,
        attempt_no=row.attempt_no,
        entry=LedgerEntry(
            entry=Entry(row.entry),
            model=row.model,
            service_tier=row.service_tier,
            usage=Usage(
                input_tokens=row.input_tokens,
                cached_input_tokens=row.cached_input_tokens,
                cache_write_tokens=row.cache_write_tokens,
                output_tokens=row.output_tokens,
                reasoning_tokens=row.reasoning_tokens,
                meters=row.meters or {},
            ),
            cost_nano_usd=row.cost_nano_usd,
            prices=row.prices,
            occurred_at=row.occurred_at,
        ),
        labels=row.labels,
        account=_account(row),
        requests=row.requests,
        unpriced_requests=row.unpriced_requests,
        estimated_requests=row.estimated_requests,
    )


def _account(row: Any) -> Account:
    return Account(name=row.account, organization=row.organization, project=row.project)
