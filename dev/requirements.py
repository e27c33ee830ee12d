"""Pin what pyproject.toml and the files in requirements/ ask for, and all that follows from it."""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path("requirements")
HEADER = "# Made by `make requirements` from {source}; do not edit.\n"


def main() -> None:
    """Write requirements/runtime.txt, dev.txt and peers.txt."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = frozen(project["dependencies"])
    write("runtime.txt", "pyproject.toml", runtime)
    everything = frozen([*runtime, *asked("dev.in")])
    write(
        "dev.txt",
        "requirements/dev.in",
        ["-r runtime.txt", *(pin for pin in everything if pin not in runtime)],
    )
    write("peers.txt", "requirements/peers.in", frozen(alike(asked("peers.in"), runtime)))


def asked(name: str) -> list[str]:
    """Return what a file of requirements asks for."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def alike(wanted: Iterable[str], pins: Iterable[str]) -> list[str]:
    """Ask for the pinned version of what is pinned already."""
    versions = dict(pin.lower().split("==") for pin in pins)
    names = {one: one.partition("[")[0].lower() for one in wanted}
    return [f"{one}=={versions[name]}" if name in versions else one for one, name in names.items()]


def frozen(wanted: Iterable[str]) -> list[str]:
    """Install into a new environment and list what is there."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)  # noqa: S603 - fixed commands
        subprocess.run([*pip, "install", "--quiet", *wanted], check=True)  # noqa: S603 - likewise
        listing = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)  # noqa: S603 - likewise
    return listing.stdout.splitlines()


def write(name: str, source: str, lines: Iterable[str]) -> None:
    """Write one file of pins."""
    (FOLDER / name).write_text(HEADER.format(source=source) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
