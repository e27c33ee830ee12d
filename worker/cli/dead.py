"""`openai-worker dead`: messages that could not be processed."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.output import print_facts, print_json, print_rows
from worker.cli.wiring import Exit, broker, complain, settings, stop, work

if TYPE_CHECKING:
    from worker.adapters.rabbitmq.dead import DeadLetter, DeadLetters
    from worker.config import Settings

app = typer.Typer(help="Dead-lettered messages, each with its reason.", no_args_is_help=True)

_COLUMNS: Final = ("id", "died_at", "lane", "tenant", "job_id", "reason")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As `dead list` shows it.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="As `dead list` shows them.")]


@app.command("list")
def list_letters(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the oldest first.")] = 50,
    json: Json = False,
) -> None:
    """List what could not be processed."""
    letters = work(_with_letters(settings(), lambda dead: dead.browse(limit)))
    print_rows([_facts(letter) for letter in letters], _COLUMNS, as_json=json)


@app.command()
def show(
    letter_id: Id,
    *,
    content: Annotated[bool, typer.Option("--content", help="Print the message itself too.")] = False,
    json: Json = False,
) -> None:
    """Show one message with its properties."""
    letter = work(_with_letters(settings(), lambda dead: dead.find(letter_id)))
    if letter is None:
        stop(f"there is no dead letter {letter_id}", Exit.FAILED)
    delivery = letter.delivery
    facts = _facts(letter) | {
        "reply_to": delivery.reply_to,
        "correlation_id": delivery.correlation_id,
        "message_id": delivery.message_id,
        "user_id": delivery.user_id,
        "content_type": delivery.content_type,
        "bytes": len(delivery.body),
    }
    if content:
        facts["content"] = delivery.body.decode(errors="replace")
    if json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command()
def replay(letter_ids: Ids) -> None:
    """Send messages to their lanes again."""
    _each(letter_ids, lambda dead, one: dead.replay(one), "sent again")


@app.command()
def discard(letter_ids: Ids) -> None:
    """Do away with messages for good."""
    _each(letter_ids, lambda dead, one: dead.discard(one), "discarded")


def _each(letter_ids: list[str], act: Callable[["DeadLetters", str], Awaitable[bool]], done: str) -> None:
    async def all_of_them(dead: "DeadLetters") -> bool:
        found = True
        for one in letter_ids:
            there = await act(dead, one)
            complain(f"{one}: {done if there else 'there is no such dead letter'}")
            found = found and there
        return found

    if not work(_with_letters(settings(), all_of_them)):
        raise typer.Exit(Exit.FAILED)


async def _with_letters(loaded: "Settings", act: Callable[["DeadLetters"], Awaitable[Any]]) -> Any:
    from worker.adapters.rabbitmq.dead import DeadLetters

    async with broker(loaded) as link:
        return await act(DeadLetters(link))


def _facts(letter: "DeadLetter") -> dict[str, Any]:
    return {name: getattr(letter, name) for name in _COLUMNS}
