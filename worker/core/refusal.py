"""What is not a valid job: told to its producer where it names one, and kept among the dead."""

import hashlib

from schemas.failure import Failure, FailureCode
from schemas.job import DEFAULT_TENANT
from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.core.intake import Rejection
from worker.core.replies import reply_body
from worker.domain.events import JobRefused, ReplySettled
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.ports import Clock, Delivery, Observer, OwedReply, Publisher

_CONFLICT = "a job with this id and other content exists already; use a new job_id"


class Refusal:
    """Refuses deliveries. Nothing of them is stored, so a crash in between refuses them again."""

    def __init__(self, publisher: Publisher, clock: Clock, observer: Observer) -> None:
        self._publisher = publisher
        self._clock = clock
        self._observer = observer

    async def invalid(self, delivery: Delivery, rejection: Rejection) -> None:
        """Refuse what is no valid job. Raises PublishError."""
        key = JobKey(rejection.tenant or DEFAULT_TENANT, rejection.job_id) if rejection.job_id else None
        failure = Failure(code=FailureCode.INVALID_JOB, message=rejection.reason)
        tenant = key.tenant if key else rejection.tenant
        await self._refuse(delivery, key, rejection.kind, failure, rejection.address, tenant=tenant)

    async def conflict(self, delivery: Delivery, job: Job) -> None:
        """Refuse a job whose key belongs to another. Raises PublishError."""
        failure = Failure(code=FailureCode.CONFLICT, message=_CONFLICT)
        await self._refuse(delivery, job.key, job.kind, failure, job.address, tenant=job.key.tenant)

    async def _refuse(
        self,
        delivery: Delivery,
        key: JobKey | None,
        kind: Kind | None,
        failure: Failure,
        address: ReplyAddress | None,
        *,
        tenant: str | None,
    ) -> None:
        job_id = key.job_id if key else None
        refused = JobRefused(lane=delivery.lane, job_id=job_id, reason=failure.message, tenant=tenant)
        self._observer(refused)
        await self._publisher.bury(delivery, f"{failure.code}: {failure.message}")
        if address is None or address.queue is None:
            return
        body = reply_body(
            key=key,
            kind=kind,
            status=ReplyStatus.FAILED,
            answer=None,
            failure=failure,
            spend=None,
            attempts=0,
            received_at=delivery.received_at,
            started_at=None,
            finished_at=self._clock.now(),
        )
        # The same message refused again, after a crash, gets the same reply id.
        reply_id = hashlib.sha256(delivery.body + failure.code.encode()).hexdigest()[:32]
        owed = OwedReply(key=key or JobKey("", ""), reply_id=reply_id, address=address, body=body)
        if not await self._publisher.reply(owed):
            self._observer(ReplySettled(key=owed.key, what="undeliverable"))
