"""Fixtures: database servers that a test may kill, stop and pause, of the kind that `--database` names."""

from collections.abc import Iterator

import pytest

from tests.databases import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--restarts", type=int, default=6, help="how often a database is restarted under load")


@pytest.fixture
def restarts(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--restarts"))


@pytest.fixture(scope="session")
def server(database_kind: str) -> Iterator[Server]:
    """One for the whole run: whoever stops it starts it again."""
    made = Server(database_kind, durable=True).start()
    yield made
    made.remove()
