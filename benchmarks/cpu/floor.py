"""What a job costs at the very least: its three parts, each alone and as cheap as these libraries allow.

`python -m benchmarks.cpu.floor broker|openai|database`: `broker` answers messages until it is told to stop;
the others print the CPU seconds of one job, as JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aio_pika
import httpx2
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from openai import AsyncOpenAI, DefaultAioHttpClient
from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.cpu.messages import request
from benchmarks.cpu.upstream import BODY
from worker.adapters.database.engine import Use, open_engine

QUEUE: Final = "bench.floor"
IN_FLIGHT: Final = int(os.environ.get("IN_FLIGHT", "64"))
CALLS: Final = int(os.environ.get("CALLS", "2000"))
JOBS_A_COMMIT: Final = 100
WARM_UP: Final = 0.2
"""Share of the calls that is not measured."""

metadata: Final = MetaData()
begun: Final = Table(
    "floor_begun", metadata, Column("job_id", Text, primary_key=True), Column("body", LargeBinary)
)
done: Final = Table(
    "floor_done",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("result", LargeBinary),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
)


async def broker() -> None:
    """Consume, reply with a completion, wait for the confirmation, acknowledge."""
    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    async with connection, connection.channel() as consuming, connection.channel() as publishing:
        await consuming.set_qos(IN_FLIGHT)
        queue = await consuming.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})

        async def answer(message: AbstractIncomingMessage) -> None:
            reply = aio_pika.Message(
                BODY,
                correlation_id=message.correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await publishing.default_exchange.publish(reply, message.reply_to or "")
            await message.ack()

        await queue.consume(answer)
        print("ready", flush=True)
        await asyncio.Future()


async def openai() -> float:
    """Send a body that is ready, take the answer as it is."""
    body = _body()
    async with AsyncOpenAI(max_retries=0, http_client=DefaultAioHttpClient()) as client:

        async def call() -> None:
            response = await client.post("/chat/completions", content=body, cast_to=httpx2.Response)
            assert response.status_code == 200

        return await _measured(call, CALLS, at_a_time=IN_FLIGHT)


async def database() -> float:
    """Write one row of a hundred jobs in a commit, and another row of each in a second one."""
    engine = open_engine(os.environ["DATABASE_URL"], Use.WRITE)
    body = _body()
    async with engine.connect() as connection:
        async with connection.begin():
            await connection.run_sync(metadata.drop_all)
            await connection.run_sync(metadata.create_all)
        number = 0

        async def commit_twice() -> None:
            nonlocal number
            keys = [f"job-{number + one}" for one in range(JOBS_A_COMMIT)]
            number += JOBS_A_COMMIT
            await _commit(connection, begun, [{"job_id": key, "body": body} for key in keys])
            ends = {"result": BODY, "input_tokens": 187, "output_tokens": 95}
            await _commit(connection, done, [{"job_id": key, **ends} for key in keys])

        spent = await _measured(commit_twice, CALLS // JOBS_A_COMMIT, at_a_time=1)
    await engine.dispose()
    return spent / JOBS_A_COMMIT


def _body() -> bytes:
    """Return the request of a job, which is sent, and stored, by everybody."""
    return json.dumps(request(int(os.environ.get("MESSAGES", "2")))).encode()


async def _commit(connection: AsyncConnection, table: Table, rows: list[dict[str, object]]) -> None:
    async with connection.begin():
        await connection.execute(insert(table), rows)


async def _measured(call: Callable[[], Awaitable[None]], calls: int, *, at_a_time: int) -> float:
    """Return the CPU seconds of a call."""
    await _run(call, int(WARM_UP * calls) + at_a_time, at_a_time)
    before = time.process_time()
    await _run(call, calls, at_a_time)
    return (time.process_time() - before) / calls


async def _run(call: Callable[[], Awaitable[None]], calls: int, at_a_time: int) -> None:
    left = calls

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(one_after_the_other() for _ in range(at_a_time)))


def main(part: str) -> None:
    """Run one part."""
    if part == "broker":
        uvloop.run(broker())
    else:
        measure = {"openai": openai, "database": database}[part]
        print(json.dumps({"cpu": uvloop.run(measure())}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
