"""The jobs that a peer's own producer publishes once; the load repeats them under other ids."""

from collections.abc import Iterator
from typing import Any

from benchmarks.cpu.messages import LARGE, SMALL, request

SAMPLE_ID = "ffffffff-0000-4000-8000-ffffffffffff"


def samples() -> Iterator[dict[str, Any]]:
    """Yield a small request, then a large one."""
    yield request(SMALL)
    yield request(LARGE)
