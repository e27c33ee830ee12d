"""Admission: who may send the next request, first come, first served."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from worker.domain.attempt import Account
from worker.domain.job import JobKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What one model, or one glob of models, may use on one account; None means no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one request asks of the limits. `tokens` is its upper bound."""

    key: JobKey
    account: Account
    model: str
    tokens: int
    high: bool = False


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
    """The right to send one request. Exactly one of the two must be called."""

    def settle(self, tokens: int) -> None:
        """Replace the reserved tokens by those really used."""

    def cancel(self) -> None:
        """Give everything back: nothing was sent."""


class Limiter(Protocol):
    """Owns the buckets."""

    async def try_admit(self, need: Need) -> Permit | None:
        """Admit at once, or return None when somebody would have to wait. Raises TooLargeError."""

    async def admit(self, need: Need, patience: float) -> Permit:
        """Wait in line, at most `patience` seconds. Raises TooLargeError, PostponedError."""

    def close_bucket(self, account: Account, model: str, seconds: float, reason: str) -> None:
        """Let nobody through for a while."""

    def close_account(self, account: Account, seconds: float, reason: str) -> None:
        """Let nobody of these credentials through for a while, then one at a time until one succeeds."""

    def succeeded(self, account: Account) -> None:
        """Note that these credentials work."""
