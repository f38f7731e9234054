"""The database is killed and restarted again and again under load: nothing acknowledged is lost, nothing is half."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from calotype.db import tables
from tests.databases import Server, synced
from tests.outage.load import Worker
from tests.support import Service, names, running

#: What a client may have to wait after the server takes connections again, seconds.
RECOVERY = 5.0
#: Tries until an answer of 503; the default rides most restarts out, and few would show what an answer of 503 leaves.
PATIENT, HASTY = 20, 1


def test_restarts_of_the_database_lose_nothing_and_leave_nothing(server: Server, state: Path, restarts: int) -> None:
    rng = random.Random()
    with _two_services(server, state) as services:
        workers = [Worker(service, rng.getrandbits(32)) for service in services for _ in range(2)]
        for worker in workers:
            worker.start()
        recoveries = [_restart(server, workers, rng, gently=number % 2 == 0) for number in range(restarts)]
        for worker in workers:
            worker.finish()
        for worker in workers:
            worker.join(120)
        problems = [f"a client hangs: {worker}" for worker in workers if worker.is_alive()]
        problems += [problem for worker in workers for problem in worker.problems]
        problems += _left(services[0].database_url, state / "store")
        for service in services:
            if "Traceback" in service.log:
                problems.append(service.log[service.log.index("Traceback") - 500 :][:4000])
    acknowledged, left_open, resolved = (
        sum((getattr(worker, name) for worker in workers), Counter()) for name in ("acknowledged", "open", "resolved")
    )
    summary = (
        f"{restarts} restarts of {server.kind}, {acknowledged.total()} requests acknowledged, {left_open.total()} answered "
        f"503, of whose changes {resolved[True]} of {resolved.total()} were made, slowest recovery {max(recoveries):.2f} s"
    )
    print(summary)
    assert not problems, summary + "\n" + "\n".join(problems[:20])
    assert max(recoveries) <= RECOVERY
    assert acknowledged.total() > 10 * restarts, summary
    assert left_open.total() > 0, summary
    assert set(acknowledged) >= {"create", "upload", "patch", "tag", "untag", "share", "delete", "list", "show"}


@contextlib.contextmanager
def _two_services(server: Server, state: Path) -> Iterator[list[Service]]:
    """On one new database and one store: one as it is by default, and one that soon gives a transaction up."""
    url = synced(server.reserved())
    conf = (
        f"[glance_store]\nfilesystem_store_datadir = {state}/store\n[jobs]\npoll = 0.5\n[database]\ndb_max_retries = "
    )
    with (
        running(state / "patient", f"{conf}{PATIENT}\n", database=url) as patient,
        running(state / "hasty", f"{conf}{HASTY}\n", database=url) as hasty,
    ):
        yield [patient, hasty]


def _restart(server: Server, workers: list[Worker], rng: random.Random, *, gently: bool) -> float:
    """One restart, after some load; how long the last client had to wait for a success once the server was there."""
    time.sleep(rng.uniform(0.2, 0.6))
    server.stop() if gently else server.kill()
    server.start()
    up = time.monotonic()
    while min(worker.last for worker in workers) < up and time.monotonic() < up + 2 * RECOVERY:
        time.sleep(0.01)
    return time.monotonic() - up


def _left(url: str, directory: Path) -> list[str]:
    """What is not as it must be at rest, seen from below; recovery has its time."""
    engine, end = sa.create_engine(url), time.monotonic() + RECOVERY
    while True:
        with engine.connect() as connection:
            images, jobs, places = tables.images, tables.jobs, tables.image_locations
            rows = connection.execute(sa.select(images.c.id, images.c.status, images.c.deleted)).all()
            found = [f"a job is left: {job}" for job in connection.execute(sa.select(jobs.c.kind, jobs.c.image_id))]
            living = sa.select(places.c.value).where(places.c.deleted == sa.false())
            located = Counter(Path(url).name for url in connection.execute(living).scalars())
        found += [f"{row.id} is {row.status}" for row in rows if row.status not in ("queued", "active", "deleted")]
        active = {row.id for row in rows if row.status == "active" and not row.deleted}
        found += [f"{name} has {located[name]} locations" for name in active if located[name] != 1]
        files = set(names(directory))
        found += [f"the file {name} belongs to no active image" for name in files - active]
        found += [f"the file of {name} is missing" for name in active - files]
        if not found or time.monotonic() > end:
            engine.dispose()
            return found
        time.sleep(0.1)
