"""Making directories and replacing files durably.

Syncing a file does not save its name: after a power loss the file is gone if its directory was not synced as well.
"""

import contextlib
import os
import secrets
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and its missing parents, durably. `mode` is for the directory alone; an existing one is kept.

    If root calls this below a directory of the service's user, new directories belong to that user.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if missing:
        path.chmod(mode)  # which the umask may have taken from
    if missing and os.geteuid() == 0:
        owner = missing[-1].parent.stat()
        with contextlib.suppress(PermissionError):  # in containers and on NFS root may not be allowed to
            for one in missing:
                os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)
    # Also if it exists: the process that made it may have been killed before this.
    for one in missing or [path]:
        with contextlib.suppress(PermissionError):  # a directory may be entered and not read
            sync_directory(one.parent)


def open_private(path: Path, flags: int) -> int:
    """Open a file, made where it is missing: readable by its owner alone, and the directory's owner if we are root.

    Not durable by itself. The descriptor is not inherited by programs that are run.
    """
    number = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0 and os.fstat(number).st_uid == 0:
            owner = path.parent.stat()
            with contextlib.suppress(PermissionError):  # There are roots, in containers and on NFS, that may not.
                os.fchown(number, owner.st_uid, owner.st_gid)
    except BaseException:
        os.close(number)
        raise
    return number


def replace_file(path: Path, text: str, mode: int = 0o600, *, name: str | None = None) -> None:
    """Replace or create a file durably: whatever happens, it has the old text or the new. The umask does not apply.

    With a `name` the temporary file always has that name, so that killed processes leave one such file at most. This is
    for files to which all writers write the same text: a writer continues in the temporary file of another one.
    """
    # Not the file's name with a suffix: that may be too long for a name.
    temporary = path.with_name(name or f".{secrets.token_hex(8)}.part")
    number = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | (0 if name else os.O_EXCL), mode)
    try:
        if os.geteuid() == 0:
            # Root acts for the service's user: the file keeps its owner, a new one gets the owner of the directory.
            before = path.stat() if path.exists() else path.parent.stat()
            try:
                os.fchown(number, before.st_uid, before.st_gid)
            except PermissionError:  # in containers and on NFS root may not be allowed to
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
            if not (name and path.exists()):  # else another writer has just replaced it with the same text
                raise
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
