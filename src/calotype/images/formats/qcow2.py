"""qcow2, versions 2 and 3. The bounds are those of QEMU, which opens nothing beyond them."""

import struct
from typing import NamedTuple

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats import luks
from calotype.images.formats.base import KIB, MIB, Checked, at, unless


class Fields(NamedTuple):
    """Version 2 ends with `snapshots_offset`; what version 3 has more is what version 2 means by it."""

    version: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = 72
    compression: int = 0


class QCOW2(Checked, oslo.QcowInspector):
    """Kept is of the first cluster, of snapshots and of the list of bitmaps what lies in their first 64 KiB."""

    CHECKS = ("header", "extensions", "encryption", "tables")
    DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
    BITMAPS_VALID = 1
    ZLIB, ZSTD = 0, 1
    BACKING_FORMAT, BITMAPS, DATA_FILE_NAME, LUKS_HEADER = 0xE2792ACA, 0x23852875, 0x44415441, 0x0537BE77
    END = 0
    KEPT = 64 * KIB

    def _initialize(self) -> None:
        super()._initialize()
        self.delete_region("header")
        self.new_region("header", oslo.CaptureRegion(0, self.KEPT, min_length=512))
        self._followed = False

    @property
    def complete(self) -> bool:
        """What is kept of a table may be longer than the table, and end behind the data."""
        return super().complete or (self._finished and self.region("header").complete)

    def post_process(self) -> None:
        """The first piece has all of the header, and tells where the rest is."""
        if self._followed or not (self.region("header").complete and self.format_match):
            return
        self._followed = True
        try:
            fields, found = self._fields(), self._extensions()
        except oslo.SafetyViolation:
            return  # a check will say so
        if len(found.get(self.LUKS_HEADER, b"")) == 16:
            self._keep("luks", at(">Q", found[self.LUKS_HEADER], 0), luks.LENGTH)
        if len(found.get(self.BITMAPS, b"")) == 24:
            self._keep("bitmaps", at(">Q", found[self.BITMAPS], 16), self.KEPT)
        if fields.snapshots:
            self._keep("snapshots", fields.snapshots_offset, self.KEPT)

    def _keep(self, name: str, offset: int, length: int) -> None:
        if 512 <= offset < 1 << 62:
            self.new_region(name, oslo.CaptureRegion(offset, length))

    def _kept(self, name: str, what: str) -> bytes | bytearray:
        unless(self.has_region(name), what)
        return self.region(name).data

    def _fields(self) -> Fields:
        head = self.region("header").data
        both = struct.unpack_from(">I12xIQIIQQIIQ", head, 4)
        if both[0] != 3:
            return Fields(*both)
        more = struct.unpack_from(">Q8xQII", head, 72)
        values = (*both, *more, head[104] if more[-1] > 104 else 0)
        return Fields(*values)

    def _cluster(self) -> int:
        bits = self._fields().cluster_bits
        unless(9 <= bits <= 21, "clusters are of a size that there is not")
        return 1 << bits

    def _extensions(self) -> dict[int, bytes]:
        """Content by kind, of the last one of each."""
        head, cluster, begin = self.region("header").data, self._cluster(), self._fields().header_length
        found: dict[int, bytes] = {}
        while begin + 8 <= min(cluster, len(head)):
            kind, length = struct.unpack_from(">II", head, begin)
            begin += 8
            unless(begin + length <= min(cluster, self.KEPT), "an extension goes beyond the first cluster, or 64 KiB")
            if kind == self.END:
                break
            found[kind] = bytes(head[begin : begin + length])
            begin += (length + 7) // 8 * 8
        return found

    def check_backing_file(self) -> None:
        unless(at(">Q", self.region("header").data, 8) == 0, "it names a backing file")

    def check_data_file(self) -> None:
        unless(not self._fields().incompatible & self.DATA_FILE, "it keeps its data in another file")

    def check_unknown_features(self) -> None:
        fields = self._fields()
        unless(fields.version in (2, 3), "it is of a version that is not known")
        unless(not fields.incompatible & self.EXTENDED_L2, "it has extended L2 entries")
        unless(fields.incompatible < self.EXTENDED_L2, "it uses features that are not known")

    def check_header(self) -> None:
        fields = self._fields()
        if fields.version == 3:
            length = fields.header_length
            unless(104 <= length <= self._cluster() and length % 8 == 0, "the header is as long as none is")
        unless(fields.refcount_order <= 6, "reference counts are too wide")
        zstd = bool(fields.incompatible & self.COMPRESSION)
        unless(fields.compression == (self.ZSTD if zstd else self.ZLIB), "its compression is not known")

    def check_extensions(self) -> None:
        fields, found = self._fields(), self._extensions()
        unless(self.DATA_FILE_NAME not in found, "it names a data file")
        unless(len(found.get(self.BACKING_FORMAT, b"")) < 16, "the name of a format is too long")
        if self.BITMAPS in found:
            unless(len(found[self.BITMAPS]) == 24, "its bitmaps cannot be found")
            if fields.autoclear & self.BITMAPS_VALID:
                self._check_bitmaps(*struct.unpack(">IIQQ", found[self.BITMAPS]))

    def _check_bitmaps(self, count: int, reserved: int, size: int, offset: int) -> None:
        unless(0 < count <= 65535 and reserved == 0, "it has a number of bitmaps that there is not")
        unless(24 * count <= size <= 65535 * KIB, "the list of its bitmaps has an odd length")
        data = self._kept("bitmaps", "its bitmaps cannot be found")
        unless(offset % self._cluster() == 0 and size <= max(len(data), self.KEPT), "its bitmaps cannot be found")
        begin = 0
        while begin < size and begin + 24 <= len(data):
            self._check_bitmap(*struct.unpack_from(">QIIBBHI", data, begin))
            begin += (24 + at(">H", data, begin + 18) + 7) // 8 * 8
            count -= 1
        unless((begin, count) == (size, 0) or size > self.KEPT, "the list of its bitmaps has an odd length")

    def _check_bitmap(
        self, table: int, entries: int, flags: int, kind: int, granularity: int, name: int, extra: int
    ) -> None:
        unless(flags < 4 and kind == 1 and 9 <= granularity <= 31, "it has a bitmap of a kind that is not known")
        unless(0 < name <= 1023 and extra == 0, "a bitmap has a name or more beside it that none has")
        cluster = self._cluster()
        unless(0 < table < 1 << 63 and table % cluster == 0, "the table of a bitmap does not begin with a cluster")
        bits = -(-self._fields().size // (1 << granularity))
        unless(entries == -(-bits // (8 * cluster)), "the table of a bitmap does not fit the disk's size")

    def _check_snapshots(self, count: int) -> None:
        data, begin = self._kept("snapshots", "its snapshots lie in its header"), 0
        while count and begin + 40 <= len(data):
            id_, name, extra = struct.unpack_from(">HH20xI", data, begin + 12)
            unless(extra <= 1024, "a snapshot has more beside it than any")
            begin += (40 + extra + id_ + name + 7) // 8 * 8
            count -= 1

    def check_encryption(self) -> None:
        fields, found = self._fields(), self._extensions()
        unless(fields.encryption <= 2, "unknown encryption")
        unless((fields.encryption == 2) == (self.LUKS_HEADER in found), "its encryption does not fit its header")
        if fields.encryption == 2:
            head = self._kept("luks", "its encryption has no header")
            offset, length = struct.unpack(">QQ", found[self.LUKS_HEADER])
            whole = len(head) == luks.LENGTH <= length and offset % self._cluster() == 0
            unless(whole, "its encryption has no header")
            unless(head.startswith(b"LUKS\xba\xbe\0\1"), "its encryption is not LUKS of version 1")
            luks.check_header(head)

    def check_tables(self) -> None:
        fields, cluster = self._fields(), self._cluster()
        reach = 1 << (2 * fields.cluster_bits - 3)  # what one entry of the first level covers
        fits = -(-fields.size // reach) <= fields.l1_entries <= 32 * MIB // 8
        unless(fits, "the first table does not fit the disk's size")
        clusters = fields.refcount_clusters
        unless(0 < clusters * cluster <= 8 * MIB, "the table of reference counts is too large, or there is none")
        unless(fields.snapshots <= 65536, "too many snapshots")
        offsets = (fields.l1_offset, fields.refcount_offset, fields.snapshots_offset)
        fits = all(offset % cluster == 0 and offset < 1 << 63 for offset in offsets)
        unless(fits, "a table does not begin with a cluster")
        if fields.snapshots:
            self._check_snapshots(fields.snapshots)

    def least_size(self) -> int:
        fields = self._fields()
        ends = [fields.l1_offset + fields.l1_entries * 8]
        ends.append(fields.refcount_offset + (fields.refcount_clusters << fields.cluster_bits))
        if fields.snapshots:
            ends.append(fields.snapshots_offset + fields.snapshots * 40)
        return max(ends)
