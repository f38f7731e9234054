"""Images in S3: what only this driver does, and what becomes of an image when its server or the network fails."""

import contextlib
import itertools
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from calotype import errors
from calotype.buffers import Budget
from calotype.context import SERVICE
from calotype.stores import s3_client
from calotype.stores.base import Store
from calotype.stores.registry import DRIVERS
from calotype.stores.s3 import MOST_PARTS, MOST_SIZE, S3Store
from calotype.stores.s3_probe import KEY, Abilities, crc32
from tests.stores import suite
from tests.stores.s3 import (
    Buckets,
    Fault,
    cut,
    falsify,
    hang,
    lose_answer,
    refuse,
    server,
    shorten,
    status,
    verify,
    without,
)
from tests.stores.suite import ID, OTHER, content, feed, store_object, write
from tests.support import free_port, until

pytestmark = pytest.mark.slow

MIB = 1 << 20
DATA = bytes(range(256)) * 4096 * 12  # of 12 MiB: three parts of 5
#: What a server does that keeps no conditions, and what one does that keeps all.
ABILITIES = [Abilities(), Abilities(guarded_put=True, guarded_complete=True)]


@pytest.fixture
def kit() -> Iterator[Buckets]:
    with contextlib.closing(Buckets(s3_store_large_object_chunk_size=5)) as made:
        yield made


@pytest.fixture
def store(kit: Buckets) -> S3Store:
    """One that knows already what its server can do."""
    made = kit.store()
    made._probe._found = ABILITIES[1]
    return made


def made(**given: Any) -> S3Store:
    """A store that nobody asks anything."""
    defaults = {option.dest: option.default for option in DRIVERS["s3"].options}
    named = {"s3_store_host": "127.0.0.1:1", "s3_store_access_key": "a", "s3_store_secret_key": "b"}
    return S3Store("one", defaults | named | {"s3_store_bucket": "images", "part_memory": Budget(256 * MIB)} | given)


def begin(store: Store, attempt: str = "ab12-1", **more: Any) -> Any:
    arguments = {"size": None, "note": lambda _: None, "ctx": SERVICE} | more
    return store.begin(ID, attempt=attempt, **arguments)


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"s3_store_host": None},
        {"s3_store_access_key": None},
        {"s3_store_secret_key": ""},
        {"s3_store_bucket": None},
        {"s3_store_bucket": "a/b"},
        {"s3_store_host": "ftp://host"},
        {"s3_store_host": "https://host/path"},
        {"s3_store_host": "https://user:password@host"},
        {"s3_store_host": "https://host:many"},
        {"s3_store_host": "https://"},
        {"s3_store_cacert": "/not/there"},
        {"s3_store_cacert": __file__, "s3_store_host": "https://host"},
        {"part_memory": Budget(8 * MIB)},
    ],
    ids=str,
)
def test_options_that_cannot_be_served_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match="one") as found:
        made(**given).check()
    assert "password" not in str(found.value)


def test_without_botocore_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'calotype\[s3\]'"):
        made()


def test_botocore_is_not_imported_before_a_store_is_made() -> None:
    code = "import sys, calotype.stores.registry; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_secrets_are_marked_as_such() -> None:
    assert {one.dest for one in DRIVERS["s3"].options if one.secret} == {"s3_store_access_key", "s3_store_secret_key"}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"s3_store_host": "127.0.0.1:8080"}, "http://127.0.0.1:8080/images/key"),
        ({"s3_store_host": "https://s3.example.com"}, "https://s3.example.com/images/key"),
        ({"s3_store_bucket_url_format": "virtual", "s3_store_host": "https://x.org:1"}, "https://images.x.org:1/key"),
        ({"s3_store_host": "https://s3.amazonaws.com"}, "https://images.s3.amazonaws.com/key"),
        ({"s3_store_host": "https://s3.amazonaws.com", "s3_store_bucket": "a.b"}, "https://s3.amazonaws.com/a.b/key"),
        (
            {"s3_store_host": "https://s3.eu-west-1.amazonaws.com", "s3_store_bucket_url_format": "path"},
            "https://s3.eu-west-1.amazonaws.com/images/key",
        ),
        ({"s3_store_host": "https://[::1]:9000"}, "https://[::1]:9000/images/key"),
    ],
)
def test_the_bucket_stands_in_the_host_or_in_the_path(given: dict[str, Any], url: str) -> None:
    assert made(**given).client.url_of("key") == url


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3-ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("s3.example.com", "us-east-1"),
    ],
)
def test_the_region_is_that_of_the_host_unless_one_is_given(host: str, region: str) -> None:
    assert made(s3_store_host=host)._region == region
    assert made(s3_store_host=host, s3_store_region_name="mine")._region == "mine"


