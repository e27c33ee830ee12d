"""Dead letters: looking at them, sending them round again, doing away with them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import aiormq
import orjson
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from schemas.job import DEFAULT_TENANT
from schemas.names import DEAD, JOBS, X_REASON
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.messages import delivery_of, properties_of_copy
from worker.adapters.rabbitmq.outlet import Outlet
from worker.adapters.rabbitmq.publisher import X_LANE, X_RECEIVED_AT
from worker.adapters.rabbitmq.topology import TopologyError
from worker.ports import Delivery, PublishError

_RPC_SECONDS: Final = 20
_ID_LENGTH: Final = 12
_BROKER_REASONS: Final = {
    "delivery_limit": "given up by the broker: it came back again and again, each time unsettled",
    "expired": "given up by the broker: its own expiration passed in the queue",
    "maxlen": "given up by the broker: the queue was full",
    "rejected": "rejected by a consumer",
}
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that could not be processed. `id` is derived from it, and stays the same."""

    id: str
    reason: str
    lane: str
    """The routing key that it came with."""
    job_id: str | None
    tenant: str | None
    died_at: datetime | None
    """When a worker had received it, or the broker gave it up."""
    delivery: Delivery


class DeadLetters:
    """The queue of the dead. Looking takes letters out for a moment; whatever happens, they go back."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outlet = Outlet(link)

    async def browse(self, limit: int) -> list[DeadLetter]:
        """Return so many letters, about the oldest: looking may change their order. Raises TopologyError."""
        found: list[DeadLetter] = []
        async with self._channel() as channel:
            while len(found) < limit and (taken := await self._take(channel)):
                found.append(taken[0])
        return found

    async def find(self, letter_id: str) -> DeadLetter | None:
        """Return one letter. Raises TopologyError."""
        async with self._channel() as channel:
            taken = await self._take(channel, letter_id)
        return taken[0] if taken else None

    async def replay(self, letter_id: str) -> bool:
        """Send a letter to its lane again; False: no such letter. Raises TopologyError, PublishError."""
        async with self._channel() as channel:
            if taken := await self._take(channel, letter_id):
                letter, tag = taken
                await self._send_again(letter)
                await channel.basic_ack(tag)
        return taken is not None

    async def discard(self, letter_id: str) -> bool:
        """Do away with a letter; False: no such letter. Raises TopologyError."""
        async with self._channel() as channel:
            if taken := await self._take(channel, letter_id):
                await channel.basic_ack(taken[1])
        return taken is not None

    async def _send_again(self, letter: DeadLetter) -> None:
        ours = {X_REASON, X_LANE, X_RECEIVED_AT}
        headers = {name: value for name, value in letter.delivery.headers.items() if name not in ours}
        delivery = replace(letter.delivery, headers=headers)
        properties = properties_of_copy(delivery, user=self._link.user, headers={})
        routed = await self._outlet.send(
            delivery.body, exchange=JOBS, routing_key=letter.lane, properties=properties
        )
        if not routed:
            raise PublishError(f"no queue is bound to {JOBS} for the lane {letter.lane}")

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[aiormq.Channel]:
        """Open a channel; as it closes, what was not acknowledged returns to its place."""
        channel = await self._link.channel()
        try:
            yield channel
        except ChannelNotFoundEntity:
            raise TopologyError(f"queue {DEAD} is missing; run `openai-worker topology apply`") from None
        finally:
            await channel.close()

    async def _take(
        self, channel: aiormq.Channel, letter_id: str | None = None
    ) -> tuple[DeadLetter, int] | None:
        """Take out letters up to that of an id, or just the next; return it with its delivery tag."""
        while True:
            async with asyncio.timeout(_RPC_SECONDS):
                message = await channel.basic_get(DEAD)
            if not isinstance(message.delivery, Basic.GetOk):
                return None
            letter = _letter(message, user=self._link.user)
            if letter_id in {None, letter.id}:
                return letter, message.delivery_tag or 0


def _letter(message: DeliveredMessage, *, user: str) -> DeadLetter:
    key = message.routing_key or ""
    lane, high = key.removesuffix(".high"), key.endswith(".high")
    delivery = delivery_of(message, lane=lane, high=high, received_at=_EPOCH, user=user)
    reason, died_at = _death(delivery.headers)
    delivery = replace(delivery, received_at=died_at or _EPOCH)
    job_id, tenant = _names(delivery)
    seal = repr((key, reason, died_at, delivery.message_id, delivery.correlation_id)).encode() + delivery.body
    return DeadLetter(
        id=hashlib.sha256(seal).hexdigest()[:_ID_LENGTH],
        reason=reason,
        lane=key,
        job_id=job_id,
        tenant=tenant,
        died_at=died_at,
        delivery=delivery,
    )


def _death(headers: Mapping[str, Any]) -> tuple[str, datetime | None]:
    """Tell why and when. The broker's own account goes before a header, which a producer may have set."""
    match headers.get("x-death"):
        case [{"reason": str(code), "time": datetime() as time}, *_]:
            return _BROKER_REASONS.get(code, code), time
        case _:
            pass
    reason, received_at = headers.get(X_REASON), headers.get(X_RECEIVED_AT)
    return (
        reason if isinstance(reason, str) else "no reason given",
        received_at if isinstance(received_at, datetime) else None,
    )


def _names(delivery: Delivery) -> tuple[str | None, str | None]:
    try:
        job = orjson.loads(delivery.body)
    except orjson.JSONDecodeError:
        job = None
    named = job if isinstance(job, dict) else {}
    job_id = named.get("job_id", delivery.message_id)
    # As its producer was told: a job that names no tenant is of this one.
    tenant = named.get("tenant", DEFAULT_TENANT if named or job_id else None)
    return job_id if isinstance(job_id, str) else None, tenant if isinstance(tenant, str) else None
