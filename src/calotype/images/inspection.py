"""Decides which format image data has, whether the image declares that format, and whether the data is safe.

`stream.py` feeds an `Inspection` the bytes; `formats/` knows the formats. `docs/operate/formats.md` tells operators
what is accepted. The data is never opened as a disk. Only headers are kept, less than 4 MiB for any data.
"""

import logging
from dataclasses import dataclass

from oslo_utils.imageutils import format_inspector

from calotype import errors
from calotype.images import formats
from calotype.images.formats.partitions import GPT
from calotype.images.formats.vhd import VHD
from calotype.images.formats.vmdk import VMDK

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FormatRules:
    """The operator's rules about formats. `gpt_nonfatal` has the names of safety checks of gpt that do not reject.

    With `plain_passes`, data without the signature of any format is accepted as any declared format.
    """

    require_match: bool = True
    plain_passes: bool = False
    gpt_nonfatal: frozenset[str] = frozenset()


#: The size of pieces for an undecided inspector: only between two pieces it can choose where to look next.
_STEP = 64 << 10
#: The headers that tell the formats fit into this size. Shorter data is padded with zeros, as readers of disks do.
_SECTOR = 512
#: The largest floppy; a boot sector on one need not hold a partition table.
_FLOPPY = 2880 << 10

#: What a user can do about a finding, by the name of the check.
_ADVICE = {
    "backing_file": "flatten it where its backing file is: `qemu-img convert -O qcow2 OLD NEW`",
    "data_file": "bring it into one file where its data file is: `qemu-img convert -O qcow2 OLD NEW`",
    "descriptor": "bring it into one file: `qemu-img convert -O vmdk -o subformat=streamOptimized OLD NEW`",
    "detached": "upload header and data in one",
    "log": "have its log replayed, then upload it again: `qemu-img check -r all FILE`",
    "mbr": "repair its partition table, or wrap it: `qemu-img convert -f raw -O qcow2 OLD NEW`, with disk_format qcow2",
    "parent": "merge it into its parent, or convert it to one that stands alone, where both are",
    "version": "convert it to version 1",
}
_CONVERT = "convert it where a reader opens it: `qemu-img convert -O qcow2 OLD NEW`, with disk_format qcow2"


