"""The loop between the model and the worker's tools."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from typing_extensions import override

import schemas.job
from schemas.failure import FailureCode
from schemas.names import Kind
from worker.core.assistant import AssistantHandler
from worker.core.completion import CompletionHandler
from worker.core.dispatch import Dispatcher
from worker.core.embedding import EmbeddingHandler
from worker.core.kind import InvalidJobError, KindHandler, Reserve, Result, Steps
from worker.core.tool import ToolHandler
from worker.domain.answer import Answer, read_answer
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.domain.usage import Usage
from worker.tools import Registry, Tool

FIND: dict[str, Any] = {"name": "find"}
THEIRS = {"type": "function", "function": {"name": "order", "parameters": {"type": "object"}}}
CUSTOM = {"type": "custom", "custom": {"name": "shell"}}


class Died(BaseException):
    """The process is gone."""


class FakeSteps(Steps):
    """Answers from a list, and remembers what it was asked; dies where it is told to."""

    def __init__(self, *answers: Mapping[str, Any], kind: Kind = Kind.TOOL) -> None:
        self.answers = list(answers)
        self.kind = kind
        self.log: list[str] = []
        self.requests: list[Mapping[str, Any]] = []
        self.reserves: list[Usage] = []
        self.state: bytes | None = None

    @override
    async def call(self, request: Mapping[str, Any], reserve: Reserve) -> Answer:
        if not self.answers:
            raise Died
        self.log.append("call")
        self.requests.append(json.loads(json.dumps(request)))
        self.reserves.append(reserve(request))
        return read_answer(self.kind, json.dumps(self.answers.pop(0)).encode())

    @override
    def working(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    @override
    async def checkpoint(self, state: bytes) -> None:
        self.log.append("checkpoint")
        self.state = state


def says(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion."""
    said = {"role": "assistant", "content": text, "refusal": None, **message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": finish_reason, "message": said}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def wants(*calls: tuple[str, str], finish_reason: str = "tool_calls") -> dict[str, Any]:
    """Return a completion that calls tools; `custom:` marks a custom one."""
    listed: list[dict[str, Any]] = []
    for number, (name, arguments) in enumerate(calls):
        if name.startswith("custom:"):
            body = {"name": name.removeprefix("custom:"), "input": arguments}
            listed.append({"id": f"c{number}", "type": "custom", "custom": body})
        else:
            body = {"name": name, "arguments": arguments}
            listed.append({"id": f"c{number}", "type": "function", "function": body})
    return says(None, finish_reason, tool_calls=listed)


class Shop:
    """Tools that remember what they were asked."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.asked: list[str] = []
        self.log = log if log is not None else []

        def find(name: str) -> dict[str, int]:
            """Find a product."""
            self.asked.append(name)
            self.log.append("tool")
            return {"price": len(name)}

        def wipe() -> None:
            """Remove all."""
            self.asked.append("wipe")

        self.handler = ToolHandler(Dispatcher(Registry([Tool(find), Tool(wipe)])))


def wire(
    tools: Any = None, options: Mapping[str, Any] | None = None, kind: Kind = Kind.TOOL, **request: Any
) -> schemas.job.Job:
    """Return a job as a producer writes it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **request}
    if tools is not None:
        body["tools"] = tools
    chosen = schemas.job.Options(**(options or {}))
    return schemas.job.Job(kind=kind, job_id="j", request=body, options=chosen)


def prepared(handler: KindHandler, job: schemas.job.Job) -> Job:
    """Return the job as the core runs it."""
    return Job(
        key=JobKey("default", job.job_id),
        kind=job.kind,
        lane=job.kind.value,
        model="m",
        request=handler.prepare(job),
        options=job.options,
        labels={},
        fingerprint=b"",
        address=ReplyAddress(queue=None, correlation_id="j"),
        body=b"",
        received_at=datetime(2026, 11, 20, tzinfo=UTC),
    )


async def run(
    shop: Shop,
    steps: FakeSteps,
    tools: Sequence[Any] = (FIND,),
    options: Mapping[str, Any] | None = None,
    **request: Any,
) -> Result:
    """Run a tool job from wherever the steps' checkpoint is."""
    job = prepared(shop.handler, wire(list(tools), options, **request))
    return await shop.handler.run(job, steps, steps.state)


