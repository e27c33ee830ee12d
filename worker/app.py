"""The worker's life: start its parts in order, run until told to stop, drain, take them down in reverse."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final

import uvloop
from structlog.typing import FilteringBoundLogger

from worker.adapters.logs import LogObserver, configure_logging
from worker.assembly import Parts, assemble
from worker.config import Settings

_READY_POLL_SECONDS: Final = 0.05
_GARBAGE: Final = (20_000, 50, 100)
"""Thresholds of the three generations, in new objects and collections."""
_SECOND_SIGNAL: Final = 130
"""Exit code of a worker that was told to stop twice and did not finish."""


def run_worker(settings: Settings) -> int:
    """Run until told to stop; return the exit code. Raises ConfigError, and the adapters' errors at start."""
    log = configure_logging(
        level=settings.worker_log_level, style=settings.worker_log_format, stream=sys.stderr
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, log))


async def _run(settings: Settings, log: FilteringBoundLogger) -> int:
    with _stop_signals() as stop:
        told = asyncio.create_task(stop.wait(), name="stop signal")
        async with contextlib.AsyncExitStack() as stack:
            parts = await _opened(stack, assemble(settings, LogObserver(log)), told)
            broken = parts is not None and await _work(parts, settings, log, told)
    log.info("stopped")
    return 1 if broken else 0


async def _opened(
    stack: contextlib.AsyncExitStack, assembling: AbstractAsyncContextManager[Parts], told: asyncio.Task[bool]
) -> Parts | None:
    """Take the parts up; None where the worker is told to stop meanwhile: a server may be away for long."""

    def give_up(_told: object) -> None:
        opening.reschedule(-1)

    try:
        async with asyncio.timeout(None) as opening:
            told.add_done_callback(give_up)
            try:
                return await stack.enter_async_context(assembling)
            finally:
                told.remove_done_callback(give_up)
    except TimeoutError:
        if opening.expired():
            return None
        raise


async def _work(
    parts: Parts, settings: Settings, log: FilteringBoundLogger, told: asyncio.Task[bool]
) -> bool:
    """Take deliveries until told to stop, then drain; return whether something broke instead."""
    sweep = asyncio.create_task(parts.replies.sweep_forever(), name="reply sweep")
    _collect_seldom()
    parts.consumer.start()
    parts.cancels.start()
    ready = asyncio.create_task(_tell_when_ready(parts, log), name="readiness")
    await asyncio.wait({told, sweep}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping", jobs_in_flight=parts.consumer.running)
    await _drain(parts, settings.worker_grace_seconds)
    broken = sweep.done()
    for task in (sweep, told, ready):
        task.cancel()
    await asyncio.gather(sweep, told, ready, return_exceptions=True)
    if broken:
        log.error("the reply sweep ended", error=type(sweep.exception()).__name__)
    return broken


def _collect_seldom() -> None:
    """Spare what lives as long as the process from garbage collection, and look for the rest less often.

    A job makes thousands of short-lived objects and hardly a cycle; Python's own
    thresholds spend a tenth of a job's time on looking at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE)


async def _tell_when_ready(parts: Parts, log: FilteringBoundLogger) -> None:
    # A state of a dozen channels, asked for once.
    while not (parts.consumer.consuming and parts.cancels.listening):  # noqa: ASYNC110
        await asyncio.sleep(_READY_POLL_SECONDS)
    log.info("ready", http_port=parts.http_port, lanes=list(parts.lanes), pid=os.getpid())


async def _drain(parts: Parts, grace: float) -> None:
    """Take no more, finish what runs within the grace period, hand back the rest."""
    await parts.consumer.stop()
    await parts.cancels.stop()
    # Jobs that wait for their turn would use the grace period up for nothing.
    parts.limiter.send_everybody_away()
    await parts.consumer.drain(grace)


@contextlib.contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; the second ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        if stop.is_set():
            os._exit(_SECOND_SIGNAL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
