"""`Access`: wraps a store with what is the same for every driver: limits, retries and the breaker.

It applies the common options of the store's section: how many uploads and reads run at once, and how often a failed
call is retried. It reports failures to the breaker (`probing.py`), also those in the middle of an upload or a read.

Code that moves image data gets it from `registry.Stores.access`. For facts, lists and identities it calls the store.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final, TypeVar
from weakref import WeakSet

from calotype import errors
from calotype.buffers import Slots
from calotype.context import Context
from calotype.stores.base import Body, Feature, Later, Note, Peeks, Store, Write, aborting
from calotype.stores.probing import Breaker

LOG = logging.getLogger(__name__)

T = TypeVar("T")

#: The longest pause before a retry, seconds.
LONGEST_PAUSE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The common options of a store's section that this module applies, by their names."""

    read_only: bool = False
    max_uploads: int = 0
    max_downloads: int = 0
    max_retries: int = 0
    retry_interval: float = 0.5


class Access:
    """One store. Thread-safe."""

    def __init__(
        self, store: Store, settings: Settings, breaker: Breaker, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.store = store
        self._settings = settings
        self._breaker = breaker
        self._sleep = sleep
        busy = errors.StoreBusy(f"Too much is read from or written to store {store.name}.", store.name)
        self._uploads = Slots(settings.max_uploads, busy) if settings.max_uploads else None
        self._downloads = Slots(settings.max_downloads, busy) if settings.max_downloads else None
        self._lock = threading.Lock()
        self._reads: WeakSet[_Read] = WeakSet()
        self._reads_are_over = False

    @property
    def is_last(self) -> bool:
        """Whether to read other copies first: this store failed a short time ago, or all its read slots are taken."""
        return self._breaker.is_aside(self.store) or (self._downloads is not None and self._downloads.is_full)

    def upload_slot(self) -> contextlib.AbstractContextManager[None]:
        """Hold an upload slot for the length of the block. Raises `StoreBusy`."""
        return self._uploads.hold() if self._uploads else contextlib.nullcontext()

    @contextlib.contextmanager
    def writing(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Iterator[Write]:
        """Begin a write (`Store.begin`), which the block commits. If the block raises, the write is aborted."""
        try:
            write = self._retried(lambda: self.store.begin(image_id, attempt=attempt, size=size, note=note, ctx=ctx))
            with aborting(write, image_id):
                yield write
        except errors.StoreError as exc:
            self.report(exc)
            raise
        self._breaker.worked(self.store)

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        """`Store.read`. Also raises `StoreBusy`."""
        if self._downloads is not None:
            self._downloads.acquire()
        try:
            body = self._retried(lambda: self.store.read(url, offset=offset, length=length, ctx=ctx))
        except BaseException as exc:
            if self._downloads is not None:
                self._downloads.release()
            self.report(exc)
            raise
        self._breaker.worked(self.store)
        read = _Read(body, self._downloads, self.report)
        with self._lock:
            self._reads.add(read)
        if self._reads_are_over:
            read.cancel()
        return read

    def size(self, url: str, *, ctx: Context) -> int:
        """`Store.size`."""
        return self._retried(lambda: self.store.size(url, ctx=ctx))

    def peek(self, url: str, length: int, *, most: int, ctx: Context) -> tuple[int, bytes]:
        """`Peeks.peek`, for any store. Also raises `StoreBusy`."""
        store = self.store
        if isinstance(store, Peeks):
            with self._downloads.hold() if self._downloads else contextlib.nullcontext():
                return self._retried(lambda: store.peek(url, length, most=most, ctx=ctx))
        size = self.size(url, ctx=ctx)
        if size > most or not (length := min(size, length)):
            return size, b""
        with contextlib.closing(self.read(url, length=length, ctx=ctx)) as body:
            return size, b"".join(body)

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> Later | None:
        """`Store.delete`."""
        return self._retried(lambda: self.store.delete(url, object_id=object_id, ctx=ctx))

    def cancel_reads(self) -> None:
        """Cancel all running reads, and those that begin later, because the process ends."""
        with self._lock:
            self._reads_are_over = True
            reads = list(self._reads)
        for read in reads:
            read.cancel()

    def report(self, exc: BaseException) -> None:
        """Set the store aside if this failure means that it does not work. Those of the calls here are reported."""
        if (
            isinstance(exc, errors.StoreUnavailable)
            and not isinstance(exc, errors.StoreBusy | errors.Cancelled)
            and exc.store == self.store.name
            and Feature.USER_URLS not in self.store.features
        ):
            self._breaker.failed(self.store)

    def _retried(self, step: Callable[[], T]) -> T:
        """Call `step`, which must be harmless to repeat, and retry it with backoff after `StoreUnavailable`."""
        # No retries while the store is set aside: each request would wait for all of them in vain.
        retries = 0 if self._breaker.is_aside(self.store) else self._settings.max_retries
        for number in range(retries):
            try:
                return step()
            except errors.StoreBusy:
                raise
            except errors.StoreUnavailable as exc:
                LOG.warning("store %s failed and is asked again: %s", self.store.name, errors.reason(exc))
                self._sleep(min(self._settings.retry_interval * 2**number, LONGEST_PAUSE))
        return step()


class _Read:
    """A `Body` that holds a read slot until it is closed, and reports failures."""

    def __init__(self, body: Body, slots: Slots | None, failed: Callable[[BaseException], None]) -> None:
        self.size = body.size
        self._body = body
        self._slots = slots
        self._failed = failed

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except errors.StoreError as exc:
            self._failed(exc)
            raise

    def file(self) -> IO[bytes] | None:
        file = self._body.file()
        if file is None or self._slots is None:
            return file
        return _File(file, self.give_back)  # type: ignore[return-value]  # the three methods that a WSGI server calls

    def cancel(self) -> None:
        self._body.cancel()

    def close(self) -> None:
        try:
            self._body.close()
        finally:
            self.give_back()

    def give_back(self) -> None:
        """Release the slot, once."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


class _File:
    """The file of a body that holds a slot. A server that sends it closes the file, not the body."""

    def __init__(self, file: IO[bytes], give_back: Callable[[], None]) -> None:
        self.fileno = file.fileno
        self.read = file.read
        self._file = file
        self._give_back = give_back

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._give_back()
