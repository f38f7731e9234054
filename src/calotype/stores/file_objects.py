"""Files as objects of a store: which one a name has, and removing the one that is meant.

A file is known by the time of its last change, of which we draw the nanoseconds at random, its size and its inode. To
remove one, it is taken aside by a rename, looked at, and put back if it is not the one that was meant: a cleaner that
slept between looking and removing does no harm to what has the name by then. All names are relative to the descriptor
of a directory; `file.py` sees to it that this is the store's own.
"""

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Final

#: What is taken aside to be removed: its name, and the object that was meant.
ASIDE: Final = re.compile(r"^\.(.+)\.(-?[0-9]+-[0-9]+-[0-9]+)\.aside$")
_NS: Final = 1_000_000_000  #: Nanoseconds of a second.


def make_unique(file: int) -> None:
    """Draw the nanoseconds of the file's time at random. The kernel's are alike for files of one moment."""
    second = time.time_ns() // _NS - 1
    moment = second * _NS + secrets.randbelow(_NS)
    with contextlib.suppress(OSError):  # Then it has the kernel's, and its inode.
        os.utime(file, ns=(moment, moment))


def id_of(found: os.stat_result) -> str:
    """What no other file under the same name has in common with this one."""
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def is_object(object_id: str, found: os.stat_result) -> bool:
    """Whether a file is the object that is meant, or a copy of it: stores move to other disks, where inodes differ."""
    time_ns, size, inode = map(int, object_id.rsplit("-", 2))
    if size != found.st_size:
        return False
    second, moment = divmod(time_ns, _NS)
    found_second, found_moment = divmod(found.st_mtime_ns, _NS)
    if found_moment:
        return (second, moment) == (found_second, found_moment)
    # Here times are whole seconds: of this file system, or of the tool that copied the file to it.
    return second == found_second and (moment != 0 or inode == found.st_ino)


def remove(directory: int, name: str, object_id: str | None) -> bool:
    """Remove the very file that is meant, or, without `object_id`, the one that is there now. False: it is not there.

    Looking and then removing would hit whatever got the name in between. Taking it aside first shows what it was.
    """
    if object_id is None:
        try:
            object_id = id_of(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except FileNotFoundError:
            return False
    aside = f".{name}.{object_id}.aside"
    removed = settle_aside(directory, aside, name, object_id)  # of one who was killed in here
    try:
        if removed or not is_object(object_id, os.stat(name, dir_fd=directory, follow_symlinks=False)):
            return removed
        os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return removed
    return settle_aside(directory, aside, name, object_id)


def settle_aside(directory: int, aside: str, name: str, object_id: str) -> bool:
    """Remove what was taken aside if it is what was meant; else give it its name back."""
    try:
        if is_object(object_id, os.stat(aside, dir_fd=directory, follow_symlinks=False)):
            os.unlink(aside, dir_fd=directory)
            return True
        put_back(aside, name, directory)
    except FileNotFoundError:
        pass  # there is nothing, or another one settled it
    return False


def put_back(taken: str | Path, name: str, directory: int) -> None:
    """Give a file its name back, unless that is taken again: then it stays where it is."""
    with contextlib.suppress(FileExistsError):
        os.link(taken, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(taken, dir_fd=directory)
