"""The types that describe a route for the OpenAPI document: `Operation`, `Parameter` and `Answer`.

`operations.py` has the description of each route; `openapi.py` makes the document.
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
    repeated: bool = False  #: whether it may occur more than once
    default: str | None = None  #: the default value as text, None if there is none


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that is no error. `schema` is the name of a component, None without a JSON body."""

    description: str
    schema: str | None = None
    media: tuple[str, ...] = ()  #: media types of a body that is no JSON
    headers: tuple[str, ...] = ()  #: names in `openapi.HEADERS`, besides those of every answer


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route does, for its callers.

    `answers` are the successful answers; `refuses` are statuses of errors that not all routes of its kind have. `body`
    is the name of a component, or one for each media type, or None if the body is no JSON. `provides` has a runtime
    expression for each path variable of other routes: where the answer or the request has its value.
    """

    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    query: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: str | Mapping[str, str | None] | None = None
    refuses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()  #: the allowed values of the only path variable, if they are known
    provides: Mapping[str, str] = field(default_factory=dict)
    is_data: bool = False  #: whether the body is image data; clients must not repeat such requests automatically
