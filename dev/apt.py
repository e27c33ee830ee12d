"""Installing a missing server on Debian without letting the package start its system service."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from dev.errors import MissingProgramError
from dev.folders import base_folder
from dev.processes import clean_environment, run

POLICY = Path("/usr/sbin/policy-rc.d")
REFUSE = "#!/bin/sh\n# Services stay stopped while packages for private servers are installed.\nexit 101\n"
INSTALL_SECONDS = 900


def install(*packages: str) -> None:
    """Install Debian packages, as root only; their services are neither started nor disturbed."""
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        message = f"please install {names} (Debian: sudo apt-get install {names}) and run this again"
        raise MissingProgramError(message)
    sys.stderr.write(f"installing {names} with apt-get …\n")
    with _one_at_a_time(), _no_service_starts():
        trouble = _apt_get("install", *packages) and (_apt_get("update") or _apt_get("install", *packages))
    if trouble:
        message = f"apt-get could not install {names}: {trouble}"
        raise MissingProgramError(message)


def _apt_get(verb: str, *packages: str) -> str:
    """Run apt-get; return what went wrong, empty when nothing did."""
    options = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    result = run(
        ["apt-get", *options, verb, *packages],
        environment={**os.environ, **clean_environment(DEBIAN_FRONTEND="noninteractive")},
        timeout=INSTALL_SECONDS,
    )
    if result.returncode == 0:
        return ""
    return " ".join(result.stderr.split())[-500:] or f"exit code {result.returncode}"


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let parallel runs install one after the other."""
    with (base_folder() / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Answer 101 (forbidden) to every start of a service; an existing policy is put back afterwards."""
    kept = POLICY.with_name("policy-rc.d.kept-aside")
    if POLICY.exists() or POLICY.is_symlink():
        POLICY.rename(kept)
    try:
        POLICY.write_text(REFUSE)
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if kept.exists() or kept.is_symlink():
            kept.rename(POLICY)
