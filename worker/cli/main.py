"""The command `openai-worker`."""

import atexit
import gc
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli import dead, doctor, jobs, limits, models, submit, topology, usage
from worker.cli.output import print_json
from worker.cli.wiring import Exit, complain, settings, to_stay, told, work

app = typer.Typer(
    help="Event-driven OpenAI worker: jobs from RabbitMQ, one reply each, an exact ledger.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables would show prompts and keys.
    pretty_exceptions_enable=False,
)
app.add_typer(topology.app, name="topology")
app.add_typer(jobs.app, name="jobs")
app.add_typer(dead.app, name="dead")
app.add_typer(usage.app, name="usage")
app.add_typer(limits.app, name="limits")
app.command("submit")(submit.submit)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - called by typer
    if wanted:
        typer.echo(f"openai-worker {version('openai-worker')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def run() -> None:
    """Run the command line."""
    # Looking for garbage in what is left at the end would take a quarter of a short command's time.
    atexit.register(gc.freeze)
    app()


@app.command("run")
def run_worker() -> None:
    """Consume jobs until told to stop (SIGTERM or Ctrl-C; a second one stops at once)."""
    with to_stay():
        loaded = settings()
        with told():
            from worker.app import run_worker as start
    with told():
        raise typer.Exit(start(loaded))


@app.command()
def migrate(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what differs; exit 1 if anything does.")
    ] = False,
) -> None:
    """Bring the database to the newest revision."""
    loaded = settings()
    from worker.adapters.database import setup

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    if not check:
        work(setup.upgrade(url, startup_timeout=patience))
        complain("the database is at the newest revision")
        return
    differences = work(setup.check(url, startup_timeout=patience))
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise typer.Exit(Exit.FAILED)
    complain("the database is as it should be")


class ContractFormat(StrEnum):
    """How the message schemas are printed."""

    JSON_SCHEMA = "json-schema"
    ASYNCAPI = "asyncapi"


@app.command()
def contract(
    form: Annotated[
        ContractFormat, typer.Option("--format", help="Which description to print.")
    ] = ContractFormat.JSON_SCHEMA,
) -> None:
    """Print the message schemas."""
    from schemas.contract import asyncapi, json_schemas

    print_json(asyncapi() if form is ContractFormat.ASYNCAPI else json_schemas())
