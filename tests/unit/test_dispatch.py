"""Tool calls: together, each in its time, and never an error that is not the model's to see."""

import asyncio
import contextvars
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import override

from worker.core.dispatch import Dispatcher
from worker.domain.answer import ToolCall
from worker.tools import Registry, Tool, tool


def dispatcher(*functions: Callable[..., Any], **limits: int) -> Dispatcher:
    """Return a dispatcher of these functions."""
    return Dispatcher(Registry(Tool(function) for function in functions), **limits)


def call(name: str, arguments: Any = None, number: int = 1) -> ToolCall:
    """Return a call, its arguments encoded where they are no text."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return ToolCall(id=f"call_{number}", name=name, arguments=text)


async def only(
    runner: Dispatcher,
    name: str,
    arguments: Any = None,
    *,
    seconds: float = 5,
    allowed: set[str] | None = None,
) -> str:
    """Run one call and return the content of its message."""
    names = set(runner.registry) if allowed is None else allowed
    (message,) = await runner.run([call(name, arguments)], allowed=names, seconds=seconds)
    assert (message["role"], message["tool_call_id"]) == ("tool", "call_1")
    content: str = message["content"]
    return content


async def error(*args: Any, **more: Any) -> str:
    """Run one call that must fail, and return what the model is told."""
    told = json.loads(await only(*args, **more))
    assert set(told) == {"error"}
    return str(told["error"])


class Place(BaseModel):
    """A result."""

    city: str


@dataclass
class Point:
    """Another."""

    x: int


VALUES: list[tuple[Any, str]] = [
    ("as it is", "as it is"),
    ("", ""),
    (None, "null"),
    (7, "7"),
    (Decimal("1.50"), '"1.50"'),
    ({"a": [1, True, None]}, '{"a":[1,true,null]}'),
    (Place(city="Bonn"), '{"city":"Bonn"}'),
    ([Point(x=1)], '[{"x":1}]'),
    ({"on": date(2026, 12, 1)}, '{"on":"2026-12-01"}'),
    (float("inf"), "null"),
    ("\u00fc", "\u00fc"),
]


@pytest.mark.parametrize(("value", "content"), VALUES)
async def test_results_are_written_as_json(value: Any, content: str) -> None:
    """Text stays text, everything else becomes JSON, from either sort of function."""

    def plain() -> Any:
        return value

    async def coroutine() -> Any:
        return value

    runner = dispatcher(plain, coroutine)
    assert await only(runner, "plain") == content
    assert await only(runner, "coroutine") == content


class RudeError(Exception):
    """Cannot even say what it is."""

    @override
    def __str__(self) -> str:
        raise RuntimeError


def _cycle() -> Any:
    loop: list[Any] = []
    loop.append(loop)
    return loop


FAILURES: list[tuple[Callable[[], Any], str]] = [
    (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda: sys.exit(3), "SystemExit: 3"),
    (lambda: dict[str, int]()["x"], "KeyError: 'x'"),
    (lambda: next(iter(())), "StopIteration"),
    (object, "PydanticSerializationError"),
    (_cycle, "ValueError: Circular reference"),
    (lambda: "\ud800", "UnicodeEncodeError"),
    (lambda: ["\ud800"], "PydanticSerializationError"),
    (lambda: (_ for _ in ()).throw(RudeError()), "RudeError"),
    (lambda: (_ for _ in ()).throw(ValueError("x" * 9999)), "ValueError: xxx"),
    (lambda: (_ for _ in ()).throw(ValueError("\ud800")), "ValueError: ?"),
    (lambda: (_ for _ in ()).throw(asyncio.CancelledError()), "CancelledError"),
    (lambda: "x" * 2000, "larger than 1000 bytes"),
    (lambda: "\u20ac" * 500, "larger than 1000 bytes"),
]


@pytest.mark.parametrize(("function", "told"), FAILURES)
async def test_failures_become_results(function: Callable[[], Any], told: str) -> None:
    """Whatever a tool does wrong, the model is told, briefly, and nothing is raised."""

    def plain() -> Any:
        return _iterated(function())

    async def coroutine() -> Any:
        return _iterated(function())

    runner = dispatcher(plain, coroutine, max_result_bytes=1000)
    for name in ("plain", "coroutine"):
        message = await error(runner, name)
        # A coroutine turns StopIteration into an error of its own.
        assert message.startswith(told) or told in message
        assert len(message) <= 500


def _iterated(value: Any) -> Any:
    return next(value) if hasattr(value, "throw") else value


async def test_only_allowed_tools_are_run() -> None:
    """A tool that is registered but not named in the job does not exist for the model."""
    ran: list[str] = []

    @tool
    def find() -> str:
        ran.append("find")
        return "found"

    @tool
    def wipe() -> str:
        ran.append("wipe")
        return "wiped"

    runner = dispatcher(find, wipe)
    assert await error(runner, "wipe", allowed={"find"}) == "there is no tool of that name; there are: find"
    assert "no tool of that name" in await error(runner, "__import__('os').system", allowed={"find"})
    assert "no tool of that name" in await error(runner, "gone", allowed={"gone"})
    assert await only(runner, "find", allowed={"find"}) == "found"
    assert ran == ["find"]


@pytest.mark.parametrize(
    "arguments", ["", "{", "[]", '{"name": 5}', '{"name": "x", "more": 1}', "{" * 10_000]
)
async def test_bad_arguments_never_reach_the_tool(arguments: str) -> None:
    """They are refused by the schema, and the model may try again."""

    def find(name: str) -> str:
        raise AssertionError(name)

    assert "arguments" in await error(dispatcher(find), "find", arguments)


async def test_calls_of_a_round_run_together_and_answer_in_order() -> None:
    """Each waits for the others to have begun, which only works together."""
    begun = asyncio.Barrier(3)
    met = threading.Barrier(2)

    async def waits(number: int) -> int:
        await begun.wait()
        return number

    def blocks(number: int) -> int:
        met.wait(5)
        return number

    runner = dispatcher(waits, blocks)
    names = ["waits", "blocks", "waits", "waits", "blocks"]
    calls = [call(name, {"number": number}, number) for number, name in enumerate(names)]
    messages = await runner.run(calls, allowed={"waits", "blocks"}, seconds=5)
    assert [message["tool_call_id"] for message in messages] == [f"call_{n}" for n in range(5)]
    assert [message["content"] for message in messages] == ["0", "1", "2", "3", "4"]


async def test_no_calls_are_no_messages() -> None:
    """Nothing to do is done."""
    assert await dispatcher().run([], allowed=set(), seconds=1) == []


async def test_the_slow_one_is_told_and_the_quick_one_kept() -> None:
    """A timeout costs one result, not the round; the coroutine is cancelled."""
    cancelled = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def quick() -> str:
        return "done"

    calls = [call("hangs"), call("quick", number=2)]
    messages = await dispatcher(hangs, quick).run(calls, allowed={"hangs", "quick"}, seconds=0.05)
    assert json.loads(messages[0]["content"]) == {"error": "the tool did not answer within 0.05 s"}
    assert messages[1]["content"] == "done"
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_coroutine_that_ignores_its_end_holds_nobody_up() -> None:
    """It is left behind, and what it does then is nobody's business any more."""
    let_go, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        ended.set()
        return "late"

    assert "did not answer" in await error(dispatcher(stubborn), "stubborn", seconds=0.05)
    let_go.set()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_hung_thread_keeps_its_slot_until_it_returns() -> None:
    """Hung functions cost a bounded number of threads; once one returns, its slot serves again."""
    let_go = threading.Event()

    def hangs() -> str:
        let_go.wait(30)
        return "late"

    def quick() -> str:
        return "done"

    runner = dispatcher(hangs, quick, max_threads=1)
    assert "did not answer" in await error(runner, "hangs", seconds=0.05)
    assert "did not answer" in await error(runner, "quick", seconds=0.05)
    let_go.set()
    assert await only(runner, "quick") == "done"


def test_a_hung_thread_does_not_keep_the_loop_from_ending() -> None:
    """The loop closes while the function still runs, and its end finds nobody and harms nothing."""
    let_go = threading.Event()
    threads: list[threading.Thread] = []

    def hangs() -> str:
        threads.append(threading.current_thread())
        let_go.wait(30)
        return "late"

    message = asyncio.run(error(dispatcher(hangs), "hangs", seconds=0.05))
    assert "did not answer" in message
    let_go.set()
    threads[0].join(5)
    assert threads[0].daemon
    assert not threads[0].is_alive()


async def test_cancelling_the_round_cancels_its_calls() -> None:
    """A job that stops takes its tools with it."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    running = asyncio.create_task(only(dispatcher(hangs), "hangs"))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_threads_see_the_callers_context() -> None:
    """What is bound around a job, its name in logs for instance, is bound in its tools."""
    name = contextvars.ContextVar("name", default="none")

    def plain() -> str:
        return name.get()

    name.set("job-1")
    assert await only(dispatcher(plain), "plain") == "job-1"
