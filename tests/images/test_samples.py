"""Every file of `samples.py` through an upload: what is refused leaves nothing, and nobody looks at the host for it."""

import logging
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.images import data, lifecycle
from calotype.images.inspection import FormatRules, Inspection
from calotype.images.lifecycle import NewImage
from calotype.images.stream import BUFFER, Passing
from calotype.transfers import Transfers
from tests.images.samples import GOOD, HOSTILE, Sample
from tests.inprocess import ALICE, CONF, Pieces, backlog, parts

FORMATS = """
[image_format]
disk_formats = ami,ari,aki,vhd,vhdx,vmdk,raw,qcow2,vdi,iso,ploop,luks
"""

_watched: list[tuple[str, str]] = []
_watching = threading.Event()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching.is_set() and event in (
        "open",
        "os.link",
        "os.exec",
        "socket.connect",
        "subprocess.Popen",
    ):
        _watched.append((event, str(arguments[0])))


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """What this process does to files, sockets and other processes meanwhile: (event, first argument)."""
    _watched.clear()
    _watching.set()
    try:
        yield _watched
    finally:
        _watching.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def app(root: Path) -> Iterator[App]:
    with parts(root, f"sqlite:///{root}/db", CONF + FORMATS) as made:
        lifecycle.create(made.service, ALICE, NewImage())  # whatever is imported late
        yield made


def upload(app: App, sample: Sample, content: bytes) -> str:
    new = NewImage(disk_format=sample.declared, container_format=sample.container_format)
    image = lifecycle.create(app.service, ALICE, new)
    try:
        data.upload(app.service, ALICE, image.id, Pieces([content]), store_name=None, size=len(content))
    except errors.ContentRejected:
        shown = lifecycle.show(app.service, ALICE, image.id)
        assert (shown.status, shown.size, shown.virtual_size, shown.checksum) == ("queued", None, None, None)
        assert backlog(app) == 0
        raise
    return image.id


def stored(root: Path) -> set[str]:
    return {str(path) for name in ("one", "two") for path in (root / name).rglob("*")}


def ours(path: str, root: Path) -> bool:
    """Below the service's directory, a descriptor, or a file of the store, which is opened relative to one."""
    relative = r"[0-9a-f.-]{36,}\.part|\.calotype-store|/proc/sys/kernel/random/boot_id"
    sources = path.endswith(".py")  # of a traceback for the log
    return path.startswith(str(root)) or path.isdecimal() or sources or re.fullmatch(relative, path) is not None


@pytest.mark.parametrize("sample", HOSTILE, ids=str)
def test_a_hostile_file_is_refused_and_nothing_is_left(app: App, root: Path, sample: Sample) -> None:
    content, before = sample.make(), stored(root)
    with watched() as seen, pytest.raises(errors.ContentRejected):
        upload(app, sample, content)
    assert stored(root) == before
    # Nothing was final for a moment, no process was started, no file but the service's own was touched.
    assert not [one for one in seen if one[0] != "open"]
    assert not [path for _, path in seen if not ours(path, root)]


@pytest.mark.parametrize("sample", GOOD, ids=str)
def test_a_good_file_is_accepted_with_its_virtual_size(app: App, root: Path, sample: Sample) -> None:
    content = sample.make()
    with watched() as seen:
        image_id = upload(app, sample, content)
    shown = lifecycle.show(app.service, ALICE, image_id)
    assert (shown.status, shown.size, shown.virtual_size) == ("active", len(content), sample.virtual_size)
    assert (root / "one" / image_id).read_bytes() == content
    assert [event for event, _ in seen].count("os.link") == 1  # so the watch sees what it is there for
    lifecycle.delete(app.service, ALICE, image_id)


def refused(content: bytes, sample: Sample, step: int) -> bool:
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    passing = Passing(
        Pieces(pieces),
        Transfers(64 << 20, 1),
        expect=None,
        cap=1 << 40,
        hash_algo="sha256",
        md5=False,
        disk_format=sample.declared,
        container_format=sample.container_format,
        rules=FormatRules(),
    )
    try:
        passing.run()
    except errors.ContentRejected:
        return True
    assert passing.virtual_size == sample.virtual_size
    return False


