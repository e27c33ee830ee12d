"""The pace of one process inside a second, whatever the shared level says."""

from aiolimiter import AsyncLimiter

from worker.core.meter import Meter
from worker.domain.bucket import Size


class Pacer:
    """Lets requests through as the shared bucket would: its burst at once, then its rate.

    The shared level says who goes, and from when; that is exact over all workers. But what
    one of them has in hand, what fell due while it was busy, and all who waited when the
    database's clock jumped would leave together: aiolimiter spreads them. It serves the
    smallest first and cannot refund, so it only ever sees requests, each as one unit: that
    is first come, first served, and hardly any is given back.
    """

    def __init__(self, requests: Meter) -> None:
        self._requests = requests
        self._size: Size | None = None
        self._limiter: AsyncLimiter | None = None

    def has_capacity(self) -> bool:
        """Whether a request need not wait."""
        limiter = self._current()
        return limiter is None or limiter.has_capacity()

    async def acquire(self) -> None:
        """Wait for the turn of a request."""
        limiter = self._current()
        if limiter is not None:
            await limiter.acquire()

    def _current(self) -> AsyncLimiter | None:
        size = self._requests.size
        if size is not self._size:
            self._size = size
            self._limiter = AsyncLimiter(size.burst, size.burst / size.rate) if size else None
        return self._limiter
