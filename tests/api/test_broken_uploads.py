"""Uploads that break off, lie about their size, frame their chunks wrongly, are too large, unsafe or not allowed.

Whatever happens, nothing stays in a store, the image is queued again within seconds, and the next upload to the
same id succeeds byte for byte. Broken bodies are sent through a bare socket, as no HTTP library would send them.
"""

import contextlib
import os
import random
import socket
import struct
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import requests

from tests.support import OCTETS, PASSWORD, Client, Service

pytestmark = pytest.mark.any_database

KIB, MIB = 1 << 10, 1 << 20
SIZES = pytest.mark.parametrize("size", [KIB, 3 * MIB], ids=["1KiB", "3MiB"])
#: How long an image may take to be queued again, seconds.
PATIENCE = 5.0


class Wire:
    """One connection that sends what it is told."""

    def __init__(self, service: Service, user: str = "alice") -> None:
        self._client = service.client(user)
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=15)
        self._credentials = b64encode(f"{user}:{PASSWORD}".encode()).decode()

    def head(self, image_id: str, **headers: object) -> None:
        lines = [f"PUT /v2/images/{image_id}/file HTTP/1.1", "Host: localhost"]
        lines += [f"Authorization: Basic {self._credentials}", "Content-Type: application/octet-stream"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        # The server may have refused already; what counts is the answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def chunks(self, data: bytes, step: int = 100_000) -> None:
        for at in range(0, len(data), step):
            self.send(chunk(data[at : at + step]))

    def begun(self, image_id: str) -> None:
        """Wait until the service receives the data: a connection cut earlier would be no upload at all."""
        end = time.monotonic() + PATIENCE
        while self._client.show(image_id)["status"] != "saving":
            assert time.monotonic() < end
            time.sleep(0.005)

    def end(self) -> None:
        """No more will come, but an answer is welcome."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Cut the line at once, as a client's machine that crashes and comes back."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def status(self) -> int | None:
        """The status of the answer, None when there is none."""
        received = b""
        with contextlib.suppress(OSError):
            while b"\r\n" not in received and (got := self._socket.recv(4096)):
                received += got
        self._socket.close()
        return int(received.split()[1]) if received else None


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def noise(size: int) -> bytes:
    """Bytes of no known format, different each time."""
    return b"noise!" + bytes(506) + random.randbytes(size - 512)


def is_queued_and_gone(service: Service, client: Client, image_id: str) -> None:
    """Wait until the image is queued and no store holds anything of it."""
    end = time.monotonic() + PATIENCE
    while True:
        shown = client.show(image_id)
        left = [path.name for store in ("fast", "cheap") for path in (service.state / store).glob(f"{image_id}*")]
        if shown["status"] == "queued" and not left:
            break
        assert time.monotonic() < end, f"after {PATIENCE} s the image is {shown['status']}, files: {left}"
        time.sleep(0.02)
    assert (shown["size"], shown["checksum"], shown["os_hash_value"]) == (None, None, None)
    assert client.file(image_id).status_code == 204


def takes(client: Client, image_id: str, data: bytes, **headers: str) -> None:
    """An upload succeeds, and the bytes come back."""
    answer = client.put(image_id, data, **headers)
    assert answer.status_code == 204, answer.text
    assert client.show(image_id)["status"] == "active"
    assert client.file(image_id).content == data


# --- bodies that break -----------------------------------------------------------------------------------

Break = Callable[[Wire, str, bytes], None]


def _length_cut(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    wire.send(data[: len(data) // 2])
    wire.end()


def _length_cut_before_last_byte(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    wire.send(data[:-1])
    wire.end()


def _length_without_body(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    wire.end()


def _chunk_cut(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Transfer_Encoding="chunked")
    wire.send(chunk(data)[: len(data) // 2])
    wire.end()


def _last_chunk_missing(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Transfer_Encoding="chunked")
    wire.chunks(data)
    wire.end()


def _last_chunk_cut(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Transfer_Encoding="chunked")
    wire.chunks(data)
    wire.send(b"0\r\n")
    wire.end()


def _chunked(wire: Wire, image_id: str, data: bytes, **headers: object) -> None:
    wire.head(image_id, Transfer_Encoding="chunked", **headers)
    wire.chunks(data)
    wire.send(b"0\r\n\r\n")


def _fewer_than_stated(wire: Wire, image_id: str, data: bytes) -> None:
    _chunked(wire, image_id, data, x_openstack_image_size=len(data) + 1)


def _more_than_stated(wire: Wire, image_id: str, data: bytes) -> None:
    _chunked(wire, image_id, data, x_openstack_image_size=len(data) - 1)


def _length_and_stated_size_differ(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data), x_openstack_image_size=len(data) + 1)
    wire.send(data)


def _framed(*, size: bytes, end: bytes = b"\r\n") -> Break:
    """A second chunk with a size line and an end as given."""

    def broken(wire: Wire, image_id: str, data: bytes) -> None:
        half = len(data) // 2
        wire.head(image_id, Transfer_Encoding="chunked")
        wire.send(chunk(data[:half]))
        wire.send(size % (len(data) - half) + data[half:] + end + b"0\r\n\r\n")
        wire.end()

    return broken


def _length_reset(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    wire.send(data[: len(data) // 2])
    wire.begun(image_id)
    wire.reset()


def _chunked_reset(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Transfer_Encoding="chunked")
    wire.chunks(data[: len(data) // 2])
    wire.begun(image_id)
    wire.reset()


def _reset_before_the_body(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    wire.begun(image_id)
    wire.reset()


def _drip_then_reset(wire: Wire, image_id: str, data: bytes) -> None:
    wire.head(image_id, Content_Length=len(data))
    for at in range(10):
        wire.send(data[at * 10 : at * 10 + 10])
        time.sleep(0.03)
    wire.begun(image_id)
    wire.reset()


#: How a body breaks, and the status that the client still gets to see, None when it is gone.
BREAKS: dict[str, tuple[Break, int | None]] = {
    "half of its length": (_length_cut, 400),
    "a byte short of its length": (_length_cut_before_last_byte, 400),
    "a length and no body": (_length_without_body, 400),
    "cut within a chunk": (_chunk_cut, 400),
    "no last chunk": (_last_chunk_missing, 400),
    "cut within the last chunk": (_last_chunk_cut, 400),
    "fewer bytes than stated": (_fewer_than_stated, 400),
    "more bytes than stated": (_more_than_stated, 400),
    "a length that is not the stated size": (_length_and_stated_size_differ, 400),
    "a chunk size that is no number": (_framed(size=b"zz%x\r\n"), 400),
    "a negative chunk size": (_framed(size=b"-%x\r\n"), 400),
    "a chunk longer than its size": (_framed(size=b"%x\r\n", end=b"more\r\n"), 400),
    "a chunk without an end": (_framed(size=b"%x\r\n", end=b""), 400),
    "an endless chunk size": (_framed(size=b"0" * 5000 + b"%x\r\n"), 400),
    "a reset by length": (_length_reset, None),
    "a reset in chunks": (_chunked_reset, None),
    "a reset before the body": (_reset_before_the_body, None),
    "drops, then a reset": (_drip_then_reset, None),
}


@SIZES
@pytest.mark.parametrize(("broken", "status"), BREAKS.values(), ids=BREAKS.keys())
def test_a_body_that_breaks_leaves_a_queued_image(
    service: Service, alice: Client, broken: Break, status: int | None, size: int
) -> None:
    image_id, data = alice.queued(), noise(size)
    wire = Wire(service)
    broken(wire, image_id, data)
    if status is not None:
        assert wire.status() == status
    is_queued_and_gone(service, alice, image_id)
    takes(alice, image_id, noise(size))


@SIZES
def test_an_upload_that_breaks_again_and_again_succeeds_at_last(service: Service, alice: Client, size: int) -> None:
    image_id = alice.queued()
    for broken in (_length_cut, _chunk_cut, _more_than_stated, _chunk_cut):
        wire = Wire(service)
        broken(wire, image_id, noise(size))
        assert wire.status() == 400
        is_queued_and_gone(service, alice, image_id)
    takes(alice, image_id, noise(size))


@SIZES
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_slow_body_is_taken_whole(service: Service, alice: Client, size: int, chunked: bool) -> None:
    image_id, data = alice.queued(), noise(size)
    wire = Wire(service)
    wire.head(image_id, **({"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": size}))
    step = size // 12
    for at in range(0, size, step):
        piece = data[at : at + step]
        wire.send(chunk(piece) if chunked else piece)
        time.sleep(0.03)
        assert alice.show(image_id)["status"] in ("saving", "active", "queued")
    if chunked:
        wire.send(b"0\r\n\r\n")
    assert wire.status() == 204
    assert alice.file(image_id).content == data


# --- data that is refused --------------------------------------------------------------------------------


def qcow2(*, backing: bytes = b"", size: int = 64 * MIB) -> bytes:
    """A qcow2 file, version 3, as far as anybody looks; with the name of a backing file if there is one."""
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 512 if backing else 0, len(backing), 16, size)
    header += struct.pack(">IIQQIIQQQQII", 0, 1, 3 << 16, 1 << 16, 1, 0, 0, 0, 0, 0, 4, 104)
    return (header.ljust(512, b"\0") + backing).ljust(4 << 16, b"\0")


def iso() -> bytes:
    """The volume descriptor of an ISO 9660 disc behind an empty system area."""
    descriptor = b"\x01CD001\x01\0".ljust(80, b"\0") + struct.pack("<I", 32) + struct.pack(">I", 32)
    return (bytes(32 * KIB) + descriptor.ljust(128, b"\0") + struct.pack("<H", 2048)).ljust(64 * KIB, b"\0")


REFUSED: dict[str, tuple[str, bytes]] = {
    "iso data called qcow2": ("qcow2", iso()),
    "qcow2 data called iso": ("iso", qcow2()),
    "noise called qcow2": ("qcow2", noise(100 * KIB)),
    "noise called vmdk, larger than a buffer": ("vmdk", noise(3 * MIB)),
    "qcow2 with a backing file": ("qcow2", qcow2(backing=b"/etc/passwd")),
    "qcow2 with a backing file called raw": ("raw", qcow2(backing=b"/etc/passwd")),
    "qcow2 with a backing file, larger than a buffer": ("qcow2", qcow2(backing=b"/etc/passwd") + bytes(3 * MIB)),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("disk_format", "data"), REFUSED.values(), ids=REFUSED.keys())
def test_data_of_another_format_or_unsafe_data_is_refused(
    service: Service, alice: Client, disk_format: str, data: bytes, chunked: bool
) -> None:
    image_id = alice.queued(disk_format=disk_format)
    answer = alice.put(image_id, iter([data]) if chunked else data)
    assert answer.status_code == 415, answer.text
    is_queued_and_gone(service, alice, image_id)
    good = {"qcow2": qcow2(), "iso": iso(), "raw": noise(KIB)}.get(disk_format)
    if good is not None:
        takes(alice, image_id, good)


def test_qcow2_data_called_raw_is_taken_as_the_bytes_it_is(alice: Client) -> None:
    image_id, data = alice.queued(disk_format="raw"), qcow2()
    takes(alice, image_id, data)
    assert alice.show(image_id)["virtual_size"] == len(data)


#: `image_size_cap` of the service that the tests share.
CAP = 64 * MIB


@dataclass
class Pouring:
    """A long body, made as it is sent; `sent` tells how much of it was asked for."""

    size: int
    sent: int = 0
    _piece: bytes = field(default=os.urandom(64 * KIB), repr=False)

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1) -> bytes:
        piece = self._piece[: min(size if size >= 0 else self.size, self.size - self.sent)]
        self.sent += len(piece)
        return piece

    def chunks(self) -> Iterator[bytes]:
        while piece := self.read(64 * KIB):
            yield piece


@pytest.mark.parametrize("known", ["length", "stated", "unknown"])
def test_more_than_the_size_cap_is_refused(service: Service, alice: Client, known: str) -> None:
    image_id, body = alice.queued(), Pouring(CAP + 1)
    headers = {"x_openstack_image_size": str(CAP + 1)} if known == "stated" else {}
    assert alice.put(image_id, body if known == "length" else body.chunks(), **headers).status_code == 413
    is_queued_and_gone(service, alice, image_id)
    takes(alice, image_id, noise(KIB))


def test_an_unknown_store_is_refused(service: Service, alice: Client) -> None:
    image_id = alice.queued()
    assert alice.put(image_id, noise(KIB), x_image_meta_store="nowhere").status_code == 400
    is_queued_and_gone(service, alice, image_id)
    takes(alice, image_id, noise(KIB), x_image_meta_store="cheap")


# --- uploads that are refused before a byte of them is read ----------------------------------------------

HUGE = 100 * MIB


def _to_active(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    return alice, alice.active(b"first come"), OCTETS


def _by_a_stranger(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    return service.client("alice", "a wrong password"), alice.queued(), OCTETS


def _by_nobody(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    return service.client(None), alice.queued(), OCTETS


def _by_another_project(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    image_id = alice.queued()
    shared = alice.request("POST", f"/v2/images/{image_id}/members", json={"member": "blue"})
    assert shared.status_code == 200, shared.text
    return service.client("bob"), image_id, OCTETS


def _of_another_type(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    return alice, alice.queued(), {"Content-Type": "text/plain"}


def _to_nothing(service: Service, alice: Client) -> tuple[Client, str, dict[str, str]]:
    return alice, "00000000-0000-4000-8000-000000000000", OCTETS


UNWANTED = {
    "to an active image": (_to_active, 409),
    "with a wrong password": (_by_a_stranger, 401),
    "without credentials": (_by_nobody, 401),
    "by another project": (_by_another_project, 403),
    "of another media type": (_of_another_type, 415),
    "to no image": (_to_nothing, 404),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("prepare", "status"), UNWANTED.values(), ids=UNWANTED.keys())
def test_a_large_upload_that_is_not_wanted_is_answered_before_it_was_sent(
    service: Service,
    alice: Client,
    prepare: Callable[[Service, Client], tuple[Client, str, dict[str, str]]],
    status: int,
    chunked: bool,
) -> None:
    client, image_id, headers = prepare(service, alice)
    body = Pouring(HUGE)
    begin = time.monotonic()
    answer = client.request(
        "PUT", f"/v2/images/{image_id}/file", data=body.chunks() if chunked else body, headers=headers, timeout=20
    )
    assert answer.status_code == status
    assert body.sent < HUGE / 2, "the server read what it had refused"
    assert time.monotonic() - begin < 20
    assert requests.get(f"{service.url}/healthcheck", timeout=60).status_code == 200
    if status == 409:
        assert alice.file(image_id).content == b"first come"
    elif status != 404:
        takes(alice, image_id, noise(KIB))
