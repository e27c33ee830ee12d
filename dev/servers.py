"""Give a command the servers that it needs, and take away afterwards those that were started for it."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

from dev.docker import compose_rabbitmq, engine_runs
from dev.errors import ServerError
from dev.folders import fresh_folder
from dev.postgres import private_postgres
from dev.processes import bound, stop
from dev.rabbitmq import private_rabbitmq

RABBITMQ_FOLDER = "DEV_RABBITMQ_FOLDER"
PATIENCE_SECONDS = 60
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SENT_BY_KERNEL = 0x80  # SI_KERNEL: Ctrl-C, which the terminal sends to the command as well


@contextlib.contextmanager
def servers(*, rabbitmq: bool, postgres: bool, docker: bool = False) -> Iterator[dict[str, str]]:
    """Give the variables that name the servers; one that the environment names already is used as it is."""
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(fresh_folder())
        if postgres and not os.environ.get("DATABASE_URL"):
            found["DATABASE_URL"] = stack.enter_context(private_postgres(folder))
        if rabbitmq and not os.environ.get("AMQP_URL"):
            found |= _broker(stack, folder, docker=docker)
        yield found


def _broker(stack: contextlib.ExitStack, folder: Path, *, docker: bool) -> dict[str, str]:
    """Start a broker: in a container if that is wanted and works, else from this machine's own package."""
    if docker and engine_runs():
        try:
            return {"AMQP_URL": stack.enter_context(compose_rabbitmq())}
        except ServerError as error:
            sys.stderr.write(f"{error}; trying without Docker\n")
    url = stack.enter_context(private_rabbitmq(folder))
    return {"AMQP_URL": url, RABBITMQ_FOLDER: str(folder)}


def run(command: Sequence[str], *, rabbitmq: bool, postgres: bool, docker: bool = False) -> int:
    """Run a command with its servers; return its exit code, 128 + n when signal n ended it."""
    for number in FORWARDED:
        signal.signal(number, _leave)
    with servers(rabbitmq=rabbitmq, postgres=postgres, docker=docker) as found:
        environment = os.environ | found
        arguments = bound(command, signal.SIGTERM)
        child = subprocess.Popen(arguments, env=environment)  # noqa: S603 - what the user asked for
        try:
            return _outlast(child)
        finally:
            stop(child, first=signal.SIGTERM, patience=PATIENCE_SECONDS)


def _leave(number: int, _frame: types.FrameType | None) -> None:
    """Leave through the context managers, which stop what was started so far."""
    for other in FORWARDED:
        signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
    raise SystemExit(128 + number)


def _outlast(child: subprocess.Popen[bytes]) -> int:
    """Wait for the command and hand it every signal that it did not get itself."""
    watched = {signal.SIGCHLD, *FORWARDED}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    while child.poll() is None:
        received = signal.sigwaitinfo(watched)
        if received.si_signo != signal.SIGCHLD and received.si_code != SENT_BY_KERNEL:
            child.send_signal(received.si_signo)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.servers", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="start what is lacking, run COMMAND, stop it again")
    runner.add_argument("--rabbitmq", action="store_true", help="a broker; AMQP_URL names it")
    runner.add_argument("--docker", action="store_true", help="the broker in a container where Docker runs")
    runner.add_argument("--postgres", action="store_true", help="a database server; DATABASE_URL names it")
    runner.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND…")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        runner.error("a command is needed")
    try:
        return run(command, rabbitmq=options.rabbitmq, postgres=options.postgres, docker=options.docker)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
