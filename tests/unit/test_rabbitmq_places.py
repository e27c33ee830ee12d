"""How many jobs are at work, and how many are claimed ahead, without a broker."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.broker import HastyClock, Told
from worker.adapters.rabbitmq.fuse import BROKEN_IN_A_ROW, Fuse
from worker.adapters.rabbitmq.places import Lead, Places, Stay
from worker.ports import Settlement

START = 1000.0


def places_of(limit: int) -> Places:
    """Make places where time stands still, so that nobody is claimed ahead."""
    return Places(limit, monotonic=lambda: START, on_room=lambda: None)


def comer(places: Places) -> Stay:
    """Return one whose job is about to be claimed."""
    stay = Stay(places)
    stay.begin()
    return stay


async def turns(count: int = 3) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_comes_first_enters_first() -> None:
    """Each place that becomes free goes to whoever was claimed first."""
    places, entered = places_of(1), list[int]()
    first = comer(places)
    await first.enter()

    async def come(number: int) -> None:
        await comer(places).enter()
        entered.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(3)]
    await turns()
    assert entered == []
    for _ in range(3):
        places.leave()
        await turns()
    assert entered == [0, 1, 2]
    await asyncio.gather(*tasks)


async def test_a_place_that_is_handed_over_is_taken() -> None:
    """Who comes before the next one has started finds no room."""
    places = places_of(1)
    first, second, third = comer(places), comer(places), comer(places)
    await first.enter()
    waiting = asyncio.create_task(second.enter())
    await turns()
    first.leave()
    late = asyncio.create_task(third.enter())
    await turns()
    assert (waiting.done(), late.done(), places.inside) == (True, False, 1)
    second.leave()
    await late


async def test_one_takes_one_place_however_often_it_enters_or_leaves() -> None:
    """Nor is there anything to give back for one that never entered."""
    places = places_of(2)
    one, never = comer(places), comer(places)
    await one.enter()
    await one.enter()
    assert (places.inside, places.begun) == (1, 2)
    for stay in (one, never, one, never):
        stay.leave()
    assert (places.inside, places.begun) == (0, 0)
    await one.enter()
    assert (places.inside, places.begun) == (1, 1)


async def test_one_that_steps_back_still_counts() -> None:
    """Another may work, but none is begun in its stead."""
    places = places_of(1)
    one = comer(places)
    await one.enter()
    one.step_back()
    assert (places.inside, places.has_room()) == (0, False)
    one.leave()
    assert places.has_room()


async def test_whoever_makes_room_says_so_once() -> None:
    """The next one is asked for when one has left, not when it steps back."""
    told: list[int] = []
    places = Places(1, monotonic=lambda: START, on_room=lambda: told.append(1))
    one = comer(places)
    await one.enter()
    one.step_back()
    assert told == []
    one.leave()
    one.leave()
    assert told == [1]


async def test_cancelled_when_its_turn_comes_it_passes_the_place_on() -> None:
    """A place that is given to a task in the very moment of its cancellation is not lost."""
    places = places_of(1)
    first, second, third = comer(places), comer(places), comer(places)
    await first.enter()
    waiting = [asyncio.create_task(stay.enter()) for stay in (second, third)]
    await turns()
    first.leave()
    waiting[0].cancel()
    await turns()
    assert (waiting[0].cancelled(), waiting[1].done(), places.inside) == (True, True, 1)


async def test_who_breaks_at_work_keeps_no_place_from_the_one_that_is_tried() -> None:
    """With the fuse blown one at a time is tried: it must find room, though others broke in their places."""
    places, through = places_of(1), list[Stay]()
    stays = [comer(places) for _ in range(BROKEN_IN_A_ROW)]
    *others, at_work = stays
    fuse = Fuse(where="test", clock=HastyClock(), observer=Told())

    async def handler(stay: Stay) -> Settlement:
        if stay is at_work:
            await stay.enter()
        if not fuse.blown or (stay is at_work and not through):
            raise ValueError
        await stay.enter()
        through.append(stay)
        return Settlement.ACK

    async def judge(stay: Stay) -> None:
        await fuse.judge(handler, stay, broken=stay.step_back)
        stay.leave()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for stay in (*others, at_work):
            group.create_task(judge(stay))
    assert through[0] in others
    assert (places.inside, places.begun) == (0, 0)


class Crowd:
    """Jobs that come, are cancelled and leave."""

    def __init__(self, limit: int) -> None:
        self.places = places_of(limit)
        self.inside = list[Stay]()
        self.tasks = list[asyncio.Task[None]]()
        self._limit = limit

    def come(self, _which: int) -> None:
        stay = comer(self.places)
        task = asyncio.create_task(self._enter(stay))
        task.add_done_callback(lambda task: stay.leave() if task.cancelled() else None)
        self.tasks.append(task)

    async def _enter(self, stay: Stay) -> None:
        await stay.enter()
        self.inside.append(stay)
        assert len(self.inside) <= self._limit

    def cancel(self, which: int) -> None:
        if self.tasks:
            self.tasks[which % len(self.tasks)].cancel()

    def leave(self, which: int) -> None:
        if self.inside:
            self.inside.pop(which % len(self.inside)).leave()

    async def empty(self) -> None:
        """Have all leave until nobody waits."""
        await turns()
        while self.inside:
            self.leave(0)
            await turns()


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel", "turn"]), st.integers(0, 5)), min_size=10),
    st.integers(1, 2),
)
def test_never_too_many_are_at_work_and_nobody_is_forgotten(steps: list[tuple[str, int]], limit: int) -> None:
    """Whatever the order of coming, leaving and being cancelled, also all in one turn of the loop."""

    async def go_through() -> None:
        crowd = Crowd(limit)
        for name, which in steps:
            if name == "turn":
                await asyncio.sleep(0)
            else:
                getattr(crowd, name)(which)
            assert crowd.places.inside <= limit
        await crowd.empty()
        assert all(task.done() for task in crowd.tasks)
        assert (crowd.places.inside, crowd.places.begun) == (0, 0)
        assert not [task for task in crowd.tasks if not task.cancelled() and task.exception()]

    asyncio.run(go_through())


def stream(lead: Lead, *, rate: float, claim: float, seconds: float = 2.0, start: float = START) -> float:
    """Let jobs come and go evenly; return the time of the last."""
    now = start
    for number in range(1, int(rate * seconds) + 1):
        now = start + number / rate
        lead.entered(claim)
        lead.left(now)
    return now


@pytest.mark.parametrize(
    ("rate", "claim", "most", "ahead"),
    [
        (400, 0.030, 64, 24),  # 200 ms, 80 places busy
        (1000, 0.100, 64, 64),
        (1280, 0.030, 64, 64),
        (128, 0.010, 64, 0),  # 2 s, 256 places
        (20, 0.010, 64, 0),
        (100, 0.025, 64, 5),
        (20, 0.010, 10 // 4, 0),
        (20, 0.300, 10 // 4, 0),  # on a machine that has other things to do
        (5, 3.0, 15 // 4, 0),
    ],
)
def test_as_many_are_claimed_ahead_as_will_be_needed(
    rate: float, claim: float, most: int, ahead: int
) -> None:
    """Twice those that leave in the time of a claim; none for few, and a quarter of the places at most."""
    lead = Lead(most, START)
    now = stream(lead, rate=rate, claim=claim)
    assert lead.ahead(now) == pytest.approx(ahead, abs=1 if 4 < ahead < most else 0)


def test_nobody_is_claimed_ahead_before_anything_is_known() -> None:
    """Nor while places are left by jobs of which none has entered."""
    lead = Lead(64, START)
    assert lead.ahead(START) == 0
    for number in range(300):
        lead.left(START + number / 300)
    assert lead.ahead(START + 1) == 0


def test_long_calls_that_end_together_are_no_rate() -> None:
    """All places are left at once every five seconds: between two waves nobody is claimed ahead."""
    lead, now = Lead(64, START), START
    for _ in range(4):
        now += 5
        for number in range(256):
            lead.entered(0.05)
            lead.left(now + number / 10_000)
            assert lead.ahead(now + number / 10_000) == 0


def test_after_a_silence_the_estimate_is_gone() -> None:
    """An upstream that stalls has no more claimed ahead, nor has the first job that leaves after it."""
    lead = Lead(64, START)
    now = stream(lead, rate=400, claim=0.03)
    assert lead.ahead(now) > 0
    assert lead.ahead(now + 1) == 0
    lead.entered(0.03)
    lead.left(now + 3)
    assert lead.ahead(now + 3) == 0
    now = stream(lead, rate=400, claim=0.03, start=now + 3)
    assert lead.ahead(now) > 0


def test_the_estimate_follows_the_calls() -> None:
    """Within two windows of long calls none is claimed ahead any more."""
    lead = Lead(64, START)
    now = stream(lead, rate=400, claim=0.03)
    now = stream(lead, rate=50, claim=0.01, start=now, seconds=1.2)
    assert lead.ahead(now) == 0


async def test_room_is_what_is_free_and_what_is_ahead() -> None:
    """With short calls more are begun than there are places, until nobody has left for a while."""
    now = START
    places = Places(16, monotonic=lambda: now, on_room=lambda: None)
    assert room(places) == 16
    for _ in range(60):
        jobs = [comer(places) for _ in range(8)]
        now += 0.02
        for job in jobs:
            await job.enter()
            job.leave()
    assert room(places) == 20
    now += 1
    assert room(places) == 16


def room(places: Places) -> int:
    """Return how many may begin."""
    begun = list[Stay]()
    while places.has_room():
        begun.append(comer(places))
    for stay in begun:
        stay.leave()
    return len(begun)
