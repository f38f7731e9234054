"""Quotas at the moments that cannot be provoked from outside: who waits for whom, what is reserved when, and until when."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.context import Context
from calotype.db import images as db_images
from calotype.db import jobs, members, tables
from calotype.db.engine import Tx, now
from calotype.db.usage import _statement
from calotype.images import data, lifecycle, quota, sharing, stores
from calotype.images.lifecycle import NewImage
from calotype.limits import Allowance
from calotype.model import Change
from calotype.service import Service
from tests.inprocess import ADMIN, ALICE, BOB, CONF, Pieces, backlog, make_active, parts

MIB = 1 << 20
UNIT = 100 << 10
QUOTA = 40 * UNIT


TEXT = CONF.replace(
    "[DEFAULT]",
    """\
[DEFAULT]
user_storage_quota = 4000KB
image_member_quota = 1
image_property_quota = 1
image_tag_quota = 1
""".rstrip(),
)


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url, TEXT) as made:
        yield made


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[App]:
    """For what a database makes no difference to."""
    with parts(tmp_path, f"sqlite:///{tmp_path}/c.db", TEXT) as made:
        yield made


def uses(app: App, project: str = "red") -> int:
    """Bytes that the tables say a project uses, in words of the test's own."""
    stored = (
        "SELECT SUM(i.size) FROM images i JOIN image_locations l ON l.image_id = i.id WHERE i.owner = :project "
        "AND i.status <> 'deleted' AND l.status = 'active'"
    )
    reserved = "SELECT SUM(reserved) FROM calotype_jobs WHERE project = :project"
    return app.db.snapshot(
        lambda tx: sum(int(tx.execute(sa.text(sql), {"project": project}).scalar() or 0) for sql in (stored, reserved))
    )


def reserved(app: App) -> int:
    with app.db.read_once() as tx:
        return int(tx.execute(sa.select(sa.func.sum(tables.jobs.c.reserved))).scalar() or 0)


def queued(app: App, ctx: Context = ALICE, **values: Any) -> str:
    return lifecycle.create(app.service, ctx, NewImage(disk_format="raw", container_format="bare", **values)).id


def put(app: App, size: int, *, known: bool = True, ctx: Context = ALICE, image_id: str = "") -> str:
    """The id of an image with so many bytes."""
    image_id = image_id or queued(app, ctx)
    source = Watched(size, lambda seen: None)
    data.upload(app.service, ctx, image_id, source, store_name=None, size=size if known else None)
    return image_id


@dataclass
class Watched:
    """A `Source` of so many bytes, in pieces of a MiB, that tells before each of them how many there were."""

    left: int
    tell: Callable[[int], None]
    seen: int = 0

    def ready(self, size: int) -> int:
        return size

    def readinto(self, view: memoryview) -> int:
        self.tell(self.seen)
        count = min(self.left, len(view), MIB)
        self.left -= count
        self.seen += count
        return count


# --- what is reserved, and until when --------------------------------------------------------------------


def test_a_known_size_is_reserved_before_a_byte_is_read_and_stored_when_it_is_there(lite: App) -> None:
    seen: list[int] = []
    image_id = queued(lite)
    source = Watched(3 * UNIT, lambda _: seen.append(reserved(lite)))
    data.upload(lite.service, ALICE, image_id, source, store_name=None, size=3 * UNIT)
    assert set(seen) == {3 * UNIT}
    assert (reserved(lite), uses(lite), backlog(lite)) == (0, 3 * UNIT, 0)


def test_what_does_not_fit_is_refused_before_a_byte_is_read_with_all_the_numbers(lite: App) -> None:
    put(lite, 30 * UNIT)
    read: list[int] = []
    image_id = queued(lite)
    with pytest.raises(errors.OverLimit) as refused:
        source = Watched(11 * UNIT, read.append)
        data.upload(lite.service, ALICE, image_id, source, store_name=None, size=11 * UNIT)
    for number in (QUOTA, 30 * UNIT, 11 * UNIT):
        assert str(number) in str(refused.value)
    assert read == []
    assert lifecycle.show(lite.service, ALICE, image_id).status == "queued"
    assert backlog(lite) == 0
    put(lite, 10 * UNIT, image_id=image_id)
    assert uses(lite) == QUOTA


