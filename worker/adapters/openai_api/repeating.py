"""The SDK's client, which prepares a request to an endpoint once, and then sends it with other bodies."""

import random
from typing import Any, Final

import httpx2
from openai import AsyncOpenAI
from openai._models import FinalRequestOptions
from openai._types import RequestOptions
from typing_extensions import override

from worker.adapters.openai_api.transport import again

_MOST: Final = 512


class RepeatingClient(AsyncOpenAI):
    """Sends bodies as the SDK's `post` does, at half its cost.

    The SDK merges options, URL and headers anew for every request, though
    those to one endpoint differ in nothing but their body and their timeout.
    Timeouts are told in whole seconds, so that they differ seldom.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: dict[tuple[str, float], FinalRequestOptions] = {}
        self._built: dict[tuple[str, object], httpx2.Request] = {}

    @property
    @override
    def user_agent(self) -> str:
        # To OpenAI it is the SDK.
        return super().user_agent.replace(type(self).__name__, AsyncOpenAI.__name__)

    async def send(self, path: str, body: bytes, *, seconds: float) -> httpx2.Response:
        """POST a body. Raises as `post`; whoever calls this ends what takes longer."""
        if seconds < 1:
            # Each its own, and never again.
            options: RequestOptions = {"timeout": seconds}
            return await self.post(path, content=body, cast_to=httpx2.Response, options=options)
        key = path, float(int(seconds))
        if key not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
                self._built.clear()
            self._known[key] = FinalRequestOptions.construct(method="post", url=path, timeout=key[1])
        return await self.request(httpx2.Response, self._known[key].model_copy(update={"content": body}))

    @override
    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:
        key: Any = (options.url, options.timeout)
        if key not in self._known or not isinstance(options.content, bytes):
            return super()._build_request(options, retries_taken=retries_taken)
        known = self._built.get(key)
        if known is None:
            known = self._built[key] = again(super()._build_request(options), b"")
        return again(known, options.content)

    @override
    def _idempotency_key(self) -> str:
        # The SDK makes one for every request and sends none. As unique as its own, without asking the kernel.
        return f"worker-{random.getrandbits(128):032x}"
