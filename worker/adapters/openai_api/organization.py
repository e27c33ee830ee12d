"""OpenAI's own reports of what an organization used and what it cost."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from openai import AsyncOpenAI, OpenAIError

_BUCKETS: Final = 31
_NANO: Final = 10**9


class ReportError(Exception):
    """OpenAI gave no report; the message is safe to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedUsage:
    """One day of one project and model."""

    day: date
    project: str | None
    model: str | None
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedCost:
    """One day of one project, in 10⁻⁹ US dollars."""

    day: date
    project: str | None
    line_item: str | None
    nano_usd: int


class OrganizationReports:
    """Asks with the admin key. Days are UTC; the last one is included."""

    def __init__(self, *, admin_key: str, base_url: str | None = None) -> None:
        self._client = AsyncOpenAI(admin_api_key=admin_key, api_key="", base_url=base_url)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def costs(self, first: date, last: date) -> list[ReportedCost]:
        """Return the costs by day, project and line item. Raises ReportError."""
        ask = self._client.admin.organization.usage.costs
        return [
            ReportedCost(
                day=day,
                project=result.project_id,
                line_item=result.line_item,
                nano_usd=_nano((result.amount and result.amount.value) or 0),
            )
            async for day, result in _results(ask, first, last, ["project_id", "line_item"])
        ]

    async def usage(self, first: date, last: date) -> list[ReportedUsage]:
        """Return completions and embeddings by day, project and model. Raises ReportError."""
        reports = self._client.admin.organization.usage
        return [
            ReportedUsage(
                day=day,
                project=result.project_id,
                model=result.model,
                requests=result.num_model_requests,
                input_tokens=result.input_tokens,
                cached_input_tokens=getattr(result, "input_cached_tokens", None) or 0,
                output_tokens=getattr(result, "output_tokens", None) or 0,
            )
            for ask in (reports.completions, reports.embeddings)
            async for day, result in _results(ask, first, last, ["project_id", "model"])
        ]


async def _results(
    ask: Callable[..., Any], first: date, last: date, group_by: list[str]
) -> AsyncIterator[tuple[date, Any]]:
    page: dict[str, Any] = {}
    while True:
        try:
            answer = await ask(
                start_time=_midnight(first),
                end_time=_midnight(last + timedelta(days=1)),
                bucket_width="1d",
                group_by=group_by,
                limit=_BUCKETS,
                **page,
            )
        except OpenAIError as error:
            status = getattr(error, "status_code", None)
            raise ReportError(
                f"OpenAI gave no report: {type(error).__name__} {status or ''}".strip()
            ) from None
        for bucket in answer.data:
            for result in bucket.results:
                yield datetime.fromtimestamp(bucket.start_time, UTC).date(), result
        if not answer.has_more or not answer.next_page:
            return
        page = {"page": answer.next_page}


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _nano(dollars: float | str) -> int:
    """Return an amount that travels as a decimal number, or as text, without its binary dust."""
    return round(Decimal(str(dollars)) * _NANO)
