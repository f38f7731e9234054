"""`S3Body`: reads a part of an object by one request, and goes on at the same byte after a cut. For `s3.py`."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

from calotype import errors
from calotype.stores.s3_client import Client

#: The largest piece, bytes.
_PIECE: Final = 1 << 20
#: How often the reading of one object goes on after a cut.
_CUTS: Final = 20


class Opened:
    """The answer to one request for bytes of an object. Raises `StoreError` if it has not the bytes."""

    def __init__(self, client: Client, key: str, offset: int, length: int | None, etag: str | None = None) -> None:
        """`etag` is that of the object if some of it was read before."""
        wanted: dict[str, Any] = {}
        if offset or length is not None:
            wanted["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = client.ask("get_object", Key=key, **wanted)
        self.raw: Any = answer["Body"]._raw_stream
        self.etag: str = answer["ETag"]
        try:
            self.size: int = answer["ContentLength"]
            # Compared here, because Swift's condition `If-Match` compares with another ETag than it shows.
            if etag not in (None, self.etag):
                raise errors.StoreError("The object was replaced while it was being read.", client.store)
            found = re.fullmatch(r"bytes (\d+)-(\d+)/\d+", answer.get("ContentRange", ""))
            if "Range" in wanted and (
                found is None or int(found[1]) != offset or int(found[2]) + 1 != offset + self.size
            ):
                raise errors.StoreError("The store sent another part than it was asked for.", client.store)
            if length is not None and self.size != length:
                raise errors.StoreError("The object is shorter than its record says.", client.store)
        except BaseException:
            self.close()
            raise

    def cancel(self) -> None:
        """Wake whoever waits for bytes."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it was read to its end, or closed
            self.raw.shutdown()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.raw.close()


class S3Body:
    """`Body` of a part of an object. `opened` is None for no bytes."""

    def __init__(self, client: Client, key: str, offset: int, opened: Opened | None) -> None:
        self.size: int = opened.size if opened else 0
        self._client, self._key, self._offset = client, key, offset
        self._opened = opened
        self._left = self.size
        self._changed = threading.Condition()
        self._cancelled = self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        since, cuts = time.monotonic(), 0
        while self._left and not self._cancelled:
            try:
                with self._client.translated():
                    piece = self._read()
            except errors.StoreUnavailable:
                cuts += 1
                if self._cancelled:
                    break
                if cuts > _CUTS or time.monotonic() - since >= self._client.read_timeout:
                    raise
                self._reopen()
                continue
            if self._cancelled:  # what came after that may be bytes of TLS
                break
            self._offset += len(piece)
            self._left -= len(piece)
            yield piece
            since = time.monotonic()
        if self._cancelled:
            raise errors.Cancelled("The read was cancelled.", self._client.store)

    def _read(self) -> bytes:
        assert self._opened is not None
        piece: bytes = self._opened.raw.read1(min(_PIECE, self._left))
        if not piece:
            raise ConnectionError("the connection ended before the data did")
        return piece

    def _reopen(self) -> None:
        """Ask for the rest of the same object. `cancel` ends the waiting for it at once."""
        assert self._opened is not None
        self._opened.close()
        found: list[Opened | errors.StoreError] = []

        def run() -> None:
            etag = self._opened.etag if self._opened else None
            try:
                result: Opened | errors.StoreError = Opened(self._client, self._key, self._offset, self._left, etag)
            except errors.StoreError as exc:
                result = exc
            with self._changed:
                found.append(result)
                self._changed.notify_all()
                late = self._cancelled or self._closed
            if late and isinstance(result, Opened):
                result.close()

        _in_a_thread(run)
        with self._changed:
            self._changed.wait_for(lambda: found or self._cancelled)
            if self._cancelled:
                for one in found:
                    if isinstance(one, Opened):
                        one.close()
                return
            opened = found[0]
            if isinstance(opened, Opened):
                self._opened = opened
                return
        raise opened

    def file(self) -> IO[bytes] | None:
        return None

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            opened = self._opened
        if opened is not None:
            opened.cancel()

    def close(self) -> None:
        with self._changed:
            self._closed = True
        if self._opened is not None:
            self._opened.close()


def _in_a_thread(task: Callable[[], None]) -> None:
    try:
        threading.Thread(target=task, name="s3 read", daemon=True).start()
    except RuntimeError:  # the system gives none
        task()
