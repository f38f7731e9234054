"""What only a directory can get wrong: symbolic links, holes, permissions, room, what Glance left there."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.context import SERVICE
from calotype.stores import file_objects
from calotype.stores.file import FileStore
from tests.stores.suite import ID, OTHER, content, store_object, write
from tests.stores.test_contract import defaults, file_store
from tests.support import names, tool


def test_files_are_named_and_located_as_glance_has_them(tmp_path: Path) -> None:
    url = write(file_store(tmp_path), [b"abc"])
    assert url == f"file://{tmp_path}/one/{ID}"
    assert names(tmp_path / "one") == [ID]
    (tmp_path / "one" / "by-glance").write_bytes(b"old")
    assert content(file_store(tmp_path), f"file://{tmp_path}/one/by-glance") == b"old"
    assert content(file_store(tmp_path), f"filesystem://{tmp_path}/one/by-glance") == b"old"


def test_a_disk_that_fails_in_the_middle_of_a_read_is_told_in_our_words(tmp_path: Path) -> None:
    store = file_store(tmp_path, filesystem_store_chunk_size=4096)
    body = store.read(write(store, [b"x" * 10_000]), ctx=SERVICE)
    pieces, file = iter(body), body.file()
    next(pieces)
    assert file
    directory = os.open(tmp_path, os.O_RDONLY)
    os.dup2(directory, file.fileno())  # the kernel refuses to read it
    os.close(directory)
    with pytest.raises(errors.StoreUnavailable):
        next(pieces)


def test_a_planted_link_is_not_read(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "one" / ID).symlink_to(secret)
    with pytest.raises(errors.Missing):
        store.read(f"file://{tmp_path}/one/{ID}", ctx=SERVICE)
    with pytest.raises(errors.Missing):
        store.size(f"file://{tmp_path}/one/{ID}", ctx=SERVICE)


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    for name in (ID, f"{ID}.ab12-1.part"):
        (tmp_path / "one" / name).symlink_to(victim)
        with pytest.raises(errors.StoreError):
            write(store, [b"overwritten"])
        (tmp_path / "one" / name).unlink(missing_ok=True)
    assert victim.read_bytes() == b"keep"


def test_pipes_and_directories_are_no_images(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    os.mkfifo(tmp_path / "one" / "pipe")
    (tmp_path / "one" / "dir").mkdir()
    for name in ("pipe", "dir"):
        with pytest.raises(errors.StoreError):
            store.read(f"file://{tmp_path}/one/{name}", ctx=SERVICE)


def test_zeros_become_holes_where_that_is_asked_for(tmp_path: Path) -> None:
    data = b"a" * 4096 + bytes(8 << 20) + b"b" * 4096 + bytes(1 << 20)
    pieces = [data[start : start + 700_001] for start in range(0, len(data), 700_001)]
    thin = file_store(tmp_path, "thin", filesystem_thin_provisioning=True)
    thick = file_store(tmp_path, "thick")
    assert content(thin, write(thin, pieces)) == content(thick, write(thick, pieces)) == data
    assert os.stat(tmp_path / "thin" / ID).st_blocks * 512 <= 512 << 10
    assert os.stat(tmp_path / "thick" / ID).st_blocks * 512 >= 8 << 20


def test_permissions_are_the_operators(tmp_path: Path) -> None:
    write(file_store(tmp_path, "a"), [b"x"])
    assert os.stat(tmp_path / "a" / ID).st_mode & 0o777 == 0o600
    write(file_store(tmp_path, "b", filesystem_store_file_perm=640), [b"x"])
    assert os.stat(tmp_path / "b" / ID).st_mode & 0o777 == 0o640
    for wrong in (888, 7777, 200):
        with pytest.raises(errors.ConfigError):
            file_store(tmp_path, "c", filesystem_store_file_perm=wrong)


def test_room_is_left_for_the_rest_of_the_machine(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    reserve = (free.f_bavail * free.f_frsize >> 20) + 1024
    store = file_store(tmp_path, filesystem_store_reserve=reserve)
    with pytest.raises(errors.StoreFull):
        write(store, [b"x"])
    with pytest.raises(errors.StoreFull):
        write(file_store(tmp_path), [b"x"], size=1 << 60)
    assert names(tmp_path / "one") == []


def test_a_file_that_shrinks_breaks_the_download_instead_of_ending_it(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    url = write(store, [b"a" * 100_000])
    body = store.read(url, ctx=SERVICE)
    os.truncate(tmp_path / "one" / ID, 1000)
    with pytest.raises(errors.StoreError):
        b"".join(body)
    with pytest.raises(errors.StoreError):
        body.close()
    with pytest.raises(errors.StoreError):
        store.read(url, length=100_000, ctx=SERVICE)


@pytest.mark.needs("strace")
def test_what_is_synced_and_when(tmp_path: Path) -> None:
    """The order that survives a power cut: data, then the name, then the directory; seen from outside by strace."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.stores.suite import write\n"
        "from tests.stores.test_contract import file_store\n"
        "write(file_store(Path(sys.argv[1])), [b'abc'])\n"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        [tool("strace"), "-f", "-y", "-o", str(trace), "-e", "trace=write,fsync,fdatasync,link,linkat,unlinkat,fchmod",
         sys.executable, "-c", script, str(tmp_path)],
        check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    calls = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines()]
    calls = [call for call in calls if str(tmp_path / "one") in call]
    done = [call.partition("(")[0] for call in calls]
    assert done == ["fchmod", "write", "fsync", "fsync", "write", "fsync", "linkat", "unlinkat", "fsync"], calls
    assert ID in calls[5]  # the file, after the identity of the store
    assert ".part" not in calls[8]


