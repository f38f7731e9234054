"""VMDK, VMware's format: monolithicSparse and streamOptimized, one sparse extent with its descriptor inside.

A descriptor that is a file of its own names other files; the extents of ESX (COWD, seSparse) belong to one. All of
them match, and none is safe.
"""

import re
import struct

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import KIB, MIB, TIB, Checked, at, unless

SECTOR = 512


class VMDK(Checked):
    """Keeps the header, the descriptor of up to 1 MiB, and the last three sectors."""

    NAME = "vmdk"
    CHECKS = ("descriptor", "alone", "tables", "size", "footer")
    LARGEST = 64 * TIB
    SPARSE = b"KDMV"
    OTHERS = (b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0")
    AT_END = 2**64 - 1  # instead of the directory's place: the footer tells it
    FOOTER = 3 * SECTOR
    HAS_SPARE = 2  # directory
    LONGEST_TEXT = MIB - 1
    #: What QEMU takes for a descriptor, and a little more.
    TEXT = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*version[ \t]*=[ \t]*[0-9]", re.IGNORECASE)
    #: Readers take the data from this file, whatever name is here: FreeBSD's writer gives none. A path is another file.
    EXTENT = re.compile(rb'(?:rw|rdonly|noaccess)[ \t]+[0-9]+[ \t]+sparse[ \t]+"[^"/\\]*"(?:[ \t]+0)?')
    KEY = re.compile(rb"([a-z0-9_.]+)[ \t]*=(.*)")
    TYPES = (b"monolithicsparse", b"streamoptimized")
    #: In a key that is not known: it may name a file.
    NAMING = re.compile(rb"parent|path|file|extent|ur[il]")
    PARENTLESS = b"ffffffff"
    #: QEMU wants a number behind the first such word, in this letter case, and a parent's as well.
    CONTENT_ID = re.compile(rb"CID=\s*[+-]?[0-9A-Fa-f]")

    def _initialize(self) -> None:
        super()._initialize()
        self._kind: str | None = None  # sparse, other, none; not known before the first piece
        self.new_region("header", oslo.CaptureRegion(0, SECTOR))

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

    def post_process(self) -> None:
        if self.region("header").complete and not self.has_region("descriptor"):
            offset, sectors, directory = struct.unpack_from("<QQ12xQ", self.region("header").data, 28)
            length = min(sectors * SECTOR, self.LONGEST_TEXT) if offset == 1 else 0
            self.new_region("descriptor", oslo.CaptureRegion(SECTOR, length))
            if directory == self.AT_END:
                self.new_region("footer", oslo.EndCaptureRegion(self.FOOTER))

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

    def _text(self) -> bytes:
        """The descriptor, in lower case and of any encoding. Bytes above 127 are letters in a name."""
        text, ended, _ = bytes(self.region("descriptor").data).partition(b"\0")
        unless(bool(ended), "its descriptor does not end")  # some readers go on beyond the length in the header
        return text.lower()

    def check_descriptor(self) -> None:
        offset, sectors = struct.unpack_from("<QQ", self.region("header").data, 28)
        unless(offset == 1 and sectors > 0, "its descriptor is not behind its header")
        found = re.search(rb'createtype="([^"]*)"', self._text())
        unless(found is not None and found[1] in self.TYPES, "it is not of the type of a single file")
        text = bytes(self.region("descriptor").data).partition(b"\0")[0]
        known = self.CONTENT_ID.match(text, max(0, text.find(b"CID="))) and b"parentCID=" in text
        unless(bool(known), "its descriptor does not tell the id of its content")

    def check_alone(self) -> None:
        """No other file is named: by an extent, a parent, a log of changes or a key that may."""
        # Some readers follow the descriptor then.
        unless(at("<Q", self.region("header").data, 12) > 0, "its header tells no size")
        text = self._text()
        # Readers search for these words anywhere, even in comments.
        once = text.count(b"createtype") == 1 and text.count(b"parentcid=") <= 1 + text.count(b"nativeparentcid=")
        unless(once, "its descriptor says something twice")
        unless(b"parentfilenamehint" not in text, "its descriptor names a parent")
        extents = 0
        for line in (line.strip() for line in text.split(b"\n")):
            if not line or line.startswith(b"#"):
                continue
            if pair := self.KEY.fullmatch(line):
                self._check_pair(pair[1], pair[2].strip())
            else:
                unless(
                    self.EXTENT.fullmatch(line) is not None,
                    "a line of its descriptor is no key, and no sparse extent without a path",
                )
                extents += 1
        unless(extents == 1, "its descriptor has not one extent")

    def _check_pair(self, key: bytes, value: bytes) -> None:
        if key == b"parentcid":
            unless(value == self.PARENTLESS, "its descriptor names a parent")
        elif key.startswith(b"ddb."):
            unless(b"parent" not in key, "its descriptor names a parent")
        else:
            unless(not self.NAMING.search(key), "a key of its descriptor may name a file")
            unless(b"/" not in value and b"\\" not in value, "a key of its descriptor has a path")

    def check_tables(self) -> None:
        self._check_tables(self.region("header").data)

    def _check_tables(self, head: bytes | bytearray) -> None:
        version, _flags, capacity, grain = struct.unpack_from("<IIQQ", head, 4)
        unless(version in (1, 2, 3), "it is of a version that is not known")
        entries = at("<I", head, 44)
        unless(0 < entries <= 512, "its tables have a number of entries that there is not")
        unless(0 < grain <= 0x200000, "its grains have an odd size")
        unless(-(-capacity // (grain * entries)) <= 32 * MIB // 4, "its directory is longer than any disk needs")

    def check_size(self) -> None:
        unless(self.virtual_size <= self.LARGEST, "no such disk is as large")

    def check_footer(self) -> None:
        if not self.has_region("footer"):
            return
        header, end = self.region("header").data, self.region("footer").data
        footer = end[SECTOR : 2 * SECTOR]
        unless(footer[:4] == self.SPARSE, "its footer is missing")
        unless(at("<Q", footer, 56) != self.AT_END, "its footer tells of another one")
        same = header[4:44] == footer[4:44] and header[44:48] == footer[44:48]
        unless(same, "its header and its footer do not agree")
        for marker, kind in ((end[:SECTOR], 3), (end[2 * SECTOR :], 0)):
            size, type_ = struct.unpack_from("<8xII", marker)
            unless(size == 0 and type_ == kind and not any(marker[16:]), "its footer is not marked as one")
        unless(at("<Q", end, 2 * SECTOR) == 0, "its footer is not the end")
        self._check_tables(footer)

    @property
    def virtual_size(self) -> int:
        if self._kind != "sparse" or not self.region("header").complete:
            return 0
        return int(at("<Q", self.region("header").data, 12)) * SECTOR

    def least_size(self) -> int:
        if self._kind != "sparse":
            return 0
        head = self.region("footer").data[SECTOR:] if self.has_region("footer") else self.region("header").data
        flags, (spare, directory, overhead) = at("<I", head, 8), struct.unpack_from("<QQQ", head, 48)
        return int(max(spare if flags & self.HAS_SPARE else 0, directory, overhead) * SECTOR)