def test_nothing_of_the_environment_counts(kit: Buckets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aws = tmp_path / ".aws"
    (aws / "models" / "s3" / "2006-03-01").mkdir(parents=True)
    (aws / "models" / "s3" / "2006-03-01" / "service-2.json").write_text("{}")
    (aws / "config").write_text("[profile other]\nregion = mars-1\nrubbish\n")
    (aws / "credentials").write_text("[default]\naws_access_key_id = ambient\naws_secret_access_key = ambient\n")
    nowhere = f"http://127.0.0.1:{free_port()}"
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "missing",
        "AWS_ACCESS_KEY_ID": "ambient",
        "AWS_SECRET_ACCESS_KEY": "ambient",
        "AWS_SESSION_TOKEN": "ambient",
        "AWS_DEFAULT_REGION": "mars-1",
        "AWS_REGION": "mars-1",
        "AWS_ENDPOINT_URL": nowhere,
        "AWS_ENDPOINT_URL_S3": nowhere,
        "AWS_CA_BUNDLE": "/not/there",
        "AWS_DATA_PATH": str(aws / "models"),
        "AWS_MAX_ATTEMPTS": "99",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "HTTP_PROXY": nowhere,
        "http_proxy": nowhere,
        "ALL_PROXY": nowhere,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    s3_client._session.cache_clear()
    store = kit.store()
    assert content(store, write(store, [b"abc"])) == b"abc"
    for asked in kit.proxy.asked:
        heads = {name.lower(): value for name, value in asked.headers.items()}
        assert f"Credential={server().access}/" in heads["authorization"]
        assert "/us-east-1/s3/" in heads["authorization"]
        assert not {name for name in heads if name.startswith(("x-amz-security", "x-amz-sdk-checksum"))}


# --- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10 * MIB, 97 << 30, (97 << 30) + 1, 1 << 40, MOST_SIZE])
def test_an_image_of_known_size_has_parts_of_one_size_and_10000_at_most(size: int) -> None:
    part = made(part_memory=Budget(1 << 30))._sizes(size)
    assert part(1) == part(MOST_PARTS) <= 5 << 30
    assert part(1) * MOST_PARTS >= size
    assert part(1) <= max(10 * MIB, size // MOST_PARTS + MIB)


@pytest.mark.parametrize(("memory", "largest"), [(256 * MIB, 1 << 40), (2 << 30, MOST_SIZE)])
def test_parts_of_an_unknown_size_grow_until_10000_are_enough(memory: int, largest: int) -> None:
    part = made(part_memory=Budget(memory))._sizes(None)
    sizes = [part(number) for number in range(1, MOST_PARTS + 1)]
    assert sizes[:1000] == [10 * MIB] * 1000
    assert sizes == sorted(sizes)
    assert sizes[-1] <= memory
    assert sum(sizes) >= largest


def test_parts_may_be_held_to_one_size() -> None:
    part = made(s3_store_equal_parts=True)._sizes(None)
    assert {part(number) for number in (1, 5000, MOST_PARTS)} == {10 * MIB}


@pytest.mark.parametrize("size", [MOST_SIZE + 1, 10_000 * 257 * MIB])
def test_what_no_parts_could_hold_is_refused(size: int) -> None:
    with pytest.raises(errors.StoreFull):
        made()._sizes(size)


def test_after_10000_parts_an_upload_is_refused(store: S3Store) -> None:
    begun = begin(store)
    with pytest.raises(errors.StoreFull):
        begun._send(MOST_PARTS + 1, memoryview(b"x"))
    begun.abort()


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_parts_are_sent_side_by_side_within_the_window_and_the_memory(
    kit: Buckets, store: S3Store, size: int | None
) -> None:
    """Each part waits in the proxy until there are two; with a window of two a third never comes."""
    store._at_once = 2
    go_on, lock, now, most = threading.Event(), threading.Lock(), [0], [0]

    def held(handler: Any, asked: Any) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 2:
                go_on.set()
        assert go_on.wait(20)
        handler.answer(*handler.ask(asked))
        with lock:
            now[0] -= 1

    used = []

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(DATA), MIB):
            yield DATA[start : start + MIB]
            used.append(kit.memory.used)

    with kit.proxy.always(held, "part"):
        url = write(store, pieces(), size=size)
    assert most[0] == 2
    assert max(used) <= 2 * 5 * MIB
    assert kit.memory.used == 0
    assert kit.proxy.count("part") == 3
    assert content(store, url) == DATA


def test_a_small_image_of_known_size_takes_no_memory_for_a_whole_part(store: S3Store, kit: Buckets) -> None:
    begun = begin(store, size=MIB)
    feed(begun, [bytes(MIB)])
    assert kit.memory.used == MIB
    begun.abort()
    assert kit.memory.used == 0


# --- failures in writing ---------------------------------------------------------------------------------


FAULTS: list[tuple[str, Fault]] = [
    *itertools.product(("create", "part", "complete"), (status(500), status(403, "AccessDenied"), refuse, lose_answer)),
    ("part", hang),
    ("complete", hang),
    ("part", status(403, "QuotaExceeded")),
    ("part", status(400, "BadDigest")),
    ("complete", status(400, "InvalidPart")),
    ("complete", status(200, "InternalError")),
    ("head", status(403, "403")),
]
#: What the server can do makes a difference at the end only.
CASES = [
    pytest.param(what, fault, abilities, id=f"{what} {getattr(fault, '__name__', '')} {number}")
    for number, (what, fault) in enumerate(FAULTS)
    for abilities in ABILITIES[: 2 if what == "complete" else 1]
]


@pytest.mark.parametrize(("what", "fault", "abilities"), CASES)
def test_what_fails_leaves_nothing(
    kit: Buckets, monkeypatch: pytest.MonkeyPatch, what: str, fault: Fault, abilities: Abilities
) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    data = DATA[: 6 * MIB]
    store = kit.store(read_timeout=Buckets.read_timeout if fault is hang else 60.0)
    store._probe._found = abilities
    kit.proxy.order(what, fault, -1)
    if (what, fault) == ("complete", lose_answer):
        assert content(store, write(store, [data])) == data  # it is there, so nothing was lost
        return
    with pytest.raises(errors.StoreError) as found:
        write(store, [data])
    kit.proxy.heal()
    assert kit.left_over() == []
    assert kit.memory.used == 0
    assert_harmless(kit, found.value)
    assert content(store, write(store, [data], attempt="ab12-2")) == data


def assert_harmless(kit: Buckets, exc: BaseException) -> None:
    """A message of ours, for users, names no place and no credential."""
    text = str(exc)
    for secret in (server().access, server().secret, urlsplit(kit.proxy.url).netloc, kit.bucket(), ID, "Signature"):
        assert secret not in text
    assert "//" not in text
    assert text.endswith(".")
    causes: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None:
        assert cause not in causes, "it is its own cause"
        causes.append(cause)
        cause = cause.__cause__
    assert len(causes) > 1


def test_a_failure_that_passes_is_not_noticed(kit: Buckets, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    for what in ("head", "create", "part", "part", "complete"):
        kit.proxy.order(what, status(503, "SlowDown"))
        kit.proxy.order(what, refuse)
    url = write(store, [DATA])
    for fault in (status(500), refuse):
        kit.proxy.order("get", fault)
        kit.proxy.order("delete", fault)
    assert content(store, url) == DATA
    store.delete(url, ctx=SERVICE)
    assert kit.left_over() == []


def test_tries_are_bounded(kit: Buckets, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    with kit.proxy.always(status(503, "SlowDown")), pytest.raises(errors.StoreUnavailable, match="overloaded"):
        store.size(f"{store.prefixes()[0]}{ID}", ctx=SERVICE)
    assert kit.proxy.count("head") == s3_client.TRIES


def test_an_upload_whose_creation_was_not_noted_is_cleaned_away(
    kit: Buckets, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    notes: list[str] = []

    def note(text: str) -> None:
        if notes:
            raise errors.Gone("The process died here.")
        notes.append(text)

    other = kit.raw.create_multipart_upload(Bucket=kit.bucket(), Key=OTHER)["UploadId"]
    with kit.proxy.always(refuse, "abort"), pytest.raises(errors.Gone):
        begin(store, note=note)
    assert len(kit.uploads()) == 2
    store.clean(ID, "ab12-1", notes[-1])
    assert [one["UploadId"] for one in kit.uploads()] == [other]


def test_a_commit_of_which_nobody_heard_is_cleaned_away(kit: Buckets, store: S3Store) -> None:
    notes: list[str] = []

    def die(handler: Any, asked: Any) -> None:
        kit.proxy.order("*", refuse, -1)
        lose_answer(handler, asked)

    kit.proxy.order("complete", die)
    with pytest.raises(errors.StoreUnavailable):
        write(store, [DATA], notes=notes)
    kit.proxy.heal()
    assert kit.left_over() == [ID]
    store.clean(ID, "ab12-1", notes[-1])
    assert kit.left_over() == []


def test_a_wrong_size_is_not_taken_for_a_success(kit: Buckets, store: S3Store) -> None:
    def lie(handler: Any, asked: Any) -> None:
        handler.answer(*handler.ask(asked))
        kit.truncate(store, ID)

    kit.proxy.order("complete", lie)
    with pytest.raises(errors.StoreUnavailable, match="another size"):
        write(store, [b"abc"])
    assert kit.left_over() == []


# --- nothing is overwritten ------------------------------------------------------------------------------


class Plain(Buckets):
    """A server that ignores conditions, as a probe finds out."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        for what in ("put", "complete"):
            self.proxy.tries[what] = without("if-none-match")
            self.proxy.order(what, without("if-none-match"), -1)
        self.proxy.order("delete", without("if-match"), -1)


@pytest.mark.parametrize(
    "check",
    [
        suite.what_is_written_is_read_again,
        suite.nothing_is_overwritten,
        suite.of_two_writers_at_once_one_wins,
        suite.delete_removes_only_the_object_that_is_meant,
        suite.clean_removes_a_finished_object_that_was_never_reported,
        suite.clean_leaves_what_another_attempt_stores,
        suite.a_writer_that_was_cleaned_away_cannot_finish,
    ],
    ids=lambda check: check.__name__,
)
def test_a_server_that_ignores_conditions_is_enough(check: suite.Check) -> None:
    with contextlib.closing(Plain()) as kit:
        check(kit)
        assert kit.store()._probe.abilities(20) == Abilities()


@pytest.mark.parametrize("data", [DATA, b""], ids=["parts", "empty"])
@pytest.mark.parametrize("abilities", ABILITIES, ids=["plain", "guarded"])
def test_what_another_program_stored_meanwhile_stays(kit: Buckets, abilities: Abilities, data: bytes) -> None:
    store = kit.store()
    store._probe._found = abilities
    begun = begin(store)
    feed(begun, [data])
    kit.raw.put_object(Bucket=kit.bucket(), Key=ID, Body=b"another's")
    with pytest.raises(errors.AlreadyStored):
        begun.commit()
    begun.abort()
    assert kit.left_over() == [ID]
    assert content(store, f"{store.prefixes()[0]}{ID}") == b"another's"


def test_without_conditions_the_upload_that_began_first_is_the_one_that_is_stored(kit: Buckets) -> None:
    store = kit.store()
    store._probe._found = ABILITIES[0]
    first, second = begin(store, "aa-1"), begin(store, "bb-1")
    feed(first, [b"first"])
    feed(second, [b"second"])
    with pytest.raises(errors.AlreadyStored, match="under way"):
        second.commit()
    second.abort()
    assert content(store, first.commit().url) == b"first"
    assert kit.left_over() == [ID]


def test_without_conditions_a_writer_that_sleeps_before_it_completes_is_not_overtaken(kit: Buckets) -> None:
    store = kit.store()
    store._probe._found = ABILITIES[0]
    first = begin(store, "aa-1")
    feed(first, [b"first"])
    overtaken = []

    def sleep(handler: Any, asked: Any) -> None:
        with pytest.raises(errors.AlreadyStored):
            write(store, [b"second"], attempt="bb-1")
        overtaken.append(True)
        handler.answer(*handler.ask(asked))

    kit.proxy.order("complete", sleep)
    assert content(store, first.commit().url) == b"first"
    assert overtaken


@pytest.mark.parametrize("moment", ["put", "abort"])
def test_an_empty_image_of_a_writer_that_was_cleaned_away_is_not_stored(
    kit: Buckets, store: S3Store, moment: str
) -> None:
    notes: list[str] = []

    def late(handler: Any, asked: Any) -> None:
        """The lease runs out just before the request is carried out."""
        store.clean(ID, "aa-1", notes[-1])
        handler.answer(*handler.ask(asked))

    begun = begin(store, "aa-1", note=notes.append)
    kit.proxy.order(moment, late)
    with pytest.raises(errors.Gone):
        begun.commit()
    begun.abort()
    assert kit.left_over() == []


def test_what_took_the_place_of_an_object_just_now_is_not_deleted(kit: Buckets, store: S3Store) -> None:
    one = store_object(store, [b"abc"])

    def replace(handler: Any, asked: Any) -> None:
        kit.raw.put_object(Bucket=kit.bucket(), Key=ID, Body=b"new")
        handler.answer(*handler.ask(asked))

    kit.proxy.order("delete", replace)
    with pytest.raises(errors.Replaced):
        store.delete(one.url, object_id=one.object_id, ctx=SERVICE)
    assert content(store, one.url) == b"new"


def test_a_server_that_compares_with_another_etag_than_it_shows_deletes_all_the_same(
    kit: Buckets, store: S3Store
) -> None:
    one = store_object(store, [b"abc"])
    kit.proxy.order("delete", status(412, "PreconditionFailed"))
    store.delete(one.url, object_id=one.object_id, ctx=SERVICE)
    assert kit.left_over() == []


def test_a_server_without_conditional_deletes_deletes_all_the_same(kit: Buckets, store: S3Store) -> None:
    one = store_object(store, [b"abc"])
    kit.proxy.order("delete", status(501, "NotImplemented"))
    store.delete(one.url, object_id=one.object_id, ctx=SERVICE)
    assert kit.left_over() == []
    assert "If-Match" not in kit.proxy.asked[-1].headers


# --- what the server can do ------------------------------------------------------------------------------


def test_a_probe_believes_what_it_sees(kit: Buckets) -> None:
    assert kit.store()._probe.abilities(20) == Abilities(guarded_put=True, guarded_complete=True)
    kit.proxy.tries["part"] = verify
    assert kit.store()._probe.abilities(20).checksums
    kit.proxy.tries["part"] = status(501, "NotImplemented")
    assert kit.store()._probe.abilities(5) == Abilities()  # without parts it learns nothing
    kit.proxy.tries = {"put": without("if-none-match"), "complete": without("if-none-match")}
    assert kit.store()._probe.abilities(20) == Abilities()
    assert kit.left_over() == []
    assert {one["Key"] for one in kit.raw.list_objects_v2(Bucket=kit.bucket())["Contents"]} == {KEY}
    assert "Uploads" not in kit.raw.list_multipart_uploads(Bucket=kit.bucket())


def test_a_probe_that_hangs_holds_up_no_upload(kit: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.stores.s3._PROBE", 0.1)
    gate = threading.Event()
    kit.proxy.tries["*"] = lambda handler, asked: (gate.wait(30), handler.break_off())[1]
    store = kit.store(read_timeout=30.0)
    assert content(store, write(store, [DATA])) == DATA
    gate.set()


def test_who_only_looks_starts_no_probe(kit: Buckets) -> None:
    store = kit.store()
    store.check()
    store.details()
    with pytest.raises(errors.Missing):
        store.size(f"{store.prefixes()[0]}{ID}", ctx=SERVICE)
    store.sweep(lambda _: False)
    assert not [asked for asked in kit.proxy.asked if KEY in asked.path]


def test_each_part_has_its_checksum_where_the_server_keeps_them(kit: Buckets, store: S3Store) -> None:
    store._probe._found = Abilities(guarded_complete=True, checksums=True)
    kit.proxy.order("part", falsify)  # refused, as the next ones show
    with kit.proxy.always(verify, "part"):
        url = write(store, [DATA])
    parts = [asked for asked in kit.proxy.asked if asked.what == "part"]
    assert all(asked.headers["x-amz-checksum-crc32"] == crc32(memoryview(asked.body)) for asked in parts[1:])
    assert kit.proxy.asked[1].headers["x-amz-checksum-algorithm"] == "CRC32"
    assert b"ChecksumCRC32" in next(asked.body for asked in kit.proxy.asked if asked.what == "complete")
    assert len(content(store, url)) == len(DATA)


def test_a_part_that_was_damaged_on_its_way_fails_the_upload(kit: Buckets, store: S3Store) -> None:
    store._probe._found = Abilities(guarded_complete=True, checksums=True)

    def damage(handler: Any, asked: Any) -> None:
        asked.body = bytes([asked.body[0] ^ 1]) + asked.body[1:]
        verify(handler, asked)

    with kit.proxy.always(damage, "part"), pytest.raises(errors.StoreError):
        write(store, [DATA])
    assert kit.left_over() == []


# --- reading ---------------------------------------------------------------------------------------------


def test_a_read_is_one_request(kit: Buckets, store: S3Store) -> None:
    url = write(store, [DATA])
    before = len(kit.proxy.asked)
    assert content(store, url, offset=7, length=1000) == DATA[7:1007]
    assert content(store, url) == DATA
    assert [asked.what for asked in kit.proxy.asked[before:]] == ["get", "get"]


def test_at_the_end_there_is_nothing_to_read_and_beyond_it_a_failure(store: S3Store) -> None:
    url = write(store, [b"abc"])
    assert content(store, url, offset=3) == b""
    for offset, length in ((4, None), (4, 0), (3, 1)):
        with pytest.raises(errors.StoreError, match="shorter"):
            store.read(url, offset=offset, length=length, ctx=SERVICE)
    assert content(store, write(store, [], image_id=OTHER)) == b""


@pytest.mark.parametrize("after", [0, 1, 65536, 3_000_000, len(DATA) - 8])
def test_after_a_cut_a_read_goes_on_at_the_same_byte(
    kit: Buckets, store: S3Store, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    url = write(store, [DATA])
    for _ in range(2):
        kit.proxy.order("get", cut(after))
    kit.proxy.order("get", status(500))
    assert content(store, url, offset=5) == DATA[5:]
    gets = [asked for asked in kit.proxy.asked if asked.what == "get"]
    assert len(gets) > 1
    begins = [int(asked.headers["Range"].removeprefix("bytes=").partition("-")[0]) for asked in gets]
    assert begins == sorted(begins)


def test_a_read_does_not_go_on_with_another_object(kit: Buckets, store: S3Store) -> None:
    url = write(store, [DATA])

    def replace(handler: Any, asked: Any) -> None:
        found, headers, body = handler.ask(asked)
        kit.raw.put_object(Bucket=kit.bucket(), Key=ID, Body=DATA[::-1])
        handler.head(found, headers)
        handler.wfile.write(body[:MIB])
        handler.break_off()

    kit.proxy.order("get", replace)
    with pytest.raises(errors.StoreError, match="replaced"):
        content(store, url)


def test_a_server_that_always_breaks_off_is_not_asked_for_ever(kit: Buckets) -> None:
    store = kit.store(read_timeout=120.0)
    url = write(store, [DATA])
    with kit.proxy.always(cut(0), "get"), pytest.raises(errors.StoreUnavailable):
        content(store, url)
    assert kit.proxy.count("get") < 30


def test_a_server_that_sends_less_than_there_is_is_noticed(kit: Buckets, store: S3Store) -> None:
    url = write(store, [DATA])
    for offset in (0, 100):
        kit.proxy.order("get", shorten)
        with (
            pytest.raises(errors.StoreError),
            contextlib.closing(store.read(url, offset=offset, length=len(DATA) - offset, ctx=SERVICE)) as body,
        ):
            b"".join(body)


def test_a_server_that_ignores_the_range_is_noticed(kit: Buckets, store: S3Store) -> None:
    url = write(store, [DATA])
    kit.proxy.order("get", without("range"))
    with pytest.raises(errors.StoreError, match="another part"):
        store.read(url, offset=100, ctx=SERVICE)


def test_a_read_that_waits_to_go_on_is_cancelled_at_once(kit: Buckets) -> None:
    store = kit.store(read_timeout=30.0)
    url = write(store, [DATA])
    kit.proxy.order("get", cut(MIB))
    gate = threading.Event()
    kit.proxy.order("get", lambda handler, asked: (gate.wait(30), handler.break_off())[1])
    with contextlib.closing(store.read(url, ctx=SERVICE)) as body, ThreadPoolExecutor(1) as thread:
        reading = thread.submit(lambda: list(body))
        until(lambda: kit.proxy.count("get") == 2)
        body.cancel()
        assert wait([reading], 10).done
        with pytest.raises(errors.Cancelled):
            reading.result()
        gate.set()


def test_a_read_is_cancelled_by_another_thread_also_over_tls(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with contextlib.closing(Buckets(certificate=certificate(tmp_path), s3_store_cacert=str(tmp_path / "c.pem"))) as kit:
        store = kit.store()
        url = write(store, [DATA])
        assert url.startswith("s3+https://")
        assert content(store, url) == DATA
        store.delete(url, ctx=SERVICE)
        suite.a_read_that_hangs_is_cancelled_at_once(kit)
        with pytest.raises(errors.StoreUnavailable, match="certificate"):
            kit.store(s3_store_cacert="").size(url, ctx=SERVICE)


def certificate(path: Path) -> Path:
    """A PEM file with a certificate for 127.0.0.1 and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "S3")])
    day = datetime.timedelta(days=1)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    found = path / "c.pem"
    found.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return found


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["s3", "s3+http", "s3+https"])
@pytest.mark.parametrize("user", ["", "KEY:secret@", "KEY:se/cr+et/@", "KEY:sec%2Fret@"])
def test_old_urls_are_read_with_the_credentials_of_the_store(
    kit: Buckets, store: S3Store, scheme: str, user: str
) -> None:
    url = write(store, [b"abc"])
    old = re.sub("^s3://", f"{scheme}://{user}", url)
    assert store.owns(old)
    assert content(store, old) == b"abc"
    assert all("KEY" not in str(asked) for asked in kit.proxy.asked)
    store.delete(old, ctx=SERVICE)
    assert kit.left_over() == []


