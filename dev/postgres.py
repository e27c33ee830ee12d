"""A private PostgreSQL: own folder, own port, own password, gone when its owner is."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from dev import apt, processes
from dev.errors import ServerError
from dev.ports import free_ports

START_SECONDS = 30
POLL_SECONDS = 0.02
START_TRIES = 3
STATUS_LINE = 7  # of postmaster.pid, counted from 0: "ready" once connections are accepted


class Postgres:
    """One server in `folder`; it may be stopped, killed and started again with its data kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "postgres"
        self._binaries = binaries()
        self._user = unprivileged_user()
        self._password = secrets.token_hex(8)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database URL, password included."""
        return f"postgresql://worker:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start and return once connections are accepted."""
        if not self._data.exists():
            self._create()
        for _ in range(START_TRIES):
            self._port = self._port or free_ports(1)[0]
            if self._try_to_start():
                return
            self._port = 0
        message = f"PostgreSQL did not start: {processes.tail(self._log)}"
        raise ServerError(message)

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT with a checkpoint, SIGQUIT at once, SIGKILL as a crash."""
        if self._process is not None:
            processes.stop(self._process, first=how, patience=START_SECONDS)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "postgres.log"

    def _create(self) -> None:
        self.folder.mkdir()
        password_file = self.folder / "password"
        password_file.write_text(self._password)
        if self._user is not None:
            shutil.chown(self.folder, self._user)
            shutil.chown(password_file, self._user)
        options = ["--username=worker", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        options += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", f"--pgdata={self._data}"]
        result = processes.run(
            [self._binaries / "initdb", *options],
            environment=processes.clean_environment(),
            user=self._user,
        )
        password_file.unlink()
        if result.returncode != 0:
            message = f"initdb failed: {result.stderr.strip()} (is {self.folder} reachable by {self._user}?)"
            raise ServerError(message)

    def _try_to_start(self) -> bool:
        settings = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "fsync": "on",  # what is measured here must hold in production
            "max_connections": "200",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = processes.start(
            [self._binaries / "postgres", "-D", self._data, *options],
            environment=processes.clean_environment(),
            log=self._log,
            # Its own children end with it, and the shared memory is given back, which SIGKILL would not do.
            parent_death=signal.SIGQUIT,
            user=self._user,
        )
        return self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            if self._status(process.pid) == "ready":
                return True
            time.sleep(POLL_SECONDS)
        self.stop(how=signal.SIGQUIT)
        return False

    def _status(self, pid: int) -> str:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        # A file left by a killed server names that server's process.
        return lines[STATUS_LINE].strip() if len(lines) > STATUS_LINE and lines[0] == str(pid) else ""


def binaries() -> Path:
    """Find the newest PostgreSQL's programs; install it if this machine lets us."""
    found = _installed()
    if found is None:
        apt.install("postgresql")
        found = _installed()
    if found is None:
        message = "PostgreSQL is installed, but initdb is neither in /usr/lib/postgresql nor in PATH"
        raise ServerError(message)
    return found


def _installed() -> Path | None:
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def unprivileged_user() -> str | None:
    """Return whom to run as, None for the caller: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@contextlib.contextmanager
def private_postgres(folder: Path) -> Iterator[str]:
    """Run a server in `folder` and give its URL; it ends without a checkpoint, its data being worthless."""
    server = Postgres(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.stop(how=signal.SIGQUIT)
