"""Accounting rows. Their counts are signed, so that the plain sum over any set of rows is right."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

from worker.domain.attempt import Account, AttemptRecord, Entry, LedgerEntry
from worker.domain.job import JobKey
from worker.domain.spend import Spend
from worker.domain.usage import Usage

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """What an intent had set aside."""

    usage: Usage
    cost_nano_usd: int | None
    prices: Mapping[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """A ledger row as it stands in the database."""

    received_at: datetime
    attempt_no: int
    entry: LedgerEntry
    labels: Mapping[str, str]
    account: Account
    requests: int
    unpriced_requests: int
    estimated_requests: int


def ledger_row(
    key: JobKey,
    attempt_no: int,
    entry: LedgerEntry,
    *,
    received_at: datetime,
    kind: str | None,
    labels: Mapping[str, str],
    account: Account,
) -> Row:
    """Return the one row of an attempt; `received_at` is the job's, the same in all its rows."""
    estimated = entry.entry is Entry.ESTIMATED
    return {
        **_identity(key, attempt_no, received_at, kind=kind, labels=labels, account=account),
        **_content(entry, entry.usage),
        "entry": entry.entry.value,
        "booking": 1,
        "cost_nano_usd": entry.cost_nano_usd,
        "requests": 1,
        "unpriced_requests": int(entry.cost_nano_usd is None),
        "estimated_requests": int(estimated),
        "estimated_cost_nano_usd": (entry.cost_nano_usd or 0) if estimated else 0,
    }


def correction_rows(key: JobKey, kind: str | None, booked: Booked, record: AttemptRecord) -> list[Row]:
    """Return what takes an estimate back, and what books the outcome that came late, if it is charged.

    Not their difference: the model that answered may be another than the one asked for.
    """
    old, labels, account = booked.entry, booked.labels, booked.account
    correction = {
        "entry": Entry.CORRECTION.value,
        "booking": None,
        # It belongs to the period of what it corrects; `booked_at` says when it came.
        "occurred_at": old.occurred_at,
    }
    taken_back = {
        **_identity(key, booked.attempt_no, booked.received_at, kind=kind, labels=labels, account=account),
        **_content(old, _negative(old.usage)),
        **correction,
        "cost_nano_usd": None if old.cost_nano_usd is None else -old.cost_nano_usd,
        "requests": -booked.requests,
        "unpriced_requests": -booked.unpriced_requests,
        "estimated_requests": -booked.estimated_requests,
        "estimated_cost_nano_usd": -(old.cost_nano_usd or 0),
    }
    if record.ledger is None:
        return [taken_back]
    late = ledger_row(
        key,
        booked.attempt_no,
        record.ledger,
        received_at=booked.received_at,
        kind=kind,
        labels=labels,
        account=account,
    )
    return [taken_back, late | correction]


def with_corrections(booked: Booked, corrections: Iterable[Booked]) -> Booked:
    """Return what a row comes to with those that correct it: it may have been priced since."""
    rows = [booked, *corrections]
    unpriced = sum(row.unpriced_requests for row in rows)
    return replace(
        booked,
        entry=replace(
            booked.entry,
            usage=total_usage(row.entry.usage for row in rows),
            cost_nano_usd=None if unpriced else sum(row.entry.cost_nano_usd or 0 for row in rows),
        ),
        requests=sum(row.requests for row in rows),
        unpriced_requests=unpriced,
        estimated_requests=sum(row.estimated_requests for row in rows),
    )


def estimate(model: str, service_tier: str | None, reserved: Reserved, at: datetime) -> LedgerEntry:
    """Return the reservation that stands in for an outcome nobody knows."""
    return LedgerEntry(
        entry=Entry.ESTIMATED,
        model=model,
        service_tier=service_tier,
        usage=reserved.usage,
        cost_nano_usd=reserved.cost_nano_usd,
        prices=reserved.prices,
        occurred_at=at,
    )


def spend_of(rows: Iterable[Booked]) -> Spend:
    """Sum a job's rows."""
    booked = list(rows)
    return Spend(
        requests=sum(row.requests for row in booked),
        usage=replace(total_usage(row.entry.usage for row in booked), meters={}),
        cost_nano_usd=sum(row.entry.cost_nano_usd or 0 for row in booked),
        estimated=sum(row.estimated_requests for row in booked) > 0,
        unpriced=sum(row.unpriced_requests for row in booked) > 0,
    )


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Add up token counts and meters; what comes to nothing is left out."""
    tokens, meters = Counter[str](), Counter[str]()
    for usage in usages:
        tokens.update(_tokens(usage))
        meters.update(usage.meters)
    return Usage(**tokens, meters={name: count for name, count in meters.items() if count})


def usage_document(usage: Usage) -> dict[str, Any]:
    """Return token counts as they are kept with an intent, without the zeros."""
    counts = {name: count for name, count in _tokens(usage).items() if count}
    return counts | ({"meters": dict(usage.meters)} if usage.meters else {})


def _identity(
    key: JobKey,
    attempt_no: int,
    received_at: datetime,
    *,
    kind: str | None,
    labels: Mapping[str, str],
    account: Account,
) -> Row:
    return {
        "tenant": key.tenant,
        "job_id": key.job_id,
        "received_at": received_at,
        "attempt_no": attempt_no,
        "kind": kind,
        "labels": dict(labels),
        "account": account.name,
        "organization": account.organization,
        "project": account.project,
    }


def _content(entry: LedgerEntry, usage: Usage) -> Row:
    return {
        **_tokens(usage),
        "meters": dict(usage.meters) or None,
        "model": entry.model,
        "service_tier": entry.service_tier,
        "prices": None if entry.prices is None else dict(entry.prices),
        "occurred_at": entry.occurred_at,
    }


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def _negative(usage: Usage) -> Usage:
    return Usage(
        **{name: -count for name, count in _tokens(usage).items()},
        meters={name: -count for name, count in usage.meters.items()},
    )
