"""Who is next at a gate, and what leaving the line costs."""

import asyncio
from itertools import count

from tests.support.loop_clock import LoopClock
from worker.core.limits import Need
from worker.core.line import Line, Parked, Waiter
from worker.domain.attempt import Account
from worker.domain.job import JobKey

WEIGHTS = {"heavy": 3.0}
NUMBERS = count()


def a_line() -> Line:
    """Return a line in which one tenant has three times the weight of others."""
    return Line(lambda tenant: WEIGHTS.get(tenant, 1.0))


def a_waiter(tenant: str = "t", *, high: bool = False) -> Waiter:
    """Return a request; each comes after the one before."""
    number = next(NUMBERS)
    need = Need(
        key=JobKey(tenant, str(number)),
        account=Account(),
        model="m",
        input_tokens=10,
        high=high,
        received_at=float(number),
    )
    return Waiter(need=need, tokens=10.0, cost=1.0, future=asyncio.get_running_loop().create_future())


def anybody(_: str) -> bool:
    """Let every tenant have another request."""
    return True


async def test_the_line_knows_its_length() -> None:
    """Whoever comes, is taken out, put back or gives up is counted once."""
    line, waiters = a_line(), [a_waiter(high=number == 1) for number in range(4)]
    for waiter in waiters:
        line.push(waiter)
    assert (len(line), line.tokens) == (4, 40.0)
    taken = line.pop(anybody)
    assert taken is waiters[1]
    line.leave(waiters[0])
    line.leave(waiters[0])
    line.leave(taken)
    assert (len(line), line.tokens) == (2, 20.0)
    assert set(line) == {waiters[2], waiters[3]}
    line.put_back(taken)
    assert [line.pop(anybody) for _ in range(4)] == [waiters[1], waiters[2], waiters[3], None]
    assert (len(line), line.tokens, bool(line)) == (0, 0.0, False)


async def test_a_turn_that_was_not_used_is_given_back() -> None:
    """Requests that are drawn and give up do not cost their tenant its share."""
    line, started = a_line(), list[str]()
    for _ in range(200):
        line.push(a_waiter("heavy"))
        line.push(a_waiter("light"))
    for number in range(100):
        waiter = line.pop(anybody)
        assert waiter is not None
        if waiter.need.key.tenant == "light" and number % 2:
            line.refund(waiter)
        else:
            started.append(waiter.need.key.tenant)
    assert abs(started.count("heavy") / started.count("light") / 3 - 1) < 0.1


async def test_nobody_is_ahead_of_himself() -> None:
    """A large request in line does not take itself for a reason to leave it."""
    line, waiters = a_line(), [a_waiter() for _ in range(3)]
    for waiter in waiters:
        line.push(waiter)
    assert [line.ahead(waiter.need, Parked()) for waiter in waiters] == [(0, 0), (1, 10), (2, 20)]


async def test_what_is_parked_counts_as_ahead() -> None:
    """A job that was sent to a waiting room comes before those that arrived later."""
    line, parked, now = a_line(), Parked(), LoopClock().monotonic()
    early, late = a_waiter().need, a_waiter().need
    parked.add(early, 10.0, now + 5)
    assert line.ahead(late, parked) == (1, 10.0)
    assert line.ahead(early, parked) == (0, 0.0)
    parked.expire(now + 6)
    assert line.ahead(late, parked) == (0.0, 0.0)
