"""`BodySource`: a copy in a store as a `Source` for `Passing` (`images/stream.py`), for jobs that read whole copies.

A store may be silent for as long as its `read_timeout`, and a web server may send next to nothing for ever. So a thread
looks after the reader while it waits: it ends the read when the job shall stop, or when the data comes too slowly.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from calotype import errors
from calotype.images.sources import Pace
from calotype.stores.base import Body

#: How often the thread looks, seconds.
_LOOK: Final = 0.5


class BodySource:
    """Reads a body, at most `rate` bytes a second, 0: no limit. One thread reads. Close it: that ends the other one.

    The store may be as slow as `Pace` says, of which `rate` and `window` count; without one, as slow as it likes. Then
    `ready` and `readinto` raise `StoreSlow`.
    """

    def __init__(
        self,
        body: Body,
        rate: int,
        check: Callable[[], None],
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check` raises if the read must stop. It is called twice a second, by the thread, and its error is raised."""
        self._body = body
        self._pieces = iter(body)
        self._piece = memoryview(b"")
        self._rate = rate
        self._check = check
        self._pace = pace or Pace(rate=0, window=math.inf)
        self._clock = clock
        self._count = 0
        self._started = clock()
        self._credit = self._pace.window
        self._waiting: float | None = None  # since when
        self._failure: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._look_after, name="reading", daemon=True).start()

    def ready(self, _size: int) -> int:
        while not self._piece:
            self.check()
            piece = self._next()
            if piece is None:
                self._done.set()
                return 1
            self._piece = memoryview(piece)
        return len(self._piece)

    def readinto(self, view: memoryview) -> int:
        self.ready(len(view))
        count = min(len(view), len(self._piece))
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:] if count < len(self._piece) else memoryview(b"")
        self._count += count
        while self._rate and (ahead := self._count / self._rate - (self._clock() - self._started)) > 0:
            self._done.wait(min(ahead, _LOOK))
            self.check()
        return count

    def check(self) -> None:
        """Raise if the read must stop."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread. The body is closed by whoever opened it."""
        self._done.set()

    def _next(self) -> bytes | None:
        since = self._waiting = self._clock()
        try:
            piece = next(self._pieces, None)
        except errors.Cancelled:
            self.check()
            self._check()  # raises the reason if the service is stopping
            raise
        finally:
            self._waiting = None
        if piece:
            earned = len(piece) / self._pace.rate if self._pace.rate else self._pace.window
            self._credit = min(self._pace.window, self._credit - (self._clock() - since) + earned)
            self._refuse_slow(self._credit)
        return piece

    def _refuse_slow(self, credit: float) -> None:
        if credit <= 0:
            raise errors.StoreSlow(
                f"The data came too slowly: fewer than {self._pace.rate} bytes a second for more than "
                f"{self._pace.window:g} seconds, and {self._count} bytes in all."
            )

    def _look_after(self) -> None:
        while not self._done.wait(_LOOK):
            try:
                self._check()
                since = self._waiting
                if since is not None:
                    self._refuse_slow(self._credit - (self._clock() - since))
            except BaseException as exc:  # noqa: BLE001  # it is raised where the data is read
                self._failure = exc
                self._body.cancel()
                return
