"""Lost power loses nothing that was acknowledged; and the disk that forgets what was not synced does forget."""

import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from calotype import errors
from calotype.context import SERVICE
from calotype.durable import make_directory
from tests import support
from tests.crash import mutations
from tests.crash.disk import OUTSIDE, ROOT, Disk, Mounted, Tree
from tests.crash.power import PowerCuts
from tests.stores.test_contract import file_store

pytestmark = pytest.mark.needs("root")

CUTS = 15


@pytest.fixture(autouse=True)
def _may_mount() -> None:
    if (os.geteuid() != 0 or not os.path.exists("/dev/fuse")) and "CI" not in os.environ:
        pytest.skip("it takes root and /dev/fuse to mount a file system")


def test_lost_power_under_load_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    cuts = PowerCuts(tmp_path, seed)
    try:
        cuts.run(CUTS)
        # On a busy machine there is hardly any load before the first cuts: then more follow.
        while cuts.summary.checked <= CUTS and cuts.summary.cuts < 6 * CUTS:
            cuts.run(cuts.summary.cuts + CUTS)
    except AssertionError as exc:
        raise AssertionError(f"seed {seed}; {cuts.line()}\n{exc}") from exc
    print(f"seed {seed}; {cuts.line()}")
    assert cuts.summary.checked > CUTS, "there was hardly any load"


def test_each_sync_in_the_sources_has_a_mutation_that_leaves_it_out() -> None:
    assert Counter(mutations.left_out()) >= Counter(mutations.syncs())


# --- the disk --------------------------------------------------------------------------------------------

_KEPT = {"a": b"new"}


def _write(path: Path, text: bytes = b"new") -> Path:
    path.write_bytes(text)
    return path


def _sync(*paths: Path) -> None:
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        os.fsync(number)
        os.close(number)


def _written(disk: Path) -> None:
    _sync(_write(disk / "a"), disk)


def _overwritten(disk: Path) -> None:
    _sync(_write(disk / "a", b"o" * 1024), disk)
    with (disk / "a").open("r+b") as file:
        file.write(b"n" * 1024)


def _datasynced(disk: Path) -> None:
    with (disk / "a").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fdatasync(file.fileno())
    _sync(disk)


def _truncated(disk: Path) -> None:
    _written(disk)
    os.truncate(disk / "a", 1)


def _linked(disk: Path) -> None:
    _written(disk)
    os.link(disk / "a", disk / "b")


def _renamed(disk: Path) -> None:
    _written(disk)
    (disk / "a").rename(disk / "b")


def _renamed_elsewhere(disk: Path) -> None:
    make_directory(disk / "d")
    _sync(_write(disk / "a"))
    (disk / "a").rename(disk / "d" / "a")
    _sync(disk / "d")


def _removed(disk: Path) -> None:
    _written(disk)
    (disk / "a").unlink()


def _in_a_new_directory(disk: Path) -> None:
    (disk / "d").mkdir()
    _sync(_write(disk / "d" / "a"), disk / "d")


def _in_a_directory_made_durably(disk: Path) -> None:
    make_directory(disk / "d" / "e")
    _sync(_write(disk / "d" / "e" / "a"), disk / "d" / "e")


def _in_a_directory_that_a_killed_process_made(disk: Path) -> None:
    (disk / "d").mkdir()
    make_directory(disk / "d")
    _sync(_write(disk / "d" / "a"), disk / "d")


#: What is done, and everything that may be left.
LEFT: list[tuple[Callable[[Path], object], list[dict[str, bytes]]]] = [
    (_written, [_KEPT]),
    (lambda disk: _write(disk / "a"), [{}, {"a": b""}, {"a": bytes(3)}, _KEPT]),
    (lambda disk: _sync(_write(disk / "a")), [{}, _KEPT]),
    (lambda disk: (_write(disk / "a"), _sync(disk)), [{"a": b""}, {"a": bytes(3)}, _KEPT]),
    (_datasynced, [_KEPT]),
    (_overwritten, [{"a": one * 512 + two * 512} for one in (b"o", b"n") for two in (b"o", b"n")]),
    (_truncated, [_KEPT, {"a": b"n\0\0"}, {"a": b"n"}]),
    (_linked, [_KEPT, _KEPT | {"b": b"new"}]),
    (_renamed, [_KEPT, {"b": b"new"}]),
    (_renamed_elsewhere, [{"d/a": b"new"}]),
    (_removed, [_KEPT, {}]),
    (_in_a_new_directory, [{}, {"d/a": b"new"}]),
    (_in_a_directory_made_durably, [{"d/e/a": b"new"}]),
    (_in_a_directory_that_a_killed_process_made, [{"d/a": b"new"}]),
]


