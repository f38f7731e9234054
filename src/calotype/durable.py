"""What makes names last: a file that is synced is lost with its name when its directory is not."""

import contextlib
import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make durable which names there are in a directory."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and its missing parents durably; `mode` is its own, and nothing happens to one that exists."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    # Also where it exists: whoever made it may have been killed before this.
    for one in missing or [path]:
        with contextlib.suppress(PermissionError):  # Some may be entered and not read.
            sync_directory(one.parent)
