"""What the OpenAI client sends, and what it makes of good answers and refusals."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import httpx2
import orjson
import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai._types import RequestOptions

from schemas.names import Kind
from tests.support.upstream import ALWAYS, Act, Upstream
from worker.adapters.openai_api.client import OpenAIClient
from worker.adapters.openai_api.credentials import AccountCredentials
from worker.domain.answer import read_answer
from worker.domain.attempt import Account
from worker.domain.outcome import Answered, Refused
from worker.ports import Call

KEY = "sk-proj-0123456789abcdef"
PROMPT = "Call Ms Canary-4711 of 12 Harbour Lane, please."


def call(
    *, kind: Kind = Kind.COMPLETION, prompt: str = PROMPT, account: str = "default", timeout: float = 5
) -> Call:
    """Return a call with a small request."""
    text = (
        {"messages": [{"role": "user", "content": prompt}]} if kind is Kind.COMPLETION else {"input": prompt}
    )
    body = orjson.dumps({"model": "gpt-6-luna"} | text)
    return Call(kind=kind, body=body, account=Account(name=account), timeout=timeout)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Return a running stand-in for OpenAI."""
    async with Upstream() as running:
        yield running


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[OpenAIClient]:
    """Return a client of it, with two accounts."""
    accounts = [
        AccountCredentials(name="default", api_key=KEY, base_url=upstream.base_url),
        AccountCredentials(
            name="acme",
            api_key="sk-acme",
            organization="org-a",
            project="proj-a",
            base_url=upstream.base_url,
        ),
    ]
    async with OpenAIClient(accounts) as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Kind.COMPLETION, "/v1/chat/completions"),
        (Kind.ASSISTANT, "/v1/responses"),
        (Kind.EMBEDDING, "/v1/embeddings"),
    ],
)
async def test_each_kind_has_its_endpoint(
    client: OpenAIClient, upstream: Upstream, kind: Kind, path: str
) -> None:
    """The body goes out as it is, to the endpoint of its kind, and the answer can be read."""
    sent = call(kind=kind)
    outcome = await client.send(sent)
    assert isinstance(outcome, Answered)
    assert read_answer(kind, outcome.body).model == "gpt-6-luna"
    [seen] = upstream.requests
    assert (seen.path, seen.body) == (path, orjson.loads(sent.body))


