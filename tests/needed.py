"""`python -m tests.needed KINDS [pytest's arguments]`: what the tests that these arguments choose need, one name a line.

KINDS are names of runs (`tests/each-database`). Names are those of programs (`tests/needs`), `keystone` and `swift`, for those
that `make` installs. A test is marked with what it needs, `@pytest.mark.needs("strace")`; what its fixtures need is known
here. `tool` in `tests/support.py` fails a test that uses what it is not marked with.
"""

import contextlib
import io
import sys

import pytest

#: Fixtures that are servers.
FIXTURES = {
    "keystone": ("keystone",),
    "memcached": ("memcached",),
    "short": ("keystone",),
}
DATABASES = {"sqlite": (), "mariadb": ("mariadbd", "mariadb-install-db"), "postgresql": ("postgres",)}


def differs(item: pytest.Item) -> bool:
    """Whether it runs on each kind of database."""
    return "database_kind" in getattr(item, "fixturenames", ()) and item.get_closest_marker("any_database") is None


def needs(item: pytest.Item, kind: str) -> set[str]:
    """What a test needs, with this kind of database."""
    fixtures = getattr(item, "fixturenames", ())
    found = {name for mark in item.iter_markers("needs") for name in mark.args}
    found.update(name for fixture, names in FIXTURES.items() if fixture in fixtures for name in names)
    if "database_kind" in fixtures:
        found.update(DATABASES[kind])
    return found


class _Collected:
    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def main() -> int:
    kinds = {kind if kind in DATABASES else "sqlite" for kind in sys.argv[1].split()}
    collected = _Collected()
    with contextlib.redirect_stdout(io.StringIO()):  # what is wrong is said by the run itself
        pytest.main(["--collect-only", "-qq", *sys.argv[2:]], plugins=[collected])
    found: set[str] = set()
    for item in collected.items:
        for kind in kinds:
            if kind == "sqlite" or differs(item):
                found |= needs(item, kind)
    print("\n".join(sorted(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