class Inspection:
    """Finds out which format data has, and whether it is the declared one and safe.

    The inspectors read hostile data, so any exception of theirs is a finding about the data. If an inspector recognises
    its signature but fails later, the data cannot be proved safe and is rejected.
    """

    def __init__(self, declared: str, rules: FormatRules) -> None:
        self._declared = declared
        self._rules = rules
        self._inspectors: list[format_inspector.FileInspector] = []
        self._fed: list[format_inspector.FileInspector] = []
        self._started = False
        self._broken: set[str] = set()  # inspectors that raised while they were fed
        self._unclear: set[str] = set()  # inspectors that raised when asked whether they match
        self._started = False
        self._seen = 0
        self._held = bytearray()  # bytes that are too few to feed yet
        self._judged = False
        self._trusted = False
        self._found: list[format_inspector.FileInspector] = []
        self._detected = "raw"

    @property
    def settled(self) -> bool:
        """Whether more data cannot change the verdict. Then `finish` may be called early, with the final size."""
        return self._trusted

    def feed(self, piece: memoryview) -> None:
        """Take the next piece, of any size. Raises `ContentRejected` as soon as the data is certain to be rejected.

        Inspectors get pieces of at least `_STEP` bytes: in smaller ones some of them miss signatures.
        """
        self._seen += len(piece)
        if self._started and not self._fed:
            return
        if self._held:
            more = _STEP - len(self._held)
            self._held += piece[:more]
            piece = piece[more:]
            if len(self._held) == _STEP:
                self._look_at_held()
        if len(piece) >= _STEP:
            self._inspect(piece)
        else:
            self._held += piece

    def _look_at_held(self) -> None:
        held, self._held = self._held, bytearray()
        self._inspect(memoryview(held))

    def _start(self) -> None:
        """Make the inspectors. This waits until there is data for them, because they take more memory than it does."""
        self._started = True
        self._inspectors = [make() for make in formats.ALL.values()]
        for one in self._inspectors:
            if isinstance(one, VHD):
                one.fixed = self._declared == "vhd"
        self._fed = list(self._inspectors)

    def _inspect(self, piece: memoryview) -> None:
        if not self._started:
            self._start()
        self._feed(piece)
        if not self._judged and not any(self._is_undecided(one) for one in self._inspectors):
            self._judge()
        if (
            self._judged
            and not self._trusted
            and all(self._complete(one) for one in self._found)
            and not self._floppy()
        ):
            self._trust()

    def finish(self, size: int) -> int | None:
        """After the last byte: raise `ContentRejected`, or return the virtual size."""
        if self._held or not self._started:
            self._look_at_held()
        if size < _SECTOR:
            self._feed(memoryview(bytes(_SECTOR - size)))
        for one in self._inspectors:
            one.finish()
        self._seen = size
        if not self._judged:
            self._judge()
        if not self._trusted:
            self._trust()
        self._refuse_truncated(size)
        return self._virtual_size(size)

    def _feed(self, piece: memoryview) -> None:
        for one in self._fed:
            try:
                if one.complete or isinstance(one, VMDK):
                    one.eat_chunk(piece)  # type: ignore[arg-type]  # any buffer will do
                else:
                    for at in range(0, len(piece), _STEP):
                        one.eat_chunk(piece[at : at + _STEP])  # type: ignore[arg-type]
                        if at == 0 and not self._started and one.complete and not one.format_match:
                            break
            except Exception as exc:  # noqa: BLE001 - hostile data; see the class
                LOG.debug("the data cannot be read as %s: %s", one.NAME, exc)
                self._broken.add(one.NAME)
        self._started = True
        self._fed = [
            one for one in self._fed if one.NAME not in self._broken and (self._matches(one) or not one.complete)
        ]

    def _complete(self, one: format_inspector.FileInspector) -> bool:
        return one.NAME in self._broken or one.complete

    def _is_undecided(self, one: format_inspector.FileInspector) -> bool:
        """Whether this inspector may still match if more data comes."""
        return not self._complete(one) and not self._matches(one)

    def _matches(self, one: format_inspector.FileInspector) -> bool:
        try:
            return one.format_match
        except Exception as exc:  # noqa: BLE001 - hostile data
            LOG.debug("the data may or may not be %s: %s", one.NAME, exc)
            self._unclear.add(one.NAME)
            return False

    def _judge(self) -> None:
        """Decide the format, and raise unless it is the declared one."""
        self._judged = True
        self._unclear.clear()
        self._found = [one for one in self._inspectors if self._matches(one)]
        self._inspectors = self._fed = self._found  # the others keep up to 100 KiB of what they saw
        names = {one.NAME for one in self._found}
        if names == {"iso", "gpt"}:
            # a hybrid ISO also boots from a USB stick: its partition table would fail the checks of gpt
            self._found = [one for one in self._found if one.NAME == "iso"]
            names = {"iso"}
        if "vhd" in names and names <= {"vhd", "iso", "gpt"}:
            # a fixed VHD begins with the raw disk, which may look like iso or gpt
            fixed: list[format_inspector.FileInspector] = [
                one for one in self._found if isinstance(one, VHD) and not one.dynamic
            ]
            self._found = fixed or self._found
            names = {one.NAME for one in self._found}
        if self._unclear or len(names) > 1:
            self._detected = "unclear"
            either = ", ".join(sorted(names | self._unclear))
            self._mismatch(
                f"the data cannot be told to be one format (it may be {either}); convert it to plain {self._declared}"
            )
            return
        self._detected = names.pop() if names else "raw"
        declared, detected = self._declared, self._detected
        plain = detected in ("raw", "gpt")  # a disk with partitions is as raw as one without
        if detected == declared or (plain and (declared == "raw" or declared not in formats.ALL)):
            return
        if declared == "raw":
            LOG.warning("the data of an image is %s, but its disk_format says raw", detected)
        elif detected == "raw" and self._rules.plain_passes:
            LOG.warning("the data of an image has the signature of no format, but its disk_format says %s", declared)
        elif detected == "raw":
            self._mismatch(
                f"the data is not {declared}, as disk_format says: it has the signature of no known format; "
                f"set disk_format to what it is, or upload {declared} data"
            )
        else:
            self._mismatch(
                f"the data is {detected}, but disk_format says {declared}; set disk_format to {detected}, "
                f"or upload {declared} data"
            )

    def _mismatch(self, message: str) -> None:
        if self._rules.require_match:
            raise errors.ContentRejected(message)
        LOG.warning("accepted, because require_image_format_match is off: %s", message)

    def _trust(self) -> None:
        """Raise unless each format that was found passes its safety checks."""
        self._trusted = True
        for one in self._found:
            excused: frozenset[str] = frozenset()
            if one.NAME == "gpt":
                excused = self._rules.gpt_nonfatal
                if self._declared in ("aki", "ari"):
                    excused |= {"mbr"}  # the boot sector of a kernel looks like a partition table
                if self._floppy():
                    excused |= {"mbr"}
            try:
                if one.NAME in self._broken:
                    raise format_inspector.ImageFormatError("reading it failed")
                one.safety_check()
            except format_inspector.SafetyCheckFailed as exc:
                failed = sorted(set(exc.failures) - excused)
                if failed:
                    found = "; ".join(dict.fromkeys(str(exc.failures[name]) for name in failed))
                    advice = "; or ".join(dict.fromkeys(_ADVICE.get(name, _CONVERT) for name in failed))
                    raise errors.ContentRejected(
                        f"the data is {one.NAME} and not safe to use: {found} ({', '.join(failed)}); {advice}"
                    ) from exc
            except Exception as exc:
                raise errors.ContentRejected(
                    f"the data is {one.NAME}, but damaged or incomplete, so that it cannot be proved safe; {_CONVERT}"
                ) from exc

    def _floppy(self) -> bool:
        """Whether the data so far may be a bootable floppy."""
        one = self._found[0] if len(self._found) == 1 else None
        return isinstance(one, GPT) and one.boots and self._seen <= _FLOPPY

    def _refuse_truncated(self, size: int) -> None:
        for one in self._found:
            least = getattr(one, "least_size", int)()
            if size < least:
                raise errors.ContentRejected(
                    f"the data is {one.NAME}, but ends after {size} bytes where its header needs {least}; "
                    "upload all of it, or convert it again"
                )

    def _virtual_size(self, size: int) -> int | None:
        if self._declared == "raw":
            return size or None
        if self._detected != self._declared or not self._found:
            return None
        try:
            virtual: int = self._found[0].virtual_size
        except Exception as exc:  # noqa: BLE001 - hostile data
            LOG.debug("no virtual size: %s", exc)
            self._mismatch(f"the {self._declared} data does not tell the size of its disk; convert it again")
            return None
        return virtual if virtual > 0 else None
