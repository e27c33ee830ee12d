"""Make the virtual environment; on Debian this may need a package of its own."""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dev import apt
from dev.errors import ServerError

NEEDED = (3, 11)


def make(folder: Path, requirements: Sequence[str]) -> None:
    """Make or mend the environment in `folder`, then install the pinned requirements and the project."""
    if importlib.util.find_spec("ensurepip") is None:
        apt.install(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")
    _must("making the virtual environment", [sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    pinned = [part for name in requirements for part in ("-r", name)]
    _must("installing the requirements", [*pip, *pinned])
    _must("installing the project", [*pip, "--no-deps", "--editable", "."])


def _must(what: str, command: Sequence[str]) -> None:
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - the fixed commands above
        message = f"{what} failed: see the lines above"
        raise ServerError(message)


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.venv", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requirements", nargs="+")
    options = parser.parse_args()
    if sys.version_info < NEEDED:
        sys.stderr.write(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11\n"
        )
        return ServerError.exit_code
    try:
        make(options.folder, options.requirements)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
