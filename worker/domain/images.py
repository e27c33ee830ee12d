"""Images inside a request: what they are and how large, told from their first bytes.

Pixels are never decoded, so an image that would unpack to gigabytes costs
nothing here. A base64 text is checked whole but decoded only where a header
lies.
"""

import base64
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

MEBIBYTE: Final = 1024 * 1024

DETAILS: Final = ("auto", "low", "high", "original")
"""How closely the model looks."""

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DATA_URL: Final = re.compile(r"data:(image/(?:png|jpeg|webp|gif));base64,", re.ASCII)
_MAGIC: Final = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
)

MEDIA_TYPES: Final = tuple(kind for kind, _ in _MAGIC)
"""What OpenAI accepts as an image."""

_MAX_SEGMENTS: Final = 4096
_MARKER: Final = 0xFF
"""The byte that begins each JPEG marker; any number of them may fill the space before one."""
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers that no length follows."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame header; the excluded three are tables."""


class ImageError(ValueError):
    """The image cannot be sent; the message says why without quoting it."""


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What one request may hold; bytes are counted after decoding."""

    max_images: int = 500
    max_bytes: int = 20 * MEBIBYTE
    max_total_bytes: int = 50 * MEBIBYTE
    max_side: int = 32_768
    max_pixels: int = 256 * 1024 * 1024


class Base64Image:
    """The image in a base64 text, from the character `start` on; decoded only where it is read."""

    __slots__ = ("_start", "_text", "length")

    def __init__(self, text: str, start: int = 0) -> None:
        self._text = text
        self._start = start
        self.length = (len(text) - start) // 4 * 3 - self._padding()
        """Length in bytes of what it decodes to."""

    def check(self) -> None:
        """Raise ImageError unless the text is strict base64."""
        end = len(self._text) - self._padding()
        letters = self._text[self._start : end]
        if not letters or (len(self._text) - self._start) % 4 or not _is_base64(letters):
            raise ImageError("the image must be standard base64, padded, without spaces or line breaks")

    def read(self, at: int, count: int) -> bytes:
        """Return the decoded bytes from `at`, fewer at the end. Raises ValueError where it is not base64."""
        first = at // 3
        start, end = (self._start + 4 * group for group in (first, (at + count + 2) // 3))
        return base64.b64decode(self._text[start:end])[at - first * 3 :][:count]

    def _padding(self) -> int:
        return len(self._text[-2:]) - len(self._text[-2:].rstrip("="))

    def media_type(self) -> str | None:
        """Return the media type that the first bytes show."""
        head = self.read(0, 12)
        return next((kind for kind, magic in _MAGIC if magic.match(head)), None)

    def size(self) -> Size | None:
        """Return the pixels that the header names; None where it names none."""
        reader = _SIZES.get(self.media_type() or "")
        try:
            return reader(self) if reader else None
        except struct.error:
            return None


def parse_data_url(url: str) -> tuple[str, Base64Image]:
    """Return media type and content of a `data:` URL. Raises ImageError."""
    match = _DATA_URL.match(url)
    if match is None:
        raise ImageError("a data URL must begin with data:image/<png, jpeg, webp or gif>;base64,")
    return match[1], Base64Image(url, match.end())


def is_data_url(url: str) -> bool:
    """Tell whether the URL holds the image itself."""
    return url[:5].lower() == "data:"


def data_url(media_type: str, text: str) -> str:
    """Return the URL that holds a base64 text."""
    return f"data:{media_type};base64,{text}"


def check_image(media_type: str, image: Base64Image, limits: ImageLimits) -> None:
    """Hold an image against its declared type and the limits. Raises ImageError."""
    if image.length > limits.max_bytes:
        raise ImageError(f"the image must be at most {limits.max_bytes // MEBIBYTE} MiB")
    image.check()
    actual = image.media_type()
    if actual is None:
        raise ImageError("the image is none of PNG, JPEG, WebP and GIF")
    if actual != media_type:
        raise ImageError(f"the image is declared as {media_type} but is {actual}")
    size = image.size()
    if size is None or 0 in size:
        raise ImageError("the image is damaged: its header names no width and height")
    if max(size) > limits.max_side or size.width * size.height > limits.max_pixels:
        raise ImageError("the image has too many pixels: make it smaller")


def _is_base64(text: str) -> bool:
    """Tell whether only base64's letters occur, without decoding."""
    return text.isascii() and not text.encode().translate(None, _ALPHABET)


def _png(image: Base64Image) -> Size | None:
    kind, width, height = struct.unpack(">4sII", image.read(12, 12))
    return Size(width, height) if kind == b"IHDR" else None


def _gif(image: Base64Image) -> Size:
    return Size(*struct.unpack("<HH", image.read(6, 4)))


def _jpeg(image: Base64Image) -> Size | None:
    """Hop from segment to segment to the frame header, over whatever lies before it."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        prefix, marker = struct.unpack(">BB", image.read(at, 2))
        if prefix != _MARKER:
            return None
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", image.read(at + 5, 4))
            return Size(width, height)
        if marker == _MARKER:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(image.read(at + 2, 2))
    return None


def _webp(image: Base64Image) -> Size | None:
    head = image.read(12, 18)
    match head[:4]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", head[14:18])
            return Size(width & 0x3FFF, height & 0x3FFF)
        case b"VP8L":
            (bits,) = struct.unpack("<I", head[9:13])
            return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8X":
            low_w, high_w, low_h, high_h = struct.unpack("<HBHB", head[12:18])
            return Size((low_w | high_w << 16) + 1, (low_h | high_h << 16) + 1)
        case _:
            return None


_SIZES: Final[dict[str, Callable[[Base64Image], Size | None]]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
}
