"""Image files to try an upload with: each a few KiB of structure, made in memory, with the verdict it must get.

`GOOD` are accepted with a `virtual_size`, `HOSTILE` are refused. No file here comes from outside; what the structures
mean stands in the formats' own documents. `python -m tests.images.samples DIR` writes them all, to be looked at.
"""

import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from uuid import UUID

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
NEAR = (2**63 - 1, 2**63 - 512, 2**63, 2**64 - 1)  #: around the widest number that a column holds
PATHS = ("/etc/passwd", "../../etc/passwd", "C:\\\\disk", "nbd:unix:/run/x", 'json:{"driver":"file"}')


@dataclass(frozen=True)
class Sample:
    name: str
    declared: str  #: disk_format
    make: Callable[[], bytes]
    virtual_size: int | None = None  #: of a good one
    container_format: str = "bare"

    def __str__(self) -> str:
        return f"{self.name}-as-{self.declared}"


def put(data: bytes, *changes: tuple[int, str, object]) -> bytes:
    """`data` with values written into it: (offset, layout, value)."""
    out = bytearray(data)
    for offset, layout, value in changes:
        struct.pack_into(layout, out, offset, value)
    return bytes(out)


# --- one good file of each format ----------------------------------------------------------------------------


def qcow2(
    *changes: tuple[int, str, object], size: int = 10 * MIB, version: int = 3, bits: int = 16, extensions: bytes = b""
) -> bytes:
    """Header, then the table of reference counts, then the first level."""
    cluster = 1 << bits
    entries = -(-size // (1 << (2 * bits - 3)))
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, bits, size, 0, entries, 2 * cluster, cluster, 1, 0, 0
    )
    if version == 3:
        head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    data = (head + extensions).ljust(2 * cluster + max(512, entries * 8), b"\0")
    return put(data, *changes)


def extension(kind: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">II", kind, len(content) if length is None else length) + content


def summed(data: bytes, offset: int, *changes: tuple[int, str, object]) -> bytes:
    """`changes` made and their checksum at `offset`: the complement of the sum of all bytes."""
    data = put(data, (offset, ">I", 0), *changes)
    return put(data, (offset, ">I", ~sum(data) & 0xFFFFFFFF))


def vhd_footer(size: int, kind: int, *changes: tuple[int, str, object]) -> bytes:
    first = 512 if kind != 2 else 2**64 - 1
    foot = struct.pack(">8sIIQI4sI4sQQII", b"conectix", 2, 1 << 16, first, 0, b"win ", 0, b"Wi2k", size, size, 0, kind)
    return summed(foot.ljust(512, b"\0"), 64, *changes)


