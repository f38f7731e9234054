"""Transactions that get into each other's way: run again, but not for ever."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.context import SERVICE
from calotype.db import engine, images
from calotype.db.drivers import Settings
from calotype.db.engine import Database, Tx, now
from calotype.model import Image
from tests.databases import Server, synced
from tests.outage.proxy import Proxy

IDS = [f"00000000-0000-4000-8000-00000000000{number}" for number in (1, 2)]


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    url = synced(server.reserved())
    database = Database(url)
    with database.write_once() as tx:
        for image_id in IDS:
            images.add(tx, Image(image_id, "n", "queued", "shared", "red", now(), now()))
    database.close()
    return url


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


class Crossing:
    """Two transactions that lock two images in opposite orders, and surely meet the first time."""

    def __init__(self) -> None:
        self.meet = threading.Barrier(2)
        self.runs = 0

    def work(self, tx: Tx, order: list[str]) -> None:
        first, second = order
        images.get(tx, SERVICE, first, lock=True)
        self.runs += 1
        if self.runs <= 2:
            self.meet.wait(10)
        image = images.get(tx, SERVICE, second, lock=True)
        assert image
        images.save(tx, image, replace(image, updated_at=now()))


def _both(*functions: object) -> list[BaseException]:
    failures: list[BaseException] = []

    def run(function: object) -> None:
        try:
            function()  # type: ignore[operator]
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return failures


def test_of_two_that_wait_for_each_other_both_succeed(db: Database) -> None:
    crossing = Crossing()
    assert (
        _both(*(lambda order=order: db.write(lambda tx: crossing.work(tx, order)) for order in (IDS, IDS[::-1]))) == []
    )
    assert crossing.runs >= 3, "nobody was in anybody's way"


@pytest.fixture
def deadlock(db: Database) -> sa.exc.DBAPIError:
    """The error that a real one raises. Who tries once gets it as `Busy`."""
    crossing = Crossing()

    def once(order: list[str]) -> None:
        with db.write_once() as tx:
            crossing.work(tx, order)

    (failure,) = _both(lambda: once(IDS), lambda: once(IDS[::-1]))
    assert isinstance(failure, errors.Busy)
    assert isinstance(failure.__cause__, sa.exc.DBAPIError)
    return failure.__cause__


def test_one_that_never_succeeds_is_given_up_after_a_number_of_tries(url: str, deadlock: sa.exc.DBAPIError) -> None:
    db, runs = Database(url, Settings(db_max_retries=3)), []

    def work(tx: Tx) -> None:
        runs.append(time.monotonic())
        raise deadlock

    for many in (db.write, db.snapshot):
        runs.clear()
        with pytest.raises(errors.Busy):
            many(work)
        assert len(runs) == 4
        assert runs[-1] - runs[0] < 5
    db.close()


def test_one_that_never_succeeds_is_given_up_after_a_while(
    db: Database, deadlock: sa.exc.DBAPIError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.2)
    db = Database(db.url, Settings(db_max_retries=10_000))
    begin = time.monotonic()

    def work(tx: Tx) -> None:
        raise deadlock

    with pytest.raises(errors.Busy):
        db.write(work)
    assert 0.2 <= time.monotonic() - begin < 10


def test_a_lock_that_somebody_keeps_is_waited_for_and_then_answered_503(url: str, db: Database) -> None:
    hasty = Database(url, Settings(response_timeout=2))
    with db.write_once() as keeper:
        images.get(keeper, SERVICE, IDS[0], lock=True)
        begin = time.monotonic()
        with pytest.raises(errors.Busy):
            hasty.write(lambda tx: images.get(tx, SERVICE, IDS[0], lock=True))
        assert 0.9 < time.monotonic() - begin < 9
        # The connection that waited was not taken for a broken one.
        assert hasty.write(lambda tx: images.get(tx, SERVICE, IDS[1], lock=True))
    hasty.close()


# --- connections go back with nothing left in them --------------------------------------------------------


class Interrupted(BaseException):
    """What is no `Exception`, like the end of a thread or of the process."""


@pytest.mark.parametrize("raised", [KeyError, Interrupted, errors.NotFound])
def test_a_transaction_that_breaks_leaves_neither_a_change_nor_a_lock(url: str, raised: type[BaseException]) -> None:
    small = Database(url, Settings(max_pool_size=1, max_overflow=0, pool_timeout=2, response_timeout=4))

    def work(tx: Tx) -> None:
        image = images.get(tx, SERVICE, IDS[0], lock=True)
        assert image
        images.move(tx, image.id, "queued", "saving", now=now())
        raise raised

    def reading(tx: Tx) -> None:
        assert images.get(tx, SERVICE, IDS[0])
        raise raised

    for many, what in ((small.write, work), (small.snapshot, reading), (small.read, reading)):
        for _ in range(3):
            with pytest.raises(raised):
                many(what)
    other = Database(url, Settings(response_timeout=4))
    found = other.write(lambda tx: images.get(tx, SERVICE, IDS[0], lock=True))
    assert found
    assert found.status == "queued"
    # Each database's own word on what is open: nothing that the small one left.
    if small.url.get_backend_name() == "postgresql":
        state = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"
    else:
        state = "SELECT count(*) FROM information_schema.innodb_trx"
    with other.writes.connect() as connection:
        assert connection.exec_driver_sql(state).scalar() == 0
    small.close()
    other.close()


def test_a_transaction_costs_no_ping_and_no_rollback(server: Server, url: str) -> None:
    proxy = Proxy(server.port)
    db = Database(server.url(url.rpartition("/")[2], proxy.port))
    wanted = {"mariadb": (20, 30, 10), "postgresql": (30, 30, 10)}[server.kind]
    for many, messages in zip((db.write, db.snapshot, db.read), wanted, strict=True):
        for _ in range(10):  # until psycopg has prepared the statement
            many(lambda tx: tx.exec_driver_sql("SELECT 1").scalar())
        before = proxy.messages
        for _ in range(10):
            many(lambda tx: tx.exec_driver_sql("SELECT 1").scalar())
        # The statement, COMMIT, and BEGIN where a transaction does not begin by itself.
        assert proxy.messages - before == messages
    db.close()
    proxy.close()


# --- what a session is told ------------------------------------------------------------------------------


def test_sessions_are_as_the_options_say(server: Server, url: str) -> None:
    db = Database(f"{url}?charset=utf8" if server.kind == "mariadb" else url)
    if server.kind == "mariadb":
        name = "SELECT @@sql_mode, @@innodb_lock_wait_timeout, @@character_set_client, @@tx_isolation"
        strict, lock, charset, _ = db.snapshot(lambda tx: tx.exec_driver_sql(name).one())
        assert "STRICT_ALL_TABLES" in strict
        assert (lock, charset) == (10, "utf8mb4")
        levels = [many(lambda tx: tx.exec_driver_sql(name).one())[3] for many in (db.snapshot, db.write)]
    else:
        assert db.snapshot(lambda tx: tx.exec_driver_sql("SHOW lock_timeout").scalar()) == "10s"
        show = "SHOW transaction_isolation"
        levels = [many(lambda tx: tx.exec_driver_sql(show).scalar()) for many in (db.snapshot, db.write)]
    assert [level.upper().replace("-", " ") for level in levels] == ["REPEATABLE READ", "READ COMMITTED"]
    db.close()


def test_a_wrong_password_is_not_waited_for_where_the_database_says_so(server: Server, url: str) -> None:
    if server.kind == "mariadb":
        db = Database(sa.make_url(url).set(password="wrong"))
        begin = time.monotonic()
        with pytest.raises(errors.Busy):
            db.wait(5, 1)
        assert time.monotonic() - begin < 4


def test_a_server_that_became_read_only_is_connected_to_anew(server: Server) -> None:
    """As after a failover: old connections end at a server that takes no changes any more."""
    url = server.fresh()
    name = url.rpartition("/")[2]
    if server.kind == "mariadb":
        server.sql("CREATE OR REPLACE USER 'plain'@'127.0.0.1' IDENTIFIED BY 'x'")  # who is not above read_only
        server.sql(f"GRANT ALL ON {name}.* TO 'plain'@'127.0.0.1'")
        who, off, on = "SELECT CONNECTION_ID()", "SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"
        db = Database(sa.make_url(url).set(username="plain", password="x"))
    else:
        who = "SELECT pg_backend_pid()"
        off, on = (f"ALTER DATABASE {name} SET default_transaction_read_only = {word}" for word in ("on", "off"))
        db = Database(url)

    def work(tx: Tx) -> int:
        seen.append(tx.exec_driver_sql(who).scalar_one())
        if len(seen) == 2:
            server.sql(on)
        tx.exec_driver_sql("INSERT INTO facts VALUES (1)")
        return len(seen)

    seen: list[int] = []
    db.write(lambda tx: tx.exec_driver_sql("CREATE TABLE facts (a INTEGER)"))
    server.sql(off)
    try:
        db.close()  # PostgreSQL tells sessions only when they begin
        assert db.write(work) >= 2
    finally:
        server.sql(on)
    assert seen[0] != seen[1]
    db.close()
