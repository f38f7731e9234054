"""What only a directory can get wrong: symbolic links, holes, permissions, room, what Glance left there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from calotype import errors
from calotype.context import SERVICE
from tests.stores.test_contract import ID, content, file_store, write
from tests.support import tool


def test_files_are_named_and_located_as_glance_has_them(tmp_path: Path) -> None:
    url = write(file_store(tmp_path), [b"abc"])
    assert url == f"file://{tmp_path}/one/{ID}"
    assert os.listdir(tmp_path / "one") == [ID]
    (tmp_path / "one" / "by-glance").write_bytes(b"old")
    assert content(file_store(tmp_path), f"file://{tmp_path}/one/by-glance") == b"old"
    assert content(file_store(tmp_path), f"filesystem://{tmp_path}/one/by-glance") == b"old"


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
    assert os.listdir(tmp_path / "one") == []


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


def test_what_is_synced_and_when(tmp_path: Path) -> None:
    """The order that survives a power cut: data, then the name, then the directory; seen from outside by strace."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.stores.test_contract import file_store, write\n"
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
    names = [call.partition("(")[0] for call in calls]
    assert names == ["write", "fsync", "linkat", "unlinkat", "fsync"], calls
    assert ".part" in calls[1]
    assert ".part" not in calls[4]
