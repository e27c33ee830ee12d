"""The producers' client: send jobs, await their replies.

    async with JobClient("amqp://user:password@host/") as client:
        submitted = await client.submit({"kind": "completion", "job_id": "j-1", "request": {...}})
        reply = await submitted

It needs nothing of the worker but the wire contract.
"""

import asyncio
from collections.abc import Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, PublishError
from pydantic import ValidationError

from schemas.cancel import Cancel
from schemas.job import DEFAULT_TENANT, Job
from schemas.names import CANCEL_KEY, CONTENT_TYPE, CONTROL, JOBS, NOT_SERVED, REPLY_TYPE, lane_key
from schemas.reply import Reply

_HEARTBEAT_SECONDS: Final = 10
_MEND: Final = "run `openai-worker topology apply`"


class SubmitError(Exception):
    """The broker did not confirm, and why. The job may have arrived: sending it again is safe."""


class NotServedError(ValueError):
    """No worker of this version would take such a job, and its reply would never come."""


class ReplyLostError(Exception):
    """The reply can no longer come here. Submitting the same job again is safe: it is not run twice."""


class Submitted:
    """A job on its way. Awaiting it gives its reply; a wait that is given up can be taken up again."""

    def __init__(self, job: Job, reply: "asyncio.Future[Reply]") -> None:
        self.job = job
        self._reply = reply

    def __await__(self) -> Generator[Any, None, Reply]:
        """Wait for the reply. Raises ReplyLostError."""
        return asyncio.shield(self._reply).__await__()

    @property
    def done(self) -> bool:
        """Whether awaiting it returns at once."""
        return self._reply.done()


class JobClient:
    """Submits jobs and receives their replies on a queue of its own.

    When the connection is lost, so is the queue: what is awaited fails with
    ReplyLostError, and the next submit connects again. `timeout` is how many
    seconds connecting, and each confirmation, may take.
    """

    def __init__(self, url: str, *, name: str = "openai-worker client", timeout: float = 10) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._session: _Session | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises what aio_pika.connect raises."""
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close("the client was closed")

    async def submit(
        self, job: Job | Mapping[str, Any], *, high: bool = False, lane: str | None = None
    ) -> Submitted:
        """Send a job to its lane, by default that of its kind; return once the broker has it.

        Raises pydantic.ValidationError for what is no job, NotServedError, and SubmitError.
        """
        valid = job if isinstance(job, Job) else Job.model_validate(job)
        if valid.kind in NOT_SERVED:
            raise NotServedError(f"{valid.kind} jobs are not served by this version")
        body = orjson.dumps({"version": valid.version, **valid.model_dump(mode="json", exclude_unset=True)})
        session = await self._connected()
        correlation_id, reply = session.expect()
        message = aio_pika.Message(
            body,
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            correlation_id=correlation_id,
            reply_to=session.reply_to,
        )
        try:
            await self._publish(session, message, JOBS, lane_key(lane or valid.kind.value, high=high))
        except BaseException:
            session.forget(correlation_id)
            raise
        return Submitted(valid, reply)

    async def cancel(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Ask for a job to be cancelled. Raises pydantic.ValidationError and SubmitError."""
        body = Cancel(tenant=tenant, job_id=job_id).model_dump_json().encode()
        message = aio_pika.Message(
            body, content_type=CONTENT_TYPE, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
        )
        await self._publish(await self._connected(), message, CONTROL, CANCEL_KEY)

    async def _publish(self, session: "_Session", message: aio_pika.Message, exchange: str, key: str) -> None:
        task = asyncio.current_task()
        cancels_before = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(self._timeout):
                await session.publish(message, exchange, key)
        except PublishError:
            raise SubmitError(f"no queue takes {key} from {exchange}; {_MEND}") from None
        except ChannelNotFoundEntity:
            raise SubmitError(f"the broker has no exchange {exchange}; {_MEND}") from None
        except asyncio.CancelledError:
            # The driver may fail what a lost connection left unconfirmed by a cancellation nobody sent.
            if task and task.cancelling() > cancels_before:
                raise
            raise SubmitError("the connection was lost before the broker confirmed") from None
        except Exception as error:
            raise SubmitError(f"not confirmed: {type(error).__name__}") from error

    async def _connected(self) -> "_Session":
        async with self._connecting:
            if self._session is None or self._session.lost:
                async with asyncio.timeout(self._timeout):
                    self._session = await _Session.opened(self._url, name=self._name)
            return self._session


class _Session:
    """One connection, its reply queue, and the replies that are to come there."""

    def __init__(self, connection: AbstractConnection, replies: AbstractChannel) -> None:
        self._connection = connection
        self._replies = replies
        self._publishing: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._awaited: dict[str, asyncio.Future[Reply]] = {}
        self.reply_to = ""
        self._closed = False

    @classmethod
    async def opened(cls, url: str, *, name: str) -> Self:
        """Connect."""
        connection = await aio_pika.connect(
            url, heartbeat=_HEARTBEAT_SECONDS, client_properties={"connection_name": name}
        )
        try:
            session = cls(connection, await connection.channel())
            await session._listen()
        except BaseException:
            await connection.close()
            raise
        return session

    @property
    def lost(self) -> bool:
        """Whether no reply can come here any more."""
        return self._closed or self._replies.is_closed

    async def _listen(self) -> None:
        queue = await self._replies.declare_queue(exclusive=True, auto_delete=True)
        self.reply_to = queue.name
        self._replies.close_callbacks.add(self._on_closed)
        await queue.consume(self._on_message, no_ack=True)

    async def publish(self, message: aio_pika.Message, exchange: str, key: str) -> None:
        """Publish with confirm, on a channel apart: an error of publishing closes it."""
        async with self._opening:
            if self._publishing is None or self._publishing.is_closed:
                self._publishing = await self._connection.channel(on_return_raises=True)
            channel = self._publishing
        target = await channel.get_exchange(exchange, ensure=False)
        await target.publish(message, key, mandatory=True)

    def expect(self) -> tuple[str, "asyncio.Future[Reply]"]:
        """Return a new correlation id, and the reply that will come by it."""
        correlation_id = uuid4().hex
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(_note_error)
        self._awaited[correlation_id] = reply
        return correlation_id, reply

    def forget(self, correlation_id: str) -> None:
        """Expect it no longer."""
        self._awaited.pop(correlation_id, None)

    async def close(self, why: str) -> None:
        """Close the connection; what is still awaited fails."""
        self._lose(why)
        with suppress(Exception):
            await self._connection.close()

    def _lose(self, why: str) -> None:
        self._closed = True
        awaited, self._awaited = self._awaited, {}
        for reply in awaited.values():
            if not reply.done():
                reply.set_exception(ReplyLostError(why))

    async def _on_closed(self, *_: object) -> None:
        if not self._closed:
            await self.close("the connection was lost; submit the same job again to get its reply")

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        # A second copy of a reply finds nobody waiting.
        if message.type != REPLY_TYPE or message.correlation_id not in self._awaited:
            return
        reply = self._awaited.pop(message.correlation_id)
        try:
            reply.set_result(Reply.model_validate_json(message.body))
        except ValidationError as error:
            reply.set_exception(error)


def _note_error(reply: "asyncio.Future[Reply]") -> None:
    """Look at the error: a reply that nobody awaits is no reason to complain when it is lost."""
    if not reply.cancelled():
        reply.exception()
