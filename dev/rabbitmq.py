"""A private RabbitMQ: own node name, ports, folders, cookie and epmd, gone when its owner is."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from dev import apt, processes
from dev.erlang import slim_scripts
from dev.errors import ServerError
from dev.ports import free_ports

START_SECONDS = 60
START_TRIES = 3
POLL_SECONDS = 0.25
CALL_TRIES = 20

# Erlang terms instead of rabbitmq.conf: read as they are, without the translation step.
# max_message_size is what RabbitMQ 4 allows by default; the write-ahead log's size bounds what quorum queues
# keep in memory.
CONFIGURATION = """[
 {{rabbit, [
   {{tcp_listeners, [{{"127.0.0.1", {amqp}}}]}},
   {{default_user, <<"worker">>}}, {{default_pass, <<"{password}">>}},
   {{max_message_size, 16777216}},
   {{disk_free_limit, 50000000}},
   {{collect_statistics, none}}
 ]}},
 {{ra, [{{wal_max_size_bytes, 67108864}}]}}
].
"""


class RabbitMQ:
    """One node in `folder`; it may be stopped, killed and started again with its queues kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rabbitmq"
        self._programs = programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._known: dict[str, str] = {}
        self._slim = True

    @classmethod
    def attached(cls, folder: Path) -> "RabbitMQ":
        """Return a handle, for `url`, `ctl` and `evaluate`, on a node that another process started."""
        node = cls(folder)
        node._known = json.loads(node._notes.read_text())
        return node

    @property
    def url(self) -> str:
        """The AMQP URL, password included."""
        return f"amqp://worker:{self._known['password']}@127.0.0.1:{self._known['amqp']}/"

    @property
    def node(self) -> str:
        """The Erlang node name."""
        return f"worker-{self._known['amqp']}@localhost"

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang machine while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start and return once the broker says that it is ready."""
        self.folder.mkdir(exist_ok=True)
        again = bool(self._known)  # clients know the port of a node that ran before
        for _ in range(START_TRIES):
            self._known = self._known if again else self._settle_names()
            if self._try_to_start():
                return
            self.stop(how=signal.SIGKILL)
            self._slim = False
        message = f"RabbitMQ did not start: {processes.tail(self._log)}"
        raise ServerError(message)

    def stop(self, *, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the node and its epmd: SIGTERM in good order, SIGKILL as a crash."""
        if self._process is not None:
            processes.stop(self._process, first=how, patience=START_SECONDS)
        if self._epmd is not None:
            processes.stop(self._epmd, first=signal.SIGKILL, patience=START_SECONDS)

    def ctl(self, *arguments: str, timeout: float = 60) -> str:
        """Run `rabbitmqctl`, about a second each time; `timeout` in seconds."""
        result = processes.run(
            [self._programs / "rabbitmqctl", "--node", self.node, *arguments],
            environment=self.environment,
            timeout=timeout,
        )
        if result.returncode != 0:
            message = f"rabbitmqctl {arguments[0]} failed: {result.stderr.strip() or result.stdout.strip()}"
            raise ServerError(message)
        return result.stdout

    def evaluate(self, expressions: str, *, timeout: float = 30) -> str:
        """Evaluate Erlang inside the node, a few milliseconds each time; expressions end with a full stop."""
        for _ in range(CALL_TRIES):
            result = processes.run(
                [erl_call(), "-sname", self.node, "-c", self._known["cookie"], "-e"],
                environment=self.environment,
                text_in=expressions + "\n",
                timeout=timeout,
            )
            if "failed to connect" not in result.stderr:
                break
            time.sleep(POLL_SECONDS)  # under load the node's handshake may take longer than the call waits
        if result.returncode != 0 or not result.stdout.startswith("{ok, "):
            message = f"the broker refused: {result.stderr.strip() or result.stdout.strip()}"
            raise ServerError(message)
        return result.stdout.removeprefix("{ok, ").removesuffix("}")

    def flush(self) -> None:
        """Put the node's directory of quorum queues on the disk, which it does by itself every few seconds.

        RabbitMQ 3.10 starts a queue that is missing there anew and empty: a crash just after a declaration
        loses even confirmed messages.
        """
        self.evaluate("lists:foreach(fun dets:sync/1, dets:all()).")

    @property
    def environment(self) -> dict[str, str]:
        """What RabbitMQ's programs must have in their environment to mean this node."""
        at = self.folder
        return processes.clean_environment(
            HOME=str(at),  # the cookie lives here
            ERL_EPMD_PORT=self._known["epmd"],
            ERL_EPMD_ADDRESS="127.0.0.1",
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_DIST_PORT=self._known["dist"],
            RABBITMQ_CTL_DIST_PORT_MIN="33000",  # room for many rabbitmqctl at a time
            RABBITMQ_CTL_DIST_PORT_MAX="43000",
            RABBITMQ_CONF_ENV_FILE=str(at / "rabbitmq-env.conf"),
            RABBITMQ_CONFIG_FILE=str(at / "rabbitmq"),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(at / "advanced.config"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(at / "enabled_plugins"),
            RABBITMQ_GENERATED_CONFIG_DIR=str(at / "generated"),
            RABBITMQ_MNESIA_BASE=str(at / "data"),
            RABBITMQ_LOG_BASE=str(at / "log"),
            RABBITMQ_LOGS=str(at / "log" / "rabbitmq.log"),
            RABBITMQ_PID_FILE=str(at / "pid"),
        )

    @property
    def _log(self) -> Path:
        return self.folder / "output.log"

    @property
    def _notes(self) -> Path:
        return self.folder / "node.json"

    def _settle_names(self) -> dict[str, str]:
        amqp, dist, epmd = map(str, free_ports(3))
        known = {"amqp": amqp, "dist": dist, "epmd": epmd}
        known |= {"password": secrets.token_hex(8), "cookie": secrets.token_hex(16).upper()}
        at = self.folder
        (at / "advanced.config").write_text(CONFIGURATION.format_map(known))
        (at / "enabled_plugins").write_text("[].\n")
        (at / "rabbitmq-env.conf").touch()
        cookie = at / ".erlang.cookie"
        cookie.unlink(missing_ok=True)
        cookie.write_text(known["cookie"])
        cookie.chmod(0o400)
        self._notes.write_text(json.dumps(known))
        self._notes.chmod(0o600)
        return known

    def _try_to_start(self) -> bool:
        self._start_epmd()
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
            notifications.bind(str(path))
            notifications.settimeout(POLL_SECONDS)
            # RabbitMQ speaks systemd's protocol: it becomes the Erlang machine itself, without a shell that
            # stays in between, and says when it is ready.
            environment = self.environment | {"NOTIFY_SOCKET": str(path)}
            program = self._programs / "rabbitmq-server"
            scripts = slim_scripts(program, self.folder / "home") if self._slim else None
            if scripts is not None:
                environment["RABBITMQ_SCRIPTS_DIR"] = str(scripts)
            self._process = processes.start([program], environment=environment, log=self._log)
            return _said_ready(notifications, self._process)

    def _start_epmd(self) -> None:
        """Start the Erlang port mapper in the foreground: one that RabbitMQ starts itself stays behind."""
        command = [_needed("epmd"), "-address", "127.0.0.1", "-port", self._known["epmd"]]
        self._epmd = processes.start(command, environment=self.environment, log=self.folder / "epmd.log")
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._epmd.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(self._known["epmd"]))).close()
                return
            time.sleep(0.005)


