"""The limiter of one process."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from typing_extensions import override

from worker.core.gate import Gate, Waiter
from worker.core.limits import LimitBook, Limiter, Need, Permit, PostponedError
from worker.domain.attempt import Account
from worker.ports import Clock

_PROBE_SECONDS = 60.0
"""Credentials that were refused are tried with one request a minute."""
_UNKNOWN_WAIT = 5.0
"""Seconds to come back after when nobody can tell how long the wait will be."""


@dataclass(eq=False, slots=True)
class GatePermit(Permit):
    """A reservation at one gate."""

    gate: Gate
    need: Need
    open: bool = True

    @override
    def settle(self, tokens: int) -> None:
        self._end(tokens)

    @override
    def cancel(self) -> None:
        self._end(None)

    def _end(self, used: int | None) -> None:
        if self.open:
            self.open = False
            self.gate.give_back(self.need, used=used)


class LocalLimiter(Limiter):
    """Keeps one gate for each limit and account. Use as `async with LocalLimiter.opened(...)`."""

    def __init__(self, book: LimitBook, clock: Clock) -> None:
        self._book = book
        self._clock = clock
        self._gates: dict[tuple[str, str], Gate] = {}
        self._accounts: dict[str, tuple[float, str]] = {}
        self._stopping = False

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, book: LimitBook, clock: Clock) -> AsyncIterator["LocalLimiter"]:
        """Open a limiter and end its pumps on leaving."""
        limiter = cls(book, clock)
        try:
            yield limiter
        finally:
            limiter.send_everybody_away()
            pumps = [gate.pump for gate in limiter._gates.values() if gate.pump is not None]
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    @override
    async def try_admit(self, need: Need) -> Permit | None:
        gate = self._gate(need.account, need.model)
        gate.check_size(need)
        if self._use_ticket(gate, need):
            return GatePermit(gate, need)
        if gate.has_line or gate.wait(need, self._clock.monotonic()):
            return None
        if gate.pacer is not None and not gate.pacer.has_capacity():
            return None
        if self._account_wait(need.account.name):
            return None
        if gate.pacer is not None:
            await gate.pacer.acquire()
        gate.take(need)
        return GatePermit(gate, need)

    @override
    async def admit(self, need: Need, patience: float) -> Permit:
        permit = await self.try_admit(need)
        if permit is not None:
            return permit
        gate = self._gate(need.account, need.model)
        waiter = self._place(gate, need, patience)
        future = waiter.future = asyncio.get_running_loop().create_future()
        self._keep_pumping(gate)
        try:
            await asyncio.wait({future}, timeout=patience)
        except asyncio.CancelledError:
            if future.done() and future.exception() is None:
                gate.give_back(need, used=None)
            gate.leave(waiter)
            raise
        if future.done():
            future.result()
            return GatePermit(gate, need)
        # The place in line stays: whoever waits outside must not start again from the end.
        waiter.future = None
        raise PostponedError(_UNKNOWN_WAIT, self._reason(gate))

    def _place(self, gate: Gate, need: Need, patience: float) -> Waiter:
        """Return the place in line, kept or new. Raises PostponedError where it is too far back."""
        closed_until, closed_for = self._accounts.get(need.account.name, (0.0, ""))
        if closed_until > self._clock.monotonic():
            raise PostponedError(closed_until - self._clock.monotonic(), f"credentials: {closed_for}")
        if self._stopping:
            raise PostponedError(0, "worker stopping")
        waiter, tokens_ahead, requests_ahead = gate.place(need)
        seconds = gate.wait(need, self._clock.monotonic(), tokens_ahead, requests_ahead)
        if patience < seconds < math.inf:
            self._keep_pumping(gate)
            raise PostponedError(seconds, self._reason(gate))
        return waiter

    def _reason(self, gate: Gate) -> str:
        if gate.closed_until > self._clock.monotonic():
            return f"limit of {gate.name}: {gate.closed_for}"
        return f"limit of {gate.name}"

    @override
    def close_bucket(self, account: Account, model: str, seconds: float, reason: str) -> None:
        gate = self._gate(account, model)
        until = self._clock.monotonic() + seconds
        if until > gate.closed_until:
            gate.closed_until, gate.closed_for = until, reason
            gate.changed.set()

    @override
    def close_account(self, account: Account, seconds: float, reason: str) -> None:
        self._accounts[account.name] = (self._clock.monotonic() + max(seconds, _PROBE_SECONDS), reason)

    @override
    def succeeded(self, account: Account) -> None:
        if self._accounts:
            self._accounts.pop(account.name, None)

    def send_everybody_away(self) -> None:
        """Postpone all who wait, and all who come: the process is stopping."""
        self._stopping = True
        for gate in self._gates.values():
            for waiter in list(gate.line):
                if waiter.future is not None and not waiter.future.done():
                    gate.leave(waiter)
                    waiter.future.set_exception(PostponedError(0, "worker stopping"))

    def _account_wait(self, account: str) -> float:
        """Return the wait for closed credentials; the first to come after it is the next probe."""
        if account not in self._accounts:
            return 0.0
        until, reason = self._accounts[account]
        now = self._clock.monotonic()
        if now < until:
            return until - now
        self._accounts[account] = (now + _PROBE_SECONDS, reason)
        return 0.0

    def _use_ticket(self, gate: Gate, need: Need) -> bool:
        ticket = gate.tickets.pop(need.key, None) if gate.tickets else None
        if ticket is None:
            return False
        reserved, _ = ticket
        if reserved.tokens == need.tokens and gate.closed_until <= self._clock.monotonic():
            return True
        gate.give_back(reserved, used=None)
        return False

    def _gate(self, account: Account, model: str) -> Gate:
        name, limit = self._book.find(model)
        gate = self._gates.get((account.name, name))
        if gate is None:
            gate = Gate(account.name, name, limit, self._clock.monotonic())
            self._gates[account.name, name] = gate
        return gate

    def _keep_pumping(self, gate: Gate) -> None:
        if gate.pump is None or gate.pump.done():
            gate.pump = asyncio.create_task(self._pump(gate), name=f"limit {gate.name}")

    async def _pump(self, gate: Gate) -> None:
        while gate.has_line:
            gate.changed.clear()
            seconds = gate.wait(gate.next_line()[0].need, self._clock.monotonic())
            if seconds == 0:
                seconds = self._account_wait(gate.account)
            if seconds > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if seconds == math.inf else seconds):
                        await gate.changed.wait()
                continue
            if gate.pacer is not None:
                await gate.pacer.acquire()
            if gate.has_line:
                gate.grant(self._clock.monotonic())
