"""The promises of `stores/base.py` as assertions. A new driver is one more line in `STORES` and passes all of this."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from calotype import errors
from calotype.buffers import BUFFER, Buffers, Piece
from calotype.context import SERVICE
from calotype.stores.base import Audits, Feature, Store, Stored, Write, writing
from calotype.stores.file import FileStore
from calotype.stores.memory import MemoryStore
from calotype.stores.registry import DRIVERS
from tests.support import until

ID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"


def defaults(kind: str, **given: Any) -> dict[str, Any]:
    return {option.dest: option.default for option in DRIVERS[kind][1]} | given


def file_store(path: Path, name: str = "one", **given: Any) -> FileStore:
    """One whose directory is known as its own."""
    store = FileStore(name, defaults("file", filesystem_store_datadir=str(path / name), **given))
    store.identity = f"identity-of-{name}"
    if store.found_identity() is None:
        store.establish(store.identity)
    return store


STORES: dict[str, Callable[[Path, str], Store]] = {
    "file": lambda path, name: file_store(path, name),
    "thin file": lambda path, name: file_store(path, name, filesystem_thin_provisioning=True),
    "memory": lambda path, name: MemoryStore(name, defaults("memory")),
}


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    return lambda name: STORES[request.param](tmp_path, name)


@pytest.fixture
def store(make: Callable[[str], Store]) -> Store:
    return make("one")


#: What pieces are lent from. Small, so that a write that keeps what it must not is soon noticed.
BUFFERS = Buffers(8 << 20)


def feed(write: Write, pieces: Iterable[bytes]) -> None:
    """Put pieces as the product does. What is released is overwritten: a driver that keeps a view stores rubbish."""
    lent: list[tuple[Piece, Piece]] = []

    def overwrite(most: int) -> None:
        for whole, given in list(lent):
            if not given.held:
                whole.view[:] = b"\xee" * len(whole.view)
                whole.release()
                lent.remove((whole, given))
        assert len(lent) <= most, "the write keeps more pieces than its window says"

    try:
        for data in pieces:
            for start in range(0, len(data), BUFFER):
                part = data[start : start + BUFFER]
                if write.window:
                    until(lambda: sum(given.held for _, given in lent) < write.window)
                whole = BUFFERS.take(len(part))
                assert len(whole.view) == len(part)
                whole.view[:] = part
                given = whole.hold()
                lent.append((whole, given))
                write.put(given)
                if not write.window:
                    given.release()
                overwrite(write.window)
    finally:
        for whole, _ in lent:
            whole.release()


def store_object(
    store: Store, pieces: Iterable[bytes], image_id: str = ID, attempt: str = "ab12-1", **more: Any
) -> Stored:
    notes: list[Any] = more.pop("notes", [])
    arguments = {"attempt": attempt, "size": None, "note": notes.append, "ctx": SERVICE} | more
    with writing(store, image_id, **arguments) as write:
        feed(write, pieces)
        return write.commit()


def write(store: Store, pieces: Iterable[bytes], *given: str, **more: Any) -> str:
    """The URL of an object with this content."""
    return store_object(store, pieces, *given, **more).url


def content(store: Store, url: str, **part: int) -> bytes:
    body = store.read(url, ctx=SERVICE, **part)
    try:
        data = b"".join(body)
        assert len(data) == body.size
        return data
    finally:
        body.close()


PIECES = {
    "nothing": [],
    "one byte": [b"x"],
    "pieces": [b"a" * 1000, b"b" * 70000, b"c"],
    "zeros": [bytes(1 << 20)] * 3,
    "zeros between": [b"a" * 65536 + bytes(200_000) + b"b", bytes(1 << 20), b"end", bytes(100_000)],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_what_is_written_is_read_again(store: Store, pieces: list[bytes]) -> None:
    url = write(store, pieces)
    assert content(store, url) == b"".join(pieces)
    assert store.size(url, ctx=SERVICE) == sum(map(len, pieces))
    assert store.owns(url)


def test_a_write_reports_its_size(store: Store) -> None:
    assert store_object(store, [b"abc", b"de"], size=5).size == 5


def test_any_range_can_be_read(store: Store) -> None:
    data = bytes(range(256)) * 1000
    url = write(store, [data])
    for offset, length in ((0, 1), (255, 2), (100, 100_000), (len(data) - 1, 1), (0, len(data)), (len(data), 0)):
        assert content(store, url, offset=offset, length=length) == data[offset : offset + length]
    assert content(store, url, offset=1000) == data[1000:]


def test_a_range_beyond_the_end_is_refused_before_the_first_byte(store: Store) -> None:
    url = write(store, [b"abc"])
    with pytest.raises(errors.StoreError):
        store.read(url, offset=1, length=3, ctx=SERVICE)


def test_a_broken_source_leaves_nothing(store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield b"first"
        raise errors.BodyBroken("gone")

    notes: list[Any] = []
    with pytest.raises(errors.BodyBroken, match="gone"):
        write(store, broken(), notes=notes)
    assert write(store, [b"again"], attempt="ab12-2")


def test_nothing_is_final_before_the_source_has_ended(make: Callable[[str], Store]) -> None:
    store, seen = make("one"), []

    def watched() -> Iterator[bytes]:
        yield b"all of it"
        url = write(make("two"), [b"x"]).replace("two", "one")  # how this driver would name the object
        try:
            seen.append(content(store, url))
        except errors.Missing:
            seen.append(None)

    url = write(store, watched())
    assert seen == [None]
    assert content(store, url) == b"all of it"


def test_nothing_is_overwritten(store: Store) -> None:
    url = write(store, [b"first"])
    with pytest.raises(errors.AlreadyStored):
        write(store, [b"second"], attempt="ab12-2")
    assert content(store, url) == b"first"


def test_of_two_writers_at_once_one_wins(store: Store) -> None:
    barrier, results = threading.Barrier(2), []

    def one(attempt: str, data: bytes) -> None:
        def pieces() -> Iterator[bytes]:
            yield data
            barrier.wait(timeout=10)  # both have begun, neither has ended

        try:
            results.append(write(store, pieces(), attempt=attempt) and data)
        except errors.AlreadyStored:
            results.append(None)

    threads = [threading.Thread(target=one, args=(f"ab{n}-1", bytes([n]) * 1000)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [data for data in results if data]
    assert len(winners) == 1
    url = write(store, [b""], image_id=OTHER).replace(OTHER, ID)
    assert content(store, url) == winners[0]


def test_delete_removes_and_then_misses(store: Store) -> None:
    url = write(store, [b"abc"])
    store.delete(url, ctx=SERVICE)
    for attempt in (store.delete, store.size, store.read):
        with pytest.raises(errors.Missing):
            attempt(url, ctx=SERVICE)
    assert content(store, write(store, [b"new"], attempt="ab12-2")) == b"new"


def test_clean_removes_a_finished_object_that_was_never_reported(store: Store) -> None:
    notes: list[Any] = []
    url = write(store, [b"abc"], notes=notes)
    store.clean(ID, "ab12-1", notes)
    store.clean(ID, "ab12-1", notes)
    with pytest.raises(errors.Missing):
        store.size(url, ctx=SERVICE)


def test_a_cleaner_that_comes_late_leaves_the_object_of_a_later_attempt(store: Store) -> None:
    """The file system may give the later object the same inode number."""
    notes: list[Any] = []
    url = write(store, [b"first"], notes=notes)
    for number in range(20):
        store.delete(url, ctx=SERVICE)
        url = write(store, [b"later"], attempt=f"bb-{number}")
        store.clean(ID, "ab12-1", notes)
        assert content(store, url) == b"later"


def test_clean_leaves_what_another_attempt_stored(store: Store) -> None:
    notes: list[Any] = []

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise errors.BodyBroken("gone")

    with pytest.raises(errors.BodyBroken):
        write(store, broken(), attempt="aa-1", notes=notes)
    url = write(store, [b"kept"], attempt="bb-1")
    store.clean(ID, "aa-1", [])
    assert content(store, url) == b"kept"


def test_a_writer_that_was_cleaned_away_cannot_finish(store: Store) -> None:
    notes: list[Any] = []

    def slow() -> Iterator[bytes]:
        yield b"half"
        store.clean(ID, "aa-1", notes)  # its lease ran out while it slept
        yield b"rest"

    with pytest.raises(errors.Gone):
        write(store, slow(), attempt="aa-1", notes=notes)
    assert content(store, write(store, [b"new"], attempt="bb-1")) == b"new"


def test_a_note_that_cannot_be_kept_stops_the_write(store: Store) -> None:
    def refuse(_: Any) -> None:
        raise errors.Gone("not any more")

    with pytest.raises(errors.Gone):
        write(store, [b"x"], note=refuse)
    assert write(store, [b"new"], attempt="bb-1")


def test_a_store_owns_its_own_names_only(make: Callable[[str], Store]) -> None:
    one, two = make("one"), make("two")
    url = write(one, [b"x"])
    assert one.owns(url)
    assert not two.owns(url)
    for foreign in ("", "http://host/x", "file:///etc/passwd", url + "/more", url.replace(ID, "../../etc/passwd"),
                    url + "?x=1", "rbd://fsid/pool/image/snap"):  # fmt: skip
        assert not one.owns(foreign), foreign
        with pytest.raises(errors.StoreError):
            one.read(foreign, ctx=SERVICE)


def test_a_store_tells_how_it_is(store: Store) -> None:
    health = store.check()
    assert health.ok
    assert health.error is None
    assert health.free is not None
    assert health.total is not None
    assert 0 < health.free <= health.total
    assert {Feature.READ, Feature.RANGE} <= store.features
    assert isinstance(store.details(), dict)


@pytest.fixture
def audited(store: Store) -> Audits:
    if not isinstance(store, Audits):
        pytest.skip("this kind of store has no quarantine")
    return store


def test_what_is_put_aside_is_not_there_and_can_be_brought_back(store: Store, audited: Audits) -> None:
    url, other = write(store, [b"abc"]), write(store, [b"other"], image_id=OTHER)
    entries = {entry.name: entry for entry in audited.entries()}
    name = audited.name_of(url) or ""
    assert set(entries) == {name, audited.name_of(other)}
    assert entries[name].size == 3
    assert audited.entry(name) == replace(entries[name], age=ANY)
    key = audited.quarantine(entries[name], {"why": "a test"}) or ""
    assert [(one.key, one.name, one.size, one.facts) for one in audited.quarantined()] == [
        (key, name, 3, {"why": "a test"})
    ]
    assert [entry.name for entry in audited.entries()] == [audited.name_of(other)]
    with pytest.raises(errors.Missing):
        store.read(url, ctx=SERVICE)
    assert audited.restore(key).name == name
    assert content(store, url) == b"abc"
    assert list(audited.quarantined()) == []
    with pytest.raises(errors.Missing):
        audited.restore(key)


def test_what_changed_since_it_was_seen_is_not_put_aside(store: Store, audited: Audits) -> None:
    url = write(store, [b"abc"])
    seen = audited.entry(audited.name_of(url) or "")
    assert seen
    store.delete(url, ctx=SERVICE)
    assert audited.quarantine(seen, {}) is None
    write(store, [b"new"], attempt="ab12-2")
    assert audited.quarantine(seen, {}) is None
    assert content(store, url) == b"new"
    assert list(audited.quarantined()) == []


def test_nothing_is_overwritten_by_bringing_something_back(store: Store, audited: Audits) -> None:
    url = write(store, [b"old"])
    seen = audited.entry(audited.name_of(url) or "")
    assert seen
    key = audited.quarantine(seen, {}) or ""
    write(store, [b"newer"], attempt="ab12-2")
    with pytest.raises(errors.AlreadyStored):
        audited.restore(key)
    assert content(store, url) == b"newer"
    assert [one.key for one in audited.quarantined()] == [key]


def test_an_upload_in_work_is_listed_with_its_attempt(store: Store, audited: Audits) -> None:
    seen: list[Any] = []

    def watched() -> Iterator[bytes]:
        yield b"half"
        seen.extend(entry.attempt for entry in audited.entries())

    write(store, watched(), attempt="ab12-1")
    assert seen in ([], ["ab12-1"])
