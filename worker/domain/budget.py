"""What a tenant may spend in a month: when a request may go, has to wait, or must not be made."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

WARNING_PERCENT: Final = 80
"""Of a budget; from here on, operators are told once a month."""

_RETRY_SECONDS: Final = 2.0
"""After so long, some of the requests in flight have settled."""


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Why a request was not made. With `wait_seconds`, what is in flight may yet leave room."""

    reason: str
    wait_seconds: float | None = None


class OverBudgetError(Exception):
    """A request may not be made under its tenant's budget, not now or not at all."""

    def __init__(self, over: OverBudget) -> None:
        super().__init__(over.reason)
        self.over = over


def month_of(at: datetime) -> str:
    """Return the UTC month, as `YYYY-MM`."""
    return f"{at.astimezone(UTC):%Y-%m}"


@dataclass(slots=True, kw_only=True)
class Purse:
    """A tenant's month, in 10⁻⁹ US dollars; `held` is reserved for requests in flight.

    A request goes while spent and held leave anything of the budget, so it is
    overdrawn by no more than one request's reservation, as far as answers cost no
    more than was held for them: without a maximum they may. It is refused only once the
    money is really spent; what is merely held may come back, and is waited for.
    """

    budget: int
    spent: int
    held: int

    def hold(self, nano_usd: int | None) -> OverBudget | None:
        """Hold what a request may cost, or tell why not. None is a request without a known price."""
        if self.spent >= self.budget:
            return OverBudget("the tenant's budget for this month is spent")
        if nano_usd is None:
            return OverBudget("the request has no known price, which a budget needs: set one in [prices]")
        if self.spent + self.held >= self.budget:
            return OverBudget("budget: the rest of it is held by requests in flight", _RETRY_SECONDS)
        self.held += nano_usd
        return None

    @property
    def warns(self) -> bool:
        """Whether so much is spent that operators should know."""
        return self.spent * 100 >= self.budget * WARNING_PERCENT
