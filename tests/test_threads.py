"""`threads.py` on its own."""

import threading
import time
from collections.abc import Callable

import pytest

from calotype.threads import SerialQueue, ThreadPool


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive() -> int:
    return sum(thread.name == "request" for thread in threading.enumerate())


def test_there_are_as_many_threads_as_there_is_work_and_they_end_without_it() -> None:
    pool, gate, done = ThreadPool(5, idle=0.2), threading.Event(), []
    for number in range(20):
        pool.submit(lambda number=number: (gate.wait(10), done.append(number)))  # type: ignore[misc]
    assert alive() == 5
    assert pool.busy
    gate.set()
    until(lambda: len(done) == 20)
    assert not pool.busy
    until(lambda: alive() == 0)
    pool.submit(lambda: done.append(20))
    until(lambda: 20 in done)
    pool.shutdown()


def test_one_after_the_other_is_the_work_of_one_thread() -> None:
    pool, seen, gate = ThreadPool(5, idle=10), set(), threading.Event()
    for _ in range(5):
        pool.submit(lambda: gate.wait(10))
    gate.set()
    until(lambda: len(pool._idle) == 5)
    for _ in range(20):
        pool.submit(lambda: seen.add(threading.get_ident()))
        until(lambda: len(pool._idle) == 5)
    assert len(seen) == 1
    pool.shutdown()
    until(lambda: alive() == 0)
    with pytest.raises(RuntimeError):
        pool.submit(print)


def test_a_task_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool, ended = ThreadPool(1), threading.Event()

    def fail() -> None:
        raise SystemExit

    pool.submit(fail)
    pool.submit(ended.set)
    assert ended.wait(10)
    assert "not served" in caplog.text
    pool.shutdown()


def test_where_the_system_gives_no_more_threads_those_that_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, gate, done = ThreadPool(5), threading.Event(), []
    pool.submit(lambda: gate.wait(10))
    until(lambda: alive() == 1)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.submit(lambda: done.append(1))
        with pytest.raises(RuntimeError):
            ThreadPool(5).submit(lambda: done.append(2))
    gate.set()
    until(lambda: done == [1])
    pool.shutdown()


def test_a_strand_does_its_tasks_in_order_and_many_of_them_take_turns_with_few_threads() -> None:
    pool, seen, gate = ThreadPool(2, idle=0.2), [], threading.Event()
    queues = [SerialQueue(pool) for _ in range(10)]
    for number in range(50):
        for place, strand in enumerate(queues):
            strand.submit(lambda place=place, number=number: (gate.wait(10), seen.append((place, number))))  # type: ignore[misc]
    assert alive() == 2
    gate.set()
    until(lambda: all(strand.idle for strand in queues))
    for place in range(10):
        assert [number for one, number in seen if one == place] == list(range(50))
    assert {place for place, _ in seen[:50]} >= set(range(2, 10))  # nobody waits for the end of another one
    until(lambda: alive() == 0)


def test_a_strand_works_where_the_system_gives_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    SerialQueue(ThreadPool(2)).submit(lambda: done.append(1))
    assert done == [1]
