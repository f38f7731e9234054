"""Of each field of each header: what qemu-img refuses, Calotype refuses, and what it accepts beside is on a list.

`verdicts.txt` is what qemu-img says; a twentieth of it is asked again here, all of it by `make formats`.
"""

import logging
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.formats import sweep
from tests.formats.layouts import VARIANTS
from tests.formats.sweep import Base, Change

#: What Calotype accepts although qemu-img refuses it: changes, and why.
MISSED = {
    r"qcow2-bitmap bitmap\.table_offset (/2|2\^20)": "the table of a bitmap is not read; there, it is data of the disk",
}

#: What Calotype refuses although qemu-img opens it: fields, and why.
STRICTER = {
    r"qcow2-\S+ header\.backing_offset": "a reader may look for a name there, though its length is none",
    r"qcow2-\S+ header\.incompatible": "a data file is another file; extended L2 entries are refused by Nova's checks",
    r"qcow2-\S+ header\.header_length": "the format's document wants a multiple of 8",
    r"qcow2-\S+ header\.(l1_offset|l1_size|refcount_offset|refcount_clusters)": "QEMU reads zeros behind the end",
    r"qcow2-\S+ header\.snapshots(_offset)?": "they would lie in the header, or behind the end",
    r"(qcow2-luks|luks-1) slot\d\.offset": "QEMU counts beyond 32 bits",
    r"luks-(1|essiv) luks\.payload": "no byte of data is there",
    r"vpc-(dynamic|geometry) footers\.type=": "other types have a parent, or nobody knows them",
    r"vpc-geometry footers\.current_size=": "its table is shorter; QEMU reads the size by the geometry, others do not",
    r"vpc-dynamic header\.\w+": "its checksum is wrong; QEMU does not look at it, Hyper-V does",
    r"vpc-dynamic header\.parent=": "it has a parent",
    r"vpc-dynamic header\.table_offset=": "its table would lie in its header",
    r"vpc-fixed footer\.current_size=": "it has less data than its size tells; QEMU reads zeros",
    r"vhdx-dynamic (headers|header2)\.log_id=": "its log is not empty; QEMU opens it where it need not be replayed",
    r"vhdx-dynamic (headers|header2)\.log_length=": "the format's document wants whole MiB",
    r"vhdx-dynamic regions\.(entries|length1|length2|offset1)=": "the same; or it lies behind the end",
    r"vhdx-\S+ blocks\.first": "QEMU counts beyond 64 bits",
    r"vhdx-\S+ item\.(block_size|size|physical)": "sizes that the format's document does not have, or behind the end",
    r"vhdx-dynamic metadata\.(length|offset)[1-5]": "QEMU does not look at lengths, nor at where it ignores what it reads",
    r"vmdk-\S+ (header|footer)\.capacity": "more than 64 TiB",
    r"vmdk-\S+ (header|footer)\.descriptor_(offset|size)": "the descriptor has to be where all readers look for it",
    r"vmdk-\S+ (header|footer)\.(directory|spare_directory)": "it lies behind the end",
    r"vmdk-\S+ (header|footer)\.version": "there is no version 0",
    r"vmdk-footer \w+\.\w+": "header and footer have to agree, and to be marked as the format's document says",
    r"vdi-\S+ header\.type": "other types have a parent, or nobody knows them",
    r"vdi-\S+ header\.(blocks|blocks_offset)": "the map lies in the header or behind the end; QEMU reads zeros",
}

CHECKED = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return sweep.bases(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def verdicts() -> dict[str, bool]:
    return sweep.read()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # thousands of findings
    yield
    logging.disable(logging.NOTSET)


def excused(what: str, reasons: dict[str, str]) -> str | None:
    return next((pattern for pattern in reasons if re.fullmatch(pattern, what)), None)


@pytest.mark.parametrize("name", CHECKED)
def test_a_file_of_qemu_img_is_accepted(bases: dict[str, Base], name: str) -> None:
    base = bases[name]
    assert sweep.inspected(base.data, base.variant.declared) is None


@pytest.mark.parametrize("name", CHECKED)
def test_what_qemu_img_refuses_is_refused(bases: dict[str, Base], verdicts: dict[str, bool], name: str) -> None:
    refused = [one for one in bases[name].edits if not verdicts[str(one)]]
    accepted = {str(one) for one in refused if sweep.ours(bases[name], one) is None}
    assert accepted == {one for one in accepted if excused(one, MISSED)}


def stricter(bases: dict[str, Base], verdicts: dict[str, bool], name: str) -> Iterator[tuple[Change, str]]:
    for change in bases[name].edits:
        if verdicts[str(change)] and (reason := sweep.ours(bases[name], change)):
            yield change, reason


def test_what_qemu_img_opens_is_accepted_but_for_reasons_and_can_be_converted(
    bases: dict[str, Base], verdicts: dict[str, bool], tmp_path: Path
) -> None:
    """One file for each reason is converted as the answer says, where there is no secret to it."""
    used: dict[str, Change] = {}
    without_reason = []
    for name in CHECKED:
        for change, found in stricter(bases, verdicts, name):
            pattern = excused(change.place, STRICTER)
            if pattern is None:
                without_reason.append(f"{change}: {found}")
            else:
                used.setdefault(pattern, change)
    assert without_reason == []
    assert set(STRICTER) - set(used) == set()  # no reason that is none any more
    for change in used.values():
        base = bases[change.variant.name]
        # A data file that is not there is converted nowhere; what is encrypted would need its key; sizes take long.
        if "luks" in change.variant.name or change.field in ("incompatible", "capacity", "size", "current_size"):
            continue
        old, new = tmp_path / "old", tmp_path / "new"
        with base.changed(base.edits[change]):
            old.write_bytes(base.data)
        command = ["qemu-img", "convert", "-f", base.variant.driver, "-O", "qcow2", old, new]
        if subprocess.run(command, capture_output=True, timeout=60).returncode == 0:
            assert sweep.inspected(new.read_bytes(), "qcow2") is None, change


def test_the_table_has_every_change(bases: dict[str, Base], verdicts: dict[str, bool]) -> None:
    """A value that a file has by chance is no change, so a few may be missing here or there."""
    named = {str(one) for base in bases.values() for one in sweep.changes(base.variant, base.data)}
    wanted = {str(one) for one in sweep.all_changes(bases)}
    assert set(verdicts) - named == set(), "make formats"
    assert wanted - set(verdicts) == set(), "make formats"


def test_a_twentieth_of_the_table_is_what_qemu_img_says_today(
    bases: dict[str, Base], verdicts: dict[str, bool]
) -> None:
    seed = time.time_ns() % 1_000_000
    changes = [one for one in sweep.all_changes(bases) if str(one) in verdicts]
    some = random.Random(seed).sample(changes, len(changes) // 20)
    now = sweep.told(bases, some)
    other = [str(one) for one, opened in zip(some, now, strict=True) if opened != verdicts[str(one)]]
    assert other == [], f"seed {seed}: another qemu-img? `make formats` writes the table anew"
