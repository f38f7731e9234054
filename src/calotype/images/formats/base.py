"""What the inspectors of all formats share: checks with names, findings, and tables that are looked through."""

import struct
from collections.abc import Callable
from typing import Any

from oslo_utils.imageutils import format_inspector as oslo

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


class Checked(oslo.FileInspector):
    """An inspector of oslo's with more checks: `CHECKS` are names of checks, each a method `check_<name>`.

    A check raises `SafetyViolation` with what it found, as the end of a sentence that the user reads: no name and no
    text of the data is in it. Whatever else it raises is a finding as well.
    """

    CHECKS: tuple[str, ...] = ()

    def _initialize(self) -> None:
        super()._initialize()  # type: ignore[safe-super]
        for name in self.CHECKS:
            self.add_safety_check(oslo.SafetyCheck(name, getattr(self, f"check_{name}")))

    def least_size(self) -> int:
        """How many bytes the data has if it is whole, as far as its header and tables tell. Called after the checks."""
        return 0


class Scan(oslo.CaptureRegion):
    """A table that is too long to keep: `look` gets it in parts, each of whole entries, and all of it once."""

    def __init__(self, offset: int, length: int, width: int, look: Callable[[bytes], None]) -> None:
        super().__init__(offset, length)
        self._width = width
        self._look = look
        self._seen = 0
        self._rest = b""

    @property
    def complete(self) -> bool:
        return self._seen >= self.length

    def capture(self, chunk: bytes, current_position: int) -> bytes:
        begin = current_position - len(chunk)
        first = self.offset + self._seen - begin
        if first < 0:
            raise oslo.ImageFormatError("a table lies before what tells where it is")
        part = bytes(chunk[first : first + self.length - self._seen])
        if part:
            self._seen += len(part)
            part = self._rest + part
            whole = len(part) // self._width * self._width
            self._look(part[:whole])
            self._rest = part[whole:]
        return b""


def unless(fine: bool, found: str) -> None:
    """Raise `SafetyViolation` with what was found, unless that is fine."""
    if not fine:
        raise oslo.SafetyViolation(found)


def at(layout: str, data: bytes | bytearray, offset: int) -> Any:
    """The one value of that layout there; `struct.error` beyond the end."""
    return struct.unpack_from(layout, data, offset)[0]


def power_of_two(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0
