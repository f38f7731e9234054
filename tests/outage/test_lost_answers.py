"""A COMMIT whose answer got lost is made once: the client hears of success, and the state is what it asked for."""

import contextlib
import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.context import SERVICE
from calotype.db import images as db_images
from calotype.db import jobs as db_jobs
from calotype.db import members, outbox
from calotype.db.engine import Database, Tx, now
from calotype.db.metadefs import OBJECT, PROPERTY, TAG
from calotype.images import data, imports, lifecycle, locations, sharing, stores
from calotype.images.lifecycle import NewImage
from calotype.images.locations import Given
from calotype.jobs.worker import Runner
from calotype.metadefs import namespaces, resource_types
from calotype.metadefs import parts as definitions
from calotype.model import (
    Association,
    Change,
    Definitions,
    Image,
    MetadefObject,
    MetadefProperty,
    MetadefTag,
    Namespace,
    Query,
)
from calotype.stores.file import FileStore
from tests.databases import Server, synced
from tests.inprocess import ADMIN, ALICE, CONF, Pieces, backlog, make_active, parts
from tests.outage.proxy import HOW, Proxy
from tests.stores.suite import write
from tests.support import until


@dataclass
class Bench:
    """A service in this process whose database is behind a proxy."""

    app: App
    proxy: Proxy
    path: Path

    @property
    def svc(self) -> Any:
        return self.app.service

    def renew(self) -> None:
        """New connections: the proxy reads statements, and psycopg sends by number what it has sent a few times."""
        if self.app.db.url.get_backend_name() == "postgresql":
            self.app.db.close()

    def queued(self, **values: Any) -> str:
        return lifecycle.create(self.svc, ALICE, NewImage(disk_format="raw", container_format="bare", **values)).id

    def active(self) -> str:
        return make_active(self.app)

    def show(self, image_id: str) -> Image | None:
        return self.app.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id))

    def staged(self, image_id: str) -> bool:
        return (self.path / "staging" / image_id).exists()

    def files(self, image_id: str) -> int:
        return sum((self.path / store / image_id).exists() for store in ("one", "two"))

    def there(self, image_id: str) -> Image:
        image = self.show(image_id)
        assert image
        return image

    def told(self) -> list[str]:
        """The types of the events that wait; none does afterwards."""

        def work(tx: Tx) -> list[str]:
            found = outbox.next_events(tx, 1000)
            outbox.remove(tx, found)
            return [event.type.removeprefix("image.") for event in found]

        return self.app.db.write(work)

    def members(self, image_id: str) -> list[str]:
        return [member.member for member in self.app.db.snapshot(lambda tx: members.members_of(tx, image_id))]


def _benches(server: Server, path: Path, more: str = "") -> Iterator[Bench]:
    proxy, url = Proxy(server.port), synced(server.reserved())
    behind = server.url(url.rpartition("/")[2], proxy.port)
    conf = CONF.replace("two:file", "two:file, brief:memory") + "[oslo_messaging_notifications]\ndriver = log\n"
    with parts(path, behind, conf, more) as app:
        yield Bench(app, proxy, path)
    proxy.close()