def test_an_unknown_size_is_reserved_in_steps_ahead_of_the_bytes(app: App) -> None:
    steps: dict[int, int] = {}
    svc = limited(app, size=40 * MIB)
    image_id = queued(app)
    source = Watched(37 * MIB, lambda seen: steps.setdefault(reserved(app), seen))
    data.upload(svc, ALICE, image_id, source, store_name=None, size=None)
    # A step is taken when the piece beyond the last one has come, and before the store gets it; pieces have a MiB at most.
    assert list(steps) == [16 * MIB, 32 * MIB, 40 * MIB]
    assert steps[16 * MIB] == 0
    assert 16 * MIB < steps[32 * MIB] <= 17 * MIB
    assert 32 * MIB < steps[40 * MIB] <= 33 * MIB
    assert uses(app) == 37 * MIB


@pytest.mark.parametrize("there", [0, 39 * UNIT + 5])
def test_an_unknown_size_that_fits_exactly_fits_and_a_byte_more_does_not(lite: App, there: int) -> None:
    if there:
        put(lite, there)
    with pytest.raises(errors.OverLimit):
        put(lite, QUOTA - there + 1, known=False)
    assert (uses(lite), backlog(lite)) == (there, 0)
    put(lite, QUOTA - there, known=False)
    assert uses(lite) == QUOTA
    with pytest.raises(errors.OverLimit):
        put(lite, 1, known=False)


def test_an_upload_that_fails_gives_its_room_back(lite: App) -> None:
    image_id = queued(lite)
    with pytest.raises(errors.BodyBroken):
        data.upload(lite.service, ALICE, image_id, Pieces([b"short"]), store_name=None, size=QUOTA)
    assert uses(lite) == 0
    put(lite, QUOTA, image_id=image_id)


def test_a_delete_makes_room_and_so_does_a_copy_that_is_removed(app: App, tmp_path: Path) -> None:
    image_id = put(app, 20 * UNIT)
    (tmp_path / "two" / image_id).write_bytes(b"x")
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, f"file://{tmp_path}/two/{image_id}", {"store": "two"}, now())
    with pytest.raises(errors.OverLimit):
        put(app, 1)
    stores.remove_copy(app.service, ADMIN, "two", image_id)
    put(app, 20 * UNIT)
    with pytest.raises(errors.OverLimit):
        put(app, 1)
    lifecycle.delete(app.service, ALICE, image_id)
    put(app, 20 * UNIT)
    assert uses(app) == QUOTA


def test_an_image_that_is_deleted_while_its_data_comes_keeps_no_room(lite: App) -> None:
    image_id = queued(lite)

    def delete(seen: int) -> None:
        if MIB < seen <= 2 * MIB:
            lifecycle.delete(lite.service, ALICE, image_id)

    with pytest.raises(errors.Gone):
        # The next step of the reservation finds out.
        data.upload(
            limited(lite, size=40 * MIB), ALICE, image_id, Watched(20 * MIB, delete), store_name=None, size=None
        )
    assert backlog(lite) == 0  # the upload has cleaned up itself
    assert uses(lite) == 0


