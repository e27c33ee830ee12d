"""Images in a request: the short form, and what may be in either form."""

import base64
import struct
import zlib
from typing import Any

import pytest

import schemas.job
from schemas.names import Kind
from worker.core.assistant import AssistantHandler
from worker.core.completion import CompletionHandler
from worker.core.dispatch import Dispatcher
from worker.core.kind import InvalidJobError, KindHandler
from worker.core.tool import ToolHandler
from worker.core.vision import VisionHandler
from worker.domain.images import ImageLimits
from worker.tools import Registry

URL = "https://example.com/cat.png"


def png(width: int = 3, height: int = 2) -> bytes:
    """Return the beginning of a PNG."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


TEXT = base64.b64encode(png()).decode()
DATA_URL = f"data:image/png;base64,{TEXT}"


def job(**request: Any) -> schemas.job.Job:
    """Return a vision job."""
    return schemas.job.Job(kind=Kind.VISION, job_id="j", request={"model": "gpt-6-luna", **request})


def full(*urls: Any) -> list[dict[str, Any]]:
    """Return messages with images."""
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]


def test_the_short_form_is_written_out() -> None:
    """Prompt and images become one user message; all other parameters stay."""
    images = [
        {"url": URL},
        {"url": URL, "detail": "low"},
        {"base64": TEXT, "media_type": "image/png", "detail": "original"},
    ]
    prepared = VisionHandler().prepare(job(prompt="What is this?", images=images, temperature=0))
    assert prepared == {
        "model": "gpt-6-luna",
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": URL}},
                    {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "original"}},
                ],
            }
        ],
    }


def test_the_full_form_passes_untouched() -> None:
    """What is already a chat request is sent as it is."""
    one = job(messages=full({"url": URL}, {"url": DATA_URL, "detail": "high"}))
    assert VisionHandler().prepare(one) == one.request


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"prompt": "x"}, "request.images: is missing"),
        ({"images": [{"url": URL}]}, "request.prompt: is missing"),
        ({"prompt": "", "images": [{"url": URL}]}, "request.prompt"),
        ({"prompt": "x", "images": []}, "request.images"),
        ({"prompt": "x", "images": {"url": URL}}, "request.images"),
        ({"prompt": "x", "images": [URL]}, "request.images.0: must be an object"),
        ({"prompt": "x", "images": [{}]}, "request.images.0: must have either url or base64"),
        ({"prompt": "x", "images": [{"url": URL, "base64": TEXT}]}, "either url or base64"),
        ({"prompt": "x", "images": [{"base64": TEXT}]}, "media_type belongs with base64"),
        ({"prompt": "x", "images": [{"url": URL, "media_type": "image/png"}]}, "media_type belongs"),
        ({"prompt": "x", "images": [{"base64": TEXT, "media_type": "image/tiff"}]}, "media_type: must be"),
        ({"prompt": "x", "images": [{"url": URL, "detail": "huge"}]}, "detail: must be"),
        ({"prompt": "x", "images": [{"url": URL, "path": "/etc/passwd"}]}, "path: is not a known field"),
        ({"prompt": "x", "images": [{"url": URL}], "messages": full()}, "either messages, or prompt"),
        ({"prompt": "x", "images": [{"url": "file:///etc/passwd"}]}, "only http and https"),
        ({"prompt": "x", "images": [{"base64": TEXT + "\n", "media_type": "image/png"}]}, "standard base64"),
        ({"prompt": "x", "images": [{"base64": TEXT, "media_type": "image/gif"}]}, "but is image/png"),
        ({}, "request.messages"),
    ],
)
def test_a_wrong_short_form_says_what_is_wrong(request_: dict[str, Any], reason: str) -> None:
    """Each mistake has its own sentence, which quotes no content."""
    with pytest.raises(InvalidJobError) as caught:
        VisionHandler().prepare(job(**request_))
    assert reason in str(caught.value)
    assert "passwd" not in str(caught.value)


BAD_IMAGES = {
    "private host": {"url": "http://127.0.0.1/x"},
    "no url": {"detail": "low"},
    "url is no text": {"url": 7},
    "a bare number": 7,
    "null": None,
    "not base64": {"url": "data:image/png;base64,****"},
    "wrong type": {"url": f"data:image/webp;base64,{TEXT}"},
    "not an image": {"url": "data:text/html;base64,AAAA"},
    "bomb": {"url": "data:image/png;base64," + base64.b64encode(png(30_000, 30_000)).decode()},
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize(
    "handler", [VisionHandler(), CompletionHandler(), ToolHandler(Dispatcher(Registry()))]
)
def test_images_are_checked_in_every_chat_kind(handler: KindHandler, name: str) -> None:
    """An image is held to the same rules wherever it comes."""
    with pytest.raises(InvalidJobError, match=r"request\.messages\[0\]\.content\[1\]\.image_url: "):
        handler.prepare(job(messages=full(BAD_IMAGES[name])))


def test_responses_items_are_checked_too() -> None:
    """Images and files of a Responses request follow the same policy; a text input is nobody's business."""
    handler = AssistantHandler()
    for part in (
        {"type": "input_image", "image_url": "http://localhost/x"},
        {"type": "input_file", "file_url": "gopher://example.com/x"},
    ):
        with pytest.raises(InvalidJobError, match=r"request\.input\[0\]\.content\[0\]"):
            handler.prepare(job(input=[{"role": "user", "content": [part]}]))
    fine = {"type": "input_image", "image_url": DATA_URL}
    handler.prepare(job(input=[{"role": "user", "content": [fine]}]))
    handler.prepare(job(input="http://localhost/"))


def test_number_and_sum_of_images_are_limited() -> None:
    """A request is refused at the first image too many, by count or by bytes."""
    handler = VisionHandler(limits=ImageLimits(max_images=2, max_total_bytes=40))
    handler.prepare(job(messages=full({"url": URL}, {"url": DATA_URL})))
    with pytest.raises(InvalidJobError, match=r"content\[3\].*too many images"):
        handler.prepare(job(messages=full({"url": URL}, {"url": URL}, {"url": URL})))
    with pytest.raises(InvalidJobError, match=r"content\[2\].*too many images"):
        handler.prepare(job(messages=full({"url": DATA_URL}, {"url": DATA_URL})))


def test_pixels_become_the_reserve() -> None:
    """What is reserved follows detail and size of the images."""
    handler = VisionHandler()

    def reserve(**image: str) -> int:
        request = handler.prepare(job(prompt="x", images=[image]))
        return handler.reserve(request).input_tokens

    small, large = TEXT, base64.b64encode(png(1600, 1600)).decode()
    costs = [
        reserve(base64=small, media_type="image/png"),
        reserve(url=URL, detail="low"),
        reserve(base64=large, media_type="image/png"),
        reserve(url=URL),
    ]
    assert costs == sorted(set(costs))
