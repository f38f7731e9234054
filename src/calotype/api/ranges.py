"""Parses the byte ranges of RFC 9110 §14, for content of known length."""

import math
import re
from itertools import pairwise
from typing import Final

from calotype import errors

#: The most parts, after those that touch are joined.
MAX_PARTS: Final = 32
_SPEC: Final = re.compile(r"^(\d*)-(\d*)$", re.ASCII)

Range = tuple[int, int]  #: offset, length


def parse(header: str | None, size: int) -> list[Range] | None:
    """The requested ranges, joined if they overlap or touch; None for the whole content.

    Other units than bytes are ignored, as the RFC says. Raises `RangeUnsatisfiable` if no requested byte exists, if the
    header is malformed (as Glance does), or if there are too many parts.
    """
    if header is None:
        return None
    unit, equals, specs = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    if len(specs) > 4096:
        raise errors.RangeUnsatisfiable("The Range header is too long.", size)
    found = [part for spec in specs.split(",") if spec.strip() and (part := _one(spec.strip(), size))]
    if not found:
        raise errors.RangeUnsatisfiable(f"The range {header[:100]!r} is not in the image of {size} bytes.", size)
    joined = _join(found)
    if len(joined) > MAX_PARTS:
        raise errors.RangeUnsatisfiable(f"At most {MAX_PARTS} ranges are served at once.", size)
    return joined


def parse_content_range(header: str, size: int) -> list[Range]:
    """The request header that old clients send in place of `Range`: `bytes first-last/length`."""
    found = re.fullmatch(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", header.strip(), re.ASCII)
    if not found or not int(found[1]) <= int(found[2]) < (math.inf if found[3] == "*" else int(found[3])):
        raise errors.RangeUnsatisfiable(f"The header {header[:100]!r} is malformed.", size)
    if int(found[1]) >= size:
        raise errors.RangeUnsatisfiable(f"The range {header[:100]!r} is not in the image of {size} bytes.", size)
    first, last = int(found[1]), min(int(found[2]), size - 1)
    return [(first, last - first + 1)]


def _one(spec: str, size: int) -> Range | None:
    found = _SPEC.match(spec)
    if found is None or not (found[1] or found[2]) or max(len(found[1]), len(found[2])) > 20:
        raise errors.RangeUnsatisfiable(f"The range {spec[:100]!r} is malformed.", size)
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, length) if length else None
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        raise errors.RangeUnsatisfiable(f"The range {spec[:100]!r} is malformed.", size)
    return (first, last - first + 1) if first < size else None


def _join(ranges: list[Range]) -> list[Range]:
    """Join ranges that overlap or touch. The others stay in the order of the request."""
    if all(a[0] + a[1] < b[0] for a, b in pairwise(ranges)):
        return ranges
    joined: list[Range] = []
    for offset, length in sorted(ranges):
        if joined and offset <= joined[-1][0] + joined[-1][1]:
            start, before = joined[-1]
            joined[-1] = (start, max(before, offset + length - start))
        else:
            joined.append((offset, length))
    return joined
