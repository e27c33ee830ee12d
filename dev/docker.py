"""The broker of docker-compose.yml for one run: own project, free port, removed when its owner is gone."""

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dev.errors import ServerError
from dev.processes import run

COMPOSE_FILE = Path(__file__).resolve().parents[1] / "docker-compose.yml"
ASK_SECONDS = 20
START_SECONDS = 900  # the image may have to be fetched first


def engine_runs() -> bool:
    """Tell whether Docker Compose and an engine answer."""
    docker = shutil.which("docker")
    questions = (["compose", "version"], ["info"])
    try:
        return docker is not None and all(
            run([docker, *question], timeout=ASK_SECONDS).returncode == 0 for question in questions
        )
    except subprocess.TimeoutExpired:
        return False


@contextlib.contextmanager
def compose_rabbitmq() -> Iterator[str]:
    """Run the broker in a container and give its URL. Raises ServerError."""
    project = f"openai-worker-dev-{secrets.token_hex(4)}"
    compose = ["docker", "compose", "--file", str(COMPOSE_FILE), "--project-name", project]
    password = secrets.token_hex(8)
    # An empty port number lets Docker pick a free one.
    ports = {"RABBITMQ_PORT": "", "RABBITMQ_MANAGEMENT_PORT": ""}
    environment = {**os.environ, **ports, "RABBITMQ_PASSWORD": password}
    with _removed_at_the_end(compose, environment):
        _must([*compose, "up", "--detach", "--wait", "rabbitmq"], environment)
        address = _must([*compose, "port", "rabbitmq", "5672"], environment).strip()
        yield f"amqp://worker:{password}@{address}/"


@contextlib.contextmanager
def _removed_at_the_end(compose: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Remove the containers when this process is done or dead: the engine would keep them.

    The remover waits for the end of its input, which comes either way.
    """
    script = 'read -r _; exec "$@" down --volumes --timeout 5'
    remover = subprocess.Popen(  # noqa: S603 - a fixed command
        ["/bin/sh", "-c", script, "remover", *compose],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        remover.communicate()


def _must(command: list[str], environment: dict[str, str]) -> str:
    result = run(command, environment=environment, timeout=START_SECONDS)
    if result.returncode != 0:
        message = f"docker compose failed: {result.stderr.strip()[-500:]}"
        raise ServerError(message)
    return result.stdout
