"""Runs the tool calls of one round, and turns whatever comes of them into messages for the model.

Nothing the model writes is ever evaluated: it picks a name from an allow-list
and arguments that a schema accepts. What goes wrong is told to the model, not
raised.

A coroutine function is cancelled when its time is up. A plain function cannot
be: its thread is left behind and holds its slot until it returns, so that hung
tools cost at most `max_threads` threads. Those threads are daemons and never
keep the process from ending.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import orjson
from pydantic_core import to_json

from worker.domain.answer import ToolCall
from worker.tools import Registry, Tool, ToolArgumentsError

MAX_RESULT_BYTES: Final = 256 * 1024

_MAX_ERROR_CHARS: Final = 500


class Dispatcher:
    """Runs calls to registered tools."""

    def __init__(
        self, registry: Registry, *, max_result_bytes: int = MAX_RESULT_BYTES, max_threads: int = 64
    ) -> None:
        self.registry = registry
        self._max_result_bytes = max_result_bytes
        self._slots = asyncio.Semaphore(max_threads)
        self._left: set[asyncio.Task[str]] = set()

    async def run(
        self, calls: Sequence[ToolCall], *, allowed: Collection[str], seconds: float
    ) -> list[dict[str, Any]]:
        """Run all calls together, so many seconds each; return one `tool` message a call, in order."""
        tasks = [asyncio.create_task(self._result(call, allowed)) for call in calls]
        try:
            # All start together, so one clock serves them all.
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
            texts = [_finished(task, seconds) for task in tasks]
        finally:
            self._leave([task for task in tasks if not task.done()])
        return [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call, text in zip(calls, texts, strict=True)
        ]

    def _leave(self, tasks: Iterable[asyncio.Task[str]]) -> None:
        """Cancel without waiting: a tool may take its time to heed it, or never do."""
        for task in tasks:
            self._left.add(task)  # the event loop alone would not keep it alive
            task.add_done_callback(self._left.discard)
            task.cancel()

    async def _result(self, call: ToolCall, allowed: Collection[str]) -> str:
        tool = self.registry.get(call.name) if call.name in allowed else None
        if tool is None:
            return _error(f"there is no tool of that name; there are: {', '.join(sorted(allowed))}")
        try:
            arguments = tool.arguments(call.arguments)
            text = await (_awaited if tool.is_async else self._in_thread)(tool, arguments)
        except ToolArgumentsError as error:
            return _error(str(error))
        except Exception as error:  # noqa: BLE001 (a validator, or the start of a thread, may raise anything)
            return _failure(error)
        if len(text) > self._max_result_bytes or len(text.encode()) > self._max_result_bytes:
            return _error(f"the tool's result is larger than {self._max_result_bytes} bytes")
        return text

    async def _in_thread(self, tool: Tool, arguments: dict[str, Any]) -> str:
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def settle(text: str) -> None:
            self._slots.release()
            if not future.done():
                future.set_result(text)

        def work() -> None:
            text = _called(tool, arguments)
            # A closed loop means that the process is ending and nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, text)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), name=f"tool-{tool.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._slots.release()
            raise
        return await future


async def _awaited(tool: Tool, arguments: dict[str, Any]) -> str:
    try:
        return _encode(await tool.function(**arguments))
    except asyncio.CancelledError as error:
        if _asked_to_stop():
            raise
        return _failure(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a tool may raise anything; the model is told)
        return _failure(error)


def _called(tool: Tool, arguments: dict[str, Any]) -> str:
    """Call and encode in the thread: a large result must not hold up the event loop."""
    try:
        return _encode(tool.function(**arguments))
    except BaseException as error:  # noqa: BLE001 (likewise; even an exit ends the tool only)
        return _failure(error)


def _encode(value: object) -> str:
    """Return a text as it is, anything else as JSON. Raises where there is no JSON for it."""
    if not isinstance(value, str):
        return to_json(value, inf_nan_mode="null").decode()
    value.encode()
    return value


def _finished(task: asyncio.Task[str], seconds: float) -> str:
    if not task.done() or task.cancelled():
        return _error(f"the tool did not answer within {seconds:g} s")
    return task.result()


def _asked_to_stop() -> bool:
    """Tell a cancellation of this call from one that the tool raised itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failure(error: BaseException) -> str:
    try:
        return _error(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 (an exception may fail even at describing itself)
        return _error(type(error).__name__)


def _error(message: str) -> str:
    """Return a tool result that says what went wrong."""
    readable = message[:_MAX_ERROR_CHARS].encode(errors="replace").decode()
    return orjson.dumps({"error": readable}).decode()
