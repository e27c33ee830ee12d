"""What a refusal closes: for all workers, once for each event, and gently afterwards."""

import asyncio
from dataclasses import replace
from itertools import count

import pytest

from tests.support.bucket import Shutter
from tests.support.databases import Events
from tests.support.loop_clock import LoopClock
from tests.support.memory_quota import MemoryQuota
from worker.core.door import Door
from worker.core.gate import Gate
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Need, Permit
from worker.core.line import Line, Waiter
from worker.domain.attempt import Account
from worker.domain.bucket import GENTLE_SECONDS, LONGEST_GENTLE, OPEN, TRICKLE, Opening, Size, starts
from worker.domain.job import JobKey
from worker.domain.quota import Glance, Grant, MeterGrant

ACCOUNT = Account()
BOOK = LimitBook(
    default=Limit(),
    by_model={"m": Limit(requests_per_minute=1200), "slow": Limit(requests_per_minute=120)},
)
"""20 requests a second, and 2."""
NUMBERS = count()


def need(model: str = "m", account: Account = ACCOUNT) -> Need:
    """Build a need; each comes after the one before."""
    number = next(NUMBERS)
    return Need(
        key=JobKey("t", str(number)),
        account=account,
        model=model,
        input_tokens=1,
        received_at=float(number),
    )


def a_grant(closed: float = -1e9, gentle: float = -1e9, closings: int = 0) -> Grant:
    """Build the answer to an order."""
    return Grant(
        requests=MeterGrant(),
        tokens=MeterGrant(),
        closed_seconds=closed,
        gentle_seconds=gentle,
        closings=closings,
    )


def a_waiter(due: float) -> Waiter:
    """Build one whose start is known."""
    future = asyncio.get_running_loop().create_future()
    return Waiter(need=need("slow"), tokens=1.0, cost=1.0, future=future, due=due)


class TestDoor:
    """What one worker knows and tells."""

    def test_a_refusal_tells_what_was_known_when_it_was_sent(self) -> None:
        """So that the same event, told by two workers, is counted once."""
        door = Door()
        door.take_in(a_grant(closings=3), 0.0)
        door.begun()
        door.close(0.0, 1.0, "rate_limit_exceeded")
        assert door.take_news().after == 3

    def test_a_refusal_of_an_older_request_says_nothing_new(self) -> None:
        """It was under way when the gate was closed."""
        door = Door()
        door.begun()
        door.take_in(a_grant(closed=1.0, gentle=5.7, closings=1), 0.0)
        door.close(0.1, 1.0, "rate_limit_exceeded")
        assert door.take_news().after == -1

    def test_two_refusals_before_the_others_are_told(self) -> None:
        """The longer time is told, and the event is still a new one."""
        door = Door()
        door.begun()
        door.close(0.0, 1.0, "one")
        door.close(0.0, 3.0, "two")
        door.close(0.0, 2.0, "three")
        news = door.take_news()
        assert (news.seconds, news.reason, news.after) == (3.0, "two", 0)
        assert door.closed_until == 3.0

    def test_news_that_did_not_arrive_is_told_again(self) -> None:
        """An exchange may fail."""
        door = Door()
        door.close(0.0, 1.0, "rate_limit_exceeded")
        told = door.take_news()
        assert door.news is None
        door.take_back()
        assert door.take_news() == told

    def test_nothing_opens_before_the_others_have_heard(self) -> None:
        """Even if the server asks for a millisecond only."""
        door = Door()
        door.close(0.0, 0.001, "rate_limit_exceeded")
        assert door.is_closed(0.2)
        assert not door.is_closed(0.3)

    def test_a_look_closes_until_the_rest_is_asked_for(self) -> None:
        """It tells only that there was a refusal; the answer tells for how long."""
        door = Door()
        assert not door.look(Glance(closings=7), 0.0)  # the first answer tells what is closed
        door.take_in(a_grant(closings=7), 0.0)
        assert not door.look(Glance(closings=7), 1.0)
        assert door.look(Glance(closings=8), 2.0)
        assert (door.behind, door.is_closed(2.2), door.shut_at) == (True, True, 2.0)
        door.take_in(a_grant(closed=-0.1, gentle=4.7, closings=8), 2.1)
        assert (door.behind, door.is_closed(2.1), door.missed) == (False, False, False)

    def test_a_closing_that_is_over_already_is_noticed(self) -> None:
        """What was admitted before may not leave at the full speed all the same."""
        door = Door()
        door.take_in(a_grant(closings=7), 0.0)
        assert (door.missed, door.shut_at < 0) == (False, True)
        door.take_in(a_grant(closed=-0.1, gentle=4.6, closings=8), 1.0)
        assert (door.missed, door.shut_at, door.is_closed(1.0)) == (True, 1.0, False)
        door.take_in(a_grant(closed=-1.1, gentle=3.6, closings=8), 2.0)
        assert (door.missed, door.shut_at) == (False, 1.0)

    def test_an_answer_tells_how_the_buckets_refill(self) -> None:
        """A trickle at first; once that is over, as ever."""
        door = Door()
        assert door.take_in(a_grant(closed=-0.5, gentle=4.0), 0.0) == Opening(-0.5, 4.0)
        assert door.take_in(a_grant(closed=-9.0, gentle=-1.0), 9.0) is OPEN


