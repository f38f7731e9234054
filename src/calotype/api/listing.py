"""Parses the query string of `GET /v2/images` into a `model.Query` (contract: api.md §3.2)."""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from calotype import errors
from calotype.api.operation import Parameter
from calotype.api.request import choice, integer
from calotype.model import MEMBER_STATUSES, VISIBILITIES, Comparison, Query

SORT_KEYS: Final = frozenset("name status container_format disk_format size id created_at updated_at".split())
_DIRECTIONS: Final = ("asc", "desc")
_OPS: Final = ("eq", "neq", "lt", "lte", "gt", "gte")
#: Columns that may be filtered by `in:a,b` as well as by equality.
_LISTABLE: Final = frozenset("name id status container_format disk_format".split())
_TEXT: Final = frozenset(["checksum", "os_hash_algo", "os_hash_value", "owner"])
_NUMBERS: Final = frozenset(["size", "virtual_size", "min_ram", "min_disk"])
_TIMES: Final = frozenset({"created_at", "updated_at"})
_PAGING: Final = frozenset("limit marker sort sort_key sort_dir member_status deleted".split())

Params = Mapping[str, list[str]]

_MOMENT: Final = "Time, or `op:time` with one of eq, neq, lt, lte, gt, gte; ISO 8601"
_FILTER: Final = 'Text, or `in:` and texts with commas between them, `"` around those with a comma'


