"""`Client`: requests to one bucket of one S3 server, by botocore. For `s3.py`.

Each request is bounded in time and tried again where that can help; all requests that the store makes may be repeated.
Errors are in our words. Their cause, which may name the server, is for the log. Credentials are in neither.

Nothing of the environment counts: no AWS_… variables, no files in ~/.aws, no instance metadata, no proxy variables.
"""

import contextlib
import functools
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from calotype import errors, insides

#: How often a request is tried at most. No try begins later than `read_timeout` after the first.
TRIES: Final = 4
#: The pause before the second try, seconds; each next pause is twice as long. Chance shortens them by up to half.
PAUSE: Final = 0.2
#: Connections that are kept open.
CONNECTIONS: Final = 128
#: Bytes that are given to the connection at once. The time-out counts for each of these.
_BLOCK: Final = 256 << 10

_FULL: Final = frozenset(
    ("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge")
)
_CREDENTIALS: Final = frozenset(
    ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired", "401")
)
_PASSING: Final = frozenset(
    ("InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling")
)
_MISSING: Final = frozenset(("NoSuchKey", "NoSuchVersion", "404"))


class Part:
    """A file of bytes in memory, as botocore reads it: without a copy."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> "memoryview | bytes":
        """The next bytes; up to 256 KiB when fewer are asked for, as connections do."""
        size = len(self._data) if size < 0 else max(size, _BLOCK)
        found = self._data[self._place : self._place + size]
        self._place += len(found)
        return found if len(found) else b""  # botocore compares with b"" to see the end

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: len(self._data)}[whence]
        return self._place


class Client:
    """Thread-safe. Makes its connections when they are needed, in the process that needs them."""

    def __init__(
        self,
        store: str,
        *,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: tuple[str, str],
        style: str,
        ca_file: str | None,
        connect_timeout: float,
        read_timeout: float,
        tries: int = TRIES,
    ) -> None:
        """`style` is how the bucket is named in URLs: path or virtual. Raises `ConfigError`."""
        try:
            import botocore.exceptions
            import urllib3.exceptions
            from botocore.config import Config
        except ImportError as exc:
            raise errors.ConfigError(f"Store {store}: it needs botocore: pip install 'calotype[s3]'.") from exc
        insides.check("botocore")
        for library in ("botocore", "urllib3"):  # at DEBUG they log headers, with signatures in them
            logging.getLogger(library).setLevel(logging.INFO)
        self.store, self.bucket, self.read_timeout = store, bucket, read_timeout
        self._tries = tries
        self._answered: Any = botocore.exceptions.ClientError
        self._slow: Any = (
            *(botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError),
            urllib3.exceptions.ReadTimeoutError,
        )
        self._untrusted: Any = botocore.exceptions.SSLError
        #: What a request, and reading its answer, may raise.
        self.failures: Any = (
            *(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, urllib3.exceptions.HTTPError),
            *(HTTPException, OSError, ValueError),
        )
        try:
            self._client: Any = _session().create_client(
                "s3",
                region_name=region,
                endpoint_url=endpoint,
                aws_access_key_id=credentials[0],
                aws_secret_access_key=credentials[1],
                verify=ca_file or _system_certificates() or True,
                config=Config(
                    connect_timeout=connect_timeout,
                    read_timeout=read_timeout,
                    max_pool_connections=CONNECTIONS,
                    proxies={},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"mode": "standard", "total_max_attempts": 1},
                    s3={"addressing_style": style},
                    signature_version="s3v4",
                    tcp_keepalive=True,
                ),
            )
        except (botocore.exceptions.BotoCoreError, ValueError, OSError) as exc:
            raise errors.ConfigError(f"Store {store}: its options cannot be used ({type(exc).__name__}).") from exc
        self._lock = threading.Lock()
        self._process = os.getpid()

    def ask(self, operation: str, *, given_up: threading.Event | None = None, **parameters: Any) -> Any:
        """What the server answers to one of botocore's operations. Raises `StoreError`; `code_of` tells S3's own code.

        Once `given_up` is set there is no further try.
        """
        until = time.monotonic() + self.read_timeout
        for number in range(1, self._tries + 1):
            try:
                with self.translated():
                    return getattr(self._connected(), operation)(Bucket=self.bucket, **parameters)
            except errors.StoreError as exc:
                pause = PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1)  # noqa: S311  # it only spreads the load
                last = number == self._tries or time.monotonic() + pause > until
                if last or not self._may_pass(exc.__cause__) or (given_up is not None and given_up.wait(0)):
                    raise
                if given_up is None:
                    time.sleep(pause)
                elif given_up.wait(pause):
                    raise
                if "Body" in parameters:
                    parameters["Body"].seek(0)
        raise AssertionError("not reached")

    def url_of(self, key: str) -> str:
        """Where requests for an object go: for tests."""
        url: str = self._client.generate_presigned_url("get_object", {"Bucket": self.bucket, "Key": key})
        return url.partition("?")[0]

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of the libraries into ours."""
        try:
            yield
        except self.failures as exc:
            raise self._translation(exc) from exc

    def _connected(self) -> Any:
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():  # a child must not use the connections of its parent
                    self._client.close()
                    self._process = os.getpid()
        return self._client

    def _translation(self, exc: Exception) -> errors.StoreError:
        name = self.store
        if not isinstance(exc, self._answered):
            if isinstance(exc, self._slow):
                return errors.StoreUnavailable("The store does not answer.", name)
            if isinstance(exc, self._untrusted):
                return errors.StoreUnavailable("The store's certificate cannot be verified.", name)
            return errors.StoreUnavailable("The store cannot be reached, or broke off.", name)
        code, status = _code(exc), _status(exc)
        if code in _MISSING:
            return errors.Missing("The image's data is not in the store.", name)
        if code in _FULL or status in (413, 507):
            return errors.StoreFull("The store has no room for this image.", name)
        if code == "NoSuchBucket":
            return errors.StoreUnavailable("The store's bucket does not exist.", name)
        if code == "RequestTimeTooSkewed":
            return errors.StoreUnavailable("The clock of this host differs too much from the store's.", name)
        if code in _CREDENTIALS:
            return errors.StoreUnavailable("The store does not accept the credentials of its section.", name)
        if status == 403:
            return errors.StoreUnavailable("The store's credentials do not permit this.", name)
        if code in ("SlowDown", "Throttling") or status in (429, 503):
            return errors.StoreUnavailable("The store is overloaded.", name)
        if status == 301:
            return errors.StoreUnavailable("The store's bucket is in another region.", name)
        return errors.StoreUnavailable(f"The store failed: it answered {status}.", name)

    def _may_pass(self, exc: BaseException | None) -> bool:
        """Whether a failure may be over in a moment. Who was waited for in vain is not waited for again."""
        if isinstance(exc, self._answered):
            return _code(exc) in _PASSING or _status(exc) in (429, 500, 502, 503, 504)
        return not isinstance(exc, (*self._slow, self._untrusted))


