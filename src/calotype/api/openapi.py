"""The OpenAPI 3.1 document, made of the routes, the operations that describe them, and the schemas.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from calotype import __version__
from calotype.api.components import components
from calotype.api.errors import FOR_DATA
from calotype.api.operation import Answer, Operation, Parameter, Schema
from calotype.api.operations import CHAPTERS
from calotype.api.request import Handler
from calotype.api.routes import ROUTES, Route
from calotype.api.schemas import UUID_PATTERN, Schemas


def _header(text: str, schema: Schema | None = None, *, always: bool = True) -> Schema:
    """A header of answers. `always` says whether it is never missing in the answers that list it."""
    return {"description": text, "schema": {"type": "string"} | (schema or {})} | ({"required": True} if always else {})


#: Headers of answers, by their names.
HEADERS: Final[dict[str, Schema]] = {
    "X-Openstack-Request-ID": _header("Names the request in the log of the service", {"pattern": "^req-"}),
    "Location": _header("Where it is", {"format": "uri"}),
    "OpenStack-image-import-methods": _header("Import methods that are offered, with commas between them"),
    "OpenStack-image-store-ids": _header("Stores that data may go to, with commas between them"),
    "ETag": _header("Another one for other bytes", {"pattern": '^"[^"]+"$'}, always=False),
    "Accept-Ranges": _header("That parts can be asked for", {"const": "bytes"}),
    "Content-MD5": _header("MD5 of the data in hex, for old clients", {"pattern": "^[0-9a-f]{32}$"}, always=False),
    "Content-Range": _header(
        "Which bytes these are, or how many there are; with several ranges each part says it",
        {"pattern": r"^bytes (\d+-\d+|\*)/\d+$"},
        always=False,
    ),
    "Retry-After": _header("Seconds after which it is worth while to ask again", {"type": "integer", "minimum": 0}),
    "WWW-Authenticate": _header("How to say who you are"),
    "Accept-Patch": _header("Media types of patches", always=False),
}
_ALWAYS: Final = ("X-Openstack-Request-ID",)
#: What errors mean, with the headers that go with them.
_ERRORS: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    400: ("The request is malformed, or its values make no sense", ()),
    401: ("Nobody, or somebody with wrong credentials, is asking", ("WWW-Authenticate",)),
    403: ("You may not do this", ()),
    404: ("There is no such thing, or you may not know that there is", ()),
    409: ("It is not in a state that allows this, the name is taken, or somebody else was quicker", ()),
    410: ("It disappeared meanwhile, or the store takes no data", ()),
    412: ("A condition of the request, such as `If-Match`, does not hold; nothing was changed", ()),
    413: ("A quota, a limit or a cap does not allow this", ()),
    415: ("The media type is not one that is read here, or the data is not what the image says", ("Accept-Patch",)),
    416: ("None of these bytes exist", ("Content-Range",)),
    431: ("X-Openstack-Request-ID is too long", ()),
    500: ("A store failed", ()),
    501: ("The body comes in a way that the server cannot read", ()),
    503: ("Something is away or has too much to do; ask again later", ("Retry-After",)),
    507: ("The data cannot be stored just now; the image is queued, upload again later", ()),
}
_SAYS: Final[dict[str, tuple[str, Schema]]] = {
    "image_id": ("Id of the image", {"type": "string", "format": "uuid", "pattern": UUID_PATTERN}),
    "task_id": ("Id of the task", {"type": "string", "format": "uuid", "pattern": UUID_PATTERN}),
    "member_id": ("Project that the image is shared with", {"type": "string"}),
    "tag": ("The tag", {"type": "string", "minLength": 1, "maxLength": 255}),
    "store_id": ("Name of the store", {"type": "string"}),
    "name": ("Name of the schema", {"type": "string"}),
    "namespace": ("Name of the namespace", {"type": "string"}),
    "object_name": ("Name of the object", {"type": "string"}),
    "property_name": ("Name of the property", {"type": "string"}),
    "tag_name": ("The tag", {"type": "string"}),
    "resource_type": ("Name of the resource type", {"type": "string"}),
}
_VARIABLE: Final = re.compile(r"{(\w+)}")
_OPERATIONS: Final = {
    handler: (chapter, operation) for chapter, some in CHAPTERS.items() for handler, operation in some.items()
}


def document(schemas: Schemas) -> dict[str, Any]:
    """The description of the API of a configuration, as JSON."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        chapter, operation = _OPERATIONS[route.handler]
        paths.setdefault(route.path, {})[route.method.lower()] = _described(route, chapter, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Calotype, an OpenStack Image service",
            "version": __version__,
            "summary": "The Image API v2",
            "description": "Paths may begin with any version that `GET /versions` lists in place of `/v2`. Bodies of "
            "errors are JSON, HTML or plain text, as `Accept` asks for.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": chapter} for chapter in CHAPTERS],
        "security": [{"token": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": components(schemas),
            "responses": {str(status): _error(status) for status in _ERRORS},
            "headers": HEADERS,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Auth-Token",
                    "description": "A token of Keystone, where the service uses it",
                },
                "basic": {"type": "http", "scheme": "basic", "description": "A user of the service's own file"},
            },
        },
    }


