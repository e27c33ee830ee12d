"""Metrics: what is counted, under which names, with how many label values."""

import io
import logging
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.adapters.metrics import Metrics, Observers
from worker.domain.attempt import AttemptState
from worker.domain.events import (
    AttemptFinished,
    Broken,
    BudgetSeen,
    CredentialsClosed,
    Event,
    JobFinished,
    JobRefused,
    JobRepeated,
    JobWaits,
    ReplySettled,
    ServerTrouble,
)
from worker.domain.job import JobKey
from worker.domain.usage import Usage

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
KEY = JobKey("acme", "invoice-1")
FINISHED = JobFinished(
    key=KEY,
    kind=Kind.TOOL,
    lane="tool",
    model="gpt-6-luna",
    status=ReplyStatus.FAILED,
    error_code="timeout",
    attempts=2,
    seconds=3.0,
)


def attempt(model: str = "gpt-6-luna", *, cost: int | None = 61_400) -> AttemptFinished:
    """Return an attempt with usage."""
    return AttemptFinished(
        key=KEY,
        attempt_no=1,
        model=model,
        state=AttemptState.SUCCEEDED,
        http_status=200,
        error_code=None,
        openai_request_id=None,
        seconds=0.7,
        usage=Usage(input_tokens=812, cached_input_tokens=640, output_tokens=95, reasoning_tokens=12),
        cost_nano_usd=cost,
    )


def samples(metrics: Metrics) -> dict[str, float]:
    """Return the scraped samples as `name{label=value,…}`, without what only says when they began."""
    return {
        sample.name.removeprefix("openai_worker_")
        + "{"
        + ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


NEARLY_SPENT = BudgetSeen(
    tenant="acme",
    month="2026-11",
    budget_nano_usd=2_000_000_000,
    spent_nano_usd=1_750_000_000,
    warn=True,
    unpriced_requests=3,
)
COUNTED: list[tuple[Event, str, float]] = [
    (FINISHED, "jobs_total{error_code=timeout,kind=tool,status=failed}", 1),
    (FINISHED, "job_seconds_sum{kind=tool}", 3),
    (attempt(), "attempts_total{model=gpt-6-luna,state=succeeded}", 1),
    (attempt(), "attempt_seconds_bucket{le=1.0,model=gpt-6-luna}", 1),
    (attempt(), "tokens_total{direction=input,model=gpt-6-luna}", 812),
    (attempt(), "tokens_total{direction=cached_input,model=gpt-6-luna}", 640),
    (attempt(), "tokens_total{direction=cache_write,model=gpt-6-luna}", 0),
    (attempt(), "tokens_total{direction=output,model=gpt-6-luna}", 95),
    (attempt(), "tokens_total{direction=reasoning,model=gpt-6-luna}", 12),
    (attempt(), "cost_usd_total{model=gpt-6-luna}", 0.0000614),
    (attempt(cost=None), "unpriced_total{model=gpt-6-luna}", 1),
    (JobWaits(key=KEY, lane="tool", seconds=9, reason="limit"), "jobs_waiting_total{reason=limit}", 1),
    (JobRefused(lane="tool", job_id=None, reason="not JSON"), "jobs_refused_total{lane=tool}", 1),
    (JobRepeated(key=KEY, what="done"), "jobs_repeated_total{what=done}", 1),
    (ReplySettled(key=KEY, what="returned"), "replies_total{what=returned}", 1),
    (ServerTrouble(server="rabbitmq", up=True), "server_up{server=rabbitmq}", 1),
    (ServerTrouble(server="rabbitmq", up=False), "server_up{server=rabbitmq}", 0),
    (NEARLY_SPENT, "budget_usd{tenant=acme}", 2),
    (NEARLY_SPENT, "budget_spent_usd{tenant=acme}", 1.75),
    (NEARLY_SPENT, "budget_unpriced_requests{tenant=acme}", 3),
    (NEARLY_SPENT, "budget_warnings_total{tenant=acme}", 1),
    (CredentialsClosed(account="default", reason="x"), "credentials_closed_total{account=default}", 1),
    (Broken(key=None, where="job", error=ValueError()), "broken_total{where=job}", 1),
]


@pytest.mark.parametrize(("event", "name", "value"), COUNTED)
def test_each_event_is_counted(event: Event, name: str, value: float) -> None:
    """Every event moves the metric that the documentation names for it."""
    metrics = Metrics(version="1.2.3")
    metrics(event)
    assert samples(metrics)[name] == value


def test_an_unknown_price_is_not_zero() -> None:
    """A request without a known price adds nothing to the cost, and is counted as unpriced."""
    metrics = Metrics(version="1.2.3")
    metrics(attempt(cost=None))
    assert not [name for name in samples(metrics) if name.startswith("cost_usd_total")]


def test_jobs_in_flight_are_asked_for_at_the_scrape() -> None:
    """The gauge shows the number of that moment."""
    metrics, jobs = Metrics(version="1.2.3"), [1, 2, 3]
    metrics.watch_in_flight(lambda: len(jobs))
    jobs.pop()
    assert samples(metrics)["jobs_in_flight{}"] == 2


def test_models_cannot_flood_the_labels() -> None:
    """After a hundred names, producers' further models share one label, and nothing goes uncounted."""
    metrics = Metrics(version="1.2.3")
    for number in range(250):
        metrics(attempt(f"model-{number}"))
    counted = {name: value for name, value in samples(metrics).items() if name.startswith("attempts_total")}
    assert len(counted) == 101
    assert counted["attempts_total{model=other,state=succeeded}"] == 150


def test_two_workers_in_one_process_do_not_meet() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(version="1"), Metrics(version="1")
    one(FINISHED)
    assert not [name for name in samples(other) if name.startswith("jobs_total")]


def test_the_documentation_lists_every_metric() -> None:
    """docs/metrics.md has one row a metric with its name, type and labels, and no other."""
    metrics = Metrics(version="1.2.3")
    for event, _, _ in COUNTED:
        metrics(event)
    there = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type, label)
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name.startswith("openai_worker_") and not family.name.endswith("_created")
        for sample in family.samples
        for label in [", ".join(sorted(f"`{key}`" for key in sample.labels if key != "le"))]
    }
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {(name, kind, ", ".join(sorted(labels.split(", ")))) for name, kind, labels in rows}
    assert documented == there


def test_a_failing_observer_harms_nobody() -> None:
    """The others are told all the same, the caller notices nothing, and the failure is logged."""
    seen: list[Event] = []

    def fail(event: Event) -> None:
        raise ValueError

    def see(event: Event) -> None:
        seen.append(event)

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("worker.adapters.metrics")
    logger.addHandler(handler)
    Observers(fail, see)(FINISHED)
    logger.removeHandler(handler)
    assert seen == [FINISHED]
    assert "an observer failed on JobFinished" in stream.getvalue()


def test_what_was_found_of_a_copy_is_explained() -> None:
    """Each value of the label that the code writes has its row in the documentation, and no other."""
    source = (Path(__file__).parents[2] / "worker" / "core" / "processor.py").read_text()
    told = re.findall(
        r"^\| `([a-z ]+)` \| ", DOCS.read_text().partition("## Copies of jobs")[2], re.MULTILINE
    )
    assert set(told) - {"what"} == set(re.findall(r'JobRepeated\(.*what="([^"]+)"', source))
