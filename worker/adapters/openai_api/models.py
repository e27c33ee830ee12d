"""The models an account may use; asking for them also shows whether the account works."""

import asyncio
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import httpx2
import jiter
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from worker.adapters.openai_api.outcomes import lost, refused

_SECONDS: Final = 20.0

_ADVICE: Final = {
    401: "OpenAI does not accept the key: create a new one and set it",
    403: "OpenAI forbids it: check the permissions of the key, its project, and the country",
    404: "there is no such address: the base URL normally ends in /v1",
    429: "the account is limited or out of credit: check its plan and billing",
}


class UnusableAccountError(Exception):
    """An account does not work; the message says why and what to do, without the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model as OpenAI lists it; `shutdown_date` None means that none is announced."""

    id: str
    owned_by: str
    shutdown_date: date | None = None


async def list_models(client: AsyncOpenAI) -> list[ListedModel]:
    """Return the models by name. Raises UnusableAccountError."""
    try:
        async with asyncio.timeout(_SECONDS):
            response = await client.get("/models", cast_to=httpx2.Response, options={"timeout": _SECONDS})
    except APIStatusError as error:
        raise UnusableAccountError(_sentence(error)) from error
    except APIConnectionError as error:
        raise UnusableAccountError(f"{lost(error).message}: check the base URL and the network") from error
    except TimeoutError as error:
        raise UnusableAccountError(f"OpenAI did not answer within {_SECONDS:.0f} s") from error
    try:
        found = [_model(entry) for entry in jiter.from_json(response.content)["data"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableAccountError("what answers is not OpenAI: check the base URL and any proxy") from error
    return sorted(found, key=lambda model: model.id)


def _sentence(error: APIStatusError) -> str:
    advice = _ADVICE.get(
        error.status_code, f"OpenAI is not well (status {error.status_code}): try again later"
    )
    return f"{advice} ({refused(error, b'').message})"


def _model(entry: dict[str, Any]) -> ListedModel:
    shutdown = entry.get("shutdown_date")
    return ListedModel(
        id=str(entry["id"]),
        owned_by=str(entry.get("owned_by", "")),
        shutdown_date=date.fromisoformat(shutdown[:10]) if shutdown else None,
    )
