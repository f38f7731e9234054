"""How stores are is told from memory: soon, whatever a store does; one that failed is asked after the others."""

import threading
import time

import pytest

from calotype.stores.base import Health
from calotype.stores.memory import MemoryStore
from calotype.stores.probing import ASIDE, SILENT, Breaker, Probes
from tests.stores.test_contract import defaults
from tests.support import until


class Hanging(MemoryStore):
    """One that answers when it is let."""

    def __init__(self, name: str) -> None:
        super().__init__(name, defaults("memory"))
        self.answers = threading.Event()
        self.asked = 0

    def check(self) -> Health:
        self.asked += 1
        self.answers.wait(30)
        return super().check()


@pytest.mark.alone
def test_a_store_that_hangs_is_told_soon_asked_once_and_well_again_when_it_answers() -> None:
    hanging, well = Hanging("hanging"), MemoryStore("well", defaults("memory"))
    probes = Probes([hanging, well])
    for most in (0.3, 0.02, 0.02):
        begun = time.monotonic()
        found = probes.health()
        assert time.monotonic() - begun < most
        assert found["hanging"] is SILENT
        assert found["well"].ok
    assert hanging.asked == 1
    hanging.answers.set()
    until(lambda: probes.health()["hanging"].ok)


def test_a_driver_that_raises_is_not_well() -> None:
    class Raises(MemoryStore):
        def check(self) -> Health:
            raise RuntimeError("a secret")

    found = Probes([Raises("one", defaults("memory"))]).health()["one"]
    assert (found.ok, found.error) == (False, "The store fails.")


def test_a_store_that_failed_is_aside_for_a_while_or_until_it_works() -> None:
    now = [0.0]
    breaker, store = Breaker(lambda: now[0]), MemoryStore("one", defaults("memory"))
    assert not breaker.is_aside(store)
    breaker.failed(store)
    assert breaker.is_aside(store)
    breaker.worked(store)
    assert not breaker.is_aside(store)
    breaker.failed(store)
    now[0] = ASIDE
    assert not breaker.is_aside(store)
