"""One shared limit in this process: who waits, who runs, and when the next may start."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from worker.core.door import Door
from worker.core.draws import Draws, Later
from worker.core.limits import Limit
from worker.core.line import Line, Parked, Waiter
from worker.core.pacer import Pacer
from worker.core.supply import Supply
from worker.domain.quota import Glance, Grant, Order
from worker.domain.rate_headers import read_rate_headers

_POLL_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 10.0
_FRESH_SECONDS: Final = 0.05
_WARY_SECONDS: Final = 0.015
"""Where news is older at a start, the others are asked once more; the latter after a recent refusal."""
_STALE_SECONDS: Final = 1.5
"""While it is used, news comes every second."""
_BLIND_SECONDS: Final = 5.0
"""So long nobody looks again where a look has failed."""
_COUNTED_SECONDS: Final = 2.0
"""So long after the first answer the others are counted that came at the same time."""
_LATE_SECONDS: Final = 0.5
"""A start that is later than that, because its process or the database stood still, is drawn anew."""
_HEED_SECONDS: Final = 0.02
"""So often at most what OpenAI should have left is noted, to be compared with what it says."""
_FIRST: Final = 1
_MANY: Final = 64
"""While limits are unknown, requests at once double with each answer; after so many there is no limit."""


@dataclass(eq=False, slots=True)
class Gate:
    """Keeps the line of one limit moving. Times are monotonic seconds."""

    account: str
    name: str
    limit: Limit
    line: Line
    may: Callable[[str], bool]
    begun: Callable[[str], None]
    door: Door = field(default_factory=Door)
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    parked: Parked = field(default_factory=Parked)
    supply: Supply = field(init=False)
    drawn: Draws = field(init=False)
    pacer: Pacer = field(init=False)
    running: int = 0
    reserved: float = 0.0
    others: int = 0
    exchanged_at: float = -1e9
    used_at: float = -1e9
    _heard_at: float = -1e9
    _counted_from: float = 0.0
    _blind_until: float = 0.0
    _heeded_at: float = -1e9
    _cautious: int = _FIRST

    def __post_init__(self) -> None:
        self.supply = Supply(self.name, self.limit)
        self.drawn = Draws(self.line, self.supply, self.may)
        self.pacer = Pacer(self.supply.requests)

    # ------------------------------------------------------------ asking

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits here."""
        return bool(self.running or self.line or self.drawn or self.door.news)

    def wait(self, ahead: tuple[float, float], tokens: float, now: float) -> float:
        """Return about how many seconds a request has to wait behind others."""
        if self.door.paused:
            return 60.0
        crowd = self.others + 1
        wait = self.supply.wait((ahead[0] * crowd, ahead[1] * crowd), tokens, now)
        return max(wait, self.door.closed_until - now, 0.0)

    def free_places(self, besides: int = 0) -> bool:
        """Whether max_concurrency, or caution while limits are unknown, allows one more."""
        running, most = self.running + besides, self.limit.max_concurrency
        if most is not None and running >= most:
            return False
        return self.supply.limited or self._cautious > _MANY or running < self._cautious

    def is_room(self, tokens: float, now: float) -> bool:
        """Whether a request that comes now should be able to go as soon as the others have been asked."""
        if self.door.is_closed(now) or not self.free_places(len(self.line) + len(self.drawn)):
            return False
        return self.supply.is_room(self.line, tokens, now)

    # ------------------------------------------------------------ admitting

    def take_in_hand(self, tokens: float, now: float) -> bool:
        """Take one request from what is drawn already; False where it has to wait in line."""
        self.used_at = now
        if self.line or self.door.fresh or self.door.is_closed(now) or not self.free_places():
            return False
        if not self.supply.limited:
            return True
        if not self.supply.covers(tokens) or not self.pacer.has_capacity():
            return False
        self.supply.pay(tokens)
        return True

    def expected(self, now: float) -> tuple[float, float] | None:
        """Return what OpenAI should have left after a request that goes now; None: enough is heard of it."""
        if not self.supply.limited or now - self._heeded_at < _HEED_SECONDS:
            return None
        self._heeded_at = now
        return self.supply.expected(now)

    def begin(self, tenant: str, tokens: float) -> None:
        """Count a request as running."""
        self.running += 1
        self.reserved += tokens
        self.door.begun()
        self.begun(tenant)

    def serve(self, now: float) -> None:
        """Let go whoever needs nothing from the shared buckets."""
        limited = self.supply.limited
        while not self.door.fresh and not self.door.is_closed(now) and self.free_places():
            waiter = self.line.pop(self.may) if not limited or self.supply.covers(1) else None
            if waiter is None:
                return
            if limited and not self.supply.covers(waiter.tokens):
                self.line.put_back(waiter)
                return
            if limited:
                self.supply.pay(waiter.tokens)
            waiter.expected = self.expected(now)
            self.start(waiter)

    def come(self, waiter: Waiter, now: float) -> bool:
        """Let a waiter go whose time has come; False where the others have to be asked once more."""
        if self._is_late(waiter, now):
            self.drawn.draw_anew(waiter)
        elif self.others and self.is_news_old(now):
            self.drawn.doubtful.append(waiter)
        else:
            self.start(waiter)
            return True
        return False

    def _is_late(self, waiter: Waiter, now: float) -> bool:
        """Whether a start has to be drawn anew, from what is there now.

        Where a machine or the database stood still, the starts of all workers come late, and the level is
        full again: together they would be more than one burst. Each is drawn anew once only, so that a
        process that is always late gets on all the same.
        """
        return self.others > 0 and now - waiter.due > _LATE_SECONDS and not waiter.late

    def holds(self, admitted_at: float, now: float) -> bool:
        """Whether what was admitted then may leave still: it was not closed since, as far as is known."""
        return self.door.shut_at <= admitted_at and not self.door.is_closed(now)

    def is_news_old(self, now: float) -> bool:
        """Whether another worker may have been refused since the last news."""
        fresh = _WARY_SECONDS if self.is_wary(now) else _FRESH_SECONDS
        return now - self._heard_at > fresh

    def is_wary(self, now: float) -> bool:
        """Whether a refusal was so recent that another one is likely."""
        return now < self.door.wary_until

    def must_look(self, now: float) -> bool:
        """Whether the others' news is wanted before a request leaves.

        That is where another worker is likely to have been refused since the last news; one that came at
        the same time is not counted yet. And where nothing was heard for long, since it was not used: it
        may be paused.
        """
        if now < self._blind_until:
            return False
        refused = now < self._counted_from or (self.others > 0 and self.is_wary(now))
        return (refused and self.is_news_old(now)) or now - self._heard_at > _STALE_SECONDS

    def look_in_vain(self, now: float) -> None:
        """Note that nothing could be seen: what is admitted goes, as if there were no news."""
        self._blind_until = now + _BLIND_SECONDS

    def look(self, glance: Glance, asked_at: float, now: float) -> None:
        """Take in how often it was closed, and whether it is paused."""
        self._heard_at = asked_at
        if self.door.look(glance, now):
            self._clear()

    def start(self, waiter: Waiter) -> None:
        """Let a waiter go."""
        if self.drawn.start(waiter):
            self.begin(waiter.need.key.tenant, waiter.tokens)
            waiter.future.set_result(None)

    def end(self, *, unused_requests: float, unused_tokens: float, reserved: float) -> None:
        """End a running request."""
        self.running -= 1
        self.reserved -= reserved
        self.supply.give_back(unused_requests, unused_tokens)

    def leave(self, waiter: Waiter) -> None:
        """Take out one that waits no longer; what was drawn for it goes back."""
        waiter.future.cancel()
        self.line.leave(waiter)
        self.drawn.leave(waiter)

    # ------------------------------------------------------------ closing and learning

    def close(self, now: float, seconds: float, reason: str) -> None:
        """Let nobody through for a while, and tell the others."""
        self.door.close(now, seconds, reason)
        self._clear()

    def _clear(self) -> None:
        self.drawn.put_back()
        self.supply.empty_hand()

    def heard(self, headers: Mapping[str, str], expected: tuple[float, float] | None) -> None:
        """Take in what a response says of the limits."""
        if expected is None and self.supply.limited:
            return
        found = read_rate_headers(headers)
        if found is not None:
            self.supply.requests.heard(found.requests, expected[0] if expected else None)
            self.supply.tokens.heard(found.tokens, expected[1] if expected else None)

    def answered(self) -> None:
        """Take in a success: after a few that name no limit there is none."""
        if self._cautious <= _MANY and not self.supply.limited:
            self._cautious *= 2

    # ------------------------------------------------------------ exchanging

    def wants(self, now: float) -> bool:
        """Whether there is a reason to talk to the others."""
        if self.door.news or self.door.behind or self.drawn.doubtful:
            return True
        if not self.drawn.ordering and self._needs(now):
            return True
        if now - self.exchanged_at < _POLL_SECONDS:
            return False
        return bool(self.running or self.line) or now - self.used_at < _IDLE_SECONDS

    def _needs(self, now: float) -> bool:
        if self.door.fresh:
            return bool(self.line)
        if not self.supply.limited or self.door.is_closed(now) or not self.free_places():
            return False
        return now >= self.drawn.due if self.line else self.supply.is_low()

    def opens(self, now: float) -> float | None:
        """Return when the next starts are to be drawn; None where that is not a question of time."""
        if not self.line or not self.supply.limited or not self.free_places():
            return None
        return self.door.closed_until if self.door.is_closed(now) else self.drawn.due

    def order(self, now: float) -> Order:
        """Return the next order."""
        self.supply.fade(min(max(now - self.exchanged_at, 0.01), _IDLE_SECONDS))
        needs, open_ = self._needs(now), self.supply.limited and not self.door.is_closed(now)
        self.exchanged_at = now
        places = self._places() if needs and open_ else 0
        requests, tokens = self.drawn.order(places, self.others, now, into_hand=open_)
        closing = self.door.take_news()
        return Order(
            account=self.account,
            name=self.name,
            requests=requests,
            tokens=tokens,
            close_seconds=closing.seconds,
            close_reason=closing.reason,
            close_after=closing.after,
            waiting=len(self.line) + len(self.drawn),
            running=self.running,
            reserved=self.reserved,
        )

    def _places(self) -> float:
        most = self.limit.max_concurrency
        return float("inf") if most is None else most - self.running - len(self.drawn)

    def take_back(self) -> None:
        """Undo an order that was not answered."""
        self.door.take_back()
        self.drawn.take_back()

    def take_in(self, grant: Grant, asked_at: float, now: float, later: Later) -> None:
        """Take in the answer; `later` is given each waiter with the seconds until it may start."""
        self._heard_at = asked_at
        if self.door.fresh:
            self._counted_from = now + _COUNTED_SECONDS
        self.others = self.others if grant.others is None else grant.others
        opening = self.door.take_in(grant, now)
        closed = self.door.is_closed(now)
        if self.door.missed:
            self._clear()  # what was drawn before was meant for the full speed
        self.drawn.take_in(grant, opening, now, None if closed else later)
        if closed:
            self._clear()
        for waiter in self.drawn.take_doubtful():
            if self._is_late(waiter, now):
                self.drawn.draw_anew(waiter)
            else:
                self.start(waiter)
