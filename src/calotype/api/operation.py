"""What is said of a route besides its method, path and handler: the words of the OpenAPI document.

The table of all is `operations.py`; `openapi.py` makes the document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the query, or a header of the request."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    repeated: bool = False  #: whether it may be given more than once
    default: str | None = None  #: what is meant where it is not given, if that can be said


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that is no error. `schema` is a component's name; None without a body of JSON."""

    description: str
    schema: str | None = None
    media: tuple[str, ...] = ()  #: media types of a body that is no JSON
    headers: tuple[str, ...] = ()  #: names in `openapi.HEADERS`, besides those of every answer


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route does, for those who call it.

    `answers` are those without an error, `refuses` statuses of errors beyond those that all routes of its kind have.
    `body` is a component's name, or one for each media type, or none for data that is no JSON. `provides` tells where
    an answer, or the request, has what other paths need: a runtime expression for each variable.
    """

    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    query: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: str | Mapping[str, str | None] | None = None
    refuses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()  #: what the one variable of the path may be, where that is known
    provides: Mapping[str, str] = field(default_factory=dict)
    is_data: bool = False  #: whether the body is image data, which no client may repeat by itself
