"""The jobs of the demo, each with how it should end."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schemas.reply import Reply, ReplyStatus

EXAMPLES = Path(__file__).resolve().parents[1]
QUESTION = EXAMPLES / "question.json"
CHART = EXAMPLES / "assets" / "chart.png"
PHOTO_URL = "https://upload.wikimedia.org/wikipedia/commons/3/3a/Cat03.jpg"
MODEL = "gpt-6-luna"
OPENING = "Suggest a name for a cat."

HEADLINES = (
    "Harbour bridge reopens after repairs",
    "Local team wins the cup final",
    "Central bank leaves rates unchanged",
    "New species of frog found in the hills",
    "Train drivers call off their strike",
    "Museum returns a stolen painting",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job, and how it should end: with so many requests at least, and refused with a status or not."""

    job: Mapping[str, Any]
    attempts: int = 1
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Played:
    """A job and its reply."""

    planned: Planned
    reply: Reply

    @property
    def as_expected(self) -> bool:
        """Whether the reply is what was planned."""
        plan, reply = self.planned, self.reply
        status = reply.error.http_status if reply.error else None
        outcome = ReplyStatus.FAILED if plan.http_status else ReplyStatus.SUCCEEDED
        return reply.status is outcome and status == plan.http_status and reply.attempts >= plan.attempts


def question() -> Planned:
    """Return the job of the JSON file."""
    return Planned(job=json.loads(QUESTION.read_text()))


def first_turn() -> Planned:
    """Return the opening of a conversation."""
    return _chat("conversation-1", "acme", OPENING)


def second_turn(answer: str) -> Planned:
    """Return the next turn: a conversation is what the producer sends, here with the first answer in it."""
    return _chat("conversation-2", "acme", OPENING, answer, "Why that one?")


def burst() -> list[Planned]:
    """Return the jobs that are sent all at once."""
    return [
        _tool("weather", "How is the weather in Lisbon?"),
        _tool("search_products", "Which keyboards do you sell?"),
        _vision("image-by-url", {"url": PHOTO_URL, "detail": "low"}),
        _vision("image-as-base64", _chart()),
        *(
            _chat(f"headline-{number}", "globex", f"One word for the subject: {headline}")
            for number, headline in enumerate(HEADLINES, start=1)
        ),
    ]


def wrong_parameter() -> Planned:
    """Return a job with a misspelt parameter; whether there is such a one, only OpenAI can know."""
    planned = _chat("wrong-parameter", "globex", "Say hello.", temprature=0.2)
    return replace(planned, http_status=400)


def throttled(*, refused: bool) -> Planned:
    """Return a job that may be refused at first, and must be served in the end."""
    return replace(_chat("429-first", "globex", "Say hello."), attempts=2 if refused else 1)


def _chat(job_id: str, tenant: str, *said: str, **parameters: Any) -> Planned:
    """Return a completion about a conversation; the user speaks first, then both in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
    request = {"model": MODEL, "messages": messages, **parameters}
    return Planned(job={"kind": "completion", "job_id": job_id, "tenant": tenant, "request": request})


def _tool(name: str, question: str) -> Planned:
    messages = [{"role": "user", "content": question}]
    request = {"model": MODEL, "messages": messages, "tools": [{"name": name}]}
    return Planned(job={"kind": "tool", "job_id": name, "tenant": "acme", "request": request}, attempts=2)


def _vision(job_id: str, image: Mapping[str, str]) -> Planned:
    request = {"model": MODEL, "prompt": "What does this show?", "images": [image]}
    return Planned(job={"kind": "vision", "job_id": job_id, "tenant": "globex", "request": request})


def _chart() -> dict[str, str]:
    return {"base64": base64.b64encode(CHART.read_bytes()).decode(), "media_type": "image/png"}
