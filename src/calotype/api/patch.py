"""Parses a JSON patch, in either of the two media types, into `model.Change` values.

Draft 4 of JSON patch came with v2.0 (`{"replace": "/name", "value": …}`), the later form, close to RFC 6902,
with v2.1 (`{"op": "replace", "path": "/name", "value": …}`). Only add, replace and remove exist, one level deep.
"""

import re
from typing import Any, Final

from calotype import errors
from calotype.api.schemas import Schemas
from calotype.images.lifecycle import READ_ONLY, RESERVED
from calotype.model import RESERVED_PREFIX, Change

V20: Final = "application/openstack-images-v2.0-json-patch"
V21: Final = "application/openstack-images-v2.1-json-patch"
ACCEPTED: Final = f"{V20}, {V21}"

OPS: Final = ("add", "replace", "remove")
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")
#: The most steps of a patch. More than this would be an attack, not an update.
MAX_CHANGES: Final = 4096


def changes(body: Any, media_type: str, schemas: Schemas) -> list[Change]:
    """The steps of a patch. Raises `Invalid`; `Forbidden` for names that cannot be written at all."""
    if not isinstance(body, list):
        raise errors.Invalid("The request body must be a JSON array of operation objects.")
    if len(body) > MAX_CHANGES:
        raise errors.Invalid(f"A patch has at most {MAX_CHANGES} operations.")
    read = _read_20 if media_type == V20 else _read_21
    return [_change(*read(step), schemas) for step in body if _is_object(step)]


def _is_object(step: Any) -> bool:
    if not isinstance(step, dict):
        raise errors.Invalid("Operations must be JSON objects.")
    return True


def _read_20(step: dict[str, Any]) -> tuple[str, Any, dict[str, Any], bool]:
    ops = [name for name in OPS if name in step]
    if len(ops) != 1:
        raise errors.Invalid("Operation objects must contain exactly one member named add, remove or replace.")
    return ops[0], step[ops[0]], step, True


def _read_21(step: dict[str, Any]) -> tuple[str, Any, dict[str, Any], bool]:
    op = step.get("op")
    if op not in OPS:
        raise errors.Invalid(f"Operations must be add, remove or replace; {str(op)[:100]!r} is none of them.")
    return op, step.get("path"), step, False


def _change(op: str, path: Any, step: dict[str, Any], strict_add: bool, schemas: Schemas) -> Change:
    name = _pointer(path)
    if name in READ_ONLY:
        raise errors.Forbidden(f"Attribute '{name}' is read-only.")
    if name in RESERVED or name.startswith(RESERVED_PREFIX):
        raise errors.Forbidden(f"Attribute '{name}' is reserved.")
    if op == "remove":
        return Change(op, name)
    if "value" not in step:
        raise errors.Invalid(f"Operation {op!r} requires a member named 'value'.")
    schemas.check_image({name: step["value"]})
    return Change(op, name, step["value"], strict_add)


def _pointer(path: Any) -> str:
    """The one name in a JSON pointer."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise errors.Invalid(f"Pointer {str(path)[:100]!r} does not start with '/'.")
    if _BAD_ESCAPE.search(path):
        raise errors.Invalid(f"Pointer {path[:100]!r} contains a '~' that is not part of '~0' or '~1'.")
    segments = [segment.strip() for segment in path[1:].split("/")]
    if not all(segments):
        raise errors.Invalid(f"Pointer {path[:100]!r} contains an empty segment.")
    name = segments[0].replace("~1", "/").replace("~0", "~")
    if len(segments) > 1:
        if name == "locations":
            raise errors.Forbidden("Attribute 'locations' is reserved.")
        raise errors.Invalid(f"Pointer {path[:100]!r} is more than one level deep.")
    return name
