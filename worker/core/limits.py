"""Admission: who may send the next request, first come, first served."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from worker.domain.attempt import Account
from worker.domain.job import JobKey
from worker.domain.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What one model, or one glob of models, may use on one account; None means no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a tenant gets of a limit that is contended, and how many requests it may have at once."""

    weight: float = 1.0
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one request asks of the limits. Tokens are its estimate, before anything was learned."""

    key: JobKey
    account: Account
    model: str
    input_tokens: int
    output_tokens: int = 0
    open_ended: bool = False
    """It sets no maximum for its output; `output_tokens` is a guess."""
    high: bool = False
    received_at: float = 0.0
    """When its job first arrived, in seconds since the epoch: who came first goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitBook:
    """The configured limits: an exact model name wins over a glob, a glob over the default."""

    default: Limit
    by_model: Mapping[str, Limit]

    def find(self, model: str) -> tuple[str, Limit]:
        """Return the name that the limit is shared under, and the limit."""
        if model in self.by_model:
            return model, self.by_model[model]
        for glob, limit in self.by_model.items():
            if fnmatchcase(model, glob):
                return glob, limit
        return model, self.default


class TooLargeError(Exception):
    """The request needs more than the bucket can ever hold."""


class PostponedError(Exception):
    """Not within the caller's patience; worth asking again after `seconds`."""

    def __init__(self, seconds: float, reason: str) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.reason = reason


class Permit(Protocol):
    """The right to send one request. It ends once, in one of the three last ways."""

    async def holds(self) -> bool:
        """Whether the request may leave still: nobody was refused since. If not, it is to be cancelled."""

    def heard(self, headers: Mapping[str, str]) -> None:
        """Learn from what a response says of the limits, whatever its status."""

    def answered(self, usage: Usage | None) -> None:
        """End with an answer; usage None stands for what was reserved. The credentials work."""

    def settle(self, *, used: bool) -> None:
        """End without an answer: the tokens that were reserved are spent, or not."""

    def cancel(self) -> None:
        """Give everything back: nothing was sent."""


class Limiter(Protocol):
    """Owns the buckets."""

    async def try_admit(self, need: Need) -> Permit | None:
        """Admit at once, or return None when somebody would have to wait. Raises TooLargeError."""

    async def admit(self, need: Need, patience: float) -> Permit:
        """Wait in line, about `patience` seconds. Raises TooLargeError, PostponedError."""

    def close_bucket(self, account: Account, model: str, seconds: float, reason: str) -> None:
        """Let nobody through for a while, on any worker."""

    def close_account(self, account: Account, seconds: float, reason: str) -> None:
        """Let nobody of these credentials through on any worker, but one a minute until one succeeds."""
