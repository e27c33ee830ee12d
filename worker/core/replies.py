"""Replies: built once, stored with the result, delivered until the broker has confirmed them."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from schemas.failure import Failure
from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.domain.answer import Answer
from worker.domain.events import Broken, ReplySettled
from worker.domain.job import JobKey
from worker.domain.prices import NANO
from worker.domain.spend import Spend
from worker.ports import Clock, Observer, Outbox, OwedReply, Publisher, PublishError

SWEEP_SECONDS = 5.0
"""How often replies are looked for that nobody has delivered in time."""
_SWEEP_SIZE = 100
_AT_A_TIME = 16
"""A broker takes as long to confirm one as to confirm many; but bodies may be large."""
LARGEST_ANSWER = 15 * 2**20
"""Bytes; RabbitMQ 4 carries messages up to 16 MiB, and the reply must hold the answer."""
_LARGEST_REPLY = LARGEST_ANSWER + 2**19


def reply_body(  # noqa: PLR0913 (the fields of one message)
    *,
    key: JobKey | None,
    kind: Kind | None,
    status: ReplyStatus,
    answer: Answer | None,
    failure: Failure | None,
    spend: Spend | None,
    attempts: int,
    received_at: datetime,
    started_at: datetime | None,
    finished_at: datetime,
) -> bytes:
    """Return the JSON of a reply; the answer's own JSON goes in as it was received."""
    reply = {
        "version": 1,
        "job_id": key.job_id if key else None,
        "tenant": key.tenant if key else None,
        "kind": kind,
        "status": status,
        "output_text": answer.text if answer else None,
        "result": orjson.Fragment(answer.body) if answer else None,
        "usage": _usage(spend) if spend else None,
        "error": failure.model_dump() if failure else None,
        "attempts": attempts,
        "cached": False,
        "received_at": received_at,
        "started_at": started_at,
        "finished_at": finished_at,
    }
    body = orjson.dumps(reply, option=orjson.OPT_UTC_Z)
    if len(body) > _LARGEST_REPLY:
        # The text stands in the result too.
        body = orjson.dumps(reply | {"output_text": None}, option=orjson.OPT_UTC_Z)
    return body


def _usage(spend: Spend) -> Mapping[str, Any]:
    usage = spend.usage
    return {
        "requests": spend.requests,
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": None if spend.unpriced else usd(spend.cost_nano_usd),
        "cost_status": spend.cost_status,
    }


def usd(nano: int) -> str:
    """Return an amount of 10⁻⁹ US dollars as exact decimal dollars."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    return f"{sign}{nano // NANO}.{nano % NANO:09d}"


class Replies:
    """Delivers what is owed: once at the end of a job, and by the sweep whatever that did not settle."""

    def __init__(self, publisher: Publisher, outbox: Outbox, clock: Clock, observer: Observer) -> None:
        self._publisher = publisher
        self._outbox = outbox
        self._clock = clock
        self._observer = observer

    async def deliver(self, owed: OwedReply) -> None:
        """Publish a stored reply. What fails stays owed, so that nothing is raised."""
        if owed.address.queue is None:
            return
        try:
            routed = await self._publisher.reply(owed)
        except PublishError:
            self._observer(ReplySettled(key=owed.key, what="unconfirmed"))
            return
        if routed:
            self._outbox.sent(owed.key)
        elif await self._outbox.unroutable(owed):
            self._observer(ReplySettled(key=owed.key, what="undeliverable"))
        else:
            self._observer(ReplySettled(key=owed.key, what="returned"))

    async def deliver_copy(self, reply: OwedReply) -> None:
        """Publish a stored reply to another queue than the one it is owed to, which waits for its own.

        Nobody owes this one: it is the copy of the job that asks for it. Raises PublishError.
        """
        if reply.address.queue is not None and not await self._publisher.reply(reply):
            self._observer(ReplySettled(key=reply.key, what="returned"))

    async def sweep_forever(self) -> None:
        """Deliver, every few seconds, the replies that their workers left behind."""
        while True:
            try:
                swept = await self._sweep()
            except Exception as error:  # noqa: BLE001 (an error of ours must not end what others rely on)
                self._broken(error)
                swept = 0
            if swept < _SWEEP_SIZE:
                await self._clock.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> int:
        owed = await self._outbox.due(_SWEEP_SIZE)
        room = asyncio.Semaphore(_AT_A_TIME)

        async def deliver(reply: OwedReply) -> None:
            async with room:
                await self.deliver(reply)

        for error in await asyncio.gather(*map(deliver, owed), return_exceptions=True):
            if error is not None:
                self._broken(error)
        return len(owed)

    def _broken(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        self._observer(Broken(key=None, where="reply sweep", error=error))
