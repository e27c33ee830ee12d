"""The limiter: every worker on the same database obeys the same buckets."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from typing_extensions import override

from worker.core.account_gates import AccountGates
from worker.core.gate import Gate
from worker.core.limits import LimitBook, Limiter, Need, Permit, PostponedError, Share
from worker.core.line import Line, Waiter
from worker.core.permit import GatePermit
from worker.core.samples import Samples
from worker.core.talk import Talk
from worker.domain.attempt import Account
from worker.domain.retry import room_seconds
from worker.ports import Clock, Observer, QuotaStore

_LONG_WAIT: Final = 40.0
"""Seconds that a request may wait in the process while fewer than `places` do."""
_SHORT_CLOSED: Final = 5.0
_LONGEST_NAP: Final = 120.0
"""Nobody waits longer in a room before looking again: quota may have become free."""
_BACK_AFTER: Final = 2.0
"""Seconds that the way through a waiting room takes besides."""
_NEWS_SECONDS: Final = 1.0
_MOST_GATES: Final = 1000
_ROUNDS: Final = 3
_NO_SHARE: Final = Share()


class SharedLimiter(Limiter):
    """Keeps one gate for each limit and account. Use as `async with SharedLimiter.opened(...)`."""

    def __init__(
        self,
        book: LimitBook,
        store: QuotaStore,
        clock: Clock,
        observer: Observer,
        *,
        shares: Mapping[str, Share] | None = None,
        places: int = 64,
    ) -> None:
        self._book = book
        self._store = store
        self._clock = clock
        self._observer = observer
        self._shares = shares or {}
        self._places = places
        self._waiting = 0
        self._tenants: Counter[str] = Counter()
        self._gates: dict[tuple[str, str], Gate] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self.samples = Samples()
        self.accounts = AccountGates(store, clock, self._wake.set)
        self._talk = Talk(
            store,
            clock,
            observer,
            accounts=self.accounts,
            samples=self.samples,
            gates=lambda: list(self._gates.values()),
            heard=self._heard,
            wake=self._wake,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        book: LimitBook,
        store: QuotaStore,
        clock: Clock,
        observer: Observer,
        *,
        shares: Mapping[str, Share] | None = None,
        places: int = 64,
    ) -> AsyncIterator["SharedLimiter"]:
        """Open a limiter; `places` requests may wait longer in the process than their patience."""
        limiter = cls(book, store, clock, observer, shares=shares, places=places)
        talking = asyncio.create_task(limiter._talk.go_on(), name="limits")
        try:
            yield limiter
        finally:
            limiter.send_everybody_away()
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)

    # ------------------------------------------------------------ the port

    @override
    async def try_admit(self, need: Need) -> Permit | None:
        gate, tokens = self._gate(need.account, need.model), self.samples.tokens(need)
        gate.check_size(tokens)
        if gate.line or self.accounts.closed(need.account.name) or not self._may(need.key.tenant):
            return None
        permit = self._in_hand(gate, need, tokens)
        if gate.wants(self._clock.monotonic()):
            self._wake.set()
        return permit

    def _in_hand(self, gate: Gate, need: Need, tokens: float) -> Permit | None:
        now = self._clock.monotonic()
        expected = gate.expected(now)
        if not gate.take_in_hand(tokens, now):
            return None
        gate.begin(need.key.tenant, tokens)
        return self._permit(gate, need, tokens, expected)

    @override
    async def admit(self, need: Need, patience: float) -> Permit:
        if self._stopping:
            raise PostponedError(0, "worker stopping")
        probe = await self.accounts.pass_through(need.account.name)
        permit = await self.try_admit(need)
        if permit is not None:
            return permit
        gate, tokens = self._gate(need.account, need.model), self.samples.tokens(need)
        if gate.is_closed(self._clock.monotonic()):
            await self._look_again(gate)
        seconds = self._estimate(gate, need, tokens)
        patient = _LONG_WAIT if self._waiting < self._places else patience
        if seconds > patient:
            raise self._postponed(gate, need, tokens, seconds)
        return await self._wait(gate, need, tokens, max(2 * seconds, patience), probe=probe)

    @override
    def close_bucket(self, account: Account, model: str, seconds: float, reason: str) -> None:
        gate = self._gate(account, model)
        gate.close(self._clock.monotonic(), seconds, reason)
        self._clear_long_closed(gate)
        self._wake.set()

    @override
    def close_account(self, account: Account, seconds: float, reason: str) -> None:
        self.accounts.close(account.name, seconds, reason)
        self._clear_closed_accounts()

    def send_everybody_away(self) -> None:
        """Postpone all who wait, and all who come: the process is stopping."""
        self._stopping = True
        for gate in self._gates.values():
            self._dismiss(gate, lambda _: PostponedError(0, "worker stopping"))

    # ------------------------------------------------------------ waiting

    async def _wait(self, gate: Gate, need: Need, tokens: float, seconds: float, *, probe: bool) -> Permit:
        waiter = Waiter(
            need=need,
            tokens=tokens,
            cost=gate.cost(tokens),
            future=asyncio.get_running_loop().create_future(),
            probe=probe,
        )
        gate.line.push(waiter)
        self._waiting += 1
        self._move(gate)
        try:
            for _ in range(_ROUNDS):
                await asyncio.wait({waiter.future}, timeout=seconds)
                if waiter.future.done() or self._is_far(gate, waiter, seconds):
                    break
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._permit(gate, need, tokens, None).cancel()
            raise
        finally:
            self._waiting -= 1
            gate.leave(waiter) if not waiter.future.done() else None
        if waiter.future.cancelled():
            raise self._postponed(gate, need, tokens, self._estimate(gate, need, tokens))
        waiter.future.result()
        return self._permit(gate, need, tokens, waiter.expected)

    def _is_far(self, gate: Gate, waiter: Waiter, patience: float) -> bool:
        """Whether one whose wait was underestimated had better leave the process."""
        return waiter not in gate.drawn and self._estimate(gate, waiter.need, waiter.tokens) > patience

    def _permit(
        self, gate: Gate, need: Need, tokens: float, expected: tuple[float, float] | None
    ) -> GatePermit:
        return GatePermit(
            gate=gate,
            need=need,
            tokens=tokens,
            expected=expected,
            admitted_at=self._clock.monotonic(),
            samples=self.samples,
            accounts=self.accounts,
            ended=self._ended,
        )

    def _ended(self, permit: GatePermit) -> None:
        """Make room for the next one."""
        self._tenants[permit.need.key.tenant] -= 1
        if not self._tenants[permit.need.key.tenant]:
            del self._tenants[permit.need.key.tenant]
        self._move(permit.gate)
        share = self._shares.get(permit.need.key.tenant)
        if share is not None and share.max_concurrency is not None:
            for gate in self._gates.values():
                self._move(gate)

    def _move(self, gate: Gate) -> None:
        if not gate.line:
            return
        now = self._clock.monotonic()
        gate.serve(now)
        if gate.wants(now):
            self._wake.set()

    def _begun(self, tenant: str) -> None:
        self._tenants[tenant] += 1

    def _may(self, tenant: str) -> bool:
        most = self._shares.get(tenant, _NO_SHARE).max_concurrency
        if most is None:
            return True
        drawn = (waiter.need.key.tenant for gate in self._gates.values() for waiter in gate.drawn)
        return self._tenants[tenant] + sum(one == tenant for one in drawn) < most

    def _estimate(self, gate: Gate, need: Need, tokens: float) -> float:
        now = self._clock.monotonic()
        gate.parked.expire(now)
        return gate.wait(gate.line.ahead(need, gate.parked), tokens, now)

    def _postponed(self, gate: Gate, need: Need, tokens: float, seconds: float) -> PostponedError:
        """Send a request to a waiting room for about half its wait, so that it is in line in time."""
        now = self._clock.monotonic()
        closed = gate.is_closed(now)
        nap = float(room_seconds(min(_LONGEST_NAP, seconds if closed else seconds / 2)))
        gate.parked.add(need, tokens, now + nap + _BACK_AFTER)
        why = "paused" if gate.paused else gate.closed_for if closed else "its turn"
        return PostponedError(nap, f"limit of {gate.name}: {why}, in about {seconds:.0f} s")

    def _dismiss(self, gate: Gate, error: Callable[[Waiter], PostponedError], *, all_: bool = True) -> None:
        for waiter in [*gate.line, *gate.drawn]:
            if not waiter.future.done() and (all_ or not waiter.probe):
                waiter.future.set_exception(error(waiter))
                if waiter in gate.drawn:
                    gate.leave(waiter)

    def _heard(self, gate: Gate) -> None:
        """Act on what the others said about a gate."""
        self._clear_closed_accounts()
        self._clear_long_closed(gate)

    def _clear_long_closed(self, gate: Gate) -> None:
        """Send away who waits for a gate that stays closed: other models' jobs need the places."""
        now = self._clock.monotonic()
        if gate.line and (gate.paused or gate.closed_until - now > _SHORT_CLOSED):
            seconds = gate.wait((0.0, 0.0), 1.0, now)
            self._dismiss(gate, lambda waiter: self._postponed(gate, waiter.need, waiter.tokens, seconds))

    def _clear_closed_accounts(self) -> None:
        """Send away who waits for closed credentials, but for the one that tries them."""
        for gate in self._gates.values():
            if gate.line and self.accounts.closed(gate.account):
                self._dismiss(
                    gate, lambda waiter: self.accounts.postponed(waiter.need.account.name), all_=False
                )

    async def _look_again(self, gate: Gate) -> None:
        """Wait for fresh news of a closed gate: it may have been opened meanwhile."""
        if not gate.wants(self._clock.monotonic()):
            return
        await self._talk.next_answer(_NEWS_SECONDS)

    def _gate(self, account: Account, model: str) -> Gate:
        name, limit = self._book.find(model)
        gate = self._gates.get((account.name, name))
        if gate is None:
            self._forget_idle_gates()
            gate = Gate(account.name, name, limit, Line(self._weight), self._may, self._begun)
            self._gates[account.name, name] = gate
        return gate

    def _forget_idle_gates(self) -> None:
        """Keep memory flat: producers choose the names of models."""
        if len(self._gates) >= _MOST_GATES:
            self._gates = {name: gate for name, gate in self._gates.items() if gate.busy}

    def _weight(self, tenant: str) -> float:
        return self._shares.get(tenant, _NO_SHARE).weight
