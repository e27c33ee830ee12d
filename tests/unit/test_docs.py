"""What the documents and examples say is held against the program."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from examples.demo import jobs as demo
from schemas.job import Job
from schemas.names import LANES, SERVED
from schemas.reply import Reply
from worker.cli.main import app
from worker.config.load import FILE_VARIABLE
from worker.config.settings import Variables
from worker.domain.images import Base64Image, ImageLimits, check_image
from worker.domain.tokens import DEFAULT_OUTPUT_TOKENS
from worker.tools import load_tools

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FIRST_SCREEN_LINES = 45
PROGRAM = "openai-worker"

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of a language; the language of a plain block is ''."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def spoken(document: Path) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(document: Path) -> list[str]:
    """Return what stands between backticks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", spoken(document))]


def rows(document: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = document.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# ---------------------------------------------------------------- the README


def test_the_first_screen_fits_a_screen() -> None:
    """What it is, what it promises, the picture, two commands and a producer stand in 45 lines."""
    first = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(first.splitlines()) <= FIRST_SCREEN_LINES
    for part in ("promises", "does not promise", "openai.jobs", "make demo", "make test", "JobClient"):
        assert part in first


def test_the_producer_of_the_readme_is_the_one_in_examples() -> None:
    """The code that readers see first is the file that the tests run."""
    (code,) = blocks(ROOT / "README.md", "python")
    docstring, _, body = (EXAMPLES / "producer.py").read_text().partition("\n\n")
    assert docstring.startswith('"""')
    assert code == body


def test_the_kinds_of_the_readme_are_those_that_are_served() -> None:
    """A kind has a file in the core if, and only if, the README names it."""
    told = {row[0].strip("`") for row in rows(ROOT / "README.md", "Jobs")}
    assert told == {lane for lane in LANES if importlib.util.find_spec(f"worker.core.{lane}")}
    assert told == set(SERVED)


def test_the_defaults_of_the_readme_are_the_programs() -> None:
    """A table that is wrong about a default is worse than none."""
    for name, default, _ in rows(ROOT / "README.md", "Configuration"):
        value = Variables.model_fields[name.strip("`").lower()].default
        secret = getattr(value, "get_secret_value", lambda value=value: value)()
        assert default.strip("`") == ("unset" if secret in (None, ()) else str(secret)), name


# ---------------------------------------------------------------- names


def commands(document: Path) -> Iterator[list[str]]:
    """Yield the words of each command of the program that a document names."""
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    for line in [*lines, *inline_code(document)]:
        words = line.split(" #")[0].split()
        if words[:1] == [PROGRAM] and len(words) > 1:
            yield words[1:]


def options(words: list[str]) -> set[str]:
    """Return the options of the command that the words lead to."""
    command: Any = typer.main.get_command(app)
    used: list[str] = []
    for word in words:
        following = getattr(command, "commands", None)
        if following is None:
            break
        used.append(word)
        assert word in following, f"there is no command {' '.join(used)}"
        command = following[word]
    assert not hasattr(command, "commands"), f"{' '.join(words)} is not a whole command"
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@every_document
def test_commands_exist(document: Path) -> None:
    """Each command and option that a document names is one of the program."""
    for words in commands(document):
        used = {word for word in words if word.startswith("--")}
        assert used <= options(words), words


@every_document
def test_make_targets_exist(document: Path) -> None:
    """Each `make …` that a document names is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join([*inline_code(document), *blocks(document, "")])
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets


@every_document
def test_settings_exist(document: Path) -> None:
    """Each variable that a document names is one that the program reads."""
    known = {name.upper() for name in Variables.model_fields} | {FILE_VARIABLE}
    named = set(re.findall(r"\b(?:WORKER|OPENAI|AMQP|DATABASE|REDIS)_[A-Z_]*[A-Z]\b", document.read_text()))
    assert named <= known


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    """Each link inside the project names a file, and a heading of it where it names one."""
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", document.read_text()):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


@every_document
def test_files_exist(document: Path) -> None:
    """Each path between backticks is one of the project."""
    for code in inline_code(document):
        if re.fullmatch(r"(worker|schemas|examples|docs|dev|tests|migrations)/[\w./-]*", code):
            assert (ROOT / code).exists(), code


def test_the_layers_are_those_of_the_import_rules() -> None:
    """The architecture names the layers that `make imports` holds, in their order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    names = [
        ", ".join(part.strip().removeprefix("worker.") for part in layer.split("|"))
        for layer in layers
        if layer != "worker.__main__"
    ]
    assert " > ".join(names) in inline_code(ROOT / "docs" / "architecture.md")


@pytest.mark.parametrize("name", ["guarantees", "operations", "billing", "limits"])
def test_no_bound_is_promised_without_a_maximum(name: str) -> None:
    """Where estimates or budgets are told of stands what makes them a bound, and what stands in."""
    paragraphs = (ROOT / "docs" / f"{name}.md").read_text().split("\n\n")
    honest = [
        text for text in paragraphs if {"`max_completion_tokens`", "`max_output_tokens`"} <= codes(text)
    ]
    assert honest
    if name != "guarantees":  # which refers to billing
        assert any(f"{DEFAULT_OUTPUT_TOKENS:,} output tokens" in text for text in honest)
    for text in paragraphs:
        assert text in honest or not re.search(r"upper\s+bound|hard\s+stop", text), text


def codes(text: str) -> set[str]:
    """Return what stands between backticks, with them."""
    return set(re.findall(r"`[^`]+`", text))


# ---------------------------------------------------------------- code


@every_document
def test_json_and_toml_can_be_read(document: Path) -> None:
    """Each example is well formed, and one with a kind is a valid job or reply."""
    for text in blocks(document, "toml"):
        tomllib.loads(text)
    for text in blocks(document, "json"):
        value = json.loads(text)
        if "kind" in value:
            (Reply if "status" in value else Job).model_validate_json(text)


def test_the_guide_to_tools_shows_the_example() -> None:
    """The code in the guide is code of the example."""
    (code,) = blocks(ROOT / "docs" / "tools.md", "python")
    assert code in (EXAMPLES / "tools.py").read_text()


# ---------------------------------------------------------------- examples


def test_the_example_jobs_are_valid() -> None:
    """The JSON file and every job of the demo pass the schema; their ids differ."""
    planned = [
        demo.question(),
        demo.first_turn(),
        demo.second_turn("Felix"),
        *demo.burst(),
        demo.wrong_parameter(),
        demo.throttled(refused=True),
    ]
    jobs = [Job.model_validate(one.job) for one in planned]
    assert len({job.job_id for job in jobs}) == len(jobs)
    assert {job.kind for job in jobs} == {"completion", "tool", "vision"}
    assert len({job.tenant for job in jobs}) >= 2


def test_the_second_turn_holds_the_first_answer() -> None:
    """A conversation is what its producer sends."""
    messages: list[dict[str, Any]] = demo.second_turn("Felix").job["request"]["messages"]
    assert [(message["role"], message["content"]) for message in messages][1] == ("assistant", "Felix")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


def test_the_image_is_a_real_one() -> None:
    """The PNG of the examples passes the check that a vision job's image must pass."""
    chart = next(one for one in demo.burst() if one.job["job_id"] == "image-as-base64")
    (image,) = chart.job["request"]["images"]
    check_image(image["media_type"], Base64Image(image["base64"]), ImageLimits())


async def test_the_example_tools_work() -> None:
    """A worker can load them; they answer, and say what is wrong where they cannot."""
    tools = load_tools(["examples.tools"], entry_points=False)
    assert set(tools) == {"weather", "search_products"}
    weather, search = tools["weather"], tools["search_products"]
    arguments = weather.arguments('{"city": "Lisbon", "unit": "fahrenheit"}')
    assert (await weather.function(**arguments))["temperature"] == pytest.approx(70.7)
    with pytest.raises(LookupError, match="lisbon"):
        await weather.function(city="Atlantis")
    found = search.function(**search.arguments('{"query": "keyboard", "only_in_stock": true}'))
    assert [product["sku"] for product in found] == ["KB-1"]


def test_the_plain_producer_imports_nothing_of_this_project() -> None:
    """An AMQP library and JSON are enough."""
    tree = ast.parse((EXAMPLES / "producer_plain.py").read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
        )
    }
    assert imported - sys.stdlib_module_names == {"aio_pika"}


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_javascript_producer_is_javascript() -> None:
    """Its syntax is right."""
    subprocess.run(["node", "--check", EXAMPLES / "producer.js"], check=True)
