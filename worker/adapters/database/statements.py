"""The statements of the writer, built once; those on many rows run as one batch."""

from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Dialect,
    Select,
    Subquery,
    Table,
    and_,
    bindparam,
    delete,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from worker.adapters.database.bulk import Bulk
from worker.adapters.database.sql import Sql, sql_of
from worker.adapters.database.tables import (
    BOOKING,
    CORRECTION,
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

LOCKED: Final = (
    jobs.c.tenant,
    jobs.c.job_id,
    jobs.c.kind,
    jobs.c.status,
    jobs.c.fingerprint,
    jobs.c.lease_token,
    jobs.c.attempts,
    jobs.c.step_attempts,
    jobs.c.takeovers,
    jobs.c.cancel_requested_at.is_not(None).label("cancel_requested"),
    jobs.c.reply_status,
    jobs.c.reply_id,
    jobs.c.reply_tries,
)
"""What every decision needs to know of a job."""


class Statements:
    """All statements for one engine."""

    def __init__(self, dialect: Dialect) -> None:
        sql = sql_of(dialect.name)
        bulk = partial(Bulk, dialect=dialect)
        self.insert: dict[Table, Bulk] = {
            table: bulk(sql.insert_new(table)) for table in (jobs, requests, attempts, usage_ledger, results)
        }
        self.update_job = bulk(update(jobs).where(*_is_job(jobs)))
        self.record_outcome = bulk(
            update(attempts).where(
                *_is_job(attempts),
                attempts.c.attempt_no == bindparam(OF_ATTEMPT),
                # Not IN: its list of parameters does not go with a batch of rows.
                or_(attempts.c.state == "in_flight", attempts.c.state == "unknown"),
            )
        )
        self.save_checkpoint = bulk(sql.upsert(checkpoints))
        self._by_key(sql, dialect)
        self._of_replies()
        self._of_workers(sql)

    def _by_key(self, sql: Sql, dialect: Dialect) -> None:
        wanted = sql.keys()
        self.lock = Bulk(
            select(*LOCKED)
            .join(wanted, _same(jobs, wanted))
            # All transactions take their rows in the same order, so that none can wait in a circle.
            .order_by(jobs.c.tenant, jobs.c.job_id)
            .with_for_update(of=jobs),
            dialect,
            returns=True,
        )
        self.past: Select[Any] = (
            select(
                jobs.c.tenant,
                jobs.c.job_id,
                jobs.c.labels,
                jobs.c.received_at,
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
        booked = select(usage_ledger).join(wanted, _same(usage_ledger, wanted))
        # Two halves, each with the index that it has.
        self.booked = union_all(booked.where(BOOKING), booked.where(CORRECTION))
        among = select(wanted.c.tenant, wanted.c.job_id)
        self.drop_checkpoints = Bulk(delete(checkpoints).where(_key(checkpoints).in_(among)), dialect)
        owed = or_(jobs.c.reply_status == "pending", jobs.c.reply_status == "undeliverable")
        sent = update(jobs).where(_key(jobs).in_(among), owed).values(reply_status="sent", reply_due_at=None)
        self.mark_sent = Bulk(sent, dialect)

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


def _is_job(table: Table) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.tenant == bindparam(OF_TENANT), table.c.job_id == bindparam(OF_JOB)


def _same(one: Table, other: Table | Subquery) -> ColumnElement[bool]:
    return and_(one.c.tenant == other.c.tenant, one.c.job_id == other.c.job_id)


def _key(table: Table) -> Any:
    return tuple_(table.c.tenant, table.c.job_id)
