"""One bucket as this worker sees it between two exchanges."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.domain.bucket import OPEN, Draw, Opening, Size, drift_told, starts
from worker.domain.quota import MeterGrant, MeterOrder
from worker.domain.rate_headers import Level


@dataclass(eq=False, slots=True, kw_only=True)
class Meter:
    """Requests or tokens of one gate. Limits in units a minute."""

    configured: float | None
    handful: float = 0.0
    told: float | None = None
    size: Size | None = None
    level: float = 0.0
    at: float = 0.0
    opening: Opening = OPEN
    """How it refills, seen from then."""
    drift: float = 0.0
    unused: float = 0.0
    """To be given back with the next order."""
    hand: float = 0.0
    """Drawn, but not used yet."""
    _news: float | None = None
    _gaps: list[float] = field(default_factory=list)
    _gap: float | None = None

    def __post_init__(self) -> None:
        self._resize()

    def learn(self, told: float | None) -> None:
        """Take in the limit that OpenAI names; what the operator allows is never exceeded."""
        if told is not None and told > 0 and told != self.told:
            self.told = told
            self._resize()

    def heard(self, level: Level, expected: float | None) -> None:
        """Take in the headers of a response to a request that should have left `expected` units."""
        before = self.size
        if level.limit and level.limit != self.told:
            self._news = float(level.limit)
            self.learn(self._news)
        if level.remaining is None or expected is None or before is None or self.size != before:
            return
        gap = level.remaining - expected
        # More than the operator allows is not ours to use.
        self._gaps.append(gap if self.told == before.limit else min(gap, 0.0))

    def estimate(self, now: float) -> float:
        """Return the shared level, as far as it is known here."""
        if self.size is None:
            return 0.0
        past = max(0.0, now - self.at)
        most = self.size.burst if past >= self.opening.gentle else 0.0
        return min(most, self.level + self.size.rate * self.opening.refilled(past))

    def wait(self, ahead: float, units: float, now: float) -> float:
        """Return the seconds until so many units could go behind others."""
        if self.size is None:
            return 0.0
        level = min(self.size.burst, self.estimate(now) + self.unused)
        short = ahead + self.size.threshold(units) - level - self.hand
        return max(0.0, self._left_of_opening(now).until(short / self.size.rate)) if short > 0 else 0.0

    def budget(self, share: float, seconds: float, now: float) -> float:
        """Return what a worker with this share of it may draw for so many seconds."""
        if self.size is None:
            return float("inf")
        refill = self._left_of_opening(now).refilled(seconds) * self.size.rate
        return share * (max(0.0, self.estimate(now)) + refill)

    def order(self, units: float, largest: float) -> MeterOrder:
        """Return the order for so many units, the largest single request among them."""
        size = self.size
        if size is None:
            told, self._news = self._news, None
            return MeterOrder(told=told)
        drift = drift_told(size, self.drift, self._gaps)
        gap = sum(self._gaps) / len(self._gaps) if self._gaps else None
        self._gap = self._gap if gap is None else gap
        extra = 0.0
        if self._gap is not None and units:
            behind = min(0.0, self._gap - (self.drift if drift is None else drift))
            extra = max(0.0, largest - size.floor - behind - size.burst)
        draw = Draw(
            units=units,
            unused=self.unused,
            drift=drift or 0.0,
            weight=0.0 if drift is None else 1.0,
            extra=extra,
        )
        told, self._news = self._news, None
        self.unused = 0.0
        self._gaps.clear()
        return MeterOrder(limit=size.limit, handful=self.handful, told=told, gap=gap, draw=draw)

    def take_in(self, grant: MeterGrant, needs: Sequence[float], units: float, now: float) -> list[float]:
        """Return the seconds until each request may start."""
        self.learn(grant.told)
        self._gap = grant.gap
        self.level, self.at, self.drift = grant.level - units, now, grant.drift
        if self.size is None:
            return [0.0] * len(needs)
        return starts(self.size, grant.level, needs, self.opening)

    def left(self, level: float, wait: float) -> float:
        """Return what OpenAI should have left so long after a shared level, had there been no drift."""
        if self.size is None:
            return 0.0
        return min(self.size.limit, self.size.floor + level + self.size.rate * wait - self.drift)

    def _left_of_opening(self, now: float) -> Opening:
        if self.opening is OPEN:
            return OPEN
        past = now - self.at
        return Opening(self.opening.closed - past, self.opening.gentle - past)

    def _resize(self) -> None:
        known = [limit for limit in (self.configured, self.told) if limit is not None]
        self.size = Size(min(known), self.handful) if known else None
