"""From a delivery to a job, or to one clear reason."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import Kind
from worker.core.assistant import AssistantHandler
from worker.core.completion import CompletionHandler
from worker.core.dispatch import Dispatcher
from worker.core.embedding import EmbeddingHandler
from worker.core.intake import FORBIDDEN, Rejection, ReplyPolicy, decode
from worker.core.kind import KindHandler
from worker.core.tool import ToolHandler
from worker.core.vision import VisionHandler
from worker.domain.job import Job, ReplyAddress
from worker.ports import Delivery
from worker.tools import Registry

MAX_BYTES = 8 * 1024 * 1024
SECRET = "sk-very-secret prompt"
MESSAGES = [{"role": "user", "content": "hello"}]

_HANDLERS: list[KindHandler] = [
    CompletionHandler(),
    VisionHandler(),
    ToolHandler(Dispatcher(Registry())),
    EmbeddingHandler(),
    AssistantHandler(),
]
HANDLERS = {handler.kind: handler for handler in _HANDLERS}


def job(**changes: Any) -> dict[str, Any]:
    """Return a valid job; a change to `...` takes the field away."""
    fields = {
        "version": 1,
        "kind": "completion",
        "job_id": "j-1",
        "tenant": "acme",
        "request": {"model": "gpt-6-luna", "messages": MESSAGES},
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def request(**changes: Any) -> dict[str, Any]:
    """Return a job with changes to its request."""
    return job(request={**job()["request"], **changes})


def delivery(body: Any, **properties: Any) -> Delivery:
    """Return a message, its body encoded where it is not bytes."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    at = datetime(2026, 11, 20, tzinfo=UTC)
    fields: dict[str, Any] = {"lane": "completion", "high": False, "redelivered": False, "received_at": at}
    return Delivery(body=encoded, **{**fields, **properties})


def read(
    message: Delivery, policy: ReplyPolicy | None = None, aliases: dict[str, str] | None = None
) -> Job | Rejection:
    """Decode with all handlers."""
    return decode(
        message,
        handlers=HANDLERS,
        max_job_bytes=MAX_BYTES,
        reply_policy=policy or ReplyPolicy(),
        aliases=aliases,
    )


def good(message: Delivery, **more: Any) -> Job:
    """Decode what must be valid."""
    decoded = read(message, **more)
    assert isinstance(decoded, Job), decoded
    return decoded


def refused(message: Delivery, **more: Any) -> Rejection:
    """Decode what must not be valid."""
    decoded = read(message, **more)
    assert isinstance(decoded, Rejection)
    return decoded


def test_a_good_job_arrives_whole() -> None:
    """Names, request, options, labels, address and times are those of the message."""
    body = job(labels={"feature": "x"}, options={"timeout_seconds": 12, "max_rounds": 3})
    message = delivery(body, reply_to="replies", correlation_id="c-1", lane="tool", high=True)
    decoded = good(message)
    assert decoded.key == ("acme", "j-1")
    assert (decoded.kind, decoded.lane, decoded.high) == (Kind.COMPLETION, "tool", True)
    assert (decoded.model, decoded.request) == ("gpt-6-luna", body["request"])
    assert (decoded.options.timeout_seconds, decoded.options.max_rounds) == (12, 3)
    assert decoded.labels == {"feature": "x"}
    assert decoded.address == ReplyAddress(queue="replies", correlation_id="c-1")
    assert (decoded.body, decoded.received_at) == (message.body, message.received_at)


def test_what_is_left_out_has_its_default() -> None:
    """No tenant is `default`, no correlation id is the job id, no reply_to means stored only."""
    decoded = good(delivery(job(tenant=..., version=...)))
    assert decoded.key == ("default", "j-1")
    assert decoded.address == ReplyAddress(queue=None, correlation_id="j-1")


def test_the_message_id_serves_where_the_body_has_no_job_id() -> None:
    """It serves only then; with both, the body counts."""
    assert good(delivery(job(job_id=...), message_id="m-1")).key.job_id == "m-1"
    assert good(delivery(job(), message_id="m-1")).key.job_id == "j-1"


def test_unknown_parameters_pass_through() -> None:
    """Whatever OpenAI will accept one day reaches it untouched."""
    body = request(brand_new={"deep": [1, 2.5, None, True]}, store=True)
    assert good(delivery(body)).request == body["request"]


