"""Fixtures: one service for the whole run, clients for its users."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype.db import schema
from calotype.db.engine import Database
from tests import databases
from tests.support import Client, Service, running

#: Two file stores and one in memory, so that every test of the API runs in multi-store mode.
CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file, brief:memory
image_property_quota = 20
image_tag_quota = 20
image_member_quota = 5
image_size_cap = 67108864
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
store_description = quick and dear
weight = 200
[cheap]
filesystem_store_datadir = {state}/cheap
weight = 100
[brief]
memory_store_size = 64
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=databases.KINDS,
        default="sqlite",
        help="what records are kept in where a test has a choice",
    )


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--database"))


@pytest.fixture
def database_url(database_kind: str, tmp_path: Path) -> str:
    """An empty database of the kind that this run is about."""
    return databases.fresh(database_kind, tmp_path)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("service")
    url = databases.fresh(database_kind, state)
    database = Database(url)
    schema.sync(database)
    database.close()
    conf = CONF.format(state=state) + f"[database]\nconnection = {url}\n"
    with running(state, conf, database=url) as started:
        yield started


@pytest.fixture
def alice(service: Service) -> Client:
    """A member of project red."""
    return service.client("alice")


@pytest.fixture
def bob(service: Service) -> Client:
    """A member of project blue."""
    return service.client("bob")


@pytest.fixture
def admin(service: Service) -> Client:
    return service.client("admin")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that nobody else uses."""
    return tmp_path / "state"
