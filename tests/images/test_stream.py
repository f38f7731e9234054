"""`images/stream.py`: what passes is counted, hashed, capped and inspected; what is wrong never ends cleanly."""

import gc
import hashlib
import itertools
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.buffers import BUFFER, LITTLE, SPARE, Piece
from calotype.images.inspection import FormatRules
from calotype.images.stream import FIRST, RING, Passing, Source, check_hash_algo
from calotype.stores.base import Stored
from calotype.transfers import Transfers
from tests.images import samples
from tests.images.samples import vdi, vhd
from tests.support import tool, until


class Memory:
    """A source that hands out `data` in pieces of `step` bytes and counts what it was asked."""

    def __init__(self, data: bytes, step: int = BUFFER, fail_at: int | None = None) -> None:
        self.data = memoryview(data)
        self.step = step
        self.at = 0
        self.fail_at = fail_at

    def ready(self, size: int) -> int:
        return size

    def readinto(self, view: memoryview) -> int:
        if self.fail_at is not None and self.at >= self.fail_at:
            raise errors.BodyBroken("gone")
        piece = self.data[self.at : self.at + min(self.step, len(view))]
        view[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


TRANSFERS = Transfers(64 << 20, 1000)


def passing(source: Source | bytes, **changes: Any) -> Passing:
    if isinstance(source, bytes):
        source = Memory(source)
    settings: dict[str, Any] = {
        "expect": None,
        "cap": 1 << 40,
        "hash_algo": "sha512",
        "md5": True,
        "disk_format": None,
        "container_format": None,
        "rules": FormatRules(),
    }
    return Passing(source, **{"transfers": TRANSFERS, **settings, **changes})


class Sink:
    """A `Write` that keeps a copy of what is put; `each` is called with every piece before that."""

    def __init__(self, each: Callable[[Piece], object] = lambda _: None, window: int = 0) -> None:
        self.each = each
        self.window = window
        self.data = bytearray()
        self.sizes: list[int] = []

    def put(self, piece: Piece) -> None:
        self.each(piece)
        self.data += piece.view
        self.sizes.append(len(piece.view))

    def commit(self) -> Stored:
        raise AssertionError("it is for the caller to commit")

    def abort(self) -> None:
        raise AssertionError("it is for the caller to abort")


def collect(one: Passing, pause: Callable[[], None] = lambda: None) -> bytes:
    sink = Sink(lambda _: pause())
    with one:
        one.run(sink)
    return bytes(sink.data)


def stop(_: Piece) -> None:
    raise errors.StoreError("full")


def pattern(size: int) -> bytes:
    """Bytes in which no two buffers are alike."""
    return b"".join(hashlib.sha256(b"%d" % n).digest() * 2048 for n in range(size // 65536 + 1))[:size]


@pytest.fixture(autouse=True)
def no_buffer_is_left() -> Iterator[None]:
    yield

    def none_is_used() -> bool:
        if TRANSFERS.buffers.budget.used:
            gc.collect(1)  # frames of an exception may hold one; to look at all objects takes long
        return TRANSFERS.buffers.budget.used == 0

    until(none_is_used)


SIZES = [0, 1, 511, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, RING * BUFFER, (RING + 1) * BUFFER, 13 * BUFFER + 77]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_what_comes_out_is_what_went_in_and_its_hashes(size: int, announced: bool) -> None:
    data = pattern(size)
    one = passing(data, expect=size if announced else None)
    assert collect(one) == data
    assert one.size == size
    assert one.checksum == hashlib.md5(data).hexdigest()
    assert one.hash_value == hashlib.sha512(data).hexdigest()
    assert one.virtual_size is None


@pytest.mark.parametrize("step", [1000, 65536, BUFFER - 1])
def test_buffers_are_filled_whatever_the_source_gives_at_a_time(step: int) -> None:
    data = pattern(7 * BUFFER + 3)
    one = passing(Memory(data, step), clock=lambda: 0.0)  # else a source may be slow on a busy machine
    sink = Sink()
    one.run(sink)
    assert sink.sizes == [FIRST] + [BUFFER] * 6 + [BUFFER - FIRST + 3]
    assert one.hash_value == hashlib.sha512(data).hexdigest()


def test_a_slow_store_sees_every_byte_unharmed() -> None:
    data = pattern(12 * BUFFER + 5)
    assert collect(passing(data), lambda: time.sleep(0.01)) == data


def test_slow_hashing_sees_every_byte_unharmed() -> None:
    class Slow:
        def __init__(self) -> None:
            self.hash = hashlib.sha256()

        def update(self, data: memoryview, /) -> None:
            time.sleep(0.01)
            self.hash.update(data)

    data = pattern(FIRST + 12 * BUFFER + 5)  # the last piece is a little one, which must not come first
    slow = Slow()
    one = passing(data, taps=[slow])
    assert collect(one) == data
    assert slow.hash.digest() == hashlib.sha256(data).digest()


def test_a_piece_cannot_be_used_after_its_time() -> None:
    views: list[memoryview] = []

    def keep(piece: Piece) -> None:
        if views:
            with pytest.raises(ValueError, match="released"):
                bytes(views[-1])
        views.append(piece.view)

    passing(pattern(3 * BUFFER)).run(Sink(keep))
    assert len(views) > 2


def test_md5_is_left_out_where_it_is_not_wanted() -> None:
    one = passing(b"abc", md5=False)
    collect(one)
    assert one.checksum is None


def test_a_small_image_needs_no_thread_and_little_memory() -> None:
    before = threading.active_count()
    transfers = Transfers(64 << 20, 1)

    def look(piece: Piece) -> None:
        assert threading.active_count() == before
        assert memoryview(piece.view.obj).nbytes == 1001
        assert transfers.buffers.budget.used == 1001

    passing(b"x" * 1000, expect=1000, transfers=transfers).run(Sink(look))
    assert transfers.buffers.kept == 0


def test_buffers_are_kept_for_the_next_image_but_not_many() -> None:
    transfers = Transfers(64 << 20, 1000)
    for _ in range(8):
        collect(passing(pattern(RING * BUFFER), transfers=transfers))
    together = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            one = passing(pattern(RING * BUFFER), transfers=transfers)
            pool.submit(collect, one, lambda: together.wait(10))
    assert 2 * BUFFER <= transfers.buffers.kept <= SPARE * BUFFER


@pytest.mark.parametrize("at", [0, 1, BUFFER, 9 * BUFFER])
def test_a_source_that_breaks_off_is_never_a_clean_end(at: int) -> None:
    one = passing(Memory(pattern(10 * BUFFER), fail_at=at))
    with pytest.raises(errors.BodyBroken):
        collect(one)


@pytest.mark.parametrize("pieces_taken", [0, 1, 2, 8])
def test_a_store_that_fails_ends_the_threads(pieces_taken: int) -> None:
    sink = Sink(lambda piece: stop(piece) if len(sink.sizes) == pieces_taken else None)
    with pytest.raises(errors.StoreError):
        passing(pattern(10 * BUFFER)).run(sink)
    # the fixture looks for buffers


def test_a_hasher_that_fails_is_reported_and_blocks_nobody() -> None:
    class Broken:
        def update(self, data: memoryview, /) -> None:
            raise RuntimeError("no hash")

    with pytest.raises(RuntimeError, match="no hash"):
        collect(passing(pattern(20 * BUFFER), taps=[Broken()]))


def test_bytes_pass_once() -> None:
    one = passing(b"abc")
    collect(one)
    with pytest.raises(RuntimeError):
        one.run()


# --- memory and threads ----------------------------------------------------------------------------------


class Slow:
    """A source whose client sends `parts`, and lets us wait before each of them, on a clock of its own."""

    def __init__(self, parts: list[bytes], pause: float) -> None:
        self.parts = [memoryview(part) for part in parts]
        self.pause = pause
        self.now = 0.0
        self.lent: list[int] = []  #: by the budget, while it was waited for
        self.views: list[int] = []

    def clock(self) -> float:
        return self.now

    def ready(self, size: int) -> int:
        self.lent.append(TRANSFERS.buffers.budget.used)
        self.now += self.pause
        return len(self.parts[0]) if self.parts else 1

    def readinto(self, view: memoryview) -> int:
        self.views.append(len(view))
        if not self.parts:
            return 0
        piece = self.parts[0][: len(view)]
        view[: len(piece)] = piece
        self.parts[0] = self.parts[0][len(piece) :]
        if not self.parts[0]:
            self.parts.pop(0)
        return len(piece)


def test_a_client_that_is_waited_for_holds_no_buffer_and_gets_one_of_the_size_of_what_came() -> None:
    source = Slow([b"x" * 100] * 20, pause=1.0)
    one = passing(source, clock=source.clock)
    assert collect(one) == b"x" * 2000
    assert one.hash_value == hashlib.sha512(b"x" * 2000).hexdigest()
    assert set(source.lent) == {0}
    assert max(source.views) == 100


def test_pieces_are_as_large_as_the_client_is_quick() -> None:
    source = Slow([bytes(2 * BUFFER)], pause=0.001)

    def change(_: Piece) -> None:
        if len(sink.sizes) == 1:  # it becomes slow, and quick again
            source.parts, source.pause = [b"x" * 1000] * 2, 2.0
        elif len(sink.sizes) == 3:
            source.parts, source.pause = [bytes(3 * BUFFER)], 0.001

    sink = Sink(change)
    passing(source, clock=source.clock).run(sink)
    assert sink.sizes[:8] == [FIRST, BUFFER, 1000, 1000, LITTLE, LITTLE, 4 * LITTLE, BUFFER]


def test_what_falls_silent_in_the_middle_of_a_piece_is_handed_on() -> None:
    class Silent(Memory):
        def ready(self, size: int) -> int:
            return 0 if self.at == 1000 and not sink.sizes else size

    sink = Sink()
    passing(Silent(b"x" * 5000, step=1000), clock=lambda: 0.0).run(sink)
    assert sink.sizes == [1000, 4000]


def test_whoever_waits_for_a_silent_client_is_told_that_the_upload_is_not_wanted_any_more() -> None:
    class Dead:
        def ready(self, size: int) -> int:
            assert now[0] < 100, "nobody asked"
            now[0] += 1
            return 0

        def readinto(self, view: memoryview) -> int:
            raise AssertionError

    def alive() -> None:
        if now[0] > 5:
            raise errors.Gone("deleted")

    now = [0.0]
    with pytest.raises(errors.Gone):
        collect(passing(Dead(), alive=alive, clock=lambda: now[0]))


@pytest.mark.parametrize("total", [1, LITTLE, BUFFER, 3 * BUFFER])
def test_a_budget_that_is_smaller_than_a_ring_is_enough(total: int) -> None:
    small = Transfers(total, 10)
    data = pattern(20_000 if total == 1 else 2 * BUFFER + 3)
    one = passing(data, transfers=small)
    assert collect(one) == data
    assert one.hash_value == hashlib.sha512(data).hexdigest()
    until(lambda: small.buffers.budget.used == 0)


@pytest.mark.parametrize("slow_store", [True, False])
def test_many_transfers_share_a_budget_without_passing_it_and_all_come_to_their_end(slow_store: bool) -> None:
    shared = Transfers(2 * BUFFER, 1000)
    data, most, ended = pattern(3 * BUFFER + 5), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            most[0] = max(most[0], shared.buffers.budget.used)

    def transfer(number: int) -> str:
        one = passing(data, transfers=shared)
        collect(one, lambda: time.sleep(0.02 if slow_store and number % 2 else 0))
        return one.hash_value

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(24) as pool:
            assert set(pool.map(transfer, range(24))) == {hashlib.sha512(data).hexdigest()}
    finally:
        ended.set()
        watcher.join()
    assert BUFFER < most[0] <= 2 * BUFFER
    assert shared.hashing._count <= max(2, os.cpu_count() or 2)
    until(lambda: shared.buffers.budget.used == 0)


def test_a_tap_that_raises_fails_its_own_transfer_alone() -> None:
    class Broken:
        def update(self, data: memoryview, /) -> None:
            raise RuntimeError("no hash")

    data = pattern(9 * BUFFER)

    def meanwhile() -> None:
        with pytest.raises(RuntimeError, match="no hash"):
            collect(passing(data, taps=[Broken()]))

    assert collect(passing(data), meanwhile) == data


def test_a_transfer_that_ends_while_it_waits_for_a_buffer_leaves_its_place_in_the_queue() -> None:
    small = Transfers(BUFFER, 10)
    held = small.buffers.take(LITTLE), small.buffers.take(BUFFER - LITTLE - 1), small.buffers.take(LITTLE)
    rest = [small.buffers.take(LITTLE) for _ in range(13)]

    def dead() -> None:
        raise errors.Gone("deleted")

    with pytest.raises(errors.Gone):
        small.buffers.take(BUFFER, dead)
    assert small.buffers.budget.waiting == 0
    for piece in (*held, *rest):
        piece.release()
    assert small.buffers.budget.used == 0
    assert collect(passing(DATA, transfers=small)) == DATA


# --- writes that keep pieces -------------------------------------------------------------------------------


class Later(Sink):
    """A `Write` that returns before it has looked: a thread of its own does that, `pause` seconds a piece."""

    def __init__(self, window: int, pause: float = 0.0) -> None:
        super().__init__(window=window)
        self.pause = pause
        self.most = 0
        self.pool = ThreadPoolExecutor(1)
        self.kept: list[Piece] = []

    def put(self, piece: Piece) -> None:
        self.kept = [one for one in self.kept if one.held] + [piece]
        self.most = max(self.most, len(self.kept))
        self.pool.submit(self._work, piece)

    def _work(self, piece: Piece) -> None:
        time.sleep(self.pause)
        self.data += piece.view
        piece.release()

    def commit(self) -> Stored:
        self.pool.shutdown()
        return Stored("", len(self.data))


@pytest.mark.parametrize("window", [1, 3])
def test_a_write_may_keep_pieces_but_no_more_than_it_says(window: int) -> None:
    data, later = pattern(9 * BUFFER + 5), Later(window, 0.005)
    with passing(data) as one:
        one.run(later)
        later.commit()
    assert later.most == window
    assert later.data == data


def test_a_store_that_keeps_its_pieces_for_ever_can_be_left() -> None:
    now = [0.0]

    def alive() -> None:
        if now[0] > 100:
            raise errors.Gone("deleted")

    class Dead(Sink):
        def put(self, piece: Piece) -> None:
            super().put(piece)
            now[0] = 1000.0

    with pytest.raises(errors.Gone), passing(pattern(9 * BUFFER), alive=alive, clock=lambda: now[0]) as one:
        one.run(Dead(window=1))


def test_what_a_write_keeps_beyond_its_end_is_taken_back_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with passing(pattern(2 * BUFFER), clock=lambda: 0.0) as one:
        one.run(Sink(window=10))
    assert "kept 3 pieces" in caplog.text


# --- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 3 * BUFFER])
def test_fewer_bytes_than_announced_are_refused(size: int) -> None:
    with pytest.raises(errors.BodyBroken, match=f"{size - 1} of {size}"):
        collect(passing(pattern(size - 1), expect=size))


@pytest.mark.parametrize("size", [0, 10, BUFFER - 1, BUFFER, 3 * BUFFER])
def test_more_bytes_than_announced_are_refused_as_soon_as_seen(size: int) -> None:
    source = Memory(pattern(size + 5 * BUFFER))
    with pytest.raises(errors.Invalid, match="announced"):
        collect(passing(source, expect=size))
    assert source.at == size + 1


@pytest.mark.parametrize("cap", [0, 10, BUFFER, 3 * BUFFER + 1])
def test_more_bytes_than_allowed_are_refused_as_soon_as_seen(cap: int) -> None:
    source = Memory(pattern(cap + 5 * BUFFER))
    with pytest.raises(errors.OverLimit):
        collect(passing(source, cap=cap))
    assert source.at == cap + 1


def test_an_announced_size_over_the_cap_is_refused_before_reading() -> None:
    source = Memory(pattern(100))
    with pytest.raises(errors.OverLimit):
        collect(passing(source, cap=10, expect=100))
    assert source.at == 0


def test_exactly_the_cap_is_allowed() -> None:
    assert len(collect(passing(pattern(2 * BUFFER), cap=2 * BUFFER))) == 2 * BUFFER


DATA = b"some bytes"


@pytest.mark.parametrize(
    ("want", "right"),
    [
        ({"size": "10"}, True),
        ({"size": "11"}, False),
        ({"checksum": hashlib.md5(DATA).hexdigest().upper()}, True),
        ({"checksum": "0" * 32}, False),
        ({"hash": hashlib.sha512(DATA).hexdigest()}, True),
        ({"hash": "0" * 128}, False),
    ],
)
def test_known_digests_must_be_met(want: Mapping[str, str], right: bool) -> None:
    if right:
        collect(passing(DATA, want=want))
    else:
        with pytest.raises(errors.Invalid):
            collect(passing(DATA, want=want))


def test_nothing_wrong_ends_cleanly_even_for_the_last_of_many_pieces() -> None:
    sink = Sink()
    with pytest.raises(errors.Invalid):
        passing(pattern(3 * BUFFER), want={"checksum": "0" * 32}).run(sink)
    assert len(sink.data) == 3 * BUFFER


def test_a_small_image_that_is_wrong_never_reaches_a_store() -> None:
    sink = Sink()
    with pytest.raises(errors.Invalid):
        passing(DATA, want={"checksum": "0" * 32}).run(sink)
    assert sink.sizes == []


def test_a_lost_lease_stops_the_end() -> None:
    def alive() -> None:
        raise errors.Gone("lease lost")

    with pytest.raises(errors.Gone):
        collect(passing(b"abc", alive=alive))


def test_the_lease_is_looked_at_about_once_a_second() -> None:
    times = iter(range(1000))
    asked = []
    now = [0.0]

    def clock() -> float:
        now[0] = next(times) * 0.03
        return now[0]

    collect(passing(Memory(pattern(BUFFER), step=10000), alive=lambda: asked.append(now[0]), clock=clock))
    assert len(asked) >= 5
    assert all(1.0 <= b - a <= 1.5 for a, b in itertools.pairwise(asked[:-1]))


@pytest.mark.parametrize("name", ["sha256", "sha512", "sha3_256", "blake2b", "sha384"])
def test_strong_hashes_are_accepted(name: str) -> None:
    check_hash_algo(name)
    one = passing(b"abc", hash_algo=name)
    collect(one)
    assert one.hash_value == hashlib.new(name, b"abc").hexdigest()


@pytest.mark.parametrize("name", ["md5", "sha1", "sha224", "shake_256", "no-such-hash", ""])
def test_weak_unknown_and_variable_hashes_are_refused(name: str) -> None:
    with pytest.raises(errors.ConfigError):
        check_hash_algo(name)


# --- formats ---------------------------------------------------------------------------------------------

MIB = 1 << 20


def qcow2(*, size: int = 10 * MIB, backing: int = 0, features: int = 0, version: int = 3, length: int = 0) -> bytes:
    """`length` cuts it off."""
    changes = [(4, ">I", version), (8, ">QI", backing, 16 if backing else 0)]
    made = bytearray(samples.qcow2(size=size, version=min(max(version, 2), 3)))
    for offset, layout, *values in changes:
        struct.pack_into(layout, made, offset, *values)
    if version == 3:
        struct.pack_into(">Q", made, 72, features)
    return bytes(made[: length or None])


def gpt(*, valid: bool = True, length: int = 40000) -> bytes:
    boot = 0 if valid else 0x55
    entry = struct.pack("<B3BB3BII", boot, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 1000)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(length, b"\0")


def iso(*, blocks: int = 300, boot: bytes = b"") -> bytes:
    volume = b"\x01CD001\x01".ljust(80, b"\0") + struct.pack("<L", blocks).ljust(48, b"\0") + struct.pack("<H", 2048)
    return (boot[:32768].ljust(32768, b"\0") + volume).ljust(65536, b"\0")


def vmdk(
    *,
    kind: str = "monolithicSparse",
    extent: str = 'RW 20480 SPARSE "disk.vmdk"',
    footer: bool = False,
    size: int = 20480,
) -> bytes:
    directory = 0xFFFFFFFFFFFFFFFF if footer else 21
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, size, 128, 1, 20, 512, 0, directory).ljust(512, b"\0")
    ids = "CID=fffffffe\nparentCID=ffffffff"
    text = f'# Disk DescriptorFile\nversion=1\n{ids}\ncreateType="{kind}"\n{extent}\nddb.adapterType = "ide"\n'
    data = (head + text.encode().ljust(20 * 512, b"\0")).ljust(3 * MIB, b"\0")
    if footer:
        foot = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, size, 128, 1, 20, 512, 0, 21).ljust(512, b"\0")
        marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
        data += marker + foot + bytes(512)
    return data


def luks(version: int = 1) -> bytes:
    return samples.luks((6, ">H", version))


EXT = bytes(1080) + b"\x53\xef" + bytes(60000)
QED = b"QED\0".ljust(4096, b"\0")
KERNEL = bytearray(gpt(valid=False))


def inspected(data: bytes, disk_format: str, **changes: Any) -> int | None:
    one = passing(data, **{"disk_format": disk_format, "container_format": "bare", **changes})
    assert collect(one) == data
    return one.virtual_size


@pytest.mark.parametrize(
    ("disk_format", "data", "virtual_size"),
    [
        ("qcow2", qcow2(), 10 * MIB),
        ("qcow2", qcow2(version=2), 10 * MIB),
        ("qcow2", qcow2(size=0), None),
        ("raw", EXT, len(EXT)),
        ("raw", b"x", 1),
        ("raw", b"", None),
        ("raw", gpt(), len(gpt())),
        ("ami", EXT, None),
        ("ami", gpt(), None),
        ("ploop", EXT, None),
        ("aki", bytes(KERNEL), None),
        ("ari", bytes(KERNEL), None),
        ("iso", iso(), 300 * 2048),
        ("iso", iso(boot=gpt()), 300 * 2048),
        ("iso", iso(boot=gpt(valid=False)), 300 * 2048),
        ("vdi", vdi(), 20 * MIB),
        ("vhd", vhd(), 30 * MIB),
        ("vmdk", vmdk(), 10 * MIB),
        ("vmdk", vmdk(kind="streamOptimized", footer=True), 10 * MIB),
        ("luks", luks(), 64 * 1024),
    ],
)
def test_data_of_the_declared_format_is_accepted(disk_format: str, data: bytes, virtual_size: int | None) -> None:
    assert inspected(data, disk_format) == virtual_size


@pytest.mark.parametrize("data", [qcow2(), vdi(), vmdk(), iso(), iso(boot=gpt()), vhd(), luks()])
def test_raw_may_hold_any_safe_format_and_is_as_large_as_it_is(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert inspected(data, "raw") == len(data)
    assert "disk_format says raw" in caplog.text


@pytest.mark.parametrize(
    ("disk_format", "data", "named"),
    [
        ("qcow2", EXT, "not qcow2"),
        ("qcow2", b"", "not qcow2"),
        ("qcow2", gpt(), "gpt"),
        ("qcow2", vdi(), "vdi"),
        ("vmdk", qcow2(), "qcow2"),
        ("vmdk", EXT, "not vmdk"),
        ("vhdx", EXT, "not vhdx"),
        ("iso", gpt(), "gpt"),
        ("iso", EXT, "not iso"),
        ("vhd", qcow2(), "qcow2"),
        ("ami", qcow2(), "qcow2"),
        ("ploop", vdi(), "vdi"),
        ("raw", qcow2()[:440] + gpt(length=140_000)[440:], "one format"),
        ("qcow2", qcow2()[:440] + gpt(length=140_000)[440:], "one format"),
    ],
)
def test_other_data_is_rejected_if_a_match_is_required(
    disk_format: str, data: bytes, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.ContentRejected, match=named):
        inspected(data, disk_format)
    assert inspected(data, disk_format, rules=FormatRules(require_match=False)) in (None, len(data))
    assert "require_image_format_match" in caplog.text


UNSAFE = [
    (qcow2(backing=200), "backing file"),
    (qcow2(features=4), "another file"),
    (qcow2(features=1 << 40), "unknown_features"),
    (qcow2(version=1), "unknown_features"),
    (qcow2(backing=200, length=200), "backing file"),
    (vmdk(kind="monolithicFlat"), "descriptor"),
    (vmdk(extent='RW 20480 SPARSE "/etc/shadow"'), "descriptor"),
    (vmdk(extent="nonsense here"), "descriptor"),
    (vmdk(footer=True)[:-1024] + bytes(1024), "footer"),
    (vmdk()[:4] + b"\x09" + vmdk()[5:], "version that is not known"),
    (b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/shadow" 0\n', "descriptor"),
    (gpt(valid=False), "partition table"),
    (b"vhdxfile".ljust(3 * MIB, b"\0"), "region table is missing"),
    (luks(version=2), "version"),
    (QED, "not allowed"),
]


@pytest.mark.parametrize("require_match", [True, False])
@pytest.mark.parametrize("declared", ["raw", "own"])
@pytest.mark.parametrize(("data", "named"), UNSAFE)
def test_unsafe_data_is_rejected_whatever_was_declared(
    data: bytes, named: str, declared: str, require_match: bool
) -> None:
    names = {b"QFI": "qcow2", b"KDM": "vmdk", b"# D": "vmdk", b"vhd": "vhdx", b"LUK": "luks", b"QED": "qed"}
    own = names.get(data[:3], "raw")
    with pytest.raises(errors.ContentRejected, match=named):
        inspected(data, "raw" if declared == "raw" else own, rules=FormatRules(require_match=require_match))


def test_a_failed_check_of_gpt_passes_where_the_operator_says_so() -> None:
    data = gpt(valid=False)
    assert inspected(data, "raw", rules=FormatRules(gpt_nonfatal=frozenset({"mbr"}))) == len(data)


def test_only_checks_of_gpt_can_be_waived() -> None:
    with pytest.raises(errors.ContentRejected):
        inspected(qcow2(backing=8), "qcow2", rules=FormatRules(gpt_nonfatal=frozenset({"backing_file"})))


def test_a_disk_larger_than_any_column_is_rejected() -> None:
    with pytest.raises(errors.ContentRejected, match="no such disk is as large"):
        inspected(vmdk(size=2**60), "vmdk")


@pytest.mark.parametrize("container_format", ["ovf", "compressed", "docker"])
def test_only_bare_data_is_inspected(container_format: str) -> None:
    assert inspected(qcow2(backing=8), "vmdk", container_format=container_format) is None


def test_an_inspector_that_crashes_accepts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from oslo_utils.imageutils import format_inspector

    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(format_inspector.QcowInspector, "region_complete", crash)
    with pytest.raises(errors.ContentRejected):
        inspected(qcow2(), "qcow2")
    monkeypatch.setattr(format_inspector.QcowInspector, "format_match", property(crash))
    for declared in ("qcow2", "raw"):
        with pytest.raises(errors.ContentRejected):
            inspected(qcow2(), declared)


@pytest.mark.parametrize(("disk_format", "data"), [("qcow2", EXT), ("qcow2", qcow2(backing=8)), ("raw", QED)])
def test_a_large_wrong_image_is_rejected_before_its_first_piece_is_stored(disk_format: str, data: bytes) -> None:
    source = Memory(data.ljust(50 * MIB, b"\1"))
    one = passing(source, disk_format=disk_format, container_format="bare")
    with pytest.raises(errors.ContentRejected):
        one.run(Sink())
    assert source.at == FIRST


def test_a_small_wrong_image_never_reaches_the_store() -> None:
    with pytest.raises(errors.ContentRejected):
        passing(EXT, disk_format="qcow2", container_format="bare").run(Sink())


@pytest.mark.parametrize(
    ("disk_format", "options"),
    [
        ("raw", []),
        ("qcow2", []),
        ("qcow2", ["-o", "compat=0.10"]),
        ("vmdk", []),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
        ("vdi", []),
        ("vhdx", []),
        ("vpc", []),
    ],
)
@pytest.mark.needs("qemu-img")
def test_what_qemu_makes_is_recognised(tmp_path: Path, disk_format: str, options: list[str]) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(pattern(3 * MIB).ljust(8 * MIB, b"\0"))
    made = tmp_path / "made"
    subprocess.run([tool("qemu-img"), "convert", "-O", disk_format, *options, raw, made], check=True)
    found = inspected(made.read_bytes(), {"vpc": "vhd"}.get(disk_format, disk_format))
    # vhd rounds up to whole cylinders
    assert found == 8 * MIB or (disk_format == "vpc" and found is not None and 8 * MIB <= found < 9 * MIB)


@pytest.mark.needs("qemu-img")
def test_a_qcow2_file_with_a_backing_file_is_rejected(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "raw", base, "1M"], check=True)
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top], check=True)
    for declared in ("raw", "qcow2"):
        with pytest.raises(errors.ContentRejected, match="backing file"):
            inspected(top.read_bytes(), declared)
