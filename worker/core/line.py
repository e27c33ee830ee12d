"""Who is next: high lanes first, tenants by weight, and within a tenant whoever's job arrived first."""

import asyncio
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from worker.core.limits import Need

_HIGH_IN_A_ROW: Final = 4
"""After so many high-priority requests a normal one goes first, so that nobody starves."""


@dataclass(eq=False, slots=True, kw_only=True)
class Waiter:
    """A request in line; its future is resolved when it may go."""

    need: Need
    tokens: float
    cost: float
    """Its part of what a minute allows."""
    future: asyncio.Future[None]
    probe: bool = False
    """It tries closed credentials."""
    in_line: bool = False
    timer: asyncio.TimerHandle | None = None
    """Set once its start is known."""
    due: float = 0.0
    """When that is, in monotonic seconds."""
    late: bool = False
    """It came much too late once, and was drawn anew."""
    expected: tuple[float, float] | None = None
    """What will be left of requests and tokens, as OpenAI counts them, when it has started."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()


@dataclass(eq=False, slots=True)
class _Tenants:
    """Fair queueing: each tenant's turn comes in proportion to its weight."""

    weight: Callable[[str], float]
    lines: dict[str, list[tuple[float, int, Waiter]]] = field(default_factory=dict)
    turns: dict[str, float] = field(default_factory=dict)
    turn: float = 0.0
    numbers: Iterator[int] = field(default_factory=count)

    def push(self, waiter: Waiter) -> None:
        tenant = waiter.need.key.tenant
        if tenant not in self.lines:
            self.lines[tenant] = []
            self.turns[tenant] = max(self.turn, self.turns.get(tenant, 0.0))
        heapq.heappush(self.lines[tenant], (waiter.need.received_at, next(self.numbers), waiter))

    def pop(self, may: Callable[[str], bool]) -> Waiter | None:
        self._tidy()
        able = [tenant for tenant in self.lines if may(tenant)]
        if not able:
            return None
        tenant = min(able, key=self.turns.__getitem__)
        waiter = heapq.heappop(self.lines[tenant])[-1]
        self.turn = max(self.turn, self.turns[tenant])
        self.turns[tenant] += waiter.cost / self.weight(tenant)
        self._tidy()
        return waiter

    def refund(self, waiter: Waiter) -> None:
        tenant = waiter.need.key.tenant
        self.turns[tenant] = self.turns.get(tenant, self.turn) - waiter.cost / self.weight(tenant)

    def _tidy(self) -> None:
        for tenant, line in list(self.lines.items()):
            while line and not line[0][-1].in_line:
                heapq.heappop(line)
            if not line:
                del self.lines[tenant]
        if not self.lines:
            # What a tenant has had before everybody was served counts no longer.
            self.turns.clear()
            self.turn = 0.0


class Line:
    """All who wait at one gate in this process."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._normal = _Tenants(weight)
        self._high = _Tenants(weight)
        self._streak = 0
        self._weight = weight
        self._waiting = 0
        self.tokens = 0.0
        """Of all who wait."""

    def __iter__(self) -> Iterator[Waiter]:
        """Return all who wait, in no order."""
        for lines in (self._high.lines, self._normal.lines):
            for line in lines.values():
                yield from (waiter for _, _, waiter in line if waiter.in_line)

    def __len__(self) -> int:
        return self._waiting

    def push(self, waiter: Waiter) -> None:
        """Let a request stand in line, by the time its job first arrived."""
        (self._high if waiter.need.high else self._normal).push(waiter)
        waiter.in_line = True
        self._waiting += 1
        self.tokens += waiter.tokens

    def leave(self, waiter: Waiter) -> None:
        """Take out one that waits no longer, if it is in line."""
        if waiter.in_line:
            waiter.in_line = False
            self._waiting -= 1
            self.tokens = self.tokens - waiter.tokens if self._waiting else 0.0

    def put_back(self, waiter: Waiter) -> None:
        """Let one that was taken out stand in its place again."""
        self.push(waiter)
        self.refund(waiter)

    def refund(self, waiter: Waiter) -> None:
        """Give one's tenant back the turn that was not used."""
        (self._high if waiter.need.high else self._normal).refund(waiter)

    def pop(self, may: Callable[[str], bool]) -> Waiter | None:
        """Take out who is next, of those tenants that may have another request."""
        lines = [self._high, self._normal]
        if self._streak >= _HIGH_IN_A_ROW:
            lines.reverse()
        for one in lines:
            waiter = one.pop(may)
            if waiter is not None:
                self.leave(waiter)
                self._streak = self._streak + 1 if waiter.need.high else 0
                return waiter
        return None

    def ahead(self, need: Need, parked: "Parked") -> tuple[float, float]:
        """Return requests and tokens to be served before one, those in waiting rooms included."""
        if not self and not parked.tenants:
            return 0.0, 0.0
        tenant = need.key.tenant
        requests, tokens = parked.before(None, need)
        mine_requests, mine_tokens = parked.before(tenant, need)
        tenants = {tenant, *parked.tenants}
        for waiter in self:
            tenants.add(waiter.need.key.tenant)
            later = (waiter.need.high, -waiter.need.received_at) < (need.high, -need.received_at)
            if later or waiter.need is need:
                continue
            requests += 1
            tokens += waiter.tokens
            if waiter.need.key.tenant == tenant:
                mine_requests += 1
                mine_tokens += waiter.tokens
        inverse_share = sum(map(self._weight, tenants)) / self._weight(tenant)
        return min(requests, mine_requests * inverse_share), min(tokens, mine_tokens * inverse_share)


class Parked:
    """What this worker has sent to waiting rooms, and when it comes back: to it or to another."""

    def __init__(self) -> None:
        self._due: list[tuple[float, str, int, float]] = []
        self._sums: dict[str, dict[int, tuple[int, float]]] = {}

    @property
    def tenants(self) -> set[str]:
        """Those who have something there."""
        return set(self._sums)

    def add(self, need: Need, tokens: float, due: float) -> None:
        """Note a request that comes back at a (monotonic) time."""
        second = int(need.received_at)
        heapq.heappush(self._due, (due, need.key.tenant, second, tokens))
        self._change(need.key.tenant, second, 1, tokens)

    def expire(self, now: float) -> None:
        """Forget what is back by now."""
        while self._due and self._due[0][0] <= now:
            _, tenant, second, tokens = heapq.heappop(self._due)
            self._change(tenant, second, -1, -tokens)

    def before(self, tenant: str | None, need: Need) -> tuple[float, float]:
        """Return requests and tokens of jobs that came before, of one tenant or of all."""
        own = self._sums.get(tenant, {}) if tenant is not None else None
        found = [own] if own is not None else list(self._sums.values())
        older = [part for sums in found for second, part in sums.items() if second < int(need.received_at)]
        return float(sum(requests for requests, _ in older)), sum(tokens for _, tokens in older)

    def _change(self, tenant: str, second: int, requests: int, tokens: float) -> None:
        sums = self._sums.setdefault(tenant, {})
        before = sums.get(second, (0, 0.0))
        after = before[0] + requests, before[1] + tokens
        if after[0] > 0:
            sums[second] = after
        else:
            del sums[second]
            if not sums:
                del self._sums[tenant]
