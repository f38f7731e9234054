"""Swift: the contract against a real one, and what only this driver does."""

import contextlib
import hashlib
import itertools
import json
import logging
import random
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.buffers import Budget
from calotype.context import SERVICE, Context
from calotype.stores import swift as swift_store
from calotype.stores.base import Later
from calotype.stores.swift import SwiftStore
from calotype.stores.swift_account import TRIES
from calotype.stores.swift_options import UNIT
from tests.keystone import ACCOUNT, PASSWORD, Keystone
from tests.stores.suite import CHECKS, ID, OTHER, Kit, content, feed, missing, store_object, write
from tests.stores.swift_kit import Swifts, options
from tests.stores.swift_server import KEY, Direct, swift
from tests.support import until

pytestmark = pytest.mark.needs("swift")

#: Three segments and a bit.
DATA = random.Random(1).randbytes(3 * UNIT + 1000)
SEGMENT = rf"{ID}\.ab12-1-0000"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Swifts]:
    made = Swifts(tmp_path)
    yield made
    made.close()


def pieces(data: bytes, size: int = 1 << 20) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def is_static(kit: Swifts, name: str = ID) -> bool:
    return "X-Static-Large-Object" in kit.direct.ask("HEAD", f"/{kit.container()}/{name}").headers


def names(kit: Swifts) -> list[str]:
    return kit.direct.names(kit.container())


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_driver_keeps_the_contract(kit: Swifts, check: Callable[[Kit], None]) -> None:
    check(kit)


# --- the layout ------------------------------------------------------------------------------------------


def test_small_images_are_one_object_and_large_ones_a_static_large_object(kit: Swifts) -> None:
    store = kit.store()
    write(store, [b"abc"], OTHER)
    assert names(kit) == [OTHER]
    url = write(store, pieces(DATA))
    assert url == f"swift+config://ref1/{kit.container()}/{ID}"
    assert is_static(kit)
    segments = [f"{ID}.ab12-1-{number:05}" for number in range(1, 5)]
    assert names(kit) == [ID, *segments, OTHER]
    listed = kit.direct.ask("GET", f"/{kit.container()}/{ID}?multipart-manifest=get").json()
    assert [(one["name"], one["hash"]) for one in listed] == [
        (f"/{kit.container()}/{name}", hashlib.md5(part).hexdigest())
        for name, part in zip(segments, pieces(DATA, UNIT), strict=True)
    ]
    assert content(store, url) == DATA
    assert kit.direct.ask("GET", f"/{kit.container()}/{ID}").content == DATA
    store.delete(url, ctx=SERVICE)
    assert names(kit) == [OTHER]


