"""Prometheus metrics, in a registry of their own, and several observers as one."""

import logging
import platform
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

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
from worker.domain.prices import NANO
from worker.ports import Observer

MetricT = TypeVar("MetricT", Counter, Histogram)

OTHER: Final = "other"
"""Label value of all names beyond the first hundred."""
_NAMES: Final = 100
_JOB_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_DIRECTIONS: Final = {
    "input": "input_tokens",
    "cached_input": "cached_input_tokens",
    "cache_write": "cache_write_tokens",
    "output": "output_tokens",
    "reasoning": "reasoning_tokens",
}
"""Label values, and the counts of a usage that they stand for."""
_ATTEMPT_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class _Bounded:
    """Lets the first names through as label values; producers choose models, and each value costs memory."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._names:
            if len(self._names) >= _NAMES:
                return OTHER
            self._names.add(name)
        return name


class Metrics:
    """Counts what it is told, and renders it for a scrape."""

    def __init__(self, *, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        counter = partial(Counter, namespace="openai_worker", registry=self._registry)
        gauge = partial(Gauge, namespace="openai_worker", registry=self._registry)
        seconds = partial(Histogram, namespace="openai_worker", registry=self._registry)

        self._model, self._reason = _Bounded(), _Bounded()
        self._children: dict[tuple[object, tuple[str, ...]], Any] = {}
        self._jobs = counter("jobs", "Jobs with an outcome", ["kind", "status", "error_code"])
        self._job_seconds = seconds(
            "job_seconds", "Seconds from first receipt to the outcome", ["kind"], buckets=_JOB_SECONDS
        )
        self._attempts = counter("attempts", "Requests to OpenAI", ["model", "state"])
        self._attempt_seconds = seconds(
            "attempt_seconds", "Seconds of one request to OpenAI", ["model"], buckets=_ATTEMPT_SECONDS
        )
        self._tokens = counter("tokens", "Tokens used, estimates included", ["model", "direction"])
        self._cost = counter("cost_usd", "US dollars spent, where the price is known", ["model"])
        self._unpriced = counter("unpriced", "Requests with usage but no known price", ["model"])
        self._waiting = counter("jobs_waiting", "Jobs sent to a waiting room", ["reason"])
        self._refused = counter("jobs_refused", "Messages that were no valid job", ["lane"])
        self._repeated = counter("jobs_repeated", "Copies of jobs done or held elsewhere", ["what"])
        self._replies = counter("replies", "Replies reported on, by what became of them", ["what"])
        self._broken = counter("broken", "Errors in the program itself", ["where"])
        self._closed = counter("credentials_closed", "Times OpenAI refused the credentials", ["account"])
        self._budget = gauge("budget_usd", "US dollars that a tenant may spend this month", ["tenant"])
        self._budget_spent = gauge("budget_spent_usd", "US dollars spent of it", ["tenant"])
        self._budget_unpriced = gauge(
            "budget_unpriced_requests",
            "Requests of this month that are not in it for want of a price",
            ["tenant"],
        )
        self._budget_warnings = counter(
            "budget_warnings", "Months in which a budget came near its end", ["tenant"]
        )
        self._server_up = gauge("server_up", "1 while the server answers", ["server"])
        self._in_flight = gauge("jobs_in_flight", "Jobs at work in this process")
        build = gauge("build_info", "Always 1", ["version", "python"])
        build.labels(version=version, python=platform.python_version()).set(1)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Ask this function for the jobs in flight at each scrape."""
        self._in_flight.set_function(count)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def __call__(self, event: Event) -> None:  # noqa: C901 - one flat case for each event
        """Take note."""
        match event:
            case JobFinished():
                self._child(self._jobs, event.kind, event.status, event.error_code or "").inc()
                self._child(self._job_seconds, event.kind).observe(event.seconds)
            case AttemptFinished():
                self._attempt(event)
            case JobWaits():
                self._waiting.labels(self._reason(event.reason.partition(", in about")[0])).inc()
            case JobRefused():
                self._refused.labels(event.lane).inc()
            case JobRepeated():
                self._repeated.labels(event.what).inc()
            case ReplySettled():
                self._replies.labels(event.what).inc()
            case ServerTrouble():
                self._server_up.labels(event.server).set(event.up)
            case CredentialsClosed():
                self._closed.labels(event.account).inc()
            case BudgetSeen():
                self._budget.labels(event.tenant).set(event.budget_nano_usd / NANO)
                self._budget_spent.labels(event.tenant).set(event.spent_nano_usd / NANO)
                self._budget_unpriced.labels(event.tenant).set(event.unpriced_requests)
                self._budget_warnings.labels(event.tenant).inc(event.warn)
            case Broken():
                self._broken.labels(event.where).inc()
            case _:
                assert_never(event)

    def _attempt(self, event: AttemptFinished) -> None:
        model, usage = self._model(event.model), event.usage
        self._child(self._attempts, model, event.state).inc()
        self._child(self._attempt_seconds, model).observe(event.seconds)
        if usage is None:
            return
        for direction, name in _DIRECTIONS.items():
            tokens = self._child(self._tokens, model, direction)
            if count := getattr(usage, name):
                tokens.inc(count)
        if event.cost_nano_usd is None:
            self._child(self._unpriced, model).inc()
        else:
            self._child(self._cost, model).inc(event.cost_nano_usd / NANO)

    def _child(self, metric: MetricT, *labels: str) -> MetricT:
        """Return what counts for these label values, which takes longer to find than to count with."""
        known: MetricT | None = self._children.get((metric, labels))
        if known is None:
            known = self._children[metric, labels] = metric.labels(*labels)
        return known


class Observers:
    """Tells each in turn; one that fails is logged, and neither the others nor the job notice."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def __call__(self, event: Event) -> None:
        """Take note."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logging.getLogger(__name__).exception("an observer failed on %s", type(event).__name__)