@functools.cache
def _session() -> Any:
    """What makes clients. Loading the description of S3 takes half a second, so there is one for all of them."""
    from botocore.configprovider import ConfigValueStore
    from botocore.loaders import Loader
    from botocore.session import Session

    session = Session()
    defaults = {name: default for name, (_, _, default, _) in session.SESSION_VARIABLES.items()}
    settings = ConfigValueStore()  # without those that read the environment and files
    for name, value in (defaults | {"config_file": os.devnull, "credentials_file": os.devnull}).items():
        settings.set_config_variable(name, value)
    session.register_component("config_store", settings)
    own = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    session.register_component("data_loader", own)
    return session


def code_of(exc: errors.StoreError) -> str:
    """The code of S3 that an error stands for; empty if it stands for none. For a HEAD it is the status."""
    return _code(exc.__cause__)


def date_of(answer: Any) -> str | None:
    """The time of the server, as in its answer, or in the error that stands for it."""
    if isinstance(answer, errors.StoreError):
        answer = getattr(answer.__cause__, "response", None) or {}
    found: str | None = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return found


def _code(exc: Any) -> str:
    return str((getattr(exc, "response", None) or {}).get("Error", {}).get("Code", ""))


def _status(exc: Any) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _system_certificates() -> str | None:
    """The file with the system's certificates; None where there is none."""
    found = ssl.get_default_verify_paths().cafile
    return found if found and Path(found).is_file() else None
