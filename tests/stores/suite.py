"""The contract of `stores/base.py` as assertions: each function of `CHECKS` is one promise, checked on a `Kit`.

A driver brings a kit (`test_contract.py` has those of the drivers here): its stores, and hooks that put its backend out
of order. `test_suite.py` plants faults in a toy driver, one at a time, and sees that the suite finds each.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import ANY

import pytest

from calotype import errors
from calotype.buffers import BUFFER, Buffers, Piece
from calotype.context import SERVICE, Context
from calotype.stores.base import Audits, Feature, Store, Stored, Write, writing
from tests.support import until

ID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"


@dataclass(frozen=True, slots=True)
class Thing:
    """What has a name in a backend: an object, with its URL and its size in bytes, or something temporary without."""

    name: str
    url: str | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Configured:
    """How a service of another process comes to have a kit's store `one`: by a type, options, and its environment."""

    kind: str
    options: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def conf(self) -> str:
        """Text of a configuration file."""
        lines = "\n".join(f"{name} = {value}" for name, value in self.options.items())
        head = f"[DEFAULT]\nenabled_backends = one:{self.kind}\n[glance_store]\ndefault_backend = one\n"
        return f"{head}[one]\n{lines}\n"


class Kit:
    """What the suite needs of a driver. A hook that a backend cannot have skips what needs it."""

    #: Seconds within which whatever is asked of a backend that hangs fails, by the time-outs of the kit's stores.
    patience = 5.0
    #: The `read_timeout` of the kit's stores, seconds: long enough to tell a read that was cancelled from one that ended.
    read_timeout = 1.0
    #: Seconds after the start of a service within which nothing is left of a kill.
    recovery = 5.0
    #: How often a check repeats what a backend may do in one of many cases. Fewer where each takes long, and none differs.
    rounds = 20
    #: Whether a read that has begun ends well although the object is deleted meanwhile, as that of an open file does.
    reads_outlive_deletes = True

    def store(self, name: str = "one") -> Store:
        """A store of this name at a place of its own; asked again for a name, another one at the same place."""
        raise NotImplementedError

    def things(self) -> list[Thing]:
        """Everything there is in the backend for store `one`, seen past it: objects, parts, debris; no fixed furniture."""
        raise NotImplementedError

    def left_over(self) -> list[str]:
        """The names of all these."""
        return sorted(thing.name for thing in self.things())

    def configured(self) -> Configured:
        """For the crash harness: its data outlives every process of the service."""
        pytest.skip("no hook")

    def close(self) -> None:
        """End what the kit has started."""

    def full(self, store: Store) -> AbstractContextManager[None]:
        """Meanwhile the backend has no room for a byte."""
        pytest.skip("no hook")

    def broken(self, store: Store) -> AbstractContextManager[None]:
        """Meanwhile whatever is asked of the backend fails."""
        pytest.skip("no hook")

    def hanging(self, store: Store) -> AbstractContextManager[None]:
        """Meanwhile the backend answers nothing."""
        pytest.skip("no hook")

    def truncate(self, store: Store, url: str) -> None:
        """Behind the store's back, take the last byte from an object."""
        pytest.skip("no hook")

    def lose_power(self) -> None:
        """The backend loses what it was not told to keep."""
        pytest.skip("no hook")


#: One promise. Raises where it is broken.
Check = Callable[[Kit], None]

#: What pieces are lent from. Small, so that a write that keeps what it must not is soon noticed.
BUFFERS = Buffers(16 << 20)


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


#: More than a backend, or what is between it and its reader, has ready after the first piece.
_LARGE = bytes(6 << 20)


def missing(store: Store, url: str) -> bool:
    """Whether there is no such object."""
    try:
        store.size(url, ctx=SERVICE)
    except errors.Missing:
        return True
    return False


def url_of(kit: Kit) -> str:
    """How the driver names the object of `ID`."""
    store = kit.store()
    url = write(store, [b"x"], OTHER)
    store.delete(url, ctx=SERVICE)
    return url.replace(OTHER, ID)


# --- reading ---------------------------------------------------------------------------------------------


