"""taskiq with taskiq-aio-pika: a task that publishes its reply. Started by `taskiq worker`.

None of its result backends speaks AMQP, so the task publishes the reply itself, on a connection that the
worker opens at its start; the delivery is acknowledged when the task is done.
"""

import asyncio
import json
import sys
from typing import Annotated, Any

import aio_pika
from openai import AsyncOpenAI, DefaultAioHttpClient
from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks.cpu.peers.sample import SAMPLE_ID, samples
from benchmarks.cpu.peers.shared import (
    AMQP_URL,
    IN_FLIGHT,
    async_engine,
    insertion,
    metadata,
    reply,
)

broker = (
    AioPikaBroker(AMQP_URL, qos=IN_FLIGHT)
    .with_queue(Queue(name="bench.taskiq", type=QueueType.QUORUM, durable=True))
    .with_serializer(ORJSONSerializer())
)
engine = async_engine()
client: AsyncOpenAI


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    """Open what tasks share."""
    state.client = AsyncOpenAI(http_client=DefaultAioHttpClient())
    state.connection = await aio_pika.connect_robust(AMQP_URL)
    state.replies = (await state.connection.channel()).default_exchange
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    print("tasks may come", flush=True)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def stop(state: TaskiqState) -> None:
    """Close it."""
    await state.client.close()
    await state.connection.close()


@broker.task(task_name="complete")
async def complete(
    request: dict[str, Any], reply_to: str, context: Annotated[Context, TaskiqDepends()]
) -> None:
    """Handle one job."""
    job_id = context.message.task_id
    completion = await context.state.client.chat.completions.create(**request)
    async with engine.begin() as connection:
        await connection.execute(insertion(job_id, completion))
    message = aio_pika.Message(
        json.dumps(reply(job_id, completion)).encode(),
        correlation_id=job_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await context.state.replies.publish(message, reply_to)


async def submit(reply_to: str) -> None:
    """Publish the samples."""
    await broker.startup()
    for request in samples():
        await complete.kicker().with_task_id(SAMPLE_ID).kiq(request, reply_to)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(submit(sys.argv[1]))