def test_urls_that_are_written_have_no_credentials(kit: Buckets, store: S3Store) -> None:
    url = write(store, [b"abc"])
    assert url == f"s3://{urlsplit(kit.proxy.url).netloc}/{kit.bucket()}/{ID}"
    assert made(s3_store_host="https://h").prefixes()[1] == "s3+https://h/images/"


def test_what_glance_stored_is_read_and_deleted(kit: Buckets, store: S3Store) -> None:
    kit.raw.put_object(Bucket=kit.bucket(), Key=ID, Body=b"by Glance")
    url = f"{store.prefixes()[0]}{ID}"
    assert content(store, url) == b"by Glance"
    with pytest.raises(errors.AlreadyStored):
        write(store, [b"ours"])
    store.clean(ID, "ab12-1", "upload none-such")
    store.delete(url, ctx=SERVICE)
    assert kit.left_over() == []


# --- buckets, health, left-overs -------------------------------------------------------------------------


def test_a_missing_bucket_is_no_missing_image(kit: Buckets) -> None:
    store = kit.store(s3_store_bucket="none-such-bucket")
    url = f"{store.prefixes()[0]}{ID}"
    assert store.check().error == "The store's bucket does not exist."
    for ask in (
        lambda: store.read(url, ctx=SERVICE),
        lambda: store.size(url, ctx=SERVICE),
        lambda: store.delete(url, ctx=SERVICE),
        lambda: write(store, [b"x"]),
    ):
        with pytest.raises(errors.StoreUnavailable, match="bucket does not exist"):
            ask()


