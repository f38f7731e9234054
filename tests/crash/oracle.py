"""What must be there after a crash, and what must not.

`debris` looks from below, at rows and at what is in the store, of which a driver's `Kit` tells. `check` asks the API and
compares with the journal; `misread` reads the objects as another process does.
"""

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import requests
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.drivers import Settings
from calotype.db.engine import Database, Tx
from tests.crash.journal import MIB, Content, Entry, Journal, create
from tests.stores import suite
from tests.stores.suite import Kit
from tests.support import Client, Service

#: What promises.md grants a recovery, seconds from the first answer of /healthcheck.
RECOVERY = 5.0
_AT_REST = ("queued", "active")

_IMAGES = sa.select(tables.images.c.id, tables.images.c.status, tables.images.c.size)
_JOBS = sa.select(*(tables.jobs.c[name] for name in ("kind", "image_id", "state", "attempt", "error")))
#: The image and the URL of each copy.
PLACES = sa.select(tables.image_locations.c.image_id, tables.image_locations.c.value).where(
    sa.not_(tables.image_locations.c.deleted)
)


@contextlib.contextmanager
def below(url: str) -> Iterator[Tx]:
    """One look into a database, past the service. Nothing stays open: SQLite recovers when the first one opens it."""
    database = Database(url, Settings(response_timeout=None))  # a busy machine may take long to answer
    try:
        with database.read_once() as tx:
            yield tx
    finally:
        database.close()


def debris(service: Service, kit: Kit) -> list[str]:
    """What a service at rest must not have (I1, I5), seen from below: rows and objects that do not agree."""
    with below(service.database_url) as tx:
        images = {row.id: (row.status, row.size) for row in tx.execute(_IMAGES.where(sa.not_(tables.images.c.deleted)))}
        places: dict[str, list[str]] = {}
        for image_id, url in tx.execute(PLACES):
            places.setdefault(image_id, []).append(url)
        left = list(tx.execute(_JOBS))
        undead = list(tx.execute(_IMAGES.where(tables.images.c.deleted, tables.images.c.status != "deleted")))
    things = kit.things()
    sizes = {thing.url: thing.size for thing in things if thing.url}

    found = [f"a job is left: {job}" for job in left]
    found += [f"the deleted image {image_id} has status {status}" for image_id, status, _ in undead]
    found += [f"image {image_id} is in status {row[0]}" for image_id, row in images.items() if row[0] not in _AT_REST]
    found += [f"the temporary {thing.name} is left" for thing in things if thing.url is None]
    meant = {url for image_id, urls in places.items() if image_id in images for url in urls}
    found += [
        f"the object {thing.name} belongs to no image" for thing in things if thing.url and thing.url not in meant
    ]
    for image_id, (status, size) in images.items():
        copies = places.pop(image_id, [])
        if (status == "active") != (len(copies) == 1):
            found.append(f"image {image_id} is {status} and has {len(copies)} locations")
        for url in copies:
            if url not in sizes:
                found.append(f"the object of image {image_id} is missing")
            elif sizes[url] != size:
                found.append(f"the object of image {image_id} has {sizes[url]} bytes, its record says {size}")
    found += [f"the locations of image {image_id} outlived it" for image_id in places]
    return found


def misread(service: Service, kit: Kit, journal: Journal) -> list[str]:
    """Objects that another process reads otherwise than they were sent."""
    with below(service.database_url) as tx:
        places = [(journal.entries.get(image_id), url) for image_id, url in tx.execute(PLACES)]
    store = kit.store()
    return [
        f"the object of image {entry.id} has other bytes than were sent"
        for entry, url in places
        if entry and entry.content and suite.content(store, url) != entry.content.data()
    ]


def settle(service: Service, kit: Kit, patience: float = RECOVERY) -> tuple[float, list[str]]:
    """Wait until the service is at rest: after how many seconds it was, and what is left if it never was."""
    begin = time.monotonic()
    while True:
        found = debris(service, kit)
        took = time.monotonic() - begin
        if not found or took > patience:
            return took, found
        time.sleep(0.03)