async def test_headers_are_the_sdks(client: OpenAIClient, upstream: Upstream) -> None:
    """Authentication and telemetry are those of OpenAI's SDK; nothing asks for packed answers."""
    await client.send(call())
    headers = upstream.requests[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"].startswith("AsyncOpenAI/Python")
    assert headers["x-stainless-retry-count"] == "0"


async def test_a_further_request_is_as_the_sdk_sends_it(client: OpenAIClient, upstream: Upstream) -> None:
    """What was prepared for one request serves the next: only body and timeout differ from `post`'s."""
    for prompt, timeout in (("one", 5), ("two, which is longer", 5.9), ("three", 7)):
        await client.send(call(prompt=prompt, timeout=timeout))
    async with AsyncOpenAI(
        api_key=KEY,
        base_url=upstream.base_url,
        max_retries=0,
        default_headers={"Accept-Encoding": "identity"},
        http_client=DefaultAioHttpClient(),
    ) as plain:
        sent = call(prompt="four", timeout=5)
        options: RequestOptions = {"timeout": 5.0}
        await plain.post("/chat/completions", content=sent.body, cast_to=httpx2.Response, options=options)
    ours, theirs = upstream.requests[:3], upstream.requests[3]
    prompts = [seen.body["messages"][0]["content"] for seen in upstream.requests]
    assert prompts == ["one", "two, which is longer", "three", "four"]
    assert [seen.headers.pop("x-stainless-read-timeout") for seen in ours] == ["5.0", "5.0", "7.0"]
    assert theirs.headers.pop("x-stainless-read-timeout") == "5.0"
    expected = _of_the_sdk(theirs.headers)
    assert [_of_the_sdk(seen.headers) for seen in ours] == [expected] * 3


def _of_the_sdk(headers: Mapping[str, str]) -> dict[str, str]:
    of_the_transport = {"content-length", "connection"}
    return {name: value for name, value in headers.items() if name not in of_the_transport}


async def test_accounts_are_kept_apart(
    upstream: Upstream, client: OpenAIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each account has its own key, organization and project, and none from the environment."""
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://from.the.environment.invalid/v1")
    accounts = [
        AccountCredentials(name="default", api_key=KEY, base_url=upstream.base_url),
        AccountCredentials(name="acme", api_key="sk-acme", organization="org-a", base_url=upstream.base_url),
    ]
    async with OpenAIClient(accounts) as opened:
        await opened.send(call())
        await opened.send(call(account="acme"))
    first, second = (seen.headers for seen in upstream.requests)
    assert (first["authorization"], first.get("openai-organization")) == (f"Bearer {KEY}", None)
    assert (second["authorization"], second["openai-organization"]) == ("Bearer sk-acme", "org-a")
    assert not {"openai-project"} & (first.keys() | second.keys())


async def test_cookies_are_not_kept(client: OpenAIClient, upstream: Upstream) -> None:
    """A cookie that OpenAI's front sets is not sent back."""
    await client.send(call())
    await client.send(call())
    assert "cookie" not in upstream.requests[1].headers


async def test_connections_are_reused(client: OpenAIClient, upstream: Upstream) -> None:
    """One call after the other needs one connection, whether answered or refused."""
    upstream.script(Act(), Act(status=500), Act())
    for _ in range(4):
        await client.send(call())
    assert len({seen.connection for seen in upstream.requests}) == 1


async def test_calls_at_once_do_not_mix(client: OpenAIClient) -> None:
    """Of a hundred calls in flight, each gets its own answer."""

    async def ask(number: int) -> bool:
        outcome = await client.send(call(prompt=f'<<{{"delay": 0.05}}>> number {number};', timeout=20))
        assert isinstance(outcome, Answered)
        return str(read_answer(Kind.COMPLETION, outcome.body).text).endswith(f" number {number};")

    assert all(await asyncio.gather(*(ask(number) for number in range(100))))


async def test_large_bodies_travel(client: OpenAIClient, upstream: Upstream) -> None:
    """An image of some megabytes goes out, and an answer of some comes back."""
    upstream.script(Act(text="x" * 3_000_000))
    outcome = await client.send(call(prompt="y" * 5_000_000, timeout=20))
    assert isinstance(outcome, Answered)
    assert len(outcome.body) > 3_000_000
    assert len(upstream.requests[0].body["messages"][0]["content"]) == 5_000_000


async def test_only_useful_headers_are_kept(client: OpenAIClient, upstream: Upstream) -> None:
    """Limits and the request id are passed on, in lower case; cookies and the like are not."""
    upstream.script(Act(headers={"X-RateLimit-Remaining-Tokens": "7", "OpenAI-Processing-Ms": "5"}))
    outcome = await client.send(call())
    assert isinstance(outcome, Answered)
    assert outcome.headers == {"x-request-id": "req_1", "x-ratelimit-remaining-tokens": "7"}
    assert outcome.request_id == "req_1"


async def test_a_refusal_keeps_code_and_advice(client: OpenAIClient, upstream: Upstream) -> None:
    """A 429 comes back after one request, with its code, type and what it says of waiting."""
    upstream.script(
        Act(
            status=429,
            error={"code": "rate_limit_exceeded", "type": "tokens", "message": "Rate limit reached."},
            headers={"Retry-After": "30", "Retry-After-Ms": "300", "X-Should-Retry": "true"},
        )
    )
    outcome = await client.send(call())
    assert outcome == Refused(
        http_status=429,
        code="rate_limit_exceeded",
        kind="tokens",
        message="Rate limit reached.",
        headers={
            "x-request-id": "req_1",
            "retry-after": "30",
            "retry-after-ms": "300",
            "x-should-retry": "true",
        },
        request_id="req_1",
    )
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "status", [301, 400, 401, 403, 404, 408, 409, 413, 422, 425, 500, 502, 503, 504, 529]
)
async def test_any_status_is_refused_once(client: OpenAIClient, upstream: Upstream, status: int) -> None:
    """Nothing is retried behind the worker's back, and no page of a proxy is quoted."""
    upstream.script(Act(status=status, body="<html>secret</html>", headers={"Content-Type": "text/html"}))
    outcome = await client.send(call())
    assert isinstance(outcome, Refused)
    assert (outcome.http_status, outcome.code, outcome.kind) == (status, None, None)
    assert outcome.message == f"OpenAI answered with status {status}"
    assert len([seen for seen in upstream.requests if seen.path.endswith("/completions")]) == 1


@pytest.mark.parametrize(
    ("act", "gone"),
    [
        (Act(status=404, body="<h1>404 Not Found</h1>", headers={"Content-Type": "text/html"}), True),
        (Act(status=404, body='{"detail": "Not Found"}'), True),
        (Act(status=404, body=""), True),
        (Act(status=405, body='{"detail": "Method Not Allowed"}'), True),
        (Act(status=404, error={"message": "Invalid URL (POST /chat/completions)"}), True),
        (Act(status=404, error={"code": "unknown_url", "message": "Unknown request URL: POST /chat."}), True),
        (Act(status=404, error={"code": "not_found", "message": "Not Found"}), True),
        (Act(status=404, error={"code": "model_not_found", "message": "There is no such model."}), False),
        (Act(status=404, error={"message": "No such File object: file-1"}), False),
        (Act(status=404, body='{"error": {"code": "model_not_found"}}'), False),
        (Act(status=400, body="<html>"), False),
    ],
)
async def test_a_missing_address_is_told_from_a_missing_model(
    client: OpenAIClient, upstream: Upstream, *, act: Act, gone: bool
) -> None:
    """What OpenAI names in an error object is the request's affair, a page of no such address is not."""
    upstream.script(replace(act, times=ALWAYS))
    outcome = await client.send(call())
    assert isinstance(outcome, Refused)
    assert outcome.no_such_path is gone


async def test_a_server_that_lacks_the_first_path_asked_for_is_there(
    client: OpenAIClient, upstream: Upstream
) -> None:
    """Nothing has been answered yet, but it lists its models: the job is refused, and nothing else."""
    upstream.script(Act(status=404, body='{"detail": "Not Found"}'))
    outcome = await client.send(replace(call(), kind=Kind.EMBEDDING))
    assert isinstance(outcome, Refused)
    assert not outcome.no_such_path
    assert [seen.path.rpartition("/")[2] for seen in upstream.requests] == ["embeddings", "models"]


async def test_a_path_that_was_never_there_is_no_missing_address(
    client: OpenAIClient, upstream: Upstream
) -> None:
    """A server that has no embeddings refuses that job; once its chats are gone, so is the address."""
    missing = Act(status=404, body='{"detail": "Not Found"}')
    assert isinstance(await client.send(call()), Answered)
    upstream.script(missing, missing)
    embedding = await client.send(replace(call(), kind=Kind.EMBEDDING))
    chat = await client.send(call())
    assert isinstance(embedding, Refused)
    assert isinstance(chat, Refused)
    assert (embedding.no_such_path, chat.no_such_path) == (False, True)


async def test_redirects_are_not_followed(client: OpenAIClient, upstream: Upstream) -> None:
    """A redirect never carries key and prompt elsewhere."""
    async with Upstream() as elsewhere:
        upstream.script(Act(status=307, headers={"Location": f"{elsewhere.base_url}/chat/completions"}))
        outcome = await client.send(call())
        assert isinstance(outcome, Refused)
        assert outcome.http_status == 307
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            f"Incorrect API key provided: {KEY}. Find yours at https://platform.openai.com/account/api-keys.",
            "Incorrect API key provided: sk-… Find yours at https://platform.openai.com/account/api-keys.",
        ),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' with gpt-6-luna.",
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' with gpt-6-luna.",
        ),
        ("Invalid 'messages[0].content': 'Harbour Lane'.", "Invalid 'messages[0].content': '…'."),
        ("You said call Ms Canary of 12 Harbour Lane to us", "You said call Ms Canary … to us"),
        ("Unknown customer Canary-4711.", "Unknown customer …"),
        (
            "Cannot fetch https://files.example/p.png?token=s3cr3t for you.",
            "Cannot fetch … for you.",
        ),
        ("line one\nline two\x00\x1b[31m", "line one line two [31m"),
        ("long " * 200, ("long " * 200)[:299] + "…"),
    ],
)
async def test_messages_are_safe_to_show(
    client: OpenAIClient, upstream: Upstream, said: str, shown: str
) -> None:
    """Keys, foreign addresses and the prompt are taken out of OpenAI's message, its advice stays."""
    upstream.script(Act(status=400, error={"message": said}))
    outcome = await client.send(call())
    assert isinstance(outcome, Refused)
    assert outcome.message == shown


