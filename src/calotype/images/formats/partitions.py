"""Disks with partitions, which are raw; and what begins with the same signature and is none: boot sectors."""

import struct

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import Checked, unless


class GPT(Checked, oslo.GPTInspector):
    """A partition table of DOS, or the one that protects a GPT; boot sectors of file systems have the same signature.

    No hypervisor reads it, so it need only look like one: what a guest does with its values is the guest's matter.
    """

    JUMPS = (0xEB, 0xE9)
    PROTECTIVE = 0xEE
    #: Of file systems that leave their first sector to a loader: where, and what.
    SUPERBLOCKS = (
        (0x438, b"\x53\xef"),  # ext2, ext3, ext4
        (0x400, b"\x10\x20\xf5\xf2"),  # f2fs
        (0x400, b"H+\0\x04"),  # HFS+
        (0x400, b"HX\0\x05"),
        (0x8000, b"JFS1"),
        (0x10040, b"_BHRfS_M"),  # btrfs
    )

    def _initialize(self) -> None:
        super()._initialize()
        for where, mark in self.SUPERBLOCKS:
            self.new_region(mark.hex(), oslo.CaptureRegion(where, len(mark)))

    @property
    def complete(self) -> bool:
        """Short data has no superblock, and what has no signature needs none."""
        if not self.region("mbr").complete:
            return False
        return self._finished or not self.format_match or super().complete

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

    def _file_system(self) -> bool:
        """Whether the whole disk is one file system, with a loader where a partition table would be."""
        return any(self.region(mark.hex()).data == mark for _, mark in self.SUPERBLOCKS)

    def check_mbr_partitions(self) -> None:
        sector = self.region("mbr").data
        if self._file_system() or not any(sector[446:510]):
            return  # a table without partitions is one, too
        used = 0
        for flag, kind, start, length in struct.iter_unpack("<B3xB3xII", sector[446:510]):
            unless(flag in (0, 0x80), "a partition has a flag that there is not")
            if kind:
                used += 1
                unless(length > 0, "a partition has no length")
                unless(kind != self.PROTECTIVE or start == 1, "the partition that protects a GPT is not in its place")
        unless(used > 0, "its partition table has something in it, but no partition")
