"""One shared limit: its buckets, its line of waiting requests, its closed times."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiolimiter import AsyncLimiter

from worker.core.limits import Limit, Need, TooLargeError
from worker.domain.bucket import Bucket

_HIGH_IN_A_ROW = 4
"""After so many high-priority requests a normal one goes first, so that nobody starves."""
_SMALLEST_BURST = 5
"""Requests a second that are never paced, however low the limit a minute."""
_TICKET_SECONDS = 30.0
"""How long a place that came up is kept for a request that waits outside the process."""


@dataclass(eq=False, slots=True, kw_only=True)
class Waiter:
    """A place in line. Without a future its job waits outside and comes back for the place."""

    need: Need
    future: asyncio.Future[None] | None


@dataclass(eq=False, slots=True)
class Gate:
    """Keeps the line moving in order of arrival; sizes do not matter, so big requests are not starved."""

    account: str
    name: str
    limit: Limit
    now: float
    requests: Bucket | None = None
    tokens: Bucket | None = None
    pacer: AsyncLimiter | None = None
    running: int = 0
    closed_until: float = 0.0
    closed_for: str = ""
    normal: deque[Waiter] = field(default_factory=deque)
    high: deque[Waiter] = field(default_factory=deque)
    tickets: dict[tuple[str, str], tuple[Need, float]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pump: asyncio.Task[None] | None = None
    _high_streak: int = 0

    def __post_init__(self) -> None:
        if self.limit.requests_per_minute is not None:
            self.requests = Bucket.per_minute(self.limit.requests_per_minute, self.now)
            # Limits a minute may be enforced a second at a time; a burst must not spend the minute at once.
            self.pacer = AsyncLimiter(max(_SMALLEST_BURST, self.limit.requests_per_minute / 60), 1)
        if self.limit.tokens_per_minute is not None:
            self.tokens = Bucket.per_minute(self.limit.tokens_per_minute, self.now)

    def check_size(self, need: Need) -> None:
        """Raise TooLargeError for what can never be admitted."""
        if self.tokens is not None and need.tokens > self.tokens.capacity:
            raise TooLargeError(
                f"the request needs up to {need.tokens} tokens, the limit of {self.name} is "
                f"{self.tokens.capacity:.0f} tokens a minute; shorten it or lower its maximum output"
            )

    @property
    def line(self) -> Iterator[Waiter]:
        """All who wait, next first (the occasional turn of a normal request aside)."""
        yield from self.high
        yield from self.normal

    def place(self, need: Need) -> tuple[Waiter, int, int]:
        """Return the place of a request, a new one at the end if need be, and tokens and requests ahead."""
        tokens = requests = 0
        for waiter in self.line:
            if waiter.need.key == need.key:
                return waiter, tokens, requests
            tokens += waiter.need.tokens
            requests += 1
        waiter = Waiter(need=need, future=None)
        (self.high if need.high else self.normal).append(waiter)
        return waiter, tokens, requests

    @property
    def has_line(self) -> bool:
        """Whether anybody waits."""
        return bool(self.high or self.normal)

    def next_line(self) -> deque[Waiter]:
        """Return the line whose head is next."""
        if self.high and (self._high_streak < _HIGH_IN_A_ROW or not self.normal):
            return self.high
        return self.normal

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out of its line, wherever it stands."""
        line = self.high if waiter.need.high else self.normal
        if waiter in line:
            line.remove(waiter)
            self.changed.set()

    def refill(self, now: float) -> None:
        """Bring the buckets up to date, and give back places that nobody came for."""
        if self.requests is not None:
            self.requests = self.requests.refilled(now)
        if self.tokens is not None:
            self.tokens = self.tokens.refilled(now)
        for key, (need, expires) in list(self.tickets.items()):
            if expires <= now:
                del self.tickets[key]
                self.give_back(need, used=None)

    def wait(self, need: Need, now: float, ahead: float = 0, requests_ahead: int = 0) -> float:
        """Return the seconds until a request could go, with that much in line before it; inf: unknown."""
        self.refill(now)
        seconds = max(0.0, self.closed_until - now)
        if self.limit.max_concurrency is not None and self.running >= self.limit.max_concurrency:
            seconds = math.inf
        if self.requests is not None:
            seconds = max(seconds, _wait_beyond(self.requests, requests_ahead, 1))
        if self.tokens is not None:
            seconds = max(seconds, _wait_beyond(self.tokens, ahead, need.tokens))
        return seconds

    def take(self, need: Need) -> None:
        """Reserve for one request."""
        self.running += 1
        if self.requests is not None:
            self.requests = self.requests.take(1)
        if self.tokens is not None:
            self.tokens = self.tokens.take(need.tokens)

    def grant(self, now: float) -> None:
        """Serve the head of the line, or keep its place if its job waits outside."""
        line = self.next_line()
        waiter = line.popleft()
        self._high_streak = self._high_streak + 1 if line is self.high else 0
        self.take(waiter.need)
        if waiter.future is None:
            self.tickets[waiter.need.key] = (waiter.need, now + _TICKET_SECONDS)
        elif not waiter.future.done():
            waiter.future.set_result(None)
        else:
            self.give_back(waiter.need, used=None)

    def give_back(self, need: Need, *, used: int | None) -> None:
        """End a request: `used` None means that it was never sent."""
        self.running -= 1
        if used is None and self.requests is not None:
            self.requests = self.requests.give_back(1)
        if self.tokens is not None:
            self.tokens = self.tokens.give_back(need.tokens - (used or 0))
        self.changed.set()


def _wait_beyond(bucket: Bucket, ahead: float, units: float) -> float:
    """Return the wait for units behind others in line, who may exceed the capacity together."""
    if units > bucket.capacity:
        return math.inf
    return max(0.0, (ahead + units - bucket.level) / bucket.rate)
