"""Rules that another server answers: nobody waits for it but who asked, and it is asked about what is decided on."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from oslo_policy import policy as oslo_policy

from calotype import errors, questions
from calotype.api.routes import ROUTES
from calotype.app import App
from calotype.images import lifecycle, sharing
from calotype.images.lifecycle import NewImage
from calotype.metadefs import namespaces
from calotype.model import Change, Definitions, Image, Namespace
from calotype.policy import RULES, image_target
from tests.inprocess import ADMIN, ALICE, BOB, CONF, parts
from tests.policy import matrix
from tests.policy.test_matrix import BY, in_process, world_in
from tests.policy.test_policy import IMAGE, policy
from tests.support import until
from tests.webserver import WebServer, serving

PROTECTED = "".join(f"{operation} = beyond\n" for operation in ("create", "read", "update", "delete"))


class Far(oslo_policy.Check):
    """A kind of check as packages add them, which asks elsewhere. `asked` is called each time."""

    asked: Callable[[Any], None] = staticmethod(lambda target: None)

    def __call__(self, target: Any, creds: Any, enforcer: Any, current_rule: str | None = None) -> bool:
        type(self).asked(target)
        return True


oslo_policy.register("far", Far)


def connections(app: App) -> int:
    """How many of the database are in somebody's hands."""
    return sum(engine.pool.checkedout() for engine in (app.db.reads, app.db.writes))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_no_route_asks_elsewhere_with_a_connection_in_its_hands_and_all_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rules that are what they were, and ask besides."""
    rules = {name: f"({check}) and far:x" if check else "far:x" for name, check in RULES.items()}
    (tmp_path / "policy.yaml").write_text(json.dumps({**rules, "beyond": "far:x"}))
    (tmp_path / "protections").write_text(f"[.*]\n{PROTECTED}")
    more = f"property_protection_file = {tmp_path}/protections\nproperty_protection_rule_format = policies"
    conf = CONF.replace("[DEFAULT]", f"[DEFAULT]\n{more}")
    personas = [BY[name] for name in ("admin", "member", "accepted")]
    with world_in(tmp_path, conf, states=("queued", "twice")) as (world, app):
        held: list[int] = []
        monkeypatch.setattr(Far, "asked", lambda target: held.append(connections(app)))
        send = in_process(app)
        asking = set[tuple[str, str]]()
        some = (None, *matrix.NAMESPACES[:1])
        cells = [one for one in matrix.cells(world.images[2:5], personas) if one.namespace in some]
        for cell in cells:
            held.clear()
            assert world.ask(cell, send) == ""
            assert not any(held), cell
            if held:
                asking.add((cell.method, cell.path))
    assert len(cells) > 300
    open_ = {(route.method, route.path) for route in ROUTES if (route.method, route.path) in matrix.OPEN}
    assert asking == {(route.method, route.path) for route in ROUTES} - open_


@contextmanager
def asked_at(web: WebServer, path: Path, database_url: str, *rules: str) -> Iterator[App]:
    """A service whose administrators may do everything, and whose users may do these things if the server says so."""
    text = {rule: f"role:admin or http://{web.host}:{web.port}/{rule}" for rule in rules}
    (path / "policy.yaml").write_text(json.dumps(text))
    with parts(path, database_url) as app:
        yield app


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as web:
        yield web


def says(web: WebServer, decide: Callable[[dict[str, Any]], bool]) -> Callable[[Any], None]:
    """An answer by what is asked about."""

    def answer(handler: Any) -> None:
        target = json.loads(parse_qs(handler.body.decode())["target"][0])
        word = b"True" if decide(target) else b"False"
        web.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(word), word))(handler)

    return answer


def rename(app: App, ctx: Any, image_id: str, name: str) -> Image:
    return lifecycle.update(app.service, ctx, image_id, [Change("replace", "name", name)])


def test_nobody_else_waits_for_a_rule_and_what_changed_meanwhile_is_decided_on_anew(
    tmp_path: Path, database_url: str, web: WebServer
) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def decide(target: dict[str, Any]) -> bool:
        asked.append(target["name"])
        assert go_on.wait(60)
        return True

    web.files["/modify_image"] = says(web, decide)
    with asked_at(web, tmp_path, database_url, "modify_image") as app, ThreadPoolExecutor(1) as threads:
        image = lifecycle.create(app.service, ALICE, NewImage(name="first"))
        slow = threads.submit(rename, app, ALICE, image.id, "alice's")
        until(lambda: asked == ["first"])
        begun = time.monotonic()
        assert connections(app) == 0
        for number in range(10):
            lifecycle.create(app.service, BOB, NewImage(name=str(number)))
        rename(app, ADMIN, image.id, "second")  # the very image that Alice wants to change
        assert time.monotonic() - begun < 20
        go_on.set()
        assert slow.result().name == "alice's"
        assert asked == ["first", "second"]


def test_what_became_forbidden_while_it_was_decided_is_not_done(
    tmp_path: Path, database_url: str, web: WebServer
) -> None:
    with asked_at(web, tmp_path, database_url, "delete_image", "modify_metadef_namespace", "add_member") as app:
        svc = app.service
        image = lifecycle.create(svc, ALICE, NewImage(name="open"))
        now = svc.now()
        catalogue = Namespace(0, "open", "red", now, now, description="open")
        namespaces.create(svc, ADMIN, Definitions(catalogue))

        def close(target: dict[str, Any]) -> bool:
            """It says yes to what it sees, and that is not so any more when the answer comes."""
            if target.get("name") == "open":
                rename(app, ADMIN, image.id, "closed")
                return True
            if target.get("visibility") == "private" and "namespace" in target:
                namespaces.update(svc, ADMIN, "open", Namespace(0, "open", "blue", now, now, visibility="public"))
                return True
            return False

        web.files |= {f"/{rule}": says(web, close) for rule in ("delete_image", "modify_metadef_namespace")}
        with pytest.raises(errors.Forbidden):
            lifecycle.delete(svc, ALICE, image.id)
        assert lifecycle.show(svc, ALICE, image.id).name == "closed"
        with pytest.raises(errors.Forbidden):
            namespaces.update(svc, ALICE, "open", Namespace(0, "mine", "red", now, now))
        assert namespaces.show(svc, ADMIN, "open").namespace.owner == "blue"
        # Of two members, each is a question of its own.
        seen: list[str] = []
        web.files["/add_member"] = says(web, lambda target: not seen.append(target["name"]))
        for member in ("blue", "green"):
            sharing.add(svc, ALICE, image.id, member)
        assert seen == ["closed"] * 2


def test_a_record_that_changes_all_the_time_is_not_decided_on_for_ever(
    tmp_path: Path, database_url: str, web: WebServer
) -> None:
    with asked_at(web, tmp_path, database_url, "modify_image") as app:
        image = lifecycle.create(app.service, ALICE, NewImage(name="0"))

        def decide(target: dict[str, Any]) -> bool:
            rename(app, ADMIN, image.id, str(int(target["name"]) + 1))
            return True

        web.files["/modify_image"] = says(web, decide)
        with pytest.raises(errors.Busy, match="modify_image"):
            rename(app, ALICE, image.id, "alice's")
        assert lifecycle.show(app.service, ALICE, image.id).name == str(len(web.seen)) == "5"


def test_a_rule_of_a_kind_that_is_not_oslo_policys_own_is_always_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Far, "asked", asked.append)
    rules = policy(tmp_path, '"get_image": "role:none or (not role:none and rule:deep)"\n"deep": "far:x"\n')
    for number in range(3):
        assert rules.allows(ALICE, "get_image", image_target(IMAGE))
        assert len(asked) == number + 1
        assert rules.allows(ALICE, "modify_image", image_target(IMAGE))
    assert len(asked) == 3


def test_who_has_a_connection_and_does_not_give_it_back_asks_nothing(tmp_path: Path, web: WebServer) -> None:
    with asked_at(web, tmp_path, f"sqlite:///{tmp_path}/c.db", "modify_image") as app:
        for one in (app.db.write_once, app.db.read_once):
            with pytest.raises(questions.Deferred), one():
                app.service.policy.check_image(ALICE, "modify_image", IMAGE)
        # Nor where one that is run again is within another.
        with pytest.raises(questions.Deferred), app.db.read_once():
            app.db.snapshot(lambda tx: app.service.policy.check_image(ALICE, "modify_image", IMAGE))
    assert web.seen == []
