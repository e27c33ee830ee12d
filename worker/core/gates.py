"""All gates of one process, and who may have one more request over all of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from worker.core.gate import Gate
from worker.core.limits import LimitBook, Share
from worker.core.line import Line, Waiter
from worker.domain.attempt import Account

_MOST: Final = 1000
_NO_SHARE: Final = Share()


class Gates:
    """One gate for each limit and each quota at OpenAI; made when it is first needed."""

    def __init__(self, book: LimitBook, shares: Mapping[str, Share]) -> None:
        self._book = book
        self._shares = shares
        self._running: Counter[str] = Counter()
        self._gates: dict[tuple[str, str], Gate] = {}
        self._by_model: dict[tuple[str, str], Gate] = {}

    def __iter__(self) -> Iterator[Gate]:
        return iter([*self._gates.values()])

    def find(self, account: Account, model: str) -> Gate:
        """Return the gate that a model's requests pass on an account."""
        gate = self._by_model.get((account.quota, model))
        return self._make(account.quota, model) if gate is None else gate

    def may(self, tenant: str) -> bool:
        """Whether a tenant's `max_concurrency` allows one more."""
        most = self._shares.get(tenant, _NO_SHARE).max_concurrency
        if most is None:
            return True
        drawn = (waiter.need.key.tenant for gate in self._gates.values() for waiter in gate.drawn)
        return self._running[tenant] + sum(one == tenant for one in drawn) < most

    def ended(self, tenant: str, gate: Gate) -> list[Gate]:
        """Note the end of a request; return the gates where somebody may go now."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        narrow = self._shares.get(tenant, _NO_SHARE).max_concurrency is not None
        return [one for one in (self if narrow else [gate]) if one.line]

    def dismiss(self, gate: Gate, error: Callable[[Waiter], Exception | None]) -> None:
        """Send those away who wait at a gate, each with an error; None lets one wait on."""
        for waiter in [*gate.line, *gate.drawn]:
            found = None if waiter.gone else error(waiter)
            if found is not None:
                waiter.future.set_exception(found)
                gate.leave(waiter)

    def _make(self, quota: str, model: str) -> Gate:
        if len(self._by_model) >= _MOST:  # producers choose the names of models
            self._gates = {name: gate for name, gate in self._gates.items() if gate.busy}
            self._by_model.clear()
        name, limit = self._book.find(model)
        gate = self._gates.get((quota, name))
        if gate is None:
            gate = Gate(quota, name, limit, Line(self._weight), self.may, self._begun)
            self._gates[quota, name] = gate
        self._by_model[quota, model] = gate
        return gate

    def _begun(self, tenant: str) -> None:
        self._running[tenant] += 1

    def _weight(self, tenant: str) -> float:
        return self._shares.get(tenant, _NO_SHARE).weight
