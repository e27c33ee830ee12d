"""The limiter: every worker on the same database obeys the same buckets."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from typing import Final

from typing_extensions import override

from worker.core.account_gates import AccountGates
from worker.core.gate import Gate
from worker.core.gates import Gates
from worker.core.limits import LimitBook, Limiter, Need, Permit, PostponedError, Share
from worker.core.line import Waiter
from worker.core.permit import GatePermit
from worker.core.samples import Samples
from worker.core.talk import Talk
from worker.domain.attempt import Account
from worker.domain.events import Broken
from worker.domain.quota import Glance
from worker.domain.retry import room_seconds
from worker.ports import Clock, Observer, QuotaStore

_LONG_WAIT: Final = 40.0
"""Seconds that a request may wait in the process while fewer than `places` do."""
_BRIEF_WAIT: Final = 0.05
"""Seconds for which a request stands in line before its job is claimed, where there should be room for it."""
_SHORT_CLOSED: Final = 5.0
_LONGEST_NAP: Final = 120.0
"""Nobody waits longer in a room before looking again: quota may have become free."""
_BACK_AFTER: Final = 2.0
"""Seconds that the way through a waiting room takes besides."""
_NEWS_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.5
_HELD_UP_SECONDS: Final = 0.05
_SPREAD_SECONDS: Final = 0.15
"""After a recent refusal, requests that were held up for longer than that are spread over so many."""
_ROUNDS: Final = 3


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
        self._store = store
        self._looks: set[asyncio.Task[Glance]] = set()
        self._clock = clock
        self._observer = observer
        self._places = places
        self._waiting = 0
        self._gates = Gates(book, shares or {})
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
            gates=self._gates,
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
        gate, tokens = self._gates.find(need.account, need.model), self.samples.tokens(need)
        gate.supply.check_size(tokens)
        closed = self._stopping or self.accounts.closed(need.account.name)
        if closed or not self._gates.may(need.key.tenant):
            return None
        permit = await self._at_once(gate, need, tokens)
        if permit is None and gate.is_room(tokens, self._clock.monotonic()):
            permit = await self._wait_briefly(gate, need, tokens)
        return permit

    async def _at_once(self, gate: Gate, need: Need, tokens: float) -> Permit | None:
        """Admit from what is in hand."""
        now = self._clock.monotonic()
        if not gate.take_in_hand(tokens, now):
            return None
        gate.begin(need.key.tenant, tokens)
        permit = await self._paced(self._permit(gate, need, tokens, gate.expected(now)))
        if gate.wants(now):
            self._wake.set()
        return permit

    @override
    async def admit(self, need: Need, patience: float) -> Permit:
        probe = await self.accounts.pass_through(need.account.name)
        while True:
            if self._stopping:
                raise PostponedError(0, "worker stopping")
            permit = await self._stand_in_line(need, patience, probe=probe)
            if permit is not None:
                return permit

    async def _stand_in_line(self, need: Need, patience: float, *, probe: bool) -> Permit | None:
        gate, tokens = self._gates.find(need.account, need.model), self.samples.tokens(need)
        gate.supply.check_size(tokens)
        if (probe or not self.accounts.closed(need.account.name)) and self._gates.may(need.key.tenant):
            permit = await self._at_once(gate, need, tokens)
            if permit is not None:
                return permit
        if gate.door.is_closed(self._clock.monotonic()):
            await self._look_again(gate)
        seconds = self._estimate(gate, need, tokens)
        patient = _LONG_WAIT if self._waiting < self._places else patience
        if seconds > patient:
            raise self._postponed(gate, need, tokens, seconds)
        return await self._wait(gate, need, tokens, max(2 * seconds, patience), probe=probe)

    @override
    def close_bucket(self, account: Account, model: str, seconds: float, reason: str) -> None:
        gate = self._gates.find(account, model)
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
        for gate in self._gates:
            self._gates.dismiss(gate, lambda _: PostponedError(0, "worker stopping"))

    # ------------------------------------------------------------ waiting

    async def _wait(
        self, gate: Gate, need: Need, tokens: float, seconds: float, *, probe: bool
    ) -> Permit | None:
        """Stand in line until the wait proves too long, which raises; None: closed on the last step."""
        async with self._in_line(gate, need, tokens, probe=probe) as waiter:
            rounds = 0
            while rounds < _ROUNDS and not waiter.gone:
                await asyncio.wait({waiter.future}, timeout=seconds)
                # Whoever is drawn has had his tenant's turn, and is about to start.
                if waiter not in gate.drawn:
                    rounds = _ROUNDS if self._is_far(gate, waiter, seconds) else rounds + 1
        if waiter.future.cancelled():
            raise self._postponed(gate, need, tokens, self._estimate(gate, need, tokens))
        waiter.future.result()
        return await self._paced(self._permit(gate, need, tokens, waiter.expected, waiter.due))

    async def _wait_briefly(self, gate: Gate, need: Need, tokens: float) -> Permit | None:
        """Stand in line for no longer than it takes to ask the others; then only if the start is known."""
        async with self._in_line(gate, need, tokens, probe=False) as waiter:
            await asyncio.wait({waiter.future}, timeout=_BRIEF_WAIT)
            while waiter in gate.drawn:
                await asyncio.wait({waiter.future}, timeout=_NEWS_SECONDS)
        if waiter.future.cancelled() or waiter.future.exception() is not None:
            return None
        return await self._paced(self._permit(gate, need, tokens, waiter.expected, waiter.due))

    @contextlib.asynccontextmanager
    async def _in_line(self, gate: Gate, need: Need, tokens: float, *, probe: bool) -> AsyncIterator[Waiter]:
        waiter = Waiter(
            need=need,
            tokens=tokens,
            cost=gate.supply.cost(tokens),
            future=asyncio.get_running_loop().create_future(),
            probe=probe,
        )
        gate.line.push(waiter)
        self._waiting += 1
        self._move(gate)
        try:
            yield waiter
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._permit(gate, need, tokens, None).cancel()
            raise
        finally:
            self._waiting -= 1
            if not waiter.future.done():
                gate.leave(waiter)

    async def _paced(self, permit: GatePermit) -> Permit | None:
        """Let a request go at this process's own pace; None if its gate is closed when its turn comes."""
        try:
            await permit.gate.pacer.acquire()
        except asyncio.CancelledError:
            permit.cancel()
            raise
        if permit.gate.holds(permit.admitted_at, self._clock.monotonic()):
            return permit
        permit.cancel()
        return None

    def _is_far(self, gate: Gate, waiter: Waiter, patience: float) -> bool:
        """Whether one whose wait was underestimated had better leave the process."""
        return self._estimate(gate, waiter.need, waiter.tokens) > patience

    def _permit(
        self,
        gate: Gate,
        need: Need,
        tokens: float,
        expected: tuple[float, float] | None,
        due: float = 0.0,
    ) -> GatePermit:
        now = self._clock.monotonic()
        return GatePermit(
            gate=gate,
            need=need,
            tokens=tokens,
            expected=expected,
            admitted_at=now,
            due=due or now,
            samples=self.samples,
            accounts=self.accounts,
            confirm=self._confirm,
            ended=self._ended,
        )

    async def _confirm(self, permit: GatePermit) -> bool:
        """Whether a permit holds to the last; where the news is old, look at the others' once more."""
        gate, now = permit.gate, self._clock.monotonic()
        if gate.holds(permit.admitted_at, now) and gate.must_look(now):
            if gate.is_wary(now) and now - permit.due > _HELD_UP_SECONDS:
                # What held it up may have held up the other workers too: else all would leave together.
                await self._clock.sleep(random.uniform(0, _SPREAD_SECONDS))  # noqa: S311 no secret
            await self._look(gate)
        return gate.holds(permit.admitted_at, self._clock.monotonic())

    async def _look(self, gate: Gate) -> None:
        async with gate.looking:
            now = self._clock.monotonic()
            if not gate.must_look(now):
                return  # somebody has just looked
            look = asyncio.create_task(self._store.look(gate.account, gate.name))
            # Left to itself when it takes too long: a connection that hangs may hang on being closed, too.
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
            done, _ = await asyncio.wait({look}, timeout=_LOOK_SECONDS)
            if not done:
                look.cancel()
            error = look.exception() if done else TimeoutError()
            if error is not None:
                gate.look_in_vain(self._clock.monotonic())
                self._observer(Broken(key=None, where="limits", error=error))
                return
            gate.look(look.result(), now, self._clock.monotonic())
            if gate.door.behind:
                self._wake.set()

    def _ended(self, permit: GatePermit) -> None:
        """Make room for the next one."""
        for gate in self._gates.ended(permit.need.key.tenant, permit.gate):
            self._move(gate)

    def _move(self, gate: Gate) -> None:
        if not gate.line:
            return
        now = self._clock.monotonic()
        gate.serve(now)
        # While nobody was in line the talk did not count on it: it may sleep for long.
        if gate.wants(now) or len(gate.line) == 1:
            self._wake.set()

    def _estimate(self, gate: Gate, need: Need, tokens: float) -> float:
        now = self._clock.monotonic()
        gate.parked.expire(now)
        return gate.wait(gate.line.ahead(need, gate.parked), tokens, now)

    def _postponed(self, gate: Gate, need: Need, tokens: float, seconds: float) -> PostponedError:
        """Send a request to a waiting room for about half its wait, so that it is in line in time."""
        now = self._clock.monotonic()
        closed = gate.door.is_closed(now)
        nap = float(room_seconds(min(_LONGEST_NAP, seconds if closed else seconds / 2)))
        gate.parked.add(need, tokens, now + nap + _BACK_AFTER)
        why = "paused" if gate.door.paused else gate.door.closed_for if closed else "its turn"
        return PostponedError(nap, f"limit of {gate.name}: {why}, in about {seconds:.0f} s")

    def _heard(self, gate: Gate) -> None:
        """Act on what the others said about a gate."""
        self._clear_closed_accounts()
        self._clear_long_closed(gate)

    def _clear_long_closed(self, gate: Gate) -> None:
        """Send away who waits for a gate that stays closed: other models' jobs need the places."""
        now = self._clock.monotonic()
        if gate.line and (gate.door.paused or gate.door.closed_until - now > _SHORT_CLOSED):
            seconds = gate.wait((0.0, 0.0), 1.0, now)
            self._gates.dismiss(
                gate, lambda waiter: self._postponed(gate, waiter.need, waiter.tokens, seconds)
            )

    def _clear_closed_accounts(self) -> None:
        """Send away who waits for closed credentials, but for the one that tries them."""
        if self.accounts.all_open:
            return
        for gate in self._gates:
            self._gates.dismiss(gate, self._account_closed)

    def _account_closed(self, waiter: Waiter) -> PostponedError | None:
        account = waiter.need.account.name
        return (
            self.accounts.postponed(account) if self.accounts.closed(account) and not waiter.probe else None
        )

    async def _look_again(self, gate: Gate) -> None:
        """Wait for fresh news of a closed gate: it may have been opened meanwhile."""
        if not gate.wants(self._clock.monotonic()):
            return
        await self._talk.next_answer(_NEWS_SECONDS)
