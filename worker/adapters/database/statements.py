"""The statements of the writer, built once; those on many rows run as one batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from worker.adapters.database.bulk import Bulk, Columns
from worker.adapters.database.many import many_of
from worker.adapters.database.sql import KEYS, Sql, sql_of
from worker.adapters.database.tables import (
    OWED,
    attempts,
    checkpoints,
    jobs,
    requests,
    results,
    usage_ledger,
    workers,
)

OF_TENANT: Final = "of_tenant"
OF_JOB: Final = "of_job"
OF_ATTEMPT: Final = "of_attempt"

# Spelled out, as are all values but those of rows: a batch has parameters for these only.
_NO_OUTCOME: Final = literal_column("attempts.state IN ('in_flight', 'unknown')", Boolean)
_NOT_SENT: Final = literal_column("jobs.reply_status IN ('pending', 'undeliverable')", Boolean)

LOCKED: Final = (
    jobs.c.tenant,
    jobs.c.job_id,
    jobs.c.kind,
    jobs.c.received_at,
    jobs.c.status,
    jobs.c.fingerprint,
    jobs.c.lease_token,
    jobs.c.attempts,
    jobs.c.step_attempts,
    jobs.c.takeovers,
    jobs.c.written_off,
    jobs.c.cancel_requested_at.is_not(None).label("cancel_requested"),
    jobs.c.reply_status,
    jobs.c.reply_id,
    jobs.c.reply_tries,
)
"""What every decision needs to know of a job."""
EXPECTED: Final = {
    f"expected_{column.name}": column
    for column in LOCKED
    if column.name not in {"kind", "received_at", "fingerprint", "reply_id"}
}
"""Parameters to compare a row with, its key first: without what only changes together with something else."""


class Statements:
    """All statements for one engine."""

    def __init__(self, dialect: Dialect) -> None:
        sql = sql_of(dialect.name)
        self._dialect = dialect
        self._many = many_of(dialect.name)
        self.whole = self._many.whole
        self.insert: dict[Table, Bulk] = {
            table: self._bulk(table, partial(self._many.insert, table))
            for table in (requests, attempts, usage_ledger, results)
        }
        self.insert_jobs = self._bulk(jobs, partial(self._many.insert_counted, jobs))
        self.expect_jobs = Bulk(
            dialect,
            lambda _: self._many.lock_equal(jobs, list(EXPECTED)[:2], EXPECTED),
            {name: column.type for name, column in EXPECTED.items()},
            whole=self.whole,
            selects=not self.whole,
        )
        self.save_checkpoint = self._bulk(checkpoints, partial(self._many.upsert, checkpoints))
        self.update_job = self._update(jobs, {OF_TENANT: jobs.c.tenant, OF_JOB: jobs.c.job_id})
        attempt = {
            OF_TENANT: attempts.c.tenant,
            OF_JOB: attempts.c.job_id,
            OF_ATTEMPT: attempts.c.attempt_no,
        }
        self.record_outcome = self._update(attempts, attempt, _NO_OUTCOME)
        self._by_key(sql)
        self._of_replies()
        self._of_workers(sql)

    def _bulk(
        self, table: Table, build: Callable[[Columns], Any], key: Mapping[str, Column[Any]] | None = None
    ) -> Bulk:
        kinds = {name: column.type for name, column in [*table.c.items(), *(key or {}).items()]}
        return Bulk(self._dialect, build, kinds, whole=self.whole)

    def _update(self, table: Table, key: Mapping[str, Column[Any]], *only: ColumnElement[bool]) -> Bulk:
        return self._bulk(table, lambda columns: self._many.update(table, key, columns, *only), key)

    def _of_keys(self, statement: Any, *, selects: bool = False) -> Bulk:
        """Return a statement whose one parameter is `KEYS`."""
        return Bulk(self._dialect, lambda _: statement, {KEYS: Text()}, selects=selects)

    def _by_key(self, sql: Sql) -> None:
        wanted = sql.keys()
        self.lock = self._of_keys(
            select(*LOCKED)
            .join(wanted, _same(jobs, wanted))
            # All transactions take their rows in the same order, so that none can wait in a circle.
            .order_by(jobs.c.tenant, jobs.c.job_id)
            .with_for_update(of=jobs),
            selects=True,
        )
        self.past: Select[Any] = (
            select(
                jobs.c.tenant,
                jobs.c.job_id,
                jobs.c.labels,
                jobs.c.started_at,
                jobs.c.next_attempt_at,
                jobs.c.worked_ms,
                jobs.c.reply_to,
                jobs.c.correlation_id,
                workers.c.alive_until,
                checkpoints.c.state.label("checkpoint"),
                results.c.body.label("result"),
            )
            .join(wanted, _same(jobs, wanted))
            .outerjoin(workers, workers.c.worker_id == jobs.c.lease_owner)
            .outerjoin(checkpoints, _same(jobs, checkpoints))
            .outerjoin(results, _same(jobs, results))
        )
        self.open_attempts: Select[Any] = (
            select(attempts)
            .join(wanted, _same(attempts, wanted))
            .where(attempts.c.state.in_(["in_flight", "unknown"]))
        )
        self.booked: Select[Any] = (
            select(usage_ledger)
            # The job knows the time that their index begins with.
            .join(jobs, and_(usage_ledger.c.received_at == jobs.c.received_at, _same(usage_ledger, jobs)))
            .join(wanted, _same(jobs, wanted))
        )
        among = select(wanted.c.tenant, wanted.c.job_id)
        self.drop_checkpoints = self._of_keys(delete(checkpoints).where(_key(checkpoints).in_(among)))
        sent = {"reply_status": text("'sent'"), "reply_due_at": None}
        self.mark_sent = self._of_keys(update(jobs).where(_key(jobs).in_(among), _NOT_SENT).values(sent))

    def _of_replies(self) -> None:
        self.due_replies: Select[Any] = (
            select(
                jobs.c.tenant,
                jobs.c.job_id,
                jobs.c.reply_id,
                jobs.c.reply_to,
                jobs.c.correlation_id,
                jobs.c.reply_tries,
                results.c.body,
            )
            .join(results, _same(jobs, results))
            .where(OWED, jobs.c.reply_due_at <= bindparam("now"))
            .order_by(jobs.c.reply_due_at)
            .limit(bindparam("most"))
            .with_for_update(of=jobs, skip_locked=True)
        )

    def _of_workers(self, sql: Sql) -> None:
        mine = workers.c.worker_id == bindparam("of_worker")
        self.look_at_clock: Select[Any] = select(
            sql.now().label("now"), select(workers.c.alive_until).where(mine).scalar_subquery()
        )
        self.renew_worker = sql.upsert(workers)
        self.remove_worker = delete(workers).where(mine)
        self.forget_workers = delete(workers).where(workers.c.alive_until < bindparam("before"))


def _same(one: Table, other: Table | Subquery) -> ColumnElement[bool]:
    return and_(one.c.tenant == other.c.tenant, one.c.job_id == other.c.job_id)


def _key(table: Table) -> Any:
    return tuple_(table.c.tenant, table.c.job_id)
