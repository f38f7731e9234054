"""`python -m bench.imports`: what imports cost beside their floors, and what other clients notice of them, in one run.

    python -m bench.imports [--size MiB] [--times N] [--directory DIR]

Three measurements. One import by web-download, beside `curl` into a synced file on the same disk and beside the hashes
of warm memory. The same import into two stores. And twenty imports at once, while other clients ask for `/healthcheck`
and for an image. Seconds are wall time; floors and service take turns, and medians count.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import Client, Service

from bench import floors
from bench.client import MIB, Connection, Target, basic

_FORK = multiprocessing.get_context("fork")
_CONF = """\
[DEFAULT]
enabled_backends = one:file, two:file
enabled_import_methods = web-download
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {state}/one
[two]
filesystem_store_datadir = {state}/two
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.1
"""
#: How many imports run at once for the third measurement, and of how many MiB each is.
CROWD, CROWD_SIZE = 20, 64


@contextmanager
def web_server(path: Path) -> Iterator[int]:
    """Serve one file by sendfile, whatever is asked for, in a process of its own; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = _FORK.Process(target=_serve, args=(listening, path), daemon=True)
    process.start()
    port = listening.getsockname()[1]
    listening.close()
    try:
        yield port
    finally:
        process.terminate()
        process.join()


def _serve(listening: socket.socket, path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        with connection, path.open("rb") as file:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := connection.recv(64 << 10)):
                    return
                head += more
            size = path.stat().st_size
            start = int(found[1]) if (found := re.search(rb"(?i)range: bytes=(\d+)-", head)) else 0
            status = f"206 Partial Content\r\nContent-Range: bytes {start}-{size - 1}/{size}" if start else "200 OK"
            connection.sendall(
                f'HTTP/1.1 {status}\r\nContent-Length: {size - start}\r\nETag: "1"\r\n'
                "Connection: close\r\n\r\n".encode()
            )
            if not head.startswith(b"HEAD"):
                connection.sendfile(file, start)

    while True:
        threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()


def curl(url: str, directory: Path) -> float:
    """Seconds for `curl` to fetch a file and for a sync of it."""
    path = directory / "fetched"
    begin = time.monotonic()
    subprocess.run(["curl", "--silent", "--fail", "--noproxy", "*", "--output", str(path), url], check=True)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - begin
    path.unlink()
    return seconds


