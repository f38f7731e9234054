"""What every store gets without its driver's doing: places, retries, being set aside, and reads that end."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.context import SERVICE, Context
from calotype.stores.access import Access, Settings
from calotype.stores.base import Body, Feature, Health
from calotype.stores.file import FileStore
from calotype.stores.memory import MemoryStore
from calotype.stores.probing import ASIDE, Breaker
from calotype.stores.registry import Stores
from tests.stores.suite import ID, OTHER, feed, write
from tests.stores.test_contract import defaults, file_store
from tests.stores.toy import Backend, Failed, Toys, ToyStore
from tests.support import until

#: A staging directory, which nothing here uses.
STAGING = FileStore("staging", defaults("file", filesystem_store_datadir="/nowhere"))


class Flaky(Backend):
    """A backend that fails so many calls, and counts all of them."""

    failing = 0
    calls = 0

    @contextlib.contextmanager
    def asked(self, *given: Any) -> Iterator[None]:
        self.calls += 1
        if self.failing:
            self.failing -= 1
            raise Failed("503")
        with super().asked(*given):
            yield


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


def access(backend: Backend, clock: Clock | None = None, **settings: Any) -> Access:
    clock = clock or Clock()
    store = ToyStore("one", backend, frozenset())
    return Access(store, Settings(**settings), Breaker(clock), clock.sleep)


def upload(one: Access, image_id: str, *pieces: bytes, attempt: str = "a-1") -> str:
    with one.writing(image_id, attempt=attempt, size=None, note=lambda _: None, ctx=SERVICE) as begun:
        feed(begun, pieces)
        return begun.commit().url


def content(one: Access, url: str) -> bytes:
    with contextlib.closing(one.read(url, ctx=SERVICE)) as body:
        return b"".join(body)


# --- retries ---------------------------------------------------------------------------------------------


def test_what_is_safe_is_tried_again_with_growing_pauses() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock, max_retries=3, retry_interval=0.1)
    backend.failing = 3
    url = upload(one, ID, b"abc")
    assert clock.pauses == [0.1, 0.2, 0.4]
    for step, found in (
        (lambda: one.size(url, ctx=SERVICE), 3),
        (lambda: content(one, url), b"abc"),
        (lambda: one.peek(url, 2, most=9, ctx=SERVICE), (3, b"ab")),
        (lambda: one.delete(url, ctx=SERVICE), None),
    ):
        clock.pauses.clear()
        backend.failing = 2
        assert step() == found
        assert clock.pauses == [0.1, 0.2]


def test_retries_end_and_pauses_grow_no_further_than_ten_seconds() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock, max_retries=5, retry_interval=3)
    backend.failing = 100
    with pytest.raises(errors.StoreUnavailable):
        one.size(f"toy://one/{ID}", ctx=SERVICE)
    assert (backend.calls, clock.pauses) == (6, [3, 6, 10, 10, 10])


def test_a_write_that_has_bytes_is_not_tried_again_and_neither_is_what_is_not_a_failure() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock, max_retries=5)
    url = upload(one, OTHER, b"abc")
    with (
        pytest.raises(errors.StoreUnavailable),
        one.writing(ID, attempt="a-1", size=None, note=lambda _: None, ctx=SERVICE) as begun,
    ):
        backend.failing = 1
        feed(begun, [b"abc"])
        begun.commit()
    with pytest.raises(errors.Missing):
        one.size(f"toy://one/{ID}", ctx=SERVICE)
    with pytest.raises(errors.AlreadyStored):
        upload(one, OTHER, b"again", attempt="a-2")
    assert clock.pauses == []
    assert content(one, url) == b"abc"


def test_a_store_that_is_aside_is_asked_once() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock, max_retries=2)
    backend.failing = 100
    for calls in (3, 4):
        with pytest.raises(errors.StoreUnavailable):
            one.read(f"toy://one/{ID}", ctx=SERVICE)
        assert backend.calls == calls


# --- places ----------------------------------------------------------------------------------------------


def test_no_more_uploads_than_configured_go_to_a_store_at_once() -> None:
    one = access(Backend(), max_uploads=1)
    going, over = threading.Event(), threading.Event()

    def hold() -> None:
        with one.upload_slot():
            going.set()
            over.wait(60)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(hold)
        assert going.wait(30)
        second = threads.submit(hold)
        assert one._uploads
        places = one._uploads
        until(lambda: places._budget.waiting == 1)
        with pytest.raises(errors.StoreBusy), one.upload_slot():
            pass
        assert not wait([second], 0.1).done
        over.set()
        first.result(30)
        second.result(30)
    with one.upload_slot():
        pass


def test_a_read_keeps_its_place_until_it_is_closed_or_its_file_is() -> None:
    one = access(Backend(), max_downloads=1)
    url = upload(one, ID, b"abc")
    body = one.read(url, ctx=SERVICE)
    assert one.is_last
    body.close()
    body.close()
    assert not one.is_last
    with pytest.raises(errors.Missing):
        one.read(f"toy://one/{OTHER}", ctx=SERVICE)
    assert not one.is_last


def test_a_file_that_the_server_sends_keeps_the_place_and_is_a_file(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    url = write(store, [b"abc"])
    free = Access(store, Settings(), Breaker())
    assert type(free.read(url, ctx=SERVICE).file()).__name__ == "_FileSlice"  # nothing wraps it without a limit
    one = Access(store, Settings(max_downloads=1), Breaker())
    file = one.read(url, ctx=SERVICE).file()
    assert file
    assert file.fileno() > 2
    assert file.read(2) == b"ab"
    assert one.is_last
    file.close()
    assert not one.is_last


# --- being set aside -------------------------------------------------------------------------------------


def test_failures_in_the_middle_set_a_store_aside_and_work_brings_it_back() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock)
    large = upload(one, ID, bytes(3 << 20))
    with contextlib.closing(one.read(large, ctx=SERVICE)) as body:
        pieces = iter(body)
        next(pieces)
        assert not one.is_last
        backend.failing = 1
        with pytest.raises(errors.StoreUnavailable):
            list(pieces)
    assert one.is_last
    upload(one, OTHER, b"abc")
    assert not one.is_last
    with (
        pytest.raises(errors.StoreUnavailable),
        one.writing(OTHER.replace("9", "8"), attempt="a-1", size=None, note=lambda _: None, ctx=SERVICE) as begun,
    ):
        backend.failing = 1
        feed(begun, [b"abc"])
        begun.commit()
    assert one.is_last
    one.read(large, ctx=SERVICE).close()
    assert not one.is_last
    with (
        pytest.raises(errors.StoreUnavailable),
        one.writing(OTHER.replace("9", "7"), attempt="a-2", size=None, note=lambda _: None, ctx=SERVICE),
    ):
        raise errors.StoreUnavailable("another one failed", "another")
    assert not one.is_last


def test_a_read_that_was_cancelled_or_found_no_place_is_no_failure() -> None:
    one = access(Backend(), max_downloads=1)
    url = upload(one, ID, bytes(3 << 20))
    with contextlib.closing(one.read(url, ctx=SERVICE)) as body:
        pieces = iter(body)
        next(pieces)
        one.cancel_reads()
        with pytest.raises(errors.Cancelled):
            list(pieces)
        assert one._downloads
        one._downloads._patience = 0
        with pytest.raises(errors.StoreBusy):
            one.read(url, ctx=SERVICE)
    assert not one.is_last


class Sick(MemoryStore):
    """A store that fails uploads and tells how it is as the test says; with `answers` cleared it tells nothing."""

    sick = True

    def __init__(self, name: str) -> None:
        super().__init__(name, defaults("memory"))
        self.answers = threading.Event()
        self.answers.set()

    def check(self) -> Health:
        self.answers.wait(20)
        return Health(ok=not self.sick, error="out of order at 10.0.0.1" if self.sick else None)

    def begin(self, *given: Any, **more: Any) -> Any:
        if self.sick:
            raise errors.StoreUnavailable("It failed.", self.name)
        return super().begin(*given, **more)


@pytest.mark.parametrize("hangs", [False, True])
def test_an_upload_to_a_store_that_failed_and_is_not_well_is_refused_at_once_until_it_works_again(hangs: bool) -> None:
    store = Sick("one")
    stores = Stores([store], "one", staging=STAGING)
    assert stores.for_writing("one") is store  # nobody knows yet
    with pytest.raises(errors.StoreUnavailable):
        upload(stores.access(store), ID, b"abc")
    if hangs:
        store.answers.clear()
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(stores.for_writing, "one")
            assert wait([asked], 1).done
            with pytest.raises(errors.StoreUnavailable) as found:
                asked.result()
        assert "10.0.0.1" not in str(found.value)
        assert hangs or "10.0.0.1" in errors.reason(found.value)
    store.sick = False
    store.answers.set()
    until(lambda: stores.health()["one"].ok)
    assert stores.access(store).is_last  # still aside, for downloads
    assert stores.for_writing("one") is store
    upload(stores.access(store), ID, b"abc")
    assert not stores.access(store).is_last


def test_a_store_whose_urls_users_name_is_not_set_aside() -> None:
    class Web(MemoryStore):
        features = frozenset({Feature.READ, Feature.USER_URLS})

        def read(self, *_: Any, **__: Any) -> Any:
            raise errors.StoreUnavailable("One server failed.", self.name)

    one = Access(Web("web", defaults("memory")), Settings(), Breaker())
    with pytest.raises(errors.StoreUnavailable):
        one.read("memory://web/x", ctx=SERVICE)
    assert not one.is_last


def test_a_store_is_aside_for_so_long_only() -> None:
    backend, clock = Flaky(), Clock()
    one = access(backend, clock)
    backend.failing = 1
    with pytest.raises(errors.StoreUnavailable):
        one.read(f"toy://one/{ID}", ctx=SERVICE)
    assert one.is_last
    clock.seconds = ASIDE
    assert not one.is_last


# --- credentials -----------------------------------------------------------------------------------------


def test_a_context_which_every_driver_gets_has_no_field_that_could_hold_a_token() -> None:
    assert {field.name for field in fields(Context)} == {
        *("request_id", "user", "project", "roles", "is_admin", "service_roles"),
        *("user_domain", "project_domain", "domain", "system_scope", "read_only"),
    }


# --- ending ----------------------------------------------------------------------------------------------


def test_reads_that_hang_end_when_the_process_does() -> None:
    kit = Toys()
    store = kit.store()
    stores = Stores([store], "one", staging=STAGING)
    url = write(store, [bytes(3 << 20)])
    body = stores.access(store).read(url, ctx=Context())
    pieces = iter(body)
    next(pieces)
    with kit.hanging(store), ThreadPoolExecutor(1) as thread:
        reading = thread.submit(lambda: list(pieces))
        assert not wait([reading], 0.2).done
        stores.cancel_reads()
        assert wait([reading], kit.read_timeout / 2).done
        with pytest.raises(errors.Cancelled):
            reading.result()
    body.close()


def test_a_read_that_was_being_opened_as_the_process_ended_gives_nothing() -> None:
    kit = Toys()
    store = kit.store()
    stores = Stores([store], "one", staging=STAGING)
    url, opened = write(store, [b"x" * 1000]), store.read

    def ends(url: str, **arguments: Any) -> Body:
        body = opened(url, **arguments)
        stores.cancel_reads()
        return body

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", ends)
        body = stores.access(store).read(url, ctx=Context())
    with contextlib.closing(body), pytest.raises(errors.Cancelled):
        list(body)
