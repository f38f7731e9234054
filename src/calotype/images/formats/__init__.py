"""What a format's header must hold for its data to be one disk that stands alone, and one that a reader opens.

oslo.utils' inspectors tell formats by their signatures and know some dangers. The classes here, a module for each
format, add to them what they let through: parents of differencing disks, descriptors that name other files, tables no
reader would follow, and values that QEMU does not open. `ALL` has one inspector a format; `inspection.py` feeds them
and gives the verdict. An inspector holds at most a few hundred KiB (vmdk's descriptor, up to 1 MiB, is the largest) and
reads no file; longer tables it looks through as they pass.
"""

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.discs import ISO
from calotype.images.formats.luks import LUKS
from calotype.images.formats.partitions import GPT
from calotype.images.formats.qcow2 import QCOW2
from calotype.images.formats.vdi import VDI
from calotype.images.formats.vhd import VHD
from calotype.images.formats.vhdx import VHDX
from calotype.images.formats.vmdk import VMDK

#: Every format but raw, by the name that disk_format has for it.
ALL: dict[str, type[oslo.FileInspector]] = {
    "qcow2": QCOW2,
    "vhd": VHD,
    "vhdx": VHDX,
    "vmdk": VMDK,
    "vdi": VDI,
    "qed": oslo.QEDInspector,
    "iso": ISO,
    "gpt": GPT,
    "luks": LUKS,
}
