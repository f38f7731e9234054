"""`api/body.py`: a body is whole or an error, whichever server is in front."""

import io
import sys
import types
from typing import Any

import pytest

from calotype import errors
from calotype.api import body


def environ(data: bytes, length: str | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"wsgi.input": io.BytesIO(data), **more}
    if length is not None:
        made["CONTENT_LENGTH"] = length
    return made


CHUNKED: dict[str, Any] = {"HTTP_TRANSFER_ENCODING": "chunked"}


def read(source: body.Source, size: int = 7) -> bytes:
    seen = b""
    buffer = bytearray(size)
    while got := source.readinto(memoryview(buffer)):
        seen += buffer[:got]
    assert source.readinto(memoryview(buffer)) == 0
    return seen


def test_a_body_is_read_to_its_announced_end_and_no_further() -> None:
    made = environ(b"the body and the next request", "8")
    assert read(body.source(made)) == b"the body"
    assert made["wsgi.input"].read() == b" and the next request"


def test_a_body_shorter_than_announced_is_an_error() -> None:
    with pytest.raises(errors.BodyBroken):
        read(body.source(environ(b"the bo", "8")))


def test_a_server_that_fails_within_the_body_is_an_error_in_our_words() -> None:
    class Gone:
        def read(self, size: int) -> bytes:
            raise OSError("client left")

    with pytest.raises(errors.BodyBroken):
        read(body.source({"wsgi.input": Gone(), "CONTENT_LENGTH": "5"}))


def test_without_length_and_encoding_the_body_is_empty() -> None:
    assert read(body.source(environ(b"of somebody else"))) == b""
    assert read(body.source(environ(b"of somebody else", ""))) == b""


def test_a_chunked_body_is_read_where_the_server_marks_its_end() -> None:
    made = environ(b"chunks put together", **{**CHUNKED, "wsgi.input_terminated": True})
    assert read(body.source(made)) == b"chunks put together"


def test_a_chunked_body_is_refused_where_it_would_look_empty() -> None:
    with pytest.raises(errors.NotSupported):
        body.source(environ(b"", **CHUNKED))


def test_a_server_may_hand_over_more_than_it_was_asked_for() -> None:
    class Generous:
        def __init__(self) -> None:
            self.parts = [b"0123456789", b"abc", b""]

        def read(self, size: int) -> bytes:
            return self.parts.pop(0)

    made = {"wsgi.input": Generous(), "wsgi.input_terminated": True, **CHUNKED}
    assert read(body.source(made), size=4) == b"0123456789abc"


def test_chunks_are_asked_of_uwsgi_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [b"first", b"second", b""]
    monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace(chunked_read=lambda: parts.pop(0)))
    made = environ(b"", **{**CHUNKED, "uwsgi.version": b"2.0"})
    assert read(body.source(made)) == b"firstsecond"


@pytest.mark.parametrize("broken", [{"CONTENT_LENGTH": "x"}, CHUNKED])
def test_a_body_that_cannot_be_read_is_not_drained(monkeypatch: pytest.MonkeyPatch, broken: dict[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace())
    body.drain(environ(b"", **{**broken, "uwsgi.version": b"1.9"}))


def test_an_old_uwsgi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace())
    with pytest.raises(errors.NotSupported):
        body.source(environ(b"", **{**CHUNKED, "uwsgi.version": b"1.9"}))


@pytest.mark.parametrize("text", ["abc", "-1", "+5", " 5", "1_000", "5.0", "٣", "9" * 20, "0x10"])
def test_a_length_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid):
        body.content_length({"CONTENT_LENGTH": text})
    with pytest.raises(errors.Invalid):
        body.source(environ(b"", text))


def test_a_length_is_read() -> None:
    assert body.content_length({"CONTENT_LENGTH": "1099511627776"}) == 1 << 40
    assert body.content_length({"CONTENT_LENGTH": "0"}) == 0
    assert body.content_length({"CONTENT_LENGTH": ""}) is None
    assert body.content_length({}) is None


@pytest.mark.parametrize(
    ("made", "there"),
    [
        ({}, False),
        ({"CONTENT_LENGTH": "0"}, False),
        ({"CONTENT_LENGTH": "1"}, True),
        (CHUNKED, True),
        ({"HTTP_TRANSFER_ENCODING": "gzip, Chunked"}, True),
    ],
)
def test_whether_there_is_a_body_is_seen_from_the_head(made: dict[str, Any], there: bool) -> None:
    assert body.has_body(made) is there


def test_our_own_server_reads_for_itself() -> None:
    class Own:
        keeps_its_length = True

        def readinto(self, view: memoryview) -> int:
            return 0

    own = Own()
    assert body.source({"wsgi.input": own, **CHUNKED}) is own
