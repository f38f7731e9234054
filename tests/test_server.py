"""`server.py` over real sockets: a child process serves, raw bytes ask."""

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.http.body import ChunkedReader, LengthReader  # type: ignore[import-untyped]

from calotype import errors, server, socket_body
from calotype.api import body

SILENCE = 2.0  # how long the child waits for a byte of a body, and lets a client be slow
RATE = 100_000  # bytes a second that it wants


# --- the child -------------------------------------------------------------------------------------------


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """One small service for each thing to look at."""
    path = environ["PATH_INFO"]
    raw = environ["wsgi.input"]
    status = "200 OK"
    if path == "/file":
        file = open(os.environ["SERVED"], "rb")  # noqa: SIM115 - the server closes it
        first, last = (int(x) for x in environ["QUERY_STRING"].split("-"))
        file.seek(first)
        start("206 Partial Content", [("Content-Length", str(last - first + 1))])
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]
    answer: Any = None
    try:
        if path == "/hash":
            source = body.source(environ)
            buffer = memoryview(bytearray(1 << 20))
            seen, digest = 0, hashlib.sha256()
            while (there := source.ready(len(buffer))) == 0 or (got := source.readinto(buffer)):
                if not there:
                    continue
                digest.update(buffer[:got])
                seen += got
            answer = {"size": seen, "hash": digest.hexdigest(), "unread": raw.unread}
        elif path == "/wait":
            time.sleep(1)
            answer = raw.read().decode()
        elif path == "/read":
            answer = raw.read(5).decode()
        elif path == "/lines":
            answer = [raw.readline(3).decode(), raw.readline().decode(), raw.read(2).decode()]
            answer += [line.decode() for line in raw.readlines()]
        elif path == "/refuse":
            status, answer = "409 Conflict", "no"
        elif path == "/sent":
            answer = SENT
        elif path == "/pid":
            answer = [os.getpid(), threading.active_count()]
        elif path == "/ignore":
            answer = "ignored"
    except errors.CalotypeError as exc:
        status, answer = "400 Bad Request", {"error": type(exc).__name__, "text": str(exc)}
    content = json.dumps(answer).encode()
    start(status, [("Content-Length", str(len(content)))])
    return [content]


SENT: list[tuple[int, int]] = []


def serve(port: str, threads: str, *tls: str) -> None:
    server.CHECK_INTERVAL, socket_body._RATE_SECONDS = 0.5, SILENCE
    real = os.sendfile

    def counted(out: int, source: int, offset: int, count: int) -> int:
        SENT.append((offset, count))
        return real(out, source, offset, count)

    os.sendfile = counted  # type: ignore[assignment]
    server.run(
        lambda: application,
        listener=server.listen("127.0.0.1", int(port)),
        workers=1,
        state_dir=None,
        on_worker_start=lambda: print("started", flush=True),
        on_worker_exit=lambda: print("exited", flush=True),
        on_ready=lambda: print("ready", flush=True),
        threads=int(threads),
        timeouts=server.Timeouts(head=3.0, body=SILENCE, send=2 * SILENCE, rate=RATE),
        graceful_timeout=5,
        certfile=tls[0] if tls else None,
        keyfile=tls[1] if tls else None,
    )


if __name__ == "__main__":
    serve(*sys.argv[1:])
    raise SystemExit


# --- the other end ---------------------------------------------------------------------------------------


class Child:
    def __init__(self, directory: Path, *tls: str, threads: int = 512) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.served = directory / "served"
        self.served.write_bytes(random.Random(1).randbytes(16_000_000))
        self.log = directory / "log"
        path = os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(self.port), str(threads), *tls],
                env={**os.environ, "PYTHONPATH": path, "SERVED": str(self.served)},
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parent.parent,
            )
        for _ in range(200):
            with contextlib.suppress(OSError), self.connect():
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    one = Child(tmp_path_factory.mktemp("server"))
    yield one
    one.stop()


