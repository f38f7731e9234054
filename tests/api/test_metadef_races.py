"""Eight clients at once in the catalogue of metadata definitions: names are given once, nothing is half there, and
namespaces that share resource types get into each other's way without anybody hearing of it."""

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.engine import Database
from tests.api.test_races import RACERS, Move, race, statuses
from tests.support import Client, Service

TREE = "/v2/metadefs/namespaces"
DEFINITION = {"title": "T", "type": "string"}
_numbers = itertools.count(1)

again = pytest.mark.parametrize("time", range(3), ids=lambda number: f"#{number}")


@pytest.fixture(scope="module")
def racers(service: Service) -> list[Client]:
    clients = [service.client("admin") for _ in range(RACERS)]
    for client in clients:
        assert client.get(f"{TREE}?limit=1").status_code == 200
    return clients


@pytest.fixture
def names(admin: Client) -> Iterator[list[str]]:
    """Names of namespaces that are not there yet, and are not there afterwards."""
    found = [f"race {next(_numbers)}" for _ in range(RACERS)]
    yield found
    for name in found:
        assert admin.request("DELETE", f"{TREE}/{name}").status_code in (204, 404)


def send(method: str, *names: str, body: Any = None) -> Move:
    where = "/".join((TREE, *(quote(name, safe=":") for name in names)))
    return lambda client: client.request(method, where, json=body)


def add(admin: Client, name: str, **values: Any) -> None:
    made = send("POST", body={"namespace": name, **values})(admin)
    assert made.status_code == 201, made.text


def show(admin: Client, name: str) -> dict[str, Any]:
    found = send("GET", name)(admin)
    assert found.status_code == 200, found.text
    return dict(found.json())


def known(admin: Client) -> list[str]:
    return [one["name"] for one in admin.get("/v2/metadefs/resource_types").json()["resource_types"]]


