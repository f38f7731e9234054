"""kill -9 loses nothing that was acknowledged and leaves nothing behind; and the oracle that says so can fail."""

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype.db.engine import Database, now
from calotype.db.tables import image_locations, images
from tests.crash.harness import STORES, Crashes
from tests.crash.journal import Content, Edit, Entry, Journal, create
from tests.crash.load import Aim
from tests.crash.oracle import RECOVERY, check, debris, misread, settle
from tests.databases import for_service, synced
from tests.stores.remote_toy import RemoteBackend, RemoteToys
from tests.stores.suite import Kit
from tests.stores.test_contract import Files
from tests.support import Client, Service, running

KILLS = {
    ("file", "sqlite"): 20,
    ("s3", "sqlite"): 10,
    ("swift", "sqlite"): 8,
    ("toy", "sqlite"): 5,
    ("file", "mariadb"): 8,
    ("file", "postgresql"): 8,
}
#: For backends that are no directories one database is enough. `make crash` kills with a store of type rbd.
ELSEWHERE: dict[str, list[str]] = {"s3": [], "swift": ["swift"], "toy": []}


@pytest.mark.parametrize(
    "store",
    [
        "file",
        *(
            pytest.param(store, marks=[pytest.mark.any_database, pytest.mark.needs(*needs)])
            for store, needs in ELSEWHERE.items()
        ),
    ],
)
@pytest.mark.slow
def test_kill_9_under_load_loses_nothing_and_leaves_nothing(
    state: Path, database_kind: str, own_database: str, store: str
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    kit = STORES[store](state)
    crashes = Crashes(state, seed, kit, database=own_database, images=60)
    kills = KILLS[store, database_kind]
    try:
        # On a busy machine some kills come before there is any load: then more follow.
        while crashes.summary.kills < kills or (_is_idle(crashes, kills) and crashes.summary.kills < 6 * kills):
            crashes.round()
        crashes.finish()
    except AssertionError as exc:
        raise AssertionError(f"seed {seed}; {crashes.line()}\n{exc}") from exc
    finally:
        _end(crashes.service)
        kit.close()
    print(f"seed {seed}; {crashes.line()}")
    assert crashes.journal.acknowledged > kills, "there was hardly any load"
    assert crashes.summary.cut["uploads"] > 0, "no kill hit an upload"


def _is_idle(crashes: Crashes, kills: int) -> bool:
    return crashes.journal.acknowledged <= kills or not crashes.summary.cut["uploads"]


@pytest.mark.alone
@pytest.mark.any_database  # recovery asks for jobs, and there are few of them whatever the images are
@pytest.mark.slow
def test_recovery_beside_10000_images_takes_no_longer_than_5_seconds(
    state: Path, tmp_path: Path, database_kind: str, own_database: str
) -> None:
    crashes = Crashes(state, 0, Files(state), database=own_database)
    seconds = _recovery(crashes, _ten_thousand(crashes.service, state / "one"))
    if seconds > RECOVERY:  # on a machine that has much else to do: what is it without the images?
        place = tmp_path / "alone"
        alone = _recovery(Crashes(place, 0, Files(place), database=for_service(database_kind)), frozenset())
        assert seconds <= 2 * alone


def _recovery(crashes: Crashes, others: frozenset[str]) -> float:
    """Seconds of the slowest start and the slowest recovery after kills in mid-upload."""
    try:
        crashes.service.start()
        while not crashes.summary.cut["uploads"]:  # a kill may come when no upload is under way
            assert crashes.summary.kills < 20, "no kill hit an upload"
            crashes.kill(Aim(0.8, "sent", 0.005))
            crashes.recover(others=others)
    finally:
        _end(crashes.service)
    print(crashes.line())
    return crashes.summary.slowest_start + crashes.summary.slowest_recovery


def _ten_thousand(service: Service, directory: Path) -> frozenset[str]:
    """Active images of one byte each, written by no service."""
    directory.mkdir()
    db = Database(synced(service.database_url))
    ids = [str(uuid.UUID(int=number, version=4)) for number in range(10_000)]
    for image_id in ids:
        (directory / image_id).write_bytes(b"x")
    times = {"created_at": now(), "updated_at": now(), "deleted": False}
    record = {"status": "active", "size": 1, "visibility": "shared", "owner": "red", "min_disk": 0, "min_ram": 0}
    with db.write_once() as tx:
        tx.execute(sa.insert(images), [{"id": one, "name": one, **record, **times} for one in ids])
        place = [{"image_id": one, "value": f"file://{directory}/{one}", "meta_data": "{}", **times} for one in ids]
        tx.execute(sa.insert(image_locations), place)
    db.close()
    return frozenset(ids)


def _end(service: Service) -> None:
    if service.process is not None and service.process.poll() is None:
        service.kill()


def test_the_oracle_sees_what_is_wrong_in_a_backend_that_is_no_directory(state: Path) -> None:
    kit = RemoteToys(state)
    configured = kit.configured()
    conf = f"{configured.conf}[jobs]\npoll = 3600\n"
    backend, journal = RemoteBackend(**kit.access), Journal(state.parent / "journal.jsonl")
    try:
        with running(state, conf, environment=configured.environment) as service:
            entry = Entry(service.client().queued(), "a name", {}, set(), content=Content(7, 100_000))
            journal.entries[entry.id] = entry
            assert service.client().put(entry.id, entry.content.data()).status_code == 204
            assert debris(service, kit) == misread(service, kit, journal) == []
            backend.create(f"one/{entry.id}", b"x" * 100_000)
            assert "has other bytes" in misread(service, kit, journal)[0]
            backend.create("one/some.part")
            backend.create("one/some")
            backend.remove(f"one/{entry.id}")
            found = debris(service, kit)
            assert found == [
                "the temporary one/some.part is left",
                "the object one/some belongs to no image",
                f"the object of image {entry.id} is missing",
            ]
    finally:
        kit.close()


# --- the oracle can fail ---------------------------------------------------------------------------------


@dataclass
class Specimen:
    """A service at rest with one image of each kind, all of them in the journal."""

    service: Service
    client: Client
    journal: Journal
    active: Entry
    queued: Entry
    deleted: Entry
    others: frozenset[str]
    before: frozenset[str]

    def examine(self) -> str:
        """What is reported that was not before."""
        _, left = settle(self.service, self.kit, patience=0.1)
        found = check(self.client, self.journal, self.journal.entries.values(), self.others)
        return "\n".join([*(problem for problem in left if problem not in self.before), *found])

    @property
    def file(self) -> Path:
        return self.service.state / "one" / self.active.id

    @property
    def kit(self) -> Kit:
        return Files(self.service.state)

    def sql(self, statement: str, image_id: str) -> None:
        db = Database(self.service.database_url)
        with db.write_once() as tx:
            assert tx.execute(sa.text(statement), {"id": image_id}).rowcount > 0
        db.close()


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Service]:
    # The runner must not put right what the tests put wrong.
    state = tmp_path_factory.mktemp("rest")
    conf = f"{Files(state).configured().conf}[jobs]\npoll = 3600\n"
    with running(state, conf, database=for_service(database_kind)) as service:
        yield service


