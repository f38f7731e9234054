"""Inputs by target: where fuzzing begins, and what was found. Each is fed again with every `make test`."""

import json
from collections.abc import Iterator

from tests.images import samples


def _patch(*steps: object) -> bytes:
    return b"1" + json.dumps(steps).encode()


def _nested(depth: int) -> Iterator[bytes]:
    """Depths at which what reads the value may get further than what shows it."""
    for deep in range(depth, depth + 60):
        yield b'1[{"op": ' + b"[" * deep + b"]" * deep + b"}]"
        yield b'1[{"op": "add", "path": ' + b"[" * deep + b"]" * deep + b"}]"
        yield b'1[{"op": "add", "path": "/tags", "value": ' + b'{"a":' * deep + b"1" + b"}" * deep + b"}]"


def _namespace(**values: object) -> bytes:
    return json.dumps({"namespace": "n", **values}).encode()


def _definitions(depth: int) -> Iterator[bytes]:
    """The same for what is kept of a definition."""
    for deep in range(depth, depth + 80):
        value = b"[" * deep + b"]" * deep
        yield b'{"namespace": "n", "properties": {"p": {"title": "T", "type": "string", "default": %s}}}' % value
        yield (
            b'{"namespace": "n", "objects": [{"name": "o", "properties": {"p": {"title": "T", "type": "string", "default": %s}}}]}'
            % value
        )


def _images() -> Iterator[bytes]:
    """The heads of the sample files; the first byte is what they are declared as."""
    for number, sample in enumerate([*samples.good(), *samples.hostile()]):
        yield bytes([number % 10]) + sample.make()[:8192]


_RAW = b"\0\xff"  # nothing came with the head; 256 bytes are read at a time

CORPUS: dict[str, list[bytes]] = {
    "body": [
        b"{}", b"[]", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a": "\\u0000"}', b"\xff",
        b"\xef\xbb\xbf{}", b"9" * 5000, b"-" * 5000, b'"' * 5000, b"[" * 5000, b'["' + b"\\\\" * 5000, b"[]," * 40_000,
        b'["' + b"," * 40_000 + b'"]', b"null", b"\x00", b"1e5", b"-0.0", b"[1.0, true, null]",
    ],
    "chunks": [
        _RAW + b"5\r\nhello\r\n0\r\n\r\n", _RAW + b"5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"\x04\0" + b"5\r\nhello\r\n0\r\n\r\n",
        b"\xff\x02" + b"1\r\nx\r\n" * 40 + b"0\r\n\r\nnext", _RAW + b"ffffffffffffffff\r\nx", _RAW + b"1;" + b"a" * 4090 + b"\r\nx\r\n",
        _RAW + b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 900 + b"0\r\n\r\n", _RAW + b"0\r\n" + b"A: b\r\n" * 6000 + b"\r\n",
        _RAW + b"5\nhello\n0\n\n", _RAW + b"5\r\nhelloxy0\r\n\r\n", _RAW + b"0x5\r\nhello\r\n0\r\n\r\n", _RAW + b"5\r\nhello!\r\n0\r\n\r\n", _RAW, b"",
    ],
    "credentials": [
        b"Basic YWxpY2U6eA==", b"Basic \xff\xfe", b"Basic !!!", b"Basic /w==", b"basic  YQ==", b"Basic", b"Bearer x", b"",
    ],
    "format": [*_images(), b"", b"\1"],
    "image": [
        b"{}", b'{"name": "x", "min_ram": 1, "tags": ["a"], "protected": true}', b'{"min_ram": 1.0}', b'{"min_ram": true}',
        b'{"min_disk": 9223372036854775808}', b'{"": "x"}', b'{"id": "00000000-0000-4000-8000-000000000000\\n"}',
        b'{"tags": {"a": 1}}', b'{"tags": [[[]]]}', b'{"disk_format": ["raw"]}', b'{"disk_format": {}}', b'{"visibility": null}',
    ],
    "namespace": [
        b'{"namespace": "n"}', b'{"namespace": ""}', b'{"namespace": "a/b"}', b'{"namespace": "n", "owner": ""}', *_definitions(2), *_definitions(920),
        _namespace(tags=[{"name": "t"}, {"name": "t"}]), _namespace(tags=[{"name": ""}]), _namespace(tags={}), _namespace(objects=[]),
        _namespace(resource_type_associations=[{"name": "OS::T", "prefix": "p"}]), _namespace(properties={"": {"title": "", "type": "null"}}),
        _namespace(properties={"p": {"title": "T", "type": "array", "items": {}, "enum": [], "minLength": 1.0, "minimum": 1e300}}),
        _namespace(properties={"p": {"title": "T", "type": "string", "default": {"a": [None]}, "required": [], "operators": [""]}}),
        _namespace(properties={"p" * 81: {"title": "T", "type": "string"}}), _namespace(objects=[{"name": "o", "required": ["a,b", ""]}]),
        _namespace(objects=[{"name": "o", "description": "", "properties": {"p" * 81: {"title": "x" * 65_500, "type": "string"}}}]),
        _namespace(objects=[{"name": "o", "required": [str(n) for n in range(30_000)]}]),
    ],
    "patch": [
        _patch({"op": "add", "path": "/p", "value": "x"}), _patch({"op": ["add"], "path": "/p", "value": "x"}), _patch({}), _patch([]),
        b'0[{"add": "/p", "value": "x"}]', b'0[{"add": "/p", "remove": "/p"}]', b'0[{"replace": {"a": 1}, "value": 1}]',
        _patch({"op": "add", "path": "/tags", "value": [["x"]]}), _patch({"op": "replace", "path": "/disk_format", "value": {}}),
        *_nested(930),
    ],
    "pointer": [
        b"/a", b"/a~0b~1c", b"/~", b"/~2", b"/ a ", b"/a/b", b"//", b"", b"a", b"/locations/0", b"/os_glance_x", b"/" + b"~0" * 2000,
        b"/\xe2\x80\x83", b"/\0", b"/self", b"/ size", b"/~0~1~01",
    ],
    "query": [
        b"limit=1&sort=name:asc,size:desc&marker=x", b'name=in:a,"b,c","d\\"e"', b'name=in:"', b"created_at=gt:2026-01-01T00:00:00Z",
        b"created_at=0001-01-01T00:00:00%2B14:00", b"size_min=1&size_max=9223372036854775807", b"tag=a&tag=b&foo=x&owner=y", b"%ff", b"%00",
        b"limit=" + b"9" * 5000, b"os_hidden=%C4%B0", b"sort_key=name&sort_key=id&sort_dir=asc&sort_dir=desc", b"visibility=all&member_status=all",
        b"created_at=2026-W01-1", b"created_at=24:00", b"&" * 300, b"=", b"a;b", b"name=in:" + b'"a",' * 1000,
    ],
    "range": [
        b"\x10\nbytes=0-3", b"\x10\nbytes=-3", b"\x10\nbytes=3-99", b"\x10\nbytes=3-,0-1,-1", b"\xff\nbytes=" + b"9" * 5000 + b"-", b"\0\nbytes=-1", b"\nbytes=-",
        b"\xff\nbytes 0-" + b"9" * 5000 + b"/*", b"\xff\nbytes 0-1/" + b"9" * 5000, b"\x10\nbytes 1-3/16", b"\x10\nseats=1-2", b"\x10\n\"a\", *",
        b"\xff\nbytes=" + b",".join(b"%d-%d" % (n, n) for n in range(0, 99, 3)),
    ],
}  # fmt: skip
