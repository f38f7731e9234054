"""Swift: the contract against a real one, and what only this driver does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stores.suite import CHECKS, Kit
from tests.stores.swift_kit import Swifts

pytestmark = pytest.mark.needs("swift")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Swifts]:
    made = Swifts(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_driver_keeps_the_contract(kit: Swifts, check: Callable[[Kit], None]) -> None:
    check(kit)