class TestShutter:
    """How long the trickle lasts: the arithmetic that the database has to agree with."""

    def test_the_full_speed_comes_back_within_five_seconds(self) -> None:
        """Of what was asked for."""
        assert Shutter().refused(100.0, 0.3, after=0).opening(100.0).gentle == pytest.approx(5.0)

    def test_what_is_refused_at_once_again_waits_twice_as_long(self) -> None:
        """Up to a minute: the quota is far below what was tried."""
        shutter, found = Shutter(gentle_until=100.0), list[float]()
        for closings in range(6):
            now = shutter.gentle_until + (1.0 if closings else 10.0)
            shutter = shutter.refused(now, 0.3, after=closings)
            found.append(shutter.gentle_seconds)
        assert found == [GENTLE_SECONDS * 2**times for times in range(4)] + [LONGEST_GENTLE] * 2

    def test_a_quota_of_one_half_keeps_the_shortest_trickle(self) -> None:
        """Its stock lasts as long as it took to gather: the end of a storm is not missed."""
        shutter = Shutter()
        for closings in range(10):
            shutter = shutter.refused(shutter.gentle_until + 0.8 * GENTLE_SECONDS, 0.3, after=closings)
            assert shutter.gentle_seconds == GENTLE_SECONDS

    def test_a_long_trickle_is_short_again_after_a_long_enough_calm(self) -> None:
        """As long as it lasted itself."""
        shutter = Shutter(0.0, 0.0, 40.0, 7)
        assert shutter.refused(20.0, 0.3, after=7).gentle_seconds == 40.0
        assert shutter.refused(41.0, 0.3, after=7).gentle_seconds == GENTLE_SECONDS

    def test_the_same_event_counts_once(self) -> None:
        """However many workers tell it, and however soon it had opened."""
        shutter = Shutter().refused(100.0, 0.3, after=0)
        for _ in range(3):
            shutter = shutter.refused(100.4, 0.3, after=0)
        assert (shutter.closings, shutter.gentle_seconds) == (1, GENTLE_SECONDS)
        assert shutter.closed_until == 100.7


def test_while_it_trickles_one_request_tries() -> None:
    """Small requests start far apart at first, then at the rate."""
    size, opening = Size(600, 5), Opening(0.0, GENTLE_SECONDS)
    found = starts(size, 0.0, [1.0] * 20, opening)
    assert found[0] == pytest.approx(1 / (TRICKLE * size.rate))
    assert found[1] > GENTLE_SECONDS
    assert found[11] - found[1] == pytest.approx(10 / size.rate)


class TestLateStart:
    """A start that was drawn a while ago, for a worker that is not alone."""

    @pytest.fixture
    async def drawn(self) -> tuple[Gate, Waiter]:
        """Return a gate and a waiter whose start is known, and has come half a second later."""
        gate = Gate("default", "slow", BOOK.find("slow")[1], Line(_one), _anybody, _one)
        loop = asyncio.get_running_loop()
        waiter = Waiter(need=need("slow"), tokens=1.0, cost=1.0, future=loop.create_future())
        gate.line.push(waiter)
        gate.order(0.0)

        def later(_wait: float, waiter: Waiter) -> None:
            waiter.timer = loop.call_later(60, _one, "")

        gate.take_in(replace(a_grant(), others=1), 0.0, 0.0, later)
        assert not gate.come(waiter, 0.5)
        assert gate.wants(0.5)
        gate.order(0.5)
        return gate, waiter

    async def test_it_goes_once_nobody_was_refused(self, drawn: tuple[Gate, Waiter]) -> None:
        """The answer says that it is open."""
        gate, waiter = drawn
        gate.take_in(a_grant(), 0.5, 0.51, _never)
        assert waiter.future.done()
        assert gate.running == 1

    async def test_it_stands_in_line_again_if_somebody_was(self, drawn: tuple[Gate, Waiter]) -> None:
        """What was drawn for it goes back."""
        gate, waiter = drawn
        gate.take_in(a_grant(closed=1.0, gentle=5.7, closings=1), 0.5, 0.51, _never)
        assert not waiter.future.done()
        assert [*gate.line] == [waiter]
        assert not gate.drawn
        assert gate.order(1.6).requests.draw.unused == 1

    async def test_it_stands_in_line_again_even_if_that_is_over(self, drawn: tuple[Gate, Waiter]) -> None:
        """The news took longer than it was closed: the start was meant for the full speed."""
        gate, waiter = drawn
        gate.take_in(a_grant(closed=-0.1, gentle=4.6, closings=1), 0.5, 0.51, _never)
        assert not waiter.future.done()
        assert [*gate.line] == [waiter]

    async def test_it_goes_at_once_if_there_is_fresh_news(self, drawn: tuple[Gate, Waiter]) -> None:
        """An answer that has just come needs no other."""
        gate, waiter = drawn
        gate.take_in(a_grant(), 0.5, 0.5, _never)
        other = a_waiter(due=0.5)
        assert gate.come(other, 0.51)
        assert waiter.future.done()

    async def test_much_too_late_it_is_drawn_anew_once(self, drawn: tuple[Gate, Waiter]) -> None:
        """The process stood still: what was drawn is lost, as if it had gone in time."""
        gate, _ = drawn
        gate.take_in(a_grant(), 0.5, 0.51, _never)
        late = a_waiter(due=4.0)
        assert not gate.come(late, 5.0)
        assert [*gate.line] == [late]
        draw = gate.order(5.0).requests.draw
        assert (draw.units >= 1, draw.unused) == (True, 0)
        late.due = 4.0
        assert not gate.come(late, 5.0)
        assert gate.drawn.doubtful == [late]  # no news for so long: it only asks, as ever

    async def test_a_lone_worker_asks_nobody(self, drawn: tuple[Gate, Waiter]) -> None:
        """It has heard of every refusal itself."""
        gate, waiter = drawn
        gate.others = 0
        assert gate.come(waiter, 5.0)


