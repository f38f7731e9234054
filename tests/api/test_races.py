"""Eight clients at once where `test_pairs.py`, which has every two operations, does not reach: large data, a moment that
must be met, an id that is new, quotas, copies. Nobody ever gets a 5xx.

Each race is run a few times, as a race that went well once proves little.
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import requests

from tests.support import Client, Service, second_copy

RACERS = 8
TIMES = 5
LARGE = 3 << 20

again = pytest.mark.parametrize("time", range(TIMES), ids=lambda number: f"#{number}")
Move = Callable[[Client], requests.Response]


@pytest.fixture(scope="module")
def racers(service: Service) -> list[Client]:
    """Clients of one project, each with a connection of its own that is open already."""
    clients = [service.client("alice") for _ in range(RACERS)]
    for client in clients:
        assert client.get("/v2/images?limit=1").status_code == 200
    return clients


def race(clients: Sequence[Client], moves: Sequence[Move]) -> list[requests.Response]:
    """Make all moves at once, each with a client of its own; the answers in order."""
    barrier = threading.Barrier(len(moves))
    answers: dict[int, requests.Response] = {}

    def run(place: int) -> None:
        barrier.wait()
        answers[place] = moves[place](clients[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(moves))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(moves), "somebody got no answer"
    assert not [answer.text for answer in answers.values() if answer.status_code >= 500]
    return [answers[place] for place in range(len(moves))]


def statuses(answers: Sequence[requests.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def files_of(service: Service, image_id: str) -> list[str]:
    return [path.name for store in ("fast", "cheap") for path in (service.state / store).glob(f"{image_id}*")]


def put(image_id: str, data: Any) -> Move:
    return lambda client: client.put(image_id, data)


def delete(image_id: str) -> Move:
    return lambda client: client.delete(image_id)


def patch(image_id: str, name: str, value: str) -> Move:
    return lambda client: client.patch(image_id, {"op": "add", "path": f"/{name}", "value": value})


@again
def test_of_many_large_uploads_one_wins_and_its_content_stays(
    service: Service, alice: Client, racers: list[Client], time: int
) -> None:
    image_id = alice.queued()
    contents = [bytes([65 + place]) * LARGE for place in range(RACERS)]
    answers = race(racers, [put(image_id, content) for content in contents])
    assert statuses(answers) == {204: 1, 409: RACERS - 1}
    winner = [answer.status_code for answer in answers].index(204)
    assert alice.file(image_id).content == contents[winner]
    assert files_of(service, image_id) == [image_id]


@again
def test_a_large_upload_and_a_delete_leave_nothing_half_done(
    service: Service, alice: Client, racers: list[Client], time: int
) -> None:
    image_id = alice.queued()
    upload, removed = race(racers, [put(image_id, b"x" * LARGE), delete(image_id)])
    assert removed.status_code == 204
    assert upload.status_code in (204, 404, 409, 410)
    assert alice.get(f"/v2/images/{image_id}").status_code == 404
    assert files_of(service, image_id) == []
    assert alice.create(id=image_id).status_code == 409


@again
def test_a_delete_stops_an_upload_that_is_under_way(
    service: Service, alice: Client, racers: list[Client], time: int
) -> None:
    image_id = alice.queued()
    halfway, go_on = threading.Event(), threading.Event()

    def body() -> Any:
        yield b"x" * 100_000
        halfway.set()
        go_on.wait(10)
        yield b"x" * 100_000

    def remove(client: Client) -> requests.Response:
        halfway.wait(10)
        while (status := client.get(f"/v2/images/{image_id}").json()["status"]) == "queued":
            pass
        assert status == "saving"
        answer = client.delete(image_id)
        go_on.set()
        return answer

    upload, removed = race(racers, [put(image_id, body()), remove])
    assert (upload.status_code, removed.status_code) == (410, 204)
    assert files_of(service, image_id) == []


@again
def test_a_download_beside_a_delete_is_whole_or_not_found(alice: Client, racers: list[Client], time: int) -> None:
    data = b"x" * 300_000
    image_id = alice.active(data)
    moves: list[Move] = [lambda client: client.file(image_id)] * (RACERS - 1)
    *answers, removed = race(racers, [*moves, delete(image_id)])
    assert removed.status_code == 204
    for answer in answers:
        assert answer.status_code == 404 or (answer.status_code == 200 and answer.content == data)


@again
def test_patches_at_once_are_all_applied(alice: Client, racers: list[Client], time: int) -> None:
    image_id = alice.queued()
    answers = race(racers, [patch(image_id, f"p{place}", str(place)) for place in range(RACERS)])
    assert statuses(answers) == {200: RACERS}
    record = alice.show(image_id)
    assert [record[f"p{place}"] for place in range(RACERS)] == [str(place) for place in range(RACERS)]


@again
def test_of_many_creates_with_one_id_one_wins(alice: Client, racers: list[Client], time: int) -> None:
    image_id = str(uuid.uuid4())

    def create(place: int) -> Move:
        # An id is the same in capitals.
        return lambda client: client.create(id=image_id.upper() if place % 2 else image_id, name=f"by {place}")

    answers = race(racers, [create(place) for place in range(RACERS)])
    assert statuses(answers) == {201: 1, 409: RACERS - 1}
    winner = [answer.status_code for answer in answers].index(201)
    assert alice.show(image_id)["name"] == f"by {winner}"


@again
def test_the_quota_of_members_holds_when_many_are_added_at_once(alice: Client, racers: list[Client], time: int) -> None:
    image_id = alice.queued()
    path = f"/v2/images/{image_id}/members"

    def add(place: int) -> Move:
        return lambda client: client.request("POST", path, json={"member": f"project{place}"})

    assert statuses(race(racers, [add(place) for place in range(RACERS)])) == {200: 5, 413: RACERS - 5}


@again
def test_of_the_two_last_copies_one_stays(service: Service, alice: Client, time: int) -> None:
    image_id = alice.active(b"twice", name="two copies")
    second_copy(service, image_id)
    admins = [service.client("admin") for _ in range(RACERS)]
    for admin in admins:
        assert admin.show(image_id)["stores"] == "fast,cheap"

    def take(store: str) -> Move:
        return lambda client: client.request("DELETE", f"/v2/stores/{store}/{image_id}")

    answers = race(admins, [take("fast"), take("cheap")] * (RACERS // 2))
    counts = statuses(answers)
    assert counts[204] == 1
    assert set(counts) <= {204, 403, 404}
    assert files_of(service, image_id) == [image_id]
    gone = "fast" if 204 in [answer.status_code for answer in answers[::2]] else "cheap"
    assert alice.show(image_id)["stores"] == ({"fast", "cheap"} - {gone}).pop()
    assert alice.file(image_id).content == b"twice"
