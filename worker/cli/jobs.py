"""`openai-worker jobs`: look at jobs and steer them."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from schemas.cancel import Cancel
from schemas.job import DEFAULT_TENANT
from schemas.names import CANCEL_KEY, CONTROL, JOBS, Kind
from worker.cli.dates import METAVAR, midnight
from worker.cli.explain import NEVER_CAME, money
from worker.cli.explain import explain as reasons
from worker.cli.missing import kept_for_later, missing
from worker.cli.output import dollars, plain, print_facts, print_json, print_rows
from worker.cli.wiring import Exit, Sender, broker, complain, database, ledger, settings, stop, work
from worker.domain.attempt import AttemptState
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey

if TYPE_CHECKING:
    from worker.adapters.database.queries import JobDetail, JobFilter, JobRow, WorkerRow
    from worker.config import Settings

app = typer.Typer(help="Look at jobs and steer them.", no_args_is_help=True)

_LISTED: Final = (
    "received_at",
    "tenant",
    "job_id",
    "kind",
    "model",
    "status",
    "attempts",
    "error_code",
    "reply_status",
)
_ATTEMPTS: Final = (
    "attempt_no",
    "state",
    "http_status",
    "error_code",
    "openai_request_id",
    "model",
    "started_at",
    "finished_at",
)
_LEDGER: Final = (
    "attempt_no",
    "entry",
    "model",
    "service_tier",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The job_id.")]
Tenant = Annotated[str, typer.Option(help="The job's tenant.")]


@app.command("list")
def list_jobs(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    status: Annotated[JobStatus | None, typer.Option(help="Only this status.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the newest first.")] = 50,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    loaded = settings()
    from worker.adapters.database.queries import JobFilter

    only = JobFilter(tenant=tenant, status=status, kind=kind, model=model)
    rows = [asdict(row) for row in work(_list(loaded, only, limit))]
    print_rows(rows, _LISTED, as_json=json)


@app.command()
def show(
    job_id: Id,
    *,
    tenant: Tenant = DEFAULT_TENANT,
    content: Annotated[bool, typer.Option("--content", help="Print request and reply too.")] = False,
    json: Json = False,
) -> None:
    """Show a job with its attempts and what they cost."""
    detail, _ = work(_find(settings(), JobKey(tenant, job_id)))
    shown = _as_dict(detail, content=content)
    if json:
        print_json(shown)
        return
    if detail.job.kind is None:
        complain(NEVER_CAME)
    print_facts(shown["job"])
    for heading, columns in (("attempts", _ATTEMPTS), ("ledger", _LEDGER)):
        typer.echo(f"\n{heading}")
        print_rows(shown[heading], columns, as_json=False)
    for heading in ("request", "reply") if content else ():
        typer.echo(f"\n{heading}")
        print_json(shown[heading])


@app.command()
def explain(job_id: Id, *, tenant: Tenant = DEFAULT_TENANT, json: Json = False) -> None:
    """Say where a job stands: why it waits and until when, who runs it, what became of its reply."""
    lines = work(_explain(settings(), JobKey(tenant, job_id)))
    if json:
        print_json(lines)
    for line in () if json else lines:
        typer.echo(plain(line))


@app.command()
def cancel(job_id: Id, *, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Cancel a job: one that waits never starts, a running call is closed. Exit 1 if it is too late."""
    status, unknown = work(_cancel(settings(), JobKey(tenant, job_id)))
    if status.terminal:
        stop(f"the job has its outcome already: {status}", Exit.FAILED)
    complain(unknown or f"the job was {status}; it will be cancelled")


@app.command()
def replay(job_id: Id, *, tenant: Tenant = DEFAULT_TENANT) -> None:
    """Publish a job's message again: a done job is answered from its stored reply, any other goes on."""
    job = work(_replay(settings(), JobKey(tenant, job_id)))
    complain(f"the job was {job.status}; its message is on its lane again")


async def _explain(loaded: "Settings", key: JobKey) -> list[str]:
    detail, workers = await _find(loaded, key)
    async with database(loaded) as queries:
        limits, closed = await queries.limits()
    calling = any(attempt.state == AttemptState.IN_FLIGHT for attempt in detail.attempts)
    lease = loaded.worker_lease_seconds
    lines = reasons(detail.job, workers, calling=calling, limits=limits, closed=closed, lease_seconds=lease)
    return [*lines, *money(detail)]


@app.command()
def erase(
    *,
    tenant: Annotated[str, typer.Option(help="Whose content.")],
    before: Annotated[
        datetime | None,
        typer.Option(parser=midnight, help="Only jobs received before this day, UTC.", metavar=METAVAR),
    ] = None,
) -> None:
    """Erase a tenant's stored requests, results and checkpoints for good. Its bill and its job ids stay."""
    erased, left = work(_erase(settings(), tenant, before))
    complain(f"{erased} bodies erased" + (f"; {left} left, of jobs under way: erase again" if left else ""))


async def _erase(loaded: "Settings", tenant: str, before: datetime | None) -> tuple[int, int]:
    from worker.adapters.database.retention import Retention

    async with ledger(loaded, write=True) as engine:
        retention = Retention(engine)
        return await retention.erase_tenant(tenant, before), await retention.left(tenant, before)


async def _list(loaded: "Settings", only: "JobFilter", limit: int) -> list["JobRow"]:
    async with database(loaded) as queries:
        return await queries.jobs(only, limit=limit)


async def _find(loaded: "Settings", key: JobKey) -> tuple["JobDetail", list["WorkerRow"]]:
    async with database(loaded) as queries:
        detail = await queries.job(key)
        if detail is None:
            stop(await missing(queries, key), Exit.FAILED)
        return detail, await queries.workers()


async def _cancel(loaded: "Settings", key: JobKey) -> tuple[JobStatus, str | None]:
    """Ask for it; return how the job stood, and what to say where no such job is known."""
    from worker.adapters.database.opening import open_cancels

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    async with open_cancels(url, startup_timeout=patience) as cancels:
        status = await cancels.request_cancel(key)
    if not status.terminal:
        # The database keeps the request; the message is for the worker that runs the job at this moment.
        body = Cancel(tenant=key.tenant, job_id=key.job_id).model_dump_json().encode()
        async with broker(loaded) as link:
            await Sender(link).send(body, exchange=CONTROL, routing_key=CANCEL_KEY)
    async with database(loaded) as queries:
        detail = await queries.job(key)
        known = detail is not None and detail.job.kind is not None
        return status, None if known else await kept_for_later(queries, key)


async def _replay(loaded: "Settings", key: JobKey) -> "JobRow":
    detail, _ = await _find(loaded, key)
    job = detail.job
    if detail.request is None or job.lane is None:
        stop("the message of this job is not stored", Exit.FAILED)
    async with broker(loaded) as link:
        await Sender(link).send(
            detail.request,
            exchange=JOBS,
            routing_key=job.lane,
            # A message that named no job_id in its body had it here.
            message_id=job.job_id,
            reply_to=job.reply_to,
            correlation_id=job.correlation_id,
        )
    return job


def _as_dict(detail: "JobDetail", *, content: bool) -> dict[str, Any]:
    shown = {
        "job": asdict(detail.job),
        "attempts": [asdict(row) for row in detail.attempts],
        "ledger": [asdict(row) | {"cost_usd": dollars(row.cost_nano_usd)} for row in detail.ledger],
    }
    if content:
        shown |= {"request": _parsed(detail.request), "reply": _parsed(detail.reply)}
    return shown


def _parsed(body: bytes | None) -> Any:
    return None if body is None else orjson.loads(body)
