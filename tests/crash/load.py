"""A handful of clients that create, upload, download, edit and delete until the service is killed beneath them.

`Aim` is the moment of the kill, as clients see it; nothing in the service knows of any of this.
"""

import contextlib
import http.client
import itertools
import random
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass

import requests

from tests.crash.journal import MIB, Content, Edit, Entry, Journal, create, some_content
from tests.support import OCTETS, PASSWORD, Client, Service

_CREDENTIALS = "Basic " + b64encode(f"alice:{PASSWORD}".encode()).decode()
#: What a client sees of a service that was killed.
_BROKEN = (requests.RequestException, http.client.HTTPException, OSError)


@dataclass(frozen=True, slots=True)
class Aim:
    """When to kill: after `after` seconds of load and, with a `point`, `jitter` seconds after a client gets there."""

    after: float
    point: str | None = None
    jitter: float = 0.0


def some_aim(rng: random.Random) -> Aim:
    """Most kills wait for a moment that counts, as clients see it."""
    after = rng.uniform(0, 0.6)
    point = rng.choices([None, "body", "sent", "delete", "edit"], [3, 3, 5, 5, 2])[0]
    # A large upload is being read, hashed and synced for some tens of milliseconds after its last byte was sent;
    # the steps at its end, and those of a delete, are fractions of one apart.
    jitter = {"sent": 10 ** rng.uniform(-4, -1.2), "delete": 10 ** rng.uniform(-3.5, -1.8)}.get(point or "", 0.0)
    return Aim(after, point, jitter or rng.uniform(0, 0.004))


