"""One shared limit in this process: who waits, what was drawn for them, when each may start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from worker.core.limits import Limit, TooLargeError
from worker.core.line import Line, Parked, Waiter
from worker.core.meter import Meter
from worker.domain.bucket import HANDFUL
from worker.domain.quota import Grant, Order
from worker.domain.rate_headers import RateHeaders

_AHEAD_SECONDS: Final = 0.3
"""How far ahead starts are drawn: what a worker loses when it dies, and sends after a 429 elsewhere."""
_HAND_SECONDS: Final = 0.5
_HAND_PART: Final = 0.01
"""What is held in hand while nobody waits: so many seconds of use, and never more of the limit."""
_GENTLE_SECONDS: Final = 4.0
_GENTLE: Final = 2.5
"""After a closed time requests go so many times slower, for so long."""
_POLL_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 10.0
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
    requests: Meter = field(init=False)
    tokens: Meter = field(init=False)
    parked: Parked = field(default_factory=Parked)
    drawn: list[Waiter] = field(default_factory=list)
    """Those whose start is ordered, or known and still to come."""
    running: int = 0
    reserved: float = 0.0
    closed_until: float = 0.0
    closed_for: str = ""
    paused: bool = False
    others: int = 0
    exchanged_at: float = -1e9
    fresh: bool = True
    """Until the first answer, which may say that it is closed."""
    used_at: float = -1e9
    _cautious: int = _FIRST
    _opened_at: float = -1e9
    _last_start: float = 0.0
    _use: float = 0.0
    _token_use: float = 0.0
    _close: tuple[float, str] = (0.0, "")
    _ordered: list[Waiter] = field(default_factory=list)
    _hand: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.requests = Meter(configured=self.limit.requests_per_minute, handful=HANDFUL)
        self.tokens = Meter(configured=self.limit.tokens_per_minute)

    # ------------------------------------------------------------ asking

    @property
    def limited(self) -> bool:
        """Whether there is a limit to draw from."""
        return self.requests.size is not None or self.tokens.size is not None

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits here."""
        return bool(self.running or self.line or self.drawn or self.closed_until or self.paused)

    def is_closed(self, now: float) -> bool:
        """Whether nobody may go."""
        return self.paused or now < self.closed_until

    def check_size(self, tokens: float) -> None:
        """Raise TooLargeError for what can never be admitted."""
        size = self.tokens.size
        if size is not None and tokens > size.limit:
            raise TooLargeError(
                f"the request needs up to {tokens:.0f} tokens, the limit of {self.name} is "
                f"{size.limit:.0f} tokens a minute; shorten it or lower its maximum output"
            )

    def cost(self, tokens: float) -> float:
        """Return the part of a minute's limit that a request takes."""
        requests, size = self.requests.size, self.tokens.size
        return max(1 / requests.limit if requests else 0.0, tokens / size.limit if size else 0.0) or 1.0

    def wait(self, ahead: tuple[float, float], tokens: float, now: float) -> float:
        """Return about how many seconds a request has to wait behind others."""
        if self.paused:
            return 60.0
        crowd = self.others + 1
        return max(
            self.closed_until - now,
            self.requests.wait(ahead[0] * crowd, 1, now),
            self.tokens.wait(ahead[1] * crowd, tokens, now),
            0.0,
        )

    def free_places(self) -> bool:
        """Whether max_concurrency, or caution while limits are unknown, allows one more."""
        if self.fresh:
            return False
        most = self.limit.max_concurrency
        if most is not None and self.running >= most:
            return False
        return self.limited or self._cautious > _MANY or self.running < self._cautious

    # ------------------------------------------------------------ admitting

    def take_in_hand(self, tokens: float, now: float) -> bool:
        """Take one request from what is drawn already; False where it has to wait in line."""
        self.used_at = now
        if self.is_closed(now) or not self.free_places():
            return False
        if not self.limited:
            return True
        if not self._covers(tokens):
            return False
        self._pay(tokens)
        return True

    def begin(self, tenant: str, tokens: float) -> None:
        """Count a request as running."""
        self.running += 1
        self.reserved += tokens
        self.begun(tenant)

    def _covers(self, tokens: float) -> bool:
        requests, held = self.requests, self.tokens
        return (requests.size is None or requests.hand >= 1) and (held.size is None or held.hand >= tokens)

    def _pay(self, tokens: float) -> None:
        self.requests.hand -= 1 if self.requests.size else 0
        self.tokens.hand -= tokens if self.tokens.size else 0
        self._use += 1
        self._token_use += tokens

    def expected(self, now: float) -> tuple[float, float]:
        """Return what OpenAI should have left of both after a request that goes now."""
        return (
            self.requests.left(self.requests.estimate(now)),
            self.tokens.left(self.tokens.estimate(now)),
        )

    def serve(self, now: float) -> None:
        """Let go whoever needs nothing from the shared buckets."""
        while not self.is_closed(now) and self.free_places():
            waiter = self.line.pop(self.may) if not self.limited or self._covers(1) else None
            if waiter is None:
                return
            if self.limited and not self._covers(waiter.tokens):
                self.line.put_back(waiter)
                return
            if self.limited:
                self._pay(waiter.tokens)
            waiter.expected = self.expected(now)
            self.start(waiter)

    def start(self, waiter: Waiter) -> None:
        """Let a waiter go."""
        if waiter in self.drawn:
            self.drawn.remove(waiter)
        if waiter.gone:
            self.give_back(1, waiter.tokens)
            return
        self.begin(waiter.need.key.tenant, waiter.tokens)
        waiter.future.set_result(None)

    def end(self, *, unused_requests: float, unused_tokens: float, reserved: float) -> None:
        """End a running request."""
        self.running -= 1
        self.reserved -= reserved
        self.give_back(unused_requests, unused_tokens)

    def give_back(self, requests: float, tokens: float) -> None:
        """Return what was drawn and not used; overuse is a negative number."""
        self.requests.unused += requests if self.requests.size else 0
        self.tokens.unused += tokens if self.tokens.size else 0

    def leave(self, waiter: Waiter) -> None:
        """Take out one that waits no longer; what was drawn for it goes back."""
        waiter.future.cancel()
        if waiter in self.drawn:
            self.drawn.remove(waiter)
        if waiter.timer is not None:  # else it is still being ordered, and goes back with the answer
            waiter.timer.cancel()
            waiter.timer = None
            self.give_back(1, waiter.tokens)

    # ------------------------------------------------------------ closing and learning

    def close(self, now: float, seconds: float, reason: str) -> None:
        """Let nobody through for a while, and tell the others."""
        if seconds > self._close[0]:
            self._close = (seconds, reason)
        self._shut(now, seconds, reason)

    def _shut(self, now: float, seconds: float, reason: str) -> None:
        if now + seconds > self.closed_until:
            self.closed_until, self.closed_for = now + seconds, reason
        self._opened_at = max(self._opened_at, self.closed_until)
        self._last_start = max(self._last_start, self.closed_until)
        for waiter in self.drawn:
            if waiter.timer is not None and not waiter.gone:
                waiter.timer.cancel()
                waiter.timer = None
                self.give_back(1, waiter.tokens)
                self.line.put_back(waiter)
        self.drawn = [waiter for waiter in self.drawn if waiter in self._ordered]
        self.give_back(self.requests.hand, self.tokens.hand)
        self.requests.hand = self.tokens.hand = 0.0

    def heard(self, headers: RateHeaders | None, expected: tuple[float, float] | None) -> None:
        """Take in what a response says of the limits."""
        if headers is not None:
            self.requests.heard(headers.requests, expected[0] if expected else None)
            self.tokens.heard(headers.tokens, expected[1] if expected else None)

    def answered(self) -> None:
        """Take in a success: after a few that name no limit there is none."""
        if not self.limited and self._cautious <= _MANY:
            self._cautious *= 2

    # ------------------------------------------------------------ exchanging

    def wants(self, now: float) -> bool:
        """Whether there is a reason to talk to the others."""
        if self._close[0] or (not self._ordered and self._needs(now)):
            return True
        in_use = self.running or self.line or now - self.used_at < _IDLE_SECONDS
        return bool(in_use) and now - self.exchanged_at >= _POLL_SECONDS

    def _needs(self, now: float) -> bool:
        if self.fresh:
            return bool(self.line)
        if not self.limited or self.is_closed(now) or not self.free_places():
            return False
        if self.line:
            return now >= self.due
        return self._low()

    @property
    def due(self) -> float:
        """When the next starts are to be drawn: while half of the last ones are still to come."""
        return self._last_start - _AHEAD_SECONDS / 2 if self.drawn else 0.0

    def _is_easy(self, now: float) -> bool:
        """Whether there is more than those in line need: then a supply saves the next ones their way."""
        if not self.limited or self.is_closed(now):
            return False
        requests, tokens = len(self._ordered), sum(waiter.tokens for waiter in self._ordered)
        enough = self.requests.size is None or self.requests.estimate(now) >= requests + 1
        return enough and (self.tokens.size is None or self.tokens.estimate(now) > tokens)

    def _wanted_hand(self) -> tuple[float, float]:
        requests, tokens = self.requests.size, self.tokens.size
        each = self._token_use / self._use if self._use else 0.0
        number = self._use * _HAND_SECONDS + 1 if self._use else 0.0
        if requests:
            number = min(number, _HAND_PART * requests.limit)
        if tokens and each:
            number = min(number, _HAND_PART * tokens.limit / each)
        return (number, number * each) if number >= 1 else (0.0, 0.0)

    def _low(self) -> bool:
        number, tokens = self._wanted_hand()
        lacks = self.requests.size is not None and self.requests.hand < number / 2
        return number > 0 and (lacks or (self.tokens.size is not None and self.tokens.hand < tokens / 2))

    def order(self, now: float) -> Order:
        """Return the next order: for the head of the line, or for a small supply while nobody waits."""
        seconds = min(max(now - self.exchanged_at, 0.01), _IDLE_SECONDS)
        fade = 0.5**seconds
        self._use, self._token_use = self._use * fade, self._token_use * fade
        self._ordered = self._choose(now) if self.limited and self._needs(now) else []
        self.exchanged_at = now
        self._hand = (0.0, 0.0)
        if not self.line and self._is_easy(now):
            number, tokens = self._wanted_hand()
            self._hand = max(0.0, number - self.requests.hand), max(0.0, tokens - self.tokens.hand)
        tokens_each = [waiter.tokens for waiter in self._ordered]
        (close_seconds, close_reason), self._close = self._close, (0.0, "")
        return Order(
            account=self.account,
            name=self.name,
            requests=self.requests.order(len(self._ordered) + self._hand[0], 1.0),
            tokens=self.tokens.order(sum(tokens_each) + self._hand[1], max(tokens_each, default=0.0)),
            close_seconds=close_seconds,
            close_reason=close_reason,
            waiting=len(self.line) + len(self.drawn),
            running=self.running,
            reserved=self.reserved,
        )

    def _choose(self, now: float) -> list[Waiter]:
        """Take the next few out of the line: what this worker's share allows in the time to come."""
        chosen: list[Waiter] = []
        requests, tokens = self._budget(self.requests, now), self._budget(self.tokens, now)
        places = self._places()  # before any is added to those drawn
        while len(chosen) < places and (not chosen or (requests >= 1 and tokens > 0)):
            waiter = self.line.pop(self.may)
            if waiter is None:
                break
            chosen.append(waiter)
            self.drawn.append(waiter)
            requests -= 1
            tokens -= waiter.tokens
        return chosen

    def _places(self) -> int:
        most = self.limit.max_concurrency
        return 1 << 30 if most is None else most - self.running - len(self.drawn)

    def _budget(self, meter: Meter, now: float) -> float:
        if meter.size is None:
            return float("inf")
        share = 1 / (self.others + 1)
        return max(0.0, meter.estimate(now)) * share + meter.size.rate * share * _AHEAD_SECONDS

    def take_back(self) -> None:
        """Undo an order that was not answered."""
        for waiter in self._ordered:
            if waiter in self.drawn:
                self.drawn.remove(waiter)
            if not waiter.gone:
                self.line.put_back(waiter)
        self._ordered = []

    def take_in(self, grant: Grant, now: float, later: Callable[[float, Waiter], None]) -> None:
        """Take in the answer; `later` is given each waiter with the seconds until it may start."""
        ordered, self._ordered = self._ordered, []
        self.fresh = False
        needs = [1.0] * len(ordered), [waiter.tokens for waiter in ordered]
        hand_requests, hand_tokens = self._hand
        waits = self.requests.take_in(grant.requests, needs[0], len(ordered) + hand_requests, now)
        token_waits = self.tokens.take_in(grant.tokens, needs[1], sum(needs[1]) + hand_tokens, now)
        self.others = self.others if grant.others is None else grant.others
        self.paused = grant.paused
        if hand_requests or hand_tokens:
            self._take_hand(grant, hand_requests, hand_tokens, ordered)
        if grant.closed_seconds > 0 or grant.paused:
            self.drawn = [waiter for waiter in self.drawn if waiter not in ordered]
            for waiter in ordered:
                self.give_back(1, waiter.tokens)
                if not waiter.gone:
                    self.line.put_back(waiter)
            self._shut(now, grant.closed_seconds, grant.closed_for)
            return
        # A closed time may be over before this worker has heard of it; it opens gently all the same.
        self._opened_at = max(self._opened_at, now + grant.closed_seconds)
        if self.closed_until > now and not self._close[0]:
            self.closed_until = now  # opened by an operator
        self._schedule(
            ordered, [max(pair) for pair in zip(waits, token_waits, strict=True)], grant, now, later
        )

    def _take_hand(self, grant: Grant, requests: float, tokens: float, ordered: list[Waiter]) -> None:
        short = self.requests.size is not None and grant.requests.level < len(ordered) + requests
        needed = sum(waiter.tokens for waiter in ordered) + tokens
        if short or (self.tokens.size is not None and grant.tokens.level < needed):
            self.give_back(requests, tokens)  # somebody waits for it elsewhere
            return
        self.requests.hand += requests if self.requests.size else 0
        self.tokens.hand += tokens if self.tokens.size else 0

    def _schedule(
        self,
        ordered: list[Waiter],
        waits: list[float],
        grant: Grant,
        now: float,
        later: Callable[[float, Waiter], None],
    ) -> None:
        spent = 0.0
        crowd = self.others + 1
        for number, (waiter, wait) in enumerate(zip(ordered, waits, strict=True), start=1):
            start = now + wait
            spent += waiter.tokens
            if start < self._opened_at + _GENTLE_SECONDS:
                start = max(start, self._last_start + _GENTLE * crowd * self._pace(waiter.tokens))
            requests, tokens = self.requests, self.tokens
            waiter.expected = (
                requests.left(
                    grant.requests.level + wait * (requests.size.rate if requests.size else 0) - number
                ),
                tokens.left(grant.tokens.level + wait * (tokens.size.rate if tokens.size else 0) - spent),
            )
            self._use += 1
            self._token_use += waiter.tokens
            self._last_start = max(self._last_start, start)
            later(start - now, waiter)

    def _pace(self, tokens: float) -> float:
        """Return the seconds that a request takes at the full rate."""
        requests, size = self.requests.size, self.tokens.size
        return max(1 / requests.rate if requests else 0.0, tokens / size.rate if size else 0.0)
