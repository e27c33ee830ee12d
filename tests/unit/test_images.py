"""What an image is, from its first bytes; and which URLs may be handed on."""

import base64
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.images import (
    Base64Image,
    ImageError,
    ImageLimits,
    Size,
    check_image,
    data_url,
    parse_data_url,
)
from worker.domain.urls import UrlError, check_public_url


def png(width: int, height: int) -> bytes:
    """Return a PNG; its pixels are only as good as they need be."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1) * min(height, 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, *, before: bytes = b"", frame: int = 0xC0) -> bytes:
    """Return the beginning of a JPEG, with segments before its frame header."""
    sof = struct.pack(">BBHBHHB", 0xFF, frame, 17, 8, height, width, 3) + b"\0" * 9
    return b"\xff\xd8" + segment(0xE0, b"JFIF\0" + b"\0" * 9) + before + sof + b"\xff\xda" + b"\0" * 40


def segment(marker: int, data: bytes) -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def gif(width: int, height: int) -> bytes:
    """Return the beginning of a GIF."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 20


def webp(kind: bytes, data: bytes) -> bytes:
    """Return the beginning of a WebP."""
    return (
        b"RIFF" + struct.pack("<I", 4 + 8 + len(data)) + b"WEBP" + kind + struct.pack("<I", len(data)) + data
    )


def lossy(width: int, height: int) -> bytes:
    """Return a VP8 WebP, with the scaling bits set that do not belong to the size."""
    frame = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height | 0x8000)
    return webp(b"VP8 ", frame + b"\0" * 8)


def lossless(width: int, height: int) -> bytes:
    """Return a VP8L WebP."""
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14 | 1 << 28) + b"\0" * 8)