class Load:
    """Clients at work, each in a thread, until `run` kills the service beneath them."""

    def __init__(
        self,
        service: Service,
        journal: Journal,
        rng: random.Random,
        *,
        full: bool,
        content: Callable[[random.Random], Content] = some_content,
        reads_outlive_deletes: bool = True,
    ) -> None:
        self._service = service
        self._journal = journal
        self._rng = rng
        self._full = full
        self._content = content
        self._reads_outlive_deletes = reads_outlive_deletes
        self._over = False
        self._aim = Aim(0)
        self._armed = False
        self._there = threading.Event()

    def run(self, aim: Aim, clients: int = 6) -> None:
        """Load, and the kill. Nobody is left running at the end."""
        self._aim = aim
        seeds = [self._rng.getrandbits(32) for _ in range(clients)]
        threads = [threading.Thread(target=self._work, args=(seed,), daemon=True) for seed in seeds]
        for thread in threads:
            thread.start()
        time.sleep(aim.after)
        if aim.point:
            self._armed = True
            self._there.wait(0.6)
            time.sleep(aim.jitter)
        self._over = True
        self._service.kill()
        for thread in threads:
            thread.join(30)
            if thread.is_alive():
                self._journal.problem("a client still waits 30 s after the service was killed")

    def _point(self, name: str) -> None:
        if self._armed and self._aim.point == name:
            self._there.set()

    def _work(self, seed: int) -> None:
        rng = random.Random(seed)
        client = self._service.client("alice")
        deletes = 6 if self._full else 3
        works = [self._create, self._upload, self._download, self._patch, self._tag, self._delete, self._create_again]
        while not self._over:
            work = rng.choices(works, [4, 8, 3, 2, 2, deletes, 1])[0]
            try:
                work(client, rng)
            except _BROKEN as exc:
                if not self._over:
                    self._journal.problem(f"{work.__name__[1:]} broke while the service ran: {exc!r}")
                    return

    def _pick(self, rng: random.Random, fits: Callable[[Entry], bool]) -> Entry | None:
        found = [entry for entry in self._journal.entries.values() if fits(entry)]
        return rng.choice(found) if found else None

    # Each piece of work marks its entry before it sends, and settles it when the answer came. Without an answer
    # the marks stay; `check` resolves them.

    def _create(self, client: Client, rng: random.Random) -> None:
        journal = self._journal
        image_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        entry = Entry(image_id, f"name {rng.getrandbits(32)}", {"born": "yes"}, {"first"})
        with journal.lock:
            journal.entries[image_id] = entry
            journal.write(
                "create", image_id, name=entry.name, properties=dict(entry.properties), tags=sorted(entry.tags)
            )
        self._point("edit")
        answer = create(client, entry)
        with journal.lock:
            entry.created = journal.answered("create", entry, answer.status_code, 201)

    def _create_again(self, client: Client, rng: random.Random) -> None:
        with self._journal.lock:
            entry = self._pick(rng, lambda entry: entry.deleted)
        if entry is not None and (status := create(client, entry).status_code) != 409:
            with self._journal.lock:
                self._journal.problem(f"the deleted id {entry.id} was asked for again and answered {status}")

    def _upload(self, client: Client, rng: random.Random) -> None:
        journal = self._journal
        crowd = 1 if rng.random() < 0.1 else 0
        with journal.lock:
            entry = self._pick(rng, lambda e: e.living and e.content is None and len(e.maybe) <= crowd)
            if entry is None:
                return
            alone = not entry.maybe
            content = self._content(rng)
            entry.maybe.append(content)
            journal.write("upload", entry.id, seed=content.seed, size=content.size)
        status = self._send(entry, content, rng)
        if status is None:
            return
        with journal.lock:
            others = [404, 410] if entry.deleting or entry.deleted else []
            others += [] if alone else [409]
            done = journal.answered("upload", entry, status, 204, *others, 409, seed=content.seed)
            entry.maybe.remove(content)
            if done and entry.content is not None:
                journal.problem(f"two uploads to image {entry.id} were acknowledged")
            if done:
                entry.content = content

    def _send(self, entry: Entry, content: Content, rng: random.Random) -> int | None:
        """The status that answers an upload, sent at once, in drops, or with a pause before its last bytes.

        None when it was broken off before its end.
        """
        data = memoryview(content.data())
        style = rng.choices(["fast", "drops", "late", "broken"], [5, 2, 2, 1])[0]
        cuts = {"fast": [], "drops": sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 16)))}
        cuts["late"] = [max(0, len(data) - rng.randrange(1, 4096))]
        edges = [0, *cuts.get(style, []), len(data)]
        pauses = {"fast": 0.0, "broken": 0.0, "drops": rng.uniform(0, 0.04), "late": rng.uniform(0, 0.3)}
        chunked = rng.random() < 0.4
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest("PUT", f"/v2/images/{entry.id}/file")
            connection.putheader("Authorization", _CREDENTIALS)
            connection.putheader("Content-Type", OCTETS["Content-Type"])
            connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", len(data))))
            connection.endheaders()
            # A refusal can come before the body was sent; then the connection breaks, and the answer is there.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if style == "broken":
                    connection.send(b"%x\r\n" % len(data) if chunked else data[: len(data) // 2])
                    return None
                for start, end in itertools.pairwise(edges):
                    for at in range(start, end, MIB):
                        piece = data[at : min(at + MIB, end)]
                        connection.send(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece)
                        self._point("body")
                    if end < len(data):
                        time.sleep(pauses[style])
                if chunked:
                    connection.send(b"0\r\n\r\n")
                self._point("sent")
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def _download(self, client: Client, rng: random.Random) -> None:
        with self._journal.lock:
            entry = self._pick(rng, lambda entry: entry.living and entry.content is not None)
            content = entry.content if entry else None
        if entry is None or content is None:
            return
        try:
            answer = client.file(entry.id)
        except _BROKEN:
            if entry.living or self._reads_outlive_deletes:
                raise
            return
        with self._journal.lock:
            if answer.status_code == 200 and answer.content != content.data():
                self._journal.problem(f"image {entry.id} was downloaded with wrong bytes")
            if answer.status_code != 200 and entry.living:
                self._journal.problem(f"the download of image {entry.id} answered {answer.status_code}")

    def _patch(self, client: Client, rng: random.Random) -> None:
        number = rng.getrandbits(32)
        edit = Edit(name=f"name {number}", properties=((f"p{number % 8}", str(number)),))
        steps = [{"op": "replace", "path": "/name", "value": edit.name}]
        steps += [{"op": "add", "path": f"/{name}", "value": value} for name, value in edit.properties]
        self._edit(rng, edit, lambda entry: client.patch(entry.id, *steps))

    def _tag(self, client: Client, rng: random.Random) -> None:
        tag = f"t{rng.randrange(12)}"
        add = rng.random() < 0.6
        edit = Edit(add_tag=tag) if add else Edit(remove_tag=tag)
        self._edit(
            rng, edit, lambda entry: client.request("PUT" if add else "DELETE", f"/v2/images/{entry.id}/tags/{tag}")
        )

    def _edit(self, rng: random.Random, edit: Edit, send: Callable[[Entry], requests.Response]) -> None:
        journal = self._journal
        with journal.lock:
            entry = self._pick(
                rng, lambda e: e.living and e.edit is None and (edit.remove_tag is None or edit.remove_tag in e.tags)
            )
            if entry is None:
                return
            entry.edit = edit
            journal.write("edit", entry.id, edit=asdict(edit))
        self._point("edit")
        answer = send(entry)
        with journal.lock:
            others = [404] if entry.deleting or entry.deleted else []
            if journal.answered("edit", entry, answer.status_code, 200, 204, *others):
                entry.apply(edit)
            entry.edit = None

    def _delete(self, client: Client, rng: random.Random) -> None:
        journal = self._journal
        busy = rng.random() < 0.15
        with journal.lock:
            entry = self._pick(rng, lambda e: e.living and (bool(e.maybe) if busy else e.content is not None))
            if entry is None:
                return
            entry.deleting = True
            journal.write("delete", entry.id)
        self._point("delete")
        answer = client.delete(entry.id)
        with journal.lock:
            entry.deleted = journal.answered("delete", entry, answer.status_code, 204)
            entry.deleting = False
