"""`Probe`: finds out what an S3 server does with what not every S3 server knows. For `s3.py`.

It tries in the bucket itself, with the object `KEY`, which stays there. A thread of its own does it while the first
upload of a process is under way. Commands that only look start none.
"""

import base64
import contextlib
import logging
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any, Final

from calotype import errors
from calotype.stores.s3_client import Client, Part, code_of

LOG = logging.getLogger(__name__)

KEY: Final = ".calotype-probe"
#: After a probe that failed, uploads start no other one for so many seconds.
_AGAIN: Final = 60.0
_DATA: Final = b"An object with which Calotype finds out what this server can do. It may be removed."


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server was seen to do. The default is what is taken for granted of every server."""

    guarded_put: bool = False  #: it refuses `PutObject` with `If-None-Match: *` if there is an object
    guarded_complete: bool = False  #: it refuses `CompleteMultipartUpload` in the same way
    checksums: bool = False  #: it refuses parts that differ from their CRC-32


class Probe:
    """Thread-safe. Remembers what it found."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._found: Abilities | None = None
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        self._not_before = 0.0

    def abilities(self, wait: float = 0.0) -> Abilities:
        """What was found. Starts the probe if it is not known; then waits for it for up to `wait` seconds."""
        if self._found is not None:
            return self._found
        with self._lock:
            if self._running is None and time.monotonic() >= self._not_before:
                self._running = threading.Event()
                try:
                    threading.Thread(target=self._run, args=(self._running,), name="s3 probe", daemon=True).start()
                except RuntimeError:  # the system gives no thread
                    self._running = None
            running = self._running
        if running is not None:
            running.wait(wait)
        return self._found or Abilities()

    def _run(self, done: threading.Event) -> None:
        try:
            self._found = self._look()
            LOG.info("store %s: its server was tried: %s", self._client.store, self._found)
        except errors.StoreError as exc:
            LOG.warning("store %s: its server could not be tried: %s", self._client.store, errors.reason(exc))
        with self._lock:
            self._running, self._not_before = None, time.monotonic() + _AGAIN
        done.set()

    def _look(self) -> Abilities:
        ask = self._client.ask
        ask("put_object", Key=KEY, Body=_part())
        guarded_put = self._is_refused("put_object", "PreconditionFailed", Key=KEY, Body=_part(), IfNoneMatch="*")
        checksums = self._keeps_checksums()
        upload = ask("create_multipart_upload", Key=KEY)["UploadId"]
        guarded_complete = False
        try:
            etag = ask("upload_part", Key=KEY, UploadId=upload, PartNumber=1, Body=_part())["ETag"]
            guarded_complete = self._is_refused(
                "complete_multipart_upload",
                "PreconditionFailed",
                Key=KEY,
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]},
                IfNoneMatch="*",
            )
        finally:
            self._abort(upload)
        return Abilities(guarded_put, guarded_complete, checksums)

    def _keeps_checksums(self) -> bool:
        """Whether it takes a part with its checksum, and refuses one with another."""
        try:
            upload = self._client.ask("create_multipart_upload", Key=KEY, ChecksumAlgorithm="CRC32")["UploadId"]
        except errors.StoreError as exc:
            if code_of(exc):
                return False
            raise
        try:
            part = {"Key": KEY, "UploadId": upload, "PartNumber": 1}
            taken = self._client.ask("upload_part", **part, Body=_part(), ChecksumCRC32=crc32(memoryview(_DATA)))
            wrong = crc32(memoryview(b"something else"))
            return "ChecksumCRC32" in taken and self._is_refused(
                "upload_part", None, **part, Body=_part(), ChecksumCRC32=wrong
            )
        except errors.StoreError as exc:
            if code_of(exc):
                return False
            raise
        finally:
            self._abort(upload)

    def _is_refused(self, operation: str, code: str | None, **parameters: Any) -> bool:
        """Whether a request is refused: with this code, or with any."""
        try:
            self._client.ask(operation, **parameters)
        except errors.StoreError as exc:
            found = code_of(exc)
            if not found:
                raise
            return code in (None, found)
        return False

    def _abort(self, upload: str) -> None:
        with contextlib.suppress(errors.StoreError):  # completed; else the sweep finds it
            self._client.ask("abort_multipart_upload", Key=KEY, UploadId=upload)


def crc32(data: memoryview) -> str:
    """The CRC-32 of a part as S3 writes it."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _part() -> Part:
    return Part(memoryview(_DATA))