async def test_large_requests_are_not_searched(client: OpenAIClient, upstream: Upstream) -> None:
    """Where looking for quotations would hold up everybody else, the message is dropped."""
    upstream.script(Act(status=400, error={"message": "Cannot see Canary-4711."}))
    outcome = await client.send(call(prompt="Canary-4711" + "x" * 2**20, timeout=20))
    assert isinstance(outcome, Refused)
    assert outcome.message == "OpenAI answered with status 400"


@pytest.mark.parametrize("code", [{"a": "Canary"}, "Canary 4711", "x" * 65, 17])
async def test_odd_codes_are_dropped(client: OpenAIClient, upstream: Upstream, code: object) -> None:
    """A code that is no word cannot smuggle text into tables and logs."""
    upstream.script(Act(status=400, error={"code": code, "type": ["Canary"]}))
    outcome = await client.send(call())
    assert isinstance(outcome, Refused)
    assert outcome.code in {None, "17"}
    assert outcome.kind is None


@pytest.mark.parametrize("act", [Act(), Act(status=401, error={"message": PROMPT}), Act(fault="reset")])
async def test_logs_hold_no_secrets(
    client: OpenAIClient, upstream: Upstream, caplog: pytest.LogCaptureFixture, act: Act
) -> None:
    """Even with every logger at DEBUG, neither key nor prompt nor answer is logged."""
    caplog.set_level(logging.DEBUG)
    upstream.script(act)
    await client.send(call())
    assert caplog.records
    assert not any(secret in caplog.text for secret in (KEY, "Canary", "Harbour"))


