"""Fixtures of the tests of records."""

from collections.abc import Iterator

import pytest

from calotype.db.engine import Database
from tests import databases


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A database with this release's tables and nothing in them."""
    database = Database(databases.synced(database_url))
    yield database
    database.close()


@pytest.fixture(scope="module")
def module_db(database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The same, one for all tests of a file."""
    database = Database(databases.synced(databases.reserved(database_kind, tmp_path_factory.mktemp("db"))))
    yield database
    database.close()
