"""A producer: one job in, one reply out."""

import asyncio
import os

from worker.client import JobClient

REQUEST = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
JOB = {"kind": "completion", "job_id": "sky-1", "tenant": "acme", "request": REQUEST}


async def main() -> None:
    """Send the job to the broker in AMQP_URL and print what comes back."""
    async with JobClient(os.environ["AMQP_URL"]) as client:
        try:
            reply = await asyncio.wait_for(await client.submit(JOB), timeout=120)
            print(reply.output_text or reply.error)
        except TimeoutError:
            print("no reply within two minutes: is a worker running? Sent again, the job is not run twice")


asyncio.run(main())