@again
def test_a_name_is_given_to_one_with_all_of_what_it_brings(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    bodies = [
        {"namespace": names[0], "tags": [{"name": f"{n}"}], "objects": [{"name": f"{n}"}], "description": f"{n}"}
        for n in range(RACERS)
    ]
    answers = race(racers, [send("POST", body=body) for body in bodies])
    assert statuses(answers) == {201: 1, 409: RACERS - 1}
    winner = next(answer.json() for answer in answers if answer.status_code == 201)
    found = show(admin, names[0])
    assert found["description"] == winner["description"]
    assert [one["name"] for one in found["tags"] + found["objects"]] == [winner["description"]] * 2


@again
def test_of_two_that_take_one_name_one_has_it(racers: list[Client], admin: Client, names: list[str], time: int) -> None:
    rest = names[1:]
    for name in rest:
        add(admin, name, description=name)
    answers = race(racers, [send("PUT", name, body={"namespace": names[0], "description": name}) for name in rest])
    assert statuses(answers) == {200: 1, 409: len(rest) - 1}
    winner = show(admin, names[0])["description"]
    assert [send("GET", name)(admin).status_code for name in rest] == [404 if name == winner else 200 for name in rest]


@again
def test_two_that_want_each_others_names_are_told_that_they_are_taken(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    one, other = names[:2]
    add(admin, one)
    add(admin, other)
    answers = race(racers, [send("PUT", one, body={"namespace": other}), send("PUT", other, body={"namespace": one})])
    # Both collide, as each name is taken until its owner has let it go.
    assert statuses(answers) == {409: 2}
    assert {show(admin, one)["namespace"], show(admin, other)["namespace"]} == {one, other}


@again
def test_a_resource_type_that_is_new_to_all_of_them_is_added_once(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    for name in names:
        add(admin, name)
    kind = f"OS::Race::{next(_numbers)}"
    answers = race(racers, [send("POST", name, "resource_types", body={"name": kind}) for name in names])
    assert statuses(answers) == {201: RACERS}
    assert known(admin).count(kind) == 1
    for name in names:
        assert [one["name"] for one in show(admin, name)["resource_type_associations"]] == [kind]


@again
def test_namespaces_that_share_new_resource_types_are_all_made_whatever_the_order(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    """Each in another one, which would be a deadlock where rows are locked; PostgreSQL sees it after a second."""
    kinds = [f"OS::Cross::{next(_numbers):04}" for _ in range(6)]
    orders = (kinds[::-1], kinds[1::2] + kinds[::2])
    bodies = [
        {"namespace": name, "resource_type_associations": [{"name": kind} for kind in orders[number % 2]]}
        for number, name in enumerate(names)
    ]
    moves = [send("POST", body=body) for body in bodies]
    assert statuses(race(racers, moves)) == {201: RACERS}
    # Nobody asked for them in this order, in which everybody adds them, so that nobody waits for each other.
    assert [kind for kind in known(admin) if kind in kinds] == sorted(kinds)
    for name in names:
        links = [one["name"] for one in show(admin, name)["resource_type_associations"]]
        assert sorted(links) == sorted(kinds)


@again
def test_what_is_added_to_a_namespace_that_is_deleted_goes_with_it(
    racers: list[Client], admin: Client, names: list[str], service: Service, time: int
) -> None:
    name = names[0]
    add(admin, name, tags=[{"name": "there"}])
    moves = [
        send("DELETE", name),
        send("DELETE", name),
        send("POST", name, "tags", "new"),
        send("POST", name, "tags", body={"tags": [{"name": "a"}]}),
        send("POST", name, "objects", body={"name": "o"}),
        send("POST", name, "properties", body={"name": "p", **DEFINITION}),
        send("POST", name, "resource_types", body={"name": f"OS::Gone::{next(_numbers)}"}),
        send("PUT", name, body={"namespace": name, "description": "new"}),
    ]
    answers = race(racers, moves)
    assert sorted(answer.status_code for answer in answers[:2]) == [204, 404]
    assert {answer.status_code for answer in answers[2:7]} <= {201, 404}
    assert answers[7].status_code in (200, 404)
    assert send("GET", name)(admin).status_code == 404
    database = Database(service.database_url)
    with database.read_once() as tx:
        there = sa.select(tables.metadef_namespaces.c.id)
        for table in (
            tables.metadef_tags,
            tables.metadef_objects,
            tables.metadef_properties,
            tables.metadef_namespace_resource_types,
        ):
            orphans = sa.select(sa.func.count()).select_from(table).where(table.c.namespace_id.not_in(there))
            assert tx.execute(orphans).scalar_one() == 0, table.name
    database.close()


@again
def test_tags_that_are_replaced_by_several_are_those_of_one_of_them(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    name = names[0]
    add(admin, name, tags=[{"name": "old"}, {"name": "older"}])
    sets = [[f"{n}a", f"{n}b", "shared"] for n in range(5)]
    moves = [send("POST", name, "tags", body={"tags": [{"name": one} for one in some]}) for some in sets]
    added = ["new", "newer"]
    answers = race(racers, [*moves, *(send("POST", name, "tags", one) for one in added)])
    assert statuses(answers) == {201: 7}
    left = {one["name"] for one in show(admin, name)["tags"]} - set(added)
    assert sorted(left) in [sorted(some) for some in sets]


@again
def test_of_eight_that_add_one_part_one_does_and_of_eight_that_remove_it_one_does(
    racers: list[Client], admin: Client, names: list[str], time: int
) -> None:
    name = names[0]
    add(admin, name)
    parts = {"objects": {"name": "o"}, "properties": {"name": "p", **DEFINITION}}
    for kind, body in parts.items():
        answers = race(racers, [send("POST", name, kind, body=body)] * RACERS)
        assert statuses(answers) == {201: 1, 409: RACERS - 1}
        answers = race(racers, [send("DELETE", name, kind, body["name"])] * RACERS)
        assert statuses(answers) == {204: 1, 404: RACERS - 1}
    assert statuses(race(racers, [send("POST", name, "tags", "t")] * RACERS)) == {201: 1, 409: RACERS - 1}
    renames = [send("PUT", name, "tags", "t", body={"name": f"t{number}"}) for number in range(RACERS)]
    assert statuses(race(racers, renames)) == {200: 1, 404: RACERS - 1}
    assert len(show(admin, name)["tags"]) == 1
