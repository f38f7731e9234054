"""What the headers of each format hold, field by field, and good files of each that qemu-img makes.

The layouts are those of the formats' own documents. `sweep.py` changes one field at a time.
"""

import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calotype.images.formats.crc32c import crc32c
from tests.images.samples import KIB, MIB, put, stream_vmdk, summed

Seal = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Structure:
    """Fields that lie one behind the other, at `places` that hold the same: a change is made at each of them."""

    name: str
    places: tuple[int, ...]
    fields: str  #: each as `name:layout`, the first one with the byte order
    seal: Seal | None = None  #: gives `length` bytes of it the checksum that belongs to them
    length: int = 0

    def each(self) -> list[tuple[str, int, str]]:
        """Each field's name, offset and layout, but for those named `-`."""
        order, at, found = self.fields[0], 0, []
        for field in self.fields[1:].split():
            name, layout = field.split(":")
            if name != "-":
                found.append((name, at, order + layout))
            at += struct.calcsize(order + layout)
        return found


@dataclass(frozen=True)
class Variant:
    """One way to make a file of a format. `driver` is qemu-img's name for the format, `declared` ours."""

    name: str
    declared: str
    driver: str
    make: Callable[[Path, Path], None]  #: (content, file)
    structures: Callable[[bytes], list[Structure]]


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def converted(driver: str, options: str, content: Path, path: Path) -> None:
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *(["-o", options] if options else []), content, path)


# --- qcow2 ---------------------------------------------------------------------------------------------------

QCOW2_2 = (
    "> magic:4s version:I backing_offset:Q backing_size:I cluster_bits:I size:Q crypt_method:I l1_size:I l1_offset:Q "
    "refcount_offset:Q refcount_clusters:I snapshots:I snapshots_offset:Q"
)
QCOW2_3 = QCOW2_2 + " incompatible:Q compatible:Q autoclear:Q refcount_order:I header_length:I compression:B padding:7s"
FEATURES = (
    (32, "crypt_method:I"),
    (60, "snapshots:I snapshots_offset:Q incompatible:Q compatible:Q autoclear:Q"),
    (100, "header_length:I compression:B"),
)
EXTENSIONS = {
    0x0537BE77: "crypto",
    0x23852875: "bitmaps",
    0x6803F857: "feature_names",
    0xE2792ACA: "backing_format",
}


def extensions(data: bytes) -> dict[str, int]:
    """Where the extensions of a qcow2 are; `end` is the last one."""
    at, found = struct.unpack_from(">I", data, 100)[0], {}
    while True:
        kind, length = struct.unpack_from(">II", data, at)
        found[EXTENSIONS.get(kind, "end" if kind == 0 else hex(kind))] = at
        if kind == 0:
            return found
        at += 8 + (length + 7) // 8 * 8


def qcow2(version: int, *parts: str, data: bytes) -> list[Structure]:
    """`parts` of it: header, and whichever extensions or tables."""
    found = []
    for part in parts:
        match part:
            case "header":
                found.append(Structure("header", (0,), QCOW2_3 if version == 3 else QCOW2_2))
            case "features":  # and what else of the header has to do with those before it
                features = [Structure("header", (at,), "> " + field) for at, field in FEATURES]
                found.extend(features)
            case "snapshot":
                at = struct.unpack_from(">Q", data, 64)[0]
                fields = (
                    "> l1_offset:Q l1_size:I id_size:H name_size:H seconds:I nanoseconds:I clock:Q state:I extra_size:I"
                )
                found.append(Structure("snapshot", (at,), fields))
            case "luks":
                at = struct.unpack_from(">Q", data, extensions(data)["crypto"] + 8)[0]
                found.extend(luks(data, at))
            case "crypto":
                at = extensions(data)["crypto"]
                found.append(Structure("crypto", (at,), "> type:I length:I offset:Q size:Q"))
            case "bitmaps":
                fields = "> type:I length:I bitmaps:I reserved:I directory_size:Q directory_offset:Q"
                found.append(Structure("bitmaps", (extensions(data)["bitmaps"],), fields))
                at = struct.unpack_from(">Q", data, extensions(data)["bitmaps"] + 24)[0]
                fields = "> table_offset:Q table_size:I bits:I kind:B granularity:B name_size:H extra_size:I"
                found.append(Structure("bitmap", (at,), fields))
            case _:
                found.append(Structure(part, (extensions(data)[part],), "> type:I length:I"))
    return found


