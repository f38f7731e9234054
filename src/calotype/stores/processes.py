"""Names for processes of this host, by which another one of it can tell that a process has ended.

A name has the boot, the namespace of process numbers, the number, and the moment at which the process began. So a name
from another host or container is never mistaken, and neither is a later process with the same number.
"""

import os
from pathlib import Path


def this_process() -> bytes:
    """The name of this process."""
    return f"{_numbering()}/{os.getpid()}/{_began(os.getpid())}".encode()


def has_ended(name: bytes) -> bool:
    """Whether the process of this name has surely ended. False if it is of another host, or runs."""
    try:
        numbering, number, began = name.decode().rsplit("/", 2)
        return numbering == _numbering() and _began(int(number)) != began
    except (ValueError, OSError):
        return False


def _numbering() -> str:
    """What tells apart the places where processes are numbered: the boot, and the namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def _began(number: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none, or if it is dead and still listed."""
    try:
        # The name of the program comes before, in parentheses, and may have any characters.
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
