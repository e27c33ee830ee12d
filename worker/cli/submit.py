"""`openai-worker submit`: publish jobs, and wait for their replies if asked to."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer

from schemas.job import Job
from schemas.names import JOBS, lane_key
from worker.cli.job_files import Problem, read_jobs
from worker.cli.wiring import Exit, Sender, broker, complain, settings, stop, work

if TYPE_CHECKING:
    from worker.config import Settings

_AT_ONCE: Final = 256
"""Jobs on their way to the broker at the same time."""


def submit(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSON or JSON Lines; - is standard input.")
    ],
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Print each reply as a JSON line; exit 1 if any did not succeed.")
    ] = False,
    high: Annotated[bool, typer.Option("--high", help="Go before the other jobs of the lane.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up waiting for replies after this.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Publish the valid jobs even if others are not.")
    ] = False,
) -> None:
    """Publish jobs; nothing is published if any of them is not valid."""
    loaded = settings()
    jobs, problems = _read(files, loaded.worker_max_job_bytes)
    for problem in problems:
        complain(str(problem))
    if not jobs or (problems and not keep_going):
        stop("nothing was published", Exit.USAGE)
    if not wait:
        work(_publish(loaded, jobs, high=high))
        complain(f"{len(jobs)} published")
    elif not work(_ask(loaded, jobs, high=high, within=timeout)):
        raise typer.Exit(Exit.FAILED)
    if problems:
        raise typer.Exit(Exit.FAILED)


def _read(files: Sequence[str], max_bytes: int) -> tuple[list[Job], list[Problem]]:
    jobs: list[Job] = []
    problems: list[Problem] = []
    for found in read_jobs(files):
        if isinstance(found, Problem):
            problems.append(found)
        elif (size := len(_body(found))) > max_bytes:
            reason = f"has {size} bytes, WORKER_MAX_JOB_BYTES allows {max_bytes}"
            problems.append(Problem(f"job {found.job_id}", reason))
        else:
            jobs.append(found)
    return jobs, problems


def _body(job: Job) -> bytes:
    return orjson.dumps({"version": job.version, **job.model_dump(mode="json", exclude_unset=True)})


async def _publish(loaded: "Settings", jobs: Sequence[Job], *, high: bool) -> None:
    """Publish without an address for replies: the results are stored."""
    async with broker(loaded) as link:
        sender = Sender(link)
        for start in range(0, len(jobs), _AT_ONCE):
            sending = (
                sender.send(_body(job), exchange=JOBS, routing_key=lane_key(job.kind.value, high=high))
                for job in jobs[start : start + _AT_ONCE]
            )
            await asyncio.gather(*sending)


async def _ask(loaded: "Settings", jobs: Sequence[Job], *, high: bool, within: float | None) -> bool:
    from worker.cli.replies import ask_all

    # The command's own connection tries until the start-up timeout, and tells best what is wrong.
    async with broker(loaded):
        pass
    url, patience = loaded.amqp_url.get_secret_value(), loaded.worker_startup_timeout
    return await ask_all(url, jobs, high=high, within=within, patience=patience)
