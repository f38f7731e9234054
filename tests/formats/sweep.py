"""Change one field of a good file, and compare what qemu-img says of it with what Calotype says.

A change has a name that holds for any file of the variant: `+1`, `max`, `end` (the length of the file). `verdicts.txt`
has qemu-img's verdict on each; `python -m tests.formats` writes it anew and lists where Calotype differs.
"""

import os
import struct
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calotype import errors
from calotype.images.inspection import FormatRules, Inspection
from calotype.images.stream import BUFFER
from tests.formats.layouts import VARIANTS, Structure, Variant, content

VERDICTS = Path(__file__).with_name("verdicts.txt")

#: Values that mean something to a reader in one of its fields.
WORDS: dict[str, tuple[str, ...]] = {
    "cipher": ("aes", "serpent", "twofish", "cast5", "camellia", "AES"),
    "mode": ("cbc-plain", "cbc-essiv:sha256", "cbc-essiv:sha512", "cbc-essiv", "cbc-essiv:md9", "xts-plain64", "xts-plain", "xts-benbi", "xts", "ecb", "ecb-plain", "ctr-plain64", "xts-plain64:sha256", "XTS-plain64"),
    "hash": ("sha1", "sha224", "sha256", "sha384", "sha512", "md5", "ripemd160", "whirlpool", "SHA256"),
    "creator": ("win ", "vpc ", "vs  ", "tap\0", "vbox", "d2v "),
    "os": ("Mac ",),
}  # fmt: skip
NUMBERS: dict[str, tuple[int, ...]] = {
    "key_bytes": (8, 16, 24, 32, 48, 64, 128),
    "state": (0xDEAD, 0x00AC71F3),
    "stripes": (1, 3999, 4001),
    "payload": (7, 8, 9),
    "offset": (7, 8, 9, 1000, 2016),
    "type": (1, 2, 3, 4, 5, 6),
    "version": (2, 3, 4, 0x10001, 0x10002, 400),
    "cluster_bits": (8, 9, 14, 21, 22),
    "refcount_order": (3, 5, 6, 7),
    "header_length": (72, 103, 104, 105, 112, 120, 128, 4096),
    "incompatible": (1, 2, 3, 4, 8, 16, 32),
    "autoclear": (1, 2, 3),
    "crypt_method": (1, 2, 3),
    "compression": (1, 2),
    "entries": (512, 513),
    "grain": (8, 127, 129),
    "logical": (512, 520, 1024, 4096, 8192),
    "physical": (512, 520, 1024, 4096, 8192),
    "block_size": (512, 513, 4096, 1 << 28, 1 << 29, 3 << 20),
    "flags": (2, 3, 4, 5, 6, 7, 8, 0x10003, 0x20003, 0x30001),
}
FINE = ("0", "1", "-1", "+1", "*2", "/2", "max", "top", "top-1", "flip3")
POWERS = (9, 12, 16, 20, 23, 26, 30, 33, 40, 48, 56, 62)


@dataclass(frozen=True, eq=False)
class Change:
    """`sealed`: the checksum is right again afterwards."""

    variant: Variant
    structure: Structure
    field: str
    offset: int
    layout: str
    value: str
    sealed: bool

    @property
    def place(self) -> str:
        sealed = "=" if self.sealed else ""
        return f"{self.variant.name} {self.structure.name}.{self.field}{sealed}"

    def __str__(self) -> str:
        return f"{self.place} {self.value}"

    def edits(self, data: bytes) -> list[tuple[int, bytes]]:
        """What to write where; nothing if the field has this value."""
        found = []
        for place in self.structure.places:
            at = place + self.offset
            old = data[at : at + struct.calcsize(self.layout)]
            new = self._new(old, data)
            if new == old:
                return []
            if self.sealed and self.structure.seal:
                whole = bytearray(data[place : place + self.structure.length])
                whole[self.offset : self.offset + len(new)] = new
                found.append((place, self.structure.seal(bytes(whole))))
            else:
                found.append((at, new))
        return found

    def _new(self, old: bytes, data: bytes) -> bytes:
        if self.layout.endswith("s"):
            match self.value:
                case "zeros":
                    return bytes(len(old))
                case "ones":
                    return b"\xff" * len(old)
                case "flip":
                    return bytes([old[0] ^ 1]) + old[1:]
                case "unended":
                    return b"x" * len(old)
                case word:
                    return bytes.fromhex(word).ljust(len(old), b"\0")
        number, bits = struct.unpack(self.layout, old)[0], 8 * len(old)
        value = {
            "-1": number - 1,
            "+1": number + 1,
            "*2": number * 2,
            "/2": number // 2,
            "max": (1 << bits) - 1,
            "top": 1 << (bits - 1),
            "top-1": (1 << (bits - 1)) - 1,
            "flip3": number ^ 8,
            "end": len(data),
            "end-1": len(data) - 1,
            "end/512": len(data) // 512,
            "end/512-1": len(data) // 512 - 1,
        }.get(self.value)
        if value is None:
            value = 1 << int(self.value[2:]) if self.value.startswith("2^") else int(self.value)
        return struct.pack(self.layout, value % (1 << bits))


