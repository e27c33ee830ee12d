"""The talk with the shared buckets: while anything waits or runs, and never otherwise."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from worker.core.account_gates import AccountGates
from worker.core.gate import Gate
from worker.core.line import Waiter
from worker.core.samples import Samples
from worker.domain.events import Broken
from worker.domain.quota import Exchange, Exchanged
from worker.ports import Clock, Observer, QuotaStore

_CENSUS_SECONDS: Final = 0.5
_TROUBLE_PAUSE: Final = 1.0
_POLL_SECONDS: Final = 1.0
_SHORTEST_PAUSE: Final = 0.005


class Talk:
    """One exchange at a time, for all gates that have a reason to."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        store: QuotaStore,
        clock: Clock,
        observer: Observer,
        *,
        accounts: AccountGates,
        samples: Samples,
        gates: Iterable[Gate],
        heard: Callable[[Gate], None],
        wake: asyncio.Event,
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._accounts = accounts
        self._samples = samples
        self._gates = gates
        self._heard = heard
        self._wake = wake
        self._census_at = -math.inf
        self._exchanged = asyncio.Event()

    async def next_answer(self, seconds: float) -> None:
        """Wait for the next answer, but no longer than so many seconds."""
        self._exchanged.clear()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exchanged.wait()

    async def go_on(self) -> None:
        """Talk until cancelled."""
        while True:
            self._wake.clear()
            try:
                pause = await self._round()
            except Exception as error:  # noqa: BLE001 - whatever it is, limits have to be kept and jobs go on
                self._observer(Broken(key=None, where="limits", error=error))
                pause = _TROUBLE_PAUSE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if pause == math.inf else pause):
                    await self._wake.wait()

    async def _round(self) -> float:
        """Run one exchange if there is a reason to; return the seconds until there may be one."""
        now = self._clock.monotonic()
        gates = [gate for gate in self._gates if gate.wants(now)]
        if gates or self._accounts.has_news:
            answer = await self._exchange(gates, now)
            asked_at, now = now, self._clock.monotonic()
            if answer.accounts is not None:
                self._accounts.take_in(answer.accounts)
            self._samples.take_in(answer.samples)
            for gate, grant in zip(gates, answer.grants, strict=True):
                gate.take_in(grant, asked_at, now, partial(self._start_later, gate))
                self._heard(gate)
                gate.serve(now)
            self._exchanged.set()
        return self._next_round(now)

    async def _exchange(self, gates: list[Gate], now: float) -> Exchanged:
        census = self._accounts.has_news or now - self._census_at >= _CENSUS_SECONDS
        self._census_at = now if census else self._census_at
        closed, opened = self._accounts.news()
        exchange = Exchange(
            orders=[gate.order(now) for gate in gates],
            census=census,
            closed=closed,
            opened=opened,
            samples=self._samples.news(now),
        )
        try:
            return await self._store.exchange(exchange)
        except BaseException:
            for gate in gates:
                gate.take_back()
            raise

    def _next_round(self, now: float) -> float:
        soonest = math.inf
        for gate in self._gates:
            opens = gate.opens(now)
            if opens is not None:
                soonest = min(soonest, max(opens - now, _SHORTEST_PAUSE))
            if gate.running or gate.line or gate.drawn:
                soonest = min(soonest, _POLL_SECONDS)
        return soonest

    def _start_later(self, gate: Gate, wait: float, waiter: Waiter) -> None:
        if wait <= 0:
            gate.start(waiter)
        else:
            waiter.timer = asyncio.get_running_loop().call_later(wait, self._come, gate, waiter)

    def _come(self, gate: Gate, waiter: Waiter) -> None:
        if not gate.come(waiter, self._clock.monotonic()):
            self._wake.set()