@pytest.mark.parametrize(("work", "left"), LEFT, ids=[getattr(work, "__name__", "") for work, _ in LEFT])
def test_a_disk_keeps_what_was_synced_and_may_forget_the_rest(
    tmp_path: Path, work: Callable[[Path], object], left: list[dict[str, bytes]]
) -> None:
    mounted = Mounted(Disk.empty(), tmp_path / "disk")
    try:
        work(tmp_path / "disk")
        disk = mounted.end()
    finally:
        mounted.close()
    found = [_files(disk.survivors(random.Random(seed)).base) for seed in range(300)]
    assert {tuple(files.items()) for files in found} == {tuple(files.items()) for files in left}


def test_a_delete_that_was_begun_before_a_kill_is_done_only_when_it_is_durable(tmp_path: Path) -> None:
    mounted = Mounted(Disk.empty(), tmp_path / "disk")
    try:
        store = file_store(tmp_path / "disk")
        _sync(_write(store.directory / "a"), store.directory)
        (store.directory / "a").unlink()  # by a process that came no further
        with pytest.raises(errors.Missing):
            store.delete(f"file://{store.directory}/a", ctx=SERVICE)
        disk = mounted.end()
    finally:
        mounted.close()
    for seed in range(100):
        assert {*_files(disk.survivors(random.Random(seed)).base)} == {"one/.calotype-store"}


@pytest.mark.parametrize("restored", [False, True])
def test_what_is_put_aside_is_there_or_in_quarantine_with_its_record(tmp_path: Path, restored: bool) -> None:
    mounted = Mounted(Disk.empty(), tmp_path / "disk")
    try:
        store = file_store(tmp_path / "disk")
        _sync(_write(store.directory / "a"), store.directory)
        entry = store.entry("a")
        assert entry
        begun = len(support.names(store.directory))
        key = store.quarantine(entry, {"why": "wrong"})
        assert begun == 1 and key  # noqa: PT018
        if restored:
            store.restore(key)
        disk = mounted.end()
    finally:
        mounted.close()

    def there(files: dict[str, bytes]) -> tuple[bool, bool]:
        """Whether the data is at its place, and whether it is in quarantine."""
        names = {os.path.basename(name): content for name, content in files.items()}
        record = names.get(f"{key}.json", b"")
        aside = names.get(f"{key}.data") == b"new" and record.endswith(b"}") and json.loads(record)["name"] == "a"
        return names.get("a") == b"new", aside

    synced = next(n for n in range(len(disk.changes) + 1) if there(_files(Disk(disk.base, disk.changes[:n]).now()))[0])
    for moment in range(synced + 4, len(disk.changes) + 1):  # the file and its directory are synced first
        for seed in range(20):
            left = Disk(disk.base, disk.changes[:moment]).survivors(random.Random(seed))
            assert any(there(_files(left.base))), (moment, seed)
    for seed in range(100):
        place, aside = there(_files(disk.survivors(random.Random(seed)).base))
        assert place if restored else aside and not place


def test_who_lived_is_known_after_lost_power(tmp_path: Path) -> None:
    announce = "from calotype.db.leases import Leases; Leases(None, Path('lib/owners')).owner; os._exit(0)"
    mounted = Mounted(Disk.empty(), tmp_path / "disk")
    try:
        command = [sys.executable, "-c", f"import os; from pathlib import Path; {announce}"]
        subprocess.run(command, cwd=tmp_path / "disk", check=True, timeout=60)
        disk = mounted.end()
    finally:
        mounted.close()
    names = sorted(_files(disk.now()))
    assert [os.path.dirname(name) for name in names] == ["lib/owners"]
    for seed in range(100):
        assert sorted(_files(disk.survivors(random.Random(seed)).base)) == names


def _files(tree: Tree, directory: int = ROOT, way: str = "") -> dict[str, bytes]:
    """All files but the one outside, sorted."""
    files: dict[str, bytes] = {}
    for name, inode in sorted(tree[directory].names.items()):
        if stat.S_ISDIR(tree[inode].mode):
            files |= _files(tree, inode, f"{way}{name}/")
        elif name != OUTSIDE:
            files[way + name] = bytes(tree[inode].data)
    return files
