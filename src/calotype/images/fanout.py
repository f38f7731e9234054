"""`FanOut`: writes one image into several stores at once, from one read. One that fails or hangs costs no other.

Each store has a thread of its own, in which it begins, takes pieces and commits. The thread that reads gives every
piece to all stores (`stream.py`). They share its memory: a transfer holds at most `AHEAD + 2` pieces, and as many as
the largest window of its writes.

A thread that hangs in a store cannot be ended. The store is given up: the others go on, and its thread aborts as soon
as it returns. Until then it keeps its slot for uploads and, if it hangs in `put`, the piece that it is writing and
those in the window of its write. This memory is not used for anything else meanwhile, and counts in the budget.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from calotype import errors, logs
from calotype.buffers import Piece
from calotype.context import Context
from calotype.images.stream import Passing, WriteWindow
from calotype.stores.access import Access
from calotype.stores.base import Note, Stored

LOG = logging.getLogger(__name__)

#: How many pieces may wait for a store. With pieces of 1 MiB, others do not notice a store that pauses for 20 ms.
AHEAD: Final = 8
#: After this time without any progress a store is given up, seconds.
PATIENCE: Final = 60.0
#: The same for its commit, which may have to sync a whole image.
COMMIT_PATIENCE: Final = 600.0
#: How often stores that hang are looked for, seconds.
LOOK = 1.0
#: How long the end of the block waits for stores that abort, seconds.
ABORT_TIME: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A store to write a copy into, and the attempt's token. `note` is as in `Store.begin`, but in another thread."""

    access: Access
    attempt: str
    note: Note


