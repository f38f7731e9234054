"""Which differences are declared. Each belongs to a line of `docs/api/differences.md`, named by its bold words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.differential.answers import Difference

DOCUMENT = Path(__file__).parents[2] / "docs" / "api" / "differences.md"


@dataclass(frozen=True, slots=True)
class Declared:
    """A line, and what shows it: regular expressions. `request` is searched for, the others match as a whole."""

    line: str
    request: str
    fact: str
    glance: str = ".*"
    calotype: str = ".*"

    def covers(self, found: Difference) -> bool:
        return bool(
            re.search(self.request, found.request)
            and re.fullmatch(self.fact, found.fact)
            and re.fullmatch(self.glance, found.glance)
            and re.fullmatch(self.calotype, found.calotype)
        )


DECLARED: tuple[Declared, ...] = ()


def lines() -> list[str]:
    """The names of all lines in the document."""
    return re.findall(r"^- \*\*(.+?)\*\*", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