def vhd(*changes: tuple[int, str, object], size: int = 30 * MIB, kind: int = 3, tail: bytes | None = None) -> bytes:
    """A dynamic one; `changes` are to the header, `tail` takes the place of the last footer."""
    entries = -(-size // (2 * MIB))
    foot = vhd_footer(size, kind)
    head = struct.pack(">8sQQIII", b"cxsparse", 2**64 - 1, 1536, 1 << 16, entries, 2 * MIB).ljust(1024, b"\0")
    both = put(foot + head, *changes)
    both = summed(both[:512], 64) + summed(both[512:], 36)
    table = (b"\xff" * 4 * min(entries, MIB)).ljust(512, b"\0")
    return both + table + (foot if tail is None else tail)


def fixed_vhd(content: bytes = bytes(64 * KIB), *changes: tuple[int, str, object]) -> bytes:
    return content + vhd_footer(len(content), 2, *changes)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data.rstrip(b"\0"):
        crc = CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    for _ in range(len(data) - len(data.rstrip(b"\0"))):
        crc = CRC32C[crc & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC32C = [_row(value) for value in range(256)]


@cache
def vhdx_part(head: bytes, length: int) -> bytes:
    """A header or a region table with its checksum."""
    return put(head, (4, "<I", crc32c(head.ljust(length, b"\0"))))


def guid(text: str) -> bytes:
    return UUID(text).bytes_le


META = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
BAT = guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
SIZE = guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
PARAMETERS = guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")

#: Identity, width of a logical and of a physical sector: nobody here asks, but no reader opens a disk without.
SECTORS = (
    (guid("BECA12AB-B2E6-4523-93EF-C309E000C746"), 65552, 16),
    (guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F"), 65568, 4),
    (guid("CDA348C7-445D-4471-9CC9-E9885251C556"), 65572, 4),
)


def vhdx(
    *changes: tuple[int, str, object],
    size: int = 40 * MIB,
    at: int = MIB,
    items: tuple[tuple[bytes, int, int], ...] = ((PARAMETERS, 65536, 8), (SIZE, 65544, 8), *SECTORS),
    regions: int = 2,
    log: bytes = bytes(16),
    copy: bool = True,
) -> bytes:
    """Metadata at `at`; `items` are (guid, offset, length) of its table."""
    block = 32 * MIB if size < TIB else 256 * MIB
    blocks = min(-(-size * 8 * 17 // 16 // block // MIB), 4) * MIB  # length of their table
    data = bytearray(3 * MIB + blocks)  # with a log at 2 MiB
    data[:8] = b"vhdxfile"
    for n, base in enumerate((64 * KIB, 128 * KIB)):
        head = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, n, b"f" * 16, b"d" * 16, log, 0, 1, MIB, 2 * MIB)
        head = vhdx_part(head, 4096)
        data[base : base + len(head)] = head
    table = struct.pack("<4sIII", b"regi", 0, regions, 0)
    table += struct.pack("<16sQII", BAT, 3 * MIB, blocks, 1) + struct.pack("<16sQII", META, at, MIB, 1)
    table = vhdx_part(table, 64 * KIB)
    for base in (192 * KIB, 256 * KIB) if copy else (192 * KIB,):
        data[base : base + len(table)] = table
    meta = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    for name, offset, length in items:
        meta += struct.pack("<16sIIII", name, offset, length, 4, 0)
    data[MIB : MIB + len(meta)] = meta
    struct.pack_into("<IIQ16sII", data, MIB + 64 * KIB, block, 0, size, b"identity", 512, 4096)
    return put(bytes(data), *changes)


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="{kind}"

# Extent description
{extent}

# The Disk Data Base
ddb.adapterType = "ide"
{more}
"""
EXTENT = 'RW 20480 SPARSE "disk.vmdk"'


def descriptor(kind: str = "monolithicSparse", extent: str = EXTENT, more: str = "") -> str:
    return DESCRIPTOR.format(kind=kind, extent=extent, more=more)


def vmdk(
    *changes: tuple[int, str, object], sectors: int = 20480, text: str | bytes | None = None, pages: int = 20
) -> bytes:
    text = descriptor() if text is None else text
    body = text.encode() if isinstance(text, str) else text
    head = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, sectors, 128, 1, pages, 512, 21, 22, 24).ljust(512, b"\0")
    return put((head + body.ljust(20 * 512, b"\0")).ljust(24 * 512, b"\0"), *changes)


def stream_vmdk(*changes: tuple[int, str, object], kind: str = "streamOptimized") -> bytes:
    """Ends with marker, footer, end-of-stream; `changes` are to these 1536 bytes."""
    data = put(vmdk(text=descriptor(kind)), (56, "<Q", 2**64 - 1))
    end = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + put(data[:512], (56, "<Q", 22)) + bytes(512)
    return data + put(end, *changes)


def vdi(*changes: tuple[int, str, object], size: int = 20 * MIB, kind: int = 1) -> bytes:
    head = bytearray(1024)
    head[:39] = b"<<< Oracle VM VirtualBox Disk Image >>>"
    struct.pack_into("<IIII", head, 0x40, 0xBEDA107F, 0x10001, 400, kind)
    blocks = min(-(-size // MIB), 2**32 - 1)
    struct.pack_into("<II", head, 0x154, 512, 1024)
    struct.pack_into("<IIQIIII", head, 0x168, 512, 0, size, MIB, 0, blocks, 0)
    return put(bytes(head).ljust(1024 + 4 * min(blocks, 4096), b"\xff"), *changes)


def iso(*changes: tuple[int, str, object], blocks: int = 40, boot: bytes = b"", mark: bytes = b"CD001") -> bytes:
    volume = (b"\x01" + mark + b"\x01").ljust(80, b"\0")
    volume += struct.pack("<L", blocks) + struct.pack(">L", blocks)
    volume = volume.ljust(128, b"\0") + struct.pack("<H", 2048) + struct.pack(">H", 2048)
    return put((boot[:32768].ljust(32768, b"\0") + volume).ljust(blocks * 2048, b"\0"), *changes)


def udf(revision: bytes = b"NSR02", sector: int = 2 * KIB) -> bytes:
    """A disc without ISO 9660: three descriptors that say so."""
    marks = b"".join((b"\0" + mark + b"\1").ljust(sector, b"\0") for mark in (b"BEA01", revision, b"TEA01"))
    return (bytes(32 * KIB) + marks).ljust(80 * KIB, b"\0")


def luks(*changes: tuple[int, str, object], length: int = 2112 * KIB) -> bytes:
    head = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        b"LUKS\xba\xbe",
        1,
        b"aes",
        b"xts-plain64",
        b"sha256",
        4096,
        64,
        b"",
        b"",
        1000,
        b"",
    )
    for slot in range(8):
        head += struct.pack(">II32sII", 0xDEAD, 0, b"", 8 + slot * 504, 4000)
    return put(head.ljust(length, b"\0"), *changes)


def gpt(*changes: tuple[int, str, object], length: int = 40 * KIB) -> bytes:
    entry = struct.pack("<B3BB3BII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 1000)
    return put((bytes(446) + entry + bytes(48) + b"\x55\xaa" + b"EFI PART").ljust(length, b"\0"), *changes)


def mbr(kind: int = 0x83, count: int = 1) -> bytes:
    entries = b"".join(
        struct.pack("<B3BB3BII", 0x80 if n == 0 else 0, 1, 1, 0, kind, 1, 1, 1, 2048, 99) for n in range(count)
    )
    return (b"\xfa\xb8" + bytes(444) + entries.ljust(64, b"\0") + b"\x55\xaa").ljust(40 * KIB, b"\0")


def floppy(media: int = 0xF0, fats: int = 2, size: int = 1440 * KIB, oem: bytes = b"mkfs.fat") -> bytes:
    """A boot sector of FAT, with code where partition tables have entries."""
    head = b"\xeb\x3c\x90" + oem + struct.pack("<HBHBHHBH", 512, 1, 1, fats, 224, size // 512 % 65536, media, 9)
    return (head.ljust(446, b"\x90") + b"\xcd\x19" * 32 + b"\x55\xaa").ljust(size, b"\0")


def kernel() -> bytes:
    """A bzImage that is a PE, too: code to the end of the sector, then its own header."""
    return (b"MZ" + b"\xcd\x19" * 254 + b"\x55\xaa" + b"\xeb\x66HdrS").ljust(64 * KIB, b"\x90")


def parallels() -> bytes:
    return struct.pack("<16sIIIIIQ", b"WithoutFreeSpace", 2, 16, 20, 2048, 10, 20480).ljust(64 * KIB, b"\0")


#: As extlinux writes it: code and texts where a partition table would be.
LOADER = b"\xeb\x58\x90EXTLINUX".ljust(440, b"\x90") + b"Boot error\r\n".ljust(70, b"\x42") + b"\x55\xaa"
EXT = bytes(1080) + b"\x53\xef" + bytes(40000)
QED = struct.pack("<4sIIIQQQQ", b"QED\0", 65536, 4, 1, 0, 0, 0, 65536).ljust(4096, b"\0")

WHOLE: dict[str, Callable[[], bytes]] = {
    "qcow2": qcow2,
    "vhd": vhd,
    "vhdx": vhdx,
    "vmdk": vmdk,
    "vdi": vdi,
    "iso": iso,
    "luks": luks,
    "gpt": gpt,
    "raw": lambda: EXT,
}
DISK_FORMATS = ("qcow2", "vhd", "vhdx", "vmdk", "vdi", "iso", "luks", "ami", "aki", "ari", "ploop")


# --- good ----------------------------------------------------------------------------------------------------


def good() -> Iterator[Sample]:
    for version in (2, 3):
        for bits in (9, 12, 16, 21):
            for size in (MIB, 10 * GIB) if bits >= 16 else (MIB,):
                name = f"qcow2-v{version}-{bits}bits-{size}"
                yield Sample(name, "qcow2", partial(qcow2, size=size, version=version, bits=bits), size)
    yield Sample("qcow2-dirty", "qcow2", partial(qcow2, (72, ">Q", 1)), 10 * MIB)
    yield Sample("qcow2-zstd", "qcow2", partial(qcow2, (72, ">Q", 8), (100, ">I", 112), (104, ">B", 1)), 10 * MIB)
    yield Sample("qcow2-lazy", "qcow2", partial(qcow2, (80, ">Q", 1)), 10 * MIB)
    yield Sample("qcow2-empty", "qcow2", partial(qcow2, size=0), None)
    names = extension(0x6803F857, b"\0\0dirty bit".ljust(48, b"\0")) + extension(0, b"")
    yield Sample("qcow2-feature-names", "qcow2", partial(qcow2, extensions=names), 10 * MIB)
    yield Sample("qcow2-unknown-extension", "qcow2", partial(qcow2, extensions=extension(7, b"12345678")), 10 * MIB)
    for size in (MIB, 127 * GIB, 2040 * GIB):
        yield Sample(f"vhd-dynamic-{size}", "vhd", partial(vhd, size=size), size)
    yield Sample("vhd-without-last-footer", "vhd", partial(vhd, tail=b""), 30 * MIB)
    resized = [(40, ">Q", 5 * MIB)]
    tail = vhd_footer(30 * MIB, 3, *resized)
    yield Sample("vhd-resized", "vhd", partial(vhd, *resized, tail=tail), 30 * MIB)
    for name, content in {"empty": bytes(64 * KIB), "gpt": gpt(), "mbr": mbr(), "iso": iso(), "ext": EXT}.items():
        content = content.ljust(-(-len(content) // 512) * 512, b"\0")
        yield Sample(f"vhd-fixed-{name}", "vhd", partial(fixed_vhd, content), len(content))
    for size in (MIB, 40 * MIB, 64 * TIB):
        yield Sample(f"vhdx-{size}", "vhdx", partial(vhdx, size=size), size)
    yield Sample("vmdk-sparse", "vmdk", vmdk, 10 * MIB)
    yield Sample("vmdk-2TiB", "vmdk", partial(vmdk, sectors=2 * TIB // 512), 2 * TIB)
    yield Sample("vmdk-stream", "vmdk", stream_vmdk, 10 * MIB)
    yield Sample(
        "vmdk-readonly", "vmdk", partial(vmdk, text=descriptor(extent='RDONLY 20480 SPARSE "a b.vmdk"')), 10 * MIB
    )
    for name in ("", "c:disk.vmdk", "disk:1", "Größe.vmdk", "ディスク.vmdk", "a  b.vmdk"):
        text = descriptor(extent=f'RW 20480 SPARSE "{name}"')
        yield Sample(f"vmdk-name-{name.encode().hex()}", "vmdk", partial(vmdk, text=text), 10 * MIB)
    latin = descriptor(extent='RW 20480 SPARSE "Größe.vmdk"').encode("latin-1")
    yield Sample("vmdk-name-latin-1", "vmdk", partial(vmdk, text=latin), 10 * MIB)
    keys = {
        "vmware": 'encoding="UTF-8"\nisNativeSnapshot="no"',
        "unknown": 'madeBy="somebody"\ncomment=nothing to see',
        "spaces": 'encoding = "UTF-8"',
        "not-ascii": 'ddb.comment = "Größe"\n# Größe',
    }
    for name, lines in keys.items():
        yield Sample(f"vmdk-keys-{name}", "vmdk", partial(vmdk, text=descriptor(more=lines)), 10 * MIB)
    for name, extent in {"tabs": 'RW\t20480\tSPARSE\t"disk.vmdk"', "offset": EXTENT + " 0"}.items():
        yield Sample(f"vmdk-extent-{name}", "vmdk", partial(vmdk, text=descriptor(extent=extent)), 10 * MIB)
    yield Sample("vmdk-crlf", "vmdk", partial(vmdk, text=descriptor().replace("\n", "\r\n")), 10 * MIB)
    for kind in (1, 2):
        yield Sample(f"vdi-type{kind}", "vdi", partial(vdi, kind=kind), 20 * MIB)
    yield Sample("vdi-4GiB", "vdi", partial(vdi, size=4 * GIB), 4 * GIB)
    yield Sample("iso", "iso", iso, 80 * KIB)
    for revision in (b"NSR02", b"NSR03"):
        for sector in (2 * KIB, 4 * KIB):
            yield Sample(f"iso-{revision.decode()}-{sector}", "iso", partial(udf, revision, sector), None)
    yield Sample("iso-and-udf", "iso", partial(iso, (34816, "6s", b"\0BEA01"), (36864, "6s", b"\0NSR02")), 80 * KIB)
    yield Sample("iso-hybrid-gpt", "iso", partial(iso, boot=gpt()), 80 * KIB)
    yield Sample("iso-hybrid-mbr", "iso", partial(iso, boot=mbr()), 80 * KIB)
    yield Sample("luks", "luks", luks, 64 * KIB)
    raws = {
        "ext": EXT,
        "gpt": gpt(),
        "mbr": mbr(),
        "mbr-four": mbr(count=4),
        "mbr-empty": put(mbr(), (446, "64s", b"")),
        "mbr-at-the-start": put(mbr(), (454, "<I", 0)),
        "gpt-other-chs": gpt((447, "3s", b"\xff\xff\xff"), (451, "3s", b"\xfe\xff\xff")),
        "gpt-chs": gpt((448, "<B", 9)),
        "gpt-entry-not-first": put(gpt(), (446, "16s", b""), (462, "16s", gpt()[446:462])),
        "gpt-and-partition": gpt((462, "16s", mbr()[446:462])),
        "ext-with-loader": put(EXT, (0, "512s", LOADER)),
        "btrfs-with-loader": put(bytes(80 * KIB), (0, "512s", LOADER), (0x10040, "8s", b"_BHRfS_M")),
        "f2fs-with-loader": put(EXT, (0, "512s", LOADER), (0x400, "4s", b"\x10\x20\xf5\xf2"), (1080, "2s", b"")),
        "fat": floppy(media=0xF8, size=40 * KIB),
        "ntfs": floppy(media=0xF8, fats=0, size=40 * KIB, oem=b"NTFS    "),
        "floppy-1440": floppy(),
        "floppy-720": floppy(media=0xF9, size=720 * KIB),
        "floppy-2880": floppy(size=2880 * KIB),
        "fat-larger-than-floppies": floppy(size=3 * MIB),
        "floppy-without-fat": (b"\xeb\x63\x90".ljust(510, b"\xcd") + b"\x55\xaa").ljust(1296384, b"\0"),
        "one-byte": b"x",
        "parallels": parallels(),
        "511": b"\x55\xaa".rjust(511, b"\1"),
    }
    for name, content in raws.items():
        yield Sample(f"raw-{name}", "raw", lambda content=content: content, len(content))  # type: ignore[misc]
    yield Sample("raw-nothing", "raw", bytes, None)
    for name in ("qcow2", "vhd", "vhdx", "vmdk", "vdi", "iso", "luks"):
        yield Sample(f"{name}", "raw", WHOLE[name], len(WHOLE[name]()))
    for declared in ("aki", "ari"):
        yield Sample("kernel", declared, kernel, None)
    yield Sample("initrd", "ari", lambda: b"\x1f\x8b\x08".ljust(9000, b"\1"), None)
    yield Sample("file-system", "ami", lambda: EXT, None)
    yield Sample("parallels", "ploop", parallels, None)
    # Only bare data is looked at: what is in an archive is for whoever unpacks it.
    for container in ("ovf", "ova", "docker", "compressed", "ami"):
        backed = partial(qcow2, (8, ">Q", 4096), (16, ">I", 11))
        yield Sample(f"backed-in-{container}", "qcow2", backed, None, container)
        yield Sample(f"other-in-{container}", "vmdk", vdi, None, container)


# --- hostile -------------------------------------------------------------------------------------------------


def hostile() -> Iterator[Sample]:
    for declared in DISK_FORMATS:
        for detected, make in WHOLE.items():
            plain = detected in ("raw", "gpt") and declared in ("ami", "aki", "ari", "ploop")
            if detected != declared and not plain:
                yield Sample(f"whole-{detected}", declared, make)
    for own, files in (
        ("qcow2", _qcow2()),
        ("vhd", _vhd()),
        ("vhdx", _vhdx()),
        ("vmdk", _vmdk()),
        ("vdi", _vdi()),
        ("luks", _luks()),
        ("raw", _others()),
    ):
        for name, make in files:
            yield Sample(f"{own}-{name}", own, make)
            if own != "raw" and not name.startswith("fixed"):
                yield Sample(f"{own}-{name}", "raw", make)  # not safe under another name either
    for own in ("qcow2", "vhd", "vhdx", "vmdk", "vdi", "iso", "luks"):
        for length in (0, 1, 4, 40, 80):
            yield Sample(f"cut-{length}", own, lambda own=own, length=length: WHOLE[own]()[:length])  # type: ignore[misc]
        yield Sample("zeros", own, lambda: bytes(300 * KIB))
    for own, length in (
        ("qcow2", 600),
        ("vhd", 1000),
        ("vhdx", MIB),
        ("vmdk", 1000),
        ("vdi", 500),
        ("luks", 2 * MIB),
        ("iso", 33000),
    ):
        yield Sample(f"cut-{length}", own, lambda own=own, length=length: WHOLE[own]()[:length])  # type: ignore[misc]


Files = Iterator[tuple[str, Callable[[], bytes]]]


def _qcow2() -> Files:
    for path in PATHS:
        name = path.encode()
        yield (
            f"backing-{name.hex()}",
            lambda name=name: put(qcow2(), (8, ">Q", 600), (16, ">I", len(name)), (600, f"{len(name)}s", name)),
        )
    yield "backing-far", partial(qcow2, (8, ">Q", 2**63), (16, ">I", 1023))
    yield "backing-v2", partial(qcow2, (8, ">Q", 200), (16, ">I", 11), version=2)
    yield "data-file", partial(qcow2, (72, ">Q", 4))
    yield "data-file-named", partial(qcow2, (72, ">Q", 4), extensions=extension(0x44415441, b"/etc/passwd\0\0\0\0\0"))
    yield "data-file-without-its-bit", partial(qcow2, extensions=extension(0x44415441, b"/etc/passwd\0\0\0\0\0"))
    chain = extension(7, b"12345678") * 3 + extension(0x44415441, b"/etc/shadow\0\0\0\0\0")
    yield "data-file-in-a-chain", partial(qcow2, extensions=chain)
    for bit in (4, 5, 8, 31, 32, 63):
        yield f"unknown-bit-{bit}", partial(qcow2, (72, ">Q", 1 << bit))
    for version in (0, 1, 4, 2**32 - 1):
        yield f"version-{version}", partial(qcow2, (4, ">I", version))
    for bits in (0, 8, 22, 63, 2**32 - 1):
        yield f"cluster-bits-{bits}", partial(qcow2, (20, ">I", bits))
    yield "huge-first-level", partial(qcow2, (36, ">I", 2**32 - 1))
    yield "first-level-too-short", partial(qcow2, (36, ">I", 0))
    yield "first-level-beyond", partial(qcow2, (40, ">Q", 1 << 40))
    yield "huge-refcounts", partial(qcow2, (56, ">I", 2**32 - 1))
    yield "refcounts-beyond", partial(qcow2, (48, ">Q", 1 << 50))
    yield "refcounts-too-wide", partial(qcow2, (96, ">I", 7))
    yield "many-snapshots", partial(qcow2, (60, ">I", 2**32 - 1))
    yield "snapshots-in-the-header", partial(qcow2, (60, ">I", 1), (64, ">Q", 0))
    yield "no-refcounts", partial(qcow2, (56, ">I", 0))
    yield "zlib-said-to-be-another", partial(qcow2, (72, ">Q", 8), (100, ">I", 112))
    yield "zstd-not-said", partial(qcow2, (100, ">I", 112), (104, ">B", 1))
    yield "luks-without-header", partial(qcow2, (32, ">I", 2))
    yield "unknown-encryption", partial(qcow2, (32, ">I", 3))
    for length in (0, 71, 103, 105, 2**32 - 8):
        yield f"header-length-{length}", partial(qcow2, (100, ">I", length))
    yield "extension-too-long", partial(qcow2, extensions=extension(7, b"", 2**32 - 1))
    for size in NEAR:
        yield f"size-{size}", partial(qcow2, (24, ">Q", size))


def _vhd() -> Files:
    for kind in (0, 1, 2, 4, 5, 6, 2**32 - 1):
        yield f"type-{kind}", partial(vhd, kind=kind)
    yield "parent-id", partial(vhd, (552, "16s", b"p" * 16))
    yield "parent-only-in-last-footer", partial(vhd, tail=vhd_footer(30 * MIB, 4))
    yield "last-footer-of-511-bytes", partial(vhd, tail=vhd_footer(30 * MIB, 4)[:511])
    yield "sizes-differ", partial(vhd, tail=vhd_footer(31 * MIB, 3))
    yield "second-header-elsewhere", partial(vhd, (16, ">Q", 4096))
    yield "second-header-missing", partial(vhd, (512, "8s", bytes(8)))
    yield "huge-table", partial(vhd, (540, ">I", 2**32 - 1))
    yield "wrong-checksum", partial(lambda: put(vhd(), (64, ">I", 7)))
    yield "wrong-checksum-of-second-header", partial(lambda: put(vhd(), (512 + 36, ">I", 7)))
    yield "odd-blocks", partial(vhd, (544, ">I", 3 * MIB))
    yield "short-table", partial(vhd, (540, ">I", 1))
    yield "block-beyond", lambda: put(vhd(), (1536, ">I", 1 << 30))
    yield "table-beyond", partial(vhd, (528, ">Q", 1 << 50))
    for size in (2041 * GIB, *NEAR):
        yield f"size-{size}", partial(vhd, (40, ">Q", size), (48, ">Q", size), (540, ">I", 15))
    for kind in (0, 3, 4):
        yield f"fixed-type-{kind}", partial(fixed_vhd, bytes(4096), (60, ">I", kind))
    for size in (8192, *NEAR):
        yield f"fixed-size-{size}", partial(fixed_vhd, bytes(4096), (48, ">Q", size))
    for name in ("qcow2", "vmdk", "vdi", "luks"):
        yield f"fixed-around-{name}", lambda name=name: fixed_vhd(WHOLE[name]())


def _astray() -> bytes:
    """Its parameters begin four bytes before 64 KiB end, and a table ends behind: who captures late reads them late."""
    at = MIB + 512
    items = ((PARAMETERS, 65020, 8), (SIZE, 65544, 8), *[(bytes(16), 65536, 8)] * 2038)
    meta = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    meta += b"".join(struct.pack("<16sIIII", name, offset, length, 4, 0) for name, offset, length in items)
    return put(
        vhdx(at=at, items=()),
        (at, f"{len(meta)}s", meta),
        (at + 65020, "<I", 32 * MIB),
        (at + 65024, "<I", 2),
        (at + 65028, "<I", 0),
        (at + 65544, "<Q", 40 * MIB),
    )


def _vhdx() -> Files:
    table = 192 * KIB
    yield "parent", partial(vhdx, (MIB + 64 * KIB + 4, "<I", 2))
    yield "parent-and-more", partial(vhdx, (MIB + 64 * KIB + 4, "<I", 2**32 - 1))
    yield "parent-astray", _astray
    yield "log", partial(vhdx, log=b"l" * 16)
    yield "no-headers", partial(vhdx, (64 * KIB, "4s", b""), (128 * KIB, "4s", b""))
    yield "tables-differ", partial(vhdx, copy=False)
    yield "no-table", partial(vhdx, (table, "4s", b""), copy=False)
    yield "no-regions", partial(vhdx, regions=0)
    yield "no-metadata-region", partial(vhdx, regions=1)
    yield "huge-regions", partial(vhdx, regions=2**32 - 1)
    yield "no-items", partial(vhdx, items=())
    yield "no-size", partial(vhdx, items=((PARAMETERS, 65536, 8),))
    yield "no-parameters", partial(vhdx, items=((SIZE, 65544, 8),))
    yield "short-size", partial(vhdx, items=((PARAMETERS, 65536, 8), (SIZE, 65544, 4)))
    yield "huge-item", partial(vhdx, items=((PARAMETERS, 65536, 2**32 - 1), (SIZE, 65544, 8)))
    yield "item-in-the-table", partial(vhdx, items=((PARAMETERS, 64, 8), (SIZE, 65544, 8)))
    yield "item-far", partial(vhdx, items=((PARAMETERS, 65536, 8), (SIZE, 2**32 - 1, 8)))
    yield "many-items", partial(vhdx, items=((bytes(16), 65536, 8),) * 2047)
    yield "wrong-checksums", partial(vhdx, (64 * KIB + 4, "<I", 7), (128 * KIB + 4, "<I", 7))
    yield "wrong-checksum-of-regions", partial(vhdx, (table + 4, "<I", 7), (table + 64 * KIB + 4, "<I", 7))
    yield "block-of-nothing", partial(vhdx, (MIB + 64 * KIB, "<I", 0))
    yield "odd-sectors", partial(vhdx, (MIB + 64 * KIB + 32, "<I", 520))
    yield "block-beyond", partial(vhdx, (3 * MIB, "<Q", (1 << 40) + 6))
    yield "block-over-metadata", partial(vhdx, (3 * MIB, "<Q", MIB + 6))
    for at in (0, 190 * KIB, 512 * KIB, MIB + 512, 1 << 40, 2**64 - 1):
        yield f"metadata-at-{at}", partial(vhdx, at=at)
    for size in (65 * TIB, *NEAR):
        yield f"size-{size}", partial(vhdx, size=size)


def _vmdk() -> Files:
    for kind in (
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "vmfs",
        "vmfsSparse",
        "vmfsRDM",
        "vmfsPassthroughRDM",
        "seSparse",
        "fullDevice",
        "partitionedDevice",
        "custom",
        "",
        "x" * 200,
    ):
        yield f"type-{kind[:20]}", partial(vmdk, text=descriptor(kind))
    for path in PATHS:
        yield f"path-{path.encode().hex()}", partial(vmdk, text=descriptor(extent=f'RW 20480 SPARSE "{path}"'))
        text = descriptor("monolithicFlat", f'RW 20480 FLAT "{path}" 0')
        yield f"flat-{path.encode().hex()}", partial(text.encode)
    for kind in ("FLAT", "VMFS", "ZERO", "VMFSSPARSE", "SESPARSE", "VMFSRDM"):
        yield f"extent-{kind}", partial(vmdk, text=descriptor(extent=f'RW 20480 {kind} "disk-flat.vmdk" 0'))
    other_image = "8d9e2b5c-3f0a-4c6e-9d54-1f0f4d2a7c11"
    for kind in ("monolithicSparse", "monolithicFlat", "streamOptimized", "vmfs"):
        text = descriptor(kind, f'RW 20480 FLAT "{other_image}" 0')
        yield f"text-without-path-{kind}", partial(text.encode)
    yield "text-with-odd-bytes", partial((descriptor("monolithicFlat") + "# \xff\0").encode, "latin-1")
    yield "text-without-magic", partial(b'version=1\ncreateType="vmfs"\nRW 1 VMFS "a-flat.vmdk"\n'.ljust, 600, b"\0")
    odd = '# \xff\nversion=1\ncreateType="vmfs"\nRW 1 VMFS "a-flat.vmdk"\n'
    yield "text-with-odd-bytes-without-magic", partial(odd.encode, "latin-1")
    yield "text-short", partial(bytes, b"# Disk DescriptorFile\nversion=1\n")
    yield "text-late", partial((b"#" + b"x" * 3000 + b"\n" + descriptor("monolithicFlat").encode()).ljust, 9000)
    yield "two-extents", partial(vmdk, text=descriptor(extent=EXTENT + "\n" + EXTENT))
    yield "no-extent", partial(vmdk, text=descriptor(extent=""))
    hints = {
        "hint": 'parentFileNameHint="/etc/passwd"',
        "hint-without-path": f'parentFileNameHint="{other_image}"',
        "hint-in-a-comment": '# parentFileNameHint="/etc/passwd"',
        "changes": 'changeTrackPath="disk-ctk.vmdk"',
        "second-type": '# createType="vmfs"',
        "second-parent": "parentCID=12345678",
        "other-parent": 'objectParentUri="object://x"',
        "native-parent": 'ddb.nativeParentHint="other.vmdk"',
        "native-parent-cid": 'ddb.nativeParentCID="12345678"',
        "file-key": 'dataFile="other"',
        "path-in-a-key": 'madeBy="/etc/passwd"',
        "windows-path-in-a-key": 'madeBy="c:\\\\disk"',
        "nonsense": "nonsense here",
    }
    for name, line in hints.items():
        yield name, partial(vmdk, text=descriptor(more=line))
    yield "parent-cid", partial(vmdk, text=descriptor().replace("ffffffff", "12345678"))
    for number, line in enumerate(("CID=", "CID=zz", 'CID="12345678"', "CID=g")):
        yield f"cid-{number}", partial(vmdk, text=descriptor().replace("CID=12345678", line))
    yield "without-parent-cid", partial(vmdk, text=descriptor().replace("parentCID=ffffffff\n", ""))
    yield "descriptor-empty", partial(vmdk, text="")
    yield "descriptor-binary", partial(vmdk, text=bytes(range(128, 256)) * 8)
    # goes on where oslo stops to read
    hidden = descriptor().ljust(512, "#") + '\nparentFileNameHint="/etc/passwd"\n'
    yield "descriptor-goes-on", partial(vmdk, text=hidden, pages=1)
    yield "descriptor-elsewhere", partial(vmdk, (28, "<Q", 5))
    yield "descriptor-nowhere", partial(vmdk, (28, "<Q", 0))
    yield "descriptor-without-length", partial(vmdk, (36, "<Q", 0))
    yield "descriptor-huge", partial(vmdk, (36, "<Q", 2**64 - 1))
    yield "without-capacity", partial(vmdk, sectors=0)
    for version in (0, 4, 2**32 - 1):
        yield f"version-{version}", partial(vmdk, (4, "<I", version))
    yield "grains-of-nothing", partial(vmdk, (20, "<Q", 0))
    yield "huge-grains", partial(vmdk, (20, "<Q", 1 << 40))
    yield "tables-of-nothing", partial(vmdk, (44, "<I", 0))
    yield "huge-tables", partial(vmdk, (44, "<I", 513))
    yield "data-beyond", partial(vmdk, (64, "<Q", 1 << 40))
    yield "directory-beyond", partial(vmdk, (56, "<Q", 1 << 40))
    for size in NEAR:
        yield f"sectors-{size}", partial(vmdk, sectors=size)
        yield f"bytes-{size}", partial(vmdk, sectors=size // 512 + 1)
    yield "footer-missing", partial(vmdk, (56, "<Q", 2**64 - 1))
    yield "footer-of-other-size", partial(stream_vmdk, (512 + 12, "<Q", 999))
    yield "footer-without-size", partial(stream_vmdk, (512 + 12, "<Q", 0))
    yield "footer-with-other-descriptor", partial(stream_vmdk, (512 + 28, "<Q", 9))
    yield "footer-of-footer", partial(stream_vmdk, (512 + 56, "<Q", 2**64 - 1))
    yield "footer-unmarked", partial(stream_vmdk, (12, "<I", 0))
    yield "footer-unended", partial(stream_vmdk, (1024, "<Q", 1))
    yield "stream-flat", partial(stream_vmdk, kind="monolithicFlat")
    yield "cowd", partial(b"COWD\1\0\0\0\3\0\0\0".ljust, 4096, b"\0")
    yield "sesparse", partial(struct.pack("<QQQ", 0xCAFEBABE, 0x200000001, 20480).ljust, 4096, b"\0")


def _vdi() -> Files:
    for kind in (0, 3, 4, 2**32 - 1):
        yield f"type-{kind}", partial(vdi, kind=kind)
    yield "link", partial(vdi, (0x1A8, "16s", b"l" * 16))
    yield "parent", partial(vdi, (0x1B8, "16s", b"p" * 16))
    for version in (0, 1, 0x20000):
        yield f"version-{version}", partial(vdi, (0x44, "<I", version))
    yield "odd-sectors", partial(vdi, (0x168, "<I", 4096))
    yield "odd-blocks", partial(vdi, (0x178, "<I", 2 * MIB))
    yield "data-within-a-sector", partial(vdi, (0x158, "<I", 1025))
    yield "map-within-a-sector", partial(vdi, (0x154, "<I", 513))
    yield "blocks-of-nothing", partial(vdi, (0x178, "<I", 0))
    yield "too-few-blocks", partial(vdi, (0x180, "<I", 1))
    yield "huge-map", partial(vdi, (0x180, "<I", 2**32 - 1))
    yield "map-beyond", partial(vdi, (0x154, "<I", 2**32 - 1))
    for size in (1025 * TIB, *NEAR):
        yield f"size-{size}", partial(vdi, (0x170, "<Q", size), (0x178, "<I", 2**32 - 1), (0x180, "<I", 2**32 - 1))


def _luks() -> Files:
    for version in (0, 2, 65535):
        yield f"version-{version}", partial(luks, (6, ">H", version))
    yield "detached", partial(luks, (104, ">I", 0))
    yield "unknown-cipher", partial(luks, (8, "32s", b"rot13"))
    yield "unknown-mode", partial(luks, (40, "32s", b"xts"))
    yield "unknown-hash", partial(luks, (72, "32s", b"crc32"))
    yield "unended-hash", partial(luks, (72, "32s", b"x" * 32))
    yield "odd-key", partial(luks, (108, ">I", 40))
    yield "no-rounds", partial(luks, (164, ">I", 0))
    yield "stripes", partial(luks, (208 + 44, ">I", 1))
    yield "half-a-key", partial(luks, (208, ">I", 1))
    yield "keys-overlap", partial(luks, (208 + 48 + 40, ">I", 9))
    yield "key-over-data", partial(luks, (208 + 40, ">I", 4000))


def _others() -> Files:
    """What no name makes acceptable."""
    yield "qed", partial(bytes, QED)
    yield "qed-backing", partial(put, QED, (16, "<Q", 1), (56, "<I", 64), (60, "<I", 11))
    yield "qed-cut", partial(bytes, QED[:4])
    yield "gpt-flag", partial(gpt, (446, "<B", 0x55))
    yield "gpt-start", partial(gpt, (454, "<I", 9))
    yield "gpt-second-entry", partial(gpt, (446 + 16 + 4, "<B", 0x83))
    yield "gpt-nothing", partial(gpt, (450, "<B", 0))
    yield "large-loader", partial((LOADER + bytes(4 * KIB)).ljust, 2881 * KIB, b"\1")
    yield "large-boot-sector", partial((b"\xeb\x63\x90".ljust(510, b"\xcd") + b"\x55\xaa").ljust, 2881 * KIB, b"\0")
    heads = {
        "qcow2": qcow2()[:440],
        "vmdk": vmdk()[:11000],
        "luks": luks()[:592],
        "qed": QED[:512],
        "vhd": vhd()[:1536],
    }
    for name, head in heads.items():
        yield f"iso-and-{name}", partial(iso, boot=head)
    for name in ("qcow2", "vmdk"):
        yield f"gpt-and-{name}", lambda head=heads[name][:440]: head + gpt()[440:]
    yield "vdi-and-qcow2", partial(qcow2, (0x40, "<I", 0xBEDA107F))
    yield "iso-and-vhdx", lambda: put(vhdx(), (32768, "6s", b"\1CD001"))


GOOD = list(good())
HOSTILE = list(hostile())

if __name__ == "__main__":
    for sample in (*GOOD, *HOSTILE):
        (Path(sys.argv[1]) / str(sample)).write_bytes(sample.make())
