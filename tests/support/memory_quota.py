"""The shared quota in memory, computed with the arithmetic that the database must agree with."""

from tests.support.bucket import Bucket, Shutter
from worker.domain.bucket import Size
from worker.domain.quota import Exchange, Exchanged, Glance, Grant, MeterGrant, MeterOrder, Order, Sample
from worker.ports import Clock

PROBE_SECONDS = 60.0


class MemoryQuota:
    """Any number of limiters may share one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._told: dict[tuple[str, str, str], float] = {}
        self._gaps: dict[tuple[str, str, str], float] = {}
        self._shutters: dict[tuple[str, str], Shutter] = {}
        self._closed_for: dict[tuple[str, str], str] = {}
        self._accounts: dict[str, tuple[float, str]] = {}
        self._samples: dict[str, Sample] = {}
        self.paused: set[str] = set()
        self.exchanges = 0
        self.others = 0

    async def exchange(self, exchange: Exchange) -> Exchanged:
        self.exchanges += 1
        now = self._clock.monotonic()
        for account, (seconds, reason) in exchange.closed.items():
            self._accounts[account] = (now + seconds, reason)
        for account in exchange.opened:
            self._accounts.pop(account, None)
        for model, sample in exchange.samples.items():
            self._samples[model] = self._samples.get(model, Sample()).plus(sample)
        return Exchanged(
            grants=[self._grant(order, now) for order in exchange.orders],
            accounts={name: (until - now, reason) for name, (until, reason) in self._accounts.items()},
            samples={model: self._samples[model] for model in exchange.samples},
        )

    async def look(self, account: str, name: str) -> Glance:
        closings = self._shutters.get((account, name), Shutter()).closings
        return Glance(closings=closings, paused=name in self.paused)

    async def probe(self, account: str) -> bool:
        until, reason = self._accounts.get(account, (1e18, ""))
        if self._clock.monotonic() < until:
            return False
        self._accounts[account] = (self._clock.monotonic() + PROBE_SECONDS, reason)
        return True

    def _grant(self, order: Order, now: float) -> Grant:
        gate = (order.account, order.name)
        before = shutter = self._shutters.get(gate, Shutter())
        if order.close_seconds:
            shutter = shutter.refused(now, order.close_seconds, after=order.close_after)
            self._shutters[gate], self._closed_for[gate] = shutter, order.close_reason
        opening, close = shutter.opening(now), bool(order.close_seconds)
        return Grant(
            requests=self._draw((*gate, "requests"), order.requests, now, before, close=close),
            tokens=self._draw((*gate, "tokens"), order.tokens, now, before, close=close),
            closed_seconds=opening.closed,
            gentle_seconds=opening.gentle,
            closings=shutter.closings,
            closed_for=self._closed_for.get(gate, ""),
            paused=order.name in self.paused,
            others=self.others,
        )

    def _draw(
        self, key: tuple[str, str, str], order: MeterOrder, now: float, shutter: Shutter, *, close: bool
    ) -> MeterGrant:
        if order.told is not None:
            self._told[key] = order.told
        if order.gap is not None:
            self._gaps[key] = order.gap
        size = Size(order.limit, order.handful) if order.limit else None
        if size is None:
            return MeterGrant(told=self._told.get(key))
        bucket = self._buckets.get(key, Bucket(size.burst, now))
        bucket = bucket.drawn(size, now, order.draw, shutter.opening(bucket.at))
        self._buckets[key] = bucket = bucket.closed() if close else bucket
        level = bucket.level + order.draw.units
        told, gap = self._told.get(key), self._gaps.get(key)
        return MeterGrant(level=level, drift=bucket.drift, told=told, gap=gap)
