"""What the list machinery and the server of our own buy: each part is taken out, and the same requests are made again.

    python -m bench.worth [--database KIND] [--images N] [--size MiB] [part …]

Parts of lists are taken out within one process, as in `layers.py`: CPU-milliseconds of the process and of the database
server for a call. Instead of `server`, `socket_body` and `threads` stands what gunicorn and Python bring along:
gunicorn's threaded worker with its own bodies, which `api/body.py` reads, and Python's executor.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import sqlalchemy as sa
from tests.databases import KINDS
from tests.support import Service

from bench import layers, meter, services
from bench.__main__ import cpu, put, target
from bench.client import MIB, Connection
from calotype.db import compare, documents, pages, visibility
from calotype.db.record_cache import RecordCache, id_of, stamp
from calotype.db.tables import image_locations, image_properties, image_tags
from calotype.db.tables import images as table
from calotype.model import Location
from calotype.threads import ThreadPool

DEFAULT, BY_NAME, TWO = "/v2/images", "/v2/images?sort=name:asc", "/v2/images?sort=name:asc,size:desc"


# --- lists -----------------------------------------------------------------------------------------------


def _every_time(build: Callable[..., Any]) -> Callable[..., Any]:
    def answered(search: Any) -> Any:
        pages.forget_statements()
        return build(search)

    return answered


def _one_statement(search: Any) -> Any:
    """The list as it is usually asked for: all that the caller sees, sorted."""
    wanted = [visibility.holds(search.branches), *pages._LIVING, pages._LISTED, *search.filter_shape.conditions()]
    if search.marker is not None:
        wanted.append(search.order.after(search._unset()))
    found = sa.select(stamp).where(*wanted).order_by(*search.order.by()).limit(pages._LIMIT)
    return search.tx.execute(found, search.values | {"most": search.limit}).scalars().all()


def _four_statements(tx: Any, cache: RecordCache, stamps: list[str]) -> dict[str, Any]:
    """The records of a page as they are usually read: a statement for each table, and a row for each value."""
    ids = {"ids": [id_of(one) for one in stamps]}
    wanted: Any = sa.bindparam("ids", expanding=True)
    rows = tx.execute(
        sa.select(stamp, *(table.c[name] for name in documents.COLUMNS)).where(table.c.id.in_(wanted)), ids
    )
    more: list[dict[str, list[Any]]] = []
    for other in (image_properties, image_tags, image_locations):
        statement = sa.select(other).where(other.c.image_id.in_(wanted), other.c.deleted == sa.false())
        more.append(found := {})
        for row in tx.execute(statement, ids):
            found.setdefault(row.image_id, []).append(row)
    records = {}
    for row in rows:
        properties, tags, locations = (found.get(row.id, ()) for found in more)
        records[row.stamp] = pages.Image(
            *row[1:],
            properties={one.name: one.value for one in properties},
            tags=tuple(sorted(one.value for one in tags)),
            locations=tuple(Location(one.id, one.value, documents.metadata_of(one.meta_data)) for one in locations),
        )
    return {one: cache.put(one, record) for one, record in records.items()}


@contextlib.contextmanager
def _as_standard_sql() -> Iterator[None]:
    """Rows compared as rows, and joins in the order that the database likes."""
    kept = []
    for element in (compare._RowAbove, compare._RowBelow, compare._JoinFrom):
        specs = element._compiler_dispatcher.specs
        kept.append((specs, dict(specs)))
        for name in ("mysql", "mariadb", "sqlite"):
            specs.pop(name, None)
    yield
    for specs, before in kept:
        specs.update(before)


def _empty_cache() -> Any:
    return mock.patch.object(RecordCache, "_entry", return_value=None)


#: The part: what takes it out, what is taken out in both cases, and what is asked for. `{marker}` is in the middle.
LISTS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Sequence[str]]] = {
    "record cache": (_empty_cache, contextlib.nullcontext, (layers.PATHS[0], DEFAULT, "/v2/images?limit=1000")),
    "documents and nesting": (
        lambda: mock.patch.object(pages, "_read", _four_statements),
        _empty_cache,
        (DEFAULT, "/v2/images?limit=1000"),
    ),
    "filters": (
        lambda: mock.patch.object(pages._Search, "stamps", _every_time(pages._Search.stamps)),
        contextlib.nullcontext,
        (DEFAULT, TWO),
    ),
    "pages": (
        lambda: mock.patch.object(pages._Search, "stamps", _one_statement),
        contextlib.nullcontext,
        (DEFAULT, BY_NAME, TWO),
    ),
    "compare": (_as_standard_sql, contextlib.nullcontext, (DEFAULT, "/v2/images?marker={marker}", TWO)),
}


def lists(parts: Sequence[str], database: str, number: int) -> None:
    with layers.application(database, number) as (app, url, image_id):
        call, engine = layers.caller(app), sa.create_engine(url)
        server = meter.database_server(engine)
        with engine.connect() as connection:
            order = sa.select(table.c.id).where(table.c.deleted == sa.false(), table.c.os_hidden == sa.false())
            order = order.order_by(table.c.created_at.desc(), table.c.id.desc()).offset(number // 2).limit(1)
            marker = connection.execute(order).scalar()

        def spent(path: str) -> tuple[float, float]:
            app.db.close()
            app.db.reads.clear_compiled_cache()
            pages.forget_statements()
            call(path)
            calls, before, of_server = 0, time.process_time(), server.cpu()
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                call(path)
                calls += 1
            ours = time.process_time() - before
            return 1000 * ours / calls, 1000 * (server.cpu() - of_server) / calls

        for part in parts:
            without, both, paths = LISTS[part]
            for path in paths:
                path = path.replace("{id}", str(image_id)).replace("{marker}", str(marker))
                samples: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
                with both():
                    for _ in range(3):
                        samples[True].append(spent(path))
                        with without():
                            samples[False].append(spent(path))
                texts = []
                for there in (True, False):
                    ours, theirs = (statistics.median(column) for column in zip(*samples[there], strict=True))
                    texts.append(f"{ours:.2f} + {theirs:.2f}")
                print(f"{part}: {path}: {texts[0]} CPU-ms (process + database), without {texts[1]}", flush=True)


# --- the server ------------------------------------------------------------------------------------------


class Plain(Service):
    """The same application under gunicorn's own threaded worker."""

    def _launch(self, _arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        (self.state / "calotype.conf").rename(self.state / "glance-api.conf")
        settings = ["--worker-class", "gthread", "--threads", "16", "--bind", f"127.0.0.1:{self.port}"]
        settings += ["--preload", "--no-control-socket", "--keep-alive", "15", "--worker-tmp-dir", "/dev/shm"]
        with (self.state / "serve.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *settings, "calotype.wsgi:application"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OS_GLANCE_CONFIG_DIR": str(self.state)},
            )