class Client:
    """A connection that speaks raw bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def send(self, *pieces: bytes) -> "Client":
        self.sock.sendall(b"".join(pieces))
        return self

    def end(self) -> "Client":
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        line = self.file.readline()
        assert line, "no answer"
        status = int(line.split()[1])
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))

    def json(self) -> Any:
        return json.loads(self.answer()[2])


@pytest.fixture
def client(child: Child) -> Iterator[Client]:
    with child.connect() as sock:
        yield Client(sock)


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"PUT {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def sized(path: str, data: bytes, *fields: str) -> bytes:
    return head(path, f"Content-Length: {len(data)}", *fields) + data


CHUNKED = "Transfer-Encoding: chunked"


def chunks(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def facts(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "hash": hashlib.sha256(data).hexdigest(), "unread": False}


DATA = random.Random(2).randbytes(3_333_333)


# --- whole bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 1 << 20, len(DATA)])
def test_bodies_with_a_length_arrive_unharmed_and_the_connection_goes_on(client: Client, size: int) -> None:
    for _ in range(3):
        assert client.send(sized("/hash", DATA[:size])).json() == facts(DATA[:size])


@pytest.mark.parametrize("size", [1, 2, 100, 4096, 8192, 65536, 131072, 131073, 1 << 20, len(DATA)])
def test_chunks_of_any_size_arrive_unharmed_and_the_connection_goes_on(client: Client, size: int) -> None:
    data = DATA[: size * 5000]
    for _ in range(2):
        assert client.send(head("/hash", CHUNKED), chunks(data, size)).json() == facts(data)


def test_chunks_of_mixed_sizes_sent_in_odd_pieces_arrive_unharmed(client: Client) -> None:
    dice = random.Random(3)
    for _ in range(8):
        raw, at = b"", 0
        while at < len(DATA):
            size = dice.choice([1, 10, 1000, 70_000, 200_000, 1_000_000])
            raw += chunks(DATA[at : at + size], size)[:-5]
            at += size
        raw = head("/hash", CHUNKED) + raw + b"000;last\r\nX-Trailer: yes\r\nOther:\r\n\r\n"
        at = 0
        while at < len(raw):
            size = dice.choice([1, 3, 5000, 100_000, 1_000_000])
            client.send(raw[at : at + size])
            at += size
        assert client.json() == facts(DATA)


def test_a_body_sent_byte_by_byte_arrives_unharmed(client: Client) -> None:
    raw = head("/hash", CHUNKED) + b'5;a="b;c"\r\nhello\r\n006  \r\n world\r\n0\r\nA: b\r\n\r\n'
    for at in range(len(raw)):
        client.send(raw[at : at + 1])
        time.sleep(0.001)
    assert client.json() == facts(b"hello world")


def test_requests_sent_at_once_are_answered_one_by_one(client: Client) -> None:
    client.send(
        sized("/hash", b"one"),
        head("/hash", CHUNKED) + chunks(b"two and a half", 3),
        sized("/hash", b""),
        head("/hash", CHUNKED) + chunks(b"", 1),
        sized("/hash", b"three"),
    )
    for data in (b"one", b"two and a half", b"", b"", b"three"):
        assert client.json() == facts(data)


def test_an_empty_chunked_body_is_empty(client: Client) -> None:
    assert client.send(head("/hash", CHUNKED) + b"0\r\n\r\n").json() == facts(b"")


@pytest.mark.parametrize("chunked", [True, False])
def test_the_rest_of_wsgi_reads_too(client: Client, chunked: bool) -> None:
    text = b"first line\nsecond line\n12third\n\nlast"
    for _ in range(2):
        client.send(head("/lines", CHUNKED) + chunks(text, 4) if chunked else sized("/lines", text))
        assert client.json() == ["fir", "st line\n", "se", "cond line\n", "12third\n", "\n", "last"]


# --- broken bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 99_999])
def test_a_body_shorter_than_its_length_is_never_a_clean_end(client: Client, sent: int) -> None:
    status, headers, content = client.send(head("/hash", "Content-Length: 100000"), DATA[:sent]).end().answer()
    assert (status, json.loads(content)["error"]) == (400, "BodyBroken")
    assert f"{sent} of the 100000" in json.loads(content)["text"]
    assert headers["connection"] == "close"


WHOLE = chunks(DATA[:300_000], 100_000)


@pytest.mark.parametrize("sent", [0, 1, 5, 6, 7, 50_000, 100_007, 100_008, 100_009, len(WHOLE) - 5, len(WHOLE) - 1])
def test_a_chunked_body_that_was_cut_is_never_a_clean_end(client: Client, sent: int) -> None:
    status, headers, content = client.send(head("/hash", CHUNKED), WHOLE[:sent]).end().answer()
    assert (status, json.loads(content)["error"]) == (400, "BodyBroken")
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    "raw",
    [
        b"x\r\n",
        b"\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\0\r\nhello\r\n0\r\n\r\n",
        b"11111111111111111\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5" + b" " * 5000,
        b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 6000 + b"0\r\n\r\n",
        b"1;" + b"a" * 4000 + b"\r\nx\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\nA: \0\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"0\r\nA: " + b"b" * 5000 + b"\r\n\r\n",
    ],
)
def test_chunks_against_the_rules_are_refused(client: Client, raw: bytes) -> None:
    with contextlib.suppress(OSError):
        client.send(head("/hash", CHUNKED), raw).end()
    status, headers, content = client.answer()
    assert (status, json.loads(content)["error"]) == (400, "BodyBroken")
    assert headers["connection"] == "close"
    assert client.file.read() == b"", "nothing may be served after a broken body"


def test_what_follows_a_body_is_the_next_request_and_not_more_body(client: Client) -> None:
    client.send(sized("/hash", b"abc"), b"defg\r\n\r\n")
    assert client.json() == facts(b"abc")
    assert client.answer()[0] == 400


@pytest.mark.parametrize("raw", [head("/hash", "Content-Length: 10") + b"abc", head("/hash", CHUNKED) + b"5\r\nab"])
def test_a_silent_client_is_given_up(client: Client, raw: bytes) -> None:
    begin = time.monotonic()
    status, _, content = client.send(raw).answer()
    assert (status, json.loads(content)["error"]) == (400, "BodyBroken")
    assert SILENCE - 0.5 < time.monotonic() - begin < SILENCE + 10


@pytest.mark.slow
def test_a_slow_client_is_not_given_up(client: Client) -> None:
    piece = b"x" * int(RATE * SILENCE / 2)
    client.send(head("/hash", f"Content-Length: {6 * len(piece)}"))
    for _ in range(6):
        time.sleep(SILENCE / 4)
        client.send(piece)
    assert client.json() == facts(6 * piece)


# --- bodies that are not read ----------------------------------------------------------------------------


EXPECT = "Expect: 100-continue"


@pytest.mark.parametrize("chunked", [True, False])
def test_100_continue_is_sent_when_the_body_is_wanted(client: Client, chunked: bool) -> None:
    client.send(head("/hash", EXPECT, CHUNKED if chunked else "Content-Length: 3"))
    assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert client.file.readline() == b"\r\n"
    assert client.send(chunks(b"abc", 2) if chunked else b"abc").json() == facts(b"abc")
    assert client.send(sized("/hash", b"more")).json() == facts(b"more")


@pytest.mark.parametrize("path", ["/refuse", "/ignore"])
@pytest.mark.parametrize("field", [CHUNKED, "Content-Length: 3", "Content-Length: 9999999"])
def test_100_continue_is_not_sent_before_a_refusal(client: Client, field: str, path: str) -> None:
    status, headers, _ = client.send(head(path, EXPECT, field)).answer()
    assert status == (409 if path == "/refuse" else 200)
    assert headers["connection"] == "close"
    assert client.file.read() == b""


def test_a_small_unread_body_does_not_cost_the_connection(client: Client) -> None:
    for _ in range(3):
        status, headers, _ = client.send(sized("/ignore", b"x" * 5000)).answer()
        assert (status, headers["connection"]) == (200, "keep-alive")
    assert client.send(sized("/hash", b"abc")).json() == facts(b"abc")


def test_a_chunked_body_of_which_only_the_end_is_unread_does_not_cost_the_connection(client: Client) -> None:
    status, headers, content = client.send(head("/read", CHUNKED), chunks(b"hello", 5)).answer()
    assert (status, headers["connection"], content) == (200, "keep-alive", b'"hello"')
    assert client.send(sized("/hash", b"abc")).json() == facts(b"abc")


def test_a_body_without_length_or_encoding_is_empty(client: Client) -> None:
    assert client.send(head("/hash")).json() == facts(b"")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_that_is_refused_while_it_sends_sees_the_answer(child: Child, chunked: bool) -> None:
    block = bytes(1 << 16)
    total = 64 << 20
    for _ in range(10):
        with child.connect() as sock:
            client = Client(sock)
            client.send(head("/refuse", CHUNKED if chunked else f"Content-Length: {total}"))
            # like urllib3: a broken pipe means to look for an answer, a reset does not
            with contextlib.suppress(BrokenPipeError):
                for _ in range(total >> 16):
                    client.send(b"10000\r\n" + block + b"\r\n" if chunked else block)
            status, headers, _ = client.answer()
            assert (status, headers["connection"]) == (409, "close")


@pytest.mark.alone
def test_others_are_served_while_a_refused_client_lingers(child: Child) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(child.connect())
            Client(sock).send(head("/refuse", "Content-Length: 999999")).answer()
        begin = time.monotonic()
        assert Client(stack.enter_context(child.connect())).send(sized("/hash", b"x")).json() == facts(b"x")
        assert time.monotonic() - begin < 1


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, 2_999_999), (0, 0), (1_000_000, 1_999_999), (2_999_999, 2_999_999)])
def test_a_file_is_sent_by_the_kernel_from_where_it_was_positioned(
    child: Child, client: Client, first: int, last: int
) -> None:
    status, _, content = client.send(head(f"/file?{first}-{last}")).answer()
    assert status == 206
    assert content == child.served.read_bytes()[first : last + 1]
    sent = client.send(head("/sent")).json()
    assert [first, last - first + 1] in sent


# --- processes -------------------------------------------------------------------------------------------


def gone(pid: int, seconds: float) -> bool:
    for _ in range(int(seconds * 20)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.alone
def test_half_sent_heads_and_idle_connections_starve_nobody(tmp_path: Path) -> None:
    child = Child(tmp_path)
    try:
        with contextlib.ExitStack() as stack:
            for n in range(300):
                sock = stack.enter_context(child.connect())
                if n % 2:
                    sock.sendall(b"GET /pid HTTP/1.1\r\nHost")
            begin = time.monotonic()
            _, threads = Client(stack.enter_context(child.connect())).send(head("/pid")).json()
            assert time.monotonic() - begin < 2
            assert threads < 10, "idle connections hold threads"
    finally:
        child.stop()


def test_a_head_in_many_pieces_is_a_head(client: Client) -> None:
    whole = head("/hash", "Content-Length: 3", "X-Long: " + "x" * 15_000)
    for at in range(0, len(whole), 4000):
        client.send(whole[at : at + 4000])
        time.sleep(0.05)
    client.send(b"abc")
    assert client.json() == facts(b"abc")
    # and the second one on the same connection
    for piece in (b"PUT /pid HT", b"TP/1.1\r\nHost: x\r\n", b"\r", b"\n"):
        client.send(piece)
        time.sleep(0.05)
    assert client.answer()[0] == 200


@pytest.mark.slow
def test_a_head_that_takes_too_long_is_told_so(client: Client) -> None:
    begin = time.monotonic()
    with contextlib.suppress(OSError):
        for piece in b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 100:
            client.send(bytes([piece]))
            time.sleep(0.1)
    assert client.file.readline().startswith(b"HTTP/1.1 408 ")
    assert 2.5 < time.monotonic() - begin < 20


def test_a_client_that_goes_within_a_head_is_forgotten_at_once(child: Child, client: Client) -> None:
    pid, _ = client.send(head("/pid")).json()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    before = descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(child.connect()).sendall(b"GET / HTT")
        time.sleep(0.5)
        assert descriptors() >= before + 20
    time.sleep(1)  # the head may take three
    assert descriptors() < before + 10


def test_one_client_does_not_keep_the_only_thread_to_itself(tmp_path: Path) -> None:
    child = Child(tmp_path, threads=1)
    try:
        with child.connect() as sock, child.connect() as other:
            greedy, count = Client(sock), 20_000

            def send() -> None:
                with contextlib.suppress(OSError):
                    greedy.send(head("/pid") * count)

            sender = threading.Thread(target=send)
            sender.start()
            greedy.answer()
            assert Client(other).send(head("/sent")).answer()[0] == 200
            sock.setblocking(False)  # what has come so far
            came = 0
            with contextlib.suppress(BlockingIOError):
                while got := sock.recv(1 << 20):
                    came += got.count(b"HTTP/1.1 200 OK")
            assert came < count // 2
            sock.shutdown(socket.SHUT_RDWR)
            sender.join()
    finally:
        child.stop()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.slow
def test_a_body_that_trickles_is_given_up(client: Client, chunked: bool) -> None:
    client.send(head("/hash", CHUNKED if chunked else "Content-Length: 1000000"))
    begin = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - begin < 30:
            client.send(b"1\r\nx\r\n" if chunked else b"x")
            time.sleep(0.1)
    status, _, content = client.answer()
    assert status == 400
    assert f"fewer than {RATE} bytes" in json.loads(content)["text"]
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_an_answer_that_is_taken_drop_by_drop_is_given_up(child: Child) -> None:
    def given_up(piece: int, seconds: float) -> bool:
        """Whether a client is that takes so many bytes each tenth of a second."""
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            sock.connect(("127.0.0.1", child.port))
            sock.sendall(head("/file?0-15999999"))
            end = time.monotonic() + seconds
            with contextlib.suppress(ConnectionResetError):
                while time.monotonic() < end and "too slowly" not in child.log.read_text():
                    sock.recv(piece)
                    time.sleep(0.1)
        return "too slowly" in child.log.read_text()

    assert not given_up(RATE // 4, 4 * SILENCE)
    assert given_up(RATE // 25, 20)


def test_sigterm_lets_a_transfer_end_and_tells_the_application(tmp_path: Path) -> None:
    child = Child(tmp_path)
    with child.connect() as sock:
        client = Client(sock).send(head("/wait", "Content-Length: 4"), b"ab")
        time.sleep(0.3)
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        status, headers, content = client.send(b"cd").answer()
        assert (status, content, headers["connection"]) == (200, b'"abcd"', "close")
    assert child.process.wait(10) == 0
    log = child.log.read_text()
    for word in ("ready", "started", "exited"):
        assert log.splitlines().count(word) == 1, log


def test_a_request_on_its_way_when_the_end_is_told_is_answered(tmp_path: Path) -> None:
    child = Child(tmp_path)
    with child.connect() as sock:
        client = Client(sock)
        assert client.send(head("/pid")).answer()[1]["connection"] == "keep-alive"
        time.sleep(0.3)
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # until the worker heard of it; it keeps idle connections for two seconds
        status, headers, _ = client.send(head("/pid")).answer()
        assert (status, headers["connection"]) == (200, "close")
    assert child.process.wait(10) == 0


@pytest.mark.slow
def test_requests_one_upon_another_are_answered_in_order(tmp_path: Path) -> None:
    """Sent before the answers are read, and while others wait for the thread."""
    child = Child(tmp_path)
    try:
        with child.connect() as sock, child.connect() as other:
            client = Client(sock)
            for text in (b"one!", b"two!", b"more"):
                client.send(head("/wait", "Content-Length: 4"), text)
            Client(other).send(head("/pid")).json()
            assert [client.answer()[2] for _ in range(3)] == [b'"one!"', b'"two!"', b'"more"']
    finally:
        child.stop()


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.slow
def test_a_worker_without_its_master_ends(tmp_path: Path, busy: bool) -> None:
    child = Child(tmp_path)
    with child.connect() as sock, child.connect() as other:
        pid, _ = Client(sock).send(head("/pid")).json()
        stop = threading.Event()
        if busy:
            client = Client(other).send(head("/hash", "Content-Length: 1000000000"))

            def trickle() -> None:
                with contextlib.suppress(OSError):
                    while not stop.wait(0.2):
                        client.send(b"x")

            thread = threading.Thread(target=trickle)
            thread.start()
        child.process.kill()
        child.process.wait()
        try:
            # one second to notice, then idle connections linger for two, transfers for graceful_timeout
            assert gone(pid, 12 if busy else 6)
        finally:
            stop.set()
            if busy:
                thread.join()


@pytest.mark.needs("openssl")
def test_tls_works_both_ways(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split(),
            "-keyout",
            key,
            "-out",
            cert,
        ],
        capture_output=True,
        check=True,
    )
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    child = Child(tmp_path, str(cert), str(key))
    try:
        with trust.wrap_socket(child.connect()) as sock:
            client = Client(sock)
            assert client.send(sized("/hash", DATA)).json() == facts(DATA)
            assert client.send(head("/hash", CHUNKED), chunks(DATA, 65536)).json() == facts(DATA)
            assert client.send(head("/file?5-999999")).answer()[2] == child.served.read_bytes()[5:1_000_000]
            status, _, content = client.send(head("/hash", "Content-Length: 10"), b"abc").answer()
            assert (status, json.loads(content)["error"]) == (400, "BodyBroken")
    finally:
        child.stop()


def test_running_out_of_descriptors_ends_no_worker(tmp_path: Path) -> None:
    import resource

    child = Child(tmp_path)
    try:
        status = Client(child.connect()).send(head("/pid")).json()
        resource.prlimit(status[0], resource.RLIMIT_NOFILE, (60, 4096))
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(child.connect())
            time.sleep(0.5)
            assert os.path.exists(f"/proc/{status[0]}")
        again = Client(child.connect()).send(head("/pid")).json()
        assert again[0] == status[0]
    finally:
        child.stop()


# --- waiting without memory ------------------------------------------------------------------------------


class _Unreader:
    """What gunicorn has of a connection, when nothing came with the head."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def take_buffered(self) -> bytes:
        return b""

    def unread(self, data: bytes) -> None:
        raise AssertionError


