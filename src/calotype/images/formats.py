"""What a format's header must hold for its data to be one disk that stands alone.

oslo.utils' inspectors tell formats by their signatures and know some dangers. The classes here add to them what they
let through: parents of differencing disks, descriptors that name other files, tables no reader would follow. `ALL`
has one inspector a format; `inspection.py` feeds them and gives the verdict. An inspector holds at most a few
hundred KiB (vmdk's descriptor, up to 1 MiB, is the largest) and reads no file.
"""

import re
import struct
from typing import Any

from oslo_utils.imageutils import format_inspector as oslo

KIB = 1 << 10
GIB = 1 << 30
TIB = 1 << 40


class _Checked(oslo.FileInspector):
    """An oslo inspector with more checks: `CHECKS` are names of checks, each a method `check_<name>`."""

    CHECKS: tuple[str, ...] = ()

    def _initialize(self) -> None:
        super()._initialize()  # type: ignore[safe-super]
        for name in self.CHECKS:
            self.add_safety_check(oslo.SafetyCheck(name, getattr(self, f"check_{name}")))

    def least_size(self) -> int:
        """How many bytes the data has if it is whole, as far as its header tells."""
        return 0


def _unless(fine: bool, why: str) -> None:
    if not fine:
        raise oslo.SafetyViolation(why)


def _at(layout: str, data: bytes | bytearray, offset: int) -> Any:
    return struct.unpack_from(layout, data, offset)[0]


# --- qcow2 -----------------------------------------------------------------------------------------------


