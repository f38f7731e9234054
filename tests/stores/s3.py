"""An S3 server for tests, a proxy in front of it that does what servers and networks do wrong, and the kit of the driver.

The server is moto, one for a process of pytest, in a process of its own; each kit has buckets of its own. Let the tests
run against another server by `CALOTYPE_S3="http://127.0.0.1:28080 access secret"`.
"""

import atexit
import contextlib
import functools
import http.client
import os
import re
import secrets
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from calotype.buffers import Budget
from calotype.stores.base import Store
from calotype.stores.registry import DRIVERS
from calotype.stores.s3 import S3Store
from calotype.stores.s3_probe import KEY, crc32
from tests.stores.suite import Configured, Kit, Thing
from tests.support import until


@dataclass(frozen=True, slots=True)
class Server:
    """Where an S3 server is, and who may use it."""

    url: str
    access: str
    secret: str


@functools.cache
def server() -> Server:
    """The server of this process, which ends with it."""
    if given := os.environ.get("CALOTYPE_S3"):
        return Server(*given.split())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @atexit.register
    def end() -> None:
        process.terminate()
        process.wait()

    def answers() -> bool:
        assert process.poll() is None, "moto ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    until(answers, seconds=60)
    return Server(f"http://127.0.0.1:{port}", "the-access-key", "the/secret+key")


@functools.cache
def raw_client() -> Any:
    """botocore itself, past the driver and the proxy."""
    one = server()
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=one.url,
        region_name="us-east-1",
        aws_access_key_id=one.access,
        aws_secret_access_key=one.secret,
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


# --- the proxy -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Asked:
    """A request that came to the proxy."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def what(self) -> str:
        """What S3 calls it, as far as tests want to tell requests apart."""
        where = urlsplit(self.path)
        names = [one.partition("=")[0] for one in where.query.split("&")]
        if "uploads" in names:
            return "create" if self.method == "POST" else "list"
        if "partNumber" in names:
            return "part"
        if "uploadId" in names:
            return {"POST": "complete", "DELETE": "abort"}.get(self.method, "parts")
        return self.method.lower()


_CHECKSUM = "x-amz-checksum-crc32"
#: What the proxy does instead of passing a request on, or with its answer.
Fault = Callable[["Handler", Asked], None]


def status(number: int, code: str = "InternalError") -> Fault:
    """Answer with an error of S3."""

    def answer(handler: "Handler", asked: Asked) -> None:
        text = b"" if asked.method == "HEAD" else f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
        handler.answer(number, {"Content-Type": "application/xml"}, text)

    return answer


def hang(handler: "Handler", asked: Asked) -> None:
    """Answer nothing until the proxy is well again."""
    handler.proxy.well.wait(60)
    handler.break_off()


def refuse(handler: "Handler", asked: Asked) -> None:
    """Break the connection off."""
    handler.break_off()


def lose_answer(handler: "Handler", asked: Asked) -> None:
    """Let the server do what it was asked to, and break the connection off."""
    handler.ask(asked)
    handler.break_off()


def cut(after: int) -> Fault:
    """Send so many bytes of the answer's body, and break the connection off."""

    def answer(handler: "Handler", asked: Asked) -> None:
        found, headers, body = handler.ask(asked)
        handler.head(found, {**headers, "Content-Length": str(len(body))})
        handler.wfile.write(body[:after])
        handler.break_off()

    return answer


def shorten(handler: "Handler", asked: Asked) -> None:
    """Announce and send one byte less than there is, as if that were all."""
    found, headers, body = handler.ask(asked)
    if "Content-Range" in headers:
        place, _, total = headers["Content-Range"].rpartition("/")
        first, _, last = place.partition("-")
        headers["Content-Range"] = f"{first}-{int(last) - 1}/{int(total) - 1}"
    handler.answer(found, headers, body[:-1])


def falsify(handler: "Handler", asked: Asked) -> None:
    """Change one byte of what is sent to the server."""
    asked.body = bytes([asked.body[0] ^ 1]) + asked.body[1:]
    handler.answer(*handler.ask(asked))


