"""Credentials that OpenAI does not accept: closed for all workers, tried once a minute."""

from datetime import UTC, datetime

import pytest

from tests.support.memory_quota import MemoryQuota
from worker.core.account_gates import AccountGates
from worker.core.limits import PostponedError
from worker.domain.quota import Exchange


class HandClock:
    """Moved by hand."""

    seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Workers:
    """Some workers' gates on one quota."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.quota = MemoryQuota(self.clock)
        self.gates = [AccountGates(self.quota, self.clock, lambda: None) for _ in range(4)]

    async def talk(self) -> None:
        """Let each exchange its news, twice, so that all know all."""
        for gate in self.gates * 2:
            closed, opened = gate.news()
            answer = await self.quota.exchange(Exchange(closed=closed, opened=opened))
            gate.take_in(answer.accounts or {})

    async def tried(self) -> int:
        """Let each worker ask five times; return how many requests go out."""
        sent = 0
        for gate in self.gates * 5:
            try:
                sent += await gate.pass_through("main")
            except PostponedError:
                continue
        return sent


@pytest.fixture
def workers() -> Workers:
    """Four workers."""
    return Workers()


async def test_open_accounts_let_everybody_pass(workers: Workers) -> None:
    """Nobody is a probe there."""
    assert await workers.gates[0].pass_through("main") is False


async def test_at_most_one_request_a_minute_over_all_workers(workers: Workers) -> None:
    """For ten minutes, however many jobs ask on however many workers."""
    workers.gates[0].close("main", 0, "insufficient_quota")
    await workers.talk()
    sent = 0
    for _ in range(600):
        workers.clock.seconds += 1
        await workers.talk()
        sent += await workers.tried()
    assert 9 <= sent <= 10


async def test_a_success_opens_for_all(workers: Workers) -> None:
    """The probe's answer ends the closing, on every worker."""
    workers.gates[0].close("main", 0, "insufficient_quota")
    await workers.talk()
    workers.clock.seconds += 61
    await workers.talk()
    assert await workers.tried() == 1
    workers.gates[1].succeeded("main", workers.clock.seconds)
    await workers.talk()
    assert not any(gate.closed("main") for gate in workers.gates)


async def test_an_answer_from_before_opens_nothing(workers: Workers) -> None:
    """A request that was admitted before the closing says nothing of what came after."""
    gate = workers.gates[0]
    before = workers.clock.seconds
    workers.clock.seconds += 1
    gate.close("main", 0, "invalid_api_key")
    gate.succeeded("main", before)
    assert gate.closed("main")


async def test_other_accounts_stay_open(workers: Workers) -> None:
    """Credentials are closed one by one."""
    workers.gates[0].close("main", 0, "invalid_api_key")
    await workers.talk()
    assert not any(gate.closed("other") for gate in workers.gates)
