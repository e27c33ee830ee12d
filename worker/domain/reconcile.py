"""Compares the ledger with what OpenAI reports, and names what probably made the difference."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

ANY: Final = "*"
"""Stands for all projects where the ledger does not know them, and for all models of a cost."""


class Place(NamedTuple):
    """One day, project and model. Costs are compared by day and project only."""

    day: str
    project: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one side says of a place. Money in 10⁻⁹ US dollars, None where it says nothing."""

    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int | None = None
    unpriced_requests: int = 0
    estimated_requests: int = 0

    def plus(self, other: "Figures") -> "Figures":
        """Add two places up."""
        costs = [one for one in (self.cost_nano_usd, other.cost_nano_usd) if one is not None]
        return Figures(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_nano_usd=sum(costs) if costs else None,
            unpriced_requests=self.unpriced_requests + other.unpriced_requests,
            estimated_requests=self.estimated_requests + other.estimated_requests,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where both sides do not agree."""

    place: Place
    ours: Figures
    theirs: Figures
    causes: Sequence[str]


def compare(
    ours: Mapping[Place, Figures], theirs: Mapping[Place, Figures], tolerance: Decimal
) -> list[Difference]:
    """Return the places where a count or cost differs by more than a share of the larger one."""
    nothing = Figures()
    found = []
    for place in sorted({*ours, *theirs}):
        mine, told = ours.get(place, nothing), theirs.get(place, nothing)
        if any(_differs(one, other, tolerance) for one, other in _pairs(mine, told)):
            found.append(Difference(place=place, ours=mine, theirs=told, causes=tuple(_causes(mine, told))))
    return found


def gathered(rows: Iterable[tuple[Place, Figures]]) -> dict[Place, Figures]:
    """Add up what belongs to the same place."""
    sums: dict[Place, Figures] = {}
    for place, figures in rows:
        sums[place] = sums[place].plus(figures) if place in sums else figures
    return sums


def _pairs(ours: Figures, theirs: Figures) -> Iterable[tuple[int, int]]:
    if theirs.cost_nano_usd is None and ours.cost_nano_usd is not None and theirs == Figures():
        yield ours.cost_nano_usd, 0
    if theirs.cost_nano_usd is not None:
        yield ours.cost_nano_usd or 0, theirs.cost_nano_usd
    for name in ("requests", "input_tokens", "cached_input_tokens", "output_tokens"):
        yield getattr(ours, name), getattr(theirs, name)


def _differs(ours: int, theirs: int, tolerance: Decimal) -> bool:
    return abs(ours - theirs) > tolerance * max(abs(ours), abs(theirs))


def _causes(ours: Figures, theirs: Figures) -> Iterable[str]:
    if ours.estimated_requests:
        yield f"{ours.estimated_requests} of our requests are estimates: nobody knows if they were billed"
    if ours.unpriced_requests:
        yield f"{ours.unpriced_requests} of our requests have no price: see `usage reprice`"
    more = (theirs.cost_nano_usd or 0) > (ours.cost_nano_usd or 0)
    if theirs.requests > ours.requests or theirs.input_tokens > ours.input_tokens:
        yield "calls made elsewhere with the same project"
    elif more and not ours.unpriced_requests:
        yield "calls made elsewhere, prices that differ, or charges that no answer names (storage, sessions)"
    if ours.requests > theirs.requests or ours.input_tokens > theirs.input_tokens:
        yield "OpenAI's report lags behind, or leaves out requests that were not billed"
    elif not more and (ours.cost_nano_usd or 0) > (theirs.cost_nano_usd or 0):
        yield "prices that differ, credits or discounts, or a report that lags behind"
