"""Two hosts on one database and one store: each has a name, a boot, a state directory and a wall clock of its own.

A host is `calotype serve` in namespaces of its own, with the library that `shift.c` makes loaded before it; the test sets
its clock while it runs. `Load` is what clients do with both of them meanwhile.
"""

import contextlib
import os
import random
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import sqlalchemy as sa

from calotype.db import tables
from tests.support import Client, Service, names, tool

_CONF = """\
[glance_store]
filesystem_store_datadir = {store}
[oslo_messaging_notifications]
driver = noop
[jobs]
poll = 0.5
"""


def need_namespaces() -> None:
    """Skip where nobody may make them; on CI that is a failure."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("it takes root to give a process a host's name")


def library(directory: Path) -> Path:
    """The library of `shift.c`."""
    made = directory / "shift.so"
    source = Path(__file__).with_name("shift.c")
    subprocess.run([tool("gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source], check=True)
    return made


class Clock:
    """The wall clock of a host: how many seconds it is ahead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shift(0)

    def shift(self, seconds: int) -> None:
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.write(struct.pack("q", seconds))


@dataclass
class Host(Service):
    """A service that takes itself to be on another machine."""

    name: str = ""
    clock: Clock | None = None

    def _launch(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        boot = self.state / "boot_id"
        boot.write_text(f"{uuid.uuid4()}\n")
        command = shlex.join([sys.executable, "-m", "calotype.cli.main", *arguments])
        script = f"mount --bind {boot} /proc/sys/kernel/random/boot_id && hostname {self.name} && exec {command}"
        with (self.state / "serve.log").open("ab") as log:
            return subprocess.Popen(
                ["unshare", "--mount", "--uts", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """None of its processes runs for the length of the block."""
        assert self.process
        first = psutil.Process(self.process.pid)
        family = [first, *first.children(recursive=True)]
        for one in family:
            one.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for one in family:
                one.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def two_hosts(path: Path, database: str) -> Iterator[list[Host]]:
    """Their clocks are right at first."""
    shared = library(path)
    (path / "store").mkdir()
    with contextlib.ExitStack() as stack:
        hosts = []
        for name in ("host-a", "host-b"):
            clock = Clock(path / f"{name}.clock")
            environment = {"LD_PRELOAD": str(shared), "CALOTYPE_TEST_CLOCK": str(clock.path)}
            conf = _CONF.format(store=path / "store")
            host = Host(path / name, conf, database=database, environment=environment, name=name, clock=clock)
            stack.callback(host.stop)
            hosts.append(host.start())
        yield hosts


# --- clients ---------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Clients of two hosts, until `end`. An answer that is not what it should be is written into `problems`."""

    hosts: list[Host]
    upload_seconds: float  #: how long an upload takes at least
    threads: int = 3  #: that upload, for each host; one more lists and deletes what is small
    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        for number, host in enumerate(self.hosts):
            other = self.hosts[1 - number]
            for work in [self._upload] * self.threads + [self._change]:
                seed = len(self._running)
                thread = threading.Thread(target=self._repeat, args=(work, host, other, seed), daemon=True)
                self._running.append(thread)
                thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._running:
            thread.join(self.upload_seconds + 60)
            if thread.is_alive():
                self.problems.append("a client hangs")

    def _repeat(self, work: Any, host: Host, other: Host, seed: int) -> None:
        rng = random.Random(seed)
        while not self._over.is_set() and len(self.problems) < 20:
            try:
                work(host.client(), other.client(), rng)
            except Exception as exc:  # a thread that dies says nothing
                self.problems.append(f"{host.name}: {exc!r}")

    def _check(self, what: str, answer: requests.Response, expected: int) -> bool:
        self.answers[what] += 1
        if answer.status_code != expected:
            self.problems.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return answer.status_code == expected

    def _upload(self, here: Client, there: Client, rng: random.Random) -> None:
        made = here.create(disk_format="raw", container_format="bare")
        if not self._check("create", made, 201):
            return
        image_id = made.json()["id"]
        content = rng.randbytes(100_000)
        if not self._check("upload", here.put(image_id, drip(content, self.upload_seconds)), 204):
            return
        read = there.file(image_id)
        if self._check("download", read, 200) and read.content != content:
            self.problems.append(f"image {image_id} has other bytes")
        self._check("delete", there.delete(image_id), 204)

    def _change(self, here: Client, there: Client, rng: random.Random) -> None:
        made = here.create(disk_format="raw", container_format="bare")
        if not self._check("create", made, 201):
            return
        image_id = made.json()["id"]
        self._check("small upload", here.put(image_id, rng.randbytes(1000)), 204)
        self._check("list", there.get("/v2/images?limit=10"), 200)
        self._check("delete", there.delete(image_id), 204)
        time.sleep(0.05)


def drip(content: bytes, seconds: float) -> Iterator[bytes]:
    """The content in pieces, over so long."""
    step = max(1, len(content) // max(1, int(seconds * 4)))
    begun = time.monotonic()
    for start in range(0, len(content), step):
        ahead = start / len(content) * seconds - (time.monotonic() - begun)
        time.sleep(max(0.0, ahead))
        yield content[start : start + step]


def left(database: str, store: Path) -> list[str]:
    """What should not be there when everything is deleted and everybody is done."""
    engine = sa.create_engine(database, poolclass=sa.pool.NullPool)
    end = time.monotonic() + 30
    while True:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(tables.jobs.c.kind, tables.jobs.c.state, tables.jobs.c.error)).all()
            stuck = connection.execute(sa.select(tables.images.c.id).where(tables.images.c.status == "saving")).all()
        files = names(store)
        if not (rows or stuck or files) or time.monotonic() > end:
            return [f"left: {one}" for one in (*rows, *stuck, *files)]
        time.sleep(0.2)


def step_clocks(hosts: list[Host], seconds: float, pause: float) -> None:
    """Ten minutes apart, and then the clock of each host is set, by a little and by a day, to and fro."""
    end, steps = time.monotonic() + seconds, [70, -70, 86400, -86400, 0, 600]
    number = 0
    while time.monotonic() < end:
        clock = hosts[number % 2].clock
        assert clock
        clock.shift(steps[number // 2 % len(steps)])
        number += 1
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
