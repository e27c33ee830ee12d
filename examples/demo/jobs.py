"""The jobs of the demo, each with how it should end."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.reply import Reply

EXAMPLES = Path(__file__).resolve().parents[1]
QUESTION = EXAMPLES / "question.json"
CHART = EXAMPLES / "assets" / "chart.png"
PHOTO_URL = "https://upload.wikimedia.org/wikipedia/commons/thumb/3/3a/Cat03.jpg/320px-Cat03.jpg"
MODEL = "gpt-6-luna"

HEADLINES = (
    "Harbour bridge reopens after repairs",
    "Local team wins the cup final",
    "Central bank leaves rates unchanged",
    "New species of frog found in the hills",
    "Train drivers call off their strike",
    "Museum returns a stolen painting",
)


@dataclass(frozen=True, slots=True)
class Expected:
    """How a job should end: `http_status` of its failure, if it should fail, and the requests it should cost."""

    attempts: int = 1
    http_status: int | None = None

    def holds(self, reply: Reply) -> bool:
        """Tell whether the reply is what was expected."""
        status = reply.error.http_status if reply.error else None
        outcome = "failed" if self.http_status else "succeeded"
        return (reply.status, reply.attempts, status) == (outcome, self.attempts, self.http_status)


def chat(job_id: str, tenant: str, *messages: str, kind: str = "completion", **parameters: Any) -> dict[str, Any]:
    """Return a job about a conversation: the user speaks first, then both in turn."""
    roles = ("user", "assistant")
    spoken = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(messages)]
    request = {"model": MODEL, "messages": spoken, **parameters}
    return {"version": 1, "kind": kind, "job_id": job_id, "tenant": tenant, "request": request}


def first_turn() -> dict[str, Any]:
    """Return the opening of a conversation."""
    return chat("conversation-1", "acme", "Suggest a name for a cat.")


def second_turn(answer: str) -> dict[str, Any]:
    """Return the next turn: a conversation is what the producer sends, here with the first answer in it."""
    return chat("conversation-2", "acme", "Suggest a name for a cat.", answer, "Why that one?")


def burst() -> dict[str, tuple[dict[str, Any], Expected]]:
    """Return the jobs that are sent all at once, by id."""
    jobs = [
        (_tool("weather", "How is the weather in Lisbon?"), Expected(attempts=2)),
        (_tool("search_products", "Which keyboards do you sell?"), Expected(attempts=2)),
        (_vision("image-by-url", {"url": PHOTO_URL, "detail": "low"}), Expected()),
        (_vision("image-as-base64", _chart()), Expected()),
        *(
            (chat(f"headline-{number}", "globex", f"One word for the subject: {text}"), Expected())
            for number, text in enumerate(HEADLINES, start=1)
        ),
    ]
    return {job["job_id"]: (job, expected) for job, expected in jobs}


def wrong_parameter() -> dict[str, Any]:
    """Return a job with a misspelt parameter, which only OpenAI can know."""
    return chat("wrong-parameter", "globex", "Say hello.", temprature=0.2)


def throttled() -> dict[str, Any]:
    """Return a job that is refused for a second before it is served."""
    return chat("429-first", "globex", "Say hello.")


def _tool(name: str, question: str) -> dict[str, Any]:
    return chat(name, "acme", question, kind="tool", tools=[{"name": name}])


def _vision(job_id: str, image: dict[str, str]) -> dict[str, Any]:
    request = {"model": MODEL, "prompt": "What does this show?", "images": [image]}
    return {"version": 1, "kind": "vision", "job_id": job_id, "tenant": "globex", "request": request}


def _chart() -> dict[str, str]:
    return {"base64": base64.b64encode(CHART.read_bytes()).decode(), "media_type": "image/png"}