def _said_ready(notifications: socket.socket, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notifications.recv(4096):
                return True
    return False


def programs() -> Path:
    """Find the folder of `rabbitmq-server`; install it if this machine lets us."""
    found = _installed()
    if found is None:
        apt.install("rabbitmq-server")
        found = _installed()
    if found is None:
        message = "RabbitMQ is installed, but rabbitmq-server is neither in /usr/lib/rabbitmq nor in PATH"
        raise ServerError(message)
    return found


def _installed() -> Path | None:
    # What Debian has in PATH insists on its own user and folders; the real scripts are below /usr/lib.
    places = [Path("/usr/lib/rabbitmq/bin"), *Path("/opt").glob("rabbitmq*/sbin")]
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        places.append(Path(on_path).parent)
    return next((place for place in places if os.access(place / "rabbitmq-server", os.X_OK)), None)


def erl_call() -> str:
    """Find Erlang's small client for running nodes: in PATH or below Erlang's own folder."""
    places = [
        *Path("/usr/lib/erlang/bin").glob("erl_call"),
        *Path("/usr/lib/erlang").glob("erts-*/bin/erl_call"),
    ]
    return shutil.which("erl_call") or str(next(iter(places), "erl_call"))


def _needed(program: str) -> str:
    found = shutil.which(program, path=processes.clean_environment()["PATH"])
    if found is None:
        message = f"{program}, a part of Erlang, is not in PATH"
        raise ServerError(message)
    return found


@contextlib.contextmanager
def private_rabbitmq(folder: Path) -> Iterator[str]:
    """Run a node in `folder` and give its URL; at the end it is killed, its queues being worthless."""
    node = RabbitMQ(folder)
    try:
        node.start()
        yield node.url
    finally:
        node.stop(how=signal.SIGKILL)