@pytest.fixture
def specimen(at_rest: Service, tmp_path: Path) -> Specimen:
    client = at_rest.client("alice")
    before = frozenset(debris(at_rest, Files(at_rest.state)))
    others = frozenset(image["id"] for image in client.get("/v2/images?limit=1000").json()["images"])
    journal = Journal(tmp_path / "journal.jsonl")
    made = [Entry(str(uuid.uuid4()), "a name", {"born": "yes"}, {"first"}) for _ in range(3)]
    for entry in made:
        assert create(client, entry).status_code == 201
        entry.created = True
        journal.entries[entry.id] = entry
    active, queued, deleted = made
    for entry in (active, deleted):
        entry.content = Content(7, 100_000)
        assert client.put(entry.id, entry.content.data()).status_code == 204
    assert client.delete(deleted.id).status_code == 204
    deleted.deleted = True
    return Specimen(at_rest, client, journal, active, queued, deleted, others, before)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes(data)


def _expect_edit(one: Specimen) -> None:
    one.active.edit = Edit("another name", (("p1", "1"),))
    one.sql("UPDATE images SET name = 'another name' WHERE id = :id", one.active.id)


def _forget(one: Specimen) -> None:
    for table in ("properties", "tags", "locations"):
        one.sql(f"DELETE FROM image_{table} WHERE image_id = :id", one.deleted.id)
    one.sql("DELETE FROM images WHERE id = :id", one.deleted.id)
    one.sql("DELETE FROM calotype_tombstones WHERE image_id = :id", one.deleted.id)


