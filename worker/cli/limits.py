"""`openai-worker limits`: the rate limits as every worker sees them."""

from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.output import plain, print_rows
from worker.cli.wiring import Exit, complain, database, settings, stop, work

if TYPE_CHECKING:
    from worker.adapters.database.limits import ClosedAccount, LimitRow
    from worker.config import Settings

app = typer.Typer(help="Rate limits as every worker sees them.", no_args_is_help=True)

_SHOWN: Final = (
    "account",
    "name",
    "requests_limit",
    "requests_level",
    "tokens_limit",
    "tokens_level",
    "reserved",
    "running",
    "waiting",
    "state",
    "learned_from",
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help=r"The model, or the glob of \[limits] it falls under.")
]
Account = Annotated[
    str | None, typer.Option(help="Only on these credentials, or on the project or organization they share.")
]


@app.command()
def show(*, json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """Show every limit in use: what a minute allows, what is left now, what runs, waits and is closed."""
    rows, closed = work(_limits(settings()))
    print_rows([_as_dict(row) for row in rows], _SHOWN, as_json=json)
    for one in closed:
        wait = max(0.0, one.closed_seconds)
        complain(
            f"credentials {plain(one.account)} are closed: {plain(one.closed_for)}; next try in {wait:.0f} s"
        )


@app.command()
def pause(name: Name, *, account: Account = None) -> None:
    """Let no request through until `limits resume`; its jobs wait."""
    loaded = settings()
    found, warning = work(_pause(loaded, name, account))
    for place, _ in found:
        complain(f"{name} is paused on the account {place}")
    if warning:
        complain(warning)


@app.command()
def resume(name: Name, *, account: Account = None) -> None:
    """Open a limit that is paused, or closed by a 429. Exit 1 if there is none of that name."""
    found = work(_set(settings(), name, account, paused=False))
    if not found:
        stop(f"there is no limit {name}; `openai-worker limits show` lists them", Exit.FAILED)
    for place, _ in found:
        complain(f"{name} is open on the account {place}")


async def _limits(loaded: "Settings") -> tuple[list["LimitRow"], list["ClosedAccount"]]:
    async with database(loaded) as queries:
        return await queries.limits()


async def _pause(
    loaded: "Settings", name: str, account: str | None
) -> tuple[list[tuple[str, str]], str | None]:
    """Pause; return what is paused, and a warning where that may have been a slip."""
    used, _ = await _limits(loaded)
    warning = None if any(row.name == name for row in used) else _strange(loaded, name)
    return await _set(loaded, name, account, paused=True), warning


def _strange(loaded: "Settings", name: str) -> str | None:
    """Say why pausing a limit that nobody has used yet may hold nothing up."""
    if name in loaded.limits:
        return None
    undo = f"`openai-worker limits resume {name}` takes it back"
    if glob := next((one for one in loaded.limits if fnmatchcase(name, one)), None):
        return f"this holds nothing up: {name} draws from the limit {glob}, so pause that; {undo}"
    return f"no limit or model {name} is known yet: is it spelt right? {undo}"


async def _set(loaded: "Settings", name: str, account: str | None, *, paused: bool) -> list[tuple[str, str]]:
    from worker.adapters.database.opening import open_limits

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    default = _quota(loaded, "default")
    only = None if account is None else _quota(loaded, account)
    async with open_limits(url, startup_timeout=patience) as limits:
        return await limits.set_paused(name, only, paused=paused, default=default)


def _quota(loaded: "Settings", credentials: str) -> str:
    """Return whose limits some credentials use; any other name is that of a project or organization."""
    from worker.domain.attempt import Account

    if credentials in loaded.credentials:
        table = loaded.credentials[credentials]
        return Account(name=credentials, organization=table.organization, project=table.project).quota
    if credentials == Account().name:
        return Account(organization=loaded.openai_org_id, project=loaded.openai_project_id).quota
    return credentials


def _as_dict(row: "LimitRow") -> dict[str, Any]:
    numbers = {
        key: round(value, 1) if isinstance(value, float) else value for key, value in asdict(row).items()
    }
    return numbers | {"state": _state(row)}


def _state(row: "LimitRow") -> str:
    if row.paused:
        return "paused"
    if row.closed_seconds:
        return f"closed for {row.closed_seconds:.0f} s: {row.closed_for}"
    return "open"
