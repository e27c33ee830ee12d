"""`openai-worker usage export`: the ledger, row by row, as CSV or Parquet."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.usage_options import From, Model, Project, Tenant, To, only
from worker.cli.wiring import Exit, complain, ledger, settings, stop, work

if TYPE_CHECKING:
    from worker.adapters.database.reports import UsageFilter
    from worker.cli.ledger_files import LedgerFile
    from worker.config import Settings


class Form(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    PARQUET = "parquet"


def export(  # noqa: PLR0913 - one for each option
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV: a file, without it standard output. Parquet: a folder."),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How it is written.")] = Form.CSV,
    since: From = None,
    until: To = None,
    tenant: Tenant = None,
    model: Model = None,
    project: Project = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an export of the same range ended.")
    ] = False,
) -> None:
    """Write out ledger rows in the order of their ids: the same range gives the same bytes."""
    loaded = settings()
    asked = only(since=since, until=until, tenant=tenant, model=model, project=project)
    rows = work(_export(loaded, asked, _target(output, form, resume=resume)))
    complain(f"{rows} rows written")


def _target(output: Path | None, form: Form, *, resume: bool) -> "LedgerFile":
    from worker.cli.ledger_files import CsvFile, CsvStream, LedgerFileError, ParquetFolder

    try:
        if form is Form.PARQUET:
            if output is None:
                raise typer.BadParameter("is needed: the folder to write to", param_hint="--output")
            return ParquetFolder(output, resume=resume)
        return CsvStream(sys.stdout) if output is None else CsvFile(output, resume=resume)
    except LedgerFileError as error:
        stop(str(error), Exit.USAGE)


async def _export(loaded: "Settings", asked: "UsageFilter", target: "LedgerFile") -> int:
    from worker.adapters.database.ledger_pages import ledger_pages, settled

    count = 0
    with target:
        async with ledger(loaded) as engine:
            until, whole = await settled(engine)
            async for page in ledger_pages(engine, asked, after=target.last_id, until=until):
                target.write(page)
                count += len(page)
    if not whole:
        complain(f"a transaction has been open for long: rows after id {until} are left for --resume")
    return count
