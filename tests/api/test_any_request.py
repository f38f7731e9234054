"""Requests made up from the table of routes and near the schemas: whatever comes, the answer is one of ours.

Never 5xx but 501 for a method that HTTP does not know, always the media type that the answer says and the request id,
and after an error each row and each file is what it was. In this process, on an application of its own.
"""

import contextlib
import io
import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPMethod
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from calotype import errors
from calotype.api.routes import ROUTES
from calotype.app import App
from calotype.db import tables
from calotype.images import lifecycle, sharing
from calotype.metadefs import namespaces
from calotype.model import Association, Definitions, MetadefObject, MetadefProperty, MetadefTag, Namespace
from tests.inprocess import ADMIN, ALICE, BOB, make_active, parts
from tests.support import PASSWORD, write_users

pytestmark = pytest.mark.slow

IDS = ("ACTIVE", "QUEUED", "OTHERS")


# --- what is sent ----------------------------------------------------------------------------------------


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 7).flatmap(lambda number: odd if number == 5 else usual)


_CHARACTERS = st.characters(codec=None, exclude_categories=())
TEXT = st.one_of(
    st.sampled_from(["", "x", "blue", "red", "raw", "bare", "a" * 255, "a" * 256, "a/b", "../..", "'\"", "%s", "\0", "\ud800", "😀", "é\n", "\u017f"]),
    st.text(_CHARACTERS, max_size=12),
)  # fmt: skip
NUMBER = st.one_of(st.integers(-2, 3), st.sampled_from([2**31 - 1, 2**31, 2**63, -(2**63), 10**400]), st.floats())
VALUE = st.recursive(
    st.one_of(TEXT, NUMBER, st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAME = st.one_of(
    st.sampled_from("id name visibility protected os_hidden owner container_format disk_format min_disk min_ram tags".split()),
    st.sampled_from("size status checksum locations stores self os_glance_x os_hash_value deleted member custom".split()), TEXT,
)  # fmt: skip
FITTING = st.fixed_dictionaries({}, optional={
    "name": TEXT, "visibility": st.sampled_from(["private", "shared", "public", "community", "all"]), "protected": st.booleans(),
    "min_ram": NUMBER, "disk_format": st.sampled_from(["raw", "qcow2", None, "x"]), "tags": st.lists(TEXT, max_size=3), "custom": TEXT,
    "id": st.sampled_from(["11111111-1111-4111-8111-111111111111", "ACTIVE", "nope"]), "member": TEXT, "status": TEXT,
})  # fmt: skip
OBJECT = mostly(FITTING, st.dictionaries(NAME, VALUE, max_size=4))
POINTER = st.one_of(NAME.map("/{}".format), TEXT, st.sampled_from(["/a~1b", "/~", "/locations/-", "//", "/ name "]))
STEP = st.one_of(
    st.fixed_dictionaries({"op": mostly(st.sampled_from(["add", "replace", "remove"]), VALUE), "path": mostly(POINTER, VALUE)}, optional={"value": VALUE}),
    st.dictionaries(st.sampled_from(["add", "replace", "remove"]), POINTER, min_size=1, max_size=2).flatmap(
        lambda step: VALUE.map(lambda value: {**step, "value": value})
    ),
    VALUE,
)  # fmt: skip
ANYTHING = st.one_of(VALUE, OBJECT, st.lists(STEP, max_size=4))
#: What metadata definitions are made of, near what their schemas want.
DEFINITION = mostly(
    st.fixed_dictionaries({"title": TEXT, "type": st.sampled_from(["string", "integer", "array", "null", "x"])}, optional={
        "description": TEXT, "default": VALUE, "enum": st.lists(TEXT, max_size=3), "minimum": NUMBER, "maxLength": NUMBER, "pattern": TEXT,
        "items": st.fixed_dictionaries({}, optional={"type": TEXT, "enum": VALUE}), "operators": st.lists(TEXT, max_size=2),
        "readonly": st.booleans(), "required": st.lists(TEXT, max_size=2), "name": TEXT, "uniqueItems": VALUE,
    }),
    VALUE,
)  # fmt: skip
DEFINITIONS = mostly(st.dictionaries(TEXT, DEFINITION, max_size=2), VALUE)
SHORT = mostly(st.sampled_from(["space", "new", "o", "p", "t", "T"]), TEXT)
NAMED = mostly(st.fixed_dictionaries({"name": SHORT}), VALUE)
OF_NAMESPACES = st.fixed_dictionaries({"namespace": SHORT}, optional={
    "display_name": TEXT, "description": TEXT, "visibility": st.sampled_from(["public", "private", "x"]), "owner": TEXT,
    "protected": mostly(st.just(False), VALUE), "properties": DEFINITIONS, "tags": st.lists(NAMED, max_size=3),
    "objects": st.lists(mostly(st.fixed_dictionaries({"name": SHORT}, optional={"properties": DEFINITIONS}), VALUE), max_size=2),
    "resource_type_associations": st.lists(NAMED, max_size=2),
})  # fmt: skip
OF_PARTS = st.one_of(
    NAMED,
    st.fixed_dictionaries({"name": SHORT}, optional={"required": st.lists(TEXT, max_size=2), "properties": DEFINITIONS, "description": TEXT}),
    st.fixed_dictionaries({"name": SHORT}, optional={"prefix": TEXT, "properties_target": TEXT, "created_at": TEXT, "self": TEXT}),
    st.tuples(SHORT, DEFINITION).map(lambda pair: {"name": pair[0], **pair[1]} if isinstance(pair[1], dict) else pair[1]),
    st.fixed_dictionaries({"tags": st.lists(NAMED, max_size=3)}),
)  # fmt: skip
#: What bodies are like by method: as JSON, or not.
BODIES = {
    "POST": mostly(OBJECT, ANYTHING),
    "PUT": mostly(OBJECT, ANYTHING),
    "PATCH": mostly(st.lists(STEP, max_size=3), ANYTHING),
}


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


def body_of(method: str) -> st.SearchStrategy[bytes]:
    odd = st.one_of(st.binary(max_size=40), ANYTHING.map(written))
    return mostly(BODIES[method].map(written) if method in BODIES else st.just(b""), odd)


PARAMETER = st.sampled_from(
    "limit marker sort sort_key sort_dir name id status size size_min min_ram_max created_at updated_at tag visibility "
    "member_status os_hidden protected owner checksum custom prefer changes-since deleted".split()
)  # fmt: skip
ARGUMENT = st.one_of(
    TEXT, NUMBER.map(str), st.sampled_from(IDS),
    st.sampled_from("true all asc desc name:asc in:a,b in:\"a gt:2026-01-01T00:00:00Z lt:0001-01-01 neq:x eq: one one,two public accepted".split()),
)  # fmt: skip
QUERY = st.lists(st.tuples(mostly(PARAMETER, TEXT), ARGUMENT), max_size=4).map(
    lambda pairs: "&".join(f"{escape(name)}={escape(value)}" for name, value in pairs)
)
DEFINITIONS_QUERY = st.lists(
    st.tuples(
        st.sampled_from("limit marker sort_key sort_dir visibility resource_types resource_type".split()),
        st.one_of(ARGUMENT, st.sampled_from("space T T,U namespace protected owner id name desc 1 0 private".split())),
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={escape(value)}" for name, value in pairs))
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
MEDIA = [f"application/openstack-images-v2.{minor}-json-patch" for minor in (0, 1)]
FIELDS = st.fixed_dictionaries({}, optional={
    "Content-Type": mostly(st.sampled_from([*MEDIA, MEDIA[1], "application/octet-stream"]), PRINTABLE),
    "Accept": st.sampled_from(["application/json", "text/html", "*/*", "application/vnd.openstack.images-v2.5", "é"]),
    "Range": mostly(st.sampled_from(["bytes=0-1", "bytes=-1", "bytes=9-", "bytes=0-0,3-", "bytes=3-1"]), PRINTABLE),
    "Content-Range": mostly(st.sampled_from(["bytes 0-1/4", "bytes 9-10/*"]), PRINTABLE),
    "If-Range": PRINTABLE, "If-None-Match": mostly(st.just("*"), PRINTABLE), "X-Openstack-Request-Id": PRINTABLE, "Host": PRINTABLE,
    "X-Image-Meta-Store": mostly(st.sampled_from(["one", "two", "../one"]), PRINTABLE),
    "X-Openstack-Image-Size": mostly(st.sampled_from(["0", "4", "-1", "9" * 30]), PRINTABLE),
})  # fmt: skip


def escape(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"))


PARTS = {"namespace": "space", "object_name": "o", "property_name": "p", "tag_name": "t", "resource_type": "T"}


@st.composite
def requests_for_definitions(draw: st.DrawFn) -> "Sent":
    """Most of an administrator, who alone may write them."""
    route = draw(st.sampled_from([route for route in ROUTES if "/metadefs/" in route.path]))
    path = route.path
    for variable, known in PARTS.items():
        path = path.replace(f"{{{variable}}}", draw(mostly(st.just(known), TEXT.map(escape))))
    path = path.replace("{name}", "namespace")
    if route.method == "GET" and draw(st.booleans()):
        path += "?" + draw(DEFINITIONS_QUERY)
    user = draw(mostly(st.just("admin"), st.sampled_from(["alice", "bob", "service"])))
    bodies = OF_NAMESPACES if path.endswith("/namespaces") or route.path.endswith("{namespace}") else OF_PARTS
    body = b""
    if route.method in ("POST", "PUT") and not (route.method == "POST" and "{tag_name}" in route.path):
        body = draw(mostly(bodies.map(written), st.one_of(st.binary(max_size=40), ANYTHING.map(written))))
    fields = draw(FIELDS) | draw(st.sampled_from([{}, {"X-Openstack-Append": "True"}]))
    credentials = "Basic " + b64encode(f"{user}:{PASSWORD}".encode()).decode()
    return Sent(route.method, path, credentials, fields, body)


@dataclass(frozen=True)
class Sent:
    method: str
    path: str  #: escaped, with the query; a name of `IDS` stands for an id
    credentials: str
    fields: dict[str, str]
    body: bytes


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    route = draw(st.sampled_from([*ROUTES, *(route for route in ROUTES if route.path.startswith("/v2/images"))]))
    method = draw(mostly(st.just(route.method), st.sampled_from([*HTTPMethod, "BREW"])))
    path = route.path.replace("{image_id}", draw(mostly(st.sampled_from(IDS), TEXT.map(escape))))
    for variable, known in (("tag", "warm"), ("member_id", "blue"), ("store_id", "one"), ("name", "image")):
        path = path.replace(f"{{{variable}}}", draw(mostly(st.just(known), TEXT.map(escape))))
    if route.path == "/v2/images" or draw(st.integers(0, 7)) == 5:
        path += "?" + draw(QUERY)
    user = draw(st.sampled_from(["alice", "alice", "admin", "bob"]))
    credentials = "Basic " + b64encode(f"{user}:{PASSWORD}".encode()).decode()
    if draw(st.integers(0, 15)) == 7:
        credentials = draw(PRINTABLE.map("Basic {}".format))
    fields = draw(FIELDS)
    if route.method == "PATCH":
        fields.setdefault("Content-Type", draw(st.sampled_from(MEDIA)))
    elif route.path.endswith("/file"):
        fields.setdefault("Content-Type", "application/octet-stream")
    return Sent(str(method), path, credentials, fields, draw(body_of(route.method)))


# --- who answers -----------------------------------------------------------------------------------------


class Answering:
    """An application with an image that has data, one that waits for it, one of somebody else, and a namespace."""

    def __init__(self, app: App, state: Path) -> None:
        self._app = app
        self._state = state
        self._ids: dict[str, str] = {}

    def _filled(self) -> None:
        """Make again what a request has deleted or given data."""
        svc, found = self._app.service, self._ids
        for name, ctx in (("ACTIVE", ALICE), ("OTHERS", BOB), ("QUEUED", ALICE)):
            with contextlib.suppress(KeyError, errors.NotFound):
                image = lifecycle.show(svc, ADMIN, found[name])
                if image.status == ("queued" if name == "QUEUED" else "active"):
                    continue
            if name == "QUEUED":
                new = lifecycle.NewImage(disk_format="raw", container_format="bare", tags=("warm",))
                found[name] = lifecycle.create(svc, ctx, new).id
            else:
                found[name] = make_active(self._app, ctx, tags=("warm",))
        with contextlib.suppress(errors.Conflict):
            sharing.add(svc, ALICE, found["ACTIVE"], "blue")

        now = svc.now()
        with contextlib.suppress(errors.Conflict):
            namespaces.create(svc, ADMIN, Definitions(
                Namespace(0, "space", "red", now, now, visibility="public"),
                (Association("T", now, now, prefix="p_"),),
                (MetadefProperty("p", {"title": "P", "type": "string"}, now, now),),
                (MetadefObject("o", {"p": {"title": "P", "type": "string"}}, now, now),),
                (MetadefTag("t", now, now),),
            ))  # fmt: skip

    def _rows(self) -> Any:
        with self._app.db.read_once() as tx:
            rows = [
                tx.execute(sa.select(table).order_by(*table.c)).fetchall() for table in tables.metadata.sorted_tables
            ]
        return rows, sorted(str(path) for store in ("one", "two") for path in (self._state / store).rglob("*"))

    def answer(self, sent: Sent) -> None:
        self._filled()
        path, body = sent.path, sent.body
        for name, image_id in self._ids.items():
            path, body = path.replace(name, image_id), body.replace(name.encode(), image_id.encode())
        raw, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": sent.method, "SCRIPT_NAME": "", "PATH_INFO": unquote_to_bytes(raw).decode("latin-1"), "RAW_URI": path,
            "QUERY_STRING": query, "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "gunicorn/27", "CONTENT_LENGTH": str(len(body)), "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(), "wsgi.multithread": True, "wsgi.multiprocess": True,
            "wsgi.run_once": False, "HTTP_AUTHORIZATION": sent.credentials,
        }  # fmt: skip
        for name, value in sent.fields.items():
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        before = self._rows()
        head: list[Any] = []
        answered = self._app.wsgi(environ, lambda *values: head.extend(values))
        content = b"".join(answered)
        if hasattr(answered, "close"):
            answered.close()
        status, fields = int(head[0].split()[0]), {name.lower(): value for name, value in head[1]}
        assert status < 500 or (status == 501 and sent.method == "BREW"), content
        assert fields["x-openstack-request-id"].isprintable()
        for name, value in fields.items():
            assert value.isascii(), (name, value)
            assert "\n" not in value, (name, value)
        event(f"{sent.method} {status}")
        kind = fields.get("content-type", "")
        if content and kind.startswith("application/json"):
            json.loads(content)
        elif content and kind.startswith("text/"):
            content.decode()
        if status >= 400:
            assert len(content) < 4000, content
            assert b"Traceback" not in content
            assert str(self._state).encode() not in content
            assert self._rows() == before
        elif sent.method in ("GET", "HEAD"):
            assert self._rows() == before


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    state = tmp_path_factory.mktemp("any")
    (state / "users.json").touch(0o600)
    write_users(state / "users.json")
    with parts(state, f"sqlite:///{state / 'any.db'}") as app:
        yield Answering(app, state)


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=requests())
def test_whatever_is_sent_the_answer_is_one_of_ours(answering: Answering, sent: Sent) -> None:
    answering.answer(sent)


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=requests_for_definitions())
def test_whatever_is_sent_about_definitions_the_answer_is_one_of_ours(answering: Answering, sent: Sent) -> None:
    answering.answer(sent)