def test_a_missing_bucket_is_made_if_that_is_wanted(kit: Buckets) -> None:
    store = kit.store(s3_store_bucket=f"new-{kit.bucket()}", s3_store_create_bucket_on_put=True)
    assert store.check().ok
    assert content(store, write(store, [b"abc"])) == b"abc"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    store = made(s3_store_host=f"127.0.0.1:{free_port()}")
    assert store.check().error
    with pytest.raises(errors.StoreUnavailable):
        store.size(f"{store.prefixes()[0]}{ID}", ctx=SERVICE)


def test_a_server_that_accepts_no_connection_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(3):  # nobody accepts these, and there is room for no more
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        store = made(s3_store_host=f"127.0.0.1:{full.getsockname()[1]}", connect_timeout=0.5, read_timeout=60.0)
        tries = []
        client = store.client._client
        monkeypatch.setattr(store.client, "_connected", lambda: tries.append(1) or client)
        with pytest.raises(errors.StoreUnavailable, match="does not answer"):
            store.size(f"{store.prefixes()[0]}{ID}", ctx=SERVICE)
        assert len(tries) == 1


@pytest.mark.parametrize(
    ("number", "code", "kind", "words"),
    [
        (403, "AccessDenied", errors.StoreUnavailable, "permit"),
        (403, "InvalidAccessKeyId", errors.StoreUnavailable, "credentials"),
        (403, "SignatureDoesNotMatch", errors.StoreUnavailable, "credentials"),
        (400, "ExpiredToken", errors.StoreUnavailable, "credentials"),
        (403, "RequestTimeTooSkewed", errors.StoreUnavailable, "clock"),
        (503, "SlowDown", errors.StoreUnavailable, "overloaded"),
        (403, "QuotaExceeded", errors.StoreFull, "room"),
        (507, "XMinioStorageFull", errors.StoreFull, "room"),
        (413, "Whatever", errors.StoreFull, "room"),
        (301, "PermanentRedirect", errors.StoreUnavailable, "region"),
        (418, "Teapot", errors.StoreUnavailable, "418"),
    ],
)
def test_refusals_are_told_in_words(
    kit: Buckets, store: S3Store, monkeypatch: pytest.MonkeyPatch, number: int, code: str,
    kind: type[Exception], words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    with kit.proxy.always(status(number, code), "create"), pytest.raises(kind, match=words) as found:
        write(store, [b"x"])
    assert_harmless(kit, found.value)
    assert not isinstance(found.value, errors.Missing)


def test_unfinished_uploads_are_aborted_when_nothing_was_added_for_long(kit: Buckets, store: S3Store) -> None:
    bucket = kit.bucket()
    keys = [ID, OTHER, "somebody's", KEY]
    ids = {key: kit.raw.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in keys}
    part = {"Key": OTHER, "UploadId": ids[OTHER], "PartNumber": 1, "Body": b"x"}
    assert store.sweep(lambda _: False) == 0
    with ahead(kit, 23.9):
        assert store.sweep(lambda _: False) == 0
    kit.raw.upload_part(Bucket=bucket, **part)
    with ahead(kit, 24.1), newer_part(kit):
        assert store.sweep(lambda _: False) == 2  # to one of them a part was added later
    assert {one["Key"] for one in kit.raw.list_multipart_uploads(Bucket=bucket)["Uploads"]} == {OTHER, "somebody's"}
    with ahead(kit, 30):
        kit.proxy.order("parts", status(404, "NoSuchUpload"))  # it ended just now
        assert store.sweep(lambda _: False) == 0
        assert store.sweep(lambda _: False) == 1
    with kit.broken(store):
        assert store.sweep(lambda _: False) == 0


@contextlib.contextmanager
def ahead(kit: Buckets, hours: float) -> Iterator[None]:
    """The server's clock, as it tells it, is that much later."""
    kit.proxy.hours = hours
    try:
        yield
    finally:
        kit.proxy.hours = 0.0


@contextlib.contextmanager
def newer_part(kit: Buckets) -> Iterator[None]:
    """Parts are listed as if they had come in the next century."""

    def answer(handler: Any, asked: Any) -> None:
        found, headers, body = handler.ask(asked)
        handler.answer(found, headers, re.sub(rb"<LastModified>\d\d", b"<LastModified>21", body))

    with kit.proxy.always(answer, "parts"):
        yield


def test_neither_secrets_nor_signatures_are_logged(
    kit: Buckets, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PAUSE", 0.01)
    with caplog.at_level(logging.DEBUG):
        store = kit.store()
        url = write(store, [DATA])
        content(store, url)
        for fault in (status(500), status(403, "AccessDenied"), refuse):
            with kit.proxy.always(fault), pytest.raises(errors.StoreError) as found:
                store.size(url, ctx=SERVICE)
            logging.getLogger("test").error("%s", errors.reason(found.value))
        store.delete(url, ctx=SERVICE)
    signatures = {asked.headers["Authorization"].rpartition("=")[2] for asked in kit.proxy.asked}
    for secret in (server().secret, server().access, "Authorization", *signatures):
        assert secret not in caplog.text


def test_a_child_makes_connections_of_its_own(kit: Buckets, store: S3Store) -> None:
    url = write(store, [b"abc"])
    store.client._process = -1  # as after a fork
    assert content(store, url) == b"abc"
    assert store.client._process > 0
