"""The rbd driver on a real Ceph: the contract, faults that are planted in the driver, and what is its own."""

import contextlib
import ctypes
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.buffers import Buffers
from calotype.context import SERVICE
from calotype.stores import librbd, rbd_names
from calotype.stores import rbd as driver
from calotype.stores.rbd import RbdStore
from tests.crash.harness import Crashes
from tests.stores import suite
from tests.stores.ceph import PROGRAMS, USER, Ceph, Cephs, address, ceph, objects, rbd_store
from tests.stores.suite import CHECKS, ID, OTHER, Kit, content, missing, store_object, write
from tests.support import running, until

pytestmark = [pytest.mark.needs(*PROGRAMS), pytest.mark.slow]
MIB = 1 << 20


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_driver_keeps_the_contract(check: Callable[[Kit], None], tmp_path: Path) -> None:
    check(Cephs(tmp_path))


@pytest.fixture
def kit() -> Cephs:
    return Cephs()


@pytest.fixture
def store(kit: Cephs) -> RbdStore:
    return kit.store()


@pytest.fixture
def cluster() -> Ceph:
    return ceph()


# --- faults that are planted -----------------------------------------------------------------------------


def _librbds_order(pool: librbd.Pool, image_id: str, name: str, to: str) -> None:
    """Change a name without asking the directory whether it is still there."""
    pool.make(f"rbd_id.{to}", librbd.encoded(image_id))
    with contextlib.suppress(FileNotFoundError):
        pool.execute("rbd_directory", "dir_rename_image", librbd.encoded(name, to, image_id))


def _patient(store: RbdStore, name: str, options: Any, **more: Any) -> None:
    _made(store, name, {**options, "read_timeout": 9.0}, **more)


_made = RbdStore.__init__
_deleted = RbdStore.delete
_committed = driver._RbdWrite.commit


def _noting_late(write: driver._RbdWrite) -> Any:
    note, write._note = write._note, lambda _: None
    stored = _committed(write)
    note(stored.object_id or "")
    return stored


#: What is wrong, where, how, and the check that must find it.
FAULTS: list[tuple[str, Any, str, Any, suite.Check]] = [
    ("nothing is noted", driver._RbdWrite, "_note", property(lambda _: lambda _: None, lambda *_: None),
     suite.nothing_is_final_before_the_note),
    ("the note comes late", driver._RbdWrite, "commit", _noting_late, suite.nothing_is_final_before_the_note),
    ("whoever was cleaned away can finish", rbd_names, "move", _librbds_order,
     suite.a_writer_that_was_cleaned_away_cannot_finish),
    ("a failed write leaves its part", RbdStore, "_remove_attempt", lambda *_, **__: None,
     suite.a_broken_source_leaves_nothing),
    ("whatever begins alike is its own", RbdStore, "_is_here", lambda *_: True,
     suite.a_store_owns_its_own_names_only),
    ("the cluster's errors pass through", RbdStore, "_error", lambda _, exc: exc,
     suite.a_backend_that_fails_is_told_in_our_words),
    ("the id of the object is not looked at", RbdStore, "delete",
     lambda store, url, object_id=None, ctx=None: _deleted(store, url, ctx=ctx),
     suite.delete_removes_only_the_object_that_is_meant),
    ("the room is not looked at", RbdStore, "_room", lambda *_: (None, None),
     suite.what_is_announced_too_large_is_refused_before_a_byte_is_put),
    ("a read that hangs is waited for", RbdStore, "__init__", _patient, suite.a_read_that_hangs_ends_by_its_time_out),
    ("who waits for a piece is not woken", driver._RbdBody, "cancel", lambda _: None,
     suite.a_read_that_hangs_is_cancelled_at_once),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "name", "fault", "check"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS]
)
def test_a_planted_fault_is_found(
    kit: Cephs, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, fault: Any, check: suite.Check
) -> None:
    monkeypatch.setattr(place, name, fault, raising=False)
    with pytest.raises((AssertionError, pytest.fail.Exception, errors.CalotypeError, OSError)):
        check(kit)


# --- the layout ------------------------------------------------------------------------------------------


