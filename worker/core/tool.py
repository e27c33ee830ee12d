"""Kind `tool`: Chat Completions with functions, those of the worker called in a loop.

Each round is one request. Before its tools run, the answer is made durable, so
that a job taken over by another worker asks no round again; the tools of the
last answer then run once more, and must bear it.

A round that calls a function of the producer ends the loop with that answer,
and none of its calls is run: the model needs the results of all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from typing_extensions import override

import schemas.job
from schemas.failure import Failure, FailureCode
from schemas.names import Kind
from worker.core.completion import CompletionHandler, check_chat, judge
from worker.core.dispatch import Dispatcher
from worker.core.kind import InvalidJobError, Result, Steps
from worker.domain.answer import Answer, ToolCall
from worker.domain.images import ImageLimits
from worker.domain.job import Job
from worker.domain.tokens import DEFAULT_OUTPUT_TOKENS
from worker.tools import Registry

_CUT_SHORT: Final = frozenset({"length", "content_filter"})
"""Reasons to stop that leave tool calls incomplete."""


class ToolHandler(CompletionHandler):
    """Runs the loop between the model and the worker's tools."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        limits: ImageLimits | None = None,
        default_output: int = DEFAULT_OUTPUT_TOKENS,
    ) -> None:
        super().__init__(limits=limits, default_output=default_output)
        self._dispatcher = dispatcher

    @property
    @override
    def kind(self) -> Kind:
        return Kind.TOOL

    @override
    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        check_chat(job.request, self._limits)
        tools = _resolved(job.request.get("tools"), self._dispatcher.registry)
        if job.request.get("n") not in (None, 1):
            raise InvalidJobError("request.n: must be 1 where tools are called")
        return {**job.request, "tools": tools}

    @override
    async def run(self, job: Job, steps: Steps, checkpoint: bytes | None) -> Result:
        ours, theirs = _sides(job.request["tools"], self._dispatcher.registry)
        rounds, messages, calls = _restored(checkpoint)
        while True:
            if calls:
                seconds = job.options.tool_timeout_seconds
                async with steps.working():
                    messages += await self._dispatcher.run(calls, allowed=ours, seconds=seconds)
            request = _next_request(job.request, messages)
            answer = await steps.call(request, self.reserve)
            rounds, calls = rounds + 1, answer.tool_calls
            if not calls or answer.finish_reason in _CUT_SHORT or any(call.name in theirs for call in calls):
                return judge(answer)
            if rounds >= job.options.max_rounds:
                return _too_many_rounds(answer, job.options.max_rounds)
            messages.append(answer.data["choices"][0]["message"])
            await steps.checkpoint(_state(rounds, messages, calls))


class _State(NamedTuple):
    """Where the loop is: rounds answered, messages added so far, calls whose tools are to run next."""

    rounds: int
    messages: list[dict[str, Any]]
    calls: Sequence[ToolCall]


def _state(rounds: int, messages: list[dict[str, Any]], calls: Sequence[ToolCall]) -> bytes:
    return orjson.dumps({"rounds": rounds, "messages": messages, "calls": calls})


def _restored(checkpoint: bytes | None) -> _State:
    if checkpoint is None:
        return _State(0, [], ())
    state = orjson.loads(checkpoint)
    return _State(state["rounds"], state["messages"], [ToolCall(**call) for call in state["calls"]])


def _next_request(request: Mapping[str, Any], messages: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return the request with what was said since; a tool that was forced is forced in the first round only.

    Else the model would have to call it for ever.
    """
    if not messages:
        return request
    following = {**request, "messages": [*request["messages"], *messages]}
    choice = request.get("tool_choice")
    allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and isinstance(allowed, dict):
        following["tool_choice"] = {**choice, "allowed_tools": {**allowed, "mode": "auto"}}
    elif choice != "none":
        following.pop("tool_choice", None)
    return following


def _too_many_rounds(answer: Answer, rounds: int) -> Result:
    message = f"the model still asks for tools after max_rounds ({rounds}) requests; raise options.max_rounds"
    return Result(answer=answer, failure=Failure(code=FailureCode.TOOL_FAILED, message=message))


# ---------------------------------------------------------------- whose tool is whose


def _resolved(entries: object, registry: Registry) -> list[dict[str, Any]]:
    """Return the tools as OpenAI takes them, registered names replaced by their definitions."""
    if not isinstance(entries, list) or not entries:
        raise InvalidJobError("request.tools: must be a list of at least one tool")
    tools: list[dict[str, Any]] = []
    seen: set[str | None] = set()
    for number, entry in enumerate(entries):
        where = f"request.tools[{number}]"
        definition = _one(entry, registry, where)
        name = _name_of(definition)
        if name in seen:
            raise InvalidJobError(f"{where}: another tool of the list has the same name")
        seen |= {name} - {None}
        tools.append(definition)
    return tools


def _one(entry: object, registry: Registry, where: str) -> dict[str, Any]:
    """Return one entry as OpenAI takes it."""
    if not isinstance(entry, dict):
        raise InvalidJobError(f"{where}: must be an object")
    if "type" in entry:
        name = _name_of(entry)
        if entry["type"] == "function" and name is None:
            raise InvalidJobError(f"{where}.function.name: is missing")
        if name is not None and entry == _registered(registry, name):
            raise InvalidJobError(f'{where}: is a tool of this worker; name it as {{"name": "{name}"}}')
        return entry
    name = entry.get("name")
    if not isinstance(name, str) or len(entry) > 1:
        raise InvalidJobError(
            f'{where}: must be a complete tool with its type, or {{"name": "<registered tool>"}}'
        )
    definition = _registered(registry, name)
    if definition is None:
        raise InvalidJobError(
            f"{where}: no such tool here; registered are: {', '.join(sorted(registry)) or 'none'}"
        )
    return definition


def _registered(registry: Registry, name: str) -> dict[str, Any] | None:
    tool = registry.get(name)
    return tool.definition if tool else None


def _name_of(tool: Mapping[str, Any]) -> str | None:
    body = tool.get(str(tool["type"]))
    name = body.get("name") if isinstance(body, dict) else None
    return name if isinstance(name, str) else None


def _sides(tools: Sequence[Mapping[str, Any]], registry: Registry) -> tuple[set[str], set[str]]:
    """Return the names of the worker's tools and of the producer's.

    What equals a registered definition is the worker's: nobody else's is let in with one.
    """
    ours, theirs = set[str](), set[str]()
    for tool in tools:
        name = _name_of(tool)
        if name is not None:
            (ours if tool == _registered(registry, name) else theirs).add(name)
    return ours, theirs
