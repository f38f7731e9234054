"""VHDX, Hyper-V's format: two headers, two region tables, and by these the table of metadata and that of blocks."""

import struct
import sys
from array import array
from typing import NamedTuple
from uuid import UUID

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import KIB, MIB, TIB, Checked, Scan, at, power_of_two, unless
from calotype.images.formats.crc32c import crc32c

BLOCKS = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le

#: What each file has in its metadata, by name: its identity and how many bytes of it there must be.
ITEMS = {
    "parameters": (UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B").bytes_le, 8),
    "size": (UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le, 8),
    "page83": (UUID("BECA12AB-B2E6-4523-93EF-C309E000C746").bytes_le, 16),
    "logical": (UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F").bytes_le, 4),
    "physical": (UUID("CDA348C7-445D-4471-9CC9-E9885251C556").bytes_le, 4),
}
PARENT = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C").bytes_le

TABLE = 64 * KIB
MOST_ENTRIES = 2047


class Region(NamedTuple):
    offset: int
    length: int

    def apart(self, other: "Region") -> bool:
        return self.offset + self.length <= other.offset or other.offset + other.length <= self.offset


class VHDX(Checked):
    """Regions are where writers put them, behind the first MiB, and items behind the table that lists them.

    Anything else would have to be captured before it is known where it is.
    """

    NAME = "vhdx"
    CHECKS = ("header", "log", "metadata", "parent", "size")
    HAS_PARENT = 2
    REQUIRED_REGION, REQUIRED_ITEM = 1, 4
    LARGEST = 64 * TIB
    PRESENT = (6, 7)  # fully, partially
    #: Bytes of the longest table of blocks that a disk needs: the largest one in the smallest blocks of 1 MiB, and
    #: one more entry for each 2 GiB at least.
    LONGEST = (LARGEST // MIB + LARGEST // (2048 * MIB)) * 8 + MIB

    def _initialize(self) -> None:
        super()._initialize()
        self.new_region("signature", oslo.CaptureRegion(0, 8))
        self.new_region("header1", oslo.CaptureRegion(64 * KIB, 4 * KIB))
        self.new_region("header2", oslo.CaptureRegion(128 * KIB, 4 * KIB))
        self.new_region("regions", oslo.CaptureRegion(192 * KIB, TABLE))
        self.new_region("copy", oslo.CaptureRegion(256 * KIB, TABLE))
        self._regions: dict[bytes, Region] = {}
        self._items: dict[str, Region] = {}
        self._wrong: oslo.SafetyViolation | None = None  # in the tables, so that nothing is looked for behind them
        self._last_block = -1  # offset of the last one
        self._before: dict[Region, int] = {}  # offset of the last block that begins before the region's end

    @property
    def format_match(self) -> bool:
        return self.region("signature").data == b"vhdxfile"

    @property
    def complete(self) -> bool:
        """Data without the signature needs no more to be told."""
        return super().complete or (self.region("signature").complete and not self.format_match)

    def post_process(self) -> None:
        if self._wrong:
            return
        try:
            if not self._regions and self.region("copy").complete:
                self._regions = self._read_regions()
                self.new_region("metadata", oslo.CaptureRegion(self._regions[METADATA].offset, TABLE))
                self._before = dict.fromkeys((*self._regions.values(), self._log()), -1)
                blocks = self._regions[BLOCKS]
                self.new_region("blocks", Scan(blocks.offset, blocks.length, 8, self._look))
            if not self._items and self.has_region("metadata") and self.region("metadata").complete:
                self._items = self._read_items()
                for name, item in self._items.items():
                    self.new_region(name, oslo.CaptureRegion(*item))
        except oslo.SafetyViolation as exc:
            self._wrong = exc

    def _look(self, part: bytes) -> None:
        """Of each block an entry tells its state in the lowest three bits, and its offset in those above 20."""
        entries = array("Q", part)
        if sys.byteorder == "big":
            entries.byteswap()
        offsets = [entry >> 20 << 20 for entry in set(entries) if entry & 7 in self.PRESENT]
        if not offsets:
            return
        self._last_block = max(self._last_block, *offsets)
        first = min(offsets)
        for region, last in self._before.items():
            end = region.offset + region.length
            if first < end:
                self._before[region] = max(last, *(offset for offset in offsets if offset < end))

    def _read_regions(self) -> dict[bytes, Region]:
        table = bytes(self.region("regions").data)
        unless(table == self.region("copy").data, "its two region tables do not agree")
        signature, sum_, count = struct.unpack_from("<4sII", table)
        unless(signature == b"regi", "its region table is missing")
        unless(sum_ == crc32c(table[:4] + bytes(4) + table[8:]), "the checksum of its region table is wrong")
        unless(count <= MOST_ENTRIES, "its region table is longer than any")
        found: dict[bytes, Region] = {}
        for kind, offset, length, flags in struct.iter_unpack("<16sQII", table[16 : 16 + 32 * count]):
            unless(kind in (BLOCKS, METADATA) or not flags & self.REQUIRED_REGION, "it has a region that is not known")
            unless(kind not in found, "it has a region twice")
            region = Region(offset, length)
            unless(offset >= MIB and offset % MIB == 0, "a region is not where regions are")
            unless(length > 0 and length % MIB == 0, "a region has an odd length")
            unless(all(region.apart(other) for other in found.values()), "two of its regions overlap")
            found[kind] = region
        unless(BLOCKS in found and METADATA in found, "a region is missing")
        unless(found[BLOCKS].length <= self.LONGEST, "its table of blocks is longer than any disk needs")
        return found

    def _read_items(self) -> dict[str, Region]:
        table, region = self.region("metadata").data, self._regions[METADATA]
        signature, count = struct.unpack_from("<8s2xH", table)
        unless(signature == b"metadata" and count <= MOST_ENTRIES, "its metadata is missing")
        names = {kind: name for name, (kind, _) in ITEMS.items()}
        found: dict[str, Region] = {}
        for kind, offset, length, flags in struct.iter_unpack("<16sIII4x", table[32 : 32 + 32 * count]):
            name = names.get(kind)
            if name is None:
                # The locator of a parent is told by check_parent, as what it is.
                unless(kind == PARENT or not flags & self.REQUIRED_ITEM, "it has metadata that is not known")
                continue
            unless(name not in found, "it has metadata twice")
            unless(length == ITEMS[name][1], "metadata of odd length")
            unless(TABLE <= offset <= region.length - length, "its metadata is not where metadata is")
            found[name] = Region(region.offset + offset, length)
        unless(found.keys() == ITEMS.keys(), "some of its metadata is missing")
        return found

    def _header(self) -> bytes | bytearray:
        """The one that counts."""
        valid = [head for name in ("header1", "header2") if self._valid(head := self.region(name).data)]
        unless(bool(valid), "it has no header whose checksum is right")
        numbers = [int(at("<Q", head, 8)) for head in valid]
        unless(len(set(numbers)) == len(numbers), "it has two headers, and none is the newer one")
        return valid[numbers.index(max(numbers))]

    def _valid(self, head: bytes | bytearray) -> bool:
        sum_, version = at("<I", head, 4), at("<H", head, 66)
        right = sum_ == crc32c(bytes(head[:4]) + bytes(4) + bytes(head[8:]))
        return head.startswith(b"head") and version == 1 and right

    def _log(self) -> Region:
        version, length, offset = struct.unpack_from("<H2xIQ", self._header(), 64)
        unless(version == 0, "its log is of a version that is not known")
        unless(length > 0 and length % MIB == 0, "its log has an odd length")
        unless(offset >= MIB and offset % MIB == 0, "its log is not where logs are")
        return Region(offset, length)

    def check_header(self) -> None:
        log = self._log()
        unless(all(log.apart(region) for region in self._regions.values()), "its log overlaps something else")

    def check_log(self) -> None:
        """A log that is not empty changes, when it is replayed, what the rest of the data says."""
        unless(not any(self._header()[48:64]), "its log is not empty")

    def check_metadata(self) -> None:
        if self._wrong:
            raise self._wrong
        block = at("<I", self.region("parameters").data, 0)
        unless(power_of_two(block, MIB, 256 * MIB), "its blocks have an odd size")
        logical, physical = (at("<I", self.region(name).data, 0) for name in ("logical", "physical"))
        unless(logical == 512 and physical in (512, 4096), "its sectors have not 512 bytes")
        size = self.virtual_size
        unless(size > 0 and size % logical == 0, "its size is not one of whole sectors")
        blocks = -(-size // block)
        bitmaps = (blocks - 1) // (8 * MIB * logical // block)  # an entry each, between those of blocks
        fits = (blocks + bitmaps) * 8 <= self._regions[BLOCKS].length
        unless(fits, "its table of blocks is shorter than its size needs")
        for region, last in self._before.items():
            unless(last < 0 or last + block <= region.offset, "a block of its data overlaps something else")

    def check_parent(self) -> None:
        if not self._wrong:
            unless(not at("<I", self.region("parameters").data, 4) & self.HAS_PARENT, "it has a parent")

    def check_size(self) -> None:
        unless(self.virtual_size <= self.LARGEST, "no such disk is as large")

    @property
    def virtual_size(self) -> int:
        known = self.has_region("size") and self.region("size").complete
        return int(at("<Q", self.region("size").data, 0)) if known else 0

    def least_size(self) -> int:
        end = max(region.offset + region.length for region in self._regions.values())
        block = int(at("<I", self.region("parameters").data, 0))
        return max(end, self._last_block + block if self._last_block >= 0 else 0)
