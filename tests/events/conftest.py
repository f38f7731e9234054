"""A service's parts in this process, told to leave events in its outbox; nothing sends them but what a test starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype.app import App
from tests import inprocess

CONF = inprocess.CONF + "[oslo_messaging_notifications]\ndriver = log\n"


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with inprocess.parts(tmp_path, database_url, CONF) as made:
        yield made