# ---------------------------------------------------------------- prepare


def test_registered_names_become_definitions() -> None:
    """A name alone is replaced by what the worker derived; a complete tool stays as it is."""
    request = Shop().handler.prepare(wire([FIND, THEIRS, CUSTOM], temperature=0))
    find, theirs, custom = request["tools"]
    assert find["function"]["name"] == "find"
    assert find["function"]["parameters"]["properties"]["name"] == {"type": "string"}
    assert (theirs, custom, request["temperature"]) == (THEIRS, CUSTOM, 0)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        (None, "request.tools: must be a list of at least one tool"),
        ([], "request.tools: must be a list"),
        ({"name": "find"}, "request.tools: must be a list"),
        (["find"], r"request.tools\[0\]: must be an object"),
        ([{}], r"request.tools\[0\]: must be a complete tool"),
        ([{"name": 5}], "must be a complete tool"),
        ([{"name": "find", "timeout": 5}], "must be a complete tool"),
        ([{"name": "sell"}], r"request.tools\[0\]: no such tool here; registered are: find, wipe"),
        ([FIND, FIND], r"request.tools\[1\]: another tool of the list has the same name"),
        ([FIND, {"type": "function", "function": {"name": "find"}}], "same name"),
        ([THEIRS, THEIRS], "same name"),
        ([{"type": "function"}], r"request.tools\[0\].function.name: is missing"),
        ([{"type": "function", "function": {"name": 7}}], "function.name: is missing"),
    ],
)
def test_wrong_tools_say_what_to_change(tools: Any, reason: str) -> None:
    """Unknown names list what there is; names are unique; an entry is one of the two forms."""
    with pytest.raises(InvalidJobError, match=reason):
        Shop().handler.prepare(wire(tools))


def test_a_copied_definition_is_refused() -> None:
    """Whose tool it is could not be told apart later."""
    handler = Shop().handler
    copied = handler.prepare(wire([FIND]))["tools"][0]
    with pytest.raises(InvalidJobError, match="is a tool of this worker"):
        handler.prepare(wire([json.loads(json.dumps(copied))]))


def test_several_choices_are_refused() -> None:
    """A loop follows one answer."""
    with pytest.raises(InvalidJobError, match=r"request\.n: "):
        Shop().handler.prepare(wire([FIND], n=2))
    Shop().handler.prepare(wire([FIND], n=1))


# ---------------------------------------------------------------- run


async def test_an_answer_without_calls_is_the_result() -> None:
    """One request, no checkpoint."""
    steps = FakeSteps(says("hello"))
    result = await run(Shop(), steps)
    assert result.answer is not None
    assert (result.answer.text, result.failure, steps.log) == ("hello", None, ["call"])


async def test_calls_are_run_and_their_results_sent_back() -> None:
    """The next request holds the answer as it was received and one message a call."""
    shop, first = Shop(), wants(("find", '{"name": "tea"}'), ("find", '{"name": "coffee"}'))
    steps = FakeSteps(first, says("done"))
    shop.log = steps.log
    result = await run(shop, steps)
    assert result.answer is not None
    assert result.answer.text == "done"
    assert steps.requests[1]["messages"] == [
        {"role": "user", "content": "hi"},
        first["choices"][0]["message"],
        {"role": "tool", "tool_call_id": "c0", "content": '{"price":3}'},
        {"role": "tool", "tool_call_id": "c1", "content": '{"price":6}'},
    ]
    assert sorted(shop.asked) == ["coffee", "tea"]
    assert steps.log == ["call", "checkpoint", "tool", "tool", "call"]


async def test_each_round_reserves_what_it_sends() -> None:
    """The messages grow, and the reserve with them."""
    steps = FakeSteps(wants(("find", '{"name": "tea"}')), says("done"), kind=Kind.TOOL)
    await run(Shop(), steps)
    assert steps.reserves[0].input_tokens < steps.reserves[1].input_tokens