class QCOW2(_Checked, oslo.QcowInspector):
    """The bounds are those of QEMU, which opens nothing beyond them."""

    CHECKS = ("tables", "extensions")
    EXTERNAL_DATA_FILE = 0x44415441

    def _fields(self) -> tuple[int, ...]:
        """cluster_bits, size, crypt, L1 entries, L1 offset, refcount offset, refcount clusters, snapshots."""
        return struct.unpack_from(">IQIIQQII", self.region("header").data, 20)

    def check_tables(self) -> None:
        bits, size, crypt, entries, _l1, _refcounts, clusters, snapshots = self._fields()
        self._cluster()
        _unless(crypt <= 2, "unknown encryption")
        reach = 1 << (2 * bits - 3)  # what one entry of the first level covers
        _unless(-(-size // reach) <= entries <= (32 << 20) // 8, "the first table does not fit the disk's size")
        _unless(clusters << bits <= 8 << 20, "the table of reference counts is too large")
        _unless(snapshots <= 65536, "too many snapshots")
        if self._version() == 3:
            _unless(_at(">I", self.region("header").data, 96) <= 6, "reference counts are too wide")

    def check_extensions(self) -> None:
        """Follow the chain of extensions as far as the first sector goes."""
        head, cluster = self.region("header").data, self._cluster()
        at = _at(">I", head, 100) if self._version() == 3 else 72
        _unless(72 <= at <= cluster, "the header is as long as none is")
        if self._version() == 3:
            _unless(at >= 104 and at % 8 == 0, "the header is as long as none is")
        while at + 8 <= len(head):
            kind, length = struct.unpack_from(">II", head, at)
            if kind == 0:
                return
            _unless(kind != self.EXTERNAL_DATA_FILE, "it names a data file")
            _unless(at + 8 + length <= cluster, "an extension goes beyond the first cluster")
            at += 8 + (length + 7) // 8 * 8

    def _cluster(self) -> int:
        bits = self._fields()[0]
        _unless(9 <= bits <= 21, "clusters are of a size that there is not")
        return 1 << bits

    def _version(self) -> int:
        return int(_at(">I", self.region("header").data, 4))

    def least_size(self) -> int:
        bits, _size, _crypt, entries, l1, refcounts, clusters, _snapshots = self._fields()
        return max(l1 + entries * 8, refcounts + (clusters << bits) if clusters else 0)


# --- vhd -------------------------------------------------------------------------------------------------


class VHD(_Checked, oslo.VHDInspector):
    """A dynamic disk begins with a copy of its footer; a fixed one has only the footer, 512 bytes at the very end.

    Whatever ends in such a footer would be a fixed disk, so that is looked for only if `fixed` is set.
    """

    CHECKS = ("parent", "footer", "size")
    COOKIE = b"conectix"
    FIXED, DYNAMIC = 2, 3
    LARGEST = 2040 * GIB

    fixed = False

    def _initialize(self) -> None:
        super()._initialize()
        self.new_region("dynamic", oslo.CaptureRegion(512, 512))
        self._tail = b""

    def eat_chunk(self, chunk: bytes) -> None:
        super().eat_chunk(chunk)
        self._tail = (self._tail + bytes(chunk[-512:]))[-512:]

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

    def check_parent(self) -> None:
        kind = _at(">I", self._footer, 60)
        _unless(kind == (self.DYNAMIC if self.dynamic else self.FIXED), "it is not a disk that stands alone")
        if self.dynamic:
            _unless(not any(self.region("dynamic").data[40:56]), "it has a parent")

    def check_footer(self) -> None:
        if self.dynamic:
            head = self.region("dynamic").data
            _unless(_at(">Q", self._footer, 16) == 512 and head.startswith(b"cxsparse"), "the second header is missing")
            at = self._tail.find(self.COOKIE)
            _unless(at < 0 or self._tail[at + 40 : at + 64] == self._footer[40:64], "its two footers do not agree")

    def check_size(self) -> None:
        _unless(self.virtual_size <= self.LARGEST, "no such disk is as large")

    @property
    def virtual_size(self) -> int:
        return int(_at(">Q", self._footer, 48)) if self.format_match else 0

    def least_size(self) -> int:
        if not self.dynamic:
            return self.virtual_size + 512
        table, entries = struct.unpack_from(">Q4xI", self.region("dynamic").data, 16)
        return int(table + entries * 4)


# --- vhdx ------------------------------------------------------------------------------------------------


class VHDX(_Checked, oslo.VHDXInspector):
    """Beside what oslo reads: the two headers, the copy of the region table, and the parameters of the file."""

    CHECKS = ("metadata", "parent", "log", "size")
    PARAMETERS = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B"
    HAS_PARENT = 2
    LARGEST = 64 * TIB

    def _initialize(self) -> None:
        super()._initialize()
        self.new_region("header1", oslo.CaptureRegion(64 * KIB, 80))
        self.new_region("header2", oslo.CaptureRegion(128 * KIB, 80))
        self.new_region("copy", oslo.CaptureRegion(256 * KIB, 64 * KIB))

    def post_process(self) -> None:
        known = set(self._capture_regions)
        super().post_process()
        if self.has_region("vds") and not self.has_region("parameters"):
            found = self._find_meta_entry(self.PARAMETERS)
            if found is None:
                raise oslo.ImageFormatError("no parameters")
            self.new_region("parameters", found)
        elif self.has_region("metadata") and self.region("metadata").complete and not self.has_region("vds"):
            raise oslo.ImageFormatError("no size")  # else it would be searched anew with each piece
        for name in self._capture_regions.keys() - known:
            self._refuse_astray(name)

    def _refuse_astray(self, name: str) -> None:
        """What lies where no writer puts it may be captured from the wrong place."""
        offset = self.region(name).offset
        if name == "metadata":
            astray = offset < 1 << 20 or offset % (1 << 20)
        else:
            astray = offset - self.region("metadata").offset < 64 * KIB
        if astray:
            raise oslo.ImageFormatError(f"{name} is at {offset}")

    def check_metadata(self) -> None:
        _unless(self.has_region("parameters"), "no metadata")
        _unless(self.region("header").data == self.region("copy").data, "its two region tables do not agree")
        _unless(
            len(self.region("vds").data) == 8 and len(self.region("parameters").data) == 8, "metadata of odd length"
        )

    def check_parent(self) -> None:
        _unless(self.has_region("parameters"), "no metadata")
        _unless(not _at("<I", self.region("parameters").data, 4) & self.HAS_PARENT, "it has a parent")

    def check_log(self) -> None:
        """A log that is not empty changes, when it is replayed, what the rest of the data says."""
        heads = [self.region(name).data for name in ("header1", "header2")]
        heads = [head for head in heads if head.startswith(b"head")]
        _unless(bool(heads), "no header")
        newest = max(heads, key=lambda head: int(_at("<Q", head, 8)))
        _unless(not any(newest[48:64]), "its log is not empty")

    def check_size(self) -> None:
        _unless(self.virtual_size <= self.LARGEST, "no such disk is as large")


# --- vmdk ------------------------------------------------------------------------------------------------


class VMDK(_Checked, oslo.VMDKInspector):
    """Accepted is one sparse extent with its descriptor inside.

    A descriptor that is a file of its own names other files; the extents of ESX (COWD, seSparse) belong to one. All
    of them match, and none is safe.
    """

    CHECKS = ("alone", "size")
    LARGEST = 64 * TIB
    SPARSE = b"KDMV"
    OTHERS = (b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0")
    #: What QEMU takes for a descriptor, and a little more.
    TEXT = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*version[ \t]*=[ \t]*[0-9]", re.IGNORECASE)
    EXTENT = re.compile(r'(?:rw|rdonly|noaccess) [0-9]+ sparse "[^"/\\:]+"')
    KEYS = frozenset({"cid", "createtype", "encoding", "isnativesnapshot", "parentcid", "version"})
    FOOTER = 1536

    def _initialize(self) -> None:
        super()._initialize()
        self._kind: str | None = None  # sparse, other, none; not known before the first piece

    def eat_chunk(self, chunk: bytes) -> None:
        """See the next piece; the first one holds all of a descriptor that is plain text."""
        if self._kind is None:
            self._kind = self._tell(memoryview(chunk))
        if self._kind != "sparse":
            return
        if self.has_region("footer") and self.region("descriptor").complete:
            # All it still wants are the last sectors, and it would copy the rest.
            skipped = max(0, len(chunk) - self.FOOTER)
            self._total_count += skipped
            chunk = chunk[skipped:]
        super().eat_chunk(chunk)

    def _tell(self, first: memoryview) -> str:
        head = bytes(first[: 64 * KIB])
        if head.startswith(self.SPARSE):
            return "sparse"
        if head.startswith((*self.OTHERS, b"# Disk DescriptorFile")) or self.TEXT.match(head):
            return "other"
        sector = head[:512].rstrip(b"\0")
        if sector and b"\0" not in sector and sector.isascii() and b'createtype="' in bytes(first).lower():
            return "other"
        return "none"

    @property
    def complete(self) -> bool:
        return self._kind in ("other", "none") or super().complete

    @property
    def format_match(self) -> bool:
        return self._kind in ("sparse", "other")

    def safety_check(self) -> None:
        if self._kind == "other":
            raise oslo.SafetyCheckFailed({"descriptor": oslo.SafetyViolation("it is part of a disk of many files")})
        super().safety_check()

    def check_alone(self) -> None:
        """No other file is named: by an extent, a parent, a log of changes or a key that is not known."""
        _unless(_at("<Q", self.region("header").data, 12) > 0, "without a size its descriptor would be followed")
        _unless(b"\0" in self.region("descriptor").data, "its descriptor does not end")
        text = self.desc_text or ""
        # Readers search for these words anywhere, even in comments.
        _unless(text.count("createtype") == 1 and text.count("parentcid") <= 1, "it says something twice")
        _unless("parentfilenamehint" not in text, "it names a parent")
        extents = 0
        for line in (line.strip() for line in text.split("\n")):
            key, equals, value = line.partition("=")
            if not line or line.startswith(("#", "ddb")):
                continue
            if equals and " " not in key.strip():
                _unless(key.strip() in self.KEYS, "it has a key that is not known")
                parentless = key.strip() != "parentcid" or value.strip() == "ffffffff"
                _unless(parentless, "it has a parent")
            else:
                _unless(bool(self.EXTENT.fullmatch(line)), "an extent is not sparse, or has a path")
                extents += 1
        _unless(extents == 1, "it has not one extent")

    def check_size(self) -> None:
        _unless(self.virtual_size <= self.LARGEST, "no such disk is as large")

    def check_footer(self) -> None:
        super().check_footer()
        header, footer = self.region("header").data, self.region("footer").data[512:1024]
        _unless(header[12:20] == footer[12:20], "header and footer tell different sizes")

    def least_size(self) -> int:
        if self._kind != "sparse" or self.has_region("footer"):
            return 0
        return int(_at("<Q", self.region("header").data, 56)) * 512


# --- others ----------------------------------------------------------------------------------------------


class VDI(_Checked, oslo.VDIInspector):
    CHECKS = ("parent", "tables", "size")
    #: QEMU opens nothing larger.
    LARGEST = 1024 * TIB

    def check_parent(self) -> None:
        head = self.region("header").data
        _unless(_at("<I", head, 0x44) == 0x10001, "only version 1.1 is known")
        _unless(_at("<I", head, 0x4C) in (1, 2), "it is not a disk that stands alone")
        _unless(not any(head[0x1A8:0x1C8]), "it has a parent")

    def check_tables(self) -> None:
        _unless(_at("<I", self.region("header").data, 0x154) >= 0x1C8, "its map of blocks lies in its header")

    def check_size(self) -> None:
        block, _extra, blocks = struct.unpack_from("<III", self.region("header").data, 0x178)
        _unless(self.virtual_size <= self.LARGEST, "no such disk is as large")
        _unless(self.virtual_size <= block * blocks, "it has fewer blocks than its size needs")

    def least_size(self) -> int:
        head = self.region("header").data
        return int(_at("<I", head, 0x154) + 4 * _at("<I", head, 0x180))


class GPT(_Checked, oslo.GPTInspector):
    """A partition table; boot sectors of file systems have the same signature."""

    JUMPS = (0xEB, 0xE9)

    def _check_for_fat(self) -> bool:
        """Whether this is the boot sector of a file system: FAT (floppies too), NTFS or exFAT."""
        sector = self.region("mbr").data
        if sector[0] not in self.JUMPS:
            return bool(super()._check_for_fat())
        if sector[3:11] in (b"NTFS    ", b"EXFAT   "):
            return True
        width, cluster, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
        return (
            width in (512, 1024, 2048, 4096)
            and cluster in (1, 2, 4, 8, 16, 32, 64, 128)
            and reserved > 0
            and fats in (1, 2)
            and (sector[21] == 0xF0 or sector[21] >= 0xF8)
        )

    @property
    def boots(self) -> bool:
        """Whether the sector begins with code, as that of a floppy without a partition table does."""
        return self.region("mbr").data[0] in self.JUMPS


class LUKS(_Checked, oslo.LUKSInspector):
    CHECKS = ("detached",)

    def check_detached(self) -> None:
        _unless(self.header_items["payload_offset"] > 0, "its data is elsewhere")

    def least_size(self) -> int:
        return int(self.header_items["payload_offset"]) * 512 + 1


#: Every format but raw, by the name that disk_format has for it.
ALL: dict[str, type[oslo.FileInspector]] = {
    **{name: one for name, one in oslo.ALL_FORMATS.items() if name != "raw"},
    "gpt": GPT,
    "luks": LUKS,
    "qcow2": QCOW2,
    "vdi": VDI,
    "vhd": VHD,
    "vhdx": VHDX,
    "vmdk": VMDK,
}