def hashes(size: int) -> float:
    """Seconds for both hashes of warm memory, each in its thread."""
    block = bytes(range(256)) * (MIB // 256)

    def one(name: str) -> None:
        found = hashlib.new(name, usedforsecurity=False)
        for _ in range(size // MIB):
            found.update(block)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("md5", "sha512")]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin


def begin_import(alice: Client, url: str, stores: list[str]) -> str:
    """Ask for an import; the id of the image."""
    image_id = alice.queued()
    asked = {"method": {"name": "web-download", "uri": url}, "stores": stores}
    answer = alice.request("POST", f"/v2/images/{image_id}/import", json=asked)
    if answer.status_code != 202:
        raise SystemExit(f"the import was refused: {answer.status_code} {answer.text}")
    return image_id


def wait(alice: Client, image_id: str) -> None:
    """Wait until an import has ended in all of its stores."""
    while True:
        image = alice.show(image_id)
        if image["status"] == "active" and not image.get("os_glance_importing_to_stores"):
            return
        if image["status"] == "queued" or image.get("os_glance_failed_import"):
            raise SystemExit(f"the import failed: {image}")
        time.sleep(0.02)


def one_import(alice: Client, url: str, *stores: str) -> float:
    """Seconds from the request to the end of the import."""
    begin = time.monotonic()
    image_id = begin_import(alice, url, list(stores))
    wait(alice, image_id)
    seconds = time.monotonic() - begin
    alice.delete(image_id)
    return seconds


def latencies(target: Target, path: str, done: threading.Event, found: list[float]) -> None:
    """Ask again and again, with a pause, until `done`; seconds of each request."""
    connection = Connection(target)
    while not done.is_set():
        begin = time.monotonic()
        connection.get(path)
        found.append(time.monotonic() - begin)
        done.wait(0.02)


@contextmanager
def asking(service: Service, image_id: str) -> Iterator[dict[str, list[float]]]:
    """Two clients that ask during the block; the seconds of their requests."""
    done = threading.Event()
    found: dict[str, list[float]] = {"GET /healthcheck": [], "GET image": []}
    target = Target(service.port, basic("alice"))
    paths = ("/healthcheck", f"/v2/images/{image_id}")
    threads = [
        threading.Thread(target=latencies, args=(target, path, done, kept))
        for path, kept in zip(paths, found.values(), strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        done.set()
        for thread in threads:
            thread.join()


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def crowd(service: Service, alice: Client, url: str) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """Latencies at rest and during twenty imports, and seconds until the last of these has ended."""
    shown = alice.queued()
    with asking(service, shown) as rest:
        time.sleep(15)
    with asking(service, shown) as busy:
        begin = time.monotonic()
        images = [begin_import(alice, url, ["one"]) for _ in range(CROWD)]
        for image_id in images:
            wait(alice, image_id)
        seconds = time.monotonic() - begin
    for image_id in (*images, shown):
        alice.delete(image_id)
    return rest, busy, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure imports against their floors.")
    parser.add_argument("--size", type=int, default=1024, help="MiB an import, default 1024")
    parser.add_argument("--times", type=int, default=5, help="rounds, default 5")
    parser.add_argument("--directory", type=Path, help="where to put files; default: a temporary directory")
    parser.add_argument("--crowd", action="store_true", help="only the twenty imports at once")
    options = parser.parse_args()
    if not shutil.which("curl"):
        raise SystemExit("curl is missing")
    size = options.size * MIB
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        state = directory / "state"
        service = Service(state, _CONF.format(state=state)).start()
        try:
            alice = service.client("alice")
            if not options.crowd:
                with floors.cached_file(directory, size) as path, web_server(path) as port:
                    transfers(alice, f"http://127.0.0.1:{port}/disk", directory, size, options.times)
            with floors.cached_file(directory, CROWD_SIZE * MIB) as path, web_server(path) as port:
                report_crowd(*crowd(service, alice, f"http://127.0.0.1:{port}/disk"))
        finally:
            service.stop()


def transfers(alice: Client, url: str, directory: Path, size: int, times: int) -> None:
    """Imports into one and two stores, in turns with their floors."""
    found: dict[str, list[float]] = {name: [] for name in ("curl", "hashes", "one", "two")}
    one_import(alice, url, "one")  # warms up
    for _ in range(times):
        found["curl"].append(curl(url, directory))
        found["hashes"].append(hashes(size))
        found["one"].append(one_import(alice, url, "one"))
        found["two"].append(one_import(alice, url, "one", "two"))
    medians = {name: statistics.median(values) for name, values in found.items()}
    floor = max(medians["curl"], medians["hashes"])
    print(f"seconds for {size // MIB} MiB, medians of {times}:")
    print(f"  curl into a synced file      {medians['curl']:6.2f}")
    print(f"  md5 and sha512 side by side  {medians['hashes']:6.2f}")
    print(f"  web-download into one store  {medians['one']:6.2f}   {medians['one'] / floor:.2f} x the slower floor")
    print(f"  into two stores              {medians['two']:6.2f}   {medians['two'] / medians['one']:.2f} x one store")


def report_crowd(rest: dict[str, list[float]], busy: dict[str, list[float]], seconds: float) -> None:
    print(f"{CROWD} imports of {CROWD_SIZE} MiB at once ended after {seconds:.1f} s; milliseconds of other requests:")
    for name, idle in rest.items():
        ratio = p99(busy[name]) / p99(idle)
        print(
            f"  {name:18} p99 {p99(idle) * 1e3:6.1f} at rest ({len(idle)}), {p99(busy[name]) * 1e3:6.1f} "
            f"meanwhile ({len(busy[name])})   {ratio:.2f} x"
        )


if __name__ == "__main__":
    main()
