"""What `make differential` relies on: each declared difference has its line, and an undeclared one is found."""

import json
from typing import Any

from tests.differential.answers import ABSENT, Answer, Difference, compare, facts
from tests.differential.differences import DECLARED, Declared, judge, line, lines


def answer(body: Any, status: int = 200, **headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    media = {"content-type": "application/json"}
    return facts("GET", Answer(status, media | named, json.dumps(body).encode()), {"http://one": "<url>"})


def differing(glance: dict[str, str], calotype: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(found.fact, found.glance, found.calotype) for found in compare("GET /", glance, calotype)]


def test_every_declared_difference_has_one_line_in_the_document() -> None:
    assert len(lines()) == len(set(lines()))
    assert all(line(one.line) for one in DECLARED)


def test_times_ids_and_addresses_are_no_differences() -> None:
    one = {"id": "7a3a8d0c-1f0e-4a6e-9d55-f2b7e0a2f001", "created_at": "2026-01-01T00:00:00Z", "url": "http://one/v2"}
    two = {"id": "0d0f0c4e-2c6d-4f5a-8a43-3a1be0dd2002", "created_at": "2025-02-02T00:00:02Z", "url": "<url>/v2"}
    assert differing(answer(one), answer(two)) == []


def test_what_a_client_reads_is_a_difference() -> None:
    first = answer({"name": "a", "size": 1, "tags": ["x", "y"], "gone": None}, location="/a", allow="GET, PUT")
    second = answer({"name": "b", "size": "1", "tags": ["y", "x"]}, location="/b", allow="PUT, GET", retry_after="5")
    assert differing(first, second) == [
        ("header Location", "/a", "/b"),
        ("body.gone", "null", ABSENT),
        ("body.name", '"a"', '"b"'),
        ("body.size", "1", '"1"'),
        ("header Retry-After", ABSENT, "there"),
    ]
    assert differing(answer({}, status=404), answer({"name": "a"})) == [("status", "404", "200")]
    fine, fraction = ({"created_at": f"2026-01-01T00:00:00{rest}"} for rest in ("Z", ".000001"))
    assert differing(answer(fine), answer(fraction)) == [("body.created_at", '"<timeZ>"', '"<time.fraction>"')]


def test_errors_are_compared_by_code_and_title_and_not_by_message() -> None:
    first, second = ({"code": "404 Not Found", "title": title, "message": title} for title in ("Not Found", "Nothing"))
    assert differing(answer(first), answer(second)) == [("body.title", '"Not Found"', '"Nothing"')]


def test_the_order_of_a_list_and_what_it_lacks_are_one_difference() -> None:
    first, second = {"id": "a", "name": "x"}, {"id": "b", "name": "y"}
    both, changed = answer({"images": [first, second]}), answer({"images": [second | {"name": "z"}]})
    assert differing(both, changed) == [("body.images", "a b", "b"), ("body.images[b].name", '"y"', '"z"')]


def test_what_is_not_declared_and_what_is_not_there_any_more_is_wrong() -> None:
    declared = (Declared("`HEAD`", "HEAD", "status", "405", "200"), Declared("`ETag`", "", "header ETag", "-"))
    there = Difference("HEAD /file", "status", "405", "200")
    assert judge([there, Difference("GET /", "header ETag", "-", '"x"')], declared) == []
    assert len(judge([there], declared)) == 1
    assert len(judge([there, Difference("GET /", "header ETag", '"y"', '"x"')], declared)) == 2


def test_a_reference_in_a_schema_is_what_it_refers_to() -> None:
    count = {"type": "integer", "minimum": 0}
    first = {
        "properties": {"a": {"$ref": "#/definitions/c"}, "b": {"allOf": [{"$ref": "#/definitions/c"}, {"default": 0}]}}
    }
    second = {"properties": {"a": count, "b": count | {"default": 0}}}
    assert differing(answer(first | {"definitions": {"c": count}}), answer(second)) == []
    other = {"properties": {"a": count, "b": count}}
    found = [("body.properties.b.default", "0", ABSENT)]
    assert differing(answer(first | {"definitions": {"c": count}}), answer(other)) == found


def test_objects_have_no_order_and_tags_have_one() -> None:
    one, two = [{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}]
    assert differing(answer({"objects": one}), answer({"objects": two})) == []
    assert differing(answer({"objects": one}), answer({"objects": two[:1]})) == [("body.objects", "a b", "b")]
    assert differing(answer({"tags": one}), answer({"tags": two})) == [("body.tags", "a b", "b a")]


def test_a_description_that_somebody_gave_is_compared() -> None:
    texts = ({"description": text} for text in ("x", "y"))
    assert differing(*map(answer, texts)) == []
    definitions = ({"title": "t", "description": text} for text in ("x", "y"))
    assert differing(*map(answer, definitions)) == [("body.description", '"x"', '"y"')]
