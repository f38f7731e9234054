"""LUKS of version 1, on its own and within qcow2."""

import re
import struct

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import Checked, unless

LENGTH = 592
SECTOR = 512
#: Material of a key takes a whole number of so many sectors.
ALIGNED = 8
#: Where material of keys may begin: behind the header, as it is padded.
FIRST = 4096 // SECTOR
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD
STRIPES = 4000

#: Bytes of a key, by cipher; what QEMU can open.
CIPHERS = {
    b"aes": (16, 24, 32),
    b"cast5": (16,),
    b"serpent": (16, 24, 32),
    b"twofish": (16, 24, 32),
}
#: Lengths of digests, in bytes.
HASHES = {b"md5": 16, b"ripemd160": 20, b"sha1": 20, b"sha224": 28, b"sha256": 32, b"sha384": 48, b"sha512": 64}
MODE = re.compile(rb"(ecb|cbc|xts|ctr)-(plain|plain64|essiv)(?::(\w+))?")


def check_header(head: bytes | bytearray) -> None:
    """Raise `SafetyViolation` unless a reader finds its way from this header to keys and data."""
    cipher, mode, digest, payload, width = struct.unpack_from(">32s32s32sII", head, 8)
    unless(all(b"\0" in name for name in (cipher, mode, digest)), "the name of its cipher or hash does not end")
    cipher, mode, digest = (name.partition(b"\0")[0] for name in (cipher, mode, digest))
    found = MODE.fullmatch(mode)
    unless(cipher in CIPHERS and found is not None, "its cipher or the mode of that is not known")
    assert found is not None
    unless(digest in HASHES, "its hash is not known")
    essiv = found[2] == b"essiv"
    unless(found[3] in HASHES or (found[3] is None and not essiv), "the mode of its cipher is not known")
    widths = CIPHERS[cipher]
    # With essiv the digest is the key of a cipher of the same family.
    unless(not essiv or HASHES[found[3]] in widths, "no cipher has a key as long as the digest in its mode")
    unless(width in ([2 * one for one in widths] if found[1] == b"xts" else widths), "its key has an odd length")
    unless(int.from_bytes(head[164:168]) > 0, "it derives its key in no rounds")
    unless(payload >= FIRST, "its data begins within its header")
    taken: list[tuple[int, int]] = []
    sectors = -(-width * STRIPES // (SECTOR * ALIGNED)) * ALIGNED
    for state, rounds, begin, stripes in struct.iter_unpack(">II32xII", head[208:LENGTH]):
        unless(state in (ENABLED, DISABLED), "one of its keys is neither in use nor free")
        unless(stripes == STRIPES, "one of its keys is not in 4000 stripes")
        unless(begin >= FIRST and begin + sectors <= payload, "one of its keys lies within its header or its data")
        unless(state == DISABLED or rounds > 0, "one of its keys is derived in no rounds")
        unless(all(begin + sectors <= one or begin >= end for one, end in taken), "two of its keys overlap")
        taken.append((begin, begin + sectors))


class LUKS(Checked, oslo.LUKSInspector):
    CHECKS = ("detached", "keys")

    def check_version(self) -> None:
        unless(self.header_items["version"] == 1, "only version 1 is known")

    def check_detached(self) -> None:
        unless(self.header_items["payload_offset"] > 0, "its data is elsewhere")

    def check_keys(self) -> None:
        if self.header_items["version"] == 1:
            check_header(self.region("header").data)

    def least_size(self) -> int:
        return int(self.header_items["payload_offset"]) * SECTOR + 1
