"""More threads than connections, and a database that hangs."""

import contextlib
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.databases import Server, synced
from tests.support import OCTETS, PASSWORD, Service, running

_CREDENTIALS = "Basic " + b64encode(f"alice:{PASSWORD}".encode()).decode()
DOWNLOAD = 16 << 20


@contextlib.contextmanager
def serving(server: Server, state: Path, options: str) -> Iterator[Service]:
    """A service on a new database of this server; `options` are of the section [database]."""
    with running(state, f"[database]\n{options}", database=synced(server.reserved())) as service:
        yield service


def _half_uploaded(service: Service, image_id: str) -> socket.socket:
    """An upload that waits for the rest of its body."""
    sock = socket.create_connection(("127.0.0.1", service.port))
    head = f"PUT /v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nAuthorization: {_CREDENTIALS}\r\n"
    head += f"Content-Type: {OCTETS['Content-Type']}\r\nContent-Length: 9\r\n\r\n"
    sock.sendall(head.encode() + b"some")
    return sock


def _half_downloaded(service: Service, image_id: str) -> socket.socket:
    """A download that nobody takes the rest of."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", service.port))
    head = f"GET /v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nAuthorization: {_CREDENTIALS}\r\n\r\n"
    sock.sendall(head.encode())
    assert sock.recv(15) == b"HTTP/1.1 200 OK"
    return sock


def test_slow_transfers_hold_no_connection(server: Server, state: Path) -> None:
    options = "max_pool_size = 1\nmax_overflow = 1\npool_timeout = 5\n"
    with serving(server, state, options) as service:
        alice = service.client()
        name = service.database_url.rpartition("/")[2]
        large = alice.active(bytes(DOWNLOAD))
        with ThreadPoolExecutor(8) as pool:
            queued = list(pool.map(lambda _: service.client().queued(), range(40)))
        uploads = [_half_uploaded(service, image_id) for image_id in queued]
        downloads = [_half_downloaded(service, large) for _ in range(40)]
        end = time.monotonic() + 10
        while {alice.show(image_id)["status"] for image_id in queued} != {"saving"}:
            assert time.monotonic() < end, "the uploads did not begin"

        took: list[float] = []
        most = [0]
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                most[0] = max(most[0], server.connections(name))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:

            def ask(number: int) -> None:
                client = service.client()
                begin = time.monotonic()
                image_id = client.active(b"x")
                assert client.get("/v2/images?limit=5").status_code == 200
                assert client.patch(image_id, {"op": "replace", "path": "/name", "value": "n"}).status_code == 200
                assert client.delete(image_id).status_code == 204
                took.append((time.monotonic() - begin) / 5)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(ask, range(12)))
        finally:
            over.set()
            watcher.join()
        assert max(took) < 10
        # max_pool_size + max_overflow + 2 for leases and jobs.
        assert 0 < most[0] <= 4
        for sock in uploads:
            sock.sendall(b" data")
        for sock in uploads:
            assert sock.recv(12) == b"HTTP/1.1 204"
        assert {alice.show(image_id)["status"] for image_id in queued} == {"active"}
        for sock in [*uploads, *downloads]:
            sock.close()


def test_a_database_that_hangs_is_given_up_and_found_again(server: Server, state: Path) -> None:
    with serving(server, state, "response_timeout = 2\npool_timeout = 2\n") as service:
        alice = service.client()
        image_id = alice.active(b"some data")

        def ask(number: int) -> int:
            path = f"/v2/images/{image_id}"
            client = service.client()
            return (client.request("PUT", f"{path}/tags/t{number}") if number % 2 else client.get(path)).status_code

        begin = time.monotonic()
        with server.paused(), ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == [503] * 8
            assert 1 < time.monotonic() - begin < 20
        begin = time.monotonic()
        assert [ask(0), ask(1)] == [200, 204]
        assert alice.file(image_id).content == b"some data"
        assert time.monotonic() - begin < 20
        assert "Traceback" not in service.log


def test_the_start_waits_for_the_database(server: Server, state: Path) -> None:
    service = Service(state, "[database]\nretry_interval = 1\n", database=synced(server.reserved()))
    server.stop()
    try:
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(service.start)
            end = time.monotonic() + 20
            while not (state / "serve.log").exists() or "waiting for the database" not in service.log:
                assert time.monotonic() < end
                time.sleep(0.02)
            server.start()
            started.result()
        assert service.client().create(name="n").status_code == 201
    finally:
        if not server.running:
            server.start()
        service.stop()