def _one(_: str) -> float:
    return 1.0


def _anybody(_: str) -> bool:
    return True


def _never(wait: float, _waiter: Waiter) -> None:
    pytest.fail(f"nobody was to be drawn, but one starts in {wait} s")


async def test_the_speed_comes_back_slowly_for_all_workers() -> None:
    """Over all of them hardly anything goes for some seconds after a refusal, and nothing in one burst."""
    quota = MemoryQuota(LoopClock())
    quota.others = 1
    times: list[float] = []
    async with (
        SharedLimiter.opened(BOOK, quota, LoopClock(), Events()) as one,
        SharedLimiter.opened(BOOK, quota, LoopClock(), Events()) as two,
    ):
        for limiter in (one, two):
            await limiter.admit(need(), patience=5)
        one.close_bucket(ACCOUNT, "m", 0.3, "rate_limit_exceeded")
        closed_at = asyncio.get_running_loop().time()

        async def send(limiter: SharedLimiter) -> Permit:
            permit = await limiter.admit(need(), patience=30)
            times.append(asyncio.get_running_loop().time() - closed_at)
            return permit

        await asyncio.gather(*(send(limiter) for limiter in (one, two) for _ in range(20)))
    assert sum(at < GENTLE_SECONDS for at in times) <= 4
    assert times[0] > 1.0
    first_full = next(at for at in times if at > GENTLE_SECONDS + 0.3)
    assert first_full < 5.5
    assert times[-1] < 8.0


async def test_a_lone_request_waits_no_longer_than_it_is_closed() -> None:
    """Nobody else moves the line: whoever comes while it is closed has to set the clock for its opening."""
    async with SharedLimiter.opened(BOOK, MemoryQuota(LoopClock()), LoopClock(), Events()) as limiter:
        (await limiter.admit(need(), patience=5)).settle(used=False)
        limiter.close_bucket(ACCOUNT, "m", 0.3, "rate_limit_exceeded")
        async with asyncio.timeout(GENTLE_SECONDS):
            await limiter.admit(need(), patience=5)


async def test_keys_of_one_project_share_its_limits() -> None:
    """A quota belongs to a project or organization, not to a key; other projects have their own."""
    quota = MemoryQuota(LoopClock())
    ours = [Account(name=name, organization="org-1", project="proj-1") for name in ("one", "two")]
    theirs = Account(name="three", organization="org-1", project="proj-2")
    async with SharedLimiter.opened(BOOK, quota, LoopClock(), Events()) as limiter:
        limiter.close_bucket(ours[0], "m", 60, "rate_limit_exceeded")
        assert await limiter.try_admit(need(account=ours[1])) is None
        assert await limiter.try_admit(need(account=theirs)) is not None


async def test_closed_credentials_close_no_other_key_of_their_project() -> None:
    """A key that is refused says nothing about the next one."""
    quota = MemoryQuota(LoopClock())
    bad, good = (Account(name=name, project="proj-1") for name in ("bad", "good"))
    async with SharedLimiter.opened(BOOK, quota, LoopClock(), Events()) as limiter:
        limiter.close_account(bad, 60, "invalid_api_key")
        assert await limiter.try_admit(need(account=bad)) is None
        assert await limiter.try_admit(need(account=good)) is not None
