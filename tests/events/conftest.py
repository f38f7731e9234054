"""A service's parts in this process, told to leave events in its outbox; nothing sends them but what a test starts."""

from collections.abc import Iterator

import pytest

from calotype.app import App
from calotype.db import outbox
from tests import databases, inprocess

CONF = inprocess.CONF + "[oslo_messaging_notifications]\ndriver = log\n"


@pytest.fixture(scope="package")
def only_app(database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    path = tmp_path_factory.mktemp("events")
    with inprocess.parts(path, databases.reserved(database_kind, path), CONF) as made:
        yield made


@pytest.fixture
def app(only_app: App) -> App:
    """One for all tests, on the chosen database, with an empty outbox."""
    only_app.db.write(lambda tx: outbox.remove(tx, outbox.next_events(tx, 1000)))
    return only_app
