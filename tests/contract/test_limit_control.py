"""What operators see of the limits, and do to them."""

from tests.support.databases import OpenWorker
from worker.adapters.database.opening import open_limits
from worker.domain.bucket import Draw, Size
from worker.domain.quota import Exchange, MeterOrder, Order


def an_order(units: float = 0.0, *, close: float = 0.0) -> Order:
    """Return an order of a worker with a line."""
    tokens = MeterOrder(limit=6000, draw=Draw(units=units))
    return Order(
        account="main",
        name="m",
        tokens=tokens,
        close_seconds=close,
        close_reason="rate_limit_exceeded",
        waiting=3,
        running=2,
        reserved=500,
    )


async def test_what_is_shown(open_worker: OpenWorker) -> None:
    """Limit, level, what runs and waits over all workers, and when a new request could start."""
    async with open_worker() as one, open_worker() as other:
        size = Size(6000)
        await one.quota.exchange(Exchange(orders=[an_order(1000 + size.burst)]))
        await other.quota.exchange(Exchange(orders=[an_order()]))
        ((row,), accounts) = await one.queries.limits()
        assert (row.account, row.name, row.tokens_limit, row.requests_limit) == ("main", "m", 6000, None)
        assert (row.waiting, row.running, row.reserved, row.learned_from) == (6, 4, 1000, "settings")
        assert row.tokens_level is not None
        assert -1000 <= row.tokens_level <= -800
        assert 800 / size.rate <= row.wait_seconds <= 1000 / size.rate
        assert row.concerns("m")
        assert not row.concerns("n")
        assert accounts == []


async def test_pausing_reaches_every_worker(open_worker: OpenWorker, migrated_url: str) -> None:
    """With the next exchange; resuming opens what a 429 has closed, too."""
    async with open_worker() as worker, open_limits(migrated_url) as control:
        await worker.quota.exchange(Exchange(orders=[an_order(close=600)]))
        assert await control.set_paused("m", None, paused=True) == [("main", "m")]
        grant = (await worker.quota.exchange(Exchange(orders=[an_order()]))).grants[0]
        assert grant.paused
        assert grant.closed_seconds > 500
        await control.set_paused("m", "main", paused=False)
        grant = (await worker.quota.exchange(Exchange(orders=[an_order()]))).grants[0]
        assert not grant.paused
        assert grant.closed_seconds <= 0


async def test_what_is_not_in_use_yet_can_be_paused(open_worker: OpenWorker, migrated_url: str) -> None:
    """A model may be paused before its first job comes; what does not exist cannot be resumed."""
    async with open_limits(migrated_url) as control, open_worker() as worker:
        assert await control.set_paused("new", None, paused=False) == []
        assert await control.set_paused("new", None, paused=True) == [("default", "new")]
        grant = (await worker.quota.exchange(Exchange(orders=[Order(account="default", name="new")]))).grants[
            0
        ]
        assert grant.paused


async def test_closed_credentials_are_shown(open_worker: OpenWorker) -> None:
    """With the reason and the next try."""
    async with open_worker() as worker:
        await worker.quota.exchange(Exchange(closed={"main": (60.0, "invalid_api_key")}))
        _, (closed,) = await worker.queries.limits()
        assert (closed.account, closed.closed_for) == ("main", "invalid_api_key")
        assert 55 < closed.closed_seconds <= 60