def test_data_that_proves_in_use_has_kept_its_room(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = put(app, 30 * UNIT)
    store = app.service.stores.for_writing(None)
    refused: list[Exception] = []

    def in_use(url: str, *, object_id: str | None, ctx: object) -> None:
        with pytest.raises(errors.OverLimit) as caught:
            put(app, 11 * UNIT)
        refused.append(caught.value)
        raise errors.InUse("a volume depends on it", "one")

    monkeypatch.setattr(store, "delete", in_use)
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    assert refused
    assert (uses(app), reserved(app)) == (30 * UNIT, 0)


def test_data_that_a_store_does_not_delete_in_time_is_not_counted_for_ever(
    lite: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = put(lite, 30 * UNIT)

    def down(url: str, *, object_id: str | None, ctx: object) -> None:
        raise errors.StoreUnavailable("down", "one")

    monkeypatch.setattr(lite.service.stores.for_writing(None), "delete", down)
    lifecycle.delete(lite.service, ALICE, image_id)
    assert (backlog(lite), uses(lite)) == (1, 0)
    put(lite, QUOTA)


# --- whose it is -----------------------------------------------------------------------------------------


def test_each_project_has_its_own_and_names_that_differ_in_case_are_different(app: App) -> None:
    put(app, QUOTA)
    for name in ("blue", "Red", "red "):
        put(app, QUOTA, ctx=replace(BOB, project=name))


def test_data_counts_for_the_owner_whoever_sends_it(lite: App) -> None:
    image_id = queued(lite)
    put(lite, QUOTA, ctx=ADMIN, image_id=image_id)
    assert (uses(lite), uses(lite, "admin")) == (QUOTA, 0)
    with pytest.raises(errors.OverLimit):
        put(lite, 1, ctx=ADMIN, image_id=queued(lite))
    nobodys = lifecycle.create(
        lite.service, replace(ADMIN, project=None), NewImage(disk_format="raw", container_format="bare")
    )
    put(lite, QUOTA + 1, ctx=ADMIN, image_id=nobodys.id)


def test_an_administrator_may_give_a_project_more_than_its_quota_which_then_takes_no_more(lite: App) -> None:
    given = put(lite, 30 * UNIT, ctx=BOB)
    put(lite, 30 * UNIT)
    lifecycle.update(lite.service, ADMIN, given, [Change("replace", "owner", "red")])
    assert (uses(lite), uses(lite, "blue")) == (60 * UNIT, 0)
    with pytest.raises(errors.OverLimit):
        put(lite, 0)
    put(lite, QUOTA, ctx=BOB)


# --- two at once -----------------------------------------------------------------------------------------


def test_of_two_who_would_both_fit_alone_the_second_waits_for_the_first_and_is_refused(app: App) -> None:
    """The first has looked and not yet committed; who does not wait for it does not see what it reserves."""
    image_id = queued(app)
    allowed = quota.allowance(app.service, ALICE, "red")
    owner = app.service.leases.owner

    def first(tx: Tx) -> None:
        room = quota.bytes_to_reserve(tx, allowed, 30 * UNIT)
        jobs.submit(tx, "upload", "x", {"store": "one"}, owner=owner, project="red", reserved=room)

    second_is_refused(app, first, lambda: put(app, 30 * UNIT, image_id=image_id))
    assert uses(app) == 30 * UNIT


def second_is_refused(app: App, first: Callable[[Tx], object], second: Callable[[], object]) -> None:
    """What `second` wants while `first` is not yet committed, it is refused afterwards."""
    ended = threading.Event()
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(second())
        except errors.CalotypeError as exc:
            answers.append(exc)
        ended.set()

    other = threading.Thread(target=run)
    with app.db.write_once() as tx:
        first(tx)
        other.start()
        assert not ended.wait(0.3)
    other.join(30)
    assert [type(answer) for answer in answers] == [errors.OverLimit]


def add_member(svc: Service, image_id: str) -> None:
    sharing.add(svc, ALICE, image_id, "blue")


def add_tag(svc: Service, image_id: str) -> None:
    lifecycle.add_tag(svc, ALICE, image_id, "t")


def add_property(svc: Service, image_id: str) -> None:
    lifecycle.update(svc, ALICE, image_id, [Change("add", "p", "x")])


@pytest.mark.parametrize("add", [add_member, add_tag, add_property])
def test_the_last_place_on_an_image_is_not_given_twice(app: App, add: Callable[[Service, str], None]) -> None:
    image_id = queued(app)

    def first(tx: Tx) -> None:
        before = lifecycle.fetch(tx, ALICE, image_id)
        db_images.save(tx, before, replace(before, tags=("other",), properties={"other": "x"}))
        members.add(tx, image_id, "green", now())

    second_is_refused(app, first, lambda: add(app.service, image_id))


@dataclass(frozen=True)
class Given:
    """Limits as Keystone would tell them; the real one is asked in `tests/test_limits.py`."""

    allowed: Allowance

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        return replace(self.allowed, project=caller) if caller else None


def limited(app: App, **values: int) -> Service:
    return replace(app.service, limits=Given(Allowance("", **values)))


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """What each of so many threads returned or raised."""
    barrier = threading.Barrier(count)
    found: list[object] = []

    def run(place: int) -> None:
        barrier.wait()
        try:
            found.append(work(place))
        except errors.CalotypeError as exc:
            found.append(exc)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    return found


def refusals(answers: list[object]) -> int:
    assert all(isinstance(answer, errors.OverLimit) for answer in answers if isinstance(answer, Exception)), answers
    return sum(isinstance(answer, errors.OverLimit) for answer in answers)


def test_of_sixteen_creates_as_many_succeed_as_there_may_be_images(app: App) -> None:
    svc = limited(app, images=5)
    answers = at_once(16, lambda _: lifecycle.create(svc, ALICE, NewImage()))
    assert refusals(answers) == 11
    gone = lifecycle.create(app.service, BOB, NewImage())
    for image in [answer for answer in answers if not isinstance(answer, Exception)][:2]:
        lifecycle.delete(app.service, ALICE, image.id)  # type: ignore[attr-defined]
    lifecycle.delete(app.service, BOB, gone.id)
    assert refusals(at_once(16, lambda _: lifecycle.create(svc, ALICE, NewImage()))) == 14


@pytest.mark.parametrize("content", [b"", b"data"])
def test_an_image_that_may_come_back_has_kept_its_place(
    app: App, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    svc = limited(app, images=1)
    image_id = make_active(app, content=content)
    store = svc.stores.for_writing(None)
    remove = store.delete

    def in_use(url: str, *, object_id: str | None, ctx: object) -> None:
        with pytest.raises(errors.OverLimit, match="it has 1, and 1 more"):
            lifecycle.create(svc, ALICE, NewImage())
        raise errors.InUse("a volume depends on it", "one")

    monkeypatch.setattr(store, "delete", in_use)
    with pytest.raises(errors.Conflict):
        lifecycle.delete(svc, ALICE, image_id)
    monkeypatch.setattr(store, "delete", remove)
    lifecycle.delete(svc, ALICE, image_id)
    lifecycle.create(svc, ALICE, NewImage())


def test_no_more_images_are_uploading_than_may_be(app: App) -> None:
    svc = limited(app, uploading=3)
    ids = [queued(app) for _ in range(8)]
    decided = threading.Barrier(8)

    def upload(place: int) -> None:
        def wait(seen: int) -> None:
            if seen == 0:
                decided.wait(30)

        try:
            data.upload(svc, ALICE, ids[place], Watched(10, wait), store_name=None, size=10)
        except errors.OverLimit:
            decided.wait(30)
            raise

    assert refusals(at_once(8, upload)) == 5
    assert [lifecycle.show(svc, ALICE, image_id).status for image_id in ids].count("queued") == 5
    data.upload(svc, ALICE, queued(app), Watched(10, lambda _: None), store_name=None, size=10)
    assert backlog(app) == 0


def test_unified_limits_are_the_callers_and_what_is_used_is_told(lite: App) -> None:
    assert quota.report(lite.service, ALICE) == {}
    svc = limited(lite, size=20 * MIB, images=10, uploading=1)
    image_id = queued(lite)
    seen: list[dict[str, tuple[int, int]]] = []
    source = Watched(5 * MIB // 2, lambda _: seen.append(quota.report(svc, ALICE)))
    data.upload(svc, ALICE, image_id, source, store_name=None, size=5 * MIB // 2)
    put(lite, QUOTA, ctx=ADMIN, image_id=queued(lite, BOB))
    told = {
        "image_size_total": (2, 20),
        "image_stage_total": (0, -1),
        "image_count_total": (1, 10),
        "image_count_uploading": (0, 1),
    }
    assert seen[0] == told | {"image_count_uploading": (1, 1)}
    assert quota.report(svc, ALICE) == told
    with pytest.raises(errors.OverLimit):  # an administrator's limit, for another project's image
        admins = limited(lite, size=MIB)
        data.upload(admins, ADMIN, queued(lite, BOB), Watched(2 * MIB, lambda _: None), store_name=None, size=2 * MIB)


def test_what_glance_left_half_imported_counts_as_it_did_there(app: App) -> None:
    copying, staged = put(app, MIB), queued(app)
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.images).where(tables.images.c.id == staged).values(status="uploading", size=MIB))
        values = {"image_id": copying, "name": "os_glance_importing_to_stores", "value": "two", "deleted": False}
        tx.execute(sa.insert(tables.image_properties).values(created_at=now(), **values))
    found = quota.report(limited(app), ALICE)
    assert {name: used for name, (used, _) in found.items()} == {
        "image_size_total": 1,
        "image_stage_total": 2,
        "image_count_total": 2,
        "image_count_uploading": 2,
    }


def test_usage_costs_what_a_project_has_and_not_its_square(lite: App) -> None:
    with lite.db.read_once() as tx:
        question = _statement(("stored", "reserved")).params(project="red", job="")
        text = str(question.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True}))
        plan = [str(row[3]) for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    indexes = [found[1] for line in plan if (found := re.search(r"INDEX (\w+) \((?:owner|image_id|project)=", line))]
    assert indexes == ["calotype_owner_created_at", "ix_image_locations_image_id", "calotype_jobs_project"], plan