# --- what is removed is what was meant ---------------------------------------------------------------------


def replaced_when(monkeypatch: pytest.MonkeyPatch, call: str, replace: Callable[[], None]) -> None:
    """Let a cleaner stall at a call of the system until somebody else has put another file under the name."""
    real = getattr(os, call)

    def stalls(*arguments: Any, **more: Any) -> Any:
        if ID in map(str, arguments[:1]):
            monkeypatch.undo()
            replace()
        return real(*arguments, **more)

    monkeypatch.setattr(os, call, stalls)


@pytest.mark.parametrize(
    ("how", "call", "known"),
    [
        ("delete", "stat", True),
        ("delete", "rename", True),
        ("delete", "rename", False),
        ("clean", "stat", True),
        ("clean", "rename", True),
    ],
)
def test_a_cleaner_that_stalls_removes_nothing_but_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, call: str, known: bool
) -> None:
    store, notes = file_store(tmp_path), []
    done = store_object(store, [b"first"], attempt="aa-1", notes=notes)

    def replace() -> None:
        store.delete(done.url, object_id=done.object_id, ctx=SERVICE)
        write(store, [b"later"], attempt="bb-1")

    replaced_when(monkeypatch, call, replace)
    if how == "clean":
        store.clean(ID, "aa-1", notes[-1])
    else:
        with pytest.raises(errors.Replaced):
            store.delete(done.url, object_id=done.object_id if known else None, ctx=SERVICE)
    assert content(store, done.url) == b"later"
    assert names(tmp_path / "one") == [ID]
    assert not list((tmp_path / "one").glob("*aside"))


def test_what_is_put_aside_is_what_was_seen_whatever_happens_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = file_store(tmp_path)
    url, seen = write(store, [b"first"]), store.entry(ID)
    assert seen

    def replace() -> None:
        store.delete(url, ctx=SERVICE)
        write(store, [b"later"], attempt="bb-1")

    replaced_when(monkeypatch, "rename", replace)
    assert store.quarantine(seen, {}) is None
    assert content(store, url) == b"later"
    assert list(store.quarantined()) == []


