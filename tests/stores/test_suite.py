"""The suite itself: a driver without faults passes, and each fault that is planted is found by the check for it."""

import pytest

from calotype import errors
from tests.stores import suite
from tests.stores.suite import CHECKS
from tests.stores.toy import Failed, Fault, Toys

#: The check that must find a fault, whatever else does.
FOUND_BY = {
    Fault.NO_NOTE: suite.clean_removes_a_finished_object_that_was_never_reported,
    Fault.NO_FENCE: suite.a_writer_that_was_cleaned_away_cannot_finish,
    Fault.CLEANS_ANOTHERS: suite.clean_leaves_what_another_attempt_stores,
    Fault.OWNS_TOO_MUCH: suite.a_store_owns_its_own_names_only,
    Fault.RANGE_OFF_BY_ONE: suite.any_range_can_be_read,
    Fault.DEBRIS: suite.a_broken_source_leaves_nothing,
    Fault.FOREIGN_EXCEPTIONS: suite.a_backend_that_fails_is_told_in_our_words,
    Fault.DELETE_LEAVES_BYTES: suite.delete_removes_and_then_misses,
    Fault.SIZE_IGNORED: suite.what_is_announced_too_large_is_refused_before_a_byte_is_put,
    Fault.ROOM_IGNORED: suite.a_store_without_room_says_so_and_keeps_nothing,
    Fault.SHORT_ENDS_CLEANLY: suite.a_short_object_never_ends_well,
    Fault.NOT_DURABLE: suite.what_was_committed_outlasts_lost_power,
    Fault.READ_TIMEOUT_IGNORED: suite.a_read_that_hangs_ends_by_its_time_out,
    Fault.CANCEL_IGNORED: suite.a_read_that_hangs_is_cancelled_at_once,
    Fault.ACTS_AS_THE_CALLER: suite.who_asks_makes_no_difference,
    Fault.NOTE_AFTER_FINAL: suite.nothing_is_final_before_the_note,
}


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_a_toy_without_faults_passes(check: suite.Check) -> None:
    check(Toys())


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, errors.CalotypeError, Failed)):
        FOUND_BY[fault](Toys(None, fault))