_JOB = (
    "INSERT INTO calotype_jobs (id, kind, image_id, state, attempt, due_at, payload, created_at) "
    "VALUES ('1', 'upload', :id, 'pending', 0, '2099-01-01 00:00:00.000000', '{}', '2024-01-01 00:00:00.000000')"
)

#: What goes wrong, how, and words of the report. Of each the oracle must speak.
BROKEN: list[tuple[str, Callable[[Specimen], object], str]] = [
    ("a stored file is cut short", lambda one: one.file.write_bytes(b"short"), "has 5 bytes, its record says 100000"),
    ("a stored file is cut short, as clients see it", lambda one: one.file.write_bytes(b"short"), "be downloaded"),
    ("one bit of a stored file is wrong", lambda one: _flip(one.file), "is downloaded with wrong bytes"),
    ("a stored file is gone", lambda one: one.file.unlink(), "the object of image .* is missing"),
    (
        "a file belongs to nobody",
        lambda one: one.file.with_name("x").write_bytes(b""),
        "the object x belongs to no image",
    ),
    (
        "a temporary file stays",
        lambda one: one.file.with_name(f"{one.queued.id}.1-1.part").write_bytes(b""),
        "the temporary .* is left",
    ),
    (
        "a queued image has a file",
        lambda one: one.file.with_name(one.queued.id).write_bytes(b""),
        "the object .* belongs to no image",
    ),
    (
        "a deleted row comes back",
        lambda one: one.sql("UPDATE images SET deleted = false, status = 'queued' WHERE id = :id", one.deleted.id),
        "the deleted image .* exists",
    ),
    ("a deleted id is forgotten", _forget, "was given away again"),
    (
        "an acknowledged record is gone",
        lambda one: one.sql("UPDATE images SET deleted = true WHERE id = :id", one.queued.id),
        "is lost",
    ),
    (
        "an image is stuck",
        lambda one: one.sql("UPDATE images SET status = 'saving' WHERE id = :id", one.queued.id),
        "is in status saving",
    ),
    (
        "an acknowledged upload is undone",
        lambda one: one.sql(
            "UPDATE images SET status = 'queued', size = NULL, os_hash_value = NULL WHERE id = :id", one.active.id
        ),
        "though its upload was acknowledged",
    ),
    (
        "an image has a hash of something else",
        lambda one: one.sql("UPDATE images SET os_hash_value = 'abc' WHERE id = :id", one.active.id),
        "has size and hash",
    ),
    (
        "a location is lost",
        lambda one: one.sql("UPDATE image_locations SET deleted = true WHERE image_id = :id", one.active.id),
        "is active and has 0 locations",
    ),
    (
        "a property is lost",
        lambda one: one.sql("UPDATE image_properties SET deleted = true WHERE image_id = :id", one.active.id),
        "has .* not .*'born': 'yes'",
    ),
    (
        "a tag is lost",
        lambda one: one.sql("UPDATE image_tags SET deleted = true WHERE image_id = :id", one.queued.id),
        "has .* not .*'tags': \\['first'\\]",
    ),
    ("half of an edit was applied", _expect_edit, "edit under way"),
    ("a job is left over", lambda one: one.sql(_JOB, one.queued.id), "a job is left"),
    (
        "an image is missing from the list",
        lambda one: one.sql("UPDATE images SET os_hidden = true WHERE id = :id", one.active.id),
        "exists and is not listed",
    ),
    ("an image is listed that nobody made", lambda one: one.client.queued(), "is listed and should not exist"),
]


def test_the_oracle_has_no_complaint_about_a_sound_state(specimen: Specimen) -> None:
    assert specimen.examine() == ""


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
@pytest.mark.any_database
def test_the_oracle_notices_that(specimen: Specimen, spoil: Callable[[Specimen], object], words: str) -> None:
    spoil(specimen)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(specimen.examine())