def test_who_is_killed_while_removing_leaves_nothing_that_is_lost_or_stays(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    done = store_object(store, [b"first"], attempt="aa-1")
    aside = tmp_path / "one" / f".{ID}.{done.object_id}.aside"
    (tmp_path / "one" / ID).rename(aside)  # killed before it was removed
    store.delete(done.url, object_id=done.object_id, ctx=SERVICE)
    assert not aside.exists()
    url = write(store, [b"later"], attempt="bb-1")
    (tmp_path / "one" / ID).rename(aside)  # killed before it was put back
    os.utime(aside, ns=(0, moment := os.stat(aside).st_mtime_ns - 120 * 10**9))
    assert os.stat(aside).st_mtime_ns == moment
    store.sweep(lambda _: False)
    assert content(store, url) == b"later"
    assert not aside.exists()


def test_an_object_is_known_after_its_store_was_copied_to_another_disk(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    done = [store_object(store, [b"x"], one) for one in (ID, OTHER)]
    for times in ([], ["--no-preserve=timestamps"]):
        subprocess.run(["cp", "-a", *times, tmp_path / "one", tmp_path / f"copy{len(times)}"], check=True)
    subprocess.run(["touch", "-d", "@1000000000.5", tmp_path / "copy1" / OTHER], check=True)
    kept, touched = (
        FileStore("one", defaults("file", filesystem_store_datadir=str(tmp_path / f"copy{n}"))) for n in (0, 1)
    )
    for moved in (kept, touched):
        moved.identity = store.identity
        moved.add_former([store.place])
    kept.delete(done[0].url, object_id=done[0].object_id, ctx=SERVICE)
    assert names(tmp_path / "copy0") == [OTHER]
    with pytest.raises(errors.Replaced):
        touched.delete(done[1].url, object_id=done[1].object_id, ctx=SERVICE)


def test_where_times_are_whole_seconds_the_inode_tells(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    os.utime(path, (1000, 1000))
    found = os.stat(path)
    assert file_objects.is_object(f"{found.st_mtime_ns}-1-{found.st_ino}", found)
    assert not file_objects.is_object(f"{found.st_mtime_ns}-1-{found.st_ino + 1}", found)
    assert file_objects.is_object(
        f"{found.st_mtime_ns + 7}-1-{found.st_ino + 1}", found
    )  # copied by who keeps seconds only
    assert not file_objects.is_object(f"{found.st_mtime_ns}-2-{found.st_ino}", found)


def test_files_of_one_moment_have_times_of_their_own(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    ids = [f"{number:08}-2222-4333-8444-555555555555" for number in range(50)]
    begun = time.time_ns()
    times = {os.stat(tmp_path / "one" / one).st_mtime_ns for one in ids if write(store, [b"x"], image_id=one)}
    assert len(times) == 50
    # Of the second before: the kernel's own would be of this one, and alike for what is written at once.
    ticks = range(begun // 10**9 - 1, time.time_ns() // 10**9)
    assert all(moment // 10**9 in ticks for moment in times)
    assert min(times) < begun


def test_what_file_systems_and_tools_leave_is_no_stray(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    for name in (".nfs0000000000e1a2b300000001", ".snapshot", ".Trash-0", "lost+found", "stray"):
        (tmp_path / "one" / name).mkdir()
    assert [entry.name for entry in store.entries()] == ["stray"]


def test_nothing_is_changed_in_a_directory_that_is_not_the_stores(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    url, seen = write(store, [b"kept"]), store.entry(ID)
    assert seen
    marker = tmp_path / "one" / ".calotype-store"
    for identity, words in (
        (None, "mounted"),
        ('{"identity": "other"}', "another store"),
        ("rubbish", "cannot be read"),
    ):
        marker.unlink(missing_ok=True)
        if identity is not None:
            marker.write_text(identity)
        for change in (
            lambda: write(store, [b"x"], image_id=OTHER),
            lambda: store.delete(url, ctx=SERVICE),
            lambda: store.clean(ID, "aa-1", None),
            lambda: store.sweep(lambda _: False),
            lambda: store.quarantine(seen, {}),
            lambda: list(store.entries()),
            store.confirm,
        ):
            with pytest.raises(errors.StoreUnavailable):
                change()
        health = store.check()
        assert not health.ok
        assert words in (health.error or "") or identity == "rubbish"
        assert content(store, url) == b"kept"
    assert names(tmp_path / "one") == [ID]


def test_a_directory_that_is_replaced_while_data_comes_gets_none_of_it(tmp_path: Path) -> None:
    store = file_store(tmp_path)

    def pieces() -> Iterator[bytes]:
        yield b"half"
        (tmp_path / "one").rename(tmp_path / "away")
        file_store(tmp_path)

    with pytest.raises(errors.StoreUnavailable, match="replaced"):
        write(store, pieces())
    assert names(tmp_path / "one") == names(tmp_path / "away") == []
    assert write(store, [b"heals by itself"])


@pytest.mark.parametrize(("directory", "marker"), [(0o700, 0o600), (0o750, 0o640), (0o755, 0o644)])
def test_whoever_may_read_the_directory_may_read_which_store_it_is(tmp_path: Path, directory: int, marker: int) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one").chmod(directory)
    before = os.umask(0o077)
    try:
        file_store(tmp_path)
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "one" / ".calotype-store").st_mode & 0o777 == marker


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_what_root_makes_in_a_store_is_the_services(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    store = file_store(tmp_path)
    write(store, [b"stray"])
    seen = store.entry(ID)
    assert seen
    before = os.umask(0o077)
    try:
        assert store.quarantine(seen, {})
    finally:
        os.umask(before)
    made = [tmp_path / "one", tmp_path / "one" / ".calotype-store", tmp_path / "one" / ".quarantine"]
    made += (tmp_path / "one" / ".quarantine").glob("*.json")
    assert {path.name: os.stat(path).st_uid for path in made} == {path.name: 12345 for path in made}


def test_processes_that_take_one_store_into_use_at_once_do_not_hinder_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = file_store(tmp_path)
    real = Path.replace

    def slow(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        store.establish("same")  # another one, between writing and renaming
        return real(self, target)

    monkeypatch.setattr(Path, "replace", slow)
    store.establish("same")
    assert store.found_identity() == "same"


def test_a_file_older_than_all_clocks_can_be_deleted(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    url = write(store, [b"x"])
    os.utime(tmp_path / "one" / ID, (-5, -5))
    store.delete(url, ctx=SERVICE)
    assert names(tmp_path / "one") == []