@pytest.mark.parametrize(("step", "largest"), [(1, 2 << 10), (23, 16 << 10), (511, 200 << 10), (64 << 10, 4 << 20)])
@pytest.mark.slow
def test_the_verdict_is_the_same_whatever_pieces_the_data_comes_in(step: int, largest: int) -> None:
    for expected, samples in ((True, HOSTILE), (False, GOOD)):
        for sample in samples:
            content = sample.make()
            if len(content) <= largest:
                assert refused(content, sample, step) == expected, sample


def judged(content: bytes, sample: Sample, step: int) -> int | str | None:
    inspection = Inspection(sample.declared, FormatRules())
    try:
        for at in range(0, len(content), step):
            inspection.feed(memoryview(content)[at : at + step])
        return inspection.finish(len(content))
    except errors.ContentRejected as exc:
        return str(exc)


@pytest.mark.parametrize(("step", "largest"), [(1, 16 << 10), (511, 200 << 10), (100_001, 4 << 20)])
@pytest.mark.slow
def test_a_client_that_sends_little_at_a_time_hides_nothing(step: int, largest: int) -> None:
    for sample in (*HOSTILE, *GOOD):
        content = sample.make()
        if len(content) <= largest:
            assert judged(content, sample, step) == judged(content, sample, BUFFER), sample


def look(content: bytes, declared: str, step: int = BUFFER) -> None:
    inspection = Inspection(declared, FormatRules())
    try:
        view = memoryview(content)
        for at in range(0, len(view), step):
            inspection.feed(view[at : at + step])
        inspection.finish(len(view))
    except errors.ContentRejected:
        pass


@pytest.mark.parametrize("declared", ["raw", "qcow2", "vmdk", "own-format"])
def test_what_is_unsafe_is_refused_though_no_match_is_required(declared: str) -> None:
    unsafe = [sample for sample in HOSTILE if sample.declared == "raw" and "-and-" not in sample.name]
    assert len(unsafe) > 150
    for sample in unsafe:
        content = sample.make()
        inspection = Inspection(declared, FormatRules(require_match=False))
        with pytest.raises(errors.ContentRejected):
            for at in range(0, len(content), BUFFER):
                inspection.feed(memoryview(content)[at : at + BUFFER])
            inspection.finish(len(content))
            pytest.fail(f"{sample} was accepted")


def dearest(measure: Any) -> tuple[float, str]:
    return max((measure(sample.make(), sample.declared), str(sample)) for sample in (*HOSTILE, *GOOD))


@pytest.mark.slow
def test_no_file_costs_more_than_a_tenth_of_a_second_of_cpu_to_look_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    def seconds(content: bytes, declared: str) -> float:
        least = 1.0
        for _ in range(2):  # a page fault or a collection may fall into one of them
            before = time.thread_time()
            look(content, declared)
            least = min(least, time.thread_time() - before)
        return least

    worst, name = dearest(seconds)
    assert worst <= 0.1, name


@pytest.mark.slow
def test_no_file_costs_more_than_16_mib_to_look_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    def peak(content: bytes, declared: str) -> float:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        look(content, declared)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        worst, name = dearest(peak)
    finally:
        tracemalloc.stop()
    assert 0 < worst <= 16 << 20, name


@pytest.mark.parametrize(
    "head", [s for s in HOSTILE if s.name in ("vhdx-many-items", "vhdx-no-size", "vmdk-footer-missing")], ids=str
)
def test_a_long_file_costs_no_more_for_what_its_head_says(head: Sample) -> None:
    """128 MiB after a header that leaves something to be looked for; a fixed vhd is one only at its very end."""
    content = head.make().ljust(128 << 20, b"\1")
    for declared in (head.declared, "vhd"):
        before = time.thread_time()
        look(content, declared)
        assert time.thread_time() - before <= 0.25


def test_there_are_enough_of_both() -> None:
    assert len(HOSTILE) >= 200
    assert len(GOOD) >= 40
    assert len({str(sample) for sample in (*GOOD, *HOSTILE)}) == len(GOOD) + len(HOSTILE)
