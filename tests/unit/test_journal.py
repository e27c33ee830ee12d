"""What is told of an attempt, and what of it is booked."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.failure import Failure, FailureCode
from tests.support.broker import RealClock, Told
from tests.support.databases import a_job, an_intent
from worker.core.journal import Journal
from worker.core.services import Services
from worker.domain.attempt import Account, AttemptState
from worker.domain.events import AttemptFinished
from worker.domain.verdict import Verdict
from worker.ports import Claimed

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def a_verdict(*, maybe_billed: bool) -> Verdict:
    """Return the judgement on a request that failed."""
    plain: dict[str, Any] = dict.fromkeys(Verdict.__dataclass_fields__)
    plain |= {
        "state": AttemptState.UNKNOWN if maybe_billed else AttemptState.REJECTED,
        "failure": Failure(code=FailureCode.REJECTED, message="no", http_status=404),
        "maybe_billed": maybe_billed,
    }
    return Verdict(**plain)


@pytest.mark.parametrize("maybe_billed", [True, False])
def test_only_what_is_booked_is_called_an_estimate(*, maybe_billed: bool) -> None:
    """A request that OpenAI refused costs nothing, so that there is nothing to be estimated."""
    told = Told()
    services = SimpleNamespace(clock=RealClock(), observer=told, account_of=lambda _: Account())
    claimed = Claimed(attempt_no=1, received_at=NOW, started_at=NOW)
    journal = Journal(a_job(), claimed, 7, cast("Services", services))
    journal.failed(an_intent(), a_verdict(maybe_billed=maybe_billed))
    record = journal.take()
    (event,) = told.of(AttemptFinished)
    assert record is not None
    assert (record.ledger is not None, event.estimated) == (maybe_billed, maybe_billed)