async def test_mistakes_go_back_to_the_model() -> None:
    """Unknown tools, tools not named in the job, and bad arguments are results like others."""
    shop = Shop()
    steps = FakeSteps(
        wants(("sell", "{}"), ("wipe", "{}"), ("find", "{"), ("find", '{"nam": 1}')), says("sorry")
    )
    result = await run(shop, steps)
    assert result.failure is None
    contents = [json.loads(message["content"]) for message in steps.requests[1]["messages"][2:]]
    assert [list(content) for content in contents] == [["error"]] * 4
    assert shop.asked == []


@pytest.mark.parametrize(
    "calls",
    [
        [("order", "{}")],
        [("find", '{"name": "tea"}'), ("order", "{}")],
        [("find", '{"name": "tea"}'), ("custom:shell", "ls")],
    ],
)
async def test_calls_of_the_producers_tools_go_back_to_it(calls: list[tuple[str, str]]) -> None:
    """One such call ends the loop with the answer as received, and no other call of it is run."""
    shop, steps = Shop(), FakeSteps(wants(*calls))
    result = await run(shop, steps, tools=[FIND, THEIRS, CUSTOM])
    assert result.answer is not None
    assert [call.name for call in result.answer.tool_calls] == [
        name.removeprefix("custom:") for name, _ in calls
    ]
    assert (result.failure, shop.asked, steps.log) == (None, [], ["call"])


async def test_a_producers_tool_may_be_called_in_a_later_round() -> None:
    """Ours run first where they are asked alone."""
    shop, steps = Shop(), FakeSteps(wants(("find", '{"name": "tea"}')), wants(("order", "{}")))
    result = await run(shop, steps, tools=[FIND, THEIRS])
    assert result.answer is not None
    assert ([call.name for call in result.answer.tool_calls], shop.asked) == (["order"], ["tea"])


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
async def test_calls_that_were_cut_short_are_not_run(finish_reason: str) -> None:
    """Half a call is none."""
    shop = Shop()
    steps = FakeSteps(wants(("find", '{"name": "te'), finish_reason=finish_reason))
    result = await run(shop, steps)
    assert result.answer is not None
    assert (result.answer.finish_reason, shop.asked, steps.log) == (finish_reason, [], ["call"])


@pytest.mark.parametrize("max_rounds", [1, 2, 5])
async def test_max_rounds_ends_the_loop(max_rounds: int) -> None:
    """The last allowed answer is kept, its tools are not run, and the failure says why."""
    shop, steps = Shop(), FakeSteps(*[wants(("find", '{"name": "tea"}'))] * 10)
    result = await run(shop, steps, options={"max_rounds": max_rounds})
    assert result.failure is not None
    assert result.failure.code is FailureCode.TOOL_FAILED
    assert f"max_rounds ({max_rounds})" in result.failure.message
    assert result.answer is not None
    assert (len(steps.requests), len(shop.asked)) == (max_rounds, max_rounds - 1)


async def test_a_slow_tool_is_told_to_the_model() -> None:
    """`tool_timeout_seconds` bounds each call."""

    async def find(name: str) -> None:
        await asyncio.Event().wait()

    handler = ToolHandler(Dispatcher(Registry([Tool(find)])))
    steps = FakeSteps(wants(("find", '{"name": "tea"}')), says("done"))
    await handler.run(prepared(handler, wire([FIND], {"tool_timeout_seconds": 0.05})), steps, None)
    told = steps.requests[1]["messages"][-1]["content"]
    assert json.loads(told) == {"error": "the tool did not answer within 0.05 s"}


@pytest.mark.parametrize(
    ("choice", "later"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", None),
        ({"type": "function", "function": {"name": "find"}}, None),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        ),
    ],
)
async def test_a_forced_tool_is_forced_once(choice: Any, later: Any) -> None:
    """Else no loop with a forced tool would ever end."""
    steps = FakeSteps(wants(("find", '{"name": "tea"}'), finish_reason="stop"), says("done"))
    await run(Shop(), steps, tool_choice=choice)
    assert steps.requests[0]["tool_choice"] == choice
    assert steps.requests[1].get("tool_choice") == later


# ---------------------------------------------------------------- checkpoints


