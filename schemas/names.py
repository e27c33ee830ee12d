"""Names that other programs rely on: kinds, lanes, exchanges, queues, headers."""

from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a job asks for; also the name of the lane it normally travels on."""

    COMPLETION = "completion"
    TOOL = "tool"
    VISION = "vision"
    ASSISTANT = "assistant"
    EMBEDDING = "embedding"
    BATCH = "batch"


LANES: Final = tuple(kind.value for kind in Kind)

NOT_SERVED: Final = frozenset({Kind.BATCH})
"""Kinds of the contract that this version does not serve: their queues are there, and nobody reads them."""
SERVED: Final = tuple(lane for lane in LANES if lane not in NOT_SERVED)

JOBS: Final = "openai.jobs"
"""Direct exchange; the routing key is a lane, or `<lane>.high`."""
DEAD: Final = "openai.dead"
"""Exchange and queue of what could not be processed."""
CONTROL: Final = "openai.control"
"""Topic exchange of cancel requests."""
CANCEL_KEY: Final = "cancel"

RETRY_SECONDS: Final = (5, 30, 120, 600, 3600)
"""The fixed times to live of the waiting rooms, in seconds."""

X_REASON: Final = "x-reason"
X_REPLY_ID: Final = "x-reply-id"
X_PARKED: Final = "x-parked"
"""Set on copies that went through a waiting room: how often."""

REPLY_TYPE: Final = "reply"
CHUNK_TYPE: Final = "chunk"
CONTENT_TYPE: Final = "application/json"

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to."
"""Prefix of the pseudo-queues of RabbitMQ's direct reply-to."""


def lane_key(lane: str, *, high: bool = False) -> str:
    """Return the routing key of a lane."""
    return f"{lane}.high" if high else lane


def lane_queue(lane: str, *, high: bool = False) -> str:
    """Return the queue of a lane."""
    return f"{JOBS}.{lane_key(lane, high=high)}"


def retry_room(seconds: int) -> str:
    """Return the name shared by the exchange and the queue of a waiting room."""
    return f"openai.retry.{seconds}s"