def test_credentials_do_not_show_their_key() -> None:
    """A key is in no repr, and in no error about it."""
    assert KEY not in repr(AccountCredentials(name="default", api_key=KEY))
    with pytest.raises(ValueError, match="'default'") as caught:
        AccountCredentials(name="default", api_key=KEY + "\n")
    assert KEY not in str(caught.value)


async def test_lists_models_with_their_end(client: OpenAIClient) -> None:
    """The models come with the day they are shut down, where one is announced."""
    models = {model.id: model.shutdown_date for model in await client.list_models("acme")}
    assert str(models["gpt-4o-mini"]) == "2027-01-14"
    assert models["gpt-6-luna"] is None
    assert await client.probe("acme") is None


@pytest.mark.parametrize(
    ("act", "advice"),
    [
        (
            Act(status=401, error={"message": f"Incorrect API key provided: {KEY}."}),
            "does not accept the key",
        ),
        (Act(status=403), "permissions"),
        (Act(status=404), "/v1"),
        (Act(status=429, error={"code": "insufficient_quota"}), "billing"),
        (Act(status=503), "try again later"),
        (Act(body="<html>"), "not OpenAI"),
        (Act(body="{}"), "not OpenAI"),
        (Act(fault="garbage"), "network"),
    ],
)
async def test_a_probe_says_how_to_mend_it(
    client: OpenAIClient, upstream: Upstream, act: Act, advice: str
) -> None:
    """An account that does not work is explained in one sentence without its key."""
    upstream.script(act)
    sentence = await client.probe("default")
    assert sentence is not None
    assert advice in sentence
    assert KEY not in sentence