def what_is_written_is_read_again(kit: Kit) -> None:
    store = kit.store()
    for number, pieces in enumerate(PIECES.values()):
        stored = store_object(store, pieces, f"{number:08}{ID[8:]}")
        assert stored.size == sum(map(len, pieces))
        assert content(store, stored.url) == b"".join(pieces)
        assert store.size(stored.url, ctx=SERVICE) == stored.size
        assert store.owns(stored.url)


def any_range_can_be_read(kit: Kit) -> None:
    store, data = kit.store(), bytes(range(256)) * 1000
    url = write(store, [data])
    for offset, length in ((0, 1), (255, 2), (100, 100_000), (len(data) - 1, 1), (0, len(data)), (len(data), 0)):
        assert content(store, url, offset=offset, length=length) == data[offset : offset + length]
    assert content(store, url, offset=1000) == data[1000:]


def a_range_beyond_the_end_is_refused_before_the_first_byte(kit: Kit) -> None:
    store = kit.store()
    url = write(store, [b"abc"])
    with pytest.raises(errors.StoreError):
        store.read(url, offset=1, length=3, ctx=SERVICE)


def a_short_object_never_ends_well(kit: Kit) -> None:
    store, data = kit.store(), b"x" * 100_000
    url = write(store, [data])
    kit.truncate(store, url)
    with pytest.raises(errors.StoreError), contextlib.closing(store.read(url, length=len(data), ctx=SERVICE)) as body:
        b"".join(body)


# --- all or nothing --------------------------------------------------------------------------------------


def a_broken_source_leaves_nothing(kit: Kit) -> None:
    def broken() -> Iterator[bytes]:
        yield b"first"
        raise errors.BodyBroken("gone")

    store = kit.store()
    before = kit.left_over()
    with pytest.raises(errors.BodyBroken, match="gone"):
        write(store, broken())
    assert kit.left_over() == before
    assert write(store, [b"again"], attempt="ab12-2")


