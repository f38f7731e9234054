"""Identifies the files of a store, and removes a file only if it is the right one.

A file is identified by its modification time, size and inode; the nanoseconds of the time are drawn at random. To
remove a file, it is renamed, checked, and renamed back if it is another one. So a cleaner that was delayed does no harm
to a newer file of the same name. All names are relative to the descriptor of a directory; `file.py` checks that it is
the store's own.
"""

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Final

#: The name of a file that was renamed to be removed: its former name, and the id of the object to remove.
ASIDE: Final = re.compile(r"^\.(.+)\.(-?[0-9]+-[0-9]+-[0-9]+)\.aside$")
_NS: Final = 1_000_000_000  #: Nanoseconds of a second.


def make_unique(file: int) -> None:
    """Draw the nanoseconds of the file's time at random. The kernel gives files of the same moment equal ones."""
    second = time.time_ns() // _NS - 1
    moment = second * _NS + secrets.randbelow(_NS)
    with contextlib.suppress(OSError):  # Without it, the kernel's time and the inode identify the file.
        os.utime(file, ns=(moment, moment))


def id_of(found: os.stat_result) -> str:
    """The id of a file. Another file of the same name has another one."""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def is_object(object_id: str, found: os.stat_result) -> bool:
    """Whether a file is this object, or a copy of it: when a store is copied to another disk, inodes change."""
    time_ns, size, inode = map(int, object_id.rsplit("-", 2))
    if size != found.st_size:
        return False
    second, moment = divmod(time_ns, _NS)
    found_second, found_moment = divmod(found.st_mtime_ns, _NS)
    if found_moment:
        return (second, moment) == (found_second, found_moment)
    # The file has whole seconds. If the object had nanoseconds, the file is a copy that has lost them.
    return second == found_second and (moment != 0 or inode == found.st_ino)


def remove(directory: int, name: str, object_id: str | None) -> bool:
    """Remove the file with this id; without one, whichever has the name. False if there is no such file.

    If it were checked and then removed, it could be replaced in between. So it is renamed first, and then checked.
    """
    if object_id is None:
        try:
            object_id = id_of(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except FileNotFoundError:
            return False
    aside = f".{name}.{object_id}.aside"
    removed = settle_aside(directory, aside, name, object_id)  # left by a process that was killed in here
    try:
        if removed or not is_object(object_id, os.stat(name, dir_fd=directory, follow_symlinks=False)):
            return removed
        os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return removed
    return settle_aside(directory, aside, name, object_id)


def settle_aside(directory: int, aside: str, name: str, object_id: str) -> bool:
    """Remove the renamed file if it has this id; else give it its name back."""
    try:
        if is_object(object_id, os.stat(aside, dir_fd=directory, follow_symlinks=False)):
            os.unlink(aside, dir_fd=directory)
            return True
        put_back(aside, name, directory)
    except FileNotFoundError:
        pass  # there is none, or another process settled it
    return False


def put_back(taken: str | Path, name: str, directory: int) -> None:
    """Give a file its name back. If the name is taken again, the file stays where it is."""
    with contextlib.suppress(FileExistsError):
        os.link(taken, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(taken, dir_fd=directory)