def test_an_alias_names_the_model() -> None:
    """The model sent is the alias's, the fingerprint is of what the producer wrote."""
    body = request(model="fast")
    aliased, plain = good(delivery(body), aliases={"fast": "gpt-6-luna"}), good(delivery(body))
    assert aliased.model == aliased.request["model"] == "gpt-6-luna"
    assert aliased.fingerprint == plain.fingerprint


# ---------------------------------------------------------------- fingerprint


def test_layout_is_not_content() -> None:
    """Order of keys, spaces and escapes do not make another job; nor does where the reply goes."""
    one = delivery(job())
    other = delivery(
        json.dumps(dict(reversed(job().items())), indent=3).replace("hello", "\\u0068ello").encode(),
        reply_to="elsewhere",
        correlation_id="c-9",
    )
    assert good(one).fingerprint == good(other).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        job(kind="vision"),
        request(temperature=0),
        job(options={"max_rounds": 3}),
        job(labels={"a": "b"}),
        request(messages=[{"role": "user", "content": "hello!"}]),
    ],
)
def test_content_is_kind_request_options_and_labels(other: dict[str, Any]) -> None:
    """A change to any of them is another content."""
    assert good(delivery(job())).fingerprint != good(delivery(other)).fingerprint


# ---------------------------------------------------------------- refusals

BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "empty"),
    "not JSON": (b"hello there", "not valid JSON"),
    "cut off": (b'{"version": 1', "ends too early"),
    "two values": (b"{} {}", "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "latin-1": (json.dumps(job()).replace("hello", "h\u00e9llo").encode("latin-1"), "not UTF-8"),
    "UTF-16": (json.dumps(job()).encode("utf-16"), "not valid JSON"),
    "lone surrogate": (json.dumps(job()).replace("hello", "\\ud800").encode(), "not valid JSON"),
    "NaN": (json.dumps(request(temperature=float("nan"))).encode(), "NaN"),
    "Infinity": (json.dumps(request(temperature=float("inf"))).encode(), "Infinity"),
    "overflowing float": (json.dumps(request(seed=77)).replace("77", "1e400").encode(), "64 bits"),
    "overflowing digits": (
        json.dumps(request(seed=77)).replace("77", "1" * 400 + ".5").encode(),
        "64 bits",
    ),
    "integer beyond 64 bits": (request(seed=2**64), "64 bits"),
    "5000 digits": (json.dumps(request(seed=77)).replace("77", "7" * 5000).encode(), "too many digits"),
    "deep nesting": (b'{"request":' * 10_000, "nested deeper"),
    "deep nesting in the request": (
        json.dumps(request(x=77)).replace("77", "[" * 5000 + "]" * 5000).encode(),
        "nested deeper",
    ),
    "twice the same key": (b'{"kind": "tool", "kind": "completion"}', "the key kind twice"),
    "a secret key twice": (b'{"sk very secret": 1, "sk very secret": 2}', "the key <field> twice"),
    "a list": ([job()], "JSON object"),
    "a text": ("job", "JSON object"),
    "null": (None, "JSON object"),
    "no job id": (job(job_id=...), "job_id: is missing"),
    "empty job id": (job(job_id=""), "job_id"),
    "long job id": (job(job_id="j" * 256), "job_id: must be at most 255 bytes"),
    "job id with a line break": (job(job_id="a\nb"), "job_id: must be printable"),
    "number as job id": (job(job_id=7), "job_id"),
    "no kind": (job(kind=...), "kind: is missing"),
    "unknown kind": (job(kind="haiku"), "kind: must be"),
    "kind without handler": (job(kind="batch"), "kind: batch is not served"),
    "version 2": (job(version=2), "version: must be 1"),
    "unknown field": (job(priority=9), "priority: is not a known field"),
    "unknown option": (job(options={"timeout": 9}), "options.timeout: is not a known field"),
    "timeout as text": (job(options={"timeout_seconds": "9"}), "options.timeout_seconds"),
    "deadline without zone": (job(options={"deadline": "2026-12-01T00:00:00"}), "options.deadline"),
    "infinite timeout": (
        json.dumps(job(options={"timeout_seconds": 77})).replace("77", "1e999").encode(),
        "options.timeout_seconds",
    ),
    "stream": (job(options={"stream": True}), "options.stream: streaming is not served"),
    "labels that are no texts": (job(labels={"a": 1}), "labels.a"),
    "hostile label": (job(labels={SECRET: 1}), "labels.<field>"),
    "no request": (job(request=...), "request: is missing"),
    "request is a list": (job(request=[]), "request: must be an object"),
    "no model": (job(request={"messages": MESSAGES}), "request.model: is missing"),
    "model is no text": (request(model=7), "request.model"),
    "empty model": (request(model=""), "request.model"),
    "long model": (request(model="m" * 257), "request.model"),
    "model with a line break": (request(model="gpt\r\nX: y"), "request.model"),
    "no messages": (job(request={"model": "m"}), "request.messages"),
    "empty messages": (request(messages=[]), "request.messages"),
    "messages that are no objects": (request(messages=[SECRET]), "request.messages"),
    "private image": (
        request(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/secret"}}],
                }
            ]
        ),
        "request.messages[0].content[0].image_url: the host must be public",
    ),
    "no embedding input": (job(kind="embedding", request={"model": "m"}), "request.input"),
    "background response": (
        job(kind="assistant", request={"model": "m", "input": "x", "background": True}),
        "request.background",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_job_gets_one_clear_reason(name: str) -> None:
    """One sentence or two that say what to change, and the reply still finds its way."""
    body, expected = BAD[name]
    rejection = refused(delivery(body, reply_to="replies", correlation_id="c-1"))
    assert expected in rejection.reason
    assert rejection.address == ReplyAddress(queue="replies", correlation_id="c-1")
    assert len(rejection.reason) < 400
    assert "secret" not in rejection.reason
    assert "\n" not in rejection.reason


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_a_request_cannot_steer_the_worker(name: str) -> None:
    """Credentials, addresses, headers and streaming are not part of a request, whatever their value."""
    assert refused(delivery(request(**{name: None}))).reason.startswith(f"request.{name}: is not part")


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"content_encoding": "gzip"}, "content_encoding"),
        ({"content_encoding": "deflate"}, "content_encoding"),
        ({"content_type": "text/plain"}, "content_type"),
        ({"content_type": "application/x-python-serialize"}, "content_type"),
        ({"user_id": "other"}, "tenant: must equal"),
    ],
)
def test_properties_must_fit(properties: dict[str, str], expected: str) -> None:
    """A body that is compressed, of another type or for another user is refused."""
    assert refused(delivery(job(), **properties)).reason.startswith(expected)


