"""The order in which the demo sends its jobs."""

import asyncio
from collections.abc import Mapping, Sequence

from examples.demo import jobs
from examples.demo.jobs import Planned, Played
from examples.demo.processes import DemoError, StandIn, run_command
from schemas.reply import Reply
from worker.client import JobClient

REPLY_SECONDS = 120.0


def ask_question(environment: Mapping[str, str]) -> Played:
    """Send the JSON file with the command, and wait for its reply."""
    printed = run_command("submit", "--wait", str(jobs.QUESTION), environment=environment)
    return Played(jobs.question(), Reply.model_validate_json(printed))


async def play(amqp_url: str, server: StandIn | None) -> list[Played]:
    """Send all other jobs and return them with their replies; `server` is None for OpenAI itself."""
    async with JobClient(amqp_url) as client:
        played = await _together(client, [jobs.first_turn()])
        played += await _together(client, [jobs.second_turn(played[0].reply.output_text or "")])
        played += await _together(client, jobs.burst())
        if server:
            server.fail_next(400, "Unknown parameter: 'temprature'.", code="unknown_parameter")
        played += await _together(client, [jobs.wrong_parameter()])
        if server:
            server.fail_next(429, "Rate limit reached.", code="rate_limit_exceeded", retry_after=1.0)
        played += await _together(client, [jobs.throttled(refused=server is not None)])
    return played


async def _together(client: JobClient, planned: Sequence[Planned]) -> list[Played]:
    """Send jobs at once and wait for all replies."""
    submitted = [await client.submit(one.job) for one in planned]
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            return [Played(plan, await sent) for plan, sent in zip(planned, submitted, strict=True)]
    except TimeoutError:
        missing = [sent.job.job_id for sent in submitted if not sent.done]
        raise DemoError(f"no reply after {REPLY_SECONDS:.0f} s: {', '.join(missing)}") from None
