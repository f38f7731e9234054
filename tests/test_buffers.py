"""`buffers.py` on its own."""

import threading

import pytest

from calotype.buffers import BUFFER, LITTLE, SPARE, Budget, Buffers
from tests.support import until


def too_long() -> None:
    raise TimeoutError("nobody should have to wait here")


def test_whoever_comes_first_gets_his_part_first_also_where_less_would_fit() -> None:
    budget, order = Budget(10), []
    budget.take(8, print)

    def want(amount: int) -> None:
        budget.take(amount, lambda: None)
        order.append(amount)

    threads = []
    for amount in (9, 2, 1):
        threads.append(threading.Thread(target=want, args=(amount,), daemon=True))
        threads[-1].start()
        until(lambda: budget.waiting == len(threads))
    assert order == []  # 2 would fit
    budget.give(8)
    threads[0].join(10)
    assert order == [9]
    assert budget.waiting == 2  # 1 fits beside 9; 2 is before it
    budget.give(9)
    for thread in threads:
        thread.join(10)
    assert sorted(order) == [1, 2, 9]
    assert budget.used == 3


def test_who_gives_up_waiting_lets_the_next_one_pass() -> None:
    budget, done = Budget(10), threading.Event()
    budget.take(5, print)

    def impatient() -> None:
        if done.is_set():
            raise TimeoutError

    def give_up() -> None:
        with pytest.raises(TimeoutError):
            budget.take(8, impatient)

    first = threading.Thread(target=give_up, daemon=True)
    first.start()
    until(lambda: budget.waiting == 1)
    second = threading.Thread(target=budget.take, args=(5, lambda: None), daemon=True)
    second.start()
    until(lambda: budget.waiting == 2)
    done.set()
    first.join(10)
    second.join(10)
    assert (budget.used, budget.waiting) == (10, 0)


def test_a_piece_is_given_back_when_the_last_one_is_released() -> None:
    buffers = Buffers(4 * BUFFER)
    piece = buffers.take(BUFFER)
    piece.view[:5] = b"bytes"
    piece.cut(5)
    other = piece.hold()
    piece.release()
    piece.release()
    with pytest.raises(ValueError, match="released"):
        bytes(piece.view)
    with pytest.raises(ValueError, match="release"):
        piece.hold()
    assert bytes(other.view) == b"bytes"
    assert buffers.budget.used == BUFFER
    other.release()
    assert (buffers.budget.used, buffers.kept) == (0, BUFFER)
    assert buffers.take(BUFFER).view[:5] == b"bytes"  # the same memory


def test_memory_that_somebody_still_sees_is_not_lent_again(caplog: pytest.LogCaptureFixture) -> None:
    buffers = Buffers(4 * BUFFER)
    piece = buffers.take(BUFFER)
    piece.view[:5] = b"bytes"
    kept = piece.view[:5]
    piece.release()
    assert (buffers.budget.used, buffers.kept) == (0, 0)
    assert "still looked at" in caplog.text
    buffers.take(BUFFER).view[:5] = b"other"
    assert bytes(kept) == b"bytes"


def test_little_is_lent_when_half_of_the_budget_is() -> None:
    buffers = Buffers(4 * BUFFER)
    pieces = [buffers.take(BUFFER, too_long) for _ in range(10)]
    assert [len(piece.view) for piece in pieces] == [BUFFER] * 2 + [LITTLE] * 8
    for piece in pieces:
        piece.release()
    assert len(buffers.take(BUFFER).view) == BUFFER


def test_what_is_kept_is_limited_and_part_of_the_budget() -> None:
    buffers = Buffers(4 * BUFFER)
    for piece in [buffers.take(BUFFER) for _ in range(2)]:
        piece.release()
    assert buffers.kept == 2 * BUFFER
    pieces = [buffers.take(LITTLE) for _ in range(4 * BUFFER // LITTLE)]
    assert (buffers.budget.used, buffers.kept) == (4 * BUFFER, 0)
    for piece in pieces:
        piece.release()
    large = Buffers(100 * BUFFER)
    for piece in [large.take(BUFFER) for _ in range(30)]:
        piece.release()
    assert large.kept == SPARE * BUFFER
