"""Verify and repair: everything that is wrong in the stores is found, nothing that is right; nothing is lost.

By the commands that operators use, on records and files as a service makes them.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.cli import main
from calotype.db import images as db_images
from calotype.db import tables
from calotype.db.engine import now
from calotype.images import checking, data, lifecycle, repair
from calotype.images.checking import Selection, Tally
from calotype.images.lifecycle import NewImage
from calotype.stores import file as file_store
from tests.inprocess import ADMIN, ALICE, make_active, parts
from tests.support import Client, running


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with parts(tmp_path, f"sqlite:///{tmp_path}/calotype.db") as made:
        yield made


@pytest.fixture
def app_on_each(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


def command(
    path: Path, *arguments: str, code: int = 0, conf: str = "c.conf", dies: tuple[Any, str] | None = None
) -> list[dict[str, Any]]:
    """The lines of a command's JSON; the summary is the last one of `verify` and of `repair --dry-run`."""
    words = [*arguments, "--json", "--config-file", str(path / conf), "--state-dir", str(path)]
    out, errors = path / "command.out", path / "command.err"
    # A process of its own, but forked: importing everything anew would take most of the time.
    child = os.fork()
    if not child:
        try:
            with out.open("w") as sys.stdout, errors.open("w") as sys.stderr, open(os.devnull) as sys.stdin:
                if dies is not None:
                    setattr(*dies, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                ended = main.main(words)
        except BaseException:
            ended = 99
        os._exit(ended)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == code, out.read_text() + errors.read_text()
    return [json.loads(line) for line in out.read_text().splitlines()]


def findings(lines: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    found = [line for line in lines if "problem" in line]
    assert len(found) == len({json.dumps(line) for line in found})
    return {(line["problem"], line["store"], line["name"]) for line in found}


def content(number: int) -> bytes:
    return f"image {number:4} ".encode() * (100 + number)


def copy(app: App, path: Path, image_id: str) -> None:
    """A second copy, in store two."""
    shutil.copyfile(path / "one" / image_id, path / "two" / image_id)
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, f"file://{path}/two/{image_id}", {"store": "two"}, now())


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def status(app: App, image_id: str) -> str:
    return lifecycle.show(app.service, ADMIN, image_id).status


def download(app: App, image_id: str) -> bytes:
    prepared = data.prepare(app.service, ADMIN, image_id)
    body = data.open_(app.service, ADMIN, prepared)
    try:
        return b"".join(body)
    finally:
        body.close()


def bytes_of(path: Path) -> list[bytes]:
    """Every content that is anywhere in the stores."""
    return sorted(
        file.read_bytes()
        for store in ("one", "two")
        for file in (path / store).rglob("*")
        if file.is_file() and not file.is_symlink() and file.suffix != ".json" and file.name != ".calotype-store"
    )


@pytest.mark.slow
def test_everything_wrong_is_found_nothing_else_and_nothing_is_lost(app: App, tmp_path: Path) -> None:
    ids = [make_active(app, content=content(number)) for number in range(60)]
    for image_id in ids[20:]:
        copy(app, tmp_path, image_id)
    one, two = tmp_path / "one", tmp_path / "two"
    wanted = set()

    def broken(problem: str, *files: Path) -> None:
        wanted.update((problem, file.parent.name, file.name) for file in files)

    for number, place in ((0, 0), (1, 500), (2, -1), (20, 0), (21, 700), (22, -1)):
        flip(one / ids[number], place)
        broken("hash", one / ids[number])
    for number, size in ((3, 0), (4, 10), (23, 1), (24, len(content(24)) - 1), (5, 9000), (25, 9000)):
        os.truncate(one / ids[number], size)
        broken("size", one / ids[number])
    swapped = one / ids[6], one / ids[26]  # of sizes that differ, and of one size
    (tmp_path / "aside").write_bytes(swapped[0].read_bytes())
    swapped[0].write_bytes(swapped[1].read_bytes())
    swapped[1].write_bytes((tmp_path / "aside").read_bytes())
    broken("size", *swapped)
    (two / ids[27]).write_bytes(bytes(len(content(27))))
    flip(one / ids[27], 3)
    broken("hash", one / ids[27], two / ids[27])
    lost = one / ids[7], one / ids[28]
    for file in lost:
        file.unlink()
    broken("missing", *lost)
    strays = [
        one / "notes.txt", two / ids[8], one / "11111111-2222-4333-8444-555555555555", two / f"{ids[9]}.ab12-1.part",
        one / ids[10].upper(), two / "new\nline",
    ]  # fmt: skip
    for file in strays:
        file.write_bytes(b"stray " + file.name.encode())
    (two / ids[11]).symlink_to(one / ids[11])  # a name of an image of another store
    (one / "directory").mkdir()
    strays += [two / ids[11], one / "directory"]
    queued = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    (one / queued).write_bytes(b"debris")
    strays.append(one / queued)
    before = bytes_of(tmp_path)

    verified = command(tmp_path, "store", "verify", code=1)
    assert findings(verified) == wanted
    assert verified[-1]["summary"]["images"] == 60
    assert verified[-1]["summary"]["copies"] == 100
    broken("stray", *strays)
    listed = command(tmp_path, "repair", "--dry-run", "--deep", "--older-than", "0", code=1)
    assert findings(listed) == wanted
    assert findings(command(tmp_path, "repair", "--dry-run", "--older-than", "0", code=1)) == {
        one for one in wanted if one[0] != "hash"
    }
    command(tmp_path, "repair", "--deep", "--older-than", "0", code=1)  # nobody said yes
    assert bytes_of(tmp_path) == before
    assert findings(command(tmp_path, "repair", "--dry-run", code=1)).isdisjoint(
        {one for one in wanted if one[0] == "stray"}  # just touched
    )

    command(tmp_path, "repair", "--deep", "--older-than", "0", "--yes")
    assert bytes_of(tmp_path) == before
    after = command(tmp_path, "store", "verify")
    alone = {ids[number] for number in (0, 1, 2, 3, 4, 5, 6, 7, 27)}
    assert {line["image"] for line in after if line.get("problem") == "out of service"} == alone
    assert {image_id for image_id in ids if status(app, image_id) == "deactivated"} == alone
    for number, image_id in enumerate(ids):
        if image_id not in alone:
            assert download(app, image_id) == content(number)
    assert findings(command(tmp_path, "repair", "--dry-run", "--deep", "--older-than", "0")) == {
        (problem, line["store"], line["name"])
        for line in after if (problem := line.get("problem"))
    }  # fmt: skip

    kept = {line["name"]: line["key"] for line in command(tmp_path, "repair", "--list-quarantine")}
    assert set(kept) == {name for problem, _, name in wanted if problem != "missing"}
    for number in (20, 0):
        assert command(tmp_path, "repair", "--restore", kept[ids[number]]) == [{"restored": ids[number]}]
    assert findings(command(tmp_path, "store", "verify", "--image", ids[20], "--image", ids[0], code=1)) == {
        ("hash", "one", ids[20]), ("hash", "one", ids[0]),
    }  # fmt: skip


def test_a_store_that_seems_to_be_absent_is_left_alone(app: App, tmp_path: Path) -> None:
    ids = [make_active(app) for _ in range(3)]
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    (tmp_path / "one").mkdir()
    new = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    (tmp_path / "one" / new).write_bytes(b"what a service without identities put there")
    assert {problem for problem, _, _ in findings(command(tmp_path, "store", "verify", code=3))} == {"unreadable"}
    command(tmp_path, "repair", "--yes", "--older-than", "0", code=3)
    assert (tmp_path / "one" / new).exists()
    assert {status(app, image_id) for image_id in ids} == {"active"}


def test_another_database_quarantines_nothing(app: App, tmp_path: Path) -> None:
    (tmp_path / "one" / "11111111-2222-4333-8444-555555555555").write_bytes(b"of another database")
    command(tmp_path, "repair", "--yes", "--older-than", "0", code=3)
    assert bytes_of(tmp_path) == [b"of another database"]


def test_old_records_are_compared_by_what_they_have(app_on_each: App, tmp_path: Path) -> None:
    app = app_on_each
    md5, none = make_active(app, content=b"old"), make_active(app, content=b"older")
    with app.db.write_once() as tx:
        for image_id, values in ((md5, {}), (none, {"checksum": None})):
            values |= {"os_hash_algo": None, "os_hash_value": None}
            tx.execute(sa.update(tables.images).where(tables.images.c.id == image_id).values(values))
    assert command(tmp_path, "store", "verify")[-1]["summary"]["unverifiable"] == 1
    flip(tmp_path / "one" / md5, 1)
    flip(tmp_path / "one" / none, 1)
    assert findings(command(tmp_path, "store", "verify", code=1)) == {("hash", "one", md5)}
    os.truncate(tmp_path / "one" / none, 2)
    assert ("size", "one", none) in findings(command(tmp_path, "store", "verify", code=1))


def test_shares_together_are_everything_and_each_image_is_in_one(tmp_path: Path) -> None:
    names = [f"image-{number}" for number in range(1000)]
    shares = [[name for name in names if Selection(parts=7, first=k, last=k).includes(name)] for k in range(1, 8)]
    assert sorted(name for one in shares for name in one) == sorted(names)
    assert all(100 < len(one) < 190 for one in shares)


def test_what_a_glance_beside_us_works_on_is_left_alone(app_on_each: App, tmp_path: Path) -> None:
    app = app_on_each
    make_active(app)
    saving = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    scrubbed = make_active(app)
    with app.db.write_once() as tx:
        db_images.move(tx, saving, "queued", "saving", now=now())
        pending = {"deleted": True, "deleted_at": now(), "status": "pending_delete"}
        for table, key in ((tables.images, "id"), (tables.image_locations, "image_id")):
            tx.execute(sa.update(table).where(table.c[key] == scrubbed).values(pending))
    (tmp_path / "one" / saving).write_bytes(b"half of it")
    assert findings(command(tmp_path, "repair", "--dry-run", "--older-than", "0")) == set()


def test_a_copy_stays_on_record_when_nobody_knows_whether_the_other_one_is_sound(
    app_on_each: App, tmp_path: Path
) -> None:
    app = app_on_each
    image_id = make_active(app)
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, "file:///far/away", {"store": "far"}, now())
    flip(tmp_path / "one" / image_id, 0)
    left = command(tmp_path, "repair", "--deep", "--yes", code=1)
    assert [line["repaired"] for line in left if "repaired" in line] == [False]
    assert status(app, image_id) == "active"
    assert len(bytes_of(tmp_path)) == 1


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.slow
def test_a_repair_that_is_killed_is_finished_by_the_next_one(app: App, tmp_path: Path, moment: int) -> None:
    """Killed after the record in quarantine, after the rename, after the deactivation."""
    both, alone = make_active(app, content=b"both"), make_active(app, content=b"alone")
    make_active(app)
    copy(app, tmp_path, both)
    for image_id in (both, alone):
        flip(tmp_path / "one" / image_id, 0)
    before = bytes_of(tmp_path)
    dies = ((file_store, "sync_directory"), (repair, "_remove_from_record"), (repair, "_quarantine"))[moment]
    arguments = ["--deep", "--yes", "--older-than", "0"]
    command(tmp_path, "repair", *arguments, code=-signal.SIGKILL, dies=dies)
    assert bytes_of(tmp_path) == before
    command(tmp_path, "repair", *arguments)
    assert bytes_of(tmp_path) == before
    assert (status(app, both), status(app, alone)) == ("active", "deactivated")
    assert download(app, both) == b"both"
    command(tmp_path, "store", "verify")
    assert len([line for line in command(tmp_path, "repair", "--list-quarantine") if "location" in line]) == 2


