"""Which delivery starts next."""

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

PATIENCE: Final = 8
"""Of so many starts in a row one is not from a high lane, if another waits: nobody starves."""


class Turnstile(Generic[Item]):
    """Lets through high lanes first, within them lane by lane in turn."""

    __slots__ = ("_high", "_high_in_a_row", "_normal")

    def __init__(self) -> None:
        self._high: _Ring[Item] = _Ring()
        self._normal: _Ring[Item] = _Ring()
        self._high_in_a_row = 0

    @property
    def waiting(self) -> int:
        """How many have not been let in."""
        return self._high.size + self._normal.size

    def arrive(self, item: Item, *, lane: str, high: bool) -> None:
        """Join the queue of a lane."""
        (self._high if high else self._normal).append(lane, item)

    def let_in(self) -> Item | None:
        """Let the next one in; None while nobody waits."""
        high, normal = self._high.size, self._normal.size
        if not (high or normal):
            return None
        if high and not (normal and self._high_in_a_row >= PATIENCE - 1):
            self._high_in_a_row += 1
            return self._high.pop()
        self._high_in_a_row = 0
        return self._normal.pop()

    def clear(self) -> list[Item]:
        """Send home all who wait."""
        return [*self._high.drain(), *self._normal.drain()]


class _Ring(Generic[Item]):
    """One line for each lane, served in turn."""

    __slots__ = ("_lines", "_turns", "size")

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}
        self._turns: deque[str] = deque()
        """The lanes with somebody in line, the next to be served first."""
        self.size = 0

    def append(self, lane: str, item: Item) -> None:
        line = self._lines.setdefault(lane, deque())
        if not line:
            self._turns.append(lane)
        line.append(item)
        self.size += 1

    def pop(self) -> Item:
        lane = self._turns.popleft()
        line = self._lines[lane]
        item = line.popleft()
        self.size -= 1
        if line:
            self._turns.append(lane)
        return item

    def drain(self) -> Iterator[Item]:
        while self.size:
            yield self.pop()
