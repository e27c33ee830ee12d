"""Publishes jobs and prints their replies as they come."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from aiormq.exceptions import AMQPError
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from schemas.job import Job
from schemas.reply import Reply, ReplyStatus
from worker.adapters.rabbitmq.connection import BrokerUnreachableError
from worker.cli.wiring import complain
from worker.client import JobClient, ReplyLostError, SubmitError, Submitted

_CLEAR_LINE: Final = "\r\x1b[2K"
_PAUSE_SECONDS: Final = 0.5
_AT_ONCE: Final = 256
"""Jobs on their way to the broker at the same time."""


async def ask_all(
    url: str, jobs: Sequence[Job], *, high: bool, within: float | None, patience: float
) -> bool:
    """Print each reply as a JSON line; True if all jobs succeeded.

    `within` is seconds for all replies, `patience` seconds without a broker.
    Raises BrokerUnreachableError and SubmitError.
    """
    async with JobClient(url) as client:
        asking = _Asking(client=client, high=high, patience=patience, turns=asyncio.Semaphore(_AT_ONCE))
        replies = [asyncio.create_task(asking.ask(job)) for job in jobs]
        try:
            with _progress(len(jobs)) as show:
                return await _show_all(replies, show, within)
        finally:
            for task in replies:
                task.cancel()
            await asyncio.gather(*replies, return_exceptions=True)


async def _show_all(
    replies: Sequence[asyncio.Task[Reply | None]], show: Callable[[Reply | None], None], seconds: float | None
) -> bool:
    succeeded = 0
    try:
        for next_one in asyncio.as_completed(replies, timeout=seconds):
            reply = await next_one
            show(reply)
            succeeded += reply is not None and reply.status is ReplyStatus.SUCCEEDED
    except TimeoutError:
        missing = sum(not task.done() for task in replies)
        late = f"{missing} of {len(replies)} replies did not come in time"
        complain(f"{late}; the jobs go on, see `openai-worker jobs list`")
    return succeeded == len(replies)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """Asks for one job, over lost connections: the same job again is answered, not run twice."""

    client: JobClient
    high: bool
    patience: float
    turns: asyncio.Semaphore

    async def ask(self, job: Job) -> Reply | None:
        """Return the reply; None for one that cannot be read. Raises as `ask_all`."""
        async with self.turns:
            submitted = await self.client.submit(job, high=self.high)
        while True:
            try:
                return await submitted
            except ReplyLostError:
                async with self.turns:
                    submitted = await self._submit_again(job)
            except ValidationError:
                complain(
                    f"job {job.job_id}: its reply cannot be read; is this program older than the worker?"
                )
                return None

    async def _submit_again(self, job: Job) -> Submitted:
        clock = asyncio.get_running_loop().time
        give_up = clock() + self.patience
        while True:
            try:
                return await self.client.submit(job, high=self.high)
            except (SubmitError, AMQPError, OSError) as error:
                if clock() >= give_up:
                    raise BrokerUnreachableError("the connection to RabbitMQ was lost for good") from error
            await asyncio.sleep(_PAUSE_SECONDS)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Reply | None], None]]:
    """Yield what prints a reply on standard output; on a terminal, standard error has a bar meanwhile."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task, failed = bar.add_task("replies", total=total), 0
    clear = _CLEAR_LINE if console.is_terminal and sys.stdout.isatty() else ""

    def show(reply: Reply | None) -> None:
        nonlocal failed
        failed += reply is None or reply.status is not ReplyStatus.SUCCEEDED
        if reply is not None:
            sys.stdout.write(f"{clear}{reply.model_dump_json()}\n")
            sys.stdout.flush()
        bar.update(task, advance=1, description=f"replies, {failed} failed" if failed else "replies")

    with bar:
        yield show
