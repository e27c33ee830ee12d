"""`openai-worker doctor`: what is in place, and what mends the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.command import MODELS, NOWHERE, SECRET, CommandLine
from tests.support.upstream import Act, Upstream


async def test_doctor_finds_everything_in_place(stored: CommandLine) -> None:
    """With all servers set up, each line is ok."""
    async with Upstream() as upstream:
        upstream.script(Act(body=json.dumps(MODELS), match="/models", times=2))
        settings: dict[str, Any] = {
            "OPENAI_BASE_URL": upstream.base_url,
            "WORKER_TOOLS": "tests.support.some_tools",
        }
        ended = await stored("doctor", "--json", **settings)
        assert ended.code == 0
        text = (await stored("doctor", **settings)).out
    assert all(finding["ok"] for finding in ended.json)
    assert {finding["what"] for finding in ended.json} == {
        "configuration",
        "tools",
        "broker",
        "topology",
        "database",
        "tables",
        "OpenAI (default)",
    }
    assert all(line.startswith("ok  ") for line in text.splitlines())


def test_the_installed_command_finds_tools_where_it_starts(tmp_path: Path) -> None:
    """As `python -m worker` does; a file of a library's name there takes no library's place."""
    (tmp_path / "shop.py").write_text(
        "from worker.tools import tool\n\n\n@tool\ndef price(sku: str) -> int:\n    return 1\n"
    )
    (tmp_path / "orjson.py").write_text("raise RuntimeError\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"WORKER_TOOLS": "shop", "WORKER_STARTUP_TIMEOUT": "0.1", "AMQP_URL": NOWHERE}
    command = [Path(sys.executable).with_name("openai-worker"), "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert (found["tools"]["ok"], found["tools"]["text"]) == (True, "price")


async def test_doctor_says_how_to_mend(cli: CommandLine) -> None:
    """On a fresh machine, each thing that is missing is told with what mends it."""
    ended = await cli("doctor", "--json", OPENAI_API_KEY="", WORKER_TOOLS="no.such.module")
    assert ended.code == 1
    wrong = {finding["what"]: finding["text"] for finding in ended.json if not finding["ok"]}
    assert wrong["topology"].endswith("run `openai-worker topology apply`")
    assert wrong["database"].endswith("run `openai-worker migrate`")
    assert wrong["openai"] == "OPENAI_API_KEY: must be given"
    assert "no.such.module" in wrong["tools"]


async def test_doctor_looks_at_each_server_by_itself(bare: CommandLine) -> None:
    """One server that is away does not hide what is wrong with the others, and no secret is shown."""
    settings: dict[str, Any] = {"DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/jobs"}
    settings |= {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_LOG": "debug"}
    # The SDK reads OPENAI_LOG while it is imported.
    ended = await bare.process("doctor", "--json", **settings)
    wrong = {finding["what"] for finding in ended.json if not finding["ok"]}
    assert (ended.code, wrong) == (1, {"broker", "database", "OpenAI (default)"})
    assert SECRET not in ended.out + ended.err
    assert "not-a-key" not in ended.out + ended.err


async def test_doctor_names_wrong_settings(bare: CommandLine) -> None:
    """Wrong settings are findings like any other."""
    ended = await bare("doctor", WORKER_CONCURRENCY="abc")
    assert ended.code == 1
    assert ended.out == (
        "WRONG  configuration: WORKER_CONCURRENCY: must be a whole number from 1 to 4096, not 'abc'\n"
    )
