"""Property protections: which custom properties a caller may create, read, update and delete (contract: images.md §7).

A file of the operator decides by the name of the property. Its sections are regular expressions; the first one that
matches somewhere in the name applies. A property that no section matches is denied to everybody. Without a file
everything is permitted.
"""

import configparser
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from oslo_config import cfg

from calotype import errors, insides
from calotype.context import Context
from calotype.model import MAX_NAME, RESERVED_PREFIX, Image

LOG = logging.getLogger(__name__)

OPERATIONS: Final = ("create", "read", "update", "delete")

#: How many steps a search in one name may take: some tenths of a second. Users choose the names.
_MAX_STEPS: Final = 20_000_000
_MAX_REMEMBERED: Final = 10_000  #: names with their section


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the file: for each operation the roles, or the policy rules, that permit it."""

    pattern: re.Pattern[str]
    permitted: dict[str, frozenset[str]]


class Protections:
    """The protections in force. Threads share them.

    `rule` says whether a caller passes a policy rule; None if there is no such rule. It may raise `Busy`.
    """

    def __init__(self, conf: cfg.ConfigOpts, rule: Callable[[Context, str], bool | None]) -> None:
        self._conf = conf
        self._rule = rule
        self._sections = self._load()
        self._section_by_name: dict[str, Section | None] = {}

    @property
    def rules(self) -> frozenset[str]:
        """The policy rules that the file names."""
        if self._conf.property_protection_rule_format != "policies":
            return frozenset()
        named = (words for section in self._sections or () for words in section.permitted.values())
        return frozenset().union(*named) - {"@", "!"}

    def allows(self, ctx: Context, operation: str, name: str) -> bool:
        """Whether the caller may do this to properties of this name."""
        if self._sections is None or name.startswith(RESERVED_PREFIX):
            return True
        section = self._section(name)
        if section is None:
            return False
        permitted = section.permitted[operation]
        if "@" in permitted:
            return True
        if self._conf.property_protection_rule_format == "roles":
            return bool(permitted & (ctx.roles | ctx.service_roles))
        return any(self._rule(ctx, name) for name in permitted if name != "!")

    def check(self, ctx: Context, operation: str, name: str) -> None:
        """Raise `Forbidden` unless the caller may do this to a property of this name."""
        if not self.allows(ctx, operation, name):
            raise errors.Forbidden(f"Property '{name}' is protected.")

    def seen_by(self, ctx: Context, image: Image) -> Image:
        """The image without the properties that the caller may not read; the same object if there are none."""
        if self._sections is None:
            return image
        seen = {name: value for name, value in image.properties.items() if self.allows(ctx, "read", name)}
        return image if len(seen) == len(image.properties) else replace(image, properties=seen)

    def reload(self) -> None:
        """Read the file again. If it is broken, the old protections stay in force."""
        if self._sections is None:
            return
        try:
            self._sections = self._load()
        except errors.ConfigError as exc:
            LOG.error("the property protections in force stay: %s", errors.reason(exc))
        self._section_by_name = {}

    def _section(self, name: str) -> Section | None:
        """The section that applies to a name; None for a name that is too long for a property."""
        if len(name) > MAX_NAME:
            return None
        sections = self._section_by_name
        if name not in sections:
            if len(sections) >= _MAX_REMEMBERED:
                sections.clear()
            sections[name] = next((one for one in self._sections or () if one.pattern.search(name)), None)
        return sections[name]

    def _load(self) -> tuple[Section, ...] | None:
        name = self._conf.property_protection_file
        if not name:
            return None
        path = self._conf.find_file(name)
        if path is None:
            raise errors.ConfigError(f"property_protection_file {name} does not exist.")
        parser = configparser.RawConfigParser()
        try:
            with open(path, encoding="utf-8") as file:
                parser.read_file(file)
            # Sections for the service's own names never had an effect.
            names = [name for name in parser.sections() if not name.startswith(RESERVED_PREFIX)]
            return tuple(self._read(parser[name]) for name in names)
        except (OSError, ValueError, configparser.Error, errors.Invalid) as exc:
            raise errors.ConfigError(f"property_protection_file {path} cannot be used: {exc}") from exc

    def _read(self, section: configparser.SectionProxy) -> Section:
        pattern = _compiled(section.name)
        by_rules = self._conf.property_protection_rule_format == "policies"
        permitted = {}
        for operation in OPERATIONS:
            if operation not in section:
                raise errors.Invalid(f"section [{section.name}] says nothing of {operation}.")
            words = [word.strip() for word in section[operation].split(",") if word.strip()]
            if {"@", "!"} <= set(words):
                raise errors.Invalid(f"[{section.name}] {operation}: @ and ! exclude each other.")
            if by_rules and len(words) > 1:
                raise errors.Invalid(f"[{section.name}] {operation}: with policies there is one rule, not a list.")
            if by_rules and (unknown := self._without_rule(words)):
                raise errors.Invalid(f"[{section.name}] {operation}: no policy file has a rule {unknown}.")
            permitted[operation] = frozenset(words if by_rules else (word.lower() for word in words))
        return Section(pattern, permitted)

    def _without_rule(self, words: Iterable[str]) -> str | None:
        return next((word for word in words if word not in "@!" and not self._is_rule(word)), None)

    def _is_rule(self, name: str) -> bool:
        try:
            return self._rule(Context(), name) is not None
        except errors.Busy:
            return True  # it exists, and asks a server that does not answer


# --- expressions -----------------------------------------------------------------------------------------


def _compiled(expression: str) -> re.Pattern[str]:
    """Compile an expression. Raises `Invalid` if it is malformed, or could take long for a name that a user chooses."""
    try:
        pattern = re.compile(expression)
        parsed = insides.parse_expression(expression)
    except (re.error, RecursionError, OverflowError) as exc:
        raise errors.Invalid(f"section [{expression}] is no regular expression: {exc}") from exc
    anchored = bool(parsed) and str(parsed[0][0]) == "AT" and str(parsed[0][1]).startswith("AT_BEGINNING")
    if _match_count(parsed) * (1 if anchored else MAX_NAME) > _MAX_STEPS:
        raise errors.Invalid(
            f"section [{expression}] could take very long to search for in some names: begin it with ^, "
            "and have no repeat within a repeat and fewer repeats one after the other."
        )
    return pattern


def _match_count(parsed: Iterable[tuple[Any, Any]]) -> float:
    """In how many ways, at most, an expression can match from one position on: that many times a search backtracks."""
    return math.prod(_match_count_of(str(kind), value) for kind, value in parsed)


def _match_count_of(kind: str, value: Any) -> float:
    match kind:
        case "BRANCH":
            return sum(max(1, _match_count(one)) for one in value[1])
        case "SUBPATTERN":
            return _match_count(value[-1])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most = int(value[0]), min(int(value[1]), MAX_NAME)
            inner = _match_count(value[2])
            return float(max(1, most - least + 1) * min(inner, 1e6) ** min(most, 50))  # far too many, without overflow
        case "ASSERT" | "ASSERT_NOT":
            return _match_count(value[1])
        case "ATOMIC_GROUP":
            return _match_count(value)
        case "GROUPREF_EXISTS":
            return max(_match_count(value[1]), _match_count(value[2] or []))
        case _:
            return 1
