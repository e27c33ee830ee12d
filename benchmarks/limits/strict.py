"""The strict side: quotas that refuse whatever exceeds capacity + rate x w in any window, and log it all."""

import time
from dataclasses import dataclass, field

from tests.support.upstream import Act, Seen

LATENCY = 0.1
"""Seconds of an answer."""
SPENT = 0.6
"""The part of its maximum output that an answer uses; what was counted at admission is not given back."""


@dataclass(kw_only=True)
class Tank:
    """A token bucket, which admits exactly what the window rule allows."""

    limit: float
    seconds: float = 60.0
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.limit

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.limit / self.seconds

    def resize(self, limit: float) -> None:
        """Change the limit; what is above it is lost."""
        self.refill(time.monotonic())
        self.limit, self.level = limit, min(self.level, limit)

    def refill(self, now: float) -> None:
        """Bring it up to date."""
        self.level = min(self.limit, self.level + (now - self.at) * self.rate)
        self.at = now

    def lacks(self, units: float) -> float:
        """Return the seconds until so many units are there."""
        return max(0.0, (units - self.level) / self.rate)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """One request."""

    at: float
    tokens: int
    admitted: bool
    tenant: str
    job_id: str


class Quota:
    """One model's limits: requests and tokens a minute, and with `slices` requests a second too."""

    def __init__(self, *, requests: float, tokens: float, slices: bool = False, headers: bool = True) -> None:
        self.requests, self.tokens = Tank(limit=requests), Tank(limit=tokens)
        self.announced = requests, tokens
        self.slice = Tank(limit=requests / 60, seconds=1.0) if slices else None
        self.headers = headers
        self.log: list[Logged] = []

    def __call__(self, seen: Seen) -> Act:
        """Admit or refuse."""
        now = time.monotonic()
        tanks = [(self.requests, 1), (self.tokens, seen.tokens)]
        if self.slice is not None:
            tanks.append((self.slice, 1))
        for tank, _ in tanks:
            tank.refill(now)
        lacks = max(tank.lacks(units) for tank, units in tanks)
        tenant, _, job_id = str(seen.body.get("user", "")).partition("/")
        admitted = lacks <= 0
        if admitted:
            for tank, units in tanks:
                tank.level -= units
        self.log.append(Logged(at=now, tokens=seen.tokens, admitted=admitted, tenant=tenant, job_id=job_id))
        headers = self._headers() if self.headers else {}
        if not admitted:
            headers["retry-after-ms"] = str(int(1000 * lacks) + 1)
            return Act(status=429, error={"code": "rate_limit_exceeded"}, headers=headers)
        most = seen.body.get("max_completion_tokens", 16)
        prompt, output = seen.tokens - most, int(SPENT * most)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        return Act(text="done", delay=LATENCY, headers=headers, patch={"usage": usage})

    def _headers(self) -> dict[str, str]:
        names = (("requests", self.requests), ("tokens", self.tokens))
        return {
            f"x-ratelimit-{what}-{name}": value
            for (name, tank), limit in zip(names, self.announced, strict=True)
            for what, value in (
                ("limit", f"{limit:.0f}"),
                ("remaining", f"{max(0.0, tank.level):.0f}"),
                ("reset", f"{max(0.0, (tank.limit - tank.level) / tank.rate):.3f}s"),
            )
        }


class Quotas:
    """The quotas of all models: what the upstream asks about every request."""

    def __init__(self) -> None:
        self.of: dict[str, Quota] = {}

    def __call__(self, seen: Seen) -> Act | None:
        """Let the model's quota decide."""
        quota = self.of.get(seen.body.get("model", "")) if isinstance(seen.body, dict) else None
        return quota(seen) if quota else None