def verify(handler: "Handler", asked: Asked) -> None:
    """Keep checksums of parts, which moto does not: refuse what differs from its own, and repeat it in the answer."""
    names = {name.lower(): name for name in asked.headers}
    given = asked.headers[names[_CHECKSUM]] if _CHECKSUM in names else None
    if given is not None and given != crc32(memoryview(asked.body)):
        status(400, "BadDigest")(handler, asked)
        return
    found, headers, body = handler.ask(asked)
    handler.answer(found, {**headers, _CHECKSUM: given} if given else headers, body)


def without(*headers: str) -> Fault:
    """Hide headers from the server, as if it did not know them."""

    def answer(handler: "Handler", asked: Asked) -> None:
        asked.headers = {name: value for name, value in asked.headers.items() if name.lower() not in headers}
        handler.answer(*handler.ask(asked))

    return answer


class Handler(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    proxy: "Proxy"

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):
            super().handle_one_request()

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, dict(self.headers.items()), body)
        fault = self.proxy.choose(asked)
        if fault is not None:
            fault(self, asked)
        else:
            self.answer(*self.ask(asked))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815

    def ask(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        """What the server answers."""
        place = urlsplit(server().url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        headers = {name: value for name, value in asked.headers.items() if name.lower() not in ("expect", "connection")}
        connection.request(asked.method, asked.path, asked.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        connection.close()
        if answer.status == 500 and asked.what in ("part", "complete") and not _has_upload(asked):
            return 404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchUpload</Code></Error>"
        if asked.what in ("create", "list"):
            body = self.proxy.with_times(asked.what, body)
        return answer.status, kept, body

    def head(self, number: int, headers: dict[str, str]) -> None:
        self.send_response(number)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "server"):
                self.send_header(name, value)
        self.end_headers()

    def answer(self, number: int, headers: dict[str, str], body: bytes) -> None:
        if self.command != "HEAD" and number != 204:
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        self.head(number, headers)
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])
            if not self.proxy.well.is_set():  # it hangs from here on
                self.proxy.well.wait(60)
                self.break_off()
                return

    def break_off(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + 3600 * self.proxy.hours)

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


def _has_upload(asked: Asked) -> bool:
    """Whether the upload of a request exists. If it does not, moto fails, where S3 says so."""
    place = urlsplit(asked.path)
    _, bucket, key = place.path.split("/")
    try:
        raw_client().list_parts(Bucket=bucket, Key=key, UploadId=parse_qs(place.query)["uploadId"][0])
    except ClientError:
        return False
    return True