def an_aborted_write_may_be_aborted_again_and_a_committed_one_stays(kit: Kit) -> None:
    store = kit.store()
    begun = store.begin(ID, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
    begun.abort()
    begun.abort()
    begun = store.begin(ID, attempt="ab12-2", size=None, note=lambda _: None, ctx=SERVICE)
    feed(begun, [b"abc"])
    url = begun.commit().url
    begun.abort()
    assert content(store, url) == b"abc"


def nothing_is_final_before_the_commit(kit: Kit) -> None:
    url, seen = url_of(kit), []
    store = kit.store()

    def watched() -> Iterator[bytes]:
        yield b"all of it"
        seen.append(missing(store, url))

    assert write(store, watched()) == url
    assert seen == [True]
    assert content(store, url) == b"all of it"


def nothing_is_final_before_the_note(kit: Kit) -> None:
    url, seen = url_of(kit), []
    store = kit.store()
    write(store, [b"abc"], note=lambda _: seen.append(missing(store, url)))
    assert seen
    assert all(seen)


def nothing_is_overwritten(kit: Kit) -> None:
    store = kit.store()
    url = write(store, [b"first"])
    before = kit.left_over()
    with pytest.raises(errors.AlreadyStored):
        write(store, [b"second"], attempt="ab12-2")
    assert content(store, url) == b"first"
    assert kit.left_over() == before


def of_two_writers_at_once_one_wins(kit: Kit) -> None:
    url, store = url_of(kit), kit.store()
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
    assert content(store, url) == winners[0]
    assert len(kit.left_over()) == 1


def what_was_committed_outlasts_lost_power(kit: Kit) -> None:
    url = write(kit.store(), [b"abc", b"de"])
    kit.lose_power()
    assert content(kit.store(), url) == b"abcde"


def a_store_without_room_says_so_and_keeps_nothing(kit: Kit) -> None:
    store = kit.store()
    before = kit.left_over()
    with kit.full(store), pytest.raises(errors.StoreFull):
        write(store, [b"x" * 1000])
    assert kit.left_over() == before
    assert write(store, [b"x" * 1000], attempt="ab12-2")


def what_is_announced_too_large_is_refused_before_a_byte_is_put(kit: Kit) -> None:
    store = kit.store()
    before = kit.left_over()
    with pytest.raises(errors.StoreFull):
        store.begin(ID, attempt="ab12-1", size=1 << 60, note=lambda _: None, ctx=SERVICE)
    assert kit.left_over() == before


# --- removing --------------------------------------------------------------------------------------------


def delete_removes_and_then_misses(kit: Kit) -> None:
    store = kit.store()
    before = kit.left_over()
    url = write(store, [b"abc"])
    assert store.delete(url, ctx=SERVICE) is None
    assert kit.left_over() == before
    for attempt in (store.delete, store.size, store.read):
        with pytest.raises(errors.Missing):
            attempt(url, ctx=SERVICE)
    assert content(store, write(store, [b"new"], attempt="ab12-2")) == b"new"


def delete_removes_only_the_object_that_is_meant(kit: Kit) -> None:
    store = kit.store()
    first = store_object(store, [b"first"])
    if first.object_id is None:
        pytest.skip("the driver cannot tell its objects apart")
    store.delete(first.url, object_id=first.object_id, ctx=SERVICE)
    write(store, [b"later"], attempt="ab12-2")
    with pytest.raises(errors.Missing):
        store.delete(first.url, object_id=first.object_id, ctx=SERVICE)
    assert content(store, first.url) == b"later"


def clean_removes_a_finished_object_that_was_never_reported(kit: Kit) -> None:
    store, notes = kit.store(), []
    before = kit.left_over()
    url = write(store, [b"abc"], notes=notes)
    for _ in range(2):
        store.clean(ID, "ab12-1", notes[-1] if notes else None)
    assert missing(store, url)
    assert kit.left_over() == before


def a_cleaner_that_comes_late_leaves_the_object_of_a_later_attempt(kit: Kit) -> None:
    """The file system may give the later object the same inode number."""
    store, notes = kit.store(), []
    url = write(store, [b"first"], notes=notes)
    for number in range(kit.rounds):
        store.delete(url, ctx=SERVICE)
        url = write(store, [b"later"], attempt=f"bb-{number}")
        store.clean(ID, "ab12-1", notes[-1] if notes else None)
        assert content(store, url) == b"later"


def clean_leaves_what_another_attempt_stores(kit: Kit) -> None:
    store, notes = kit.store(), []

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise errors.BodyBroken("gone")

    def cleaned_meanwhile() -> Iterator[bytes]:
        yield b"kept"
        store.clean(ID, "aa-1", notes[-1] if notes else None)
        yield b" on"

    with pytest.raises(errors.BodyBroken):
        write(store, broken(), attempt="aa-1", notes=notes)
    url = write(store, cleaned_meanwhile(), attempt="bb-1")
    other = write(store, [b"other"], OTHER, attempt="aa-1")
    store.clean(ID, "aa-1", None)
    assert content(store, url) == b"kept on"
    assert content(store, other) == b"other"


def a_writer_that_was_cleaned_away_cannot_finish(kit: Kit) -> None:
    store, notes = kit.store(), []
    before = kit.left_over()

    def slow() -> Iterator[bytes]:
        yield b"half"
        store.clean(ID, "aa-1", notes[-1] if notes else None)  # its lease ran out while it slept
        yield b"rest"

    with pytest.raises(errors.Gone):
        write(store, slow(), attempt="aa-1", notes=notes)
    assert kit.left_over() == before
    assert content(store, write(store, [b"new"], attempt="bb-1")) == b"new"


def a_note_that_cannot_be_kept_stops_the_write(kit: Kit) -> None:
    store = kit.store()
    before = kit.left_over()

    def refuse(_: Any) -> None:
        raise errors.Gone("not any more")

    with pytest.raises(errors.Gone):
        write(store, [b"x"], note=refuse)
    assert kit.left_over() == before
    assert write(store, [b"new"], attempt="bb-1")


# --- backends that fail ----------------------------------------------------------------------------------


def a_backend_that_fails_is_told_in_our_words(kit: Kit) -> None:
    store = kit.store()
    url = write(store, [b"abc"])

    def half() -> Iterator[bytes]:
        yield b"half"
        with kit.broken(store):
            yield b"rest" * 100_000
            raise errors.BodyBroken("it was not noticed")

    asked: list[Callable[[], Any]] = [
        lambda: content(store, url),
        lambda: store.size(url, ctx=SERVICE),
        lambda: store.delete(url, ctx=SERVICE),
        lambda: store.clean(ID, "ab12-1", None),
        lambda: write(store, [b"x"], OTHER, attempt="ab12-2"),
    ]
    with kit.broken(store):
        for ask in asked:
            with pytest.raises(errors.StoreError) as found:
                ask()
            assert not isinstance(found.value, errors.Missing)
        health = store.check()
    assert not health.ok
    assert health.error
    with pytest.raises((errors.StoreError, errors.BodyBroken)):
        write(store, half(), OTHER, attempt="ab12-3")
    store.clean(OTHER, "ab12-3", None)
    assert content(store, url) == b"abc"
    assert len(kit.left_over()) == 1


def a_backend_that_hangs_is_not_waited_for_long(kit: Kit) -> None:
    store = kit.store()
    url = write(store, [b"abc"])
    with kit.hanging(store):
        begun = time.monotonic()
        assert not store.check().ok
        assert time.monotonic() - begun < kit.patience
        for ask in (lambda: content(store, url), lambda: write(store, [b"x"], OTHER)):
            begun = time.monotonic()
            with pytest.raises(errors.StoreError):
                ask()
            assert time.monotonic() - begun < kit.patience
    assert content(store, url) == b"abc"


def a_read_that_hangs_ends_by_its_time_out(kit: Kit) -> None:
    store = kit.store()
    with contextlib.closing(store.read(write(store, [_LARGE]), ctx=SERVICE)) as body:
        pieces = iter(body)
        next(pieces)
        with kit.hanging(store):
            begun = time.monotonic()
            with pytest.raises(errors.StoreError):
                list(pieces)
            assert time.monotonic() - begun < kit.patience


def a_read_that_hangs_is_cancelled_at_once(kit: Kit) -> None:
    store = kit.store()
    with contextlib.closing(store.read(write(store, [_LARGE]), ctx=SERVICE)) as body:
        pieces = iter(body)
        next(pieces)
        with kit.hanging(store), ThreadPoolExecutor(1) as thread:
            reading = thread.submit(lambda: list(pieces))
            assert not wait([reading], 0.2).done, "it did not hang"
            body.cancel()
            assert wait([reading], kit.read_timeout / 2).done, "it still waits"
            with pytest.raises(errors.Cancelled):
                reading.result()


def a_cancelled_read_gives_no_more(kit: Kit) -> None:
    store = kit.store()
    url = write(store, [b"x" * 100_000])
    for read_before in (False, True):
        with contextlib.closing(store.read(url, ctx=SERVICE)) as body:
            pieces = iter(body)
            if read_before:
                next(pieces)
            body.cancel()
            body.cancel()
            with pytest.raises(errors.Cancelled):
                list(pieces)
        body.cancel()
    assert content(store, url) == b"x" * 100_000


# --- facts -----------------------------------------------------------------------------------------------


def a_store_owns_its_own_names_only(kit: Kit) -> None:
    one, two, longer = kit.store("one"), kit.store("two"), kit.store("one-more")
    url = write(one, [b"x"])
    assert one.owns(url)
    assert any(url.startswith(prefix) for prefix in one.prefixes())
    for other in (two, longer):
        assert not other.owns(url)
        assert not one.owns(write(other, [b"x"]))
    for foreign in ("", "http://host/x", "file:///etc/passwd", url + "/more", url.replace(ID, "../../etc/passwd"),
                    url + "?x=1", url + "#x", "x" + url, url.replace(ID, ""), "rbd://fsid/pool/image/snap"):  # fmt: skip
        assert not one.owns(foreign), foreign
        for ask in (one.read, one.size, one.delete):
            with pytest.raises(errors.StoreError):
                ask(foreign, ctx=SERVICE)


def who_asks_makes_no_difference(kit: Kit) -> None:
    """A driver acts with the credentials of its section: what a context says of a caller neither opens nor shuts."""
    store = kit.store()
    owner, other, nobody = (Context(user=name, project=name) for name in ("alice", "bob", None))
    url = write(store, [b"abc"], ctx=owner)
    for ctx in (other, nobody):
        assert store.size(url, ctx=ctx) == 3
        with contextlib.closing(store.read(url, ctx=ctx)) as body:
            assert b"".join(body) == b"abc"
    store.delete(url, ctx=nobody)
    assert missing(store, url)


def a_store_tells_how_it_is(kit: Kit) -> None:
    store = kit.store()
    health = store.check()
    assert health.ok
    assert health.error is None
    assert health.free is None or health.total is None or 0 < health.free <= health.total
    assert Feature.READ in store.features
    assert isinstance(store.details(), dict)


# --- putting aside ---------------------------------------------------------------------------------------


def _audited(kit: Kit) -> tuple[Store, Audits]:
    store = kit.store()
    if not isinstance(store, Audits):
        pytest.skip("this kind of store has no quarantine")
    return store, store


def what_is_put_aside_is_not_there_and_can_be_brought_back(kit: Kit) -> None:
    store, audited = _audited(kit)
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


def what_changed_since_it_was_seen_is_not_put_aside(kit: Kit) -> None:
    store, audited = _audited(kit)
    url = write(store, [b"abc"])
    seen = audited.entry(audited.name_of(url) or "")
    assert seen
    store.delete(url, ctx=SERVICE)
    assert audited.quarantine(seen, {}) is None
    write(store, [b"new"], attempt="ab12-2")
    assert audited.quarantine(seen, {}) is None
    assert content(store, url) == b"new"
    assert list(audited.quarantined()) == []


def nothing_is_overwritten_by_bringing_something_back(kit: Kit) -> None:
    store, audited = _audited(kit)
    url = write(store, [b"old"])
    seen = audited.entry(audited.name_of(url) or "")
    assert seen
    key = audited.quarantine(seen, {}) or ""
    write(store, [b"newer"], attempt="ab12-2")
    with pytest.raises(errors.AlreadyStored):
        audited.restore(key)
    assert content(store, url) == b"newer"
    assert [one.key for one in audited.quarantined()] == [key]


def an_upload_in_work_is_listed_with_its_attempt(kit: Kit) -> None:
    store, audited = _audited(kit)
    seen: list[Any] = []

    def watched() -> Iterator[bytes]:
        yield b"half"
        seen.extend(entry.attempt for entry in audited.entries())

    write(store, watched(), attempt="ab12-1")
    assert seen in ([], ["ab12-1"])


#: Those that a driver which takes no data must keep, too.
READING: list[Check] = [
    what_is_written_is_read_again,
    any_range_can_be_read,
    a_range_beyond_the_end_is_refused_before_the_first_byte,
    a_cancelled_read_gives_no_more,
]

#: The whole contract.
CHECKS: list[Check] = [
    what_is_written_is_read_again,
    any_range_can_be_read,
    a_range_beyond_the_end_is_refused_before_the_first_byte,
    a_short_object_never_ends_well,
    a_broken_source_leaves_nothing,
    an_aborted_write_may_be_aborted_again_and_a_committed_one_stays,
    nothing_is_final_before_the_commit,
    nothing_is_final_before_the_note,
    nothing_is_overwritten,
    of_two_writers_at_once_one_wins,
    what_was_committed_outlasts_lost_power,
    a_store_without_room_says_so_and_keeps_nothing,
    what_is_announced_too_large_is_refused_before_a_byte_is_put,
    delete_removes_and_then_misses,
    delete_removes_only_the_object_that_is_meant,
    clean_removes_a_finished_object_that_was_never_reported,
    a_cleaner_that_comes_late_leaves_the_object_of_a_later_attempt,
    clean_leaves_what_another_attempt_stores,
    a_writer_that_was_cleaned_away_cannot_finish,
    a_note_that_cannot_be_kept_stops_the_write,
    a_backend_that_fails_is_told_in_our_words,
    a_backend_that_hangs_is_not_waited_for_long,
    a_read_that_hangs_ends_by_its_time_out,
    a_read_that_hangs_is_cancelled_at_once,
    a_cancelled_read_gives_no_more,
    who_asks_makes_no_difference,
    a_store_owns_its_own_names_only,
    a_store_tells_how_it_is,
    what_is_put_aside_is_not_there_and_can_be_brought_back,
    what_changed_since_it_was_seen_is_not_put_aside,
    nothing_is_overwritten_by_bringing_something_back,
    an_upload_in_work_is_listed_with_its_attempt,
]