@pytest.mark.parametrize(
    "properties",
    [
        {"content_type": "application/json"},
        {"content_type": "Application/JSON; charset=utf-8"},
        {"content_encoding": "utf-8"},
        {"content_encoding": "identity"},
        {"user_id": "acme"},
    ],
)
def test_usual_properties_are_fine(properties: dict[str, str]) -> None:
    """What ordinary clients set is accepted."""
    good(delivery(job(), **properties))


def test_a_user_must_name_its_tenant() -> None:
    """With a checked user, a missing tenant is not taken for the default one."""
    assert "tenant: is missing" in refused(delivery(job(tenant=...), user_id="acme")).reason
    assert good(delivery(job(tenant=...), user_id="default")).key.tenant == "default"


def test_too_large_is_refused_unread() -> None:
    """Ten megabytes cost nothing but the look at their length."""
    rejection = refused(delivery(b"{" * 10_000_000, message_id="m-1"))
    assert "refused unread" in rejection.reason
    assert (rejection.job_id, rejection.tenant, rejection.kind) == ("m-1", None, None)


def test_a_refusal_names_what_can_be_named() -> None:
    """Valid names are kept, invalid ones are None, and nothing is made up."""
    rejection = refused(delivery(job(kind="tool", request=7), message_id="m-1"))
    assert (rejection.job_id, rejection.tenant, rejection.kind) == ("j-1", "acme", Kind.TOOL)
    rejection = refused(delivery({"job_id": ["x"], "tenant": "a\nb", "kind": 7}))
    assert (rejection.job_id, rejection.tenant, rejection.kind) == (None, None, None)
    rejection = refused(delivery({"kind": "nothing"}, message_id="m-1"))
    assert (rejection.job_id, rejection.tenant, rejection.kind) == ("m-1", "default", None)


# ---------------------------------------------------------------- reply_to


@pytest.mark.parametrize(
    ("queue", "allowed"),
    [
        ("replies", True),
        ("acme.replies/1", True),
        ("openaire", True),
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", True),
        ("amq.rabbitmq.reply-to.g1h2AAJ", True),
        ("openai.jobs.completion", False),
        ("openai.dead", False),
        ("openai.", False),
        ("amq.topic", False),
        ("amq.rabbitmq.log", False),
        ("amq.rabbitmq.reply-to", False),
        ("with\nbreak", False),
    ],
)
def test_which_queues_may_be_replied_to(*, queue: str, allowed: bool) -> None:
    """Any but the reserved ones; a job with a forbidden one is invalid and gets no address."""
    decoded = read(delivery(job(), reply_to=queue))
    if allowed:
        assert isinstance(decoded, Job)
        assert decoded.address.queue == queue
    else:
        assert isinstance(decoded, Rejection)
        assert decoded.reason.startswith("reply_to: ")
        assert decoded.address is None