@contextlib.contextmanager
def received(length: int | None, timeout: float = 30.0) -> Iterator[tuple[socket_body.SocketBody, socket.socket]]:
    """A body of TCP, and its client; chunked without a length."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        ours, _ = listener.accept()
        reader: Any = object.__new__(LengthReader if length is not None else ChunkedReader)
        reader.length = length
        req = types.SimpleNamespace(
            unreader=_Unreader(ours), _expected_100_continue=False, body=types.SimpleNamespace(reader=reader)
        )
        with ours:
            yield socket_body.SocketBody(req, timeout), client


@pytest.mark.alone
def test_who_is_waited_for_is_waited_for_until_there_is_enough_or_a_second_is_over() -> None:
    with received(100_000) as (found, client):
        begun = time.monotonic()
        assert found.ready(1 << 20) == 0  # nothing yet
        client.sendall(b"x" * 1000)
        assert found.ready(1 << 20) == 1000  # no more came
        assert 1.8 < time.monotonic() - begun < 10
        later = threading.Timer(0.2, client.sendall, [b"x" * 99_000])
        later.start()
        begun = time.monotonic()
        assert found.ready(1 << 20) >= 64 << 10
        assert 0.1 < time.monotonic() - begun < 0.9
        later.join()
        whole = b""
        while found.ready(1 << 20) and (got := found.read(1 << 20)):
            whole += got
        assert whole == b"x" * 100_000
        assert found.ready(1 << 20) == 1  # the end


def test_a_chunked_body_that_is_waited_for_keeps_what_it_has_and_no_large_block() -> None:
    with received(None) as (found, client):
        first = b"a" * 60_000
        client.sendall(b"ea60\r\n" + first + b"\r\n" + b"64\r\nbb")
        seen, view = b"", memoryview(bytearray(16 << 10))
        while len(seen) < len(first) + 2:
            assert found.ready(1 << 20)
            seen += view[: found.readinto(view)]
        assert seen == first + b"bb"
        assert found.ready(1 << 20) == 0
        assert len(found._block) < 100
        client.sendall(b"b" * 98 + b"\r\n0")
        while len(seen) < len(first) + 100:
            assert found.ready(1 << 20)
            seen += view[: found.readinto(view)]
        assert found.ready(1 << 20) == 0  # whether more data comes is not known yet
        client.sendall(b"\r\n\r\n")
        assert found.ready(1 << 20) == 1
        assert found.readinto(view) == 0


@pytest.mark.parametrize("length", [100, None])
def test_silence_that_is_too_long_ends_the_waiting(length: int | None) -> None:
    with received(length, timeout=1.2) as (found, _):
        assert found.ready(10) == 0
        with pytest.raises(errors.BodyBroken, match="no byte"):
            found.ready(10)
        with pytest.raises(errors.BodyBroken):
            found.ready(10)


def test_a_client_that_goes_while_it_is_waited_for_is_noticed() -> None:
    with received(100) as (found, client):
        client.sendall(b"x")
        client.close()
        assert found.ready(10) == 1
        assert found.read(1) == b"x"
        assert found.ready(10) == 1
        with pytest.raises(errors.BodyBroken, match="1 of the 100"):
            found.readinto(memoryview(bytearray(10)))


def test_after_a_body_that_was_waited_for_the_next_request_is_seen(child: Child) -> None:
    with child.connect() as sock:
        client = Client(sock)
        client.send(head("/hash", "Content-Length: 100000"), b"x" * 10)
        time.sleep(0.2)
        client.send(b"x" * 99_990)
        assert client.json()["size"] == 100_000
        time.sleep(0.1)  # so that the main loop waits for it, and no thread
        begun = time.monotonic()
        client.send(head("/pid")).json()
        assert time.monotonic() - begun < 5