@pytest.mark.slow
def test_a_service_under_load_gives_no_false_finding(state: Path) -> None:
    with running(state) as service:
        kept = [service.client().active(content(number)) for number in range(5)]
        stop = time.monotonic() + 2
        failed: list[BaseException] = []

        def work(client: Client) -> None:
            try:
                while time.monotonic() < stop:
                    image_id = client.active(os.urandom(300_000))
                    assert client.delete(image_id).status_code == 204
                    broken = client.queued()
                    client.put(broken, iter([b"x" * 200_000]), x_openstack_image_size="5")
                    client.delete(broken)
            except BaseException as exc:
                failed.append(exc)

        clients = [threading.Thread(target=work, args=(service.client(),)) for _ in range(4)]
        for client in clients:
            client.start()
        runs = 0
        while time.monotonic() < stop:
            for words in (["store", "verify"], ["repair", "--yes", "--deep", "--older-than", "0"]):
                assert findings(command(state, *words, conf="calotype.conf")) == set()
                runs += 1
        for client in clients:
            client.join()
        assert failed == []
        assert runs >= 2
        assert all(service.client().file(image_id).content == content(n) for n, image_id in enumerate(kept))
        assert not (service.images / ".quarantine").exists()


def test_an_image_that_is_deleted_before_its_turn_is_no_finding(app: App) -> None:
    ids = sorted(make_active(app) for _ in range(2))

    def pace(_: int) -> None:  # while the first one is read, in the batch of both
        with contextlib.suppress(errors.NotFound):
            lifecycle.delete(app.service, ALICE, ids[1])

    assert list(checking.verify(app.service, Selection(), Tally(), pace)) == []


def test_data_that_a_record_names_otherwise_or_a_scrubber_will_delete_is_no_stray(app: App, tmp_path: Path) -> None:
    image_id, other = make_active(app), make_active(app)
    copy(app, tmp_path, other)
    (tmp_path / "two" / "odd").write_bytes(b"data")
    with app.db.write_once() as tx:
        table = tables.image_locations
        scrubbed = {"deleted": True, "deleted_at": now(), "status": "pending_delete"}
        tx.execute(sa.update(table).where(table.c.value == f"file://{tmp_path}/two/{other}").values(scrubbed))
        db_images.add_location(tx, image_id, f"file://{tmp_path}/two/odd", {"store": "two"}, now())
    assert findings(command(tmp_path, "repair", "--dry-run", "--older-than", "0")) == set()