def test_an_empty_reply_to_is_none() -> None:
    """Some clients send an empty text for no reply."""
    assert good(delivery(job(), reply_to="")).address.queue is None


def test_patterns_match_whole_names_and_tenants_have_their_own() -> None:
    """A tenant's pattern stands instead of the general one; reserved names stay reserved under any."""
    policy = ReplyPolicy.of(r"replies\..*", {"acme": r"acme\..*|openai\..*"})
    assert policy.allows("replies.x", "other")
    assert policy.allows("replies.x", None)
    assert not policy.allows("my.replies.x", "other")
    assert not ReplyPolicy.of("replies").allows("replies.of.others", "other")
    assert policy.allows("acme.x", "acme")
    assert not policy.allows("replies.x", "acme")
    assert not policy.allows("openai.jobs.tool", "acme")


def test_the_checked_user_decides_which_patterns_count() -> None:
    """A refused job that claims another tenant is not answered into that tenant's queues."""
    policy = ReplyPolicy.of(r"replies\..*", {"acme": r"acme\..*"})
    message = delivery(job(), user_id="other", reply_to="acme.x")
    assert refused(message, policy=policy).address is None
    assert refused(replace(message, reply_to="replies.x"), policy=policy).address is not None


def test_a_wrong_pattern_names_its_owner() -> None:
    """An operator learns whose pattern is no regular expression."""
    with pytest.raises(ValueError, match="tenant acme"):
        ReplyPolicy.of(None, {"acme": "("})


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = ("version", "kind", "job_id", "tenant", "labels", "request", "options")
REQUEST_FIELDS = ("model", "messages", "tools", "input", "prompt", "images", "n", "max_tokens", "content")
KINDS = st.sampled_from([kind.value for kind in Kind])


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes_are_decoded_or_refused(body: bytes, reply_to: str) -> None:
    """No body, whatever it holds, raises."""
    assert isinstance(read(delivery(body, reply_to=reply_to)), Rejection)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), KINDS)
def test_any_fields_are_decoded_or_refused(changes: dict[str, Any], kind: str) -> None:
    """No field of a job, whatever it holds, raises."""
    body = json.dumps({**job(kind=kind), **changes}).encode()
    assert isinstance(read(delivery(body)), Job | Rejection)


@given(st.dictionaries(st.sampled_from(REQUEST_FIELDS), JSON), KINDS)
def test_any_request_is_prepared_and_reserved_or_refused(changes: dict[str, Any], kind: str) -> None:
    """No request raises, and each accepted one has a reserve that a database column holds."""
    decoded = read(delivery(json.dumps({**request(**changes), "kind": kind}).encode()))
    if isinstance(decoded, Job):
        reserve = HANDLERS[decoded.kind].reserve(decoded.request)
        assert 0 <= reserve.total_tokens < 2**63


@given(st.lists(JSON, max_size=3), st.sampled_from(["messages", "input"]), KINDS)
def test_any_content_is_prepared_and_reserved_or_refused(parts: list[Any], key: str, kind: str) -> None:
    """No content part raises either."""
    typed = [
        {"type": name, **part}
        for part in parts
        if isinstance(part, dict)
        for name in ("text", "image_url", "file", "input_audio")
    ]
    typed += [{"type": "image_url", "image_url": part} for part in parts]
    items = [{"role": "user", "content": [*parts, *typed]}, {"role": "tool", "tool_calls": parts}]
    decoded = read(delivery(json.dumps({**request(**{key: items}), "kind": kind}).encode()))
    if isinstance(decoded, Job):
        assert HANDLERS[decoded.kind].reserve(decoded.request).total_tokens >= 0


@given(st.data())
def test_a_damaged_body_is_decoded_or_refused(data: st.DataObject) -> None:
    """A byte changed, lost or doubled never raises."""
    body = bytearray(json.dumps(job(labels={"a": "b"}, options={"max_rounds": 2})).encode())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    assert isinstance(read(delivery(bytes(body))), Job | Rejection)