def _encrypted(content: Path, path: Path) -> None:
    secret = ("--object", "secret,id=s,data=secret")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    run("qemu-img", "create", *secret, "-f", "qcow2", "-o", options, path, "4M")


def _with_bitmap(content: Path, path: Path) -> None:
    converted("qcow2", "", content, path)
    run("qemu-img", "bitmap", "--add", path, "changed")


def _with_snapshot(content: Path, path: Path) -> None:
    converted("qcow2", "", content, path)
    run("qemu-img", "snapshot", "-c", "before", path)


# --- vhd -----------------------------------------------------------------------------------------------------

VHD_FOOTER = (
    "> cookie:8s features:I version:I data_offset:Q timestamp:I creator:4s creator_version:I os:4s original_size:Q "
    "current_size:Q cylinders:H heads:B sectors:B type:I checksum:I uuid:16s saved:B reserved:427s"
)
VHD_HEADER = (
    "> cookie:8s data_offset:Q table_offset:Q version:I entries:I block_size:I checksum:I parent:16s timestamp:I "
    "reserved:I parent_name:512s locators:192s reserved2:256s"
)


def vhd(data: bytes) -> list[Structure]:
    seal = partial(summed, offset=64)
    end = len(data) - 512
    if not data.startswith(b"conectix"):
        return [Structure("footer", (end,), VHD_FOOTER, seal, 512)]
    return [
        Structure("footers", (0, end), VHD_FOOTER, seal, 512),
        Structure("header", (512,), VHD_HEADER, partial(summed, offset=36), 1024),
        Structure("table", (1536,), "> first:I"),
    ]


# --- vhdx ----------------------------------------------------------------------------------------------------

VHDX_HEADER = (
    "< signature:4s checksum:I sequence:Q file_id:16s data_id:16s log_id:16s log_version:H version:H log_length:I "
    "log_offset:Q reserved:4016s"
)
VHDX_REGIONS = "< signature:4s checksum:I entries:I reserved:I " + " ".join(
    f"guid{n}:16s offset{n}:Q length{n}:I required{n}:I" for n in (1, 2)
)
VHDX_METADATA = "< signature:8s reserved:H entries:H reserved2:20s " + " ".join(
    f"guid{n}:16s offset{n}:I length{n}:I flags{n}:I reserved{n}:I" for n in range(1, 6)
)


def _crc(data: bytes) -> bytes:
    data = put(data, (4, "<I", 0))
    return put(data, (4, "<I", crc32c(data)))


def vhdx(data: bytes, *names: str) -> list[Structure]:
    regions = dict(struct.iter_unpack("<16sQ8x", data[192 * KIB + 16 : 192 * KIB + 80]))
    table, meta = regions.values()  # qemu-img writes them in this order
    items = data[meta + 32 : meta + 32 + 5 * 32]
    places = [meta + offset for _, offset in struct.iter_unpack("<16sI12x", items)]
    items_ = ("< block_size:I flags:I", "< size:Q", "< page83:16s", "< logical:I", "< physical:I")
    parts = [
        Structure("headers", (64 * KIB, 128 * KIB), VHDX_HEADER, _crc, 4 * KIB),
        Structure("header1", (64 * KIB,), VHDX_HEADER, _crc, 4 * KIB),
        Structure("header2", (128 * KIB,), VHDX_HEADER, _crc, 4 * KIB),
        Structure("regions", (192 * KIB, 256 * KIB), VHDX_REGIONS, _crc, 64 * KIB),
        Structure("metadata", (meta,), VHDX_METADATA),
        *(Structure("item", (at,), fields) for at, fields in zip(places, items_, strict=True)),
        Structure("blocks", (table,), "< first:Q"),
        Structure("signature", (0,), "< file:8s creator:512s"),
    ]
    return [part for part in parts if not names or part.name in names]


# --- vmdk, vdi, luks -----------------------------------------------------------------------------------------

VMDK_HEADER = (
    "< magic:4s version:I flags:I capacity:Q grain:Q descriptor_offset:Q descriptor_size:Q entries:I "
    "spare_directory:Q directory:Q overhead:Q unclean:B newlines:4s compression:H padding:433s"
)


def vmdk(data: bytes) -> list[Structure]:
    if struct.unpack_from("<Q", data, 56)[0] == 2**64 - 1:
        at = len(data) - 1536
        return [
            Structure("footer", (at + 512,), VMDK_HEADER),
            Structure("footer_marker", (at,), "< value:Q size:I type:I padding:496s"),
            Structure("end_marker", (at + 1024,), "< value:Q size:I type:I padding:496s"),
        ]
    return [Structure("header", (0,), VMDK_HEADER)]


