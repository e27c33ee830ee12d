"""FastStream: a subscriber whose return value is its reply. Started by `faststream run`."""

import asyncio
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitMessage, RabbitQueue, RabbitResponse
from openai import AsyncOpenAI, DefaultAioHttpClient

from benchmarks.cpu.peers.sample import SAMPLE_ID, samples
from benchmarks.cpu.peers.shared import (
    AMQP_URL,
    IN_FLIGHT,
    async_engine,
    insertion,
    metadata,
    reply,
)

QUEUE = RabbitQueue("bench.faststream", queue_type=QueueType.QUORUM, durable=True)

broker = RabbitBroker(AMQP_URL, default_channel=Channel(prefetch_count=IN_FLIGHT))
app = FastStream(broker)
engine = async_engine()
client = AsyncOpenAI(http_client=DefaultAioHttpClient())


@app.on_startup
async def make_table() -> None:
    """Make the table."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


@broker.subscriber(QUEUE, ack_policy=AckPolicy.NACK_ON_ERROR)
async def complete(request: dict[str, Any], message: RabbitMessage) -> RabbitResponse:
    """Handle one job."""
    completion = await client.chat.completions.create(**request)
    async with engine.begin() as connection:
        await connection.execute(insertion(message.correlation_id, completion))
    return RabbitResponse(reply(message.correlation_id, completion), persist=True)


async def submit(reply_to: str) -> None:
    """Publish the samples."""
    async with broker:
        await broker.declare_queue(QUEUE)
        for request in samples():
            await broker.publish(request, QUEUE, correlation_id=SAMPLE_ID, reply_to=reply_to, persist=True)


if __name__ == "__main__":
    import sys

    asyncio.run(submit(sys.argv[1]))
