"""What the core relies on of the outbox, on each database."""

import asyncio
from dataclasses import replace

from tests.support.databases import SECOND, OpenWorker, a_claim, a_finish, a_job, a_token, rows
from worker.adapters.database.opening import Database
from worker.adapters.database.replies import MOST_TRIES


class TestOutbox:
    """Owed replies."""

    async def test_overdue_reply_is_taken_once(self, database: Database, open_worker: OpenWorker) -> None:
        """A reply nobody delivered goes to one sweep, and to the next only after a while."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        finish = a_finish(job, token, finished_at=database.clock.now() - 16 * SECOND)
        await database.store.finish(finish)
        async with open_worker() as other:
            taken = await asyncio.gather(database.outbox.due(10), other.outbox.due(10))
        assert sorted(taken, key=len) == [[], [finish.reply]]

    async def test_fresh_reply_is_left_to_its_worker(self, database: Database) -> None:
        """The finishing worker has some seconds to deliver by itself."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.finish(a_finish(job, token, finished_at=database.clock.now()))
        assert await database.outbox.due(10) == []

    async def test_confirmed_reply_is_owed_no_more(self, database: Database, migrated_url: str) -> None:
        """A confirmation, once written, takes the reply from every sweep."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.finish(a_finish(job, token))
        database.outbox.sent(job.key)
        assert await database.outbox.due(10) == []
        assert await rows(migrated_url, "SELECT reply_status FROM jobs") == [("sent",)]

    async def test_unroutable_reply_is_given_up_after_some_tries(
        self, database: Database, migrated_url: str
    ) -> None:
        """A reply without a queue is tried a bounded number of times; its result stays."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        finish = a_finish(job, token)
        await database.store.finish(finish)
        given_up = [
            await database.outbox.unroutable(replace(finish.reply, tries=tries))
            for tries in range(MOST_TRIES)
        ]
        assert given_up == [False] * (MOST_TRIES - 1) + [True]
        assert await rows(migrated_url, "SELECT reply_status, reply_due_at FROM jobs") == [
            ("undeliverable", None)
        ]
        assert await database.outbox.unroutable(finish.reply)
        assert await rows(migrated_url, "SELECT body FROM results") == [(b"reply",)]

    async def test_return_written_twice_counts_once(self, database: Database, migrated_url: str) -> None:
        """A repeated transaction does not use up a try."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        finish = a_finish(job, token)
        await database.store.finish(finish)
        for _ in range(3):
            await database.outbox.unroutable(finish.reply)
        assert await rows(migrated_url, "SELECT reply_tries FROM jobs") == [(1,)]
