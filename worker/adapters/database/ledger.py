"""Accounting rows. Their counts are signed, so that the plain sum over any set of rows is right."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    kind: str | None,
    labels: Mapping[str, str],
    account: Account,
) -> Row:
    """Return the one row of an attempt."""
    estimated = entry.entry is Entry.ESTIMATED
    return {
        **_identity(key, attempt_no, kind=kind, labels=labels, account=account),
        **_content(entry, entry.usage),
        "entry": entry.entry.value,
        "booking": 1,
        "cost_nano_usd": entry.cost_nano_usd,
        "requests": 1,
        "unpriced_requests": int(entry.cost_nano_usd is None),
        "estimated_requests": int(estimated),
        "estimated_cost_nano_usd": (entry.cost_nano_usd or 0) if estimated else 0,
    }


def correction_row(key: JobKey, kind: str | None, booked: Booked, record: AttemptRecord) -> Row:
    """Return what turns an estimate into the outcome that came late; without a charge, into nothing."""
    old, new = booked.entry, record.ledger
    unpriced = new is not None and new.cost_nano_usd is None
    estimated = new is not None and new.entry is Entry.ESTIMATED
    old_cost, new_cost = old.cost_nano_usd or 0, (new.cost_nano_usd or 0) if new else 0
    return {
        **_identity(key, booked.attempt_no, kind=kind, labels=booked.labels, account=booked.account),
        **_content(new or old, _difference(new.usage if new else Usage(), old.usage)),
        "entry": Entry.CORRECTION.value,
        "booking": None,
        "cost_nano_usd": None if unpriced and old.cost_nano_usd is None else new_cost - old_cost,
        # It belongs to the period of what it corrects; `booked_at` says when it came.
        "occurred_at": old.occurred_at,
        "requests": 0,
        "unpriced_requests": int(unpriced) - int(old.cost_nano_usd is None),
        "estimated_requests": int(estimated) - 1,
        "estimated_cost_nano_usd": (new_cost if estimated else 0) - old_cost,
    }


def estimate(model: str, service_tier: str | None, reserved: Reserved, at: datetime) -> LedgerEntry:
    """Return the upper bound that stands in for an outcome nobody knows."""
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
    usages = [row.entry.usage for row in booked]
    return Spend(
        requests=sum(row.requests for row in booked),
        usage=Usage(
            input_tokens=sum(usage.input_tokens for usage in usages),
            cached_input_tokens=sum(usage.cached_input_tokens for usage in usages),
            cache_write_tokens=sum(usage.cache_write_tokens for usage in usages),
            output_tokens=sum(usage.output_tokens for usage in usages),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        ),
        cost_nano_usd=sum(row.entry.cost_nano_usd or 0 for row in booked),
        estimated=sum(row.estimated_requests for row in booked) > 0,
        unpriced=sum(row.unpriced_requests for row in booked) > 0,
    )


def usage_document(usage: Usage) -> dict[str, Any]:
    """Return token counts as they are kept with an intent, without the zeros."""
    counts = {name: count for name, count in _tokens(usage).items() if count}
    return counts | ({"meters": dict(usage.meters)} if usage.meters else {})


def _identity(
    key: JobKey, attempt_no: int, *, kind: str | None, labels: Mapping[str, str], account: Account
) -> Row:
    return {
        "tenant": key.tenant,
        "job_id": key.job_id,
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


def _difference(new: Usage, old: Usage) -> Usage:
    meters = {name: new.meters.get(name, 0) - old.meters.get(name, 0) for name in {*new.meters, *old.meters}}
    was = _tokens(old)
    return Usage(
        **{name: count - was[name] for name, count in _tokens(new).items()},
        meters={name: count for name, count in sorted(meters.items()) if count},
    )
