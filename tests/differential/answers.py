"""What a client can rely on in an answer, as facts: words that can be compared one by one.

A fact has a name (`status`, `header allow`, `body.images[0].name`) and a text. What must differ between two services, or
between two runs, is replaced by a word in angle brackets: times, ids that a service made, its own address. Messages of
errors are meant for people and left out. Which differences are declared is `differences.py`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

#: Headers that clients read.
HEADERS = (
    "Accept-Patch Accept-Ranges Allow Content-MD5 Content-Range Content-Type ETag Location OpenStack-Image-Import-Methods "
    "OpenStack-Image-Store-Ids Retry-After WWW-Authenticate X-Openstack-Request-Id"
).split()
ABSENT = "-"

#: Ids that the script chose end so, and are the same on both sides.
CHOSEN = "-0000-4000-8000-000000000000"
_UUID = re.compile(
    rf"\b[0-9a-f]{{8}}(?!{CHOSEN})-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}}\b", re.IGNORECASE
)
_REQUEST = re.compile(r"\breq-[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b")
_LINK = re.compile(r"/v2/[\w/]+\?")  #: its query is written in one of many ways
#: Lists in whose order Glance's database has a free hand.
_UNORDERED = re.compile(r".*\.(objects|resource_type_associations)")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d(T| )\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """As it came: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that is not the same; `-` where one side lacks it."""

    request: str
    fact: str
    glance: str
    calotype: str

    def __str__(self) -> str:
        return f"{self.request}\n    {self.fact}: Glance {self.glance}  Calotype {self.calotype}"


def compare(request: str, glance: Mapping[str, str], calotype: Mapping[str, str]) -> Iterator[Difference]:
    """What differs. Of answers with different statuses nothing else is told: all of it follows from the status."""
    names = [*glance, *(name for name in calotype if name not in glance)]
    if glance["status"] != calotype["status"]:
        names = ["status"]
    for name in names:
        first, second = glance.get(name, ABSENT), calotype.get(name, ABSENT)
        if first != second and _in_both(name, glance) and _in_both(name, calotype):
            yield Difference(request, name, first, second)


def _in_both(name: str, one: Mapping[str, str]) -> bool:
    """Whether an answer has the element of a list that a fact is about; that it is missing is told by the list."""
    element = name[: name.rfind("]") + 1]
    return not element or any(other.startswith(element) for other in one)


def facts(method: str, answer: Answer, own: Mapping[str, str]) -> dict[str, str]:
    """All facts of an answer of a service; `own` are its own texts, and words for them."""
    media = answer.headers.get("content-type", "").partition(";")[0]
    found = {"status": str(answer.status)}
    for header in HEADERS:
        if (value := answer.headers.get(header.lower())) is not None:
            found[f"header {header}"] = _header(header, value, own)
    if not answer.body and (answer.status >= 300 or method == "HEAD"):
        found.pop("header Content-Type", None)  # of a body that is not sent
    if answer.status < 300 and (media == "application/octet-stream" or method == "HEAD"):
        found["header Content-Length"] = answer.headers.get("content-length", ABSENT)
    if not answer.body:
        found["body"] = "empty"
    elif media == "application/json":
        found |= _json(answer, own)
    elif media == "application/octet-stream":
        found["body"] = repr(answer.body)
    elif media == "text/html":
        title = re.search(rb"<title>(.*?)</title>", answer.body, re.DOTALL)
        found["body title"] = title[1].decode().strip() if title else repr(answer.body[:100])
    else:
        found["body first line"] = answer.body.decode(errors="replace").partition("\n")[0].strip()
    return found


def _header(name: str, value: str, own: Mapping[str, str]) -> str:
    match name:
        case "WWW-Authenticate":
            return value.split()[0]
        case "X-Openstack-Request-Id" | "Retry-After":
            return "there"
        case "Allow" | "Accept-Patch":
            return ", ".join(sorted(part.strip() for part in value.split(",")))
    return _neutral(value, own)


def _json(answer: Answer, own: Mapping[str, str]) -> dict[str, str]:
    try:
        value = json.loads(answer.body)
    except ValueError:
        return {"body": f"no JSON: {answer.body[:100]!r}"}
    if isinstance(value, dict) and {"message", "code", "title"} <= set(value):
        value["message"] = type(value["message"]).__name__
    if isinstance(value, dict) and "definitions" in value:
        value = _written_out(value, value.pop("definitions"))
    return {_neutral(name, own): _neutral(text, own) for name, text in _flat("body", value)}


def _written_out(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references to its definitions: what they name stands in their places."""
    if isinstance(schema, list):
        return [_written_out(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    meant = [definitions[str(schema["$ref"]).rpartition("/")[2]]] if "$ref" in schema else schema.get("allOf", [])
    rest = {name: one for name, one in schema.items() if name not in ("$ref", "allOf")}
    found = {name: _written_out(one, definitions) for name, one in rest.items()}
    for one in meant:
        found |= _written_out(one, definitions)
    return found


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Leaves of a JSON value by their paths. Texts in a list have no order; objects in one go by ids or names.

    A description is for people, and left out, unless somebody gave it to something: that has a time or a title.
    """
    if isinstance(value, dict) and value:
        for name in sorted(value):
            if name != "description" or not isinstance(value[name], str) or {"created_at", "title"} & set(value):
                yield from _flat(f"{path}.{name}", value[name])
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        known = ("id", "member_id", "namespace", "name")
        names = [next((str(one[key]) for key in known if one.get(key)), str(place)) for place, one in enumerate(value)]
        yield path, " ".join(sorted(names) if _UNORDERED.fullmatch(path) else names)
        for name, one in zip(names, value, strict=True):
            yield from _flat(f"{path}[{name}]", one)
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        yield path, json.dumps(sorted(value))
    elif isinstance(value, str) and _LINK.match(value):
        where, _, query = value.partition("?")
        fields = sorted(f"{name}={text}" for name, text in parse_qsl(query, keep_blank_values=True))
        yield path, json.dumps(f"{where}?{'&'.join(fields)}")
    else:
        yield path, json.dumps(value)


def _neutral(text: str, own: Mapping[str, str]) -> str:
    for mine, word in own.items():
        text = text.replace(mine, word)
    text = _UUID.sub("<id>", _REQUEST.sub("<request>", text))
    return _TIME.sub(lambda found: f"<time{'.fraction' if found[2] else ''}{found[3] or ''}>", text)
