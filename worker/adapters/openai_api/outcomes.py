"""From the SDK's responses and errors to outcomes."""

import os
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Final

import httpx2
from openai import APIConnectionError, APIStatusError

from worker.adapters.openai_api.redaction import safe_message
from worker.adapters.openai_api.transport import BODY, HEADERS, AnswerTooLargeError
from worker.domain.outcome import Answered, Lost, Refused

_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

_UNSENT: Final = (
    httpx2.ConnectTimeout,
    httpx2.ConnectError,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


def answered(response: httpx2.Response) -> Answered:
    """Return a 2xx."""
    headers: dict[str, str] = response.extensions[HEADERS]
    return Answered(body=response.extensions[BODY], headers=headers, request_id=_request_id(headers))


def refused(error: APIStatusError, request_body: bytes, *, no_path: bool = False) -> Refused:
    """Return any other status. Its message is safe to show, whatever OpenAI wrote."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    message = safe_message(said, request_body) if isinstance(said, str) else ""
    headers: dict[str, str] = error.response.extensions[HEADERS]
    return Refused(
        http_status=error.status_code,
        code=_word(error.code),
        kind=_word(error.type),
        message=message or f"OpenAI answered with status {error.status_code}",
        headers=headers,
        request_id=_request_id(headers),
        no_such_path=no_path,
    )


def no_such_path(error: APIStatusError) -> bool:
    """Tell a status that is about the address from one about what the request names.

    OpenAI knows its own errors by an error object; of an address it does not have it says
    so. Anything else is the page of a proxy, or of a server that has no such address.
    """
    if error.status_code not in _NO_PATH:
        return False
    said = error.body.get("message") if isinstance(error.body, dict) else None
    if not isinstance(said, str):
        return error.code is None and error.type is None
    return error.code == "unknown_url" or said.startswith(_UNKNOWN_URL) or said in _PLAIN


_NO_PATH: Final = frozenset({404, 405})
_UNKNOWN_URL: Final = ("Invalid URL (", "Unknown request URL")
_PLAIN: Final = frozenset({"Not Found", "Method Not Allowed"})
"""What web frameworks say of an address; an error of OpenAI's names what it has not found."""


def lost(error: APIConnectionError) -> Lost:
    """Return what is known of a request without an answer, from the transport's error behind it."""
    cause = error.__cause__
    sent = not isinstance(cause, _UNSENT)
    too_large = isinstance(cause, AnswerTooLargeError)
    if too_large:
        message = "OpenAI's answer is larger than the worker accepts"
    elif sent:
        message = f"the connection to OpenAI broke before the answer was complete ({_reason(cause)})"
    else:
        message = f"no connection to OpenAI ({_reason(cause)})"
    timed_out = isinstance(cause, httpx2.TimeoutException)
    return Lost(sent=sent, timed_out=timed_out, message=message, too_large=too_large)


def _reason(cause: BaseException | None) -> str:
    """Name the trouble without addresses, which the texts of most errors contain."""
    behind = cause.__cause__ if cause else None
    system = getattr(behind, "certificate_error", None) or getattr(behind, "os_error", None) or behind
    match system:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {system.verify_message}"
        case ssl.SSLError():
            return f"TLS: {system.reason}"
        case socket.gaierror():
            return f"its name does not resolve: {system.strerror}"
        case OSError(errno=int(number)):
            return os.strerror(number)
        case _:
            return type(behind or cause).__name__


def _request_id(headers: Mapping[str, str]) -> str | None:
    found = headers.get("x-request-id", "")
    return found if _REQUEST_ID.fullmatch(found) else None


def _word(text: object) -> str | None:
    return text if isinstance(text, str) and _WORD.fullmatch(text) else None
