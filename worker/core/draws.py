"""Those whose start is ordered from the shared buckets, or known and still to come."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from worker.core.line import Line, Waiter
from worker.core.supply import Supply
from worker.domain.bucket import Opening
from worker.domain.quota import Grant, MeterOrder

_LEAD_SECONDS: Final = 0.05
"""So long before the last known start the next ones are drawn."""

Later = Callable[[float, Waiter], None]
"""Has a waiter come in after so many seconds."""


@dataclass(eq=False, slots=True)
class Draws:
    """The draws of one gate. Whoever is drawn has left the line, and can be put back as long as he waits."""

    line: Line
    supply: Supply
    may: Callable[[str], bool]
    doubtful: list[Waiter] = field(default_factory=list)
    """Those whose time has come, while it is long ago that the others were asked whether it is open."""
    _waiters: dict[Waiter, None] = field(default_factory=dict)
    _ordered: list[Waiter] = field(default_factory=list)
    _hand: tuple[float, float] = (0.0, 0.0)
    _last_start: float = 0.0

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._waiters

    @property
    def ordering(self) -> bool:
        """Whether an order is on its way."""
        return bool(self._ordered)

    @property
    def due(self) -> float:
        """When the next starts are to be drawn: the sooner, the more there is to give back."""
        return self._last_start - _LEAD_SECONDS - self.supply.gained if self._waiters else 0.0

    def start(self, waiter: Waiter) -> bool:
        """Let one go, unless it waits no longer."""
        self._waiters.pop(waiter, None)
        waiter.timer = None
        if waiter.gone:
            self._give_back(waiter)
        return not waiter.gone

    def leave(self, waiter: Waiter) -> None:
        """Take out one that waits no longer; what was drawn for it goes back."""
        self._waiters.pop(waiter, None)
        if waiter.timer is not None:  # else it is still being ordered, and goes back with the answer
            waiter.timer.cancel()
            waiter.timer = None
            self._give_back(waiter)

    def draw_anew(self, waiter: Waiter) -> None:
        """Let one whose time has passed stand in line again; its tokens go back, its request is lost."""
        self.start(waiter)
        if not waiter.gone:
            waiter.late = True
            self.supply.give_back(0, waiter.tokens)
            self.line.put_back(waiter)

    def put_back(self) -> None:
        """Let everybody whose start is known stand in line again."""
        for waiter in [waiter for waiter in self._waiters if waiter.timer is not None]:
            self.leave(waiter)
            self.line.push(waiter)
        self.doubtful.clear()

    def take_doubtful(self) -> list[Waiter]:
        """Return those whose time has come."""
        come, self.doubtful = self.doubtful, []
        return [waiter for waiter in come if waiter in self._waiters and waiter.timer is not None]

    def order(
        self, places: float, others: int, now: float, *, into_hand: bool
    ) -> tuple[MeterOrder, MeterOrder]:
        """Draw for the head of the line, and perhaps for the hand."""
        self._ordered = self._choose(places, 1 / (others + 1), now) if places > 0 else []
        tokens = [waiter.tokens for waiter in self._ordered]
        self._hand = self.supply.lacking(tokens, now) if into_hand and not self.line else (0.0, 0.0)
        return self.supply.order(tokens, self._hand)

    def _choose(self, places: float, share: float, now: float) -> list[Waiter]:
        """Take the next few out of the line: what this worker's share allows in the time to come."""
        chosen: list[Waiter] = []
        requests, tokens = self.supply.budget(share, now)
        while len(chosen) < places and (not chosen or (requests >= 1 and tokens > 0)):
            waiter = self.line.pop(self.may)
            if waiter is None:
                break
            chosen.append(waiter)
            self._waiters[waiter] = None
            requests -= 1
            tokens -= waiter.tokens
        return chosen

    def take_back(self) -> None:
        """Undo an order that was not answered."""
        ordered, self._ordered = self._ordered, []
        self._into_line(ordered)

    def take_in(self, grant: Grant, opening: Opening, now: float, later: Later | None) -> None:
        """Take in the answer: everybody's start, or None for `later` if nobody may go after all."""
        ordered, self._ordered = self._ordered, []
        tokens = [waiter.tokens for waiter in ordered]
        found = self.supply.take_in(grant, opening, tokens, self._hand, now)
        if later is None:
            self.supply.give_back(len(ordered), sum(tokens))
            self._into_line(ordered)
            return
        for waiter, (wait, expected) in zip(ordered, found, strict=True):
            waiter.expected, waiter.due = expected, now + wait
            self._last_start = max(self._last_start, waiter.due)
            later(wait, waiter)

    def _give_back(self, waiter: Waiter) -> None:
        self.supply.give_back(1, waiter.tokens)
        self.line.refund(waiter)

    def _into_line(self, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            self._waiters.pop(waiter, None)
            if not waiter.gone:
                self.line.put_back(waiter)
