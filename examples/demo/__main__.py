"""Every kind of job through a real broker, worker and database; then what it came to, and what it cost.

`make demo` starts a broker for it. Without LIVE=1 and an OPENAI_API_KEY, OpenAI is a local stand-in.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import FrameType

from rich.console import Console

from examples.demo.jobs import MODEL, Played
from examples.demo.processes import ROOT, DemoError, StandIn, run_command, stand_in, worker
from examples.demo.stages import ask_question, play
from examples.demo.tables import bill_table, console, job_table, times_at_openai

FOLDER = Path(".local") / "demo"
CONFIG = Path(__file__).parent / "limits.toml"
NOT_OURS = ("OPENAI_", "WORKER_", "DATABASE_", "REDIS_")
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130


def main() -> int:
    """Run the demo; return 0 if every job ended as it should."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where database and logs go")
    folder = parser.parse_args().folder
    for number in SIGNALS:
        signal.signal(number, _leave)
    try:
        return _demo(folder, console())
    except DemoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _leave(number: int, _frame: FrameType | None) -> None:
    """Leave through the context managers, which stop what was started so far."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # another one must not interrupt the stopping
    raise SystemExit(128 + number)


def _demo(folder: Path, out: Console) -> int:
    amqp_url = os.environ.get("AMQP_URL")
    if not amqp_url:
        raise DemoError("no broker: run `make demo`, or set AMQP_URL")
    os.chdir(ROOT)
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "openai-worker.db"
    for earlier in folder.glob(f"{database.name}*"):
        earlier.unlink()
    database_url = f"sqlite:///{database}"
    with _upstream(folder, out) as (server, keys):
        environment = _environment(keys, AMQP_URL=amqp_url, DATABASE_URL=database_url)
        with worker(environment, folder / "worker.log") as port:
            out.print(f"The worker consumes; its metrics are at http://127.0.0.1:{port}/metrics for now.")
            played = [ask_question(environment), *asyncio.run(play(amqp_url, server))]
        report = run_command("usage", "report", "--by", "tenant", "--json", environment=environment)
    bill = json.loads(report)
    out.print("", job_table(played, times_at_openai(database)), "", bill_table(bill), "")
    _say_where_to_look(folder, database_url, out)
    return _verdict(played, bill, out)


@contextlib.contextmanager
def _upstream(folder: Path, out: Console) -> Iterator[tuple[StandIn | None, Mapping[str, str]]]:
    """Give what is asked in OpenAI's place, None for OpenAI itself, and the settings that lead there."""
    if os.environ.get("LIVE") == "1":
        keys = {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}
        if not keys.get("OPENAI_API_KEY"):
            raise DemoError("LIVE=1 asks OpenAI itself and needs OPENAI_API_KEY")
        out.print(f"OpenAI itself answers, with the key of the environment and the model {MODEL}.")
        yield None, keys
        return
    with stand_in(folder / "stand-in.log") as server:
        out.print("A local stand-in (llmock) answers instead of OpenAI, by repeating what it was asked.")
        yield server, {"OPENAI_API_KEY": "not-needed", "OPENAI_BASE_URL": f"{server.url}/v1"}


def _environment(keys: Mapping[str, str], **urls: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    ours = {
        "WORKER_CONFIG": str(CONFIG),
        "WORKER_TOOLS": "examples.tools",
        "WORKER_HTTP_PORT": "0",
        "WORKER_LOG_FORMAT": "json",
    }
    return {**kept, **keys, **urls, **ours}


def _say_where_to_look(folder: Path, database_url: str, out: Console) -> None:
    program = Path(sys.executable).parent / "openai-worker"
    command = os.path.relpath(program) if program.exists() else f"{sys.executable} -m worker"
    out.print("[bold]Where to look next[/]")
    for line in (
        f"export DATABASE_URL={database_url}",
        f"{command} jobs list",
        f"{command} jobs show weather --tenant acme --content",
        f"{command} usage report --by tenant,model,kind",
        f"less {folder / 'worker.log'}",
        "less examples/producer.py README.md docs/operations.md",
    ):
        out.print(f"  {line}", markup=False)


def _verdict(played: list[Played], bill: Sequence[Mapping[str, str]], out: Console) -> int:
    wrong = [one.reply.job_id or "?" for one in played if not one.as_expected]
    costs = [one.reply.usage.cost_usd for one in played if one.reply.usage]
    if sum(Decimal(cost or 0) for cost in costs) != sum(Decimal(row["cost_usd"] or 0) for row in bill):
        wrong.append("the bill, which is not the sum of the jobs")
    if wrong:
        out.print(f"\n[bold red]Not as expected:[/] {', '.join(wrong)}")
        return 1
    out.print(f"\nAll {len(played)} jobs ended as expected, the bill is their sum, and all is stopped again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
