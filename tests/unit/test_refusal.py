"""What is told of a message that is no valid job."""

import pytest

from tests.support.broker import RealClock, Told, delivery
from worker.core.intake import ReplyPolicy, decode
from worker.core.refusal import Refusal
from worker.domain.events import JobRefused
from worker.domain.job import Job
from worker.ports import Delivery, OwedReply


class Post:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.buried: list[str] = []

    async def reply(self, owed: OwedReply) -> bool:
        """Take a reply."""
        raise AssertionError(owed)

    async def park(self, delivery: Delivery, seconds: int) -> None:
        """Take what waits."""
        raise AssertionError(delivery, seconds)

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Take what is dead."""
        self.buried.append(reason)


@pytest.mark.parametrize(
    ("body", "tenant", "job_id"),
    [
        (b'{"job_id": "a", "tenant": "acme"}', "acme", "a"),
        (b'{"job_id": "a"}', "default", "a"),
        (b'{"tenant": "acme"}', "acme", None),
        (b"nonsense", None, None),
    ],
)
async def test_the_event_names_tenant_and_job(body: bytes, tenant: str | None, job_id: str | None) -> None:
    """As far as the message does, and with the tenant that the reply would name."""
    told, post = Told(), Post()
    letter = delivery(body=body)
    rejection = decode(letter, handlers={}, max_job_bytes=1000, reply_policy=ReplyPolicy())
    assert not isinstance(rejection, Job)
    await Refusal(post, RealClock(), told).invalid(letter, rejection)
    (event,) = told.of(JobRefused)
    assert (event.tenant, event.job_id, len(post.buried)) == (tenant, job_id, 1)
