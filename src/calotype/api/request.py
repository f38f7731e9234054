"""Parses parts of an HTTP request into plain values. Raises `Invalid` for everything that is malformed."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import falcon

from calotype import errors
from calotype.api import body
from calotype.context import Context
from calotype.service import Service

#: The largest JSON body that is read, bytes.
MAX_JSON: Final = 1 << 20
#: The most values in one body. A parsed value takes up to a hundred times the memory of its text.
MAX_VALUES: Final = 32_768
UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MARK: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{,])', re.DOTALL)  # matches strings as well, to skip them
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff\U00010000-\U0010ffff]")

Handler = Callable[..., None]


def caller(req: falcon.Request) -> Context:
    """The caller, by the authentication middleware."""
    ctx: Context = req.context.caller
    return ctx


def service(req: falcon.Request) -> Service:
    """The service that use-cases work with."""
    svc: Service = req.context.service
    return svc


def no_body(req: falcon.Request) -> None:
    """Refuse a body. An empty chunked body, which some clients and proxies send, is accepted."""
    if not body.is_empty(req.env):
        raise errors.Invalid("This request takes no body.")


def json_object(req: falcon.Request) -> dict[str, Any]:
    """The body as a JSON object."""
    found = json_body(req)
    if not isinstance(found, dict):
        raise errors.Invalid("The request body must be a JSON object.")
    return found


def json_body(req: falcon.Request) -> Any:
    """The body as JSON: strict, bounded, with nothing in it that a database could not keep."""
    raw = _read(req) if body.has_body(req.env) else b""
    if not raw:
        raise errors.Invalid("This request needs a JSON body.")
    return parse_json(raw, "request body")


def parse_json(raw: bytes, what: str) -> Any:
    """JSON: strict, bounded, with nothing in it that a database could not keep. Raises `Invalid`."""
    if _has_many_values(raw):
        raise errors.Invalid(f"The {what} may hold at most {MAX_VALUES} values.")
    try:
        text = raw.decode()
        found = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
        if "\\u" in text:
            _check_values(found, what)  # Escapes may stand for characters that were refused in the text.
        check_text(text, f"The {what}")
    except UnicodeDecodeError as exc:
        raise errors.Invalid(f"The {what} is not UTF-8.") from exc
    except RecursionError as exc:
        raise errors.Invalid(f"The {what} is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.Invalid(f"Malformed JSON in {what}: {exc}") from exc
    return found


def _has_many_values(raw: bytes) -> bool:
    """Whether there are more than `MAX_VALUES` values. Counts without parsing, because parsing takes the memory."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") <= MAX_VALUES:
        return False
    marks = (found for found in _MARK.finditer(raw) if found[1])
    return next(islice(marks, MAX_VALUES, None), None) is not None


def _check_values(found: Any, what: str) -> None:
    todo = [found]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            check_text(value, f"The {what}")
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]


def _read(req: falcon.Request) -> bytes:
    length = body.content_length(req.env)
    too_large = errors.OverLimit(f"The request body may have at most {MAX_JSON} bytes.")
    if length is not None and length > MAX_JSON:
        raise too_large
    source = body.source(req.env)
    buffer = bytearray(min(length, MAX_JSON) + 1 if length is not None else MAX_JSON + 1)
    filled = 0
    while filled < len(buffer) and (count := source.readinto(memoryview(buffer)[filled:])):
        filled += count
    if filled > MAX_JSON:
        raise too_large
    return bytes(buffer[:filled])


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:100]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def check_text(text: str, what: str) -> str:
    """Refuse characters that not every database can store: NUL, lone surrogates, those beyond the BMP."""
    if _UNSTORABLE.search(text):
        raise errors.Invalid(f"{what} holds characters that are not supported (beyond the BMP, surrogates or NUL).")
    return text


def path_text(value: str, what: str) -> str:
    """Decode a variable of the path, and check that it can be stored. PATH_INFO has its bytes as latin-1."""
    if "\ufffd" in value:
        raise errors.Invalid(f"{what} is not UTF-8.")
    return check_text(value, what)


def take_names_from_query(req: falcon.Request, variables: dict[str, str]) -> None:
    """Replace a path variable that is `-` by the query parameter of the same name, if there is one.

    So clients can give names that no path can contain; Glance allowed them. Web servers and proxies decode and
    normalise paths, but not queries.
    """
    if "-" in variables.values():
        query = params(req)
        variables.update({name: query[name][-1] for name, value in variables.items() if value == "-" and name in query})


def params(req: falcon.Request) -> Mapping[str, list[str]]:
    """The query as lists of values; a name without a value has the empty string."""
    from urllib.parse import parse_qsl

    try:
        pairs = parse_qsl(
            req.query_string, keep_blank_values=True, errors="strict", encoding="utf-8", max_num_fields=256
        )
    except UnicodeDecodeError as exc:
        raise errors.Invalid("The query is not UTF-8.") from exc
    except ValueError as exc:
        raise errors.Invalid("The query has too many fields.") from exc
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(check_text(name, "The query"), []).append(check_text(value, "The query"))
    return found


def integer(text: str, what: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """A decimal integer in a range. Raises `Invalid`."""
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise errors.Invalid(f"{what} must be an integer.")
    value = int(text)
    if not least <= value <= most:
        raise errors.Invalid(f"{what} must be between {least} and {most}.")
    return value


def choice(value: str, allowed: Sequence[str], what: str) -> str:
    """One of a few words. Raises `Invalid`."""
    if value not in allowed:
        raise errors.Invalid(f"Invalid {what} {value[:100]!r}: must be one of {', '.join(allowed)}.")
    return value
