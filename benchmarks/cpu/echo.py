"""The parts of the floor, run and measured."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pamqp.commands import Basic

from benchmarks.cpu.contender import IN_FLIGHT, Contender
from benchmarks.cpu.floor import QUEUE
from benchmarks.cpu.load import Load
from benchmarks.cpu.messages import PERSISTENT, Message, fresh_id, request
from benchmarks.cpu.processes import python, running


@asynccontextmanager
async def echo(load: Load, amqp_url: str, folder: Path) -> AsyncIterator[Contender]:
    """Run a bare consumer, which answers whatever comes."""
    replies = await load.replies("bench.replies.echo")
    command = python("benchmarks.cpu.floor", "broker")
    async with running(command, name="echo", folder=folder, settings={"AMQP_URL": amqp_url}) as process:
        await process.logged("ready")

        def job(messages: int) -> Message:
            job_id = fresh_id()
            return Message(
                exchange="",
                routing_key=QUEUE,
                properties=Basic.Properties(
                    delivery_mode=PERSISTENT, reply_to=replies.queue, correlation_id=job_id
                ),
                body=json.dumps(request(messages)).encode(),
                job_id=job_id,
            )

        yield Contender(name="echo", processes=(process,), replies=replies, job=job, in_flight=IN_FLIGHT)


async def part(name: str, folder: Path, **settings: str) -> float:
    """Run a part that measures itself; return the CPU seconds of a job."""
    command = python("benchmarks.cpu.floor", name)
    async with running(command, name=f"floor-{name}", folder=folder, settings=settings) as process:
        await process.logged('{"cpu": ')
        lines = process.log.read_text().splitlines()
    return float(json.loads(next(line for line in lines if line.startswith('{"cpu": ')))["cpu"])
