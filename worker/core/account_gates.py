"""Credentials that OpenAI does not accept: closed for all workers, but one request a minute."""

from collections.abc import Callable, Mapping
from typing import Final

from worker.core.limits import PostponedError
from worker.domain.retry import room_seconds
from worker.ports import Clock, QuotaStore

PROBE_SECONDS: Final = 60.0
_LONGEST_NAP: Final = 30.0


class AccountGates:
    """Which accounts are closed, as far as this worker knows."""

    def __init__(self, store: QuotaStore, clock: Clock, wake: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake
        self._closed: dict[str, tuple[float, str, float]] = {}
        self._to_close: dict[str, tuple[float, str]] = {}
        self._to_open: set[str] = set()

    @property
    def all_open(self) -> bool:
        """Whether no request has to ask first."""
        return not self._closed

    def closed(self, account: str) -> bool:
        """Whether a request has to ask first."""
        return account in self._closed

    def nap(self, account: str) -> float:
        """Return the seconds after which to ask again."""
        until = self._closed[account][0] if account in self._closed else 0.0
        return float(room_seconds(min(_LONGEST_NAP, max(1.0, until - self._clock.monotonic()))))

    async def pass_through(self, account: str) -> bool:
        """Return at once for an open account, or True for this minute's probe. Raises PostponedError."""
        if account not in self._closed:
            return False
        until, reason, since = self._closed[account]
        if self._clock.monotonic() >= until:
            self._closed[account] = (self._clock.monotonic() + PROBE_SECONDS, reason, since)
            if await self._store.probe(account):
                return True
        raise self.postponed(account)

    def postponed(self, account: str) -> PostponedError:
        """Return what sends a job away that needs a closed account."""
        reason = self._closed[account][1] if account in self._closed else "closed"
        return PostponedError(self.nap(account), f"credentials {account}: {reason}")

    def close(self, account: str, seconds: float, reason: str) -> None:
        """Close an account for all workers."""
        now, seconds = self._clock.monotonic(), max(seconds, PROBE_SECONDS)
        self._closed[account] = (now + seconds, reason, now)
        self._to_close[account] = (seconds, reason)
        self._to_open.discard(account)
        self._wake()

    def succeeded(self, account: str, admitted_at: float) -> None:
        """Open an account once a request has succeeded that was admitted after it was closed."""
        if self._closed and account in self._closed and admitted_at > self._closed[account][2]:
            del self._closed[account]
            self._to_close.pop(account, None)
            self._to_open.add(account)
            self._wake()

    @property
    def has_news(self) -> bool:
        """Whether the others have to be told something."""
        return bool(self._to_close or self._to_open)

    def news(self) -> tuple[Mapping[str, tuple[float, str]], frozenset[str]]:
        """Return what the others have to be told, once."""
        closed, self._to_close = self._to_close, {}
        opened, self._to_open = frozenset(self._to_open), set()
        return closed, opened

    def take_in(self, accounts: Mapping[str, tuple[float, str]]) -> None:
        """Take in which accounts are closed, and for how many more seconds."""
        now = self._clock.monotonic()
        for account, (seconds, reason) in accounts.items():
            if account not in self._to_open:
                since = self._closed[account][2] if account in self._closed else now
                self._closed[account] = (now + seconds, reason, since)
        for account in [*self._closed]:
            if account not in accounts and account not in self._to_close:
                del self._closed[account]