def extended(width: int, height: int) -> bytes:
    """Return a VP8X WebP."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", b"\0\0\0\0" + sides + b"\0" * 8)


def image(content: bytes) -> Base64Image:
    """Return it as it comes in a request."""
    return Base64Image(base64.b64encode(content).decode())


EXIF = segment(0xE1, b"Exif\0\0" + b"\xff\xc0" * 30_000)

SAMPLES = {
    "png": ("image/png", png(300, 200)),
    "jpeg": ("image/jpeg", jpeg(300, 200)),
    "progressive jpeg": ("image/jpeg", jpeg(300, 200, frame=0xC2)),
    "jpeg with large segments first": ("image/jpeg", jpeg(300, 200, before=EXIF * 5)),
    "jpeg with a table first": ("image/jpeg", jpeg(300, 200, before=segment(0xC4, b"\0" * 30))),
    "jpeg with fill bytes": ("image/jpeg", jpeg(300, 200, before=b"\xff\xff\xff" + segment(0xFE, b"hi"))),
    "jpeg with a restart marker": ("image/jpeg", jpeg(300, 200, before=b"\xff\xd0")),
    "gif": ("image/gif", gif(300, 200)),
    "lossy webp": ("image/webp", lossy(300, 200)),
    "lossless webp": ("image/webp", lossless(300, 200)),
    "extended webp": ("image/webp", extended(300, 200)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_type_and_size_are_read_from_the_header(name: str) -> None:
    """Each format and variant shows its type and its size."""
    media_type, content = SAMPLES[name]
    sample = image(content)
    assert sample.media_type() == media_type
    assert sample.size() == Size(300, 200)
    assert sample.length == len(content)
    check_image(media_type, sample, ImageLimits())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_cut_header_is_damaged(name: str) -> None:
    """However early an image ends, it is refused as an image, never with another error."""
    media_type, content = SAMPLES[name]
    for length in range(1, 10):
        with pytest.raises(ImageError):
            check_image(media_type, image(content[:length]), ImageLimits())


@given(st.binary(max_size=400), st.integers(0, 420), st.integers(0, 50))
def test_a_piece_is_what_decoding_all_would_give(content: bytes, at: int, count: int) -> None:
    """Reading somewhere decodes just that."""
    sample = image(content)
    assert sample.length == len(content)
    assert sample.read(at, count) == content[at : at + count]


@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=200))
def test_hostile_content_has_a_size_or_none(name: str, rest: bytes) -> None:
    """Garbage after a good beginning neither raises nor hangs."""
    assert isinstance(image(SAMPLES[name][1][:12] + rest).size(), Size | None)


def test_a_jpeg_of_nothing_but_segments_ends() -> None:
    """Endless empty segments are given up, not followed."""
    assert image(b"\xff\xd8" + b"\xff\xe0\0\0" * 100_000).size() is None


def test_pixels_are_never_decoded() -> None:
    """A bomb of a gigapixel is refused by its header alone."""
    with pytest.raises(ImageError, match="too many pixels"):
        check_image("image/png", image(png(30_000, 30_000)), ImageLimits())
    with pytest.raises(ImageError, match="too many pixels"):
        check_image("image/png", image(png(100_000, 1)), ImageLimits())


@pytest.mark.parametrize(
    ("media_type", "content", "reason"),
    [
        ("image/jpeg", png(1, 1), "declared as image/jpeg but is image/png"),
        ("image/png", b"<svg/>" * 9, "none of PNG"),
        ("image/png", png(0, 5), "damaged"),
        ("image/png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT\0\0\0\x01\0\0\0\x01", "damaged"),
    ],
)
def test_what_is_no_such_image_is_refused(media_type: str, content: bytes, reason: str) -> None:
    """The declared type, the first bytes and the header must agree."""
    with pytest.raises(ImageError, match=reason):
        check_image(media_type, image(content), ImageLimits())


def test_an_image_may_be_too_large() -> None:
    """Its bytes are counted after decoding, before anything is looked at."""
    with pytest.raises(ImageError, match="at most 20 MiB"):
        check_image("image/png", Base64Image("A" * 28_000_000), ImageLimits())


GOOD_TEXT = base64.b64encode(png(3, 3)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "====",
        GOOD_TEXT[:-1],
        GOOD_TEXT + "=",
        GOOD_TEXT + "\n",
        GOOD_TEXT[:8] + "\n" + GOOD_TEXT[8:],
        GOOD_TEXT[:8] + "    " + GOOD_TEXT[8:],
        GOOD_TEXT[:8] + "====" + GOOD_TEXT[8:],
        GOOD_TEXT[:8] + "-_-_" + GOOD_TEXT[8:],
        GOOD_TEXT[:8] + "\u00e4\u00e4\u00e4\u00e4" + GOOD_TEXT[8:],
        GOOD_TEXT[:8] + "\0\0\0\0" + GOOD_TEXT[8:],
    ],
)
def test_base64_is_strict(text: str) -> None:
    """No spaces, line breaks, other alphabets or padding in the wrong place."""
    with pytest.raises(ImageError, match="standard base64"):
        Base64Image(text).check()


def test_a_data_url_is_taken_apart() -> None:
    """What was put together comes back."""
    media_type, sample = parse_data_url(data_url("image/png", GOOD_TEXT))
    assert (media_type, sample.size()) == ("image/png", Size(3, 3))


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png,abc",
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png;charset=x;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        "data:image/png;base64 ,AAAA",
    ],
)
def test_other_data_urls_are_refused(url: str) -> None:
    """Only base64 of the four image types."""
    with pytest.raises(ImageError, match="must begin with data:image/"):
        parse_data_url(url)


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "http://example.com:8080/a?b=c#d",
        "https://EXAMPLE.com./x",
        "https://xn--bcher-kva.example/x",
        "https://my_bucket.s3.amazonaws.com/x%20y.png",
        "https://8.8.8.8/x",
        "https://[2606:4700:4700::1111]/x",
        "HTTPS://example.com/data:image/png",
    ],
)
def test_public_urls_are_accepted(url: str) -> None:
    """Ordinary URLs of images pass."""
    check_public_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "//example.com/x",
        "https:example.com",
        "https:///x",
        "file:///etc/passwd",
        "gopher://example.com/x",
        "ftp://example.com/x",
        "javascript:alert(1)",
        "https://user:pw@example.com/x",
        "https://user@example.com/x",
        "https://example.com@127.0.0.1/x",
        "https://@example.com/x",
        "http://localhost/x",
        "http://localhost./x",
        "http://a.localhost/x",
        "http://printer/x",
        "http://router.local/x",
        "http://metadata.google.internal/x",
        "http://1.0.0.127.in-addr.arpa/x",
        "http://127.0.0.1/x",
        "http://127.0.0.1./x",
        "http://127.0.0.1../x",
        "http://127.1/x",
        "http://0/x",
        "http://0x7f.1/x",
        "http://0X7F.1/x",
        "http://0x7f000001/x",
        "http://2130706433/x",
        "http://017700000001/x",
        "http://0177.0.0.1/x",
        "http://010.8.8.8/x",
        "http://8.8.8/x",
        "http://256.1.1.1/x",
        "http://10.1.2.3/x",
        "http://172.16.0.1/x",
        "http://192.168.0.1/x",
        "http://100.64.0.1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://224.0.0.1/x",
        "http://0.0.0.0/x",
        "http://255.255.255.255/x",
        "http://[::1]/x",
        "http://[::]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://[::ffff:8.8.8.8]/x",
        "http://[::127.0.0.1]/x",
        "http://[64:ff9b::7f00:1]/x",
        "http://[2002:7f00:1::]/x",
        "http://[fe80::1]/x",
        "http://[fe80::1%25eth0]/x",
        "http://[fc00::1]/x",
        "http://[ff02::1]/x",
        "http://[::1/x",
        "http://[nonsense]/x",
        "http://example.com:99999/x",
        "http://example.com:x/x",
        "http://%31%32%37.0.0.1/x",
        "http://\u2460\u2461\u2466.0.0.1/x",
        "http://\uff11\uff12\uff17.0.0.1/x",
        "http://b\u00fccher.example/x",
        "http://127\u30020\u30020\u30021/x",
        "http://exa mple.com/x",
        " http://example.com/x",
        "http://example.com/x\n",
        "http://exam\tple.com/x",
        "http://example.com\\@127.0.0.1/x",
        "http:\\\\127.0.0.1\\x",
        "http://example.com/" + "x" * 9000,
        "http://" + "a." * 20 + "a" * 70 + ".com/x",
    ],
)
def test_other_urls_are_refused_without_quoting_them(url: str) -> None:
    """No other scheme, no credentials, no private host in any notation, nothing ambiguous."""
    with pytest.raises(UrlError) as caught:
        check_public_url(url)
    assert "pw" not in str(caught.value)
    assert "127" not in str(caught.value)


@given(st.text() | st.from_regex(r"https?://[\x21-\x7e]{0,40}"))
def test_any_text_is_accepted_or_refused(url: str) -> None:
    """No text, however odd, raises anything else."""
    try:
        check_public_url(url)
    except UrlError:
        return
    assert url.lower().startswith(("http://", "https://"))
