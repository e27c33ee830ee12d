"""`openai-worker topology`: exchanges and queues."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.output import print_json
from worker.cli.wiring import Exit, broker, complain, settings, work

if TYPE_CHECKING:
    from worker.config import Settings

app = typer.Typer(help="Declare exchanges and queues, or compare them with the broker.", no_args_is_help=True)


@app.command()
def apply() -> None:
    """Declare what is missing; a second time changes nothing."""
    work(_apply(settings()))
    complain("the exchanges and queues are in place")


@app.command()
def check(*, json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """Name each difference between the broker and what should be there; exit 1 if there is any."""
    differences = work(_check(settings()))
    if json:
        print_json(differences)
    for difference in () if json else differences:
        typer.echo(difference)
    if differences:
        raise typer.Exit(Exit.FAILED)
    complain("the exchanges and queues are as they should be")


async def _apply(loaded: "Settings") -> None:
    from worker.adapters.rabbitmq import topology

    async with broker(loaded) as link:
        await topology.apply(link)


async def _check(loaded: "Settings") -> list[str]:
    from worker.adapters.rabbitmq import topology

    async with broker(loaded) as link:
        return await topology.check(link)