class FanOut:
    """Writes an image into several stores. Within a `with` block, call `receive` and then `commit`.

    The end of the block aborts whatever is not committed, and waits for that, but not for a store that hangs. The
    caller then cleans (`Store.clean`) each target that `commit` has not yielded. While a commit hangs, nobody knows
    whether the object is final. After `clean` it cannot become final; without that, its thread removes it afterwards.
    """

    def __init__(
        self,
        image_id: str,
        targets: Sequence[Target],
        *,
        size: int | None,
        ctx: Context,
        failed: Callable[[Target, errors.CalotypeError], None],
        patience: float = PATIENCE,
        commit_patience: float = COMMIT_PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`size` is the announced size in bytes, or None. There is at least one target.

        `failed` is called once for each store that fails or is given up, in the caller's thread. The other stores go
        on, unless it raises: that ends `receive` or `commit`. A store is given up if it has something to do and
        finishes nothing for `patience` seconds, or in its commit for `commit_patience` seconds.
        """
        if not targets:
            raise ValueError("there is no store to write to")
        self._failed = failed
        self._changed = threading.Condition()
        self._branches = [
            _Branch(target, image_id, size, ctx, self._changed, (patience, commit_patience), clock)
            for target in targets
        ]
        self._lost: list[errors.CalotypeError] = []  # the failures that the caller was told of
        self._check: Callable[[], None] | None = None
        self._verified = False

    def receive(self, passing: Passing) -> None:
        """Read all and put it into the stores, and verify it. Nothing is final yet.

        Raises what `passing` raises, and the last failure if no store is left.
        """
        self._check = passing.check
        passing.pass_to(self._put, self._settle)
        self._verified = True

    def commit(self) -> Iterator[tuple[Target, Stored]]:
        """Make the image final in all stores at once; yield each when it is done, so that the caller can record it.

        Raises the last failure if all stores have failed.
        """
        if not self._verified:
            raise RuntimeError("the image is not verified")
        with self._changed:
            for one in self._branches:
                one.verified = True
            self._changed.notify_all()
        while any(not one.told for one in self._branches):
            self._wait(lambda: bool(self._done()))
            for one, stored in self._done():
                one.told = True
                yield one.target, stored

    def __enter__(self) -> Self:
        for one in self._branches:
            one.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for one in self._branches:
            one.end(errors.Gone("The transfer was ended."))
        until = time.monotonic() + ABORT_TIME
        for one in self._branches:
            one.join(until)

    def _put(self, piece: Piece) -> None:
        self._wait(lambda: all(one.has_room or one.result is not None for one in self._branches))
        with self._changed:
            for one in self._branches:
                if one.result is None:
                    one.add(piece.hold())
            self._changed.notify_all()

    def _done(self) -> list[tuple["_Branch", Stored]]:
        """The stores that have committed, and were not yielded yet."""
        return [(one, one.result) for one in self._branches if isinstance(one.result, Stored) and not one.told]

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, which is called under the lock, and take care of what fails meanwhile."""
        while True:
            self._settle()
            with self._changed:
                if ready() or all(one.told for one in self._branches):
                    return
                self._changed.wait_for(lambda: ready() or any(one.has_failed for one in self._branches), LOOK)
            if self._check:
                self._check()

    def _settle(self) -> None:
        """Give up the stores that hang, and tell the caller of failures. Raises the last one if no store is left."""
        with self._changed:
            hanging = [one for one in self._branches if one.give_up()]
            failed = [one for one in self._branches if one.has_failed]
        for one in hanging:
            one.report()
        for one in failed:
            one.told = True
            assert isinstance(one.result, errors.CalotypeError)
            self._lost.append(one.result)
            self._failed(one.target, one.result)
        if len(self._lost) == len(self._branches):
            raise self._lost[-1]


class _GivenUp(Exception):
    """Ends the thread of a store whose result nobody waits for any more."""


class _Branch:
    """One store, and the thread that writes into it. `changed` is the lock of all branches and of their attributes."""

    def __init__(
        self,
        target: Target,
        image_id: str,
        size: int | None,
        ctx: Context,
        changed: threading.Condition,
        patience: tuple[float, float],
        clock: Callable[[], float],
    ) -> None:
        """`patience` is that for pieces and that for the commit."""
        self.target = target
        self.result: Stored | errors.CalotypeError | None = None  #: set once
        self.told = False  #: whether the caller knows the result
        self.verified = False  #: whether the image is complete, and may be committed
        self._image_id = image_id
        self._size = size
        self._ctx = ctx
        self._changed = changed
        self._patience, self._commit_patience = patience
        self._clock = clock
        self._queue: deque[Piece] = deque()
        self._unfinished = 1  # what the store has to do: to begin, pieces, to commit
        self._since = clock()  # when it last finished any of that, or was given the first
        self._committing = self._hangs = False
        self._noted: str | None = None
        self._log = logs.follow()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name=f"store {target.access.store.name}", daemon=True
        )

    # --- the caller's side -------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether it may be given another piece."""
        return len(self._queue) < AHEAD

    @property
    def has_failed(self) -> bool:
        """Whether it has failed, and the caller does not know yet."""
        return isinstance(self.result, errors.CalotypeError) and not self.told

    def start(self) -> None:
        assert self._thread is not None
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            self.end(errors.Busy("The system gives no thread for the store; try again in a moment."))

    def join(self, until: float) -> None:
        """Wait for the end of the thread, unless it hangs, until a moment of the monotonic clock."""
        if self._thread is not None:
            self._thread.join(0.0 if self._hangs else max(0.0, until - time.monotonic()))

    def add(self, piece: Piece) -> None:
        """Have a piece written, which is released afterwards. Called under the lock, as `give_up`."""
        if not self._unfinished:
            self._since = self._clock()
        self._unfinished += 1
        self._queue.append(piece)

    def give_up(self) -> bool:
        """End it if it hangs. Returns whether it does."""
        limit = self._commit_patience if self._committing else self._patience
        if self.result or not self._unfinished or self._clock() - self._since < limit:
            return False
        doing = "has not made the image final" if self._committing else "has not answered"
        name = self.target.access.store.name
        self._hangs = True
        return self.end(errors.StoreUnavailable(f"Store {name} {doing} for {limit:g} seconds.", name))

    def report(self) -> None:
        """Report that the store hangs, since its thread cannot."""
        assert isinstance(self.result, errors.StoreUnavailable)
        LOG.error("image %s: a store is given up: %s", self._image_id, errors.reason(self.result))
        self.target.access.report(self.result)

    def end(self, result: Stored | errors.CalotypeError) -> bool:
        """Set the result; False if there is one already. What waits for the store is released."""
        with self._changed:
            if self.result is not None:
                return False
            self.result = result
            for piece in self._queue:
                piece.release()
            self._queue.clear()
            self._changed.notify_all()
            return True

    # --- its own thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._log()
        access, window = self.target.access, None
        writing = access.writing(
            self._image_id, attempt=self.target.attempt, size=self._size, note=self._note, ctx=self._ctx
        )
        try:
            with access.upload_slot(), writing as write:
                window = WriteWindow(write, self._check_wanted, self._finished)
                self._finished()
                while (piece := self._next()) is not None:
                    try:
                        window.put(piece)
                    finally:
                        piece.release()
                stored = write.commit()
                if not self.end(stored):
                    LOG.warning("image %s: a commit that was given up came late; it is undone", self._image_id)
                    access.store.clean(self._image_id, self.target.attempt, self._noted)
                    raise _GivenUp
        except _GivenUp:
            pass
        except BaseException as exc:  # noqa: BLE001 - the caller is told
            self._fail(exc)
        finally:
            if window is not None:
                window.take_back()

    def _next(self) -> Piece | None:
        """The next piece; None if all are written and the image is to be committed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.verified or self.result)
            self._check_wanted()
            if self._queue:
                self._changed.notify_all()
                return self._queue.popleft()
            if not self._unfinished:
                self._since = self._clock()
            self._unfinished += 1
            self._committing = True
            return None

    def _finished(self) -> None:
        with self._changed:
            self._unfinished -= 1
            self._since = self._clock()

    def _check_wanted(self) -> None:
        if self.result is not None:
            raise _GivenUp

    def _note(self, what: str) -> None:
        if self.result is not None:
            raise errors.Gone("The write was given up.")  # so the object will not become final
        self.target.note(what)
        self._noted = what

    def _fail(self, exc: BaseException) -> None:
        name = self.target.access.store.name
        if not isinstance(exc, errors.CalotypeError):
            LOG.error("image %s: the driver of store %s failed", self._image_id, name, exc_info=exc)
            exc = errors.StoreError(f"Store {name} failed unexpectedly.", name)
        if not self.end(exc):
            LOG.warning("image %s: the write that was given up failed: %s", self._image_id, errors.reason(exc))
