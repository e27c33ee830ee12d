"""What came of one HTTP request, before anyone judges it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A 2xx with its body, unread."""

    body: bytes
    headers: Mapping[str, str]
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Any other status. `code` and `kind` are the error object's `code` and `type`."""

    http_status: int
    code: str | None
    kind: str | None
    message: str
    headers: Mapping[str, str]
    request_id: str | None
    no_such_path: bool = False
    """Nothing is served at this address, as far as can be told: no job is to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No complete answer. `sent` is False only where no byte can have reached OpenAI."""

    sent: bool
    timed_out: bool
    message: str
    too_large: bool = False
    """The answer outgrew what a worker keeps in memory: it is billed, and would be again."""


Outcome: TypeAlias = Answered | Refused | Lost