def test_no_segment_of_an_image_expires_and_those_of_an_unfinished_upload_do(kit: Swifts) -> None:
    store = kit.store()
    begun = store.begin(ID, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
    feed(begun, pieces(DATA))
    until(lambda: len(names(kit)) == 4)
    expiries = {name: kit.direct.ask("HEAD", f"/{kit.container()}/{name}").headers for name in names(kit)}
    for name, headers in expiries.items():
        assert 6 * 86400 < float(headers["X-Delete-At"]) - time.time() <= 7 * 86400, name
    begun.commit()
    for name in names(kit):
        assert "X-Delete-At" not in kit.direct.ask("HEAD", f"/{kit.container()}/{name}").headers, name
    assert len(names(kit)) == 5


def test_with_one_thread_the_layout_is_the_dynamic_one_of_glance(kit: Swifts) -> None:
    store = kit.store(swift_store_thread_pool_size=1)
    url = write(store, pieces(DATA))
    headers = kit.direct.ask("HEAD", f"/{kit.container()}/{ID}").headers
    assert headers["X-Object-Manifest"] == f"{kit.container()}/{ID}.ab12-1-"
    assert "X-Static-Large-Object" not in headers
    assert kit.direct.ask("GET", f"/{kit.container()}/{ID}").content == content(store, url) == DATA
    assert kit.proxy.most <= 2
    store.delete(url, ctx=SERVICE)
    assert names(kit) == []


def glances(kit: Swifts, data: bytes, image: str = ID) -> str:
    """What Glance writes of an image of unknown size."""
    container = kit.container()
    kit.direct.put(f"/{container}")
    for number, part in enumerate(pieces(data, UNIT), 1):
        kit.direct.put(f"/{container}/{image}-{number:05}", part)
    kit.direct.put(f"/{container}/{image}", headers={"X-Object-Manifest": f"{container}/{image}-"})
    return f"swift+config://ref1/{container}/{image}"


def test_what_glance_stored_in_segments_is_read_by_ranges_and_removed_whole(kit: Swifts) -> None:
    store = kit.store()
    url = glances(kit, DATA)
    assert store.size(url, ctx=SERVICE) == len(DATA)
    assert content(store, url) == DATA
    assert content(store, url, offset=UNIT - 5, length=10) == DATA[UNIT - 5 : UNIT + 5]
    kit.direct.put(f"/{kit.container()}/{ID}-other", b"of somebody else")
    store.delete(url, ctx=SERVICE)
    assert names(kit) == [f"{ID}-other"]


def test_a_segment_that_somebody_appended_is_seen_by_the_size(kit: Swifts) -> None:
    store = kit.store()
    url = glances(kit, DATA)
    kit.direct.put(f"/{kit.container()}/{ID}-99999", b"more")
    assert store.size(url, ctx=SERVICE) == len(DATA) + 4
    assert content(store, url, offset=0, length=len(DATA)) == DATA


def test_a_manifest_that_names_what_is_not_its_images_costs_nobody_anything(kit: Swifts) -> None:
    store = kit.store()
    container = kit.container()
    other = write(store, pieces(DATA), OTHER)
    kit.direct.put(f"/{container}/{ID}", headers={"X-Object-Manifest": f"{container}/{OTHER}.ab12-1-"})
    store.delete(f"swift+config://ref1/{container}/{ID}", ctx=SERVICE)
    entries = [{"path": f"/{container}/{OTHER}.ab12-1-00001"}]
    kit.direct.put(f"/{container}/{ID}?multipart-manifest=put", json.dumps(entries).encode())
    store.delete(f"swift+config://ref1/{container}/{ID}", ctx=SERVICE)
    assert missing(store, f"swift+config://ref1/{container}/{ID}")
    assert content(store, other) == DATA


@pytest.mark.parametrize("form", [
    "swift+http://glance%3Aglance:secret@{address}/{container}/{id}",
    "swift+http://glance%3Aglance:pass%2Fw%40rd@{address}/{container}/{id}",
    "swift+http://glance:glance:pass/w@rd@{address}/{container}/{id}",
])  # fmt: skip
def test_old_locations_with_credentials_are_read_with_those_of_the_section(kit: Swifts, form: str) -> None:
    store = kit.store()
    write(store, [b"abc"])
    address = f"127.0.0.1:{kit.proxy.port}/auth/v1.0"
    old = form.format(address=address, container=kit.container(), id=ID)
    assert store.owns(old)
    assert any(old.startswith(prefix) for prefix in store.prefixes())
    assert content(store, old) == b"abc"
    for other in (old.replace("swift+http:", "swift+https:"), old.replace("glance", "alice", 1),
                  old.replace(address, f"127.0.0.1:1/{ID}")):  # fmt: skip
        assert not store.owns(other)
    store.delete(old, ctx=SERVICE)
    assert names(kit) == []


def test_segments_are_as_large_as_memory_and_limits_allow(kit: Swifts) -> None:
    def segment(size: int | None, *, memory: int = 256 << 20, **given: Any) -> int:
        usual = {"part_memory": Budget(memory), "swift_store_large_object_chunk_size": 200}
        return kit.store(**{**usual, **given})._plan(size).segment

    assert segment(None) == 32 << 20  # of 256 MiB, for eight at once
    assert segment(None, swift_store_thread_pool_size=1) == 200 * UNIT
    assert segment(None, swift_store_large_object_chunk_size=10) == 10 * UNIT
    assert segment(1 << 30) == 32 << 20
    assert segment(100 << 30) == -(-(100 << 30) // 1000)
    assert segment(1 << 40) == 256 << 20  # there is no more memory: manifests are nested


def test_without_info_the_usual_limits_of_swift_hold(kit: Swifts) -> None:
    kit.proxy.plant("GET", "/info", times=99, status=404)
    plan = kit.store()._plan(None)
    assert (plan.most, plan.static) == (1000, True)


def test_more_segments_than_a_manifest_may_list_are_nested(tmp_path: Path) -> None:
    kit = Swifts(tmp_path, swift(max_file_size=2 * UNIT, segments=3))
    data = random.Random(2).randbytes(7 * UNIT + 5)
    try:
        store = kit.store(part_memory=Budget(8 << 20))
        url = write(store, pieces(data))
        assert len(names(kit)) == 1 + 8 + 3
        assert content(store, url) == data
        assert content(store, url, offset=3 * UNIT - 1, length=2) == data[3 * UNIT - 1 : 3 * UNIT + 1]
        store.delete(url, ctx=SERVICE)
        assert names(kit) == []
        with pytest.raises(errors.StoreFull):
            store.begin(ID, attempt="ab12-2", size=19 * UNIT, note=lambda _: None, ctx=SERVICE)
    finally:
        kit.close()


def test_the_seed_spreads_images_over_containers(kit: Swifts) -> None:
    store = kit.store(swift_store_multiple_containers_seed=3)
    url, other = write(store, pieces(DATA)), write(store, [b"other"], OTHER)
    assert url == f"swift+config://ref1/{kit.container()}_{ID[:3]}/{ID}"
    assert content(store, url) == DATA
    assert content(store, other) == b"other"
    assert store.owns(f"swift+config://ref1/{kit.container()}/{ID}")  # from before there was a seed
    kit.direct.put(f"/{kit.container()}_{ID[:3]}/{ID}.dead-1-00001", b"x")
    with aged(0.0):
        assert store.sweep(lambda _: False) == 1
    assert content(store, url) == DATA


# --- uploads that meet trouble ---------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [
    [{"status": 500}, {"status": 503}, {"status": 422}, {"status": 429}],
    [{"status": 498}, {"status": 499}, {"status": 408}, {"lost": True}],
], ids=str)  # fmt: skip
def test_a_segment_that_fails_is_sent_again(kit: Swifts, faults: list[dict[str, Any]]) -> None:
    store = kit.store()
    for number, fault in enumerate(faults, 1):
        kit.proxy.plant("PUT", f"{SEGMENT}{number}", times=number % 3 + 1, **fault)
    assert content(store, write(store, pieces(DATA))) == DATA
    assert [kit.proxy.count("PUT", f"{SEGMENT}{number}") for number in (1, 2, 3, 4)] == [3, 4, 2, 3]