def changes(variant: Variant, data: bytes) -> Iterator[Change]:
    for structure in variant.structures(data):
        for field, offset, layout in structure.each():
            width = struct.calcsize(layout)
            if layout.endswith("s"):
                values: list[str] = ["zeros", "ones", "flip"]
                if field in WORDS:
                    values += ["unended", *(word.encode().hex() for word in WORDS[field])]
            else:
                values = [*FINE, *(f"2^{n}" for n in POWERS if n < 8 * width - 1)]
                values += ["end", "end-1", "end/512", "end/512-1"] if width >= 4 else []
                values += [str(n) for n in NUMBERS.get(field, ()) if n < 1 << 8 * width]
                if field == "sequence":
                    values.remove("/2")  # of two that follow each other: which are equal then, is chance
            for sealed in (False, True) if structure.seal else (False,):
                if sealed and field == "checksum":
                    continue
                # A structure that is not sealed again has a wrong checksum, whatever the value is.
                few = structure.seal is not None and not sealed and field != "checksum"
                for value in dict.fromkeys(values[:2] if few else values):
                    yield Change(variant, structure, field, offset, layout, value, sealed)


class Base:
    """A good file of a variant, in a directory of its own."""

    def __init__(self, variant: Variant, folder: Path) -> None:
        raw = folder / "content"
        if not raw.exists():
            content(raw)
        self.variant = variant
        self.path = folder / variant.name
        variant.make(raw, self.path)
        self.data = bytearray(self.path.read_bytes())
        every = {change: change.edits(self.data) for change in changes(variant, self.data)}
        #: What to write where, by change.
        self.edits = {change: edits for change, edits in every.items() if edits}

    @contextmanager
    def changed(self, edits: Iterable[tuple[int, bytes]]) -> Iterator[None]:
        """`data` with changes in it, for as long as it lasts."""
        kept = [(at, bytes(self.data[at : at + len(new)])) for at, new in edits]
        for at, new in edits:
            self.data[at : at + len(new)] = new
        try:
            yield
        finally:
            for at, old in kept:
                self.data[at : at + len(old)] = old


def asked(driver: str, path: Path) -> bool:
    """Whether qemu-img opens it as what it should be."""
    command = ["qemu-img", "info", "-U", "-f", driver, str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


def told(bases: dict[str, Base], wanted: list[Change], at_once: int = 2) -> list[bool]:
    """What qemu-img says of each, which is whether it opens the file."""

    def one(number: int, change: Change) -> bool:
        base = bases[change.variant.name]
        path = base.path.with_suffix(f".{number % at_once}")
        edits = base.edits[change]
        if not path.exists():
            subprocess.run(["cp", "--sparse=always", base.path, path], check=True)
        with path.open("r+b", buffering=0) as file:
            for at, new in edits:
                os.pwrite(file.fileno(), new, at)
            try:
                return asked(base.variant.driver, path)
            finally:
                for at, new in edits:
                    os.pwrite(file.fileno(), base.data[at : at + len(new)], at)

    def some(worker: int) -> list[bool]:
        return [one(number, wanted[number]) for number in range(worker, len(wanted), at_once)]

    with ThreadPoolExecutor(at_once) as pool:
        parts = list(pool.map(some, range(at_once)))
    return [parts[number % at_once][number // at_once] for number in range(len(wanted))]


def inspected(data: bytes | bytearray | memoryview, declared: str) -> str | None:
    """Why Calotype refuses it; None if it does not."""
    inspection, view = Inspection(declared, FormatRules()), memoryview(data)
    try:
        for at in range(0, len(view), BUFFER):
            inspection.feed(view[at : at + BUFFER])
            if inspection.settled:
                break
        inspection.finish(len(view))
    except errors.ContentRejected as exc:
        return str(exc)
    return None


def ours(base: Base, change: Change) -> str | None:
    with base.changed(base.edits[change]):
        return inspected(base.data, base.variant.declared)


def bases(folder: Path, variants: Iterable[Variant] = VARIANTS) -> dict[str, Base]:
    return {variant.name: Base(variant, folder) for variant in variants}


def all_changes(made: dict[str, Base]) -> list[Change]:
    return [change for base in made.values() for change in base.edits]


# --- the table -----------------------------------------------------------------------------------------------


def read() -> dict[str, bool]:
    """Of each change, by its name, whether qemu-img opens the file."""
    found = {}
    for line in VERDICTS.read_text().splitlines():
        if not line.startswith("#"):
            place, opened, refused = line.split("|")
            found |= {f"{place.strip()} {value}": True for value in opened.split()}
            found |= {f"{place.strip()} {value}": False for value in refused.split()}
    return found


def write(verdicts: dict[Change, bool], version: str) -> None:
    lines = [f"# Written by `make formats`: field | values that {version} opens | values that it refuses"]
    places: dict[str, tuple[list[str], list[str]]] = {}
    for change, opened in verdicts.items():
        places.setdefault(change.place, ([], []))[not opened].append(change.value)
    lines += [f"{place} | {' '.join(opened)} | {' '.join(refused)}" for place, (opened, refused) in places.items()]
    VERDICTS.write_text("\n".join(lines) + "\n")
