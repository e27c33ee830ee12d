"""What docker-compose.yml and the Dockerfile promise, as far as it can be read off them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.config.settings import Variables

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE.rpartition("\nFROM ")[2].replace("\\\n", "")


def instruction(name: str) -> str:
    """Return the last such instruction of the final stage."""
    return re.findall(rf"^{name} (.*)$", FINAL_STAGE, re.MULTILINE)[-1]


@pytest.mark.parametrize("service", ["worker", "migrate"])
def test_the_settings_exist(service: str) -> None:
    """Every variable given to the program is one that it reads."""
    known = {name.upper() for name in Variables.model_fields}
    assert set(SERVICES[service]["environment"]) <= known


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_listens_beyond_this_machine(service: str) -> None:
    """Published ports are bound to loopback."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", []))


def test_workers_can_be_scaled() -> None:
    """`--scale worker=N` works: no name, no host name and no port that only one of them could have."""
    assert not {"container_name", "hostname", "ports"} & SERVICES["worker"].keys()


def test_a_worker_may_finish_before_it_is_killed() -> None:
    """Docker's patience is a minute more than the worker's own grace period, whatever that is set to."""
    grace = SERVICES["worker"]["environment"]["WORKER_GRACE_SECONDS"]
    assert SERVICES["worker"]["stop_grace_period"] == f"1m{grace}s"


def test_workers_wait_for_the_migration_and_it_for_the_servers() -> None:
    """No worker meets a missing table or queue."""
    assert SERVICES["worker"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    for server, wait in SERVICES["migrate"]["depends_on"].items():
        assert wait == {"condition": "service_healthy"}
        assert SERVICES[server]["healthcheck"]["test"][0] == "CMD"


def test_no_secret_is_written_down() -> None:
    """Keys come from outside, and passwords that have a default say that they are for one machine."""
    assert SERVICES["worker"]["environment"]["OPENAI_API_KEY"] is None
    defaults = re.findall(r"PASSWORD:-([^}]*)}", (ROOT / "docker-compose.yml").read_text())
    assert set(defaults) == {"local-only"}


def test_the_image_runs_as_nobody_special_and_stops_on_sigterm() -> None:
    """The program is process 1 and gets the signal itself; it is not root."""
    assert json.loads(instruction("ENTRYPOINT")) == ["openai-worker"]
    assert json.loads(instruction("CMD")) == ["run"]
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert not instruction("USER").startswith(("0", "root"))


def test_the_health_check_is_a_program() -> None:
    """The command of HEALTHCHECK is valid JSON and valid Python."""
    command = json.loads(instruction("HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    assert "/healthz" in command[2]