def test_a_segment_that_hangs_once_is_sent_again(kit: Swifts) -> None:
    store = kit.store(read_timeout=2.0)
    kit.proxy.plant("PUT", f"{SEGMENT}2", hang=True)
    assert content(store, write(store, pieces(DATA))) == DATA


@pytest.mark.parametrize("place", [
    ("PUT", f"{ID}$", {"lost": True}),
    ("PUT", f"{ID}$", {"status": 503}),
    ("PUT", rf"{ID}\?multi", {"lost": True}),
    ("PUT", rf"{ID}\?multi", {"status": 503}),
    ("POST", SEGMENT, {"lost": True}),
    ("DELETE", f"{ID}.ab12-1$", {"status": 503}),
    ("HEAD", f"{ID}$", {"status": 500}),
    ("PUT", f"{ID}.ab12-1$", {"lost": True}),
], ids=lambda place: f"{place[0]} {place[2]}")  # fmt: skip
def test_any_answer_may_be_lost_once(kit: Swifts, place: tuple[str, str, dict[str, Any]]) -> None:
    store = kit.store()
    method, path, what = place
    fault = kit.proxy.plant(method, path, **what)
    data = b"small" if path == f"{ID}$" and method == "PUT" else DATA
    assert content(store, write(store, pieces(data))) == data
    assert fault.times == 0


def test_tokens_are_renewed_in_the_middle_of_an_upload(kit: Swifts) -> None:
    store = kit.store()

    def revoke_all() -> None:
        store._account._current = swift_store.Account._session(store._account)
        current = store._account._current
        object.__setattr__(current, "token", "AUTH_tk-not-any-more")

    kit.proxy.plant("PUT", f"{SEGMENT}3", before=revoke_all)
    kit.proxy.plant("PUT", f"{SEGMENT}2", before=revoke_all)
    assert content(store, write(store, pieces(DATA))) == DATA
    assert 2 <= kit.proxy.count("GET", "/auth") <= 3


def test_many_threads_that_need_a_token_ask_for_one(kit: Swifts) -> None:
    store = kit.store()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store._account.request("HEAD"), range(8)))
    assert kit.proxy.count("GET", "/auth") == 1