def test_what_glance_has_stored_is_read_and_deleted(kit: Cephs, store: RbdStore, cluster: Ceph) -> None:
    data = random.Random(1).randbytes(9 * MIB + 5)
    as_glance(cluster, ID, data)
    url = f"rbd://{cluster.fsid}/one/{ID}/snap"
    assert store.owns(url)
    assert content(store, url) == data
    assert content(store, url, offset=4 * MIB - 1, length=3) == data[4 * MIB - 1 : 4 * MIB + 2]
    assert content(store, f"rbd://{ID}") == data  # as its oldest releases wrote it
    assert store.delete(url, ctx=SERVICE) is None
    assert kit.left_over() == []


def test_what_is_written_here_is_glances_layout(store: RbdStore, cluster: Ceph, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(5 * MIB + 1)
    url = write(store, [data], size=len(data))
    assert url == f"rbd://{cluster.fsid}/one/{ID}/snap"
    facts = json.loads(cluster.rbd("info", "--format", "json", f"one/{ID}"))
    assert (facts["size"], facts["order"], facts["format"]) == (len(data), 22, 2)
    assert {"layering", "exclusive-lock", "object-map"} <= set(facts["features"])
    snapshots = json.loads(cluster.rbd("snap", "ls", "--format", "json", f"one/{ID}"))
    assert [(one["name"], one["protected"], one["size"]) for one in snapshots] == [("snap", "true", len(data))]
    cluster.rbd("export", f"one/{ID}@snap", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert cluster.rbd("ls", "one").split() == [ID]


def as_glance(cluster: Ceph, name: str, data: bytes, pool: str = "one") -> None:
    """Store an image as Glance does: with a protected snapshot."""
    cluster.rbd("import", "-", f"{pool}/{name}", given=data)
    cluster.rbd("snap", "create", f"{pool}/{name}@snap")
    cluster.rbd("snap", "protect", f"{pool}/{name}@snap")


def test_the_cluster_and_the_pool_of_a_url_are_compared(
    kit: Cephs, store: RbdStore, cluster: Ceph, tmp_path: Path
) -> None:
    url = write(store, [b"abc"])
    other = url.replace(cluster.fsid, str(uuid.uuid4()))
    # Also if the configuration does not say which cluster it is.
    conf = tmp_path / "ceph.conf"
    conf.write_text(without_fsid(cluster))
    blind = rbd_store(rbd_store_pool="one", rbd_store_ceph_conf=str(conf))
    for one in (store, blind):
        for foreign in (other, url.replace("/one/", "/two/")):
            for ask in (one.read, one.size, one.delete):
                with pytest.raises(errors.StoreError, match="not in this store"):
                    ask(foreign, ctx=SERVICE)
        assert content(one, url) == b"abc"
    assert kit.left_over() == [ID]


def without_fsid(cluster: Ceph) -> str:
    """The cluster's configuration, which does not say which cluster it is."""
    return "".join(line for line in cluster.conf.read_text().splitlines(True) if not line.startswith("fsid"))


def test_a_store_that_does_not_know_its_cluster_finds_out_before_it_reads(
    cluster: Ceph, tmp_path: Path, store: RbdStore
) -> None:
    url = write(store, [b"abc"])
    conf = tmp_path / "ceph.conf"
    conf.write_text(without_fsid(cluster))
    defaults = {option.dest: option.default for option in RbdStore.options}
    given = {"rbd_store_pool": "one", "rbd_store_user": USER, "rbd_store_ceph_conf": str(conf)}
    blind = RbdStore("one", defaults | given)
    assert blind.details()["fsid"] is None
    with pytest.raises(errors.StoreError, match="not in this store"):
        blind.size(url.replace(cluster.fsid, str(uuid.uuid4())), ctx=SERVICE)
    assert blind.prefixes() == [f"rbd://{cluster.fsid}/one/"]


# --- sizes -----------------------------------------------------------------------------------------------


def test_an_image_of_unknown_size_grows_and_ends_exact(kit: Cephs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "BUFFERS", Buffers(64 * MIB))
    sizes: list[int] = []
    store = kit.store()
    resize = librbd.Image.resize

    def watched(image: librbd.Image, size: int) -> None:
        sizes.append(size)
        resize(image, size)

    monkeypatch.setattr(librbd.Image, "resize", watched)
    data = random.Random(3).randbytes(30 * MIB + 7)
    url = write(store, [data[start : start + MIB] for start in range(0, len(data), MIB)])
    assert sizes[-1] == store.size(url, ctx=SERVICE) == len(data)
    assert max(sizes) <= 2 * len(data) + 4 * MIB
    assert len(sizes) <= 6
    assert hashlib.sha256(content(store, url)).digest() == hashlib.sha256(data).digest()


def test_an_image_of_known_size_is_made_in_it(store: RbdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(librbd.Image, "resize", lambda *_: pytest.fail("it was resized"))
    data = random.Random(4).randbytes(3 * MIB)
    assert store.size(write(store, [data], size=len(data)), ctx=SERVICE) == len(data)


def test_zeros_are_not_written_where_provisioning_is_thin(cluster: Ceph) -> None:
    kit = Cephs(rbd_thin_provisioning=True)
    store = kit.store()
    data = bytes(8 * MIB) + b"x" * 100 + bytes(12 * MIB)
    url = write(store, [data], size=len(data))
    with contextlib.closing(cluster.admin.pool("one")) as pool:
        stored = [name for name in objects(pool) if name.startswith("rbd_data.")]
    assert [int(name.rpartition(".")[2], 16) for name in stored] == [2]
    assert content(store, url) == data
    for number, check in enumerate((suite.what_is_written_is_read_again, suite.any_range_can_be_read)):
        check(Cephs(rbd_thin_provisioning=True)), number


def test_the_end_of_a_large_image_is_read_without_its_rest(
    store: RbdStore, cluster: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 10 << 30
    cluster.rbd("create", "--size", f"{size}B", f"one/{ID}")
    cluster.rbd("snap", "create", f"one/{ID}@snap")
    cluster.rbd("snap", "protect", f"one/{ID}@snap")
    asked: list[tuple[int, int]] = []
    read = librbd.Image.read

    def watched(image: librbd.Image, offset: int, length: int) -> Any:
        asked.append((offset, length))
        return read(image, offset, length)

    monkeypatch.setattr(librbd.Image, "read", watched)
    assert content(store, f"rbd://{cluster.fsid}/one/{ID}/snap", offset=size - MIB, length=MIB) == bytes(MIB)
    assert {place >> 22 for offset, length in asked for place in (offset, offset + length - 1)} == {(size - 1) >> 22}
    assert sum(length for _, length in asked) == MIB


# --- deleting --------------------------------------------------------------------------------------------


def test_data_with_clones_of_the_old_kind_is_in_use(kit: Cephs, store: RbdStore, cluster: Ceph) -> None:
    stored = store_object(store, [b"abc"])
    cluster.rbd("clone", "--rbd-default-clone-format", "1", f"one/{ID}@snap", "two/child")
    for _ in range(2):
        with pytest.raises(errors.InUse):
            store.delete(stored.url, object_id=stored.object_id, ctx=SERVICE)
    assert content(store, stored.url) == b"abc"
    cluster.rbd("rm", "two/child")
    assert store.delete(stored.url, object_id=stored.object_id, ctx=SERVICE) is None
    assert kit.left_over() == []


def test_data_with_clones_of_the_new_kind_is_kept_in_the_trash_until_the_last_one_is_gone(
    kit: Cephs, store: RbdStore, cluster: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store_object(store, [b"a" * MIB])
    cluster.rbd("clone", "--rbd-default-clone-format", "2", f"one/{ID}@snap", "two/child")
    assert store.delete(stored.url, object_id=stored.object_id, ctx=SERVICE) is None
    assert missing(store, stored.url)
    assert store.check().ok
    assert store.details()["trash"] == {"images": 1, "bytes": MIB}
    write(store, [b"the name is free"], attempt="ab12-2")
    monkeypatch.setattr(driver, "_SWEEP_AGE", -1.0)
    store.sweep(lambda _: False)
    assert kit.left_over() == [ID, f"{ID}.{stored.object_id}.aside without a name"]
    assert cluster.rbd("export", "two/child", "-")[:3] == "aaa"
    cluster.rbd("rm", "two/child")
    store.sweep(lambda _: False)
    assert kit.left_over() == [ID]
    assert store.check().ok
    assert "trash" not in store.details()


def test_data_that_another_program_has_open_is_in_use(store: RbdStore, cluster: Ceph) -> None:
    url = write(store, [b"abc"])
    with contextlib.closing(cluster.admin.pool("one")) as pool, contextlib.closing(pool.open(ID)):
        with pytest.raises(errors.InUse):
            store.delete(url, ctx=SERVICE)
        assert content(store, url) == b"abc"
    assert store.delete(url, ctx=SERVICE) is None


def test_what_is_deleted_while_it_is_read_does_not_read_as_zeros(store: RbdStore) -> None:
    url = write(store, [b"x" * (6 * MIB)])
    with contextlib.closing(store.read(url, ctx=SERVICE)) as body:
        pieces = iter(body)
        next(pieces)
        store.delete(url, ctx=SERVICE)
        with pytest.raises(errors.Missing):
            list(pieces)


def test_the_sweep_removes_what_dead_attempts_left_and_nothing_else(
    kit: Cephs, store: RbdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, [b"abc"], OTHER)
    begun = store.begin(ID, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
    store.sweep(lambda _: False)
    assert kit.left_over() == sorted([OTHER, f"{ID}.ab12-1.part"])  # it is young
    monkeypatch.setattr(driver, "_SWEEP_AGE", -1.0)
    store.sweep(lambda _: True)
    assert kit.left_over() == sorted([OTHER, f"{ID}.ab12-1.part"])  # it lives
    assert store.sweep(lambda _: False) == 1
    with pytest.raises(errors.Gone):
        begun.commit()
    begun.abort()
    assert kit.left_over() == [OTHER]


# --- writers that die ------------------------------------------------------------------------------------

_WRITER = """
import json, sys
from calotype.context import SERVICE
from calotype.stores.rbd import RbdStore
from tests.stores.suite import BUFFERS
options, image_id = json.loads(sys.argv[1]), sys.argv[2]
store = RbdStore("one", options)
store.identity = "identity-of-one"
write = store.begin(image_id, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
for number in range(4):
    piece = BUFFERS.take(1 << 20)
    write.put(piece)
write._wait()
print("written", flush=True)
sys.stdin.readline()
try:
    write.commit()
    print("committed", flush=True)
except BaseException as exc:
    print(type(exc).__name__, flush=True)
    write.abort()
"""


@contextlib.contextmanager
def writer(store: RbdStore) -> Iterator["subprocess.Popen[str]"]:
    """A process that has written a part of the image of `ID`, and waits for a line before it commits."""
    options = {option.dest: option.default for option in RbdStore.options} | {
        "rbd_store_pool": "one", "rbd_store_user": USER, "rbd_store_ceph_conf": str(ceph().conf),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, json.dumps(options), ID],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_writer_left_is_removed_at_once(kit: Cephs, store: RbdStore) -> None:
    with writer(store) as process:
        process.kill()
        process.wait()
    assert kit.left_over() == [f"{ID}.ab12-1.part"]
    begun = time.monotonic()
    store.clean(ID, "ab12-1", None)
    assert kit.left_over() == []
    assert time.monotonic() - begun < 15, "it was waited for the dead writer's lock"
    assert content(store, write(store, [b"new"], attempt="ab12-2")) == b"new"


def test_a_writer_that_was_paused_and_cleaned_away_cannot_finish(kit: Cephs, store: RbdStore) -> None:
    with writer(store) as process:
        process.send_signal(signal.SIGSTOP)
        store.clean(ID, "ab12-1", None)
        assert kit.left_over() == []
        url = write(store, [b"new"], attempt="ab12-2")
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("go on\n", timeout=60)
        assert said in ("Gone\n", "StoreUnavailable\n")
    assert kit.left_over() == [ID]
    assert content(store, url) == b"new"


def test_a_living_writer_that_was_cleaned_away_ends_without_harm_to_its_process(kit: Cephs, store: RbdStore) -> None:
    with writer(store) as process:
        with pytest.raises(errors.StoreUnavailable, match="still open"):
            store.clean(ID, "ab12-1", None)  # the job comes back
        said, _ = process.communicate("go on\n", timeout=60)
        assert said == "Gone\n"
    assert kit.left_over() == []


@pytest.mark.parametrize("steps", range(1, 4))
def test_a_change_of_the_name_that_was_interrupted_is_cleaned_up(
    kit: Cephs, store: RbdStore, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its steps: the directory, the object of the new name, the object of the old name."""
    done: list[str] = []

    class Died(BaseException):
        pass

    def stop_after(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(pool: librbd.Pool, name: str, *given: Any) -> Any:
            result = function(pool, name, *given)
            if given[:1] == ("dir_rename_image",) or name.startswith("rbd_id."):
                done.append(name)
                if len(done) == steps:
                    raise Died
            return result

        return step

    notes: list[str] = []
    begun = store.begin(ID, attempt="ab12-1", size=3, note=notes.append, ctx=SERVICE)
    suite.feed(begun, [b"abc"])
    with monkeypatch.context() as patched:
        for name in ("execute", "make", "remove"):
            patched.setattr(librbd.Pool, name, stop_after(getattr(librbd.Pool, name)))
        with pytest.raises(Died):
            begun.commit()
    store.clean(ID, "ab12-1", notes[-1])
    assert kit.left_over() == []
    assert content(store, write(store, [b"new"], attempt="ab12-2")) == b"new"
    store.clean(ID, "ab12-1", notes[-1])
    assert kit.left_over() == [ID]


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_delete_that_was_interrupted_is_finished_by_the_next_one(
    kit: Cephs, store: RbdStore, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each change that it makes by itself; what librbd does in one call cannot be interrupted here."""
    done: list[str] = []

    class Died(BaseException):
        pass

    def stop_after(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any) -> Any:
            result = function(*given)
            if "dir_get_name" not in given:
                done.append(function.__name__)
                if len(done) == steps:
                    raise Died
            return result

        return step

    stored = store_object(store, [b"abc"])
    with monkeypatch.context() as patched:
        for place, name in (
            (librbd.Image, "unprotect"), (librbd.Image, "remove_snapshot"), (librbd.Pool, "execute"),
            (librbd.Pool, "make"), (librbd.Pool, "remove"), (librbd.Pool, "trash"), (librbd.Pool, "purge"),
        ):  # fmt: skip
            patched.setattr(place, name, stop_after(getattr(place, name)))
        with contextlib.suppress(Died):
            store.delete(stored.url, object_id=stored.object_id, ctx=SERVICE)
    with contextlib.suppress(errors.Missing):
        assert store.delete(stored.url, object_id=stored.object_id, ctx=SERVICE) is None
    assert kit.left_over() == []


def test_what_an_interrupted_removal_left_is_removed(kit: Cephs, store: RbdStore, cluster: Ceph) -> None:
    with contextlib.closing(cluster.admin.pool("one")) as pool:
        for name in (f"{ID}.ab12-1.part.aside", f"{ID}.123abc.aside"):
            pool.make(f"rbd_id.{name}", librbd.encoded("123abc"))
    assert len(kit.left_over()) == 2
    store.clean(ID, "ab12-1", None)
    assert kit.left_over() == [f"rbd_id.{ID}.123abc.aside"]
    url = f"rbd://{cluster.fsid}/one/{ID}/snap"
    assert store.delete(url, object_id="123abc", ctx=SERVICE) is None
    assert kit.left_over() == []
    with pytest.raises(errors.Missing):
        store.delete(url, object_id="123abc", ctx=SERVICE)


def test_a_name_that_leads_nowhere_is_no_object(kit: Cephs, store: RbdStore, cluster: Ceph) -> None:
    with contextlib.closing(cluster.admin.pool("one")) as pool:
        pool.make(f"rbd_id.{ID}", librbd.encoded("123abc"))
    assert content(store, write(store, [b"new"])) == b"new"
    assert kit.left_over() == [ID]


# --- the connection --------------------------------------------------------------------------------------


def test_a_connection_that_is_refused_is_made_again(store: RbdStore, cluster: Ceph) -> None:
    url = write(store, [b"abc"])
    cluster.admin.blocklist(address(store), 60)
    with contextlib.suppress(errors.StoreUnavailable):
        content(store, url)
    assert content(store, url) == b"abc"


def test_reads_and_writes_share_one_connection(store: RbdStore) -> None:
    url = write(store, [b"abc"])
    first = store._current
    assert content(store, url) == b"abc"
    store.delete(url, ctx=SERVICE)
    assert store._current is first
    assert first
    assert first.users == 0


def test_nothing_is_done_in_a_pool_of_another_store(kit: Cephs, store: RbdStore) -> None:
    url = write(store, [b"abc"])
    other = rbd_store(rbd_store_pool="one")
    other.identity = "of another one"
    for ask in (
        lambda: write(other, [b"x"], OTHER),
        lambda: other.delete(url, ctx=SERVICE),
        lambda: other.clean(ID, "ab12-1", None),
        lambda: other.sweep(lambda _: False),
    ):
        with pytest.raises(errors.StoreUnavailable, match="identity of another store"):
            ask()
    assert content(other, url) == b"abc"
    assert store.overlap(other)
    assert store.overlap(kit.store("two")) is None


def test_without_ceph_the_start_says_which_package_is_missing(store: RbdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(librbd, "_loaded", [])
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(errors.ConfigError, match="install the package librbd1"):
        rbd_store()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rbd_store_ceph_conf": "/nonexistent"}, "rbd_store_ceph_conf /nonexistent cannot be read"),
        ({"rbd_store_pool": ""}, "set rbd_store_pool"),
    ],
)
def test_options_that_cannot_be_served_are_refused(options: Any, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        rbd_store(**options)


# --- erasure-coded data ----------------------------------------------------------------------------------


def test_data_goes_to_an_erasure_coded_pool_and_is_read_without_one_of_its_disks(
    cluster: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "BUFFERS", Buffers(64 * MIB))
    cluster.pool("coded", erasure=True)
    cluster.pool("names", copies=2)
    options = {"rbd_store_pool": "names", "rbd_store_data_pool": "coded", "read_timeout": 30.0}
    store = rbd_store(**options)
    until(lambda: store.check().ok)
    assert store.details()["data_pool"] == "coded"
    data = random.Random(5).randbytes(32 * MIB)
    url = write(store, [data], size=len(data))
    until(lambda: cluster.stats("coded")["stored"] >= len(data))
    assert cluster.stats("coded")["bytes_used"] <= 1.58 * len(data)
    assert cluster.stats("names")["stored"] < MIB
    cluster.stop_osd(2)
    try:
        assert content(store, url) == data
    finally:
        cluster.start_osd(2)
    assert store.delete(url, ctx=SERVICE) is None
    with contextlib.closing(cluster.admin.pool("coded")) as pool:
        assert set(objects(pool)) <= {"rbd_info"}


def test_a_data_pool_that_cannot_take_data_is_told(cluster: Ceph, kit: Cephs) -> None:
    cluster.pool("fixed", erasure=True, overwrites=False)
    for name, words in (
        ("nowhere", "does not exist"),
        ("two", "is not erasure-coded"),
        ("fixed", "ceph osd pool set fixed allow_ec_overwrites true"),
    ):
        cluster.ensure_pool("two")
        store = rbd_store(rbd_store_pool="one", rbd_store_data_pool=name)
        with pytest.raises(errors.StoreUnavailable, match=words):
            write(store, [b"x"])
        health = store.check()
        assert not health.ok
        assert words in (health.error or "")
    assert kit.left_over() == []


def test_a_data_pool_that_the_user_may_not_write_is_told(cluster: Ceph, kit: Cephs) -> None:
    cluster.pool("barred", erasure=True)
    cluster.allow("limited", {"mon": "profile rbd", "osd": "profile rbd pool=one"})
    store = rbd_store(rbd_store_pool="one", rbd_store_user="limited", rbd_store_data_pool="barred")
    with pytest.raises(errors.StoreUnavailable, match="osd 'profile rbd pool=barred'"):
        write(store, [b"x"])
    cluster.allow("limited", {"mon": "profile rbd", "osd": "profile rbd pool=one, profile rbd pool=barred"})
    assert content(store, write(store, [b"x"])) == b"x"  # without a restart


# --- a service -------------------------------------------------------------------------------------------


def test_a_service_serves_images_from_ceph(kit: Cephs, state: Path, cluster: Ceph) -> None:
    conf = (
        kit.configured()
        .conf.replace("one:rbd", "one:rbd, files:file")
        .replace("[DEFAULT]", "[DEFAULT]\nenabled_import_methods = glance-direct, copy-image")
    )
    data = random.Random(6).randbytes(6 * MIB + 3)
    with running(state, f"{conf}[files]\nfilesystem_store_datadir = {state}/files\n", "--workers", "2") as service:
        alice, admin = service.client("alice"), service.client("admin")
        first, chunked = alice.active(data), alice.queued()
        assert alice.put(chunked, iter([data[:MIB], data[MIB:]])).status_code == 204
        for image_id in (first, chunked):
            assert alice.file(image_id).content == data
            part = alice.file(image_id, Range=f"bytes={5 * MIB}-{5 * MIB + 9}")
            assert (part.status_code, part.content) == (206, data[5 * MIB : 5 * MIB + 10])
            assert alice.show(image_id)["os_hash_value"] == hashlib.sha512(data).hexdigest()

        # Copied to a directory, and read there when Ceph has lost it.
        copied = {"method": {"name": "copy-image"}, "stores": ["files"]}
        assert admin.request("POST", f"/v2/images/{first}/import", json=copied).status_code == 202
        until(lambda: alice.show(first)["stores"] == "one,files")
        cluster.rbd("snap", "unprotect", f"one/{first}@snap")
        cluster.rbd("snap", "purge", f"one/{first}")
        assert alice.file(first).content == data

        # Imported into both, and copied from a directory to Ceph.
        both = alice.queued()
        assert (
            alice.request(
                "PUT", f"/v2/images/{both}/stage", data=data, headers={"Content-Type": "application/octet-stream"}
            ).status_code
            == 204
        )
        asked = {"method": {"name": "glance-direct"}, "stores": ["one", "files"]}
        assert alice.request("POST", f"/v2/images/{both}/import", json=asked).status_code == 202
        until(lambda: alice.show(both)["status"] == "active")
        fast = alice.queued()
        assert alice.put(fast, data, x_image_meta_store="files").status_code == 204
        to_ceph = {"method": {"name": "copy-image"}, "stores": ["one"]}
        assert admin.request("POST", f"/v2/images/{fast}/import", json=to_ceph).status_code == 202
        until(lambda: "one" in alice.show(fast)["stores"])
        assert alice.get(f"/v2/images/{fast}/file?prefer=one").content == data

        # A clone keeps an image; a store that is silent does not.
        cluster.rbd("clone", "--rbd-default-clone-format", "1", f"one/{chunked}@snap", "two/child")
        assert alice.delete(chunked).status_code == 409
        assert alice.file(chunked).content == data
        cluster.rbd("rm", "two/child")
        found = {one["id"]: one for one in admin.get("/v2/info/stores/detail").json()["stores"]}
        assert found["one"]["properties"]["fsid"] == cluster.fsid
        for image_id in (first, chunked, both, fast):
            assert alice.delete(image_id).status_code == 204
        until(lambda: kit.left_over() == [])
        assert "Traceback" not in service.log


def test_kill_9_under_load_loses_nothing_and_leaves_nothing(kit: Cephs, state: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    crashes = Crashes(state, seed, kit, images=30, bytes_=64 * MIB)
    try:
        while crashes.summary.kills < 6 or (not crashes.summary.cut["uploads"] and crashes.summary.kills < 20):
            crashes.round()
        crashes.finish()
    except AssertionError as exc:
        raise AssertionError(f"seed {seed}; {crashes.line()}\n{exc}") from exc
    finally:
        if crashes.service.process is not None and crashes.service.process.poll() is None:
            crashes.service.kill()
    assert crashes.summary.cut["uploads"] > 0, "no kill hit an upload"


def test_a_silent_cluster_holds_up_no_list_of_stores(kit: Cephs, state: Path) -> None:
    conf = kit.configured().conf + "connect_timeout = 1\nread_timeout = 1\n"
    with running(state, conf) as service:
        admin = service.client("admin")
        image_id = admin.active(b"abc")
        with kit.hanging(kit.store()):
            for _ in range(3):
                begun = time.monotonic()
                answer = admin.get("/v2/info/stores/detail")
                took = time.monotonic() - begun
                assert answer.status_code == 200
            assert answer.json()["stores"][0]["status"] != "available", answer.text
            assert took < 3
            assert admin.get("/healthcheck").status_code == 200
            assert admin.file(image_id).status_code == 503
        until(lambda: admin.file(image_id).status_code == 200)