def check(client: Client, journal: Journal, entries: Iterable[Entry], others: Collection[str] = ()) -> list[str]:
    """Compare what the API says of these entries with the journal (I1, I2), and the list with all of it (I4).

    Settles in the journal what a crash left open; entries that a crash may have touched must all be among these.
    `others` are images that the journal does not know of.
    """
    found = [problem for entry in entries for problem in _check_one(client, entry)]
    living = {entry.id for entry in journal.entries.values() if entry.created and not entry.deleted}
    listed = set(_listed(client)) - set(others)
    found += [f"image {image_id} exists and is not listed" for image_id in living - listed]
    found += [f"image {image_id} is listed and should not exist" for image_id in listed - living]
    return found


def _listed(client: Client) -> Iterator[str]:
    path: str | None = "/v2/images?limit=1000"
    while path:
        page = client.get(path).json()
        yield from (image["id"] for image in page["images"])
        path = page.get("next")


def _check_one(client: Client, entry: Entry) -> Iterator[str]:
    who = f"image {entry.id}"
    shown = client.get(f"/v2/images/{entry.id}")
    if shown.status_code == 404:
        if entry.created and not entry.deleted and not entry.deleting:
            yield f"{who} is lost"
        again = create(client, entry).status_code
        if entry.created:
            entry.deleted = True
            if again != 409:
                yield f"the id of the deleted {who} was given away again ({again})"
        else:
            entry.created = True
            if again != 201:
                yield f"{who}, which does not exist, cannot be created ({again})"
        entry.deleting = False
        return
    if shown.status_code != 200:
        yield f"{who} answers {shown.status_code}"
        return
    if entry.deleted:
        yield f"the deleted {who} exists"
        return
    entry.created, entry.deleting = True, False
    record = shown.json()
    yield from _check_record(who, entry, record)
    yield from _check_data(who, client, entry, record)


def _check_record(who: str, entry: Entry, record: dict[str, Any]) -> Iterator[str]:
    mine = {
        name: record[name]
        for name in record
        if name in ("name", "tags", "born") or (name[:1] == "p" and name[1:].isdigit())
    }
    mine["tags"] = sorted(mine["tags"])
    if entry.edit is not None and mine == entry.record(entry.edit):
        entry.apply(entry.edit)
    elif mine != entry.record():
        yield f"{who} has {mine}, not {entry.record()}, edit under way: {entry.edit}"
    entry.edit = None


def _check_data(who: str, client: Client, entry: Entry, record: dict[str, Any]) -> Iterator[str]:
    facts = (record["size"], record["os_hash_value"])
    status, maybe, entry.maybe = record["status"], entry.maybe, []
    if status == "queued" and entry.content is None:
        if facts != (None, None):
            yield f"{who} is queued and has size and hash {facts}"
        if client.file(entry.id).status_code != 204:
            yield f"{who} is queued and has data"
        if maybe:
            other = Content(maybe[0].seed ^ 1, min(maybe[0].size, 3 * MIB))
            if (again := client.put(entry.id, other.data()).status_code) != 204:
                yield f"{who}, whose upload was cut off, refuses another one ({again})"
                return
            entry.content = other
            yield from _check_data(who, client, entry, client.show(entry.id))
        return
    if status != "active":
        yield f"{who} is {status}" + (", though its upload was acknowledged" if entry.content else "")
        return
    possible = [entry.content] if entry.content else maybe
    content = next((one for one in possible if facts == (one.size, one.sha512)), None)
    if content is None:
        yield f"{who} has size and hash {facts}, sent were {[(one.size, one.sha512) for one in possible]}"
        return
    entry.content = content
    try:
        answer = client.file(entry.id)
    except requests.RequestException as exc:
        yield f"{who} cannot be downloaded: {exc!r}"
        return
    if answer.status_code != 200:
        yield f"{who} cannot be downloaded: {answer.status_code}"
    elif answer.content != content.data():
        yield f"{who} is downloaded with wrong bytes"
