"""Child processes that never outlive their parent."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_BYTES = 2_000


def start(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    parent_death: signal.Signals = signal.SIGKILL,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C reaches its owner only; output goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the callers' own fixed commands
            bound(arguments, parent_death),
            env=dict(environment),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


def run(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    text_in: str | None = None,
    timeout: float = 60,
    user: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a short command to its end and keep what it printed; `timeout` in seconds."""
    return subprocess.run(  # noqa: S603 - the callers' own fixed commands
        list(arguments),
        env=None if environment is None else dict(environment),
        cwd="/",
        input="" if text_in is None else text_in,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def bound(arguments: Sequence[str | Path], parent_death: signal.Signals) -> list[str | Path]:
    """Return the command with the kernel's promise to signal it when its parent dies, kill -9 included."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return list(arguments)
    return [setpriv, "--pdeathsig", parent_death.name.removeprefix("SIG"), "--", *arguments]


def stop(process: subprocess.Popen[bytes], *, first: signal.Signals, patience: float) -> None:
    """Signal a child, give it `patience` seconds, kill it if need be, and wait until it is gone."""
    if process.poll() is not None:
        return
    process.send_signal(first)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    """Return the end of a log for an error message."""
    if not log.exists():
        return ""
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()


def clean_environment(**values: str) -> dict[str, str]:
    """Return an environment that owes nothing to the caller's, apart from PATH."""
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]))
    return {"PATH": path, "LANG": "C.UTF-8", "TZ": "UTC", **values}
