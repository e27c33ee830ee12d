"""The shared limits: the database computes what the arithmetic says, whichever worker asks."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.support.bucket import Bucket, Shutter
from tests.support.databases import OpenWorker, execute, rows
from worker.adapters.database.opening import Database
from worker.domain.bucket import GENTLE_SECONDS, Draw, Size, starts
from worker.domain.quota import Exchange, Exchanged, Glance, MeterOrder, Order, Sample

SIZE = Size(6000)
PATIENCE = 2.0
"""Seconds that a few statements may take on a busy machine."""


def an_order(
    units: float = 0.0,
    *,
    account: str = "main",
    name: str = "m",
    told: float | None = None,
    unused: float = 0.0,
    **closing: Any,
) -> Order:
    """Return an order for tokens, of 100 a second."""
    meter = MeterOrder(limit=SIZE.limit, told=told, draw=Draw(units=units, unused=unused))
    return Order(account=account, name=name, tokens=meter, **closing)


async def draw(database: Database, *orders: Order) -> Exchanged:
    """Exchange nothing but orders."""
    return await database.quota.exchange(Exchange(orders=orders))


async def let_pass(url: str, seconds: float) -> None:
    """Let the database's clock go on, or jump: it is all the same whether that or the times change."""
    times = ", ".join(
        f"{name} = {name} - {seconds}" for name in ("updated_at", "closed_until", "gentle_until")
    )
    await execute(url, f"UPDATE buckets SET {times}")  # noqa: S608 (no foreign text)


async def drawn_at(url: str) -> float:
    """Return when the bucket was drawn from, by the database's clock."""
    return float((await rows(url, "SELECT updated_at FROM buckets"))[0][0])


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

    async def test_a_look_tells_how_it_stands(self, open_worker: OpenWorker, migrated_url: str) -> None:
        """The same news from another worker counts once; a look draws nothing and makes no bucket."""
        async with open_worker() as one, open_worker() as other:
            assert await other.quota.look("main", "m") == Glance()
            for after in (0, 0, 1):
                close = Order(account="main", name="m", close_seconds=1.0, close_after=after)
                await draw(one, close)
            assert await other.quota.look("main", "m") == Glance(closings=2)
            assert await other.quota.look("main", "other") == Glance()
            await execute(migrated_url, "UPDATE buckets SET paused = 1")
            assert await other.quota.look("main", "m") == Glance(closings=2, paused=True)

    async def test_a_refusal_is_followed_by_a_trickle(self, database: Database, migrated_url: str) -> None:
        """Levels and corrections are those of the arithmetic, from a refusal to the full speed."""
        await draw(database, an_order())
        now = await drawn_at(migrated_url)
        bucket, shutter, skipped = Bucket(SIZE.burst, now), Shutter(), 0.0
        for passed, units, refused in (
            (0.0, 80.0, False),
            (1.0, 20.0, True),
            (0.1, 5.0, False),
            (2.0, 1.0, False),
            (4.0, 30.0, False),
            (0.5, 0.0, True),
            (3.0, 200.0, False),
            (30.0, 0.0, False),
        ):
            await let_pass(migrated_url, passed)
            skipped += passed
            order = an_order(
                units, close_seconds=0.3 if refused else 0.0, close_after=shutter.closings if refused else -1
            )
            grant = (await draw(database, order)).grants[0]
            now = await drawn_at(migrated_url) + skipped
            bucket = bucket.drawn(SIZE, now, Draw(), shutter.opening(bucket.at))
            if refused:
                bucket, shutter = bucket.closed(), shutter.refused(now, 0.3, after=shutter.closings)
            opening = shutter.opening(now)
            assert grant.tokens.level == pytest.approx(bucket.level, abs=0.5)
            assert grant.tokens.drift == pytest.approx(bucket.drift, abs=0.5)
            assert grant.closed_seconds == pytest.approx(opening.closed, abs=0.01) or not shutter.closings
            assert grant.gentle_seconds == pytest.approx(opening.gentle, abs=0.01) or not shutter.closings
            assert grant.closings == shutter.closings
            bucket = replace(bucket, level=bucket.level - units)

    async def test_what_is_given_back_does_not_go_out_in_one_burst(self, database: Database) -> None:
        """Workers put back what was drawn for those who may not start; it waits for the trickle too."""
        await draw(database, an_order(20, close_seconds=0.3, close_after=0))
        assert (await draw(database, an_order(unused=500))).grants[0].tokens.level <= 0

    async def test_two_workers_tell_of_one_event(self, open_worker: OpenWorker) -> None:
        """Neither that, nor a request that was under way, makes the trickle longer; a new refusal does."""
        async with open_worker() as one, open_worker() as other:
            first = (await draw(one, an_order(close_seconds=0.3, close_after=0))).grants[0]
            same = (await draw(other, an_order(close_seconds=0.3, close_after=0))).grants[0]
            late = (await draw(other, an_order(close_seconds=0.3, close_after=-1))).grants[0]
            assert first.closings == same.closings == late.closings == 1
            assert late.gentle_seconds < GENTLE_SECONDS + 1
            again = (await draw(one, an_order(close_seconds=0.3, close_after=1))).grants[0]
            assert again.closings == 2
            assert again.gentle_seconds > 2 * GENTLE_SECONDS

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


class TestClock:
    """The database's clock may jump: no more than a chunk is lost or comes early."""

    async def test_forward(self, database: Database, migrated_url: str) -> None:
        """Debts are forgiven, and no more than the burst is there at once."""
        await draw(database, an_order(1000, close_seconds=600, close_after=0))
        await let_pass(migrated_url, 3600)
        grant = (await draw(database, an_order())).grants[0]
        assert grant.tokens.level == SIZE.burst
        assert grant.closed_seconds < 0

    async def test_backward(self, database: Database, migrated_url: str) -> None:
        """Nothing is added, nothing is taken; the bucket refills from there on."""
        await draw(database, an_order(1000))
        await let_pass(migrated_url, -3600)
        assert await level(database) == pytest.approx(SIZE.burst - 1000, abs=SIZE.rate * PATIENCE)
        await let_pass(migrated_url, 2)
        left = SIZE.burst - 1000 + 2 * SIZE.rate
        assert await level(database) == pytest.approx(left, abs=SIZE.rate * PATIENCE)

    async def test_backward_while_closed(self, database: Database, migrated_url: str) -> None:
        """It opens when it would have opened, not an hour later."""
        await draw(database, an_order(close_seconds=60, close_after=0))
        await let_pass(migrated_url, -3600)
        grant = (await draw(database, an_order())).grants[0]
        assert grant.closed_seconds == pytest.approx(60, abs=PATIENCE)
        assert grant.gentle_seconds == pytest.approx(60 + GENTLE_SECONDS, abs=PATIENCE)

    async def test_backward_with_a_dead_worker(self, open_worker: OpenWorker, migrated_url: str) -> None:
        """Who spoke at a time that is yet to come does not count as waiting until then."""
        async with open_worker() as one, open_worker() as other:
            await draw(one, Order(account="main", name="m", waiting=3))
            await execute(migrated_url, "UPDATE bucket_users SET seen_at = seen_at + 3600")
            assert (await draw(other, Order(account="main", name="m", waiting=1))).grants[0].others == 0


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
