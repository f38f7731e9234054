"""Every pair of operations on one image, by two clients each at the same instant.

What they were told, and what is there afterwards, must be explained by calls of the reference model one after another,
in some order; an upload has moments between which others may come. All pairs run with SQLite; with the other databases
each operation beside itself, beside a delete, and some more. `CALOTYPE_RACES=50` runs every pair so many times with each.
"""

import contextlib
import dataclasses
import itertools
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from copy import deepcopy

import pytest
import requests
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.engine import Database
from tests.api.test_races import Move, files_of, race
from tests.model.reference import Answer, Call, World, told
from tests.support import OCTETS, PATCH_21, Client, Service

ROUNDS = int(os.environ.get("CALOTYPE_RACES", "1"))


def replace(name: str, value: object) -> tuple[str, str, object]:
    return "alice", "patch", {"op": "replace", "path": f"/{name}", "value": value}


#: name → user, call and its argument, for each of the two clients. Red owns the image; blue is a member of it.
OPERATIONS: dict[str, tuple[tuple[str, str, object], tuple[str, str, object]]] = {
    "upload": (("alice", "upload", b"one"), ("alice", "upload", b"another")),
    "download": (("alice", "download", None), ("bob", "download", None)),
    "show": (("alice", "show", None), ("bob", "show", None)),
    "list": (("alice", "list", "visibility=all&member_status=all"), ("bob", "list", "visibility=shared")),
    "rename": (replace("name", "x"), replace("name", "y")),
    "add property": tuple(("alice", "patch", {"op": "add", "path": f"/{name}", "value": "1"}) for name in "pq"),
    "remove property": (("alice", "patch", {"op": "remove", "path": "/r"}),) * 2,
    "visibility": (replace("visibility", "private"), replace("visibility", "community")),
    "protect": (replace("protected", True), replace("protected", False)),
    "tag": (("alice", "tag", "a"), ("alice", "tag", "b")),
    "untag": (("alice", "untag", "old"),) * 2,
    "share": (("alice", "share", "green"),) * 2,
    "accept": (("bob", "answer", ("blue", "accepted")), ("bob", "answer", ("blue", "rejected"))),
    "unshare": (("alice", "unshare", "blue"),) * 2,
    "deactivate": (("alice", "deactivate", None), ("admin", "deactivate", None)),
    "reactivate": (("alice", "reactivate", None), ("admin", "reactivate", None)),
    "delete": (("alice", "delete", None), ("admin", "delete", None)),
    "create": (("alice", "create", {"name": "again"}), ("bob", "create", {"name": "again"})),
}
PAIRS = list(itertools.combinations_with_replacement(OPERATIONS, 2))
SOME = [pair for place, pair in enumerate(PAIRS) if len(set(pair)) == 1 or "delete" in pair or place % 12 == 0]


def start(one: str, other: str) -> str:
    """The status to begin with: the one in which most can happen."""
    if "upload" in (one, other):
        return "queued"
    return "deactivated" if "reactivate" in (one, other) else "active"


def send(client: Client, call: Call) -> tuple[requests.Response, Answer]:
    method, path, body = call.request()
    if isinstance(body, bytes):
        answer = client.request(method, path, data=body, headers=OCTETS)
    else:
        answer = client.request(method, path, json=body, headers=PATCH_21 if method == "PATCH" else {})
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    return answer, told(call, answer.status_code, answer.content, answer.json() if is_json else None)


def orders(world: World, calls: Sequence[Call], told: Sequence[Answer]) -> Iterator[World]:
    """The worlds that these calls may leave, one after another in whatever order, if they were told this."""
    seen: set[str] = set()

    def go(path: list[int]) -> Iterator[World]:
        then = deepcopy(world)
        answers: list[list[Answer]] = [[] for _ in calls]
        runs = [then.run(call, answer) for call, answer in zip(calls, answers, strict=True)]
        for place in path:
            next(runs[place], None)
        state = repr((then.images, [path.count(place) for place in range(len(calls))], answers))
        if state in seen or any(answer and answer[0] != real for answer, real in zip(answers, told, strict=True)):
            return
        seen.add(state)
        waiting = [place for place, answer in enumerate(answers) if not answer]
        if not waiting:
            yield then
        for place in waiting:
            yield from go([*path, place])

    return go([])


@pytest.fixture(scope="module")
def clients(service: Service) -> dict[tuple[str, int], Client]:
    """Four connections of each user, open already."""
    made = {(user, place): service.client(user) for user in ("alice", "bob", "admin") for place in range(4)}
    for client in made.values():
        assert client.get("/v2/images?limit=1").status_code == 200
    return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "one" in metafunc.fixturenames:
        pairs = PAIRS if ROUNDS > 1 or metafunc.config.getoption("--database") == "sqlite" else SOME
        metafunc.parametrize(("one", "other"), pairs, ids=lambda name: name.replace(" ", "-"))


@pytest.mark.parametrize("number", range(ROUNDS), ids=lambda number: f"#{number}")
@pytest.mark.slow
def test_what_pairs_of_calls_see_can_be_told_one_after_another(
    service: Service, clients: dict[tuple[str, int], Client], one: str, other: str, number: int
) -> None:
    image_id, world = str(uuid.uuid4()), World()

    def prepare(user: str, what: str, value: object) -> None:
        call = Call(user, what, image_id, value)
        expected, (_, answer) = world.once(call), send(clients[user, 0], call)
        assert answer == expected

    prepare("alice", "create", {"visibility": "shared"})
    prepare("alice", "patch", {"op": "add", "path": "/r", "value": "1"})
    prepare("alice", "tag", "old")
    prepare("alice", "share", "blue")
    status = start(one, other)
    if status != "queued":
        prepare("alice", "upload", b"data")
    if status == "deactivated":
        prepare("alice", "deactivate", None)

    calls = [Call(user, what, image_id, value) for user, what, value in (*OPERATIONS[one], *OPERATIONS[other])]
    found: dict[int, Answer] = {}

    def move(place: int, call: Call) -> Move:
        def run(client: Client) -> requests.Response:
            asked = dataclasses.replace(call, value=f"{call.value}&id={image_id}") if call.what == "list" else call
            response, found[place] = send(client, asked)
            return response

        return run

    race([clients[call.user, place] for place, call in enumerate(calls)], [move(*it) for it in enumerate(calls)])
    answers = [found[place] for place in range(len(calls))]
    looks = [Call("admin", "show", image_id), Call("bob", "show", image_id), Call("admin", "download", image_id)]
    after = [send(clients[look.user, 0], look)[1] for look in looks]
    explained = any([then.once(look) for look in looks] == after for then in orders(world, calls, answers))
    assert explained, f"from {status}: {list(zip(calls, answers, strict=True))}, then {after}"

    there = after[0][0] == 200
    end = time.monotonic() + 5
    while (left := files_of(service, image_id)) != ([image_id] if there and after[2][0] == 200 else []):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    if not there:
        assert send(clients["alice", 0], Call("alice", "create", image_id, {}))[1] == (409, None)


@pytest.mark.slow
def test_no_job_is_left_of_them(service: Service) -> None:
    database, end = Database(service.database_url), time.monotonic() + 10
    with contextlib.closing(database):
        while True:
            with database.read_once() as tx:
                if not tx.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar_one():
                    return
            assert time.monotonic() < end, "somebody left work behind"
            time.sleep(0.05)
