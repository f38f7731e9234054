"""Fixtures of the tests of records."""

from collections.abc import Iterator

import pytest

from calotype.db import schema
from calotype.db.engine import Database


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A database with this release's tables and nothing in them."""
    database = Database(database_url)
    schema.sync(database)
    yield database
    database.close()
