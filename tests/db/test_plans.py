"""The main lists are answered from their indexes, on every database, as docs/contribute/queries.md says."""

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.db.engine import Database
from tests.db import plans


@pytest.fixture(scope="module")
def full(module_db: Database) -> Database:
    plans.fill(module_db)
    return module_db


def test_lists_are_answered_as_documented(full: Database, database_kind: str) -> None:
    assert plans.lost(plans.plans(full), plans.documented(database_kind)) == {}


def test_a_lost_index_is_seen(full: Database, database_kind: str) -> None:
    of = " ON images" if database_kind == "mariadb" else ""
    with full.write_once() as tx:
        tx.execute(sa.text(f"DROP INDEX calotype_owner_created_at{of}"))
    try:
        found = plans.plans(full)
    except errors.Busy:
        return  # MariaDB is told the index by its name
    assert plans.lost(found, plans.documented(database_kind))
