"""Reading whole copies for jobs: whoever waits for a silent or dripping store is stopped in time."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from calotype import errors
from calotype.images.reading import BodySource
from calotype.images.sources import Pace
from tests.inprocess import Clock
from tests.support import until


class Body:
    """A body of pieces. Where a piece is a function, it is called and yields nothing."""

    size = 0

    def __init__(self, *pieces: bytes | Callable[[], object]) -> None:
        self.pieces, self.cancelled = pieces, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if callable(piece):
                piece()
                if self.cancelled.is_set():
                    raise errors.Cancelled("cancelled")
            else:
                yield piece

    def hang(self) -> None:
        assert self.cancelled.wait(30)

    def file(self) -> None:
        return None

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        pass


class Stop(Exception):
    pass


def read(source: BodySource) -> int:
    view, count = memoryview(bytearray(1 << 16)), 0
    while got := source.readinto(view):
        count += got
    return count


def test_who_waits_for_a_silent_store_is_stopped() -> None:
    body, stop = Body(b"x"), threading.Event()
    body.pieces = (b"x", stop.set, body.hang)

    def check() -> None:
        if stop.is_set():
            raise Stop

    with contextlib.closing(BodySource(body, 0, check)) as source, pytest.raises(Stop):
        read(source)


def test_a_store_that_is_silent_for_the_window_is_given_up() -> None:
    body = Body()
    body.pieces = (b"x", body.hang)
    with (
        contextlib.closing(BodySource(body, 0, lambda: None, pace=Pace(rate=1000, window=0.2))) as source,
        pytest.raises(errors.StoreSlow, match="1 bytes in all"),
    ):
        read(source)


def drip(clock: Clock, seconds: float, size: int, count: int) -> Body:
    def wait() -> None:
        clock.seconds += seconds

    return Body(*[wait, bytes(size)] * count)


def test_a_store_that_drips_is_given_up_after_a_minute_and_one_that_keeps_the_rate_is_not() -> None:
    clock = Clock()
    begun = clock()
    source = BodySource(drip(clock, 0.5, 650, 1000), 0, lambda: None, pace=Pace(), clock=clock)
    with contextlib.closing(source), pytest.raises(errors.StoreSlow, match="fewer than 65536 bytes a second"):
        read(source)
    assert 60 <= clock() - begun < 65
    for seconds, size in ((1, 64 << 10), (40, 41 * 64 << 10), (0.001, 70)):
        steady = BodySource(drip(clock, seconds, size, 500), 0, lambda: None, pace=Pace(), clock=clock)
        with contextlib.closing(steady):
            assert read(steady) == 500 * size


def test_time_in_which_nobody_waits_for_the_store_is_free() -> None:
    clock = Clock()
    source = BodySource(Body(*[b"x"] * 100), 0, lambda: None, pace=Pace(), clock=clock)
    view = memoryview(bytearray(10))
    with contextlib.closing(source):
        for _ in range(100):
            clock.seconds += 30
            assert source.readinto(view) == 1
        assert source.readinto(view) == 0


def test_the_thread_ends_with_the_data() -> None:
    def threads() -> int:
        return sum(thread.name == "reading" for thread in threading.enumerate())

    before = threads()
    source = BodySource(Body(b"x"), 0, lambda: None)
    assert read(source) == 1
    until(lambda: threads() == before)
