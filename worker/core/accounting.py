"""From usage to intents and ledger rows."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from worker.domain.answer import Answer
from worker.domain.attempt import Account, Entry, Intent, LedgerEntry
from worker.domain.usage import Usage
from worker.ports import PriceBook

BATCH: Final = "batch"
BACKGROUND: Final = "background-"
"""Tier of a background response by its completion window: `background-2h`, `background-8h`."""
_AT_ONCE: Final = "soonest"


def intent_for(
    request: Mapping[str, Any], reserve: Usage, account: Account, prices: PriceBook, now: datetime
) -> Intent:
    """Return what is written before a request leaves: enough to account for it if its answer is lost."""
    model = str(request["model"])
    tier = _asked_tier(request)
    price_list = prices.prices(model, tier, now)
    return Intent(
        model=model,
        account=account,
        service_tier=tier,
        reserved=reserve,
        reserved_cost_nano_usd=price_list.cost_nano_usd(reserve) if price_list else None,
        reserved_prices=price_list.as_row(reserve) if price_list else None,
        started_at=now,
    )


def measured(answer: Answer, intent: Intent, prices: PriceBook, now: datetime) -> LedgerEntry:
    """Return the row of an answer, priced by what answered; an estimate where it names no usage."""
    usage = answer.usage
    if usage is None:
        return estimated(intent, now)
    model = answer.model or intent.model
    tier = _answered_tier(answer.service_tier, intent.service_tier)
    price_list = prices.prices(model, tier, now)
    return LedgerEntry(
        entry=Entry.MEASURED,
        model=model,
        service_tier=tier,
        usage=usage,
        cost_nano_usd=price_list.cost_nano_usd(usage) if price_list else None,
        prices=price_list.as_row(usage) if price_list else None,
        occurred_at=now,
    )


def _asked_tier(request: Mapping[str, Any]) -> str | None:
    background = request.get("background_options")
    window = background.get("completion_window") if isinstance(background, dict) else None
    if isinstance(window, str) and window != _AT_ONCE:
        return f"{BACKGROUND}{window}"
    tier = request.get("service_tier")
    return tier if isinstance(tier, str) else None


def _answered_tier(answered: str | None, asked: str | None) -> str | None:
    """Return what answered; the discounts for waiting go by what was asked, since no answer names them."""
    waited = asked is not None and (asked == BATCH or asked.startswith(BACKGROUND))
    return asked if waited and answered in {None, "auto", "default"} else answered


def estimated(intent: Intent, now: datetime) -> LedgerEntry:
    """Return what was reserved, for a request that may have been billed."""
    return LedgerEntry(
        entry=Entry.ESTIMATED,
        model=intent.model,
        service_tier=intent.service_tier,
        usage=intent.reserved,
        cost_nano_usd=intent.reserved_cost_nano_usd,
        prices=intent.reserved_prices,
        occurred_at=now,
    )
