"""Fixtures: database servers that a test may kill, stop and pause. Both kinds, unless `--database` names one."""

from collections.abc import Iterator

import pytest

from tests.databases import KINDS, Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--restarts", type=int, default=10, help="how often a database is restarted under load")


@pytest.fixture
def restarts(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--restarts"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--database")
        kinds = [kind for kind in KINDS if kind != "sqlite" and chosen in (kind, "sqlite")]
        metafunc.parametrize("server", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One for the whole run: whoever stops it starts it again."""
    made = Server(request.param, durable=True).start()
    yield made
    made.remove()
