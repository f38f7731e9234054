"""Fixtures: one database for all tests of jobs, emptied of what they are about before each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype.app import App
from calotype.db import tables
from calotype.images import places
from tests import databases
from tests.inprocess import parts


@pytest.fixture(scope="session")
def jobs_url(database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return databases.reserved(database_kind, tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def app(tmp_path: Path, jobs_url: str) -> Iterator[App]:
    with parts(tmp_path, jobs_url) as made:
        with made.db.write_once() as tx:
            tx.execute(sa.delete(tables.jobs))
            tx.execute(sa.delete(tables.processes))
            tx.execute(sa.delete(tables.stores))
            tx.execute(sa.update(tables.locks).values(owner=None))
        places.recognise(made.service)
        yield made
