"""The right to send one request, and what is learned from how it ends."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from worker.core.account_gates import AccountGates
from worker.core.gate import Gate
from worker.core.limits import Need, Permit
from worker.core.samples import Samples
from worker.domain.usage import Usage


@dataclass(eq=False, slots=True, kw_only=True)
class GatePermit(Permit):
    """A reservation at one gate. `expected` is what OpenAI should have left once it has counted it."""

    gate: Gate
    need: Need
    tokens: float
    expected: tuple[float, float] | None
    admitted_at: float
    due: float
    """When it was to start: it may have been held up before it was admitted."""
    samples: Samples
    accounts: AccountGates
    confirm: Callable[["GatePermit"], Awaitable[bool]]
    ended: Callable[["GatePermit"], None]
    open: bool = True

    @override
    async def holds(self) -> bool:
        return await self.confirm(self)

    @override
    def heard(self, headers: Mapping[str, str]) -> None:
        self.gate.heard(headers, self.expected)

    @override
    def answered(self, usage: Usage | None) -> None:
        if usage is not None:
            self.samples.settled(self.need, usage)
        self.gate.answered()
        self.accounts.succeeded(self.need.account.name, self.admitted_at)
        self._end(0.0, self.tokens - usage.total_tokens if usage is not None else 0.0)

    @override
    def settle(self, *, used: bool) -> None:
        self._end(0.0, 0.0 if used else self.tokens)

    @override
    def cancel(self) -> None:
        self._end(1.0, self.tokens)

    def _end(self, requests: float, tokens: float) -> None:
        if self.open:
            self.open = False
            self.gate.end(unused_requests=requests, unused_tokens=tokens, reserved=self.tokens)
            self.ended(self)