@pytest.mark.parametrize(("path", "what"), [
    (f"{SEGMENT}3", {"lost": True}),
    (f"{SEGMENT}3", {"status": 403}),
    (rf"{ID}\?multi", {"status": 503}),
    (rf"{ID}\?multi", {"status": 400}),
    (f"{ID}$", {"status": 403}),
], ids=str)  # fmt: skip
def test_nothing_is_left_of_an_upload_that_failed(kit: Swifts, path: str, what: dict[str, Any]) -> None:
    """A segment that Swift has, and whose answer was lost every time, among it."""
    store = kit.store()
    kit.proxy.plant("PUT", path, times=99, **what)
    with pytest.raises(errors.StoreError):
        write(store, pieces(b"small" if path.endswith("$") else DATA))
    assert names(kit) == []


def test_an_upload_that_failed_for_good_leaves_nothing_though_swift_has_all_of_it(kit: Swifts) -> None:
    store = kit.store()
    kit.proxy.plant("HEAD", f"{ID}$", times=0)
    begun = store.begin(ID, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
    feed(begun, pieces(DATA))
    fault = kit.proxy.plant("HEAD", f"{ID}$", times=TRIES, status=500)
    with pytest.raises(errors.StoreUnavailable):
        begun.commit()
    assert fault.times == 0
    assert ID in names(kit)
    begun.abort()
    assert names(kit) == []


def test_a_quota_that_is_reached_in_the_middle_is_no_room_and_leaves_nothing(kit: Swifts) -> None:
    store = kit.store()
    container = kit.container()
    kit.direct.put(f"/{container}")
    kit.direct.ask("POST", f"/{container}", headers={"X-Container-Meta-Quota-Bytes": str(2 * UNIT)})
    with pytest.raises(errors.StoreFull):
        store.begin(ID, attempt="ab12-1", size=len(DATA), note=lambda _: None, ctx=SERVICE)
    with pytest.raises(errors.StoreFull):
        write(store, pieces(DATA))
    assert names(kit) == []
    health = store.check()
    assert (health.ok, health.free, health.total) == (True, 2 * UNIT, 2 * UNIT)


def test_whoever_was_cleaned_away_before_its_last_request_leaves_nothing(kit: Swifts) -> None:
    """The cleaner looks between the writer's last look and its last request: for one object, and for segments."""
    store, cleaner = kit.store(), kit.store()
    for attempt, data, path in (("aa-1", b"small", f"{ID}$"), ("aa-2", DATA, rf"{ID}\?multi")):
        notes: list[str] = []
        clean = lambda attempt=attempt, notes=notes: cleaner.clean(ID, attempt, notes[-1])  # noqa: E731
        kit.proxy.plant("PUT", path, before=clean)
        with pytest.raises(errors.Gone):
            write(store, pieces(data), attempt=attempt, notes=notes)
        assert names(kit) == []


def test_whoever_is_cleaned_away_after_its_last_request_leaves_nothing(kit: Swifts) -> None:
    store, cleaner = kit.store(), kit.store()
    for attempt, data, path in (("aa-1", b"small", f"{ID}$"), ("aa-2", DATA, rf"{ID}\?multi")):
        notes: list[str] = []
        clean = lambda attempt=attempt, notes=notes: cleaner.clean(ID, attempt, notes[-1])  # noqa: E731
        kit.proxy.plant("PUT", path, after=clean)
        with pytest.raises(errors.Gone):
            write(store, pieces(data), attempt=attempt, notes=notes)
        assert names(kit) == []


def test_a_cleaner_waits_for_the_last_request_of_a_writer_that_died(kit: Swifts) -> None:
    store = kit.store()
    notes: list[str] = []
    seen = kit.proxy.plant("HEAD", f"{ID}$", times=0)
    begun = store.begin(ID, attempt="aa-1", size=None, note=notes.append, ctx=SERVICE)
    feed(begun, [b"abc"])
    late = kit.proxy.plant("HEAD", f"{ID}$", after=lambda: begun_put(kit))
    assert notes == []
    kit.store().clean(ID, "aa-1", f"ending//{kit.container()}")
    assert (seen.times, late.times) == (0, 0)
    assert names(kit) == []


def begun_put(kit: Swifts) -> None:
    """What was on its way arrives."""
    kit.direct.put(f"/{kit.container()}/{ID}", b"abc", {"X-Object-Meta-Calotype-Attempt": "aa-1"})


def test_a_cleaner_who_may_not_remove_an_image_leaves_its_segments_as_well(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    store.clean(ID, "ab12-1", None)
    assert content(store, url) == DATA


# --- at once, and within memory --------------------------------------------------------------------------


def test_segments_are_sent_side_by_side_within_the_memory_for_them(kit: Swifts) -> None:
    memory = Budget(4 * UNIT)
    store = kit.store(swift_store_thread_pool_size=4, part_memory=memory)
    kit.proxy.delay = 0.3
    most = 0

    def watched() -> Iterator[bytes]:
        nonlocal most
        for piece in pieces(DATA * 3):
            yield piece
            most = max(most, memory.used)

    url = write(store, watched())
    kit.proxy.delay = 0.0
    assert 4 <= kit.proxy.most <= 6  # an answer may be there while the proxy still counts its request
    assert most <= 4 * UNIT
    assert memory.used == 0
    assert content(store, url) == DATA * 3


def test_an_upload_of_unknown_size_takes_no_more_memory_than_its_window(kit: Swifts) -> None:
    store = kit.store(swift_store_thread_pool_size=2, part_memory=Budget(16 << 20))
    piece = bytes(1 << 20)
    begun = store.begin(ID, attempt="ab12-1", size=None, note=lambda _: None, ctx=SERVICE)
    feed(begun, [piece] * 4)
    tracemalloc.start()
    try:
        feed(begun, itertools.repeat(piece, 20))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # the parts are mapped memory, which is not traced
    finally:
        tracemalloc.stop()
    assert begun.commit().size == 24 << 20


# --- reading ---------------------------------------------------------------------------------------------


def test_a_range_is_one_request(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    kit.proxy.seen.clear()
    assert content(store, url, offset=UNIT - 1, length=UNIT + 2) == DATA[UNIT - 1 : 2 * UNIT + 1]
    assert [method for method, _ in kit.proxy.seen] == ["GET"]


@pytest.mark.parametrize("seed", [5])
def test_random_ranges_are_those_of_the_image(kit: Swifts, seed: int) -> None:
    random_, store = random.Random(seed), kit.store()
    url = write(store, pieces(DATA))
    for _ in range(15):
        start = random_.randrange(len(DATA) + 1)
        length = random_.choice([None, 0, random_.randrange(len(DATA) - start + 1)])
        end = len(DATA) if length is None else start + length
        more = {} if length is None else {"length": length}
        assert content(store, url, offset=start, **more) == DATA[start:end]


def test_a_read_that_is_cut_off_goes_on_where_it_was(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    kit.proxy.plant("GET", ID, cut=100)
    kit.proxy.plant("GET", ID, cut=UNIT)
    kit.proxy.plant("GET", ID, status=503)
    assert content(store, url, offset=5, length=3 * UNIT) == DATA[5 : 5 + 3 * UNIT]
    assert kit.proxy.count("GET", ID) == 4


def test_a_read_that_is_cut_off_too_often_fails(kit: Swifts) -> None:
    store = kit.store(swift_store_retry_get_count=1)
    url = write(store, pieces(DATA))
    kit.proxy.plant("GET", ID, times=2, cut=100)
    with pytest.raises(errors.StoreUnavailable):
        content(store, url)


def test_a_read_does_not_go_on_with_another_object(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    with contextlib.closing(store.read(url, ctx=SERVICE)) as body:
        got = iter(body)
        next(got)
        kit.direct.put(f"/{kit.container()}/{ID}", bytes(len(DATA)))
        body._answer.cancel()  # type: ignore[attr-defined]  # as if the connection were lost
        with pytest.raises(errors.StoreError, match="changed"):
            list(got)


# --- deleting and sweeping -------------------------------------------------------------------------------


@contextlib.contextmanager
def aged(age: float, glances: float = 86400.0) -> Iterator[None]:
    """Sweep what is so old."""
    before = swift_store._SWEEP_AGE, swift_store._GLANCE_AGE
    swift_store._SWEEP_AGE, swift_store._GLANCE_AGE = age - 1e6 * (age == 0), glances - 1e6 * (glances == 0)  # type: ignore[misc]
    try:
        yield
    finally:
        swift_store._SWEEP_AGE, swift_store._GLANCE_AGE = before  # type: ignore[misc]


@pytest.mark.parametrize(
    "what", [("DELETE", SEGMENT), ("DELETE", f"{ID}$"), ("HEAD", ID), ("GET", "multipart-manifest")]
)
def test_a_delete_survives_lost_answers_and_failures(kit: Swifts, what: tuple[str, str]) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    kit.proxy.plant(*what, lost=True)
    kit.proxy.plant(*what, status=503)
    store.delete(url, ctx=SERVICE)
    assert names(kit) == []


def test_a_delete_that_was_interrupted_is_finished_by_another_one(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    kit.proxy.plant("DELETE", f"{SEGMENT}3", times=99, status=500)
    with pytest.raises(errors.StoreUnavailable):
        store.delete(url, ctx=SERVICE)
    kit.proxy.faults.clear()
    assert ID in names(kit)
    store.delete(url, ctx=SERVICE)
    assert names(kit) == []


def test_a_delete_that_takes_long_asks_to_be_called_again(kit: Swifts, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    with monkeypatch.context() as context:
        context.setattr(swift_store, "_DELETE_TIME", -1.0)
        assert isinstance(store.delete(url, ctx=SERVICE), Later)
    assert content(store, url) == DATA
    assert store.delete(url, ctx=SERVICE) is None
    assert names(kit) == []


def test_the_sweep_removes_what_belongs_to_no_image_and_nothing_else(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA), attempt="done-1")
    old = glances(kit, DATA, OTHER)
    container, lost, third = kit.container(), str(uuid.uuid4()), str(uuid.uuid4())
    left = [f"{ID}.dead-1-00001", f"{ID}.dead-1", f"{lost}.dead-2-00002", f"{ID}.done-1", f"{third}-00001"]
    kept = [f"{lost}.alive-3-00001", "readme.txt", f"{OTHER}.x", "some-00001"]
    for name in (*left, *kept):
        kit.direct.put(f"/{container}/{name}", b"x")
    before = set(names(kit))

    def lives(attempt: str) -> bool:
        return attempt == "alive-3"

    assert store.sweep(lives) == 0  # all of it is young
    with aged(0.0):
        assert store.sweep(lives) == 4
    assert before - set(names(kit)) == set(left[:4])
    with aged(0.0, 0.0):
        assert store.sweep(lives) == 1
    assert before - set(names(kit)) == set(left)
    assert content(store, url) == content(store, old) == DATA


def test_the_sweep_touches_no_segment_of_an_image_that_swift_does_not_find(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, pieces(DATA))
    kit.proxy.plant("HEAD", f"{ID}$", times=99, status=404)
    with aged(0.0, 0.0):
        assert store.sweep(lambda _: False) == 0
    kit.proxy.faults.clear()
    assert content(store, url) == DATA


# --- words -----------------------------------------------------------------------------------------------


def test_each_answer_is_told_in_our_words(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, [b"abc"])
    for status, kind in {
        401: errors.StoreUnavailable, 403: errors.StoreUnavailable, 404: errors.Missing, 413: errors.StoreFull,
        422: errors.StoreUnavailable, 429: errors.StoreBusy, 498: errors.StoreBusy, 499: errors.StoreUnavailable,
        503: errors.StoreUnavailable, 507: errors.StoreFull, 418: errors.StoreError,
    }.items():  # fmt: skip
        kit.proxy.faults = []
        kit.proxy.plant("GET", ID, times=9, status=status)
        with pytest.raises(errors.StoreError) as found:
            content(store, url)
        assert type(found.value) is kind


def test_no_error_and_no_log_has_a_credential_or_an_address(kit: Swifts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = kit.store(swift_store_key="pa55word-x")
    with pytest.raises(errors.StoreUnavailable, match="credentials") as refused:
        write(store, [b"abc"])
    fine = kit.store()
    url = write(fine, [b"abc"])
    token = fine._account._session().token
    told = errors.reason(refused.value) + str(store.check())
    for status in (401, 403, 404, 413, 429, 500, 418):
        with kit.proxy.set(status=status), pytest.raises(errors.StoreError) as failed:
            content(fine, url)
        told += errors.reason(failed.value)
        assert content(fine, url) == b"abc"  # with a token again
    told += caplog.text
    for secret in ("pa55word-x", KEY, token, kit.proxy.url, "AUTH_tk"):
        assert secret not in told


def test_retry_after_is_heeded(kit: Swifts) -> None:
    store = kit.store()
    url = write(store, [b"abc"])
    kit.proxy.plant("GET", ID, status=429, headers={"Retry-After": "1"})
    begun = time.monotonic()
    assert content(store, url) == b"abc"
    assert time.monotonic() - begun >= 1.0


def test_a_missing_container_is_made_if_the_operator_allows_it(kit: Swifts) -> None:
    store = kit.store(swift_store_create_container_on_put=False)
    assert not store.check().ok
    with pytest.raises(errors.StoreError, match="container"):
        write(store, [b"abc"])
    kit.direct.put(f"/{kit.container()}")
    assert store.check().ok
    assert content(store, write(store, [b"abc"])) == b"abc"


def test_a_check_of_a_store_that_hangs_ends_and_there_is_one_at_a_time(kit: Swifts) -> None:
    store = kit.store(read_timeout=60.0)
    with kit.hanging(store):
        for _ in range(3):
            begun = time.monotonic()
            assert not store.check().ok
            assert time.monotonic() - begun < 5.0
        assert kit.proxy.count("GET", "/auth") == 1


# --- accounts --------------------------------------------------------------------------------------------


def test_each_project_has_its_images_in_its_own_account(kit: Swifts) -> None:
    store = kit.store(swift_store_multi_tenant=True, swift_store_admin_tenants=["admins"])
    container = f"{kit.container()}_{ID}"
    notes: list[str] = []
    url = write(store, pieces(DATA), ctx=Context(project="alice"), notes=notes)
    assert url == f"swift+{kit.proxy.url}/v1/AUTH_alice/{container}/{ID}"
    assert store.owns(url)
    assert kit.direct.ask("GET", f"/{container}/{ID}", account="AUTH_alice").content == content(store, url) == DATA
    assert Direct(kit.server, "alice:alice").ask("GET", f"/{container}/{ID}").content == DATA

    def lists() -> tuple[str | None, ...]:
        headers = kit.direct.ask("HEAD", f"/{container}", account="AUTH_alice").headers
        return headers.get("X-Container-Read"), headers.get("X-Container-Write")

    assert lists() == (None, "admins:*")
    for public, projects, readers in ((False, ["bob", "eve"], "bob:*,eve:*"), (True, [], "*:*"), (False, [], None)):
        store.share(url, public=public, projects=projects, ctx=SERVICE)
        assert lists() == (readers, "admins:*")
    store.delete(url, ctx=SERVICE)
    assert kit.direct.ask("HEAD", f"/{container}", account="AUTH_alice").status_code == 404
    write(store, pieces(DATA), attempt="ab12-2", ctx=Context(project="alice"), notes=notes)
    store.clean(ID, "ab12-2", notes[-1])
    assert kit.direct.ask("HEAD", f"/{container}", account="AUTH_alice").status_code == 404


def test_a_location_in_another_swift_gets_no_token_of_ours(kit: Swifts) -> None:
    store = kit.store(swift_store_multi_tenant=True)
    for base in ("swift+http://127.0.0.1:1/v1/AUTH_alice", f"swift+{kit.proxy.url}/v1/x/AUTH_alice",
                 f"swift+{kit.proxy.url}/v2/AUTH_alice"):  # fmt: skip
        with pytest.raises(errors.LocationRefused):
            store.size(f"{base}/{kit.container()}_{ID}/{ID}", ctx=SERVICE)


def test_references_of_a_file_are_accounts(kit: Swifts, tmp_path: Path) -> None:
    file = tmp_path / "swift.conf"
    address = f"{kit.proxy.url}/auth/v1.0"
    section = "[{name}]\nauth_address = {address}\nauth_version = 1\nuser = {name}:{name}\nkey = secret\n"
    file.write_text("".join(section.format(name=name, address=address) for name in ("alice", "bob")))
    given = {"swift_store_config_file": str(file), "swift_store_user": None, "swift_store_key": None,
             "swift_store_auth_address": None}  # fmt: skip
    url = write(kit.store(**given, default_swift_reference="alice"), [b"abc"])
    assert url == f"swift+config://alice/{kit.container()}/{ID}"
    other = kit.store(**given, default_swift_reference="bob")
    assert content(other, url) == b"abc"
    assert write(other, [b"of bob"]).startswith("swift+config://bob/")
    assert Direct(kit.server, "alice:alice").ask("GET", f"/{kit.container()}/{ID}").content == b"abc"
    other.delete(url, ctx=SERVICE)


@pytest.mark.parametrize(("given", "words"), [
    ({"swift_store_user": None}, "swift_store_user"),
    ({"swift_store_user": "glance"}, "project:user"),
    ({"swift_store_auth_address": "keystone"}, "URL"),
    ({"swift_store_auth_version": "4"}, "auth_version"),
    ({"swift_store_container": "a/b"}, "container"),
    ({"swift_store_cacert": "/nowhere"}, "cacert"),
    ({"swift_store_config_file": "/nowhere"}, "config_file"),
    ({"swift_store_config_file": "/nowhere", "swift_store_multi_tenant": True}, "exclude"),
    ({"default_swift_reference": "a/b"}, "reference"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_at_the_start(given: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words) as found:
        SwiftStore("one", options(swift_store_auth_address="http://127.0.0.1:1/auth/v1.0") | given)
    assert "secret" not in str(found.value)


def test_keystone_gives_tokens_and_the_endpoint(keystone: Keystone, tmp_path: Path) -> None:
    server = swift(keystone=_authtoken(keystone))
    project = keystone.project("service")
    direct = Direct(server, token=keystone.token(ACCOUNT), account=f"AUTH_{project}")
    kit = Swifts(tmp_path, server, direct)
    keystone.offer(f"{kit.proxy.url}/v1/AUTH_$(project_id)s", "object-store")
    given = {
        "swift_store_auth_address": keystone.url,
        "swift_store_auth_version": "3",
        "swift_store_user": f"service:{ACCOUNT}",
        "swift_store_key": PASSWORD,
    }
    try:
        store = kit.store(**given)
        assert store.check().ok
        url = write(store, pieces(DATA))
        assert content(store, url) == DATA
        assert url == f"swift+config://ref1/{kit.container()}/{ID}"
        keystone.revoke(store._account._session().token)
        server.forget_tokens()
        assert content(store, url, offset=5, length=5) == DATA[5:10]
        tenants = kit.store(**given, swift_store_multi_tenant=True)
        red = keystone.project("red")
        url = write(tenants, [b"abc"], ctx=Context(project=red))
        assert f"/AUTH_{red}/{kit.container()}_{ID}/{ID}" in url
        assert content(tenants, url) == b"abc"
        with pytest.raises(errors.StoreUnavailable, match="credentials"):
            write(kit.store(**{**given, "swift_store_key": "wrong"}), [b"abc"], OTHER)
    finally:
        kit.close()


def _authtoken(keystone: Keystone) -> Any:
    """The options of Swift's own login, as what can be a key."""
    given = {
        "www_authenticate_uri": keystone.url, "auth_url": keystone.url, "auth_type": "password",
        "username": ACCOUNT, "password": PASSWORD, "project_name": "service", "project_domain_id": "default",
        "user_domain_id": "default",
    }  # fmt: skip
    return tuple(given.items())


@pytest.mark.parametrize("data", [b"small", DATA], ids=["one object", "segments"])
def test_whoever_comes_second_overwrites_nothing(kit: Swifts, data: bytes) -> None:
    store = kit.store()
    second = store.begin(ID, attempt="bb-1", size=None, note=lambda _: None, ctx=SERVICE)
    feed(second, pieces(data[::-1]))
    url = write(store, pieces(data))
    before = names(kit)
    with pytest.raises(errors.AlreadyStored):
        second.commit()
    assert content(store, url) == data
    second.abort()
    assert names(kit) == [name for name in before if ".bb-1" not in name]
    assert content(store, url) == data


def test_two_writers_of_one_image_never_touch_each_others_segments(kit: Swifts) -> None:
    store = kit.store()
    barrier = threading.Barrier(2)

    def one(attempt: str) -> Any:
        data = hashlib.sha256(attempt.encode()).digest() * (UNIT // 16)

        def slow() -> Iterator[bytes]:
            yield from pieces(data)
            barrier.wait(timeout=30)

        try:
            store_object(store, slow(), attempt=attempt)
        except errors.AlreadyStored:
            return None
        return data

    with ThreadPoolExecutor(2) as threads:
        won = [data for data in threads.map(one, ["aa-1", "bb-1"]) if data]
    assert len(won) == 1
    assert content(store, f"swift+config://ref1/{kit.container()}/{ID}") == won[0]
    assert len(kit.left_over()) == 1