class Proxy:
    """Passes requests to the server, but for those that a fault was ordered for."""

    def __init__(self, certificate: Path | None = None) -> None:
        """`certificate` is a PEM file, with the key in it, for a proxy that speaks TLS."""
        self.asked: list[Asked] = []
        self.well = threading.Event()  #: whether it does not hang
        self.well.set()
        self.hours = 0.0  #: how far the server's clock is ahead
        self.tries: dict[str, Fault] = {}  #: what is done to the tries of a probe, by their kind
        self._faults: list[tuple[str, Fault, int]] = []
        self._created: dict[bytes, datetime] = {}
        self._lock = threading.Lock()
        handler = type("Bound", (Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def order(self, what: str, fault: Fault, times: int = 1) -> None:
        """Do this to the next requests of this kind (`Asked.what`, or `*`); -1: to all of them."""
        with self._lock:
            self._faults.append((what, fault, times))

    @contextlib.contextmanager
    def always(self, fault: Fault, what: str = "*") -> Iterator[None]:
        self.order(what, fault, -1)
        try:
            yield
        finally:
            self.heal()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        self.well.clear()
        try:
            yield
        finally:
            self.well.set()

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def choose(self, asked: Asked) -> Fault | None:
        with self._lock:
            self.asked.append(asked)
            if not self.well.is_set():
                return hang
            if f"/{KEY}" in asked.path:
                return self.tries.get(asked.what) or self.tries.get("*")
            for number, (what, fault, times) in enumerate(self._faults):
                if what in ("*", asked.what):
                    self._faults[number] = what, fault, times - 1
                    if times == 1:
                        del self._faults[number]
                    return fault
        return None

    def with_times(self, what: str, body: bytes) -> bytes:
        """An answer with the times at which uploads were created, or were first listed: moto tells none."""
        found = re.compile(rb"<UploadId>(.+?)</UploadId>").findall(body)
        times = [self._created.setdefault(one, datetime.now(UTC)).isoformat().encode() for one in found]
        return (
            body
            if what == "create"
            else re.sub(rb"<Initiated>.*?(?=</)", lambda _: b"<Initiated>" + times.pop(0), body)
        )

    def count(self, what: str) -> int:
        """How many requests of a kind came for objects of images."""
        return sum(asked.what == what and f"/{KEY}" not in asked.path for asked in self.asked)

    def close(self) -> None:
        self.well.set()
        self._http.shutdown()
        self._http.server_close()


# --- the kit ---------------------------------------------------------------------------------------------


class Buckets(Kit):
    """Buckets on a server, reached through a proxy."""

    patience = 15.0
    read_timeout = 4.0
    reads_outlive_deletes = False

    def __init__(self, _: Path | None = None, *, certificate: Path | None = None, **options: Any) -> None:
        self.proxy = Proxy(certificate)
        self.raw = raw_client()
        self.memory = Budget(256 << 20)
        self._nonce = secrets.token_hex(4)
        self._options = options
        self._made: set[str] = set()

    def bucket(self, name: str = "one") -> str:
        bucket = f"{name}-{self._nonce}"
        if bucket not in self._made:
            self._made.add(bucket)
            self.raw.create_bucket(Bucket=bucket)
        return bucket

    def options(self, name: str = "one") -> dict[str, Any]:
        one = server()
        return {
            "s3_store_host": self.proxy.url,
            "s3_store_access_key": one.access,
            "s3_store_secret_key": one.secret,
            "s3_store_bucket": self.bucket(name),
        }

    def store(self, name: str = "one", **more: Any) -> S3Store:
        defaults = {option.dest: option.default for option in DRIVERS["s3"].options}
        timeouts = {"connect_timeout": self.read_timeout, "read_timeout": self.read_timeout}
        given = {"part_memory": self.memory, **timeouts, **self.options(name), **self._options, **more}
        return S3Store(name, defaults | given)

    def uploads(self, name: str = "one") -> list[Any]:
        """The multipart uploads that have not ended."""
        found = self.raw.list_multipart_uploads(Bucket=self.bucket(name)).get("Uploads", ())
        return [one for one in found if one["Key"] != KEY]

    def things(self) -> list[Thing]:
        bucket, things = self.bucket(), [Thing(f"{one['Key']} {one['UploadId']}") for one in self.uploads()]
        for page in self.raw.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for one in page.get("Contents", ()):
                url = f"s3://{urlsplit(self.proxy.url).netloc}/{bucket}/{one['Key']}"
                things.append(Thing(one["Key"], url, one["Size"]))
        return [thing for thing in things if thing.name != KEY]

    def configured(self) -> Configured:
        return Configured("s3", self.options())

    def full(self, store: Store) -> contextlib.AbstractContextManager[None]:
        return self.proxy.always(status(403, "QuotaExceeded"), "part")

    def broken(self, store: Store) -> contextlib.AbstractContextManager[None]:
        return self.proxy.always(status(500))

    def hanging(self, store: Store) -> contextlib.AbstractContextManager[None]:
        return self.proxy.hanging()

    def truncate(self, store: Store, url: str) -> None:
        bucket, key = self.bucket(), url.rpartition("/")[2]
        found = self.raw.get_object(Bucket=bucket, Key=key)
        data, metadata = found["Body"].read()[:-1], found["Metadata"]
        self.raw.put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata)

    def close(self) -> None:
        self.proxy.close()
