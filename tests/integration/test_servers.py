"""The private servers that the demo and the tests run on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aio_pika
import asyncpg
import psutil
import pytest

from dev.folders import fresh_folder
from dev.postgres import Postgres
from dev.rabbitmq import RabbitMQ
from dev.servers import RABBITMQ_FOLDER
from tests.support.servers import Broker, pytest_xdist_auto_num_workers

ROOT = Path(__file__).parents[2]
SETTLE_SECONDS = 10


@contextmanager
def runner(
    *command: str, servers: tuple[str, ...] = ("--postgres",), **given: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with private servers, as make does."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"AMQP_URL", "DATABASE_URL"}
    }
    with subprocess.Popen(
        [sys.executable, "-m", "dev.servers", "run", *servers, "--", *command],
        cwd=ROOT,
        env=environment | given,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all that was started for the command, the command included."""
    return psutil.Process(process.pid).children(recursive=True)


def names(processes: list[psutil.Process]) -> set[str]:
    """Return the names of those that have not ended meanwhile, as RabbitMQ's helpers do."""
    found = set()
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            found.add(one.name())
    return found


@pytest.mark.parametrize(
    ("number", "rabbitmq"),
    # RabbitMQ takes most of the time to start, and is no different.
    [(signal.SIGKILL, ("--rabbitmq",)), (signal.SIGTERM, ()), (signal.SIGINT, ())],
)
def test_nothing_outlives_the_runner(
    number: signal.Signals, rabbitmq: tuple[str, ...], tmp_path: Path
) -> None:
    """However the runner ends, kill -9 included, its servers and its command end too."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with runner("sh", "-c", f"echo up; read _ < {gate}", servers=("--postgres", *rabbitmq)) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        started = descendants(process)
        assert {"postgres", "sh", *(("beam.smp", "epmd") if rabbitmq else ())} <= names(started)
        process.send_signal(number)
        process.wait()
        _gone, alive = psutil.wait_procs(started, timeout=SETTLE_SECONDS)
        assert not alive


def test_the_exit_code_is_the_command_s() -> None:
    """What the command returns is what make sees."""
    with runner("sh", "-c", "exit 7", servers=()) as process:
        assert process.wait() == 7


def test_a_server_that_the_environment_names_is_used_as_it_is() -> None:
    """Nothing is started where AMQP_URL and DATABASE_URL name servers already."""
    given = {"AMQP_URL": "amqp://elsewhere/", "DATABASE_URL": "postgresql://elsewhere/x"}
    with runner("env", servers=("--rabbitmq", "--postgres"), **given) as process:
        printed, _ = process.communicate()
    assert {f"{name}={value}" for name, value in given.items()} <= set(printed.splitlines())


def test_two_runs_do_not_meet() -> None:
    """Runs at the same time have a server each."""
    ask = ("sh", "-c", "echo $DATABASE_URL; psql -qAt $DATABASE_URL -c 'show data_directory'; read _")
    with runner(*ask) as one, runner(*ask) as other:
        assert one.stdout
        assert other.stdout
        here, there = ([stream.readline() for _ in range(2)] for stream in (one.stdout, other.stdout))
        assert here[0] != there[0]
        assert here[1] != there[1]


def test_a_killed_run_s_folder_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kill -9 leaves on the disk does not add up; what is in use stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with fresh_folder() as used:
        left = used.parent / "left-behind"
        left.mkdir()
        (left / "lock").touch()
        with fresh_folder():
            assert not left.exists()
            assert used.exists()
        assert used.exists()
    assert not used.exists()


FAKE_DOCKER = """#!/bin/sh
echo "$* RABBITMQ_PORT=$RABBITMQ_PORT" >> "$CALLS"
case "$*" in *" port "*) echo 127.0.0.1:49153;; esac
"""


@pytest.mark.parametrize("number", [None, signal.SIGKILL], ids=["ends", "killed"])
def test_a_container_is_removed_when_the_runner_is_gone(
    tmp_path: Path, number: signal.Signals | None
) -> None:
    """Where Docker runs, the broker is Compose's on a free port, and it goes however the runner ends."""
    docker, calls = tmp_path / "docker", tmp_path / "calls"
    docker.write_text(FAKE_DOCKER)
    docker.chmod(0o755)
    # The command stays, as one process, until somebody writes to it: what is listed meanwhile is complete.
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "GATE": str(gate)}
    command = ("sh", "-c", "echo $AMQP_URL; read _ < $GATE")
    with runner(*command, servers=("--rabbitmq", "--docker"), **given) as process:
        assert process.stdout
        assert process.stdout.readline().endswith("@127.0.0.1:49153/\n")
        removers = [one for one in descendants(process) if "remover" in one.cmdline()]
        assert removers
        if number:
            process.send_signal(number)
        else:
            gate.write_text("go on\n")
        process.wait()
        _gone, alive = psutil.wait_procs(removers, timeout=SETTLE_SECONDS)
        assert not alive
    _version, _info, up, _port, down = calls.read_text().splitlines()
    assert up.endswith("up --detach --wait rabbitmq RABBITMQ_PORT=")
    assert "down --volumes" in down
    assert up.split()[:5] == down.split()[:5]


async def test_a_killed_postgres_comes_back_with_its_data() -> None:
    """A crash at any instant loses no committed row, and the URL stays: what fault tests build on."""
    with fresh_folder() as folder:
        server = Postgres(folder)
        try:
            server.start()
            connection = await asyncpg.connect(server.url)
            await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
            server.stop(how=signal.SIGKILL)
            connection.terminate()
            server.start()
            connection = await asyncpg.connect(server.url)
            assert await connection.fetchval("SELECT one FROM kept") == 1
            await connection.close()
        finally:
            server.stop(how=signal.SIGQUIT)


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_stopped_rabbitmq_comes_back_with_its_queues(how: signal.Signals) -> None:
    """A confirmed message in a quorum queue is there after the node's restart, and the URL stays."""
    with fresh_folder() as folder:
        node = RabbitMQ(folder)
        try:
            node.start()
            async with await aio_pika.connect(node.url) as connection:
                channel = await connection.channel()
                await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
                persistent = aio_pika.Message(b"x", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                node.flush()
                await channel.default_exchange.publish(persistent, "kept")
            node.stop(how=how)
            assert node.pid is None
            node.start()
            async with await aio_pika.connect(node.url) as connection:
                queue = await (await connection.channel()).get_queue("kept")
                assert (await queue.get()).body == b"x"
        finally:
            node.stop(how=signal.SIGKILL)


async def test_each_test_has_an_empty_virtual_host(broker: Broker) -> None:
    """What a test declares exists in its own virtual host only, and its connections can be cut there."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("mine", durable=True, arguments={"x-queue-type": "quorum"})
        assert broker.node.ctl("--quiet", "list_queues", "-p", broker.vhost, "name").split() == [
            "name",
            "mine",
        ]
        closed = asyncio.Event()
        connection.close_callbacks.add(lambda *_: closed.set())
        broker.close_connections()
        async with asyncio.timeout(SETTLE_SECONDS):
            await closed.wait()


@pytest.mark.parametrize(("folder", "at_once"), [("", False), ("/ours", True)])
def test_only_our_own_broker_is_shared_by_tests(
    folder: str, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """Where AMQP_URL names somebody's virtual host, which each test empties, they run in turn."""
    monkeypatch.setenv("AMQP_URL", "amqp://elsewhere/")
    monkeypatch.setenv(RABBITMQ_FOLDER, folder)
    assert (pytest_xdist_auto_num_workers() > 0) == at_once
