"""Parts: every byte is sent once, in parts of the right size, several at once, within the memory that there is."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from calotype import errors
from calotype.buffers import Budget, Buffers
from calotype.stores.parts import HEAD, Parts
from calotype.threads import ThreadPool
from tests.support import until

PART = 1 << 20
BUFFERS = Buffers(8 << 20)
THREADS = ThreadPool(16)


class Backend:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails: set[int] = set()

    def send(self, number: int, data: memoryview) -> str:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go_on.wait(20)
        with self.lock:
            self.now -= 1
        if number in self.fails:
            raise errors.StoreUnavailable("The backend failed.", "one")
        self.parts[number] = bytes(data)
        return f"part {number}"

    def content(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))


def parts_of(backend: Backend, memory: Budget, **more: Any) -> Parts[str]:
    size: Callable[[int], int] = more.pop("size", lambda _: PART)
    arguments = {"at_once": 3, "threads": THREADS, "store": "one"} | more
    return Parts(backend.send, size=size, memory=memory, **arguments)


def put(parts: Parts[str], data: bytes) -> None:
    piece = BUFFERS.take(max(1, len(data)))
    piece.view[: len(data)] = data
    piece.cut(len(data))
    parts.put(piece)
    assert not piece.held


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_is_sent_once_and_all_memory_comes_back(seed: int) -> None:
    random_ = random.Random(seed)
    backend, memory = Backend(), Budget(random_.choice([2, 3, 16]) * PART)
    sizes = random_.choice([lambda _: PART, lambda number: PART // 2 if number < 3 else PART])
    pieces = [random_.randbytes(random_.choice([1, 1000, 300_000, 1 << 20])) for _ in range(random_.randrange(1, 12))]
    parts = parts_of(backend, memory, size=sizes, at_once=random_.choice([1, 2, 3]))
    for one in pieces:
        put(parts, one)
    results = parts.finish()
    parts.close()
    data = b"".join(pieces)
    assert backend.content() == data
    assert parts.total == len(data)
    assert results == [f"part {number}" for number in range(1, len(results) + 1)]
    assert all(len(backend.parts[number]) == sizes(number) for number in range(1, len(results)))
    assert memory.used == 0
    assert BUFFERS.budget.used == 0


def test_parts_are_sent_side_by_side_and_no_more_than_allowed() -> None:
    backend, memory = Backend(), Budget(16 * PART)
    backend.go_on.clear()
    parts = parts_of(backend, memory, at_once=3)
    thread = threading.Thread(target=lambda: [put(parts, bytes(PART)) for _ in range(6)], daemon=True)
    thread.start()
    until(lambda: backend.now == 3)
    assert memory.used == 3 * PART
    backend.go_on.set()
    thread.join(20)
    assert len(parts.finish()) == 6
    parts.close()
    assert backend.most == 3


def test_without_memory_for_more_parts_a_write_goes_on_with_one() -> None:
    backend, memory = Backend(), Budget(PART)
    parts = parts_of(backend, memory)
    for _ in range(4):
        put(parts, bytes(PART))
    assert len(parts.finish()) == 4
    parts.close()
    assert backend.most == 1


def test_small_objects_and_silent_clients_take_no_memory() -> None:
    backend, memory = Backend(), Budget(PART)
    parts = parts_of(backend, memory)
    put(parts, b"x" * HEAD)
    whole = parts.whole()
    assert whole is not None
    assert bytes(whole) == b"x" * HEAD
    whole.release()
    assert memory.used == 0
    put(parts, b"y")
    whole = parts.whole()
    assert whole is not None
    assert bytes(whole) == b"x" * HEAD + b"y"
    whole.release()
    assert memory.used == PART
    put(parts, bytes(PART))
    assert parts.whole() is None
    parts.close()
    assert memory.used == 0


def test_an_empty_object_is_one_empty_part() -> None:
    backend, memory = Backend(), Budget(PART)
    parts = parts_of(backend, memory)
    assert parts.finish() == ["part 1"]
    parts.close()
    assert backend.parts == {1: b""}


def test_who_waits_for_memory_holds_no_piece_and_is_refused_in_time() -> None:
    backend, memory = Backend(), Budget(PART)
    first, second = parts_of(backend, memory), parts_of(backend, memory, patience=0.0)
    put(first, bytes(PART // 2))
    pieces = threading.Event()

    def wait() -> None:
        with pytest.raises(errors.StoreBusy):
            put(second, bytes(PART // 2))
        pieces.set()

    threading.Thread(target=wait, daemon=True).start()
    until(lambda: memory.waiting == 1)
    assert BUFFERS.budget.used == 0
    assert pieces.wait(20)
    second.close()
    first.close()
    assert memory.used == 0


def test_a_part_that_fails_fails_the_write() -> None:
    backend, memory = Backend(), Budget(16 * PART)
    backend.fails = {2}
    parts = parts_of(backend, memory)

    def write() -> None:
        for _ in range(50):
            put(parts, bytes(PART))
        parts.finish()

    with pytest.raises(errors.StoreUnavailable):
        write()
    parts.close()
    assert len(backend.parts) < 10
    assert memory.used == 0
    assert BUFFERS.budget.used == 0


def test_close_waits_for_what_is_being_sent_and_sends_no_more() -> None:
    backend, memory = Backend(), Budget(16 * PART)
    backend.go_on.clear()
    parts = parts_of(backend, memory, threads=ThreadPool(1))
    put(parts, bytes(PART))
    put(parts, bytes(PART))
    until(lambda: backend.now == 1)
    closing = threading.Thread(target=parts.close, daemon=True)
    closing.start()
    assert parts.cancelled.wait(20)
    assert closing.is_alive()
    backend.go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert list(backend.parts) == [1]
    assert memory.used == 0
