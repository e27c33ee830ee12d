"""What one worker knows of the two shared buckets of a limit, and the little that it holds in hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from worker.core.limits import Limit, TooLargeError
from worker.core.line import Line
from worker.core.meter import Meter
from worker.domain.bucket import HANDFUL, Opening
from worker.domain.quota import Grant, MeterOrder

_AHEAD_SECONDS: Final = 0.3
"""How far ahead starts are drawn: what a worker loses when it dies."""
_HAND_SECONDS: Final = 0.5
_HAND_PART: Final = 0.01
"""What is held in hand while nobody waits: so many seconds of use, and never more of the limit."""
_LOW: Final = 0.2
"""The part of it at which it is filled up again."""
_NOTHING: Final = (0.0, 0.0)


@dataclass(eq=False, slots=True)
class Supply:
    """Requests and tokens of one gate. Pairs are numbers of requests and tokens."""

    name: str
    limit: Limit
    requests: Meter = field(init=False)
    tokens: Meter = field(init=False)
    _use: float = 0.0
    _token_use: float = 0.0
    """What was started, halved every second."""

    def __post_init__(self) -> None:
        self.requests = Meter(configured=self.limit.requests_per_minute, handful=HANDFUL)
        self.tokens = Meter(configured=self.limit.tokens_per_minute)

    @property
    def limited(self) -> bool:
        """Whether there is a limit to draw from."""
        return self.requests.size is not None or self.tokens.size is not None

    # ------------------------------------------------------------ what it takes

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
        """Return about how many seconds until a request could go behind those ahead."""
        return max(self.requests.wait(ahead[0], 1, now), self.tokens.wait(ahead[1], tokens, now))

    def is_room(self, line: Line, tokens: float, now: float) -> bool:
        """Whether there should be enough for one more than all in line, as far as is known here."""
        requests, held = self.requests, self.tokens
        if requests.size is not None and requests.estimate(now) < len(line) + 1:
            return False
        return held.size is None or held.estimate(now) >= line.tokens + held.size.threshold(tokens)

    def expected(self, now: float) -> tuple[float, float]:
        """Return what OpenAI should have left of both after a request that goes now."""
        requests, tokens = self.requests, self.tokens
        return requests.left(requests.estimate(now), 0), tokens.left(tokens.estimate(now), 0)

    def budget(self, share: float, now: float) -> tuple[float, float]:
        """Return what a worker with this share of both may draw at a time."""
        requests, tokens = self.requests, self.tokens
        return requests.budget(share, _AHEAD_SECONDS, now), tokens.budget(share, _AHEAD_SECONDS, now)

    # ------------------------------------------------------------ exchanging

    def order(self, tokens: Sequence[float], hand: tuple[float, float]) -> tuple[MeterOrder, MeterOrder]:
        """Return the order for requests of so many tokens each, and for the hand."""
        return (
            self.requests.order(len(tokens) + hand[0], 1.0),
            self.tokens.order(sum(tokens) + hand[1], max(tokens, default=0.0)),
        )

    def take_in(
        self,
        grant: Grant,
        opening: Opening,
        tokens: Sequence[float],
        hand: tuple[float, float],
        now: float,
    ) -> list[tuple[float, tuple[float, float]]]:
        """Take in the answer; return the seconds to each start, and what OpenAI should have left then."""
        requests, held = self.requests, self.tokens
        requests.opening = held.opening = opening
        waits = requests.take_in(grant.requests, [1.0] * len(tokens), len(tokens) + hand[0], now)
        token_waits = held.take_in(grant.tokens, tokens, sum(tokens) + hand[1], now)
        if any(hand):
            self._take_hand(grant, len(tokens), sum(tokens), hand)
        found, spent = list[tuple[float, tuple[float, float]]](), 0.0
        for number, (units, *both) in enumerate(zip(tokens, waits, token_waits, strict=True), start=1):
            wait, spent = max(both), spent + units
            self._used(units)
            left = (
                requests.left(grant.requests.level - number, wait),
                held.left(grant.tokens.level - spent, wait),
            )
            found.append((wait, left))
        return found

    def _take_hand(self, grant: Grant, ordered: float, tokens: float, hand: tuple[float, float]) -> None:
        """Keep what was drawn for the hand, unless somebody elsewhere has to wait for it."""
        short = self.requests.size is not None and grant.requests.level < ordered + hand[0]
        if short or (self.tokens.size is not None and grant.tokens.level < tokens + hand[1]):
            self.give_back(*hand)
            return
        self.requests.hand += hand[0] if self.requests.size else 0
        self.tokens.hand += hand[1] if self.tokens.size else 0

    # ------------------------------------------------------------ what is in hand

    def covers(self, tokens: float) -> bool:
        """Whether what is in hand is enough for a request."""
        requests, held = self.requests, self.tokens
        return (requests.size is None or requests.hand >= 1) and (held.size is None or held.hand >= tokens)

    def pay(self, tokens: float) -> None:
        """Take a request's part from what is in hand."""
        if self.requests.size is not None:
            self.requests.hand -= 1
        if self.tokens.size is not None:
            self.tokens.hand -= tokens
        self._used(tokens)

    def fade(self, seconds: float) -> None:
        """Let the use so far count less."""
        self._use *= 0.5**seconds
        self._token_use *= 0.5**seconds

    def is_low(self) -> bool:
        """Whether what is in hand had better be filled up."""
        number, tokens = self._wanted()
        lacks = self.requests.size is not None and self.requests.hand < _LOW * number
        return number > 0 and (lacks or (self.tokens.size is not None and self.tokens.hand < _LOW * tokens))

    def lacking(self, ordered: Sequence[float], now: float) -> tuple[float, float]:
        """Return what to draw for the hand, besides what is ordered; nothing where somebody may need it."""
        requests, held = self.requests, self.tokens
        enough = requests.size is None or requests.estimate(now) >= len(ordered) + 1
        if not enough or not (held.size is None or held.estimate(now) > sum(ordered)):
            return _NOTHING
        number, tokens = self._wanted()
        return max(0.0, number - requests.hand), max(0.0, tokens - held.hand)

    def give_back(self, requests: float, tokens: float) -> None:
        """Return what was drawn and not used, with the next order; overuse is a negative number."""
        if self.requests.size is not None:
            self.requests.unused += requests
        if self.tokens.size is not None:
            self.tokens.unused += tokens

    @property
    def gained(self) -> float:
        """How many seconds sooner the next one may start once the tokens not used are given back."""
        return max(0.0, self.tokens.unused) / self.tokens.size.rate if self.tokens.size else 0.0

    def empty_hand(self) -> None:
        """Return all that is in hand."""
        self.give_back(self.requests.hand, self.tokens.hand)
        self.requests.hand = self.tokens.hand = 0.0

    def _used(self, tokens: float) -> None:
        self._use += 1
        self._token_use += tokens

    def _wanted(self) -> tuple[float, float]:
        if not self._use:
            return _NOTHING
        requests, tokens = self.requests.size, self.tokens.size
        each = self._token_use / self._use
        number = self._use * _HAND_SECONDS + 1
        if requests is not None:
            number = min(number, _HAND_PART * requests.limit)
        if tokens is not None and each:
            number = min(number, _HAND_PART * tokens.limit / each)
        return (number, number * each) if number >= 1 else _NOTHING
