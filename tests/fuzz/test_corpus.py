"""What fuzzing begins with and what it found, fed once more; `python -m tests.fuzz` goes on from here."""

import pytest

from tests.fuzz.corpus import CORPUS
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_was_found_stays_mended(name: str) -> None:
    for data in CORPUS[name]:
        TARGETS[name](data)
