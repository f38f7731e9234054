"""Reads objects of Swift. A read that is cut off goes on with a new request for the rest of the same object."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Final

from calotype import errors
from calotype.stores.swift_objects import Place
from calotype.wire import Answer

LOG = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_UNMET: Final = re.compile(r"bytes \*/(\d{1,18})")


def open_(place: Place, image: str, offset: int, length: int | None, *, resumes: int) -> "SwiftBody":
    """The body of a part of an object, with one request. `resumes` is how often it may be cut off.

    Raises `StoreError`, also if the part is not in the object.
    """
    if length == 0:
        found = place.head(image)
        if found is None:
            raise errors.Missing("The image's data is not in the store.", place.store)
        _require(length_of(found, place.store), offset, place.store)
        return SwiftBody(place, image, None, offset, 0, "", resumes)
    headers = {}
    if offset or length is not None:
        headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
    answer = _ask(place, image, headers, lambda: None)
    try:
        start, end, total = _extent(answer, offset, place.store)
        _require(total, offset + (length or 0), place.store)
        size = 0 if start is None else end - start
        if length is not None and size != length:
            raise errors.StoreError("The server sent another part than it was asked for.", place.store)
        return SwiftBody(place, image, answer, offset, size, answer.headers.get("ETag") or "", resumes)
    except BaseException:
        answer.close()
        raise


def length_of(headers: Mapping[str, str], store: str) -> int:
    """The size of an object, by the headers of a HEAD."""
    length = headers.get("Content-Length")
    if length is None:
        raise errors.StoreError("The server does not tell the size of the data.", store)
    return int(length)


def _ask(place: Place, image: str, headers: Mapping[str, str], heed: Callable[[], object]) -> Answer:
    return place.account.open(place.path(image), account=place.name, headers=headers, allowed=(416,), heed=heed)


def _require(total: int, needed: int, store: str) -> None:
    if total < needed:
        raise errors.StoreError("The object is shorter than its record says.", store)


def _extent(answer: Answer, offset: int, store: str) -> tuple[int | None, int, int]:
    """The first byte of an answer, the end, and the size of the object. The first byte is None if there is none."""
    told = answer.headers.get("Content-Range", "")
    if answer.status == 416:
        found = _UNMET.fullmatch(told)
        if found is None:
            raise errors.StoreError("The object is shorter than its record says.", store)
        return None, 0, int(found[1])
    if answer.status == 206:
        found = _RANGE.fullmatch(told)
        if found is None or int(found[1]) != offset or answer.size not in (None, int(found[2]) + 1 - offset):
            raise errors.StoreError("The server sent another part than it was asked for.", store)
        return offset, int(found[2]) + 1, int(found[3])
    if answer.size is None:
        raise errors.StoreError("The server does not tell the size of the data.", store)
    if offset:
        raise errors.StoreError("The server sent another part than it was asked for.", store)
    return 0, answer.size, answer.size


class SwiftBody:
    """`Body` of an answer; if the connection is cut, of further answers with the rest of the same object."""

    def __init__(
        self, place: Place, image: str, answer: Answer | None, offset: int, size: int, etag: str, resumes: int
    ) -> None:
        self.size = size
        self._place, self._image = place, image
        self._resumes = resumes
        self._answer = answer
        self._offset = offset
        self._etag = etag
        self._lock = threading.Lock()
        self._cancelled = self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        name, done, cuts = self._place.store, 0, 0
        block = memoryview(bytearray(_PIECE))
        self._heed()
        while done < self.size:
            try:
                if self._answer is None:
                    self._reopen(done)
                assert self._answer is not None
                got = self._answer.readinto(block[: self.size - done], self._place.account.network.read_timeout)
            except errors.ConnectionCut as exc:
                self._heed()
                cuts += 1
                if cuts > self._resumes:
                    raise errors.StoreUnavailable(f"Store {name} broke off.", name) from exc
                LOG.warning("store %s broke off: the download goes on with a new request", name)
                self._drop()
                continue
            except errors.FetchFailed as exc:
                raise errors.StoreUnavailable(f"Store {name} did not answer as HTTP servers do.", name) from exc
            if got is None:
                raise errors.StoreUnavailable(f"Store {name} gives no data.", name)
            if not got:
                raise errors.StoreError("The server sent less than it announced.", name)
            done += got
            yield bytes(block[:got])
            self._heed()

    def _reopen(self, done: int) -> None:
        """Ask for the rest of the object, if it is the same one."""
        first, last = self._offset + done, self._offset + self.size - 1
        headers = {"Range": f"bytes={first}-{last}"}
        if self._etag:
            headers["If-Match"] = self._etag
        try:
            answer = _ask(self._place, self._image, headers, self._heed)
        except errors.AlreadyStored as exc:  # its answer is 412
            raise errors.StoreError("The object was changed while it was read.", self._place.store) from exc
        try:
            start, end, _ = _extent(answer, first, self._place.store)
            if (start, end) != (first, last + 1):
                raise errors.StoreError("The object was changed while it was read.", self._place.store)
        except BaseException:
            answer.close()
            raise
        with self._lock:
            self._answer = answer
            if self._closed:
                answer.close()
        self._heed()

    def _drop(self) -> None:
        with self._lock:
            answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _heed(self) -> None:
        if self._cancelled:
            raise errors.Cancelled("The read was cancelled.", self._place.store)

    def file(self) -> IO[bytes] | None:
        return None

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._answer is not None:
                self._answer.cancel()

    def close(self) -> None:
        self._closed = True
        self._drop()
