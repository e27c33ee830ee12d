"""Throwaway folders that a later run removes when their owner was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dev.errors import ServerError

LOCK = "lock"


def base_folder() -> Path:
    """Return this user's own folder for all of it, made if need be.

    It lies below the system's temporary folder because a UNIX socket path has room for about 100 bytes, and
    because another user (PostgreSQL refuses to run as root) must be able to walk there.
    """
    base = Path(tempfile.gettempdir()) / f"openai-worker-dev-{os.getuid()}"
    base.mkdir(exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        message = f"{base} belongs to someone else"
        raise ServerError(message)
    base.chmod(0o711)
    return base


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """Make a folder for private servers and remove it at the end."""
    base = base_folder()
    sweep(base)
    folder = Path(tempfile.mkdtemp(dir=base))
    folder.chmod(0o711)
    with (folder / "new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / LOCK)  # nobody sees it before it is held
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(base: Path) -> None:
    """Remove the folders whose owners are gone: nobody holds their lock any more."""
    for lock_path in base.glob(f"*/{LOCK}"):
        with contextlib.suppress(OSError), lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)