async def test_a_job_taken_over_asks_no_round_again() -> None:
    """The tools of the last answer run again; the rounds before it are neither asked nor run again."""
    answers = [wants(("find", f'{{"name": "{name}"}}')) for name in ("tea", "milk")]
    shop, steps = Shop(), FakeSteps(*answers)
    with pytest.raises(Died):
        await run(shop, steps)
    assert shop.asked == ["tea", "milk"]
    shop, after = Shop(), FakeSteps(says("done"))
    after.state = steps.state
    result = await run(shop, after)
    assert result.answer is not None
    assert (result.answer.text, shop.asked) == ("done", ["milk"])
    undisturbed = FakeSteps(*answers, says("done"))
    await run(Shop(), undisturbed)
    assert after.requests == undisturbed.requests[2:]


async def test_rounds_before_a_takeover_count() -> None:
    """A crash does not buy more rounds."""
    steps = FakeSteps(*[wants(("find", '{"name": "tea"}'))] * 2)
    with pytest.raises(Died):
        await run(Shop(), steps)
    after = FakeSteps(*[wants(("find", '{"name": "tea"}'))] * 9)
    after.state = steps.state
    result = await run(Shop(), after, options={"max_rounds": 3})
    assert result.failure is not None
    assert len(after.requests) == 1


# ---------------------------------------------------------------- the kinds of one request


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (says("hello"), None),
        (says("half", "length"), None),
        (says("half", "content_filter"), None),
        (says(None, "content_filter"), FailureCode.CONTENT_FILTERED),
        (says("", "content_filter"), FailureCode.CONTENT_FILTERED),
        (says(None, "stop", refusal="I won't"), None),
    ],
)
async def test_a_completion_is_one_request(answer: dict[str, Any], code: FailureCode | None) -> None:
    """The answer is the result; only what a filter emptied is a failure, and keeps the answer."""
    handler, steps = CompletionHandler(), FakeSteps(answer)
    job = prepared(handler, wire(kind=Kind.COMPLETION))
    result = await handler.run(job, steps, None)
    assert result.answer is not None
    assert result.answer.data == answer
    assert (result.failure and result.failure.code) == code
    assert steps.requests == [job.request]


async def test_an_embedding_is_one_request() -> None:
    """Its answer is the result."""
    answer = {"object": "list", "model": "m", "data": [{"index": 0, "embedding": "AAAA"}], "usage": {}}
    handler, steps = EmbeddingHandler(), FakeSteps(answer, kind=Kind.EMBEDDING)
    result = await handler.run(prepared(handler, wire(kind=Kind.EMBEDDING, input="x")), steps, None)
    assert (result.answer and result.answer.data, result.failure) == (answer, None)


def response(status: str, **more: Any) -> dict[str, Any]:
    """Return a Responses answer."""
    return {"id": "r", "object": "response", "model": "m", "status": status, "output": [], **more}


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        (response("completed"), None, None),
        (response("incomplete", incomplete_details={"reason": "max_output_tokens"}), None, None),
        (
            response("incomplete", incomplete_details={"reason": "content_filter"}),
            FailureCode.CONTENT_FILTERED,
            False,
        ),
        (response("failed", error={"code": "server_error"}), FailureCode.UNAVAILABLE, True),
        (response("failed", error={"code": "rate_limit_exceeded"}), FailureCode.RATE_LIMITED, True),
        (response("failed", error={"code": "invalid_prompt"}), FailureCode.REJECTED, False),
        (response("failed", error={"code": ["x"]}), FailureCode.REJECTED, False),
        (response("failed"), FailureCode.REJECTED, False),
    ],
)
async def test_a_response_may_have_failed_inside_a_200(
    *, answer: dict[str, Any], code: FailureCode | None, retryable: bool | None
) -> None:
    """Its own status is the truth; the answer is kept."""
    handler, steps = AssistantHandler(), FakeSteps(answer, kind=Kind.ASSISTANT)
    result = await handler.run(prepared(handler, wire(kind=Kind.ASSISTANT, input="x")), steps, None)
    assert result.answer is not None
    assert (result.failure and result.failure.code) == code
    assert (result.failure and result.failure.retryable) == retryable
