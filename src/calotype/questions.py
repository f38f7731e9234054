"""Questions to other servers that come up while a transaction is open, and that must wait until it is closed.

A policy rule may ask another server. A transaction that waited for the answer would keep its rows locked meanwhile, on
SQLite the whole database. So `ask` raises `Deferred` in a transaction. `db/engine.py` then rolls the transaction back,
asks the question without a connection, and runs the transaction again; this time `ask` finds the answer. The answer
belongs to exactly what was asked: if the record has changed meanwhile, that is another question, and is deferred again.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from calotype import errors

#: How often one rule is asked again for one transaction, because the record changed meanwhile.
_MAX_REPEATS: Final = 5


class Deferred(Exception):
    """A question came up in a transaction. `name` is for messages; `key` tells it from all other questions."""

    def __init__(self, name: str, key: Hashable, question: Callable[[], bool]) -> None:
        super().__init__(name)
        self.name = name
        self.key = key
        self.question = question


class _ThreadState(threading.local):
    """Of this thread: how many connections it has, and the answers for the transaction that it runs."""

    connections = 0
    answers: "Answers | None" = None


_thread = _ThreadState()


def connection_taken() -> None:
    """This thread took a connection of the database: until it returns it, it asks no other server."""
    _thread.connections += 1


def connection_returned() -> None:
    """This thread returned a connection of the database."""
    _thread.connections -= 1


def ask(name: str, key: Hashable, question: Callable[[], bool]) -> bool:
    """The answer to a question. Raises `Deferred` if this thread has a connection, and what `question` raises."""
    if not _thread.connections:
        return question()
    if _thread.answers is not None and (answer := _thread.answers.by_key.get(key)) is not None:
        return answer
    raise Deferred(name, key, question)


class Answers:
    """The answers that a transaction needs. The block that it guards runs the transaction until it has them all."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, bool] = {}
        self._asked: Counter[str] | None = None
        self._outer: Answers | None = None

    def __enter__(self) -> "Answers":
        self._outer, _thread.answers = _thread.answers, self
        return self

    def __exit__(self, *_: object) -> None:
        _thread.answers = self._outer

    def resolve(self, deferred: Deferred) -> None:
        """Ask a deferred question. Raises what the question raises, and `Busy` if the record keeps changing."""
        if _thread.connections:  # of a transaction around this one, which has to be closed first
            raise deferred
        self._asked = self._asked or Counter()
        self._asked[deferred.name] += 1
        if self._asked[deferred.name] > _MAX_REPEATS:
            raise errors.Busy(f"What the rule {deferred.name} is asked about changes all the time; try again later.")
        self.by_key[deferred.key] = deferred.question()
