"""How many requests a worker has open, and how many jobs it has claimed for when they end."""

import asyncio
from collections import Counter

import pytest

from tests.support.process import StartWorker
from tests.support.producer import completion, producing
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Act, Seen, Upstream

PLACES, AHEAD = 32, 8
QUICK, JOBS = 300, 600
NOT_SENT = "SELECT job_id FROM attempts WHERE error_code = 'not_sent'"


class Counting(Upstream):
    """Answers soon; but after 300 requests come some that hang, one for each place."""

    def __init__(self) -> None:
        super().__init__(gate=self._count)
        self.most_open = 0

    def _count(self, seen: Seen) -> Act:
        self.most_open = max(self.most_open, sum(one.outcome == "pending" for one in self.requests))
        return Act(delay=4 if QUICK < seen.number <= QUICK + PLACES else 0.05)


async def claimed_while_all_hang(upstream: Upstream, database_url: str) -> int:
    """Wait until all answers so far are written; return how many attempts are open."""
    await upstream.seen(QUICK + PLACES, timeout=30)
    async with asyncio.timeout(20):
        while True:
            found = await rows(database_url, "SELECT state FROM attempts")
            states = Counter(row["state"] for row in found)
            if states["succeeded"] == QUICK:
                return states["in_flight"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_jobs_are_claimed_ahead_of_a_place_but_not_at_work(
    broker: Broker, start_worker: StartWorker, database_url: str
) -> None:
    """Of 600 short jobs no more are open than there are places. When calls hang, the few that wait let go."""
    async with Counting() as upstream, producing(broker.url) as producer:
        async with start_worker(OPENAI_BASE_URL=upstream.base_url, WORKER_CONCURRENCY=PLACES):
            await asyncio.gather(*(producer.send(completion(f"{number}")) for number in range(JOBS)))
            ahead = await claimed_while_all_hang(upstream, database_url) - PLACES
            assert 0 < ahead <= AHEAD
            replies = await producer.received(JOBS)
            assert {reply["status"] for reply in replies} == {"succeeded"}
        # Their permits had grown old; each asked for another one.
        assert ahead <= len(await rows(database_url, NOT_SENT)) <= AHEAD
        assert (len(upstream.requests), upstream.most_open) == (JOBS, PLACES)
