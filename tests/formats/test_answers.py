"""What an answer advises works: the command in it, typed as it stands, makes a file that is accepted."""

import re
import shlex
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.layouts import content, converted, run, vhdx
from tests.formats.sweep import asked, inspected
from tests.images import samples
from tests.images.samples import GOOD, KIB, MIB, Sample


def raw(folder: Path) -> Path:
    path = folder / "content"
    content(path)
    return path


def backed(folder: Path) -> Path:
    run("qemu-img", "create", "-f", "qcow2", "-b", raw(folder), "-F", "raw", folder / "old")
    return folder / "old"


def with_data_file(folder: Path) -> Path:
    converted("qcow2", f"data_file={folder / 'data'}", raw(folder), folder / "old")
    return folder / "old"


def extended(folder: Path) -> Path:
    converted("qcow2", "extended_l2=on,cluster_size=64k", raw(folder), folder / "old")
    return folder / "old"


def flat(folder: Path) -> Path:
    converted("vmdk", "subformat=monolithicFlat", raw(folder), folder / "old")
    return folder / "old"


def with_log(folder: Path) -> Path:
    """One entry, which has 4 KiB of nothing in use set to zeros."""
    converted("vhdx", "", raw(folder), folder / "old")
    data, log = (folder / "old").read_bytes(), b"l" * 16
    headers = next(one for one in vhdx(data) if one.name == "headers")
    for place in headers.places:
        head = data[place : place + 48] + log + data[place + 64 : place + headers.length]
        assert headers.seal is not None
        data = data[:place] + headers.seal(head) + data[place + headers.length :]
    begin = struct.unpack_from("<Q", data, headers.places[0] + 72)[0]
    entry = struct.pack("<4sIIIQII16sQQ", b"loge", 0, 4 * KIB, 0, 1, 1, 0, log, len(data), len(data))
    entry += struct.pack("<4s4xQQQ", b"zero", 4 * KIB, 512 * KIB, 1)
    entry = samples.vhdx_part(entry.ljust(4 * KIB, b"\0"), 4 * KIB)
    (folder / "old").write_bytes(data[:begin] + entry + data[begin + len(entry) :])
    return folder / "old"


def written(make: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "old").write_bytes(make())
        return folder / "old"

    return write


def sparse_vmdk(folder: Path, more: bytes) -> Path:
    converted("vmdk", "", raw(folder), folder / "old")
    data = (folder / "old").read_bytes()
    begin = data.index(b"# Disk Desc")
    text = data[begin : data.index(b"\0", begin)] + more
    (folder / "old").write_bytes(data[:begin] + text + data[begin + len(text) :])
    return folder / "old"


ADVISED = {
    "backing-file": (backed, "qcow2", "it names a backing file (backing_file)"),
    "data-file": (with_data_file, "qcow2", "another file"),
    "extended-l2": (extended, "qcow2", "it has extended L2 entries (unknown_features)"),
    "flat": (flat, "vmdk", "it is part of a disk of many files (descriptor)"),
    "log": (with_log, "vhdx", "its log is not empty (log)"),
    "key": (lambda folder: sparse_vmdk(folder, b'\nmadeBy="/etc/x"\n'), "vmdk", "a key of its descriptor has a path"),
    "changes": (
        lambda folder: sparse_vmdk(folder, b'\nchangeTrackPath="disk-ctk.vmdk"\n'),
        "vmdk",
        "a key of its descriptor may name a file (alone)",
    ),
    "loader": (written(lambda: (samples.LOADER * 2).ljust(3 * MIB, b"\1")), "raw", "a flag that there is not (mbr)"),
    "footers": (
        written(lambda: samples.vhd(tail=samples.vhd_footer(31 * MIB, 3))),
        "vhd",
        "its two footers do not agree (footer)",
    ),
    "second-sum": (
        written(lambda: samples.put(samples.vhd(), (548, ">I", 7))),
        "vhd",
        "the checksum of a header is wrong (checksum)",
    ),
}


@pytest.mark.parametrize("name", ADVISED)
def test_the_command_in_an_answer_makes_a_file_that_is_accepted(tmp_path: Path, name: str) -> None:
    make, declared, finding = ADVISED[name]
    old, new = make(tmp_path), tmp_path / "new"
    answer = inspected(old.read_bytes(), declared)
    assert answer is not None
    assert finding in answer
    found = re.search(r"`(qemu-img [^`]*)`", answer)
    assert found is not None, answer
    places = {"OLD": str(old), "NEW": str(new), "FILE": str(old)}
    run(*(places.get(word, word) for word in shlex.split(found[1])))
    after = "vmdk" if "-O vmdk" in found[1] else "qcow2" if "-O qcow2" in found[1] else declared
    assert inspected((new if new.exists() else old).read_bytes(), after) is None


DRIVERS = {"vhd": "vpc", "qcow2": "qcow2", "vhdx": "vhdx", "vmdk": "vmdk", "vdi": "vdi", "luks": "luks", "raw": "raw"}
OPENED = [one for one in GOOD if one.declared in DRIVERS and one.container_format == "bare"]


@pytest.mark.parametrize("sample", OPENED, ids=str)
def test_qemu_img_opens_each_good_sample(tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "file"
    path.write_bytes(sample.make())
    assert asked(DRIVERS[sample.declared], path)


def partitioned(folder: Path, script: str) -> bytes:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True, capture_output=True)
    return path.read_bytes()


@pytest.mark.parametrize("label", ["dos", "gpt"])
@pytest.mark.parametrize("partitions", ["", "start=2048, size=2048\nstart=8192\n"])
def test_a_disk_that_sfdisk_labels_is_accepted(tmp_path: Path, label: str, partitions: str) -> None:
    assert inspected(partitioned(tmp_path, f"label: {label}\n{partitions}"), "raw") is None


def test_a_file_system_with_a_loader_in_its_first_sector_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", path)
    data = path.read_bytes()
    assert inspected(data, "raw") is None
    assert inspected(samples.LOADER + data[512:], "raw") is None
    broken = samples.put(samples.LOADER + data[512:], (KIB + 56, "2s", b""))  # without the file system's signature
    assert inspected(broken, "raw") is not None
