"""The reference of the API, `docs/api/reference/`: made of the OpenAPI document, `docs/api/routes.md` and `pages/`.

A page of `pages/` is about one resource: a title, what it is, and a section for each route, in the order of a story, with
an example. The document adds what the route takes and answers, and `routes.md` who may. `python -m tests.docs.samples`
writes the pages; `test_reference.py` compares, and plays the examples.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.policy import RULES

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
#: Where the pages are written.
DIRECTORY = _ROOT / "docs" / "api" / "reference"
#: The pages in the order in which they are read; the first explains the others.
NAMES = (
    "README",
    *("images", "data", "tags", "members", "import", "locations", "tasks", "stores", "discovery"),
    *("metadefs-namespaces", "metadefs-properties", "metadefs-objects", "metadefs-tags", "metadefs-resource-types"),
)

_SECTION = re.compile(r"^## ([A-Z]+) (/\S*)\n", re.MULTILINE)
_ROUTE = re.compile(r"^\| ([A-Z]+) \| `([^`]+)` \| (.+?) \| \d+ \| (.+) \|$", re.MULTILINE)
_COMPONENT = "#/components/schemas/"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """What a page says of one route."""

    method: str
    path: str
    text: str  #: with the example


@dataclass(frozen=True)
class Page:
    """The source of a page."""

    name: str
    title: str
    text: str  #: before the first route
    sections: Sequence[Section]


def sources() -> list[Page]:
    """What is in `pages/`."""
    return [_source(name, (_HERE / "pages" / f"{name}.md").read_text()) for name in NAMES]


def _source(name: str, text: str) -> Page:
    start, *rest = _SECTION.split(text)
    title, _, intro = start.partition("\n")
    sections = [Section(*rest[place : place + 2], rest[place + 2].strip()) for place in range(0, len(rest), 3)]
    return Page(name, title.removeprefix("# "), intro.strip(), sections)


def pages(document: Json) -> dict[Path, str]:
    """The files of the reference with their text."""
    found = sources()
    table = (_ROOT / "docs" / "api" / "routes.md").read_text()
    rules = {(method, path): (rule, says) for method, path, rule, says in _ROUTE.findall(table)}
    book = _Book(document, found, rules)
    return {DIRECTORY / f"{page.name}.md": book.page(page) if page.sections else book.index(page) for page in found}


class _Book:
    """All pages, which link to each other."""

    def __init__(self, document: Json, sources: Sequence[Page], rules: Mapping[tuple[str, str], tuple[str, str]]):
        self._document = document
        self._sources = sources
        self._rules = rules
        self._components: Json = document["components"]["schemas"]
        self._homes: dict[str, tuple[str, str]] = {}  #: component → page, heading
        self._place_components()

    # --- pages -----------------------------------------------------------------------------------------------

    def index(self, page: Page) -> str:
        """The page that explains the others, lists all routes and says what errors mean."""
        lines = [f"# {page.title}", "", page.text, "", "## Routes", ""]
        for other in self._sources:
            if other.sections:
                lines += [f"### [{other.title}]({other.name}.md)", "", *self._contents(other, f"{other.name}.md"), ""]
        lines += ["## Errors", "", "Each route may answer some of these; its section names them.", ""]
        meanings = [(status, one["description"]) for status, one in self._document["components"]["responses"].items()]
        lines += _table(("Status", "Meaning"), meanings)
        lines += ["", "[Errors](../errors.md) tells more: what leads to which, all limits, and what the bodies are."]
        return "\n".join(lines) + "\n"

    def page(self, page: Page) -> str:
        lines = [f"# {page.title}", "", page.text, "", *self._contents(page, ""), ""]
        for section in page.sections:
            lines += self._section(page, section)
        here = [name for name, (where, heading) in self._homes.items() if where == page.name and "`" in heading]
        if here:
            lines += ["## Fields", ""]
        for name in here:
            lines += [f"### Fields of `{name}`", "", *(self._like(page, name, here) or self._all(page, name)), ""]
        return "\n".join(lines).rstrip() + "\n"

    def _contents(self, page: Page, file: str) -> list[str]:
        rows = []
        for section in page.sections:
            heading = self._heading(section)
            rows.append((f"[{heading}]({file}#{slug(heading)})", f"`{section.method} {section.path}`"))
        return _table(("What", "Route"), rows)

    def _operation(self, section: Section) -> Json:
        found: Json = self._document["paths"][section.path][section.method.lower()]
        return found

    def _heading(self, section: Section) -> str:
        summary: str = self._operation(section)["summary"]
        return f"{summary}: the head alone" if section.method == "HEAD" else summary

    def _section(self, page: Page, section: Section) -> Iterator[str]:
        operation = self._operation(section)
        yield from (f"## {self._heading(section)}", "", f"`{section.method} {section.path}`", "")
        if "description" in operation:
            yield from (_wrapped(operation["description"]), "")
        yield from (_wrapped(f"**Who may:** {self._who(section)}"), "")
        if parameters := operation["parameters"]:
            yield from ("**Parameters**", "", *self._parameters(page, parameters), "")
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            yield from self._body(page, section, media, content)
        yield from ("**Answers**", "", *self._answers(page, operation), "", "**Example**", "", section.text, "")

    def _who(self, section: Section) -> str:
        rule, says = self._rules[section.method, section.path]
        if rule == "open":
            return "anybody, without credentials."
        if rule == "none":
            return "every user."
        found = " and ".join(f"`{name}` ({_who(name)})" for name in re.findall(r"`(\w+)`", rule))
        word = "rules" if " and " in rule else "rule"
        # What the table says of the rules, in the clause that does.
        more = [clause for clause in re.split(r"[;.] ", says.rstrip(".")) if re.search(r"\brules?\b", clause)]
        return f"[{word}](../../operate/policy.md#rules-that-this-release-asks) {'; '.join([found, *more])}."

    def _parameters(self, page: Page, parameters: Iterable[Json]) -> list[str]:
        names: dict[tuple[str, ...], list[str]] = {}  # those of which the same is said share a row
        for one in parameters:
            schema = one["schema"]
            repeated = schema.get("type") == "array"
            kind = self._type(page, schema["items"] if repeated else schema)
            default = ", ".join(schema["default"]) if repeated and "default" in schema else schema.get("default")
            means = one["description"] + (". May be given several times" if repeated else "")
            names.setdefault((one["in"], kind, f"`{default}`" if default else "", means), []).append(f"`{one['name']}`")
        rows = [(", ".join(some), *rest) for rest, some in names.items()]
        if any(row[3] for row in rows):
            return _table(("Name", "In", "Type", "Default", "Meaning"), rows)
        return _table(("Name", "In", "Type", "Meaning"), [(*row[:3], row[4]) for row in rows])

    def _body(self, page: Page, section: Section, media: str, content: Json) -> Iterator[str]:
        if "schema" not in content:
            yield from (f"**Body:** `{media}`, the bytes as they are.", "")
            return
        name = _name(content["schema"])
        told = "" if media == "application/json" else f", as `{media}`"
        if self._homes[name] == (page.name, self._heading(section)):
            yield from (f"**Body**{told}", "", *self._fields(page, self._components[name]), "")
        else:
            yield from (f"**Body**{told}: as in [{self._homes[name][1]}]({self._where(page, name)}).", "")

    def _answers(self, page: Page, operation: Json) -> list[str]:
        rows, errors = [], []
        for status, answer in operation["responses"].items():
            if "$ref" in answer:
                errors.append(status)
                continue
            bodies = [self._media(page, *pair) for pair in answer.get("content", {}).items()]
            headers = [f"`{name}`" for name in answer["headers"] if name != "X-Openstack-Request-ID"]
            when = answer["description"] + (f". With {', '.join(headers)}" if headers else "")
            rows.append((status, when, " or ".join(bodies) or "none"))
        if errors:
            rows.append((", ".join(errors), "[Errors](README.md#errors)", "an [error](../errors.md#bodies)"))
        return _table(("Status", "When", "Body"), rows)

    def _media(self, page: Page, media: str, content: Json) -> str:
        return self._type(page, content["schema"]) if "schema" in content else f"`{media}`"

    # --- schemas ---------------------------------------------------------------------------------------------

    def _place_components(self) -> None:
        """Each component is described once: where it is sent, or on the first page that needs it."""
        for page in self._sources:
            for section in page.sections:
                operation = self._operation(section)
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    if "schema" in content:
                        self._homes.setdefault(_name(content["schema"]), (page.name, self._heading(section)))
        for deep in (False, True):
            for page in self._sources:
                for section in page.sections:
                    for name in self._named(self._operation(section)["responses"], deep):
                        self._homes.setdefault(name, (page.name, f"Fields of `{name}`"))

    def _named(self, value: Any, deep: bool) -> Iterator[str]:
        """The components in a value, and in those as well; without those that have no fields."""
        if isinstance(value, dict):
            if "$ref" in value and value["$ref"].startswith(_COMPONENT):
                name = _name(value)
                if self._has_fields(name):
                    yield name
                    if deep:
                        yield from self._named(self._components[name], deep)
            for one in value.values():
                yield from self._named(one, deep)
        elif isinstance(value, list):
            for one in value:
                yield from self._named(one, deep)

    def _has_fields(self, name: str) -> bool:
        return self._components[name]["type"] == "array" or "properties" in self._components[name]

    def _where(self, page: Page, name: str) -> str:
        file, heading = self._homes[name]
        return ("" if file == page.name else f"{file}.md") + f"#{slug(heading)}"

    def _fields(self, page: Page, schema: Json, *, required: bool = True) -> list[str]:
        if schema["type"] == "array":
            return ["An array; each entry has", "", *self._fields(page, schema["items"], required=required)]
        return _table(("Field", "Type", "Meaning"), self._rows(page, schema, "", required))

    def _all(self, page: Page, name: str) -> list[str]:
        return self._fields(page, self._components[name], required=False)

    def _like(self, page: Page, name: str, others: Iterable[str]) -> list[str] | None:
        """In a sentence, the fields of what has many and no others than something else on the page."""
        own = self._components[name].get("properties", {})
        for other in others:
            more = self._components[other].get("properties", {})
            if 3 < len(own) < len(more) and own.items() <= more.items():
                missing = ", ".join(f"`{field}`" for field in more if field not in own)
                return [f"Those of [`{other}`]({self._where(page, other)}) without {missing}."]
        return None

    def _rows(self, page: Page, schema: Json, prefix: str, required: bool) -> Iterator[tuple[str, str, str]]:
        for name, one in schema["properties"].items():
            field = f"{prefix}.{name}" if prefix else name
            kind = self._type(page, one) + (", required" if required and name in schema.get("required", ()) else "")
            yield f"`{field}`", kind, one.get("description", "")
            more = one.get("additionalProperties")
            for inner, step in ((one, ""), (one.get("items"), "[]"), (more, ".*")):
                if isinstance(inner, dict) and "properties" in inner and not self._same(inner):
                    yield from self._rows(page, inner, field + step, required)
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            yield "any other", self._type(page, more), more.get("description", "A property of its own")

    def _same(self, schema: Json) -> str | None:
        """The component that has the fields of a schema, where these are too many to tell them again."""
        if len(schema["properties"]) > 3:
            for name in self._homes:
                if self._components[name].get("properties", {}).keys() == schema["properties"].keys():
                    return name
        return None

    def _type(self, page: Page, schema: Json) -> str:
        """In words what a value may be."""
        if name := _name(schema) if "$ref" in schema else self._same(schema) if "properties" in schema else None:
            if self._has_fields(name):
                return f"[`{name}`]({self._where(page, name)})"
            return _lower(self._components[name]["description"])
        if "anyOf" in schema:
            return " or ".join(self._type(page, one) for one in schema["anyOf"])
        if "const" in schema:
            return f"`{schema['const']}`"
        if "enum" in schema:
            words = [f"`{value}`" for value in schema["enum"] if value is not None]
            null = "null or " if None in schema["enum"] else ""
            return null + ("one of " if len(words) > 1 else "") + ", ".join(words)
        kinds = schema.get("type", "any")
        words = [_KINDS.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        found = " or ".join(sorted(words, key=lambda word: word == "null"))
        if kinds == "array":
            entry = self._type(page, schema["items"])
            found = f"array of {'objects' if entry == 'object' else entry}"
        elif isinstance(more := schema.get("additionalProperties"), dict) and "properties" not in schema:
            value = self._type(page, more)
            found = f"object of {'objects' if value == 'object' else value}"
        elif schema.get("format") in _FORMATS:
            found = _FORMATS[schema["format"]]
        elif "0-9a-fA-F]){12}" in schema.get("pattern", ""):
            found = "UUID"
        return ", ".join([found, *_limits(schema)])


_KINDS = {"string": "text"}
_FORMATS = {"uuid": "UUID", "date-time": "time"}


def _limits(schema: Json) -> Iterator[str]:
    for unit, least, most in (
        ("", "minimum", "maximum"),
        (" characters", "minLength", "maxLength"),
        (" entries", "minItems", "maxItems"),
    ):
        if least in schema and most in schema:
            yield f"{schema[least]} to {schema[most]:,}{unit}"
        elif most in schema:
            yield f"at most {schema[most]:,}{unit}"
        elif schema.get(least, 0) or (unit == "" and least in schema):
            yield f"at least {schema[least]}{unit}"
    if schema.get("uniqueItems"):
        yield "all different"


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def _who(rule: str) -> str:
    """Whom a rule lets pass by default, besides administrators, in words."""
    check = RULES[rule]
    own, shared = "%(project_id)s" in check, "%(member_id)s" in check
    found = ["services"] if "service_api" in check else []
    if role := re.search(r"role:(member|reader)", check):
        if "%(visibility)s" in check:
            which = "who may see it"
        elif own:
            which = "of its project" + (" or of one that it is shared with" if shared else "")
        else:
            which = "of the project that it is shared with"
        found.append(f"{role[1]}s {which}")
    return " or ".join(found) or "administrators"


def _name(reference: Json) -> str:
    return str(reference["$ref"]).removeprefix(_COMPONENT)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (head, *cells)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