def _one_of(words: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


#: The parameters of the query, for the OpenAPI document.
PARAMETERS: Final = (
    Parameter("limit", "Most images on a page; else as many as is configured", {"type": "integer", "minimum": 0}),
    Parameter("marker", "Id of the image after which the page begins"),
    Parameter("sort", "Keys with directions, `key[:dir],…`; not together with the next two"),
    Parameter("sort_key", "Attribute to sort by", _one_of(sorted(SORT_KEYS)), repeated=True, default="created_at"),
    Parameter(
        "sort_dir", "Direction of all keys, or one for each", _one_of(_DIRECTIONS), repeated=True, default="desc"
    ),
    Parameter("visibility", "Only such images", _one_of((*VISIBILITIES, "all"))),
    Parameter(
        "member_status",
        "Of images shared with you, only such",
        _one_of((*MEMBER_STATUSES, "all")),
        default="accepted",
    ),
    Parameter("os_hidden", "Hidden images in place of the others", _one_of(("true", "false")), default="false"),
    Parameter("protected", "Only protected images, or only others", _one_of(("true", "false"))),
    Parameter("tag", "Only images with this tag, and all others that are named", repeated=True),
    *(Parameter(name, _FILTER) for name in sorted(_LISTABLE)),
    *(Parameter(name, "Exactly this text") for name in sorted(_TEXT)),
    *(Parameter(name, "Exactly this number", {"type": "integer", "minimum": 0}) for name in sorted(_NUMBERS)),
    *(Parameter(f"{name}_min", "This number, or a greater one", {"type": "integer"}) for name in sorted(_NUMBERS)),
    *(Parameter(f"{name}_max", "This number, or a lesser one", {"type": "integer"}) for name in sorted(_NUMBERS)),
    *(Parameter(name, _MOMENT, repeated=True) for name in sorted(_TIMES)),
)


def query(params: Params, *, default_limit: int, most: int) -> Query:
    """The parsed query. Raises `Invalid` with the name of the wrong parameter."""
    if "changes-since" in params:
        raise errors.Invalid("The changes-since filter is not supported.")
    one_of: dict[str, tuple[Any, ...]] = {}
    comparisons: list[Comparison] = []
    properties: dict[str, str] = {}
    visibility: str | None = None
    hidden = False
    for name, values in params.items():
        value = values[-1]
        if name in _PAGING or name == "tag":
            continue
        if name == "visibility":
            visibility = choice(value, (*VISIBILITIES, "all"), name)
        elif name == "os_hidden":
            hidden = _boolean(value.lower(), name)
        elif name == "protected":
            one_of[name] = (_boolean(value, name),)
        elif name in _LISTABLE:
            one_of[name] = _list(value, name)
            if name == "id":  # Compared as in a path: unchanged, or in lower case.
                one_of[name] = tuple(dict.fromkeys(one_of[name] + tuple(map(str.lower, one_of[name]))))
        elif name in _TEXT:
            one_of[name] = (value,)
        elif name in _NUMBERS:
            one_of[name] = (integer(value, f"Filter {name}"),)
        elif name in _TIMES:
            comparisons += [_moment(each, name) for each in values]
        elif name[-4:] in ("_min", "_max") and name[:-4] in _NUMBERS:
            bound = integer(value, f"Filter {name}", least=-(2**63))
            comparisons.append(Comparison(name[:-4], "gte" if name.endswith("_min") else "lte", bound))
        else:
            properties[name] = value
    limit = _last(params, "limit", lambda text: integer(text, "limit"), default_limit)
    return Query(
        limit=min(limit, most),
        marker=_last(params, "marker", str, None),
        sort=_sort(params),
        visibility=visibility,
        member_status=_last(
            params, "member_status", lambda text: choice(text, (*MEMBER_STATUSES, "all"), "member_status"), "accepted"
        ),
        os_hidden=hidden,
        one_of=one_of,
        comparisons=tuple(comparisons),
        tags=tuple(dict.fromkeys(params.get("tag", ()))),
        properties=properties,
    )


def _last(params: Params, name: str, read: Callable[[str], Any], default: Any) -> Any:
    return read(params[name][-1]) if name in params else default


def _sort(params: Params) -> tuple[tuple[str, str], ...]:
    if "sort" in params:
        if "sort_key" in params or "sort_dir" in params:
            raise errors.Invalid("Give either sort or sort_key and sort_dir, not both.")
        pairs = [part.strip().partition(":") for part in ",".join(params["sort"]).split(",")]
        return _checked([(key, direction or "desc") for key, _, direction in pairs])
    keys = params.get("sort_key") or ["created_at"]
    directions = params.get("sort_dir") or ["desc"]
    if len(directions) == 1:
        directions = directions * len(keys)
    if len(directions) != len(keys):
        raise errors.Invalid("Give one sort_dir for all sort_keys, or one for each.")
    return _checked(list(zip(keys, directions, strict=True)))


def _checked(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    for key, direction in pairs:
        choice(key, sorted(SORT_KEYS), "sort_key")
        choice(direction, _DIRECTIONS, "sort_dir")
    # If a key is repeated, only its first occurrence has an effect.
    found: dict[str, tuple[str, str]] = {}
    for key, direction in pairs:
        found.setdefault(key, (key, direction))
    return tuple(found.values())


def _boolean(value: str, name: str) -> bool:
    return choice(value, ("true", "false"), name) == "true"


def _list(value: str, name: str) -> tuple[str, ...]:
    """Parse `value`, or `in:` with values separated by commas. A value with a comma or a quote is quoted."""
    prefix, colon, rest = value.partition(":")
    if not colon:
        return (value,)
    if prefix != "in":
        raise errors.Invalid(
            f'Unable to filter {name} by the operator {prefix[:100]!r}: write in:"…" for values with a colon.'
        )
    return tuple(_split(rest))


def _split(text: str) -> list[str]:
    if not re.fullmatch(r'(?:"(?:[^"\\]|\\.)*"|[^",]*)(?:,(?:"(?:[^"\\]|\\.)*"|[^",]*))*', text):
        raise errors.Invalid(f"Invalid filter value {text[:100]!r}: the quotes are not balanced.")
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|([^",]+)', text)
    return [re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for quoted, plain in found] or [""]


def _moment(value: str, name: str) -> Comparison:
    op, colon, rest = value.partition(":")
    if not colon or op not in _OPS:
        if colon and re.fullmatch(r"[a-z]+", op):
            raise errors.Invalid(f"Unable to filter {name} by the unknown operator {op!r}.")
        op, rest = "eq", value
    try:
        when = datetime.fromisoformat(rest.strip().replace(" ", "+") if "T" in rest else rest.strip())
        if when.tzinfo is not None:
            when = when.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as exc:
        raise errors.Invalid(
            f"Invalid time {rest[:100]!r} in filter {name}: write it as 2026-01-31T12:00:00Z."
        ) from exc
    return Comparison(name, op, when)
