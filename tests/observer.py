"""Sees every answer of every service that the tests start, and holds it to the description of the API.

`python -m tests.observer serve …` is `calotype serve …` with a last look at each answer: its status, headers, media type
and body have to be what `openapi.py` says of the route, and a request that is answered with success has to be one that
it describes. What is not goes into the file that `VIOLATIONS` names, and fails the test in which it happened
(`conftest.py`). What the web server says of itself, before there is a request, is not seen.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import falcon
import jsonschema_rs

from calotype import app
from calotype.api import request
from tests import VIOLATIONS

#: Headers that answers may have without a word: HTTP's own, and those of cross-origin requests.
_HTTP = frozenset(("content-type", "content-length", "vary", "allow"))
_CROSS_ORIGIN = "access-control-"
#: What any path may answer to a method that it does not have, or before anybody looks for it.
_ELSEWHERE = frozenset((200, 300, 400, 401, 403, 404, 405, 431, 501, 503))


class Observer:
    """The first middleware, which is the last to see an answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._validators: dict[str, Any] = {}

    def process_response(self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool) -> None:
        try:
            wrong = list(self._wrong(req, resp))
        except Exception as exc:  # the answer goes out all the same; the test fails
            wrong = [f"cannot be looked at: {exc!r}"]
        for what in wrong:
            tell(f"{req.method} {req.path} ({req.uri_template}) answered {resp.status_code}: {what}")

    def _wrong(self, req: falcon.Request, resp: falcon.Response) -> Any:
        operations = self._document["paths"].get(req.uri_template or "", {})
        operation = operations.get(req.method.lower())
        if operation is None:
            if resp.status_code not in _ELSEWHERE or (resp.status_code == 200 and req.method != "OPTIONS"):
                yield "not declared for what is no route"
            elif resp.status_code != 200:
                yield from self._wrong_answer(req, resp, self._elsewhere(resp.status_code))
            return
        answer = self._resolved(operation["responses"].get(str(resp.status_code)))
        if answer is None:
            yield "the status is not declared"
            return
        yield from self._wrong_answer(req, resp, answer)
        if resp.status_code < 300 and (raw := getattr(req.context, "observed", None)) is not None:
            yield from self._wrong_request(req, operation, raw)

    def _wrong_answer(self, req: falcon.Request, resp: falcon.Response, answer: dict[str, Any]) -> Any:
        there = {name.lower(): value for name, value in resp.headers.items()}
        declared = {name.lower() for name in answer["headers"]}
        if undeclared := {name for name in there.keys() - declared - _HTTP if not name.startswith(_CROSS_ORIGIN)}:
            yield f"headers are not declared: {undeclared}"
        for name, ref in answer["headers"].items():
            header = self._document["components"]["headers"][name]
            if (value := there.get(name.lower())) is None:
                if header.get("required"):
                    yield f"there is no {name}"
            elif not self._fits(f"{ref['$ref']}/schema", int(value) if _is_number(header, value) else value):
                yield f"{name} is {value!r}"
        yield from self._wrong_body(req, resp, answer.get("content", {}))

    def _wrong_body(self, req: falcon.Request, resp: falcon.Response, content: dict[str, Any]) -> Any:
        text = resp.data if resp.data is not None else resp.text.encode() if resp.text is not None else None
        has_body = text is not None or resp.stream is not None
        if not has_body or req.method == "HEAD":
            if content and req.method != "HEAD" and resp.status_code not in (204, 304):
                yield "there is no body"
            return
        media = (resp.content_type or "").partition(";")[0]
        if media not in content:
            yield f"media type {media!r} is not declared"
        elif media == "application/json" and text is not None and "schema" in content[media]:
            yield from self._wrong_json(content[media]["schema"]["$ref"], text, "the answer")

    def _wrong_request(self, req: falcon.Request, operation: dict[str, Any], raw: bytes) -> Any:
        content = operation.get("requestBody", {}).get("content", {})
        media = (req.content_type or "").partition(";")[0].strip().lower()
        described = content.get(media) or content.get("application/json")  # whose media type is not looked at
        if described is None:
            yield "a request with a body is not declared"
        elif "schema" in described:
            yield from self._wrong_json(described["schema"]["$ref"], raw, "the request")

    def _wrong_json(self, ref: str, text: bytes, what: str) -> Any:
        for error in self._validator(ref).iter_errors(json.loads(text)):
            yield f"{what} is no {ref.rpartition('/')[2]}: {error.message[:300]} at {list(error.instance_path)}"

    def _fits(self, ref: str, value: Any) -> bool:
        return bool(self._validator(ref).is_valid(value))

    def _validator(self, ref: str) -> Any:
        if ref not in self._validators:
            whole = {"$ref": ref, "components": self._document["components"]}
            self._validators[ref] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        return self._validators[ref]

    def _elsewhere(self, status: int) -> dict[str, Any]:
        """What is answered where there is no route: the versions that there are, or an error as everywhere."""
        if status == 300:
            found: dict[str, Any] = self._document["paths"]["/"]["get"]["responses"]["300"]
            return found
        errors = self._document["components"]["responses"]
        return dict(errors.get(str(status), errors["400"]))

    def _resolved(self, answer: dict[str, Any] | None) -> dict[str, Any] | None:
        if answer is None or "$ref" not in answer:
            return answer
        found: dict[str, Any] = self._document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        return found


def _is_number(header: dict[str, Any], value: str) -> bool:
    return header["schema"]["type"] == "integer" and value.isdigit()


def tell(what: str) -> None:
    if path := os.environ.get(VIOLATIONS):
        with Path(path).open("a") as file:
            file.write(what.replace("\n", " ") + "\n")


def observe() -> None:
    """Have every application that this process makes from now on observed."""
    make, read = app._falcon, request._read

    def observed(middleware: list[Any]) -> Any:
        arrival = next(one for one in middleware if isinstance(one, app.Arrival))
        return make([Observer(json.loads(arrival._openapi)), *middleware])

    def kept(req: falcon.Request) -> bytes:
        raw = read(req)
        req.context.observed = raw
        return raw

    app._falcon = observed
    request._read = kept


def main() -> int:
    from calotype.cli import main as calotype

    observe()
    return calotype.main()


if __name__ == "__main__":
    sys.exit(main())
