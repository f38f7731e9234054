"""VDI, VirtualBox's format. The bounds are those of QEMU, which opens nothing beyond them."""

import struct

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import MIB, TIB, Checked, at, unless


class VDI(Checked, oslo.VDIInspector):
    CHECKS = ("parent", "tables", "size")
    LARGEST = 1024 * TIB
    MOST_BLOCKS = 0x3FFFFFFF

    def check_parent(self) -> None:
        head = self.region("header").data
        unless(at("<I", head, 0x44) == 0x10001, "only version 1.1 is known")
        unless(at("<I", head, 0x4C) in (1, 2), "it is not a disk that stands alone")
        unless(not any(head[0x1A8:0x1C8]), "it has a parent")

    def check_tables(self) -> None:
        head = self.region("header").data
        blocks, data = struct.unpack_from("<II", head, 0x154)
        unless(blocks >= 0x1C8, "its map of blocks lies in its header")
        unless(blocks % 512 == 0 and data % 512 == 0, "its map of blocks or its data begins within a sector")
        unless(at("<I", head, 0x168) == 512, "its sectors have not 512 bytes")
        unless(at("<I", head, 0x178) == MIB, "its blocks have not 1 MiB")

    def check_size(self) -> None:
        block, _extra, blocks = struct.unpack_from("<III", self.region("header").data, 0x178)
        unless(self.virtual_size <= self.LARGEST, "no such disk is as large")
        unless(blocks <= self.MOST_BLOCKS, "no such disk has as many blocks")
        unless(self.virtual_size <= block * blocks, "it has fewer blocks than its size needs")

    def least_size(self) -> int:
        head = self.region("header").data
        return int(at("<I", head, 0x154) + 4 * at("<I", head, 0x180))
