"""Questions to other servers, which nobody asks while he has a connection of the database.

A transaction that waits for another server keeps its rows from everybody, and on SQLite the whole database. So a
question that comes up in one is put off: `ask` raises `Later`, the transaction is undone, the question is asked, and
the transaction is run again and finds the answer. An answer is for exactly what was asked: if the record changed
meanwhile, the question is another one, and is asked anew. `db/engine.py` does all this for each of its transactions.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from calotype import errors

#: How often one thing is asked anew because what it is asked about changed meanwhile.
_MOST: Final = 5


class Later(Exception):
    """A question came up in a transaction. `what` is its short name, `key` tells it from all others."""

    def __init__(self, what: str, key: Hashable, question: Callable[[], bool]) -> None:
        super().__init__(what)
        self.what = what
        self.key = key
        self.question = question


class _Here(threading.local):
    """This thread: how many connections it has, and the answers for the transaction that it runs."""

    connections = 0
    answers: "Answers | None" = None


_here = _Here()


def connect() -> None:
    """This thread has one more connection of the database, and asks no other server."""
    _here.connections += 1


def disconnect() -> None:
    """It gave one back."""
    _here.connections -= 1


def ask(what: str, key: Hashable, question: Callable[[], bool]) -> bool:
    """The answer to a question. Raises `Later` when it must not be asked now, and what `question` raises."""
    if not _here.connections:
        return question()
    if _here.answers is not None and (answer := _here.answers.known.get(key)) is not None:
        return answer
    raise Later(what, key, question)


class Answers:
    """For the length of a block, the answers that a transaction needs; the block runs it until it has them all."""

    def __init__(self) -> None:
        self.known: dict[Hashable, bool] = {}
        self._asked: Counter[str] | None = None
        self._outer: Answers | None = None

    def __enter__(self) -> "Answers":
        self._outer, _here.answers = _here.answers, self
        return self

    def __exit__(self, *_: object) -> None:
        _here.answers = self._outer

    def find(self, later: Later) -> None:
        """Ask what was put off. Raises what the question raises, and `Busy` when there is no end to it."""
        if _here.connections:  # of a transaction around this one, which has to end first
            raise later
        self._asked = self._asked or Counter()
        self._asked[later.what] += 1
        if self._asked[later.what] > _MOST:
            raise errors.Busy(f"What the rule {later.what} is asked about changes all the time; try again later.")
        self.known[later.key] = later.question()
