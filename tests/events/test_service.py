"""Events of a real service: none is lost by kill -9, those of an image stay in order, and answers are counted."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.engine import Database
from tests.api.test_data import by_sendfile
from tests.support import PASSWORD, Client, Service, running, until

LOG = "[oslo_messaging_notifications]\ndriver = log\n"


def sent(service: Service) -> list[dict[str, Any]]:
    """The notifications in the service's log, repeats included."""
    lines = (line.partition('{"message_id"')[1:] for line in service.log.splitlines())
    return [json.loads("".join(found)) for found in lines if found[0]]


def once(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each message, as a consumer has them that drops repeats; a repeat is the same message."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        before = found.setdefault(message["message_id"], message)
        # oslo.messaging numbers what it sends, and so a repeat anew.
        assert before | {"_unique_id": message.get("_unique_id")} == {"_unique_id": None} | message
    return list(found.values())


def left(service: Service) -> int:
    """How many events wait."""
    db = Database(service.database_url)
    try:
        with db.read_once() as tx:
            return int(tx.execute(sa.text("SELECT count(*) FROM calotype_outbox")).scalar_one())
    finally:
        db.close()


@dataclass
class Changes:
    """Clients that change images of their own, one thing after the other, and remember what was acknowledged.

    Each change of an image gives it a name with the next number.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)  #: that each acknowledged request took
    over: bool = False
    acknowledged: threading.Event = field(default_factory=threading.Event)

    def work(self, client: Client, who: int) -> None:
        number = 0
        while not self.over:
            with contextlib.suppress(requests.RequestException, AssertionError):
                self._one_image(client, who, number)
            number += 1

    def _one_image(self, client: Client, who: int, number: int) -> None:
        image_id = self._timed(client.create, name="0").json()["id"]
        self.names[image_id] = ["0"]
        for step in range(1, 6):
            if self.over:
                return
            change = {"op": "replace", "path": "/name", "value": str(step)}
            assert self._timed(client.patch, image_id, change).status_code == 200
            self.names[image_id].append(str(step))
        if number % 2:
            assert self._timed(client.delete, image_id).status_code == 204
            self.deleted.add(image_id)

    def _timed(self, call: Any, *arguments: Any, **more: Any) -> requests.Response:
        begin = time.monotonic()
        answer: requests.Response = call(*arguments, **more)
        self.seconds.append(time.monotonic() - begin)
        self.acknowledged.set()
        return answer

    @contextlib.contextmanager
    def going_on(self, service: Service, clients: int = 3) -> Any:
        """Clients at work for the length of a block."""
        self.over = False
        threads = [
            threading.Thread(target=self.work, args=(service.client("alice"), who), daemon=True)
            for who in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over = True
            for thread in threads:
                thread.join(60)

    def check(self, messages: list[dict[str, Any]]) -> None:
        """Each change that was acknowledged was told; of each image they were told in their order, none twice."""
        told: dict[str, list[str]] = {}
        for message in messages:
            word = "deleted" if message["event_type"] == "image.delete" else message["payload"]["name"]
            told.setdefault(message["payload"]["id"], []).append(word)
        for image_id, names in self.names.items():
            expected = [*names, *(["deleted"] if image_id in self.deleted else [])]
            found = told.pop(image_id, [])
            # One more may have been made, whose answer was lost with the service.
            assert found[: len(expected)] == expected
            assert len(found) <= len(expected) + 1, (found, expected)
        assert all(found == ["0"] for found in told.values()), "changes of images that nobody heard of"


@pytest.mark.slow
def test_kill_9_loses_no_event_and_changes_no_order(state: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    rng, changes, waited, kills = random.Random(seed), Changes(), 0, 0
    service = Service(state, LOG, ("--workers", "2"))
    try:
        while kills < 5 or (not waited and kills < 20):
            kills += 1
            service.start()
            with changes.going_on(service):
                time.sleep(rng.uniform(0.3, 0.6))
                # Just after an answer its event is still to be sent, most of the time.
                changes.acknowledged.clear()
                changes.acknowledged.wait(20)
                service.kill()
            waited += left(service)
        service.start()
        until(lambda: left(service) == 0, 30)
    finally:
        service.kill()
    messages = sent(service)
    print(f"seed {seed}: {len(changes.seconds)} requests, {waited} events waited at kills, {len(messages)} sent")
    assert waited > 0, "no kill came between a change and its event"
    changes.check(once(messages))


# --- answers ---------------------------------------------------------------------------------------------

SIZE = 3_000_000


@pytest.mark.needs("strace")
def test_what_clients_were_sent_is_told_as_it_was_and_goes_by_sendfile(state: Path, tmp_path: Path) -> None:
    conf = f"[DEFAULT]\nenabled_backends = disk:file, brief:memory\n{LOG}[glance_store]\ndefault_backend = disk\n"
    conf += f"[disk]\nfilesystem_store_datadir = {state}/disk\n"
    with running(state, conf) as service:
        alice = service.client("alice")
        stored, kept = alice.active(bytes(SIZE)), alice.queued()
        assert alice.put(kept, bytes(1000), x_image_meta_store="brief").status_code == 204
        assert alice.request("HEAD", f"/v2/images/{stored}/file").status_code == 200

        def download() -> None:
            assert alice.file(stored).content == bytes(SIZE)
            assert len(alice.file(stored, Range="bytes=1000-1999").content) == 1000

        by_sendfile(service, tmp_path / "trace", download, SIZE + 1000)
        assert alice.file(stored, Range="bytes=0-9,100-109").status_code == 206
        assert alice.file(kept).content == bytes(1000)
        until(lambda: len(_sendings(service)) == 4)
        assert _sendings(service) == [("INFO", SIZE), ("INFO", 1000), ("INFO", 20), ("INFO", 1000)]
        (first, *_) = [message for message in sent(service) if message["event_type"] == "image.send"]
        assert first["payload"] == {
            "image_id": stored,
            "bytes_sent": SIZE,
            "owner_id": "red",
            "receiver_tenant_id": "red",
            "receiver_user_id": "alice",
        }
        database = Database(service.database_url)
        with database.write_once() as tx:
            tx.execute(sa.update(tables.images).where(tables.images.c.id == kept).values(size=None))
        database.close()
        assert alice.file(kept).content == bytes(1000)
        until(lambda: len(_sendings(service)) == 5)
        assert _sendings(service)[-1] == ("INFO", 1000)  # as much as its store says
        _break_off(service, alice.active(bytes(40 << 20)))
        until(lambda: len(_sendings(service)) == 6)
        priority, count = _sendings(service)[-1]
        assert priority == "ERROR"
        assert 0 < count < 40 << 20


def _sendings(service: Service) -> list[tuple[str, int]]:
    sendings = [message for message in once(sent(service)) if message["event_type"] == "image.send"]
    return [(message["priority"], message["payload"]["bytes_sent"]) for message in sendings]


def _break_off(service: Service, image_id: str) -> None:
    """A client that goes away after some of its answer."""
    credentials = b64encode(f"alice:{PASSWORD}".encode()).decode()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        head = f"GET /v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n\r\n"
        client.sendall(head.encode())
        taken = 0
        while taken < 100_000:
            taken += len(client.recv(100_000))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
