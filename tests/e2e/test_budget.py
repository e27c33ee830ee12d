"""A tenant's budget, with real workers that are killed."""

from pathlib import Path

import pytest

from tests.support.process import StartWorker
from tests.support.producer import completion, producing
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream

pytestmark = pytest.mark.slow

LEASE = 2


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a file that gives acme next to nothing, and others no limit."""
    path = tmp_path / "budget.toml"
    path.write_text("[tenants.acme]\nbudget_usd_per_month = 0.000000001\n")
    return path


async def test_spent_budget_fails_jobs_without_a_call(
    broker: Broker, start_worker: StartWorker, config: Path, database_url: str
) -> None:
    """The first job spends it, the second is refused, another tenant's is not; operators are told once."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url, WORKER_CONFIG=config) as worker,
        producing(broker.url) as producer,
    ):
        assert (await producer.ask(completion("first")))["status"] == "succeeded"
        refused = await producer.ask(completion("second"))
        assert (refused["status"], refused["error"]["code"]) == ("failed", "budget_exceeded")
        assert refused["attempts"] == 0
        assert (await producer.ask(completion("third", tenant="globex")))["status"] == "succeeded"
        assert len(upstream.requests) == 2
        await worker.logged("budget nearly spent", within=30)
    assert await rows(database_url, "SELECT * FROM budget_holds") == []


async def test_no_hold_is_left_after_a_kill(
    broker: Broker, start_worker: StartWorker, config: Path, database_url: str
) -> None:
    """What a killed worker held counts as spent at its upper bound, and then nothing is held."""
    async with Upstream() as upstream, producing(broker.url) as producer:
        settings = {
            "OPENAI_BASE_URL": upstream.base_url,
            "WORKER_CONFIG": config,
            "WORKER_LEASE_SECONDS": LEASE,
        }
        upstream.script(Act(fault="stall"))
        async with start_worker(**settings) as killed:
            await producer.send(completion("lost"))
            await upstream.seen(1)
            assert len(await rows(database_url, "SELECT * FROM budget_holds")) == 1
            await killed.kill()
        async with start_worker(**settings):
            (reply,) = await producer.received(1, within=30)
        assert reply["error"]["code"] == "budget_exceeded"
        assert len(upstream.requests) == 1
        assert await rows(database_url, "SELECT * FROM budget_holds") == []
        (month,) = await rows(database_url, "SELECT spent_nano_usd FROM budget_months")
        (ledger,) = await rows(database_url, "SELECT entry, cost_nano_usd FROM usage_ledger")
        assert ledger == {"entry": "estimated", "cost_nano_usd": month["spent_nano_usd"]}
