"""`transfers.py` on its own: slots for uploads."""

import threading

import pytest

from calotype import errors
from calotype.transfers import Transfers
from tests.support import until


def test_an_upload_waits_for_a_slot_and_gets_the_one_that_comes_free() -> None:
    transfers, got = Transfers(1 << 20, 1), threading.Event()

    def upload() -> None:
        with transfers.slot():
            got.set()

    with transfers.slot():
        thread = threading.Thread(target=upload)
        thread.start()
        until(lambda: transfers._slots.waiting == 1)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()
    assert transfers._slots.used == 0


def test_an_upload_that_waited_too_long_is_refused() -> None:
    transfers = Transfers(1 << 20, 1, patience=0)
    with transfers.slot():
        with pytest.raises(errors.Busy), transfers.slot():
            raise AssertionError
        assert transfers._slots.waiting == 0
    with transfers.slot():
        pass


def test_of_those_who_wait_there_are_not_many() -> None:
    transfers, ended = Transfers(1 << 20, 4), threading.Event()

    def upload() -> None:
        with transfers.slot():
            ended.wait(10)

    threads = [threading.Thread(target=upload) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: transfers._slots.waiting == 2)
    with pytest.raises(errors.Busy), transfers.slot():
        raise AssertionError
    ended.set()
    for thread in threads:
        thread.join(10)
