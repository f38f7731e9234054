"""The database: how SQLite is opened, what the schema is, what purging keeps, how many statements reading costs."""

import contextlib
import json
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from calotype import errors
from calotype.context import SERVICE, Context
from calotype.db import copies, engine, images, jobs, outbox, pages, schema, tables, tombstones
from calotype.db.drivers import Settings
from calotype.db.engine import Database, Tx, now
from calotype.db.record_cache import RecordCache
from calotype.model import Copy, Event, Image, Query
from tests import databases


def an_image(number: int, **values: object) -> Image:
    when = now()
    image_id = f"00000000-0000-4000-8000-{number:012}"
    image = Image(image_id, f"name {number}", "queued", "shared", "red", when, when)
    return replace(image, **{"properties": {"a": "1", "b": "2"}, "tags": ("x", "y")} | values)  # type: ignore[arg-type]


def test_sqlite_is_opened_so_that_a_commit_is_durable(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'c.db'}").write_once() as tx:
        settings = {
            name: tx.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_block_that_raises_changes_nothing(db: Database) -> None:
    with pytest.raises(KeyError), db.write_once() as tx:
        images.add(tx, an_image(1))
        raise KeyError
    with db.read_once() as tx:
        assert images.get(tx, SERVICE, an_image(1).id) is None


def test_writers_of_several_connections_wait_for_each_other(database_url: str, db: Database) -> None:
    other = Database(database_url)
    failures: list[BaseException] = []

    def write(database: Database, start: int) -> None:
        try:
            for number in range(start, start + 40):
                with database.write_once() as tx:
                    images.get(tx, SERVICE, an_image(1).id)
                    images.add(tx, an_image(number))
        except BaseException as exc:
            failures.append(exc)

    threads = [
        threading.Thread(target=write, args=(d, s)) for s, d in ((100, db), (200, other), (300, db), (400, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with db.read_once() as tx:
        assert len(pages.page(tx, RecordCache(), SERVICE, Query(limit=1000))) == 160
    other.close()


def test_a_look_sees_one_moment_whatever_the_server_gives_its_sessions(
    database_kind: str, database_url: str, db: Database
) -> None:
    setting = {
        "mariadb": "SET GLOBAL TRANSACTION ISOLATION LEVEL {}",
        "postgresql": f"ALTER DATABASE {db.url.database} SET default_transaction_isolation = '{{}}'",
    }.get(database_kind)
    other = Database(database_url)
    if setting:
        with db.write_once() as tx:
            tx.exec_driver_sql(setting.format("READ COMMITTED"))
    try:

        def work(tx: Tx) -> list[int]:
            count = sa.select(sa.func.count()).select_from(tables.images)
            before = tx.execute(count).scalar_one()
            with db.write_once() as writer:
                images.add(writer, an_image(1))
            return [before, tx.execute(count).scalar_one()]

        assert other.snapshot(work) == [0, 0]
    finally:
        other.close()
        if database_kind == "mariadb":
            with db.write_once() as tx:
                tx.exec_driver_sql("SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def test_reading_n_images_costs_a_fixed_number_of_statements(db: Database) -> None:
    with db.write_once() as tx:
        for number in range(50):
            images.add(tx, an_image(number))
    statements: list[str] = []
    event.listen(db.reads, "before_cursor_execute", lambda *a: statements.append(a[2]))
    alice = Context(project="red", roles=frozenset({"member"}))
    known = RecordCache()
    counts = []
    for limit in (1, 10, 50, 50):  # the last finds nothing that it does not know
        statements.clear()
        with db.read_once() as tx:
            assert len(pages.page(tx, known, alice, Query(limit=limit))) == limit
        counts.append(len([s for s in statements if s.startswith("SELECT")]))
    assert counts == [2, 2, 2, 1]
    statements.clear()
    with db.read_once() as tx:
        assert images.get(tx, alice, an_image(7).id)
    assert len([s for s in statements if s.startswith("SELECT")]) == 1


def test_purging_keeps_the_ids_refused(db: Database) -> None:
    with db.write_once() as tx:
        for number in range(10):
            images.add(tx, an_image(number))
            images.add_location(tx, an_image(number).id, "file:///x", {}, now())
    with db.write_once() as tx:
        for number in range(6):
            image = images.get(tx, SERVICE, an_image(number).id)
            assert image
            assert images.delete(tx, image, now())
    with db.write_once() as tx:
        assert images.purge(tx, now() - timedelta(days=1), 100)[0] == 0
        assert images.purge(tx, now() + timedelta(days=1), 100)[0] == 6
        assert tx.execute(sa.select(sa.func.count()).select_from(tables.images)).scalar() == 4
        assert tx.execute(sa.select(sa.func.count()).select_from(tables.image_properties)).scalar() == 8
    for number in range(6):
        with pytest.raises(errors.Conflict), db.write_once() as tx:
            images.add(tx, an_image(number))


def test_a_purge_takes_no_more_than_it_is_allowed(db: Database) -> None:
    with db.write_once() as tx:
        for number in range(4):
            images.add(tx, an_image(number, properties={}, tags=()))
            image = images.get(tx, SERVICE, an_image(number).id)
            assert image
            images.delete(tx, image, now())
    with db.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 3) == (3, 3)


def test_a_delete_that_is_undone_brings_everything_back(db: Database) -> None:
    with db.write_once() as tx:
        images.add(tx, an_image(1))
        for store in ("a", "b"):
            images.add_location(tx, an_image(1).id, f"file:///{store}", {"store": store}, now())
    with db.read_once() as tx:
        before = images.get(tx, SERVICE, an_image(1).id)
    assert before
    with db.write_once() as tx:
        rows = images.delete(tx, before, now())
    assert rows
    with db.write_once() as tx:
        assert tombstones.exists(tx, before.id)
        images.restore(tx, before.id, before.status, rows, without=[before.locations[0].id])
    with db.read_once() as tx:
        after = images.get(tx, SERVICE, before.id)
        assert after
        assert not tombstones.exists(tx, before.id)
    assert replace(after, updated_at=before.updated_at) == replace(before, locations=before.locations[1:])


def test_the_head_in_the_code_is_the_newest_revision() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_migrations_make_the_tables_that_the_code_describes(db: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with db.reads.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        # SQLite cannot describe an index on an expression; alembic passes system columns over.
        passed_over = ("calotype_version", "calotype_property", "calotype_revision", "calotype_object")
        unlike = compare_metadata(context, tables.metadata)
        found = [one for one in unlike if not any(name in str(one) for name in passed_over)]
    assert found == []


def test_syncing_again_changes_nothing_and_glance_still_finds_its_head(db: Database) -> None:
    assert schema.sync(db) == schema.HEAD
    with db.read_once() as tx:
        assert tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == ["2024_1_contract01"]


@pytest.mark.parametrize("revision", ["0002", schema.HEAD])
def test_an_index_that_somebody_dropped_is_reported_and_made_anew(db: Database, revision: str) -> None:
    ours = tables.our_indexes(db.writes.dialect.name)
    assert len(ours) == 21
    assert schema.inspect(db).ready
    with db.write_once() as tx:
        for index in ours:
            index.drop(tx)
        tx.execute(sa.text("UPDATE calotype_version SET version_num = :revision"), {"revision": revision})
    if revision == schema.HEAD:
        assert set(schema.inspect(db).missing) == {index.name for index in ours}
    assert not schema.inspect(db).ready
    schema.sync(db)
    assert schema.inspect(db).ready


def test_our_column_is_missed_and_made_anew(db: Database) -> None:
    """As after `images` came back from a dump of Glance's."""
    with db.write_once() as tx:
        tx.exec_driver_sql("ALTER TABLE images DROP COLUMN calotype_revision")
    assert schema.inspect(db).missing == ("calotype_revision",)
    schema.sync(db)
    assert schema.inspect(db).ready
    with db.write_once() as tx:
        images.add(tx, an_image(1))


def test_a_glance_database_in_the_middle_of_its_own_migration_is_left_alone(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    with database.write_once() as tx:
        tx.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        tx.exec_driver_sql("INSERT INTO alembic_version VALUES ('2023_1_contract01')")
    with pytest.raises(errors.ConfigError, match="glance-manage"):
        schema.sync(database)
    database.close()


@pytest.mark.parametrize("lost", ["DROP TABLE calotype_version", "DELETE FROM calotype_version"])
def test_tombstones_and_jobs_outlive_the_note_of_which_migrations_were_run(db: Database, lost: str) -> None:
    with db.write_once() as tx:
        images.add(tx, an_image(1))
        gone = images.get(tx, SERVICE, an_image(1).id)
        assert gone
        images.delete(tx, gone, now())
        tombstones.add(tx, [an_image(2).id], now())  # which has no other row left
        job = jobs.submit(tx, "delete", an_image(1).id, {"x": "y"})
        before = [tx.execute(sa.select(table)).all() for table in (tables.tombstones, tables.jobs)]
        index = next(index for index in tables.jobs.indexes if index.name == "calotype_jobs_owner")
        index.drop(tx)
        tx.exec_driver_sql(lost)
    assert schema.sync(db) is None
    with db.read_once() as tx:
        assert [tx.execute(sa.select(table)).all() for table in (tables.tombstones, tables.jobs)] == before
        assert len(before[0]) == 2
        assert jobs.exists(tx, job.token)
        assert index.name in {found["name"] for found in sa.inspect(tx).get_indexes("calotype_jobs")}
    assert schema.inspect(db).ready


@pytest.mark.parametrize("release", ["first", "this"])
def test_our_ids_compare_with_glances_when_the_collation_of_the_database_is_another(
    database_kind: str, empty_database_url: str, release: str
) -> None:
    if database_kind != "mariadb":
        return  # the others compare what they are given
    database = Database(empty_database_url)
    tables.glance_tables().create_all(database.writes)
    with database.write_once() as tx:
        tx.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
        tx.exec_driver_sql(f"ALTER DATABASE {database.url.database} CHARACTER SET latin1")
    database.close()  # so that the next connection hears of it
    schema.sync(database)
    if release == "first":  # it let the database choose
        with database.write_once() as tx:
            tables.copies.drop(tx)  # which that release had not
            for table in ("calotype_jobs", "calotype_tombstones"):
                tx.exec_driver_sql(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb3 COLLATE utf8mb3_unicode_ci")
            tx.exec_driver_sql("UPDATE calotype_version SET version_num = '0002'")
        schema.sync(database)
    with database.write_once() as tx:
        images.add(tx, an_image(1))
        gone = images.get(tx, SERVICE, an_image(1).id)
        assert gone
        images.delete(tx, gone, now())
    with database.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 100)[0] == 1
        outbox.add(tx, Event("1", "image.create", "INFO", {"name": "照相 é"}, now()))
        assert outbox.next_events(tx, 1)[0].payload == {"name": "照相 é"}
    database.close()


def test_a_database_of_a_newer_release_is_refused(db: Database) -> None:
    with db.write_once() as tx:
        tx.exec_driver_sql("UPDATE calotype_version SET version_num = '9999'")
    with pytest.raises(errors.ConfigError, match="newer"):
        schema.pending(db)


def test_a_database_with_images_gets_its_new_indexes_also_when_that_broke_off_once(empty_database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    database = Database(empty_database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with database.write_once() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, "0001")
    for number in range(30):
        _by_glance(database, an_image(number).id, name=f"n{number}")
    if not database.is_sqlite and database.url.get_backend_name() != "postgresql":  # where a migration can break off
        with database.write_once() as tx:
            index = next(i for i in tables.images.indexes if i.name == "calotype_owner_name")
            index.create(tx)
    assert schema.sync(database) == "0001"
    assert schema.inspect(database).ready
    with database.read_once() as tx:
        assert len(pages.page(tx, RecordCache(), SERVICE, Query(limit=50, sort=(("name", "asc"),)))) == 30
    database.close()


def test_notes_of_jobs_become_copies_also_when_that_broke_off_again_and_again(empty_database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    database = Database(empty_database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with database.write_once() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, "0004")
    notes = [{}, {"object": "first"}, {"object": "last"}]
    old = sa.table("calotype_jobs", *(sa.column(name) for name in (*tables.jobs.c.keys(), "notes")))
    row = {"kind": "upload", "image_id": "i", "state": "running", "attempt": 1, "owner": "o"}
    row |= {"due_at": now(), "created_at": now()}
    payloads = [json.dumps({"store": "fast"}), json.dumps({"store": "slow", "identity": "its place"})]
    rows = [
        row | {"id": "1", "notes": json.dumps(notes), "payload": payloads[0]},
        row | {"id": "2", "notes": "[]", "payload": payloads[1], "attempt": 3},  # its cleaning up has failed
        row | {"id": "3", "notes": "[]", "payload": "{}", "kind": "delete"},
    ]
    with database.write_once() as tx:
        tx.execute(sa.insert(old), rows)
    allowed = done = 0

    def break_off(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal done
        done += statement.lstrip().startswith(("CREATE", "INSERT", "ALTER", "UPDATE", "DELETE"))
        if done > allowed:
            raise KeyboardInterrupt

    event.listen(database.writes, "before_cursor_execute", break_off)
    while not schema.inspect(database).ready:
        allowed, done = allowed + 1, 0
        with contextlib.suppress(KeyboardInterrupt):
            schema.sync(database)
    event.remove(database.writes, "before_cursor_execute", break_off)
    assert allowed > 5
    with database.write_once() as tx:
        found = {number: jobs.get(tx, number) for number in "123"}
        assert [copies.of(tx, job) for job in found.values() if job] == [
            [Copy("fast", None, "writing", 1, "last")],
            [Copy("slow", "its place", "writing", 1)],
            [],
        ]
        assert found["2"] is not None
        assert (found["2"].attempt, found["2"].step, found["2"].checkpoint, found["2"].failure) == (3, 0, {}, None)
        assert tx.execute(sa.select(tables.locks.c.name)).scalars().all() == ["events", "sweep"]
    database.close()


@pytest.mark.slow
def test_a_first_migration_that_broke_off_anywhere_is_finished_by_the_next(
    database_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_kind != "mariadb":
        return  # the others undo what was not finished

    def statements(stop: int) -> int:
        """Run `sync` and break off before one of its changes; how many there were."""
        seen = 0

        def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            nonlocal seen
            if statement.lstrip().startswith(("CREATE", "INSERT", "ALTER", "UPDATE")):
                seen += 1
                if seen == stop:
                    raise KeyboardInterrupt

        event.listen(database.writes, "before_cursor_execute", count)
        try:
            schema.sync(database)
        except KeyboardInterrupt:
            pass
        finally:
            event.remove(database.writes, "before_cursor_execute", count)
        return seen

    patient = Settings(response_timeout=None)  # as `calotype db sync` is
    database = Database(databases.fresh(database_kind, tmp_path), patient)
    total = statements(0)
    database.close()
    for stop in range(3, total + 1, 14):
        database = Database(databases.fresh(database_kind, tmp_path), patient)
        assert statements(stop) == stop
        schema.sync(database)
        assert schema.inspect(database).ready, stop
        with database.read_once() as tx:
            found = {index["name"] for rows in sa.inspect(tx).get_multi_indexes().values() for index in rows}
        wanted = {index.name for table in tables.glance_tables().tables.values() for index in table.indexes}
        assert wanted <= found, stop
        database.close()


def _by_glance(database: Database, image_id: str, **more: Any) -> None:
    """Add an image to a table that has no columns of ours."""
    row = {"id": image_id, "status": "queued", "visibility": "shared", "created_at": now(), "deleted": False}
    row |= {"protected": False, "os_hidden": False, "min_disk": 0, "min_ram": 0, **more}
    theirs = sa.table("images", *(sa.column(name, tables.images.c[name].type) for name in row))
    with database.write_once() as tx:
        tx.execute(sa.insert(theirs).values(row))


def test_ids_that_glance_deleted_before_us_are_refused(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    tables.glance_tables().create_all(database.writes)
    gone, when = an_image(1).id.upper(), now()
    with database.write_once() as tx:
        tx.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
    _by_glance(database, gone, status="deleted", deleted=True, deleted_at=when)
    schema.sync(database)
    with pytest.raises(errors.Conflict), database.write_once() as tx:
        images.add(tx, an_image(1))


def test_a_living_image_of_glance_with_capitals_in_its_id_is_one_image(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    tables.glance_tables().create_all(database.writes)
    capital = "ABCDEF00-0000-4000-8000-000000000001"
    with database.write_once() as tx:
        tx.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
    _by_glance(database, capital, owner="red")
    schema.sync(database)
    with database.read_once() as tx:
        found = images.get(tx, SERVICE, capital)
        assert found
        assert [image.id for image in pages.page(tx, RecordCache(), SERVICE, Query(limit=5))] == [capital]
        assert pages.page(tx, RecordCache(), SERVICE, Query(limit=5, marker=capital)) == []
    with pytest.raises(errors.Conflict), database.write_once() as tx:
        images.add(tx, replace(an_image(1), id=capital.lower()))
    with database.write_once() as tx:
        rows = images.delete(tx, found, now())
        assert rows is not None
        images.restore(tx, capital, "queued", rows)
    with pytest.raises(errors.Conflict), database.write_once() as tx:
        images.add(tx, replace(an_image(1), id=capital.lower()))
    database.close()


def test_a_crowd_of_readers_keeps_no_connection_from_a_writer(database_url: str, db: Database) -> None:
    small = Database(database_url, Settings(max_pool_size=1, max_overflow=0, pool_timeout=5))
    with small.read_once(), small.write_once() as tx:
        images.add(tx, an_image(1))
    small.close()


@pytest.mark.parametrize("kind", ["snapshot", "write"])
def test_a_crowd_waits_a_moment_for_the_connections_that_are_kept(
    database_url: str, db: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much of it as finds its turn in that moment opens no connection of its own; whoever does not, goes on."""
    crowd, small = 16, Database(database_url, Settings(max_pool_size=2))  # one of them for readers
    opened: list[object] = []
    for pool in (small.reads, small.writes):
        event.listen(pool, "connect", lambda *_: opened.append(1))
    together = threading.Barrier(crowd)

    def work(tx: engine.Tx) -> None:
        tx.execute(sa.text("SELECT 1"))
        time.sleep(0.002)

    def come() -> None:
        together.wait(10)
        getattr(small, kind)(work)

    threads = [threading.Thread(target=come) for _ in range(crowd)]
    with monkeypatch.context() as patient:
        patient.setattr(engine, "_POOL_WAIT", 10.0)  # a slow machine has no shorter ones
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 1
    begun = time.monotonic()
    with small.read_once():
        small.snapshot(work)
    assert time.monotonic() - begun < 5
    small.close()


def test_purging_leaves_images_that_a_job_may_bring_back(db: Database) -> None:
    with db.write_once() as tx:
        images.add(tx, an_image(1))
        images.add_location(tx, an_image(1).id, "file:///x", {}, now())
        images.add(tx, an_image(2, properties={}, tags=()))
        images.add(tx, an_image(3, properties={}, tags=()))
        before = [images.get(tx, SERVICE, an_image(number).id) for number in (1, 2, 3)]
        rows = [images.delete(tx, image, now()) for image in before if image]
        work = [jobs.submit(tx, "delete", an_image(number).id, {}) for number in (1, 2)]
    with db.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 100) == (1, 1)
        for image, job, marked in zip(before, work, rows, strict=False):
            assert image
            assert marked is not None
            images.restore(tx, image.id, image.status, marked)
            after = images.get(tx, SERVICE, image.id)
            assert after
            assert replace(after, updated_at=image.updated_at) == image
            images.delete(tx, image, now())
            jobs.finish(tx, job)
    with db.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 100)[0] == 2


def test_an_id_that_a_purge_is_about_to_bury_is_refused(database_kind: str, db: Database) -> None:
    if database_kind == "sqlite":
        return  # it has one writer
    with db.write_once() as tx:
        images.add(tx, an_image(1, properties={}, tags=()))
        gone = {"deleted": True, "deleted_at": now(), "status": "deleted"}
        tx.execute(sa.update(tables.images).values(gone))  # by a Glance beside us, which buries nothing
    ends: list[str] = []

    def create() -> None:
        try:
            with db.write_once() as tx:
                images.add(tx, an_image(1))
            ends.append("created")
        except errors.Conflict:
            ends.append("refused")

    creating = threading.Thread(target=create)
    with db.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 100) == (1, 1)
        creating.start()
        creating.join(0.5)
        assert creating.is_alive(), "the insert does not wait for the purge"
    creating.join()
    assert ends == ["refused"]


def test_purging_buries_what_somebody_else_deleted_and_leaves_what_is_still_to_be_scrubbed(db: Database) -> None:
    with db.write_once() as tx:
        for number in (1, 2):
            images.add(tx, an_image(number, properties={}, tags=()))
            images.add_location(tx, an_image(number).id, "file:///x", {}, now())
            status = ("deleted", "pending_delete")[number - 1]
            which = tables.images.c.id == an_image(number).id
            gone = {"deleted": True, "deleted_at": now(), "status": status}
            tx.execute(sa.update(tables.images).where(which).values(gone))
            place = tables.image_locations.c.image_id == an_image(number).id
            tx.execute(sa.update(tables.image_locations).where(place).values(gone))
    with db.write_once() as tx:
        assert images.purge(tx, now() + timedelta(days=1), 100)[0] == 1
        assert tx.execute(sa.select(tables.image_locations.c.status)).scalars().all() == ["pending_delete"]
    with pytest.raises(errors.Conflict), db.write_once() as tx:
        images.add(tx, an_image(1))


def test_a_name_that_comes_back_in_other_letters_is_another_property_or_refused(db: Database) -> None:
    with db.write_once() as tx:
        images.add(tx, an_image(1, properties={"Distro": "x", "other": "y"}))

    def change(properties: dict[str, str]) -> Image:
        with db.write_once() as tx:
            before = images.get(tx, SERVICE, an_image(1).id, lock=True)
            assert before
            images.save(tx, before, replace(before, properties=properties, updated_at=now()))
            after = images.get(tx, SERVICE, before.id)
            assert after
            return after

    assert dict(change({"other": "y"}).properties) == {"other": "y"}
    assert dict(change({"other": "y", "distro": "z"}).properties) == {"other": "y", "distro": "z"}
    with db.write_once() as tx:  # as a Glance beside us removes one
        rows = tables.image_properties
        tx.execute(sa.update(rows).where(rows.c.name == "distro").values(deleted=True, deleted_at=now()))
    assert dict(change({"other": "y", "DISTRO": "w"}).properties) == {"other": "y", "DISTRO": "w"}


def test_what_is_removed_from_a_living_image_leaves_no_rows(db: Database) -> None:
    with db.write_once() as tx:
        images.add(tx, an_image(1))
    with db.write_once() as tx:
        before = images.get(tx, SERVICE, an_image(1).id, lock=True)
        assert before
        images.save(tx, before, replace(before, properties={}, tags=(), updated_at=now()))
    with db.read_once() as tx:
        for table in (tables.image_properties, tables.image_tags):
            assert tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0
