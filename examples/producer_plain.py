"""A producer that knows nothing but AMQP and JSON: one job in, one reply out.

It imports nothing of this project, so it can be copied to wherever the jobs come from.
AMQP_URL names the broker. The job's id may be given as an argument; the same id again is
answered from the stored reply and costs nothing.
"""

import asyncio
import json
import os
import sys

import aio_pika

JOB_ID = sys.argv[1] if len(sys.argv) > 1 else "plain-1"
JOB = {
    "version": 1,
    "kind": "completion",
    "job_id": JOB_ID,
    "tenant": "acme",
    "request": {
        "model": "gpt-6-luna",
        "messages": [{"role": "user", "content": "Name three primary colours."}],
    },
    "options": {"timeout_seconds": 60},
}


async def main() -> int:
    """Publish the job, wait for its reply, print it."""
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)
        jobs = await channel.get_exchange("openai.jobs")
        message = aio_pika.Message(
            json.dumps(JOB).encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            reply_to=replies.name,
            correlation_id=JOB_ID,
        )
        # Returns once the broker has confirmed the job; raises where no queue takes it.
        await jobs.publish(message, routing_key="completion", mandatory=True)
        async with replies.iterator(timeout=120) as arriving:
            async for reply in arriving:
                async with reply.process():
                    return show(json.loads(reply.body))
    return 1


def show(reply: dict[str, object]) -> int:
    """Print the answer or the failure; return the exit code."""
    if reply["status"] == "succeeded":
        print(reply["output_text"])
        print("usage:", json.dumps(reply["usage"]))
        return 0
    print(reply["status"], json.dumps(reply["error"]))
    return 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except TimeoutError:
        sys.exit("no reply within two minutes: is a worker running? Sent again, the job is not run twice")
