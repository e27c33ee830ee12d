"""The shared limits: the database computes what the arithmetic says, whichever worker asks."""

import asyncio
import time

import pytest

from tests.support.bucket import Bucket
from tests.support.databases import OpenWorker, rows
from worker.adapters.database.opening import Database
from worker.domain.bucket import Draw, Size, starts
from worker.domain.quota import Exchange, Exchanged, MeterOrder, Order, Sample

SIZE = Size(6000)


def an_order(
    units: float = 0.0, *, account: str = "main", name: str = "m", told: float | None = None, **draw: float
) -> Order:
    """Return an order for tokens, of 100 a second."""
    meter = MeterOrder(limit=SIZE.limit, told=told, draw=Draw(units=units, **draw))
    return Order(account=account, name=name, tokens=meter)


async def draw(database: Database, *orders: Order) -> Exchanged:
    """Exchange nothing but orders."""
    return await database.quota.exchange(Exchange(orders=orders))


async def level(database: Database) -> float:
    """Return the tokens in the bucket."""
    return (await draw(database, an_order())).grants[0].tokens.level


class TestDraw:
    """Taking from a bucket."""

    async def test_a_new_bucket_is_full(self, database: Database) -> None:
        """As full as a bucket ever is: up to its burst."""
        grant = (await draw(database, an_order(10))).grants[0]
        assert grant.tokens.level == SIZE.burst
        assert grant.requests.level == 0

    async def test_a_draw_is_never_refused(self, database: Database) -> None:
        """It brings the level below zero, and the next worker in line is told so."""
        began = time.monotonic()
        await draw(database, an_order(1000))
        left = await level(database)
        refilled = (time.monotonic() - began) * SIZE.rate
        assert SIZE.burst - 1000 <= left <= SIZE.burst - 1000 + refilled + 1

    async def test_it_agrees_with_the_arithmetic(self, database: Database) -> None:
        """Refunds, corrections and what is kept back add up as in the bucket of the domain."""
        draws = [
            Draw(units=700),
            Draw(unused=90, units=3),
            Draw(drift=-200, weight=1),
            Draw(units=50, extra=25),
        ]
        began = time.monotonic()
        bucket = Bucket(SIZE.burst, 0.0)
        for one in draws:
            meter = MeterOrder(limit=SIZE.limit, draw=one)
            answer = await draw(database, Order(account="main", name="m", tokens=meter))
            bucket = bucket.drawn(SIZE, 0.0, one)
            grant = answer.grants[0].tokens
            refilled = (time.monotonic() - began) * SIZE.rate
            assert bucket.level + one.units <= grant.level <= bucket.level + one.units + refilled + 1
            assert grant.drift == pytest.approx(bucket.drift)

    async def test_buckets_do_not_touch(self, database: Database) -> None:
        """Another model, or other credentials, have a bucket of their own."""
        answer = await draw(
            database, an_order(900, name="z"), an_order(900, account="other"), an_order(1, name="a")
        )
        assert [grant.tokens.level for grant in answer.grants] == [SIZE.burst] * 3

    async def test_workers_share_one_bucket(self, open_worker: OpenWorker) -> None:
        """Four workers drawing at once never start more than the bucket allows."""
        async with open_worker() as one, open_worker() as two, open_worker() as three, open_worker() as four:
            began = time.monotonic()

            async def work(database: Database) -> list[float]:
                found = list[float]()
                for _ in range(10):
                    grant = (await draw(database, an_order(30))).grants[0]
                    now = time.monotonic() - began
                    found += [now + wait for wait in starts(SIZE, grant.tokens.level, [30])]
                return found

            each = await asyncio.gather(*map(work, (one, two, three, four)))
        found = sorted(start for starts_of_one in each for start in starts_of_one)
        assert len(found) == 40
        for first, begin in enumerate(found):
            for last, end in enumerate(found[first:], start=1):
                assert 30 * last <= SIZE.burst + 30 + SIZE.rate * (end - begin) + 1

    async def test_limits_that_openai_named_are_told_to_all(self, open_worker: OpenWorker) -> None:
        """A worker without any limit learns it from another's headers."""
        async with open_worker() as one, open_worker() as other:
            await draw(one, an_order(told=4000.0))
            assert (await draw(other, an_order())).grants[0].tokens.told == 4000

    async def test_others_in_line_are_counted(self, open_worker: OpenWorker) -> None:
        """Each worker knows among how many it shares."""
        async with open_worker() as one, open_worker() as other:
            await draw(one, Order(account="main", name="m", waiting=3))
            assert (await draw(other, Order(account="main", name="m", waiting=1))).grants[0].others == 1
            await draw(one, Order(account="main", name="m"))
            assert (await draw(other, Order(account="main", name="m"))).grants[0].others == 0


class TestClosing:
    """What nobody may use for a while."""

    async def test_a_closed_bucket_is_closed_for_all(self, open_worker: OpenWorker) -> None:
        """The longer time wins; the others learn time and reason with their next draw."""
        async with open_worker() as one, open_worker() as other:
            for seconds in (60.0, 5.0):
                close = Order(account="main", name="m", close_seconds=seconds, close_reason="rate_limit")
                await draw(one, close)
            grant = (await draw(other, an_order())).grants[0]
            assert 55 < grant.closed_seconds <= 60
            assert grant.closed_for == "rate_limit"

    async def test_closed_credentials_are_probed_by_one(
        self, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """However many ask, one gets the turn, and only once the time has come."""
        async with open_worker() as one, open_worker() as other:
            await one.quota.exchange(Exchange(closed={"main": (60.0, "invalid_api_key")}))
            told = (await other.quota.exchange(Exchange())).accounts
            assert told["main"][0] > 55
            assert told["main"][1] == "invalid_api_key"
            assert not await other.quota.probe("main")
            await one.quota.exchange(Exchange(closed={"main": (-1.0, "invalid_api_key")}))
            turns = await asyncio.gather(*(worker.quota.probe("main") for worker in (one, other) * 5))
            assert sum(turns) == 1
            await one.quota.exchange(Exchange(opened=frozenset({"main"})))
            assert (await other.quota.exchange(Exchange())).accounts == {}


class TestSamples:
    """What settled requests teach."""

    async def test_sums_of_all_workers(self, open_worker: OpenWorker) -> None:
        """A worker that has just started knows what others have seen."""
        async with open_worker() as one, open_worker() as other:
            await one.quota.exchange(Exchange(samples={"m": Sample(requests=2, used_input=50)}))
            found = (await other.quota.exchange(Exchange(samples={"m": Sample()}))).samples["m"]
            assert (found.requests, found.used_input) == (
                pytest.approx(2, rel=0.1),
                pytest.approx(50, rel=0.1),
            )


async def test_a_worker_that_ends_leaves_its_lines(open_worker: OpenWorker, migrated_url: str) -> None:
    """Nobody shares with the dead."""
    async with open_worker() as one:
        await draw(one, Order(account="main", name="m", waiting=3))
        assert len(await rows(migrated_url, "SELECT * FROM bucket_users")) == 1
    assert await rows(migrated_url, "SELECT * FROM bucket_users") == []
