"""What is waited for before a database answers has one limit, whoever is in the way; and it is waited for in order."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.context import SERVICE
from calotype.db import images, jobs
from calotype.db.drivers import Settings
from calotype.db.engine import Database, Tx, now
from calotype.db.fair_lock import FairLock
from calotype.db.leases import Leases
from tests.db.test_engine import an_image
from tests.support import until

#: Begins to write, says so, and goes on when it is told to.
_HOLDS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("begun", flush=True)
sys.stdin.read()
"""
#: Writes all the time, in several threads.
_CROWDS = """
import sqlite3, sys, threading
def write(number):
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
    while True:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE images SET name = ?", [str(number)])
        connection.execute("COMMIT")
for number in range(4):
    threading.Thread(target=write, args=[number], daemon=True).start()
print("begun", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(does: str, database: Database) -> Iterator[None]:
    """A process that is in the way for the length of the block."""
    command = [sys.executable, "-c", does, str(database.url.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"begun\n"
            yield
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(10)


@contextlib.contextmanager
def in_the_way(kind: str, db: Database) -> Iterator[None]:
    """Somebody has the image that all want to change."""
    if kind == "sqlite":
        with another_process(_HOLDS, db):
            yield
    else:
        with db.write_once() as keeper:
            images.get(keeper, SERVICE, an_image(1).id, lock=True)
            yield


def change(tx: Tx) -> None:
    image = images.get(tx, SERVICE, an_image(1).id, lock=True)
    assert image
    images.save(tx, image, replace(image, updated_at=now()))


def took(what: Callable[[], object]) -> tuple[float, BaseException | None]:
    begun = time.monotonic()
    try:
        what()
    except errors.CalotypeError as exc:
        return time.monotonic() - begun, exc
    return time.monotonic() - begun, None


def test_all_who_wait_for_a_writer_are_answered_when_their_time_is_over_and_go_on_when_it_is_done(
    database_kind: str, database_url: str, db: Database
) -> None:
    crowd = 100 if database_kind == "sqlite" else 20
    # Also where the last of them get no connection before: the pool has fewer.
    hasty = Database(database_url, Settings(transaction_timeout=1, max_pool_size=4, max_overflow=16))
    with db.write_once() as tx:
        images.add(tx, an_image(1))
    with ThreadPoolExecutor(crowd) as threads:
        with in_the_way(database_kind, db):
            waiting = [threads.submit(took, lambda: hasty.write(change)) for _ in range(crowd)]
            for read in (hasty.snapshot, hasty.read):
                assert read(lambda tx: images.get(tx, SERVICE, an_image(1).id))
            answers = [one.result() for one in waiting]
        assert {type(failure) for _, failure in answers} == {errors.Busy}
        assert min(seconds for seconds, _ in answers) > 0.9
        assert max(seconds for seconds, _ in answers) < 2.5
        # What holds the row on a server for those who gave up is over with their connections.
        assert [one.result()[1] for one in [threads.submit(took, lambda: db.write(change)) for _ in range(crowd)]] == (
            [None] * crowd
        )
    hasty.close()


def test_who_gets_no_connection_waits_no_longer_than_for_anything_else(database_url: str, db: Database) -> None:
    small = Database(database_url, Settings(transaction_timeout=0.5, max_pool_size=1, max_overflow=0))
    work: Callable[[Tx], object] = lambda tx: tx.execute(sa.text("SELECT 1")).scalar()  # noqa: E731
    with small.read_once(), small.write_once():
        for many in (small.snapshot, small.read, small.write):
            seconds, failure = took(lambda many=many: many(work))  # type: ignore[misc]
            assert isinstance(failure, errors.Busy)
            assert 0.4 < seconds < 1.5
    small.close()


def test_tries_that_are_in_vain_end_with_the_time_of_all_of_them(database_kind: str, database_url: str) -> None:
    if database_kind == "sqlite":
        return  # it has nothing to run again
    url = sa.make_url(database_url).set(port=1)
    db = Database(url, Settings(transaction_timeout=0.5, db_max_retries=10_000))
    for many in (db.snapshot, db.read, db.write):
        seconds, failure = took(lambda many=many: many(lambda tx: None))  # type: ignore[misc]
        assert isinstance(failure, errors.Busy)
        assert 0.4 < seconds < 2
    db.close()


def test_writers_have_their_turns_as_they_came_and_those_in_a_hurry_before_them() -> None:
    lock, order = FairLock(), list[str]()

    def come(name: str, hurry: bool) -> None:
        with lock.acquire(time.monotonic() + 10, has_priority=hurry):
            order.append(name)

    def late() -> None:
        with pytest.raises(errors.Busy), lock.acquire(time.monotonic() + 0.01, has_priority=False):
            order.append("late")

    with ThreadPoolExecutor(10) as threads, lock.acquire(time.monotonic(), has_priority=False):
        threads.submit(late).result()
        for number, (name, hurry) in enumerate([("a", False), ("b", False), ("A", True), ("c", False), ("B", True)]):
            threads.submit(come, name, hurry)
            until(lambda number=number: sum(map(len, lock._waiting)) == number + 1)  # type: ignore[misc]
    assert order == ["A", "B", "a", "b", "c"]
    with lock.acquire(time.monotonic(), has_priority=False):
        pass


def test_no_crowd_of_writers_lets_a_lease_run_out(database_kind: str, tmp_path: Path, db: Database) -> None:
    """They take their time: if the lease had to wait until each of them had a turn, it would be for two seconds."""
    if database_kind != "sqlite":
        return  # others lock rows
    leases = Leases(db.background(), tmp_path)
    with db.write_once() as tx:
        images.add(tx, an_image(1))
        jobs.submit(tx, "upload", an_image(1).id, {}, owner=leases.owner)
    over = threading.Event()

    def slowly(tx: Tx) -> None:
        change(tx)
        time.sleep(0.02)

    def write() -> None:
        while not over.is_set():
            db.write(slowly)

    crowd = [threading.Thread(target=write) for _ in range(100)]
    for thread in crowd:
        thread.start()
    try:
        for _ in range(5):
            seconds, failure = took(leases.beat)
            assert failure is None
            assert seconds < 1
    finally:
        over.set()
        for thread in crowd:
            thread.join()
    leases.close()


def test_a_crowd_of_writers_in_another_process_keeps_nobody_out(database_kind: str, db: Database) -> None:
    if database_kind != "sqlite":
        return  # others lock rows
    with db.write_once() as tx:
        images.add(tx, an_image(1))
    with another_process(_CROWDS, db):
        waits = [took(partial(one.write, change)) for _ in range(10) for one in (db, db.background())]
    assert {failure for _, failure in waits} == {None}
    assert max(seconds for seconds, _ in waits) < 5
