"""A long random walk through the API, compared with the reference model call by call. `make model` walks further."""

from pathlib import Path

import pytest

from tests.model.machine import walk


@pytest.mark.slow
def test_the_service_answers_as_the_reference_model(database_url: str, database_kind: str, tmp_path: Path) -> None:
    walk(tmp_path, database_url, steps=1200 if database_kind == "sqlite" else 300, seed=20261122)
