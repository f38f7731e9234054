"""A crowd of clients at two worker processes: what was acknowledged is there, and nobody hears of a 5xx."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import Client, Service, running

pytestmark = pytest.mark.slow

IMAGES = int(os.environ.get("CALOTYPE_CROWD", "300"))
CLIENTS = 32
PROCESSES = 4  #: of clients
PAGE = 90  #: so that the last page is not full

Work = Callable[[Client, Any], Any]


@pytest.fixture
def crowded(state: Path, own_database: str) -> Iterator[Service]:
    with running(state, "", "--workers", "2", database=own_database) as service:
        yield service


def test_of_many_images_that_32_clients_create_at_once_none_is_lost(crowded: Service) -> None:
    numbers = list(range(IMAGES))
    made = _by_the_crowd(_create, crowded, numbers)
    expected = {image_id: number for number, image_id in zip(numbers, made, strict=True)}
    assert len(expected) == IMAGES, "an id was given away twice"

    listed = list(_listed(crowded.client()))
    assert len(listed) == IMAGES
    assert {image["id"] for image in listed} == set(expected)
    for image in listed:
        number = expected[image["id"]]
        assert (image["name"], image["number"], sorted(image["tags"])) == _values(number)

    _by_the_crowd(_delete, crowded, made)
    assert list(_listed(crowded.client())) == []
    alice = crowded.client()
    assert {alice.get(f"/v2/images/{image_id}").status_code for image_id in random.sample(made, 100)} == {404}
    assert "Traceback" not in crowded.log


def _values(number: int) -> tuple[str, str, list[str]]:
    """Name, property and tags of an image."""
    return f"image {number}", str(number), ["all", f"t{number % 7}"]


def _create(client: Client, number: int) -> str:
    name, text, tags = _values(number)
    answer = client.create(name=name, number=text, tags=tags, disk_format="raw", container_format="bare")
    assert answer.status_code == 201, f"{answer.status_code} {answer.text}"
    return str(answer.json()["id"])


def _delete(client: Client, image_id: str) -> None:
    answer = client.delete(image_id)
    assert answer.status_code == 204, f"{answer.status_code} {answer.text}"


def _listed(client: Client) -> Iterator[dict[str, Any]]:
    path: str | None = f"/v2/images?limit={PAGE}"
    while path:
        page: requests.Response = client.get(path)
        assert page.status_code == 200
        yield from page.json()["images"]
        path = page.json().get("next")


def _by_the_crowd(work: Work, service: Service, subjects: Sequence[Any]) -> list[Any]:
    """The work on each subject, by 32 clients at once; what came of it, in order."""
    parts = [subjects[place::CLIENTS] for place in range(CLIENTS)]
    begin = time.monotonic()
    # Forked they all begin at the same instant; threads of one process would wait for each other.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
        shares = [parts[place::PROCESSES] for place in range(PROCESSES)]
        done = list(pool.map(_threads, [(work, service.url, share) for share in shares]))
    print(f"{work.__name__[1:]}: {len(subjects) / (time.monotonic() - begin):.0f}/s")
    results: list[Any] = [None] * len(subjects)
    for place in range(CLIENTS):
        results[place::CLIENTS] = done[place % PROCESSES][place // PROCESSES]
    return results


def _threads(order: tuple[Work, str, list[Sequence[Any]]]) -> list[list[Any]]:
    """One process of the crowd: a client for each part, each in a thread."""
    work, url, parts = order

    def one(part: Sequence[Any]) -> list[Any]:
        client = Client(url, "alice")
        return [work(client, subject) for subject in part]

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(one, parts))