@contextlib.contextmanager
def both(directory: Path) -> Iterator[list[Service]]:
    found: list[Service] = []
    try:
        for kind in (Service, Plain):
            state = directory / kind.__name__
            state.mkdir(mode=0o700)
            services.sync(f"sqlite:///{state}/calotype.db")
            conf = f"[DEFAULT]\nstate_dir = {state}\n[server]\nthreads = 16\n"
            found.append(kind(state, conf).start())
        yield found
    finally:
        for service in found:
            service.stop()


def server(directory: Path, _size: int) -> None:
    """40 clients that send half a head and stay, and one that asks."""
    with both(directory) as found:
        for service in found:
            with contextlib.ExitStack() as stack:
                for _ in range(40):
                    sock = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                    sock.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n")
                time.sleep(0.5)
                begun = time.monotonic()
                try:
                    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
                        sock.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        sock.recv(100)
                        text = f"an answer after {1000 * (time.monotonic() - begun):.0f} ms"
                except TimeoutError:
                    text = "no answer in 20 s"
            print(f"server: {type(service).__name__}, 16 threads, 40 half heads: {text}", flush=True)
        for _ in range(3):
            for service in found:
                with contextlib.closing(Connection(target(service))) as client:
                    count, before, end = 0, cpu(service), time.monotonic() + 2
                    while time.monotonic() < end:
                        client.get("/v2/images")
                        count += 1
                    used = 1000 * (cpu(service) - before) / count
                print(
                    f"server: {type(service).__name__}, lists in turn: {count / 2:.0f}/s, {used:.2f} CPU-ms", flush=True
                )


def socket_body(directory: Path, size: int) -> None:
    with both(directory) as found:
        for chunk in (None, 64 << 10, 4 << 10):
            used: dict[str, list[float]] = {}
            for service in found * 3:
                before = cpu(service)
                put(service, service.client("alice"), size, chunk, figures=None)
                used.setdefault(type(service).__name__, []).append(cpu(service) - before)
            text = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in used.items())
            print(f"socket_body: PUT of {size // MIB} MiB, chunk {chunk}: CPU-s {text}", flush=True)


def _crowd(go: threading.Event) -> None:
    bytearray(MIB)
    go.wait()


def threads(_directory: Path, _size: int) -> None:
    """Memory of a process before, during and 7 s after a crowd of 1,000, each of which has a MiB for a moment."""
    for kind in (ThreadPool, ThreadPoolExecutor):
        if os.fork() == 0:
            process = psutil.Process()
            pool: Any = kind(2048)
            go = threading.Event()
            seen = [process.memory_info().rss]

            for _ in range(1000):
                pool.submit(partial(_crowd, go))
            time.sleep(1)
            seen.append(process.memory_info().rss)
            go.set()
            time.sleep(7)
            seen.append(process.memory_info().rss)
            text = ", ".join(f"{one // MIB} MiB" for one in seen)
            print(f"threads: {kind.__name__}: {text}; then {process.num_threads()} threads", flush=True)
            os._exit(0)
        os.wait()


SERVER: dict[str, Callable[[Path, int], None]] = {"server": server, "socket_body": socket_body, "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what parts buy.")
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"of these: {', '.join([*LISTS, *SERVER])}; default: all"
    )
    parser.add_argument("--database", choices=KINDS, default="mariadb")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512, help="MiB of an upload, default %(default)s")
    options = parser.parse_args()
    wanted = options.parts or [*LISTS, *SERVER]
    for part in wanted:
        if part in SERVER:
            with tempfile.TemporaryDirectory(prefix="calotype-worth-") as name:
                SERVER[part](Path(name), options.size * MIB)
    if listed := [part for part in wanted if part in LISTS]:
        lists(listed, options.database, options.images)


if __name__ == "__main__":
    main()