@pytest.fixture(scope="module")
def shared_bench(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from _benches(server, tmp_path_factory.mktemp("answers"))


@pytest.fixture
def bench(server: Server, shared_bench: Bench) -> Bench:
    shared_bench.renew()
    return shared_bench


# --- each change that a client can ask for ---------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What there is before, what is asked for, and whether the state is right afterwards, given the answer."""

    prepare: Callable[[Bench], str]
    ask: Callable[[Bench, str], Any]
    right: Callable[[Bench, str, Any], bool]
    skip: int = 0  #: transactions before the one whose answer gets lost
    told: str = "update"  #: the events of all that was asked for


def _create(bench: Bench, image_id: str) -> Image:
    new = NewImage(id=image_id, name="born", tags=("a", "b"), properties={"p": "1"})
    return lifecycle.create(bench.svc, ALICE, new)


def _created(bench: Bench, image_id: str, _: Any) -> bool:
    found = bench.there(image_id)
    return (found.name, found.tags, dict(found.properties)) == ("born", ("a", "b"), {"p": "1"})


def _update(*changes: Change) -> Callable[[Bench, str], Image]:
    return lambda bench, image_id: lifecycle.update(bench.svc, ALICE, image_id, changes)


def _has(**properties: str) -> Callable[[Bench, str, Any], bool]:
    return lambda bench, image_id, _: dict(bench.there(image_id).properties) == properties


def _with_a_member(bench: Bench) -> str:
    image_id = bench.queued()
    sharing.add(bench.svc, ALICE, image_id, "blue")
    return image_id


def _upload(bench: Bench, image_id: str) -> None:
    data.upload(bench.svc, ALICE, image_id, Pieces([b"some ", b"data"]), store_name=None, size=None)


def _is_active(bench: Bench, image_id: str, _: Any) -> bool:
    found = bench.there(image_id)
    return (found.status, found.size, len(found.locations), bench.files(image_id)) == ("active", 9, 1, 1)


def _add_location(given: Given | None) -> Callable[[Bench, str], None]:
    def ask(bench: Bench, image_id: str) -> None:
        store = bench.svc.stores.get("brief")
        url = write(store, [b"some data"], str(uuid.uuid4()))
        locations.add(bench.svc, replace(ALICE, service_roles=frozenset({"service"})), image_id, url, given)
        runner = Runner(bench.svc, 60)
        until(lambda: runner.run_due_jobs() + backlog(bench.app) == 0)

    return ask


def _took_over(bench: Bench, image_id: str, _: Any) -> bool:
    found = bench.there(image_id)
    facts = (found.status, found.size, len(found.locations), found.os_hash_value)
    return facts == ("active", 9, 1, hashlib.sha512(b"some data").hexdigest())


def _is_queued(bench: Bench, image_id: str, _: Any) -> bool:
    found = bench.there(image_id)
    return (found.status, found.size, found.locations) == ("queued", None, ())


def _delete(bench: Bench, image_id: str) -> None:
    lifecycle.delete(bench.svc, ALICE, image_id)


def _is_gone(bench: Bench, image_id: str, _: Any) -> bool:
    return bench.show(image_id) is None and bench.files(image_id) == 0


def _two_copies(bench: Bench) -> str:
    image_id = bench.active()
    (bench.path / "two" / image_id).write_bytes(b"data")
    url = f"file://{bench.path}/two/{image_id}"
    bench.app.db.write(lambda tx: db_images.add_location(tx, image_id, url, {"store": "two"}, bench.svc.now()))
    return image_id


def _one_copy(bench: Bench, image_id: str, _: Any) -> bool:
    return [place.store for place in bench.there(image_id).locations] == ["one"] and bench.files(image_id) == 1


# Of metadata definitions: in place of an image's id there is a namespace's name.


def _namespace(name: str, **values: Any) -> Definitions:
    """One with a part of each kind, as a request at this moment describes it."""
    when = now()
    return Definitions(
        Namespace(0, name, "red", when, when, **values),
        (Association("OS::T", when, when, prefix="p_"),),
        (MetadefProperty("p", {"title": "P", "type": "string"}, when, when),),
        (MetadefObject("o", {"p": {"title": "P", "type": "string"}}, when, when, required=("p",)),),
        (MetadefTag("t", when, when), MetadefTag("u", when, when)),
    )


def _with_definitions(bench: Bench) -> str:
    name = str(uuid.uuid4())
    namespaces.create(bench.svc, ADMIN, _namespace(name))
    return name


def _have(
    bench: Bench, name: str, *, links: str = "OS::T", properties: str = "p", objects: str = "o", tags: str = "t u"
) -> bool:
    """Whether a namespace has these parts and no others."""
    found = namespaces.show(bench.svc, ADMIN, name)
    return (
        [one.resource_type for one in found.associations] == links.split()
        and [one.name for one in found.properties] == properties.split()
        and [one.name for one in found.objects] == objects.split()
        and [one.name for one in found.tags[::-1]] == tags.split()  # the newest first
    )


def _there(bench: Bench, name: str) -> bool:
    try:
        return bool(namespaces.show(bench.svc, ADMIN, name))
    except errors.NotFound:
        return False


def _tag(name: str) -> MetadefTag:
    when = now()
    return MetadefTag(name, when, when)


def _replace_namespace(bench: Bench, old: str, **values: Any) -> Namespace:
    return namespaces.update(bench.svc, ADMIN, old, replace(_namespace(old).namespace, **values))


def _add_object(bench: Bench, name: str) -> MetadefObject:
    return definitions.add(bench.svc, ADMIN, name, OBJECT, MetadefObject("new", {}, now(), now(), description="d"))


def _replace_object(bench: Bench, name: str) -> MetadefObject:
    new = MetadefObject("o", {}, now(), now(), description="new")
    return definitions.change(bench.svc, ADMIN, name, OBJECT, "o", new)


def _add_tags(*names: str, append: bool = False) -> Callable[[Bench, str], Any]:
    return lambda bench, i: definitions.add_tags(bench.svc, ADMIN, i, [_tag(name) for name in names], append=append)


def _rename_tag(to: str) -> Callable[[Bench, str], Any]:
    return lambda bench, i: definitions.change(bench.svc, ADMIN, i, TAG, "t", _tag(to))


def _associate(bench: Bench, name: str) -> Association:
    """With a type that is new as well."""
    return resource_types.add(bench.svc, ADMIN, name, Association(f"OS::A::{name}", now(), now(), prefix="n_"))


def _associate_in_another_case(bench: Bench, name: str) -> Association:
    """With a type that databases may take for one that is there."""
    return resource_types.add(bench.svc, ADMIN, name, Association("os::t", now(), now()))


def _without_types(bench: Bench) -> str:
    name = _with_definitions(bench)
    resource_types.remove(bench.svc, ADMIN, name, "OS::T")
    return name


def _has_one_type(bench: Bench, name: str, answer: Association) -> bool:
    return answer.resource_type.lower() == "os::t" and _have(bench, name, links=answer.resource_type)


def _stage(bench: Bench, image_id: str) -> None:
    imports.stage(bench.svc, ALICE, image_id, Pieces([b"some ", b"data"]), size=9)


def _is_staged(bench: Bench, image_id: str, _: Any) -> bool:
    """Only staged data waits: the job of nobody."""
    found = bench.there(image_id)
    if (found.status, found.size, bench.staged(image_id), backlog(bench.app)) != ("uploading", 9, True, 1):
        return False
    lifecycle.delete(bench.svc, ALICE, image_id)
    _work_off(bench)
    bench.told()
    return True


def _import(bench: Bench, image_id: str) -> None:
    asked = {"method": {"name": imports.GLANCE_DIRECT}}
    imports.start(bench.svc, ALICE, image_id, imports.Request(imports.GLANCE_DIRECT, asked, stores=["two"]))


def _work_off(bench: Bench) -> None:
    runner = Runner(bench.svc, 60)
    until(lambda: runner.run_due_jobs() + runner.transfers + backlog(bench.app) == 0)


_UPLOAD = "update prepare upload activate update"
_ADDED = "update task.create task.processing task.success update"
_GIVEN = Given("sha512", hashlib.sha512(b"some data").hexdigest())

CASES = {
    "create": Case(lambda _: str(uuid.uuid4()), _create, _created, told="create"),
    "replace a name": Case(
        Bench.queued, _update(Change("replace", "name", "n")), lambda bench, i, _: bench.there(i).name == "n"
    ),
    "remove a property": Case(
        lambda bench: bench.queued(properties={"p": "1", "q": "2"}), _update(Change("remove", "p")), _has(q="2")
    ),
    "add a property, strictly": Case(Bench.queued, _update(Change("add", "p", "1", strict_add=True)), _has(p="1")),
    "add a tag": Case(
        Bench.queued,
        lambda bench, i: lifecycle.add_tag(bench.svc, ALICE, i, "t"),
        lambda bench, i, _: bench.there(i).tags == ("t",),
    ),
    "remove a tag": Case(
        lambda bench: bench.queued(tags=("t", "u")),
        lambda bench, i: lifecycle.remove_tag(bench.svc, ALICE, i, "t"),
        lambda bench, i, _: bench.there(i).tags == ("u",),
    ),
    "deactivate": Case(
        Bench.active,
        lambda bench, i: lifecycle.deactivate(bench.svc, ADMIN, i),
        lambda bench, i, _: bench.there(i).status == "deactivated",
    ),
    "delete a queued image": Case(Bench.queued, _delete, _is_gone, told="delete"),
    "delete": Case(Bench.active, _delete, _is_gone, told="delete"),
    "the end of a delete": Case(Bench.active, _delete, _is_gone, skip=1, told="delete"),
    "remove a copy": Case(_two_copies, lambda bench, i: stores.remove_copy(bench.svc, ADMIN, "two", i), _one_copy),
    "add a member": Case(
        Bench.queued,
        lambda bench, i: sharing.add(bench.svc, ALICE, i, "blue"),
        lambda bench, i, _: bench.members(i) == ["blue"],
        told="member.create",
    ),
    "remove a member": Case(
        _with_a_member,
        lambda bench, i: sharing.remove(bench.svc, ALICE, i, "blue"),
        lambda bench, i, _: bench.members(i) == [],
        told="member.delete",
    ),
    "a member's answer": Case(
        _with_a_member,
        lambda bench, i: sharing.set_status(bench.svc, ADMIN, i, "blue", "accepted"),
        lambda bench, i, answer: bench.members(i) == ["blue"] and answer.status == "accepted",
        told="member.update",
    ),
    "the intent of an upload": Case(Bench.queued, _upload, _is_active, told=_UPLOAD),
    "a note of an upload": Case(Bench.queued, _upload, _is_active, skip=1, told=_UPLOAD),
    "the end of an upload": Case(Bench.queued, _upload, _is_active, skip=2, told=_UPLOAD),
    "add a location": Case(Bench.queued, _add_location(None), _took_over, told=_ADDED),
    "add a location with a hash": Case(Bench.queued, _add_location(_GIVEN), _took_over, told=_ADDED),
    "the end of its hashing": Case(Bench.queued, _add_location(None), _took_over, skip=2, told=_ADDED),
    "the end of its comparison": Case(Bench.queued, _add_location(_GIVEN), _took_over, skip=2, told=_ADDED),
    "the end of one that fails": Case(
        Bench.queued,
        _add_location(Given("sha512", "ab" * 64)),
        _is_queued,
        skip=2,
        told=_ADDED.replace("success", "failure"),
    ),
    "create a namespace": Case(
        lambda _: str(uuid.uuid4()),
        lambda bench, i: namespaces.create(bench.svc, ADMIN, _namespace(i)),
        lambda bench, i, _: _have(bench, i),
        told=" ".join(
            f"metadef_{one}.create" for one in ("namespace", "resource_type", "property", "object", "tag", "tag")
        ),
    ),
    "replace a namespace": Case(
        _with_definitions,
        lambda bench, i: _replace_namespace(bench, i, description="new", protected=True),
        lambda bench, i, _: _have(bench, i) and namespaces.show(bench.svc, ADMIN, i).namespace.description == "new",
        told="metadef_namespace.update",
    ),
    "rename a namespace": Case(
        _with_definitions,
        lambda bench, i: _replace_namespace(bench, i, name=f"new {i}"),
        lambda bench, i, _: _have(bench, f"new {i}") and not _there(bench, i),
        told="metadef_namespace.update",
    ),
    "delete a namespace": Case(
        _with_definitions,
        lambda bench, i: namespaces.delete(bench.svc, ADMIN, i),
        lambda bench, i, _: not _there(bench, i),
        told="metadef_namespace.delete",
    ),
    "add an object": Case(
        _with_definitions,
        _add_object,
        lambda bench, i, _: _have(bench, i, objects="o new"),
        told="metadef_object.create",
    ),
    "replace an object": Case(
        _with_definitions,
        _replace_object,
        lambda bench, i, _: definitions.show(bench.svc, ADMIN, i, OBJECT, "o").description == "new",
        told="metadef_object.update",
    ),
    "remove a metadef property": Case(
        _with_definitions,
        lambda bench, i: definitions.remove(bench.svc, ADMIN, i, PROPERTY, "p"),
        lambda bench, i, _: _have(bench, i, properties=""),
        told="metadef_property.delete",
    ),
    "remove all objects": Case(
        _with_definitions,
        lambda bench, i: definitions.clear(bench.svc, ADMIN, i, OBJECT),
        lambda bench, i, _: _have(bench, i, objects=""),
        told="metadef_namespace.delete_objects",
    ),
    "rename a metadef tag": Case(
        _with_definitions,
        _rename_tag("new"),
        lambda bench, i, _: _have(bench, i, tags="new u"),
        told="metadef_tag.update",
    ),
    "rename a metadef tag to another case": Case(
        _with_definitions,
        _rename_tag("T"),
        lambda bench, i, _: _have(bench, i, tags="T u"),
        told="metadef_tag.update",
    ),
    "replace all tags": Case(
        _with_definitions,
        _add_tags("a", "b"),
        lambda bench, i, _: _have(bench, i, tags="a b"),
        told="metadef_tag.create metadef_tag.create",
    ),
    "append tags": Case(
        _with_definitions,
        _add_tags("a", "b", append=True),
        lambda bench, i, _: _have(bench, i, tags="t u a b"),
        told="metadef_tag.create metadef_tag.create",
    ),
    "associate with a type": Case(
        _with_definitions,
        _associate,
        lambda bench, i, _: _have(bench, i, links=f"OS::A::{i} OS::T"),
        told="metadef_resource_type.create",
    ),
    "associate with a type of another case": Case(
        _without_types, _associate_in_another_case, _has_one_type, told="metadef_resource_type.create"
    ),
    "dissociate from a type": Case(
        _with_definitions,
        lambda bench, i: resource_types.remove(bench.svc, ADMIN, i, "OS::T"),
        lambda bench, i, _: _have(bench, i, links=""),
        told="metadef_resource_type.delete",
    ),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", CASES)
def test_the_change_is_made_once_and_answered_with_success(bench: Bench, name: str, how: str) -> None:
    case = CASES[name]
    image_id = case.prepare(bench)
    bench.told()
    bench.renew()
    bench.proxy.arm(how, case.skip)
    answer = case.ask(bench, image_id)
    assert bench.proxy.cuts == 1
    assert case.right(bench, image_id, answer)
    assert bench.told() == case.told.split()
    assert backlog(bench.app) == 0


@pytest.mark.parametrize("how", HOW)
def test_an_image_in_use_is_restored_once_and_the_client_told(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = bench.active()
    before = bench.there(image_id)

    def in_use(*_: Any, **__: Any) -> None:
        raise errors.InUse("a clone depends on it", "one")

    monkeypatch.setattr(FileStore, "delete", in_use)
    bench.proxy.arm(how, 1)
    with pytest.raises(errors.Conflict):
        lifecycle.delete(bench.svc, ALICE, image_id)
    after = bench.there(image_id)
    assert bench.proxy.cuts == 1
    assert (after.status, after.locations) == (before.status, before.locations)
    assert bench.files(image_id) == 1
    assert backlog(bench.app) == 0


@pytest.mark.parametrize("how", HOW)
def test_a_job_is_claimed_once_and_done(bench: Bench, how: str) -> None:
    image_id = bench.queued()
    when = bench.svc.now()

    def orphan(tx: Any) -> db_jobs.Job:
        db_images.move(tx, image_id, "queued", "saving", now=when)
        return db_jobs.submit(tx, data.KIND, image_id, {"store": "one"})

    bench.app.db.write(orphan)
    bench.proxy.arm(how)
    runner, done, end = Runner(bench.svc, 60), 0, time.monotonic() + 5
    while backlog(bench.app) and time.monotonic() < end:
        done += runner.run_due_jobs()
    assert done == 1
    found = bench.there(image_id)
    assert (bench.proxy.cuts, found.status, backlog(bench.app)) == (1, "queued", 0)


# --- imports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_data_is_staged_once_whichever_answer_gets_lost(bench: Bench, how: str) -> None:
    cuts = 0
    while cuts < 20:
        image_id = bench.queued()
        bench.renew()
        bench.proxy.arm(how, cuts)
        _stage(bench, image_id)
        assert _is_staged(bench, image_id, None)
        if not bench.proxy.cuts:
            break
        cuts += 1
    assert 3 <= cuts < 20


@pytest.mark.parametrize("how", ["before", "late"])
def test_an_import_is_made_once_whichever_answer_gets_lost(bench: Bench, how: str) -> None:
    bench.told()
    cuts = 0
    while cuts < 40:
        image_id = bench.queued()
        _stage(bench, image_id)
        bench.told()
        bench.renew()
        bench.proxy.arm(how, cuts)
        _import(bench, image_id)
        _work_off(bench)
        is_over = not bench.proxy.cuts
        bench.proxy.arm("")
        found = bench.there(image_id)
        assert (found.status, found.size, bench.files(image_id), bench.staged(image_id)) == ("active", 9, 1, False)
        assert [place.store for place in found.locations] == ["two"]
        assert (found.properties[imports.IMPORTING], found.properties[imports.FAILED]) == ("", "")
        told = Counter(bench.told())
        assert (told["upload"], told["activate"], told["task.success"], told["task.failure"]) == (1, 1, 1, 0)
        if is_over:
            break
        cuts += 1
    assert 10 <= cuts < 40


@pytest.mark.parametrize("gives_up", [False, True])
@pytest.mark.parametrize("moment", ["waits", "runs", "done"])
def test_data_whose_staging_is_in_doubt_may_be_imported_meanwhile(
    bench: Bench, moment: str, gives_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever staged it takes nothing away from the import, be it that it asks again, or that it gives the data up."""
    image_id, store, runner = bench.queued(), bench.svc.stores.get("two"), Runner(bench.svc, 60)
    begun, reached, free = threading.Event(), threading.Event(), threading.Event()
    begin, back_off, give_up = store.begin, Database._back_off, data.give_up

    def begins(*given: Any, **more: Any) -> Any:
        reached.set()
        assert free.wait(60)
        return begin(*given, **more)

    def import_() -> None:
        if bench.proxy.cuts and not begun.is_set():
            begun.set()
            until(lambda: bench.there(image_id).size == 9)
            _import(bench, image_id)
            if moment == "done":
                free.set()
                _work_off(bench)
            if moment == "runs":
                runner.run_due_jobs()
                assert reached.wait(30)

    def again(*given: Any) -> bool:
        if gives_up:
            return not bench.proxy.cuts and back_off(*given)
        import_()
        return back_off(*given)

    def given_up(*given: Any) -> None:
        with monkeypatch.context() as reachable:
            reachable.setattr(Database, "_back_off", back_off)
            import_()
            give_up(*given)

    monkeypatch.setattr(store, "begin", begins)
    monkeypatch.setattr(Database, "_back_off", again)
    monkeypatch.setattr(data, "give_up", given_up)
    bench.proxy.arm("late", 2)
    with contextlib.suppress(errors.Busy) if gives_up else contextlib.nullcontext():
        _stage(bench, image_id)
    monkeypatch.setattr(Database, "_back_off", back_off)
    import_()  # if the COMMIT came so early that there was no doubt
    free.set()
    until(lambda: not runner.transfers)
    _work_off(bench)
    found = bench.there(image_id)
    assert (found.status, bench.files(image_id), bench.staged(image_id)) == ("active", 1, False)


@pytest.mark.parametrize("how", HOW)
def test_staged_data_whose_fate_nobody_knows_is_kept_if_and_only_if_its_image_waits_for_it(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id, back_off = bench.queued(), Database._back_off
    monkeypatch.setattr(Database, "_back_off", lambda *given: not bench.proxy.cuts and back_off(*given))
    bench.proxy.arm(how, 2)
    if how == "after":
        _stage(bench, image_id)
    else:
        with pytest.raises(errors.Busy):
            _stage(bench, image_id)
    assert bench.proxy.cuts == 1
    monkeypatch.undo()
    if how == "before":
        found = bench.there(image_id)
        assert (found.status, bench.staged(image_id), backlog(bench.app)) == ("queued", False, 0)
    else:
        assert _is_staged(bench, image_id, None)


# --- when nothing is tried again -------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_an_upload_whose_fate_nobody_knows_keeps_its_bytes_if_and_only_if_its_image_is_active(
    server: Server, tmp_path: Path, how: str
) -> None:
    for bench in _benches(server, tmp_path, "db_max_retries = 0\n"):
        image_id = bench.queued()
        bench.proxy.arm(how, CASES["the end of an upload"].skip)
        if how == "after":
            _upload(bench, image_id)
        else:
            with pytest.raises(errors.Busy):
                _upload(bench, image_id)
        found = bench.there(image_id)
        active = how != "before"
        assert bench.proxy.cuts == 1
        assert b"INSERT INTO image_locations " in bench.proxy.cut
        assert (found.status, bench.files(image_id)) == (("active", 1) if active else ("queued", 0))
        assert backlog(bench.app) == 0


def test_connections_that_the_server_closed_are_replaced_without_a_word_to_clients(
    server: Server, bench: Bench
) -> None:
    name = bench.app.db.url.database
    assert name
    image_id = bench.queued()
    for number in range(3):
        assert lifecycle.list_(bench.svc, ALICE, Query(limit=1000))[0]
        assert server.connections(name) > 0
        server.hang_up(name)
        lifecycle.add_tag(bench.svc, ALICE, image_id, f"t{number}")
    assert bench.there(image_id).tags == ("t0", "t1", "t2")