def statuses(route: Route) -> Iterator[int]:
    """The statuses of errors that a route may answer."""
    _, operation = _OPERATIONS[route.handler]
    writes = route.method not in ("GET", "HEAD")
    found = {400, 431, 503, *operation.refuses}
    found |= set() if route.open else {401, 412}
    found |= {404} if _VARIABLE.search(route.path) else set()
    found |= {403, 409} if writes else set()
    found |= {413, 501} if operation.body else set()
    if operation.is_data:
        found = {FOR_DATA.get(status, status) for status in found}
    return iter(sorted(found - operation.answers.keys()))


def _described(route: Route, chapter: str, operation: Operation) -> dict[str, Any]:
    answers = {str(status): _answer(route, status, answer, operation) for status, answer in operation.answers.items()}
    errors = {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses(route)}
    found: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": operation.summary,
        "tags": [chapter],
        "parameters": [
            *(_parameter("path", _variable(name, operation)) for name in _VARIABLE.findall(route.path)),
            *(_parameter("query", one) for one in operation.query),
            *(_parameter("header", one) for one in operation.headers),
        ],
        "responses": answers | errors,
    }
    if operation.description:
        found["description"] = operation.description
    if operation.description.startswith("Deprecated"):
        found["deprecated"] = True
    if operation.body:
        by_media = {"application/json": operation.body} if isinstance(operation.body, str) else operation.body
        content = {media: {"schema": _ref("schemas", name)} if name else {} for media, name in by_media.items()}
        found["requestBody"] = {"required": True, "content": content}
    if route.open:
        found["security"] = []
    return found


def _variable(name: str, operation: Operation) -> Parameter:
    text, schema = _SAYS[name]
    return Parameter(name, text, {"type": "string", "enum": list(operation.names)} if operation.names else schema)


def _parameter(where: str, one: Parameter) -> dict[str, Any]:
    schema = {"type": "array", "items": one.schema} if one.repeated else one.schema
    if one.default is not None:
        schema = {**schema, "default": [one.default] if one.repeated else one.default}
    required = {"required": True} if where == "path" else {}
    return {"name": one.name, "in": where, "description": one.description, "schema": schema, **required}


def _answer(route: Route, status: int, answer: Answer, operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.description, "headers": _headers(*_ALWAYS, *answer.headers)}
    content: dict[str, Any] = {media: {} for media in answer.media}
    if answer.schema:
        content["application/json"] = {"schema": _ref("schemas", answer.schema)}
    if content and route.method != "HEAD":
        found["content"] = content
    if links := _links(route, operation) if status < 300 else {}:
        found["links"] = links
    return found


def _links(route: Route, operation: Operation) -> dict[str, Any]:
    """Links from an answer to other routes: to each one whose path has exactly the variables that the answer provides.

    Routes that create something under a name in the path are linked as well.
    """
    provided = operation.provides.keys()
    found = {}
    for other in ROUTES:
        variables = set(_VARIABLE.findall(other.path))
        makes = bool(_OPERATIONS[other.handler][1].provides)
        if provided and other != route and (variables == provided or (variables > provided and makes)):
            name = _operation_id(other)
            found[name] = {"operationId": name, "parameters": dict(operation.provides)}
    return found


def _error(status: int) -> dict[str, Any]:
    text, headers = _ERRORS[status]
    content: Schema = {media: {"schema": {"type": "string"}} for media in ("text/plain", "text/html")}
    content["application/json"] = {"schema": _ref("schemas", "Error")}
    return {"description": text, "headers": _headers(*_ALWAYS, *headers), "content": content}


def _headers(*names: str) -> dict[str, Any]:
    return {name: _ref("headers", name) for name in names}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _operation_id(route: Route) -> str:
    handler: Handler = route.handler
    name = f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}"
    return f"{name}.head" if route.method == "HEAD" else name
