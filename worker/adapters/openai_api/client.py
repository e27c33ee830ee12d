"""Sends requests with OpenAI's own SDK, one client an account."""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from openai import APIConnectionError, APIStatusError
from typing_extensions import override

from schemas.names import Kind
from worker.adapters.openai_api.credentials import AccountCredentials
from worker.adapters.openai_api.models import ListedModel, UnusableAccountError, list_models
from worker.adapters.openai_api.outcomes import answered, lost, no_such_path, refused
from worker.adapters.openai_api.repeating import RepeatingClient
from worker.adapters.openai_api.transport import AiohttpTransport, DirectClient
from worker.domain.outcome import Lost, Outcome
from worker.ports import Call, OpenAI

OPENAI_URL: Final = "https://api.openai.com/v1"

_PATHS: Final[Mapping[Kind, str]] = {
    Kind.COMPLETION: "/chat/completions",
    Kind.TOOL: "/chat/completions",
    Kind.VISION: "/chat/completions",
    Kind.ASSISTANT: "/responses",
    Kind.EMBEDDING: "/embeddings",
}

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class OpenAIClient(OpenAI):
    """Opened as a context manager; then usable by any number of tasks at once."""

    def __init__(
        self,
        accounts: Iterable[AccountCredentials],
        *,
        connections: int = 128,
        keepalive_seconds: float = 90,
        max_answer_bytes: int = 16 * 2**20,
    ) -> None:
        """Take one set of credentials a name.

        `connections` are per account and should not be fewer than the calls in
        flight. RabbitMQ 4 carries messages up to 16 MiB, so that a larger answer
        could not be passed on anyway.
        """
        self._credentials = {one.name: one for one in accounts}
        self._connections = connections
        self._keepalive_seconds = keepalive_seconds
        self._max_answer_bytes = max_answer_bytes
        self._clients: dict[str, RepeatingClient] = {}
        self._found: set[tuple[str, str]] = set()
        """Accounts and paths that have been answered well."""
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # The system's trust store, and SSL_CERT_FILE, as the SDK takes it.
        tls = httpx2.create_ssl_context()
        async with AsyncExitStack() as opening:
            for one in self._credentials.values():
                self._clients[one.name] = await opening.enter_async_context(self._client(one, tls))
            self._opened = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clients.clear()
        await self._opened.aclose()

    @override
    async def send(self, call: Call) -> Outcome:
        """Send and read to the end, in `call.timeout` seconds. Raises only CancelledError."""
        client, path = self._clients.get(call.account.name), _PATHS.get(call.kind)
        if client is None or path is None:
            message = f"no credentials named {call.account.name!r}, or no endpoint for {call.kind} jobs"
            return Lost(sent=False, timed_out=False, message=message)
        try:
            async with asyncio.timeout(call.timeout):
                response = await client.send(path, call.body, seconds=call.timeout)
        except APIStatusError as error:
            no_path = no_such_path(error) and await self._is_nothing_there(call.account.name, path)
            return refused(error, call.body, no_path=no_path)
        except APIConnectionError as error:
            return lost(error)
        except TimeoutError:
            message = f"no complete answer within {call.timeout:g} s"
            return Lost(sent=True, timed_out=True, message=message)
        except Exception as error:  # noqa: BLE001 - money may be spent: whatever went wrong, it is recorded
            message = f"an unexpected error: {type(error).__name__}"
            return Lost(sent=True, timed_out=False, message=message)
        self._found.add((call.account.name, path))
        return answered(response)

    async def list_models(self, account: str) -> list[ListedModel]:
        """Return what an account may use. Raises UnusableAccountError, and KeyError for an unknown name."""
        return await list_models(self._clients[account])

    async def probe(self, account: str) -> str | None:
        """Return what is wrong with an account and how to mend it, None if nothing is."""
        try:
            await self.list_models(account)
        except UnusableAccountError as error:
            return str(error)
        return None

    async def _is_nothing_there(self, account: str, path: str) -> bool:
        """Whether a missing path says that all are: not where others are served and it never was.

        Some servers that speak OpenAI's protocol lack a path; a job that needs it must not stop the rest.
        Where nothing is known yet, the list of models tells.
        """
        served = {found for name, found in self._found if name == account}
        if not served and await self.probe(account) is None:
            self._found.add((account, "/models"))
            return False
        return path in served or not served

    def _client(self, account: AccountCredentials, tls: ssl.SSLContext) -> RepeatingClient:
        base_url = account.base_url or OPENAI_URL
        transport = AiohttpTransport(
            connections=self._connections,
            keepalive_seconds=self._keepalive_seconds,
            max_answer_bytes=self._max_answer_bytes,
            tls=tls,
            proxy=_proxy_of(base_url),
        )
        client = RepeatingClient(
            api_key=account.api_key,
            base_url=base_url,
            # The worker owns retries: each must be admitted, recorded and seen.
            max_retries=0,
            # Answers are small, and unpacking them costs more than the way they save.
            default_headers={"Accept-Encoding": "identity"},
            http_client=DirectClient(transport),
        )
        # Set afterwards: None in the constructor means the environment's, and one
        # account must never be billed to the organization of another.
        client.organization = account.organization
        client.project = account.project
        client.admin_api_key = None
        return client


def _proxy_of(base_url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY choose; never one for this machine."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host in _LOOPBACK or proxy_bypass(host):
        return None
    return getproxies().get(url.scheme)
