"""kill -9, and sleep beyond a lease, at any moment of an import."""

import random
from pathlib import Path

import pytest

from tests.crash.imports import ImportCrashes


@pytest.mark.slow
def test_every_import_that_was_accepted_ends_as_it_should_whatever_is_killed_meanwhile(
    state: Path, own_database: str
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    crashes = ImportCrashes(state, seed, database=own_database)
    try:
        crashes.run(20)
    except AssertionError as exc:
        raise AssertionError(f"seed {seed}; {crashes.line()}\n{exc}") from exc
    print(f"seed {seed}; {crashes.line()}")
    assert crashes.ends["active"] > 0
