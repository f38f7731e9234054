"""What makes names last: a file that is synced is lost with its name when its directory is not."""

import contextlib
import os
import secrets
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make durable which names there are in a directory."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and its missing parents durably; `mode` is its own, and nothing happens to one that exists.

    What root makes in a directory of the service's user is that user's.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if missing and os.geteuid() == 0:
        owner = missing[-1].parent.stat()
        with contextlib.suppress(PermissionError):  # There are roots, in containers and on NFS, that may not.
            for one in missing:
                os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)
    # Also where it exists: whoever made it may have been killed before this.
    for one in missing or [path]:
        with contextlib.suppress(PermissionError):  # Some may be entered and not read.
            sync_directory(one.parent)


def replace_file(path: Path, text: str, mode: int = 0o600, *, name: str | None = None) -> None:
    """Replace a file durably, or make it: whatever happens, it has the old text or the new. `mode` is not masked.

    With a `name` the temporary file is always called so, and one that was killed leaves no second one. Only for files
    that get the same text from all who write them: whoever comes later takes the file of the one before.
    """
    # Not the file's own name and more, which may be as long as names can be.
    temporary = path.with_name(name or f".{secrets.token_hex(8)}.part")
    number = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | (0 if name else os.O_EXCL), mode)
    try:
        if os.geteuid() == 0:
            # Root works for the service's user here: the file stays that user's, or becomes the directory's.
            before = path.stat() if path.exists() else path.parent.stat()
            try:
                os.fchown(number, before.st_uid, before.st_gid)
            except PermissionError:  # There are roots, in containers and on NFS, that may not.
                if not mode & 0o004:
                    raise
        with os.fdopen(number, "w", encoding="utf-8") as file:
            os.fchmod(number, mode)
            file.write(text)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except FileNotFoundError:
            if not (name and path.exists()):  # else another one was quicker with the same
                raise
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
