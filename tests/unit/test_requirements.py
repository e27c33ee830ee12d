"""The pinned requirements hold what pyproject.toml asks for, and nothing that ties them to one place."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "requirements" / "runtime.txt"
DEV = ROOT / "requirements" / "dev.txt"
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[0-9][A-Za-z0-9.]*)")


def lines(file: Path) -> list[str]:
    """Return what counts in a requirements file."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def pins(file: Path) -> dict[str, str]:
    """Return the pinned version of each package."""
    found = [PIN.fullmatch(line) for line in lines(file)]
    return {canonicalize_name(match["name"]): match["version"] for match in found if match}


def asked() -> list[Requirement]:
    """Return what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


@pytest.mark.parametrize("requirement", asked(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    """What is installed by the pins is what pyproject.toml allows."""
    assert requirement.specifier.contains(pins(RUNTIME)[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("file", [RUNTIME, DEV], ids=lambda file: file.stem)
def test_every_line_is_a_plain_pin(file: Path) -> None:
    """No line names a host, a file or an index, and none leaves a version open."""
    strange = [line for line in lines(file) if line != "-r runtime.txt" and not PIN.fullmatch(line)]
    assert not strange


def test_development_adds_to_the_program_s_own_pins() -> None:
    """dev.txt holds all that dev.in asks for, includes runtime.txt, and repeats none of its packages."""
    assert "-r runtime.txt" in lines(DEV)
    assert not pins(DEV).keys() & pins(RUNTIME).keys()
    wanted = {canonicalize_name(name) for name in lines(ROOT / "requirements" / "dev.in")}
    assert wanted <= pins(DEV).keys()
