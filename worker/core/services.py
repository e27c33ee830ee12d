"""What running jobs share: ports and fixed numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from worker.core.limits import Limiter
from worker.domain.attempt import Account
from worker.domain.job import JobKey
from worker.ports import Clock, JobStore, Observer, OpenAI, PriceBook


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers an operator may set. Durations in seconds."""

    max_attempts: int = 6
    job_timeout: float = 300
    patience: float = 5
    """Longer waits are spent in a waiting room."""
    max_takeovers: int = 3
    """A job whose workers died more often than this is held to be the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The ports a running job uses."""

    store: JobStore
    openai: OpenAI
    limiter: Limiter
    prices: PriceBook
    clock: Clock
    observer: Observer
    random: Callable[[], float]
    account_of: Callable[[JobKey], Account]
    """Whose credentials a job uses: always the same, so that each attempt is booked where it was spent."""
    policy: Policy
