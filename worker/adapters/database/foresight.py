"""Batches that need no look first: decided on rows as they are foreseen, checked and written in one journey.

A transaction that looks before it writes makes four journeys to the database, while its jobs wait. But
a job's row is nearly always as this process wrote it last, or not there yet. So the decisions are made
on that, and one transaction inserts, locks, compares and writes; where a row is not as foreseen it fails
as a whole, and the batch looks first.
"""

import time
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from worker.adapters.database.running import Checks
from worker.adapters.database.statements import EXPECTED, Statements
from worker.adapters.database.work import LockedJob, Operation, Writes
from worker.domain.job import JobKey

_WARY_SECONDS: Final = 30.0
"""After a mistake with new rows no others are foreseen for so long: PostgreSQL logs each one at length."""
_compared: Final = attrgetter(*(column.name for column in EXPECTED.values()))
_MOST: Final = 20_000
"""Rows that are kept in mind: many more than a process has jobs at work."""


class Plan(NamedTuple):
    """What a batch does, if its rows are as foreseen."""

    results: list[Any]
    rows: dict[JobKey, LockedJob]
    writes: Writes
    checks: Checks
    """What inserts the new rows, and compares the others."""


class Foresight:
    """The rows of jobs as this process wrote or saw them last. A belief: nothing but speed depends on it."""

    def __init__(self, statements: Statements, budgets: Mapping[str, int]) -> None:
        self._statements = statements
        self._budgets = budgets
        self._rows: dict[JobKey, LockedJob] = {}
        self._wary_until = 0.0
        self._wrong: Mapping[JobKey, LockedJob] = {}
        """The new rows of a plan that did not come true."""

    def plan(self, work: Sequence[object]) -> Plan | None:
        """Decide on what is foreseen; None where something cannot be, or needs more than a row."""
        results: list[Any] = []
        rows: dict[JobKey, LockedJob] = {}
        new: list[Mapping[str, Any]] = []
        wary = time.monotonic() < self._wary_until
        writes = Writes()
        for item in work:
            if not isinstance(item, Operation):
                return None
            key = item.key
            if key.tenant in self._budgets:
                return None
            job = self._rows.get(key)
            if job is None:
                row = None if wary else item.first_row()
                if row is None:
                    return None
                new.append(row)
                job = LockedJob.inserted(row)
            if item.needs_past(job):
                return None
            rows[key] = job
            results.append(item.apply(job, None, writes))
        return Plan(results, rows, writes, self._checks(new, rows))

    def note(self, rows: Mapping[JobKey, LockedJob], writes: Writes) -> None:
        """Note how a transaction leaves the rows that it looked at, while something is likely to follow."""
        if any(key in rows and rows[key] != job for key, job in self._wrong.items()):
            self._wary_until = time.monotonic() + _WARY_SECONDS
        self._wrong = {}
        if len(self._rows) > _MOST:
            self._rows.clear()
        for key, job in rows.items():
            after = writes.after(job)
            if after.is_at_work and key.tenant not in self._budgets:
                self._rows[key] = after
            else:
                self._rows.pop(key, None)

    def forget(self, plan: Plan) -> None:
        """Foresee nothing of these rows: it was wrong, with some of them."""
        self._wrong = {key: job for key, job in plan.rows.items() if key not in self._rows}
        for key in plan.rows:
            self._rows.pop(key, None)

    def _checks(self, new: list[Mapping[str, Any]], rows: Mapping[JobKey, LockedJob]) -> Checks:
        checks = []
        if new:
            new.sort(key=lambda row: (row["tenant"], row["job_id"]))
            checks += [(call, len(new)) for call in self._statements.insert_jobs.calls(new)]
        inserted = {JobKey(row["tenant"], row["job_id"]) for row in new}
        known = [
            dict(zip(EXPECTED, _compared(job), strict=True))
            for key, job in rows.items()
            if key not in inserted
        ]
        if known:
            checks += [(call, len(known)) for call in self._statements.expect_jobs.calls(known)]
        return checks