def _with_footer(content: Path, path: Path) -> None:
    """As VMware writes them: qemu-img knows the length beforehand, and writes no footer."""
    path.write_bytes(stream_vmdk())


VDI_HEADER = (
    "< text:64s signature:I version:I header_size:I type:I flags:I comment:256s blocks_offset:I data_offset:I "
    "cylinders:I heads:I sectors:I sector_size:I unused:I size:Q block_size:I extra:I blocks:I allocated:I uuid:16s "
    "snapshot:16s link:16s parent:16s padding:56s"
)


def vdi(data: bytes) -> list[Structure]:
    return [Structure("header", (0,), VDI_HEADER), Structure("map", (512,), "< first:I")]


LUKS_HEADER = (
    "> magic:6s version:H cipher:32s mode:32s hash:32s payload:I key_bytes:I digest:20s salt:32s iterations:I uuid:40s"
)
LUKS_SLOT = "> state:I iterations:I salt:32s offset:I stripes:I"


def luks(data: bytes, at: int = 0) -> list[Structure]:
    slots = [(0, "slot0"), (7, "slot7")]
    return [
        Structure("luks", (at,), LUKS_HEADER),
        *(Structure(name, (at + 208 + 48 * n,), LUKS_SLOT) for n, name in slots),
    ]


def _luks(content: Path, path: Path, options: str = "") -> None:
    secret = ("--object", "secret,id=s,data=secret")
    run("qemu-img", "create", *secret, "-f", "luks", "-o", f"key-secret=s,iter-time=10{options}", path, "1M")


_ESSIV = ",cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256"


def _variant(name: str, options: str, structures: Callable[[bytes], list[Structure]]) -> Variant:
    driver = name.split("-")[0]
    return Variant(name, {"vpc": "vhd"}.get(driver, driver), driver, partial(converted, driver, options), structures)


def _qcow2(version: int, *parts: str) -> Callable[[bytes], list[Structure]]:
    return lambda data: qcow2(version, *parts, data=data)


VARIANTS = (
    _variant("qcow2-2", "compat=0.10", _qcow2(2, "header")),
    _variant("qcow2-3", "", _qcow2(3, "header", "feature_names", "end")),
    _variant("qcow2-zstd", "compression_type=zstd", _qcow2(3, "features")),
    _variant("qcow2-small", "cluster_size=512,refcount_bits=64", _qcow2(3, "header")),
    Variant("qcow2-luks", "qcow2", "qcow2", _encrypted, _qcow2(3, "features", "crypto", "luks")),
    Variant("qcow2-bitmap", "qcow2", "qcow2", _with_bitmap, _qcow2(3, "bitmaps")),
    Variant("qcow2-snapshot", "qcow2", "qcow2", _with_snapshot, _qcow2(3, "features", "snapshot")),
    _variant("vpc-dynamic", "subformat=dynamic,force_size=on", vhd),
    _variant("vpc-geometry", "subformat=dynamic", lambda data: vhd(data)[:1]),
    _variant("vpc-fixed", "subformat=fixed,force_size=on", vhd),
    _variant("vhdx-dynamic", "subformat=dynamic", vhdx),
    _variant("vhdx-fixed", "subformat=fixed,block_size=1048576", lambda data: vhdx(data, "item", "blocks")),
    _variant("vmdk-sparse", "subformat=monolithicSparse", vmdk),
    _variant("vmdk-stream", "subformat=streamOptimized", vmdk),
    Variant("vmdk-footer", "vmdk", "vmdk", _with_footer, vmdk),
    _variant("vdi-dynamic", "", vdi),
    _variant("vdi-static", "static=on", lambda data: vdi(data)[1:]),
    Variant("luks-1", "luks", "luks", _luks, luks),
    Variant("luks-essiv", "luks", "luks", partial(_luks, options=_ESSIV), lambda data: luks(data)[:1]),
)


def content(path: Path) -> None:
    """4 MiB of a disk with something in it."""
    data = bytearray(4 * MIB)
    data[:MIB] = bytes(range(256)) * (MIB // 256)
    data[3 * MIB : 3 * MIB + 9] = b"something"
    data[510:512] = bytes(2)
    path.write_bytes(data)
