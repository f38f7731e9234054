"""Every route, asked by every kind of caller of every kind of image and namespace: the answer is what the rules in
`matrix.py` say."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from falcon import testing

from calotype.api.routes import ROUTES
from calotype.app import App
from calotype.db.engine import Database
from calotype.policy import RULES
from tests.inprocess import CONF, parts
from tests.keystone import Keystone
from tests.policy import matrix
from tests.policy.matrix import FETCHES, KNOWN, NAMESPACES, PERSONAS, ROWS, TAKEN, Persona, World, cells, looks, sees
from tests.support import PASSWORD, running, write_users

BY = {persona.name: persona for persona in KNOWN}
CATALOGUE = "/v2/metadefs/namespaces"
BY_TASK = ("/v2/tasks", 201)
USERS = {persona.name: (persona.project, persona.roles) for persona in KNOWN}


def basic(persona: Persona) -> dict[str, str]:
    """Credentials; wrong ones for whoever is called so."""
    if persona.name == "none":
        return {}
    name, password = ("member", "wrong") if not persona.known else (persona.name, PASSWORD)
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def method(cell: matrix.Cell) -> str:
    """The method of an import; empty for other requests."""
    return str(cell.ask.body["method"]["name"]) if cell.path.endswith("/import") else ""


def in_process(app: App, credentials: Callable[[Persona], Mapping[str, str]] = basic) -> matrix.Send:
    """Through the WSGI application of a service in this process."""
    client = testing.TestClient(app.wsgi)

    def send(p: Persona, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        given = {**credentials(p), **headers}
        answer = client.simulate_request(method, path, query_string=query, headers=given, body=body or None)
        return answer.status_code, answer.content

    return send


@contextmanager
def world_in(path: Path, conf: str = CONF, **arguments: Any) -> Iterator[tuple[World, App]]:
    """A service in this process, and its images."""
    write_users(path / "users.json", USERS)
    with parts(path, f"sqlite:///{path}/calotype.db", conf + FETCHES) as app:
        stores = {name: path / name for name in ("one", "two", "staging")}
        world = World(app.db, path / "calotype.db", stores, **arguments)
        yield world, app
        world.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, matrix.Send]]:
    with world_in(tmp_path_factory.mktemp("matrix")) as (world, app):
        yield world, in_process(app)


def test_every_route_has_a_row_and_nothing_else_has() -> None:
    assert set(ROWS) == {(route.method, route.path) for route in ROUTES}
    assert all(ROWS.values())


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_caller_is_answered_as_the_rules_say(route: Any, here: tuple[World, matrix.Send]) -> None:
    world, send = here
    wrong = [world.ask(cell, send) for cell in cells(world.images, routes=[(route.method, route.path)])]
    assert wrong
    assert [one for one in wrong if one] == []


@pytest.mark.parametrize("persona", KNOWN, ids=lambda persona: persona.name)
def test_lists_hold_what_can_be_shown_and_nothing_else(persona: Persona, here: tuple[World, matrix.Send]) -> None:
    world, send = here
    known = {image.id for image in world.images}
    assert known
    shown = {one for one in known if send(persona, "GET", f"/v2/images/{one}", {}, b"")[0] == 200}
    listed: list[str] = []
    for hidden in ("true", "false"):
        query = f"visibility=all&member_status=all&os_hidden={hidden}&limit=1000"
        status, found = send(persona, "GET", f"/v2/images?{query}", {}, b"")
        assert status == (200 if persona.has("reader") else 403)
        listed += [entry["id"] for entry in json.loads(found)["images"]] if status == 200 else []
    assert sorted(listed) == sorted(shown)
    assert shown == {image.id for image in world.images if sees(persona, image)}


@pytest.mark.parametrize("persona", KNOWN, ids=lambda persona: persona.name)
def test_lists_of_namespaces_hold_what_can_be_shown_and_nothing_else(
    persona: Persona, here: tuple[World, matrix.Send]
) -> None:
    _, send = here
    known = [one.name for one in (*NAMESPACES, TAKEN)]
    shown = {one for one in known if send(persona, "GET", f"{CATALOGUE}/{one}", {}, b"")[0] == 200}
    assert shown == {one.name for one in (*NAMESPACES, TAKEN) if looks(persona, one)}
    status, found = send(persona, "GET", CATALOGUE, {}, b"")
    assert status == (200 if persona.has("reader") else 404)
    listed = [one["namespace"] for one in json.loads(found)["namespaces"]] if status == 200 else []
    assert sorted(listed) == sorted(shown)


def test_who_may_not_see_a_namespace_hears_the_same_as_of_one_that_is_not_there(
    here: tuple[World, matrix.Send],
) -> None:
    world, send = here
    hidden = next(one for one in NAMESPACES if not looks(BY["other"], one))
    asked = [cell for cell in cells((), [BY["other"]]) if cell.namespace == hidden and cell.wanted == 404]
    assert len(asked) > 30
    for cell in asked:
        method, target, headers, body = world.request(cell)
        absent = target.replace(hidden.name, "x" * len(hidden.name))
        status, found = send(cell.persona, method, target, headers, body)
        known = send(cell.persona, method, absent, headers, body)
        assert (status, found.replace(hidden.name.encode(), b"x" * len(hidden.name))) == known, cell


def test_with_keystone_every_caller_is_answered_the_same(tmp_path: Path, keystone: Keystone) -> None:
    for persona in KNOWN:
        keystone.add(f"matrix-{persona.name}", persona.project, persona.roles)
    tokens = {persona: keystone.token(f"matrix-{persona.name}", persona.project) for persona in KNOWN}

    def credentials(persona: Persona) -> dict[str, str]:
        return {} if persona.name == "none" else {"X-Auth-Token": tokens.get(persona, "gAAAAAwrong")}

    # Images of one state: what Keystone decides is who asks, and the other states are asked about above.
    with world_in(tmp_path, CONF + keystone.conf(), states=("active",), project=keystone.project) as (
        world,
        app,
    ):
        send = in_process(app, credentials)
        # And one request to each route, of one image by who is not known: Keystone is asked anew of each wrong token.
        few = [cell for cell in cells(world.images) if cell.number == 0]
        wrong = [world.ask(cell, send) for cell in few if cell.persona.known or cell.image in (None, world.images[0])]
    assert len(wrong) > 1_500
    # After a 401 clients take a new token and repeat an upload with what is left of its data, so it gets a 403.
    uploads = [one for one in wrong if one]
    assert [one.partition(" by wrong ")[0] for one in uploads] == [
        f"PUT /v2/images/{{image_id}}/{name} (request 0)" for name in ("file", "stage")
    ]
    assert all(one.endswith("answered 403, not 401") for one in uploads)


def test_anonymous_access_is_read_only_and_shows_what_the_rules_show(tmp_path: Path) -> None:
    conf = CONF.replace("[DEFAULT]", "[DEFAULT]\nallow_anonymous_access = true")
    assert conf != CONF
    with world_in(tmp_path, conf, states=("active", "queued")) as (world, app):
        send = in_process(app)
        wrong = [world.ask(cell, send) for cell in cells(world.images, [matrix.ANONYMOUS])]
    assert wrong
    assert [one for one in wrong if one] == []


@pytest.mark.slow
def test_with_rules_that_permit_everything_only_the_owner_and_administrators_change_an_image(tmp_path: Path) -> None:
    """The floor, asked from outside. What a member itself does with its membership is no change of the image,
    and services may add the location of what they made."""
    permit = {name: "@" for name in RULES if name != "context_is_admin"}
    (tmp_path / "policy.yaml").write_text(json.dumps(permit))
    with world_in(tmp_path, states=("active", "queued", "twice")) as (world, app):
        send = in_process(app)
        members = f"/v2/images/{next(image.id for image in world.images if image.visibility == 'shared')}/members"
        # Nor does a member learn of the others, or anybody answer for it.
        _, listed = send(BY["pending"], "GET", members, {}, b"")
        assert [entry["member_id"] for entry in json.loads(listed)["members"]] == ["pending"]
        assert send(BY["pending"], "GET", f"{members}/accepted", {}, b"")[0] == 404
        for name, status in (("pending", 404), ("manager", 403), ("member", 403)):
            assert send(BY[name], "PUT", f"{members}/accepted", {}, b'{"status": "rejected"}')[0] == status
        assert not world.changed()
        writes = [
            cell
            for cell in cells(world.images, KNOWN)
            if cell.writes and cell.image and not cell.persona.has("admin") and cell.persona.project != "red"
            if not (cell.method == "PUT" and "member_id" in cell.path and cell.persona.project == "accepted")
            if not (cell.path.endswith("/locations") and cell.persona.has("service"))
            # A copy in another store is no change of the image; what Keystone's catalog lacks is told to everybody.
            if method(cell) not in ("copy-image", "glance-download")
        ]
        for cell in writes:
            status, _ = send(cell.persona, *world.request(cell))
            assert status in (403, 404), cell
            assert not world.changed(), cell
        # It is the floor that refuses them: with these rules a reader of the owner's project may do it all.
        mine = [cell for cell in cells(world.images[:1], [BY["reader"]]) if cell.writes]
        allowed = [send(cell.persona, *world.request(cell))[0] for cell in mine]
    assert {200, 204} <= set(allowed)
    assert len(writes) > 1_000


def test_with_rules_that_permit_everything_what_is_nobodys_is_for_administrators_and_those_they_gave_it(
    tmp_path: Path,
) -> None:
    """Where it is private or shared; what is public, or for the community, is for all."""
    permit = {name: "@" for name in RULES if name != "context_is_admin"}
    (tmp_path / "policy.yaml").write_text(json.dumps(permit))
    with world_in(tmp_path, states=("nobody's",)) as (world, app):
        send = in_process(app)
        hidden = [image for image in world.images if image.visibility in ("private", "shared")]
        given = {image.id for image in hidden if image.visibility == "shared"}
        asked = [cell for cell in cells(hidden, KNOWN) if cell.image in hidden and not cell.persona.has("admin")]
        asked = [cell for cell in asked if method(cell) != "glance-download"]
        for cell in asked:
            if cell.persona.project in matrix.MEMBERS and cell.image.visibility == "shared":
                continue
            status, _ = send(cell.persona, *world.request(cell))
            assert status == 404, cell
        for persona in KNOWN:
            _, answer = send(persona, "GET", "/v2/images?visibility=all&member_status=all&limit=1000", {}, b"")
            listed = {image["id"] for image in json.loads(answer)["images"]} & {image.id for image in hidden}
            mine = given if persona.project in matrix.MEMBERS else set()
            assert listed == ({image.id for image in hidden} if persona.has("admin") else mine), persona
    assert len(asked) > 300


@contextmanager
def ruled(path: Path, rules: Mapping[str, str], more: str = "") -> Iterator[Callable[..., Any]]:
    """The status of answers of a service with a policy file; what a request changes is put back."""
    (path / "policy.yaml").write_text(json.dumps(rules))
    with world_in(path, CONF + more, states=("queued",)) as (world, app):
        send = in_process(app)

        def ask(name: str, method: str, target: str = "", body: Any = None) -> int:
            payload = b"" if body is None else json.dumps(body).encode()
            status, _ = send(BY[name], method, CATALOGUE + target, {}, payload)
            assert status < 300 or not world.changed(), (name, method, target)
            world.restore()
            return status

        yield ask


def test_who_is_made_an_administrator_of_definitions_writes_what_it_sees_and_deletes_nothing_that_is_protected(
    tmp_path: Path,
) -> None:
    with ruled(tmp_path, {"metadef_admin": "role:member"}) as ask:
        assert ask("member", "POST", body=matrix._NESTED) == 201
        assert ask("reader", "POST", body=matrix._NESTED) == 403
        assert ask("service", "POST", body=matrix._NESTED) == 404
        for target, mine in (("/public-red", 1), ("/private-red", 1), ("/public-blue", 1), ("/private-blue", 0)):
            for method, rest, body, success in (
                ("PUT", "", {"namespace": "new"}, 200),
                ("POST", "/tags/new", None, 201),
                ("POST", "/objects", {"name": "new"}, 201),
                ("PUT", "/properties/p", {"name": "new", "title": "x", "type": "string"}, 200),
                ("POST", "/resource_types", {"name": "OS::New"}, 201),
                ("DELETE", "/resource_types/OS::Thing", None, 204),
                ("DELETE", "/objects", None, 204),
                ("DELETE", "", None, 204),
            ):
                assert ask("member", method, target + rest, body) == (success if mine else 404), (method, target + rest)
                assert ask("reader", method, target + rest, body) == (403 if mine else 404)
        for rest in ("", "/tags", "/objects", "/properties", "/tags/t", "/objects/o", "/properties/p"):
            assert ask("member", "DELETE", "/public-red-protected" + rest) == 403
        assert ask("member", "DELETE", f"/public-red-protected/resource_types/{matrix.TYPE}") == 403
        assert ask("member", "PUT", "/public-red-protected", {"namespace": "new", "protected": False}) == 200


def test_single_rules_give_and_take_what_they_are_about_and_nothing_else(tmp_path: Path) -> None:
    rules = {
        "add_metadef_tag": "role:member",
        "delete_metadef_tags": "role:member",
        "remove_metadef_property": "role:member and project_id:%(project_id)s",
        "get_metadef_objects": "!",
        "add_metadef_object": "!",
        "add_metadef_namespace": "role:admin or (role:member and project_id:%(project_id)s)",
        "get_metadef_resource_type": "role:admin",
    }
    with ruled(tmp_path, rules) as ask:
        assert ask("member", "POST", "/public-blue/tags/new") == 201
        assert ask("member", "POST", "/private-blue/tags/new") == 404
        assert ask("member", "POST", "/public-blue/tags", {"tags": [{"name": "new"}]}) == 403
        assert ask("member", "DELETE", "/public-blue/tags/t") == 403
        assert ask("member", "DELETE", "/public-blue/tags") == 403  # it needs the right to delete the namespace, too
        assert ask("member", "DELETE", "/private-red/properties/p") == 204
        assert ask("member", "DELETE", "/public-blue/properties/p") == 403
        # Who may not list objects is not shown them with their namespace.
        assert ask("admin", "GET", "/public-red/objects") == 403
        assert ask("admin", "GET", "/public-red") == 403
        assert ask("admin", "GET", "/public-red/objects/o") == 200
        assert ask("admin", "GET") == 200
        assert ask("admin", "POST", body={"namespace": "new"}) == 201
        assert ask("admin", "POST", body=matrix._NESTED) == 403
        assert ask("member", "POST", body={"namespace": "new"}) == 201
        assert ask("member", "POST", body={"namespace": "new", "owner": "blue"}) == 403
        assert ask("member", "POST", body={"namespace": "new", "tags": [{"name": "t"}]}) == 201
        assert ask("member", "POST", body={"namespace": "new", "properties": {"p": matrix._PROPERTY}}) == 403
        assert ask("member", "GET", "/public-red/properties/p") == 200
        assert ask("member", "GET", "/public-red/properties/pre_p?resource_type=OS::Thing") == 403
        assert ask("admin", "GET", "/public-red/properties/pre_p?resource_type=OS::Thing") == 200


def test_who_may_not_look_at_a_namespace_hears_404_whatever_else_the_rules_permit(tmp_path: Path) -> None:
    denied = {"get_metadef_namespace": "role:admin", "modify_metadef_namespace": "role:admin"}
    with ruled(tmp_path, denied) as ask:
        assert ask("member", "GET", "/public-red") == 404
        assert ask("member", "PUT", "/public-red", {"namespace": "new"}) == 404
        assert ask("member", "POST", body={"namespace": "new"}) == 404
        assert ask("member", "GET", "/public-red/objects") == 200
        assert ask("admin", "GET", "/public-red") == 200


def test_lists_leave_out_the_namespaces_that_a_rule_denies(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text('"get_metadef_namespace": "role:admin or project_id:%(project_id)s"')
    with world_in(tmp_path, states=("queued",)) as (_, app):
        send = in_process(app)
        for name, seen in (("member", "red"), ("other", "blue"), ("admin", "")):
            _, found = send(BY[name], "GET", CATALOGUE, {}, b"")
            listed = [one["namespace"] for one in json.loads(found)["namespaces"]]
            assert sorted(listed) == sorted(one.name for one in (*NAMESPACES, TAKEN) if seen in one.owner)


def test_former_defaults_show_public_namespaces_to_everybody_and_change_nothing_else(tmp_path: Path) -> None:
    with ruled(tmp_path, {}, "[oslo_policy]\nenforce_new_defaults = false\n") as ask:
        for name in ("service", "reader", "other"):
            for rest in ("", "/objects", "/objects/o", "/properties", "/tags/t", "/resource_types"):
                assert ask(name, "GET", "/public-red" + rest) == 200
            assert ask(name, "GET", "/private-admin") == 404
            assert ask(name, "GET") == 200
            assert ask(name, "POST", body={"namespace": "new"}) == 403
            assert ask(name, "DELETE", "/public-red") == 403
            assert ask(name, "DELETE", "/private-admin") == 404


@pytest.mark.slow
def test_a_running_service_answers_as_its_application_does(state: Path) -> None:
    """Over sockets, with passwords; fewer kinds of images."""
    conf = CONF.format(path=state) + FETCHES
    state.mkdir(mode=0o700, parents=True)
    write_users(state / "users.json", USERS)
    with running(state, conf, users=False) as service:
        database = Database(service.database_url)
        world = World(
            database,
            state / "calotype.db",
            {name: state / name for name in ("one", "two", "staging")},
            ("active", "queued"),
        )
        session = requests.Session()
        session.trust_env = False

        def send(p: Persona, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
            url, given = service.url + target, {**basic(p), **headers}
            answer = session.request(method, url, data=body, headers=given, timeout=60, allow_redirects=False)
            return answer.status_code, answer.content

        # An import that has begun goes on here, while its records are put back.
        asked = [cell for cell in cells(world.images) if cell.wanted != 202 and (cell.path, cell.wanted) != BY_TASK]
        wrong = [world.ask(cell, send) for cell in asked[:: len(PERSONAS) // 2 + 2]]
        world.close()
        database.close()
    assert len(wrong) > 100
    assert [one for one in wrong if one] == []
