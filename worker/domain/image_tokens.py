"""What an image costs in tokens, by OpenAI's published formulas (guide "Images and vision", 2026).

Older families see tiles of 512 pixels, newer ones patches of 32 pixels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from worker.domain.images import Size

ASSUMED_SIZE: Final = Size(2048, 2048)
"""An image that only its URL is known of."""

_PATCH: Final = 32
_TILE: Final = 512
_LOW_SIDE: Final = 512
"""With `low`, the model gets a version of this many pixels a side."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A base, and so much for each tile."""

    base: int
    tile: int

    def tokens(self, detail: str, size: Size) -> int:
        """Fit into 2048 by 2048, bring the shorter side down to 768, count the tiles."""
        if detail == "low":
            return self.base
        width, height = _fit(size.width, size.height, 2048)
        scale = min(1.0, 768 / min(width, height))
        count = math.ceil(width * scale / _TILE) * math.ceil(height * scale / _TILE)
        return self.base + count * self.tile


@dataclass(frozen=True, slots=True)
class Budget:
    """How large an image may be before it is shrunk."""

    patches: int
    side: int


_SMALL: Final = Budget(1536, 2048)
_HIGH: Final = Budget(2500, 2048)
_ORIGINAL: Final = Budget(10_000, 6000)


@dataclass(frozen=True, slots=True)
class Patches:
    """Tokens a patch, and the budgets of each detail; None sends the image as it is."""

    multiplier: float
    high: Budget
    original: Budget | None
    auto: Budget | None

    def tokens(self, detail: str, size: Size) -> int:
        """Shrink to the budget, count the patches."""
        if detail == "low":
            return math.ceil((_LOW_SIDE // _PATCH) ** 2 * self.multiplier)
        budget = {"high": self.high, "original": self.original}.get(detail, self.auto)
        return math.ceil(_patches(size, budget) * self.multiplier)


_GPT_4O: Final = Tiles(85, 170)
_UNBOUNDED: Final = Patches(1.2, _HIGH, None, None)

_FAMILIES: Final[dict[str, Tiles | Patches]] = {
    "gpt-4o": _GPT_4O,
    "gpt-4o-mini": Tiles(2833, 5667),
    "gpt-4.1": _GPT_4O,
    "gpt-4.1-mini": Patches(1.62, _SMALL, _SMALL, _SMALL),
    "gpt-4.1-nano": Patches(2.46, _SMALL, _SMALL, _SMALL),
    "gpt-4.5": _GPT_4O,
    "gpt-5": Tiles(70, 140),
    "gpt-5-mini": Patches(1.62, _SMALL, _SMALL, _SMALL),
    "gpt-5-nano": Patches(2.46, _SMALL, _SMALL, _SMALL),
    "gpt-5.": _UNBOUNDED,
    "gpt-5.1": Tiles(70, 140),
    "gpt-5.2": Patches(1.2, _SMALL, _SMALL, _SMALL),
    "gpt-5.3": Patches(1.2, _SMALL, _SMALL, _SMALL),
    "gpt-5.4": Patches(1.2, _HIGH, _ORIGINAL, _HIGH),
    "gpt-5.4-mini": Patches(1.62, _SMALL, _SMALL, _SMALL),
    "gpt-5.4-nano": Patches(2.46, _SMALL, _SMALL, _SMALL),
    "gpt-5.5": Patches(1.2, _HIGH, _ORIGINAL, _ORIGINAL),
    "gpt-6": _UNBOUNDED,
    "o1": Tiles(75, 150),
    "o3": Tiles(75, 150),
    "o4-mini": Patches(1.72, _SMALL, _SMALL, _SMALL),
    "computer-use-preview": Tiles(65, 129),
}
"""By the beginning of the model's name, the longest that fits.

Where no multiplier is published, 1.2 stands for what users have measured; the
families after gpt-5.6 are taken to be like it.
"""


def image_tokens(model: str, detail: str, size: Size | None) -> int:
    """Return the tokens of one image; an unknown model is charged the dearer of both ways."""
    known = size if size and 0 not in size else ASSUMED_SIZE
    return max(family.tokens(detail, known) for family in _families(model))


@lru_cache(maxsize=256)
def _families(model: str) -> tuple[Tiles | Patches, ...]:
    name = model.removeprefix("ft:")
    known = [prefix for prefix in _FAMILIES if name.startswith(prefix)]
    return (_FAMILIES[max(known, key=len)],) if known else (_GPT_4O, _UNBOUNDED)


def _fit(width: float, height: float, side: int) -> tuple[float, float]:
    scale = min(1.0, side / max(width, height))
    return width * scale, height * scale


def _patches(size: Size, budget: Budget | None) -> int:
    width, height = float(size.width), float(size.height)
    if budget is None:
        return _cover(width, height)
    width, height = _fit(width, height, budget.side)
    count = _cover(width, height)
    return count if count <= budget.patches else _shrunk(width, height, budget.patches)


def _shrunk(width: float, height: float, patches: int) -> int:
    """Shrink to the area of so many patches, then to whole patches along the tighter side."""
    scale = math.sqrt(patches * _PATCH**2 / (width * height))
    across, down = width * scale / _PATCH, height * scale / _PATCH
    whole = min(math.floor(across) / across, math.floor(down) / down)
    # A sliver thinner than a patch has no whole patch to shrink to.
    return min(patches, _cover(width * scale * whole, height * scale * whole)) if whole else patches


def _cover(width: float, height: float) -> int:
    # The rounding keeps a float a hair above a whole patch from counting as one more.
    return math.ceil(round(width / _PATCH, 6)) * math.ceil(round(height / _PATCH, 6))
