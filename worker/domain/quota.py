"""What workers and the shared quota tell each other, about once every fraction of a second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worker.domain.bucket import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterOrder:
    """A draw from the bucket of one meter. Limits in units a minute, None where there is none."""

    limit: float | None = None
    handful: float = 0.0
    told: float | None = None
    """The limit that OpenAI named since the last exchange."""
    gap: float | None = None
    """How much more remained by OpenAI's count than by ours, had there never been any drift."""
    draw: Draw = field(default_factory=Draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one worker wants of one gate: a model, or glob of models, on one account."""

    account: str
    name: str
    requests: MeterOrder = field(default_factory=MeterOrder)
    tokens: MeterOrder = field(default_factory=MeterOrder)
    close_seconds: float = 0.0
    """Let nobody through for so long; 0 changes nothing."""
    close_reason: str = ""
    close_after: int = -1
    """How many closings were known here when the request left that was refused; -1: one has come since."""
    waiting: int = 0
    running: int = 0
    reserved: float = 0.0
    """Tokens of requests that are running here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterGrant:
    """The bucket as the draw found it: refilled, with the unused units back, before the units were taken."""

    level: float = 0.0
    drift: float = 0.0
    told: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer to an order, which is always granted: who draws more than is there has to wait for it."""

    requests: MeterGrant
    tokens: MeterGrant
    closed_seconds: float = 0.0
    gentle_seconds: float = 0.0
    """Until it refills at its full rate. Both are below zero once they are over."""
    closings: int = 0
    """How many there were."""
    closed_for: str = ""
    paused: bool = False
    others: int | None = None
    """Other workers with requests waiting at the same gate; None: not counted this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What is seen of a gate without drawing anything."""

    closings: int = 0
    """How many there were."""
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Sums over settled requests of one model; what was estimated, and what it came to."""

    requests: float = 0.0
    estimated_input: float = 0.0
    used_input: float = 0.0
    open_requests: float = 0.0
    """Those without a maximum of their own."""
    open_output: float = 0.0

    def plus(self, other: "Sample", keep: float = 1.0) -> "Sample":
        """Return the sum, with this one's share reduced."""
        return Sample(
            requests=keep * self.requests + other.requests,
            estimated_input=keep * self.estimated_input + other.estimated_input,
            used_input=keep * self.used_input + other.used_input,
            open_requests=keep * self.open_requests + other.open_requests,
            open_output=keep * self.open_output + other.open_output,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One round with the shared quota."""

    orders: Sequence[Order] = ()
    census: bool = True
    """Say what waits here, and ask what waits elsewhere and which accounts are closed."""
    closed: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Accounts to close: seconds and reason."""
    opened: frozenset[str] = frozenset()
    """Accounts that work again."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """By model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """Its outcome: a grant for each order, closed accounts with seconds and reason, sums by model."""

    grants: Sequence[Grant]
    accounts: Mapping[str, tuple[float, str]] | None = None
    """None: not asked for."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """Of the models that the exchange had samples of."""
