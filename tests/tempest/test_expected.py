"""What `make tempest` relies on: whatever is not as `expected.py` says is found."""

from tests.tempest.__main__ import judge
from tests.tempest.expected import FAIL, SKIP

_AS_EXPECTED = dict.fromkeys(FAIL, ("failed", "")) | dict.fromkeys(SKIP, ("skipped", "")) | {"other": ("passed", "")}


def test_each_kind_of_surprise_is_told() -> None:
    assert judge(_AS_EXPECTED, whole=True) == []
    failing, left_out = next(iter(FAIL)), next(iter(SKIP))
    for name, outcome in (("other", "failed"), ("other", "skipped"), (failing, "passed"), (left_out, "passed")):
        assert len(judge(_AS_EXPECTED | {name: (outcome, "")}, whole=True)) == 1
    without = {name: outcome for name, outcome in _AS_EXPECTED.items() if name != failing}
    assert judge(without, whole=False) == []
    assert len(judge(without, whole=True)) == 1


def test_each_expectation_has_its_reason_and_no_two_contradict() -> None:
    assert all({**FAIL, **SKIP}.values())
    assert not any(part in other for part in FAIL for other in SKIP)
