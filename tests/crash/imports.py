"""Imports whose processes are killed, or stopped for longer than their leases, again and again.

`calotype serve` with two workers and `calotype worker` work on one database and three stores. The worker has a state
directory of its own, so to the others it is another host. Clients begin imports of all methods, cancel some and delete
some. Meanwhile processes are killed and stopped. When all are up again and nothing is left to do, every import that
was accepted must have ended as it should, and nothing may be left of the others.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from calotype.db import tables
from tests import databases, warm
from tests.crash import hasty
from tests.crash.journal import MIB, Content
from tests.crash.load import _BROKEN
from tests.crash.oracle import PLACES, below
from tests.support import OCTETS, Client, Service, names
from tests.webserver import WebServer, serving

STORES = ("one", "two", "three")
METHODS = ("glance-direct", "web-download", "glance-download", "copy-image")
CONF = """\
[DEFAULT]
enabled_import_methods = glance-direct, web-download, glance-download, copy-image
enabled_backends = one:file, two:file, three:file
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {state}/one
[two]
filesystem_store_datadir = {state}/two
[three]
filesystem_store_datadir = {state}/three
[jobs]
poll = 0.2
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.1
"""
#: How long it may take until nothing is left to do, seconds: longer than a lease and the pauses between attempts.
PATIENCE = 90.0
_SAID = re.compile(r"Receiving: (\d+)")
_TOKEN_LOST = re.compile(r"your token")


@dataclass
class Served:
    """A file at a URL: sent at a rate of bytes a second, after some answers of 503, and with some cuts."""

    content: bytes
    rate: int = 0
    refusals: int = 0
    cuts: int = 0
    etag: str = '"one"'
    begun: threading.Event = field(default_factory=threading.Event)  #: a body
    sent: threading.Event = field(default_factory=threading.Event)  #: the last byte

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        size = len(self.content)
        if self.refusals > 0:
            self.refusals -= 1
            handler.send_error(503)
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted and handler.headers.get("If-Range") == self.etag and int(wanted[1]) < size:
            start = int(wanted[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(size - start))
        handler.send_header("ETag", self.etag)
        with contextlib.suppress(OSError):
            handler.end_headers()
            end = size
            if self.cuts > 0:
                self.cuts -= 1
                end = start + (size - start) // 2
            step = max(1, self.rate // 20) if self.rate else MIB
            for at in range(start, end, step):
                handler.wfile.write(self.content[at : min(at + step, end)])
                self.begun.set()
                if self.rate:
                    time.sleep(0.05)
            if end == size:
                self.sent.set()


@dataclass
class Import:
    """One image and what was asked for it. None of an answer: it never came, or nobody has asked yet."""

    id: str
    method: str
    content: Content
    stores: Sequence[str]
    all_must: bool
    served: Served | None = None
    accepted: bool | None = None
    asked: int = 0  #: how often it was asked for
    cancelled: bool = False
    deleted: bool = False
    said: dict[str, int] = field(default_factory=dict)  #: of each task how many MiB it has told of

    @property
    def body(self) -> dict[str, Any]:
        method = {"name": self.method} | self.where
        return {"method": method, "stores": list(self.stores), "all_stores_must_succeed": self.all_must}

    where: Mapping[str, str] = field(default_factory=dict)  #: what the method says of the source


class ImportCrashes:
    """Rounds of imports and kills on one state directory. `database` is as that of `Crashes`."""

    def __init__(self, state: Path, seed: int, *, database: str = "") -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._state = state
        self._rng = random.Random(seed)
        (state / "policy.yaml").write_text('"copy_image": "role:member"\n')
        url = database or databases.synced(f"sqlite:///{state / 'calotype.db'}")
        self.service = _Hasty(state, CONF.format(state=state), ("--workers", "2"), database=url)
        self.worker = _Worker(self.service)
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.slowest = 0.0
        self._log_seen: Counter[str] = Counter()
        self._problems: list[str] = []

    @property
    def count(self) -> int:
        return self.kills.total()

    def line(self) -> str:
        kills, ends = (", ".join(f"{n} {what}" for what, n in sorted(one.items())) for one in (self.kills, self.ends))
        return f"{self.count} kills and stops ({kills}); imports: {ends}; slowest recovery {self.slowest:.1f} s"

    def run(self, kills: int, told: Callable[[int], object] = lambda _: None) -> None:
        """So many kills and stops. Raises `AssertionError` with all that is wrong."""
        with serving() as web:
            self.service.environment = {hasty.VARIABLE: web.url}
            try:
                self.service.start()
                self.worker.start()
                while self.count < kills:
                    self.round(web)
                    told(self.count)
            finally:
                self.worker.kill()
                if self.service.process and self.service.process.poll() is None:
                    self.service.kill()

    def round(self, web: WebServer) -> None:
        """A few imports, some kills among them, and the check when all is at rest again."""
        rng, begun = self._rng, [self._some(web) for _ in range(self._rng.randrange(3, 7))]
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(begun, over))
        threads = [threading.Thread(target=self._client, args=(one, rng.getrandbits(32))) for one in begun]
        for thread in (*threads, watcher):
            thread.start()
        for _ in range(rng.randrange(2, 5)):
            self._await_moment(begun)
            self._strike()
        for thread in threads:
            thread.join(120)
        self._all_up()
        started = time.monotonic()
        left = self._settle(begun)
        self.slowest = max(self.slowest, time.monotonic() - started)
        over.set()
        watcher.join()
        left += [problem for one in begun for problem in self._check(one)]
        left += self._read_logs(begun)
        left += self._remove(begun)
        left += self._problems
        web.files.clear()
        assert not left, "\n".join(left[:40])

    def _read_logs(self, begun: list[Import]) -> Iterator[str]:
        """No import ended twice, and nobody was surprised."""
        logs = {"serve": self.service.log, "worker": self.worker.log}
        new = "".join(text[self._log_seen[name] :] for name, text in logs.items())
        self._log_seen.update({name: len(text) for name, text in logs.items()})
        if "Traceback" in new:
            yield f"a traceback was logged:\n{new[-6000:]}"
        for one in begun:
            ends = len(re.findall(f"job import of image {one.id} (?:un)?done", new))
            if ends > one.asked:
                yield f"image {one.id}: {one.asked} imports were asked for, and {ends} ended"

    # --- the imports -------------------------------------------------------------------------------------

    def _some(self, web: WebServer) -> Import:
        rng = self._rng
        method = rng.choice(METHODS)
        size = rng.choice([0, 1, 70_000, MIB - 1, 3 * MIB, 6 * MIB])
        content = Content(rng.getrandbits(62), size)
        stores = rng.sample(STORES, rng.randrange(1, 4))
        if method == "copy-image":
            stores = [name for name in stores if name != "one"] or ["two"]
        one = Import(str(uuid.UUID(int=rng.getrandbits(128), version=4)), method, content, stores, rng.random() < 0.6)
        if method.endswith("-download"):
            rate = rng.choice([0, 0, 2 * MIB, 4 * MIB]) if size >= MIB else 0
            refusals, cuts = rng.choice([0, 0, 0, 1]), rng.choice([0, 0, 0, 1])
            one.served = Served(content.data(), rate, refusals, cuts)
        if method == "web-download":
            web.files[f"/{one.id}"] = one.served
            one.where = {"uri": f"{web.url}/{one.id}"}
        if method == "glance-download":
            there = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            web.files[f"/v2/images/{there}"] = json.dumps(self._record(one)).encode()
            web.files[f"/v2/images/{there}/file"] = one.served
            one.where = {"glance_region": hasty.REGION, "glance_image_id": there}
        return one

    def _record(self, one: Import) -> dict[str, Any]:
        """What the other region says of its image: with a hash or, as for old images, without one."""
        found: dict[str, Any] = {"status": "active", "size": one.content.size, "tags": ["from there"]}
        found |= {"disk_format": "raw", "container_format": "bare", "hw_disk_bus": "scsi"}
        if self._rng.random() < 0.7:
            value = hashlib.sha256(one.content.data()).hexdigest()
            found |= {"os_hash_algo": "sha256", "os_hash_value": value}
        return found

    def _client(self, one: Import, seed: int) -> None:
        """Everything that a client does for one image. Without an answer it gives up."""
        rng, client = random.Random(seed), self.service.client("alice")
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(*_BROKEN):
            if not self._prepared(client, one):
                return
            one.asked += 1
            answer = client.request("POST", f"/v2/images/{one.id}/import", json=one.body)
            one.accepted = answer.status_code == 202
            if not one.accepted:
                self._problem(one, f"import answered {answer.status_code}: {answer.text}")
            fate = rng.random()
            time.sleep(rng.uniform(0, 1.5))
            if fate < 0.1:
                one.cancelled = True
                answer = client.request("POST", f"/v2/images/{one.id}/actions/cancel_import")
                if answer.status_code not in (202, 409):
                    self._problem(one, f"cancel answered {answer.status_code}: {answer.text}")
            elif fate < 0.2:
                one.deleted = True
                answer = client.delete(one.id)
                if answer.status_code != 204:
                    self._problem(one, f"delete answered {answer.status_code}: {answer.text}")

    def _prepared(self, client: Client, one: Import) -> bool:
        """The image, with what its import needs."""
        made = client.create(id=one.id, disk_format="raw", container_format="bare")
        if made.status_code != 201:
            self._problem(one, f"create answered {made.status_code}: {made.text}")
            return False
        where = {"glance-direct": "stage", "copy-image": "file"}.get(one.method)
        if where is None:
            return True
        put = client.request("PUT", f"/v2/images/{one.id}/{where}", data=one.content.data(), headers=OCTETS)
        # A process that was stopped has lost its upload.
        if put.status_code not in (204, 409):
            self._problem(one, f"{where} answered {put.status_code}: {put.text}")
        return put.status_code == 204

    def _problem(self, one: Import, text: str) -> None:
        self._problems.append(f"image {one.id}, {one.method}: {text}")

    def _watch(self, begun: list[Import], over: threading.Event) -> None:
        """Look at the tasks, as users do: none goes back."""
        client = self.service.client("alice")
        while not over.wait(0.3):
            for one in begun:
                with contextlib.suppress(*_BROKEN):
                    if one.accepted is not False and not one.deleted:
                        self._look(client, one)

    def _look(self, client: Client, one: Import) -> None:
        answer = client.get(f"/v2/images/{one.id}/tasks", timeout=5)
        for task in answer.json()["tasks"] if answer.status_code == 200 else []:
            if said := _SAID.match(task["message"] or ""):
                before, now = one.said.get(task["id"], 0), int(said[1])
                if now < before:
                    self._problem(one, f"its progress went back from {before} to {now} MiB")
                one.said[task["id"]] = now

    # --- kills -------------------------------------------------------------------------------------------

    def _await_moment(self, begun: list[Import]) -> None:
        """Some time; or until a server has sent the first or the last byte of a file, and a little more."""
        rng = self._rng
        events = [event for one in begun if one.served for event in (one.served.begun, one.served.sent)]
        if events and rng.random() < 0.7:
            rng.choice(events).wait(1.5)
            time.sleep(10 ** rng.uniform(-4, -0.7))
        else:
            time.sleep(rng.uniform(0.05, 1.2))

    def _strike(self) -> None:
        """Kill or stop somebody. Who was killed is started again; who was stopped goes on later."""
        rng = self._rng
        what = rng.choices(["all", "one", "other host", "stopped", "other host stopped"], [3, 3, 3, 2, 4])[0]
        self.kills[what] += 1
        assert self.service.process
        if what == "all":
            self.service.kill()
            self.service.start(wait=60)
        elif what == "other host":
            self.worker.kill()
            self.worker.start()
        elif what == "other host stopped":
            _stop(self.worker.pid, rng.uniform(0.1, 2.5 * hasty.LEASE))
        elif workers := psutil.Process(self.service.process.pid).children():
            chosen = rng.choice(workers).pid
            if what == "one":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chosen, signal.SIGKILL)
            else:
                _stop(chosen, rng.uniform(0.1, 1.0))

    def _all_up(self) -> None:
        assert self.service.process
        assert self.service.process.poll() is None, "the service has ended"
        assert self.worker.is_alive(), "the worker has ended"

    # --- what must be there ------------------------------------------------------------------------------

    def _settle(self, begun: list[Import]) -> list[str]:
        """Wait until there is nothing left to do; then what is left. What waits for its user is imported, now."""
        client = self.service.client("alice")
        end = time.monotonic() + PATIENCE
        while True:
            left = self._left()
            if not left:
                again = [one for one in begun if self._waits_for_user(client, one)]
                if not again:
                    return []
                for one in again:
                    one.asked += 1
                    answer = client.request("POST", f"/v2/images/{one.id}/import", json=one.body)
                    one.accepted = answer.status_code == 202
                    if not one.accepted:
                        return [f"image {one.id}: another import is answered {answer.status_code}: {answer.text}"]
            if time.monotonic() > end:
                return left
            time.sleep(0.1)

    def _left(self) -> list[str]:
        """The jobs that are not at rest: only staged data waits for somebody."""
        table = tables.jobs.c
        with below(self.service.database_url) as tx:
            found = tx.execute(
                sa.select(table.id, table.kind, table.image_id, table.state, table.attempt, table.error, table.failure)
                .where(sa.or_(table.kind != "stage", table.state != "pending", table.error.is_not(None)))
            ).all()  # fmt: skip
        return [f"a job is left: {tuple(row)}" for row in found]

    @staticmethod
    def _waits_for_user(client: Client, one: Import) -> bool:
        """Whether its data is staged, or its token went with a process: then its user has to ask for the import."""
        answer = client.get(f"/v2/images/{one.id}")
        status = answer.json()["status"] if answer.status_code == 200 else ""
        if status != "queued" or one.method != "glance-download":
            return bool(status == "uploading")
        tasks = client.get(f"/v2/images/{one.id}/tasks").json()["tasks"]
        return bool(tasks) and bool(_TOKEN_LOST.search(tasks[-1]["message"]))

    def _check(self, one: Import) -> Iterator[str]:
        client, who = self.service.client("alice"), f"image {one.id} ({one.method}, {one.content.size} bytes)"
        shown = client.get(f"/v2/images/{one.id}")
        there = {name for name in STORES if any(one.id in found for found in names(self._state / name))}
        if shown.status_code == 404:
            self.ends["deleted" if one.deleted else "never made"] += 1
            if one.accepted and not one.deleted:
                yield f"{who} is lost"
            if there:
                yield f"{who} does not exist and has files in {there}"
            return
        image = shown.json()
        tasks = client.get(f"/v2/images/{one.id}/tasks").json()["tasks"]
        if unended := [task for task in tasks if task["status"] not in ("success", "failure")]:
            yield f"{who} has tasks that have not ended: {unended}"
        if "os_glance_import_task" in image:
            yield f"{who} is still locked"
        if image.get("os_glance_importing_to_stores"):
            yield f"{who} is still importing"
        copying = one.method == "copy-image"
        succeeded = any(task["status"] == "success" for task in tasks)
        failures = [task["message"] for task in tasks if task["status"] == "failure"]
        if image["status"] == "active":
            wanted = ({"one"} if copying else set()) | (set(one.stores) if succeeded else set())
            found = {Path(url).parent.name for image_id, url in self._places() if image_id == one.id}
            self.ends["active" if succeeded else "failed" if tasks else "not begun"] += 1
            if not (copying or succeeded):
                yield f"{who} is active without a success"
            # A cancel that comes after the first success costs the other stores only.
            is_part = one.cancelled and not one.all_must and succeeded and bool(found)
            if there != found or not (found <= wanted if is_part else found == wanted):
                yield f"{who} should be in {wanted}, and is in {there}, as its record says in {found}"
            yield from self._wrong_bytes(who, one, image, there)
            if one.method == "glance-download" and (image["tags"], image.get("hw_disk_bus")) != (
                ["from there"],
                "scsi",
            ):
                yield f"{who} has not what its source has: {image}"
        else:
            self.ends["failed" if one.accepted else "not begun"] += 1
            if image["status"] != "queued":
                yield f"{who} is {image['status']}"
            if there or image["size"] is not None:
                yield f"{who} is queued, with size {image['size']} and files in {there}"
        if one.accepted and not succeeded:
            if not failures or not all(failures):
                yield f"{who} was accepted and has neither succeeded nor failed with a reason: {tasks}"
            elif not one.cancelled:
                yield f"{who} failed although everything was there: {failures}"

    def _places(self) -> list[tuple[str, str]]:
        with below(self.service.database_url) as tx:
            return [(image_id, url) for image_id, url in tx.execute(PLACES)]

    def _wrong_bytes(self, who: str, one: Import, image: dict[str, Any], there: set[str]) -> Iterator[str]:
        data = one.content.data()
        if (image["size"], image["os_hash_value"]) != (len(data), hashlib.sha512(data).hexdigest()):
            yield f"{who} has size {image['size']} and hash {image['os_hash_value']}"
        for name in there:
            if (self._state / name / one.id).read_bytes() != data:
                yield f"{who} has wrong bytes in store {name}"

    def _remove(self, begun: list[Import]) -> list[str]:
        """Delete all images: nothing remains, neither in the stores nor in what was staged."""
        client = self.service.client("alice")
        for one in begun:
            client.delete(one.id)
        places = [self._state / name for name in (*STORES, "staging")] + [self.worker.state / "staging"]
        end = time.monotonic() + PATIENCE
        while True:
            left = self._left()
            left += [f"{place.name} has {names(place)}" for place in places if place.exists() and names(place)]
            with below(self.service.database_url) as tx:
                left += [f"a job is left: {tuple(row)}" for row in tx.execute(sa.select(tables.jobs.c.id))]
                left += [f"a copy is left: {tuple(row)}" for row in tx.execute(sa.select(tables.copies.c.job_id))]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)


def _stop(pid: int, seconds: float) -> None:
    """Let a process sleep in the middle of what it does."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


class _Hasty(Service):
    """A service with short leases."""

    def _launch(self, arguments: Sequence[str]) -> Any:
        environment = {**os.environ, **self.environment}
        with (self.state / "serve.log").open("ab") as log:
            return warm.start("hasty", arguments, stdout=log, stderr=log, env=environment)


class _Worker:
    """`calotype worker` beside a service, as on another host."""

    def __init__(self, service: Service) -> None:
        self.state = service.state / "other"
        self._conf = service.state / "calotype.conf"
        self._process: warm.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.state / "worker.log").read_text(errors="replace")

    def start(self) -> None:
        self.state.mkdir(mode=0o700, exist_ok=True)
        arguments = ["worker", "--config-file", str(self._conf), "--state-dir", str(self.state)]
        with (self.state / "worker.log").open("ab") as log:
            self._process = warm.start("hasty", arguments, stdout=log, stderr=log, env=dict(os.environ))

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
