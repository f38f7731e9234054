"""VHD, Virtual PC's and Hyper-V's older format, dynamic and fixed."""

import struct
import sys
from array import array

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import GIB, Checked, Scan, at, power_of_two, unless


class VHD(Checked, oslo.VHDInspector):
    """A dynamic disk begins with a copy of its footer; a fixed one has only the footer, 512 bytes at the very end.

    Whatever ends in such a footer would be a fixed disk, so that is looked for only if `fixed` is set.
    """

    CHECKS = ("parent", "footer", "checksum", "tables", "size")
    COOKIE = b"conectix"
    FIXED, DYNAMIC = 2, 3
    LARGEST = 2040 * GIB
    UNUSED = 0xFFFFFFFF
    MOST_SECTORS = 65535 * 16 * 255  # a larger disk has this geometry as well
    #: Programs that tell the size of their disks by the current size and not by the geometry.
    BY_SIZE = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")

    fixed = False

    def _initialize(self) -> None:
        super()._initialize()
        self.new_region("dynamic", oslo.CaptureRegion(512, 1024))
        self._tail = b""
        self._last_block = -1  # sector at which the last block begins

    def eat_chunk(self, chunk: bytes) -> None:
        super().eat_chunk(chunk)
        self._tail = (self._tail + bytes(chunk[-512:]))[-512:]

    def post_process(self) -> None:
        if self.dynamic and self.region("dynamic").complete and not self.has_region("table"):
            offset, entries = self._table()
            fits = offset >= 1536 and entries * 4 <= self._longest_table()
            self.new_region("table", Scan(offset, entries * 4 if fits else 0, 4, self._look))

    def _look(self, part: bytes) -> None:
        sectors = array("I", part)
        if sys.byteorder == "little":
            sectors.byteswap()
        self._last_block = max(self._last_block, max(set(sectors) - {self.UNUSED}, default=-1))

    @property
    def dynamic(self) -> bool:
        return self.region("header").data.startswith(self.COOKIE)

    @property
    def format_match(self) -> bool:
        return self.dynamic or (self.fixed and self._finished and self._tail.startswith(self.COOKIE))

    @property
    def complete(self) -> bool:
        return super().complete and (self._finished or not (self.dynamic or self.fixed))

    @property
    def _footer(self) -> bytes | bytearray:
        return self.region("header").data if self.dynamic else self._tail

    def _table(self) -> tuple[int, int]:
        """Offset and number of entries of the table of blocks."""
        offset, entries = struct.unpack_from(">Q4xI", self.region("dynamic").data, 16)
        return offset, entries

    def _longest_table(self) -> int:
        """One of the largest disk in blocks of 512 KiB, the smallest that Hyper-V makes."""
        return self.LARGEST // (512 << 10) * 4

    def _block(self) -> int:
        return int(at(">I", self.region("dynamic").data, 32))

    def _sectors_by_geometry(self) -> int:
        """The size in sectors by which QEMU and Virtual PC read it; 0 where they read it by its current size."""
        cylinders, heads, sectors = struct.unpack_from(">HBB", self._footer, 56)
        product = int(cylinders * heads * sectors)
        return 0 if product == self.MOST_SECTORS or self._footer[28:32] in self.BY_SIZE else product

    def check_parent(self) -> None:
        kind = at(">I", self._footer, 60)
        unless(kind == (self.DYNAMIC if self.dynamic else self.FIXED), "it is not a disk that stands alone")
        if self.dynamic:
            unless(not any(self.region("dynamic").data[40:56]), "it has a parent")

    def check_footer(self) -> None:
        if self.dynamic:
            head = self.region("dynamic").data
            unless(at(">Q", self._footer, 16) == 512 and head.startswith(b"cxsparse"), "the second header is missing")
            end = self._tail.find(self.COOKIE)
            unless(end < 0 or self._tail[end + 40 : end + 64] == self._footer[40:64], "its two footers do not agree")

    def check_checksum(self) -> None:
        """Each is the complement of the sum of all other bytes."""
        sums = [(self._footer, 64)] + ([(self.region("dynamic").data, 36)] if self.dynamic else [])
        for data, where in sums:
            own = sum(data[where : where + 4])
            unless(at(">I", data, where) == ~(sum(data) - own) & 0xFFFFFFFF, "the checksum of a header is wrong")

    def check_tables(self) -> None:
        if self.dynamic:
            offset, entries = self._table()
            unless(power_of_two(self._block(), 512, 1 << 31), "its blocks have an odd size")
            unless(offset >= 1536, "its table of blocks lies in its header")
            unless(entries * 4 <= self._longest_table(), "its table of blocks is longer than any disk needs")
            sectors = max(self.virtual_size // 512, self._sectors_by_geometry())
            unless(entries * self._block() >= sectors * 512, "its table of blocks is shorter than its size needs")

    def check_size(self) -> None:
        unless(self.virtual_size <= self.LARGEST, "no such disk is as large")

    @property
    def virtual_size(self) -> int:
        return int(at(">Q", self._footer, 48)) if self.format_match else 0

    def least_size(self) -> int:
        if not self.dynamic:
            return self.virtual_size // 512 * 512 + 512
        offset, entries = self._table()
        block = self._block()
        bitmap = -(-block // (512 * 8 * 512)) * 512
        last = self._last_block * 512 + bitmap + block if self._last_block >= 0 else 0
        return max(offset + entries * 4, last)
