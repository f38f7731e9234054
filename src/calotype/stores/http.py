"""Images on web servers, read-only: the location is the URL. All requests go through `net.py`.

The data is not ours: `delete` leaves it alone, and the server may change it.
"""

import base64
import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar
from urllib.parse import unquote_to_bytes

from oslo_config import cfg

from calotype import errors, net
from calotype.context import Context
from calotype.stores.base import Body, Feature, Health, Note, Write
from calotype.wire import Answer

OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt(
        "https_ca_certificates_file",
        help="PEM file with the certificates that servers are verified with; default: those of the system.",
    ),
    cfg.BoolOpt("https_insecure", default=False, help="Do not verify certificates: who is on the way can change data."),
    cfg.FloatOpt(
        "http_fetch_timeout",
        default=60.0,
        min=1,
        help="Seconds for all that a request waits for before data comes: names, connections, redirects, answers. When "
        "a location is added, also for the size and the first bytes.",
    ),
    cfg.IntOpt("http_fetches", default=net.FETCHES, min=1, help="Requests of one worker that may wait so at once."),
    cfg.IntOpt(
        "http_fetches_per_host", default=net.FETCHES_OF_HOST, min=1, help="Of these, so many for one host or address."
    ),
    cfg.DictOpt("http_proxy_information", default={}, help="Not served: the start is refused when it is set."),
]

#: Locations that Glance recorded may hold a user and a password.
_WITH_USER = re.compile(r"(https?://)([^/?#@]*)@(.*)", re.IGNORECASE)


class HttpStore:
    """URLs of http and https. `options` also has the `filters` and the `proxy`."""

    kind = "http"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ("connect_timeout", "read_timeout")
    features = frozenset({Feature.READ, Feature.USER_URLS})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        if options["http_proxy_information"]:
            raise errors.ConfigError(
                f"Store {name}: http_proxy_information is not served: such a proxy connects to addresses that were not "
                "checked. Unset it; see [import_filtering_opts] proxy."
            )
        ca_file = options["https_ca_certificates_file"]
        most = options["http_fetches"]
        read_timeout = options.get("read_timeout") or net.READ_TIMEOUT
        self.net = net.Net(
            options["filters"],
            ca_file=ca_file,
            insecure=options["https_insecure"],
            proxy=options.get("proxy"),
            fetch_timeout=options["http_fetch_timeout"],
            limit=net.FetchLimit(most, options["http_fetches_per_host"]),
            names=net.NameLookups(most),
            connect_timeout=options.get("connect_timeout") or net.CONNECT_TIMEOUT,
            head_timeout=read_timeout,
            read_timeout=read_timeout,
        )
        try:
            self.net.prepare()
        except OSError as exc:
            raise errors.ConfigError(
                f"Store {name}: https_ca_certificates_file cannot be read, or holds no certificate."
            ) from exc

    def check(self) -> Health:
        return Health(ok=True)

    def details(self) -> Mapping[str, Any]:
        return {}

    def owns(self, url: str) -> bool:
        try:
            return net.parse(_clean(url)[0]).scheme in ("http", "https")
        except errors.UrlRefused:
            return False

    def prefixes(self) -> Sequence[str]:
        return ["http://", "https://"]

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        raise errors.StoreReadOnly(f"Store {self.name} does not take new data.", self.name)

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        return self._read(url, offset, length)

    def _read(self, url: str, offset: int, length: int | None, slot: net.FetchSlot | None = None) -> "_Part":
        headers = {}
        if length != 0 and (offset or length is not None):
            last = "" if length is None else str(max(offset + length - 1, offset))
            headers["Range"] = f"bytes={offset}-{last}"
        answer = self._ask(url, headers=headers, slot=slot)
        try:
            return _Part(self.name, answer, offset, length)
        except BaseException:
            answer.close()
            raise

    def size(self, url: str, *, ctx: Context) -> int:
        with self._slot() as slot:
            return self._size(url, slot)

    def peek(self, url: str, length: int, *, most: int, ctx: Context) -> tuple[int, bytes]:
        with self._slot() as slot:
            size = self._size(url, slot)
            if size > most or not (length := min(size, length)):
                return size, b""
            with contextlib.closing(self._read(url, 0, length, slot)) as body:
                return size, b"".join(body)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[net.FetchSlot]:
        try:
            with self.net.slot() as slot:
                yield slot
        except errors.Busy as exc:
            raise errors.StoreBusy(str(exc), self.name) from exc

    def _size(self, url: str, slot: net.FetchSlot) -> int:
        """The size by HEAD; if the server does not support it, by a GET whose body is not read."""
        for method in ("HEAD", "GET"):
            try:
                with contextlib.closing(self._ask(url, method=method, slot=slot)) as answer:
                    if answer.size is not None:
                        return answer.size
            except (errors.Missing, errors.StoreBusy):
                raise
            except errors.StoreError:
                if method == "GET":
                    raise
        raise errors.StoreError("The server does not tell the size of the data.", self.name)

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> None:
        """Leave the data where it is: it was never ours."""

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        """Nothing was written."""

    def _ask(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        slot: net.FetchSlot | None = None,
    ) -> Answer:
        if not self.owns(url):
            raise errors.StoreError("The location is not in this store.", self.name)
        clean, secrets = _clean(url)
        try:
            answer = self.net.open(clean, method=method, headers=headers, secrets=secrets, slot=slot)
        except errors.Busy as exc:
            raise errors.StoreBusy(str(exc), self.name) from exc
        except errors.UrlRefused as exc:
            raise errors.LocationRefused(str(exc), self.name) from exc
        except errors.FetchFailed as exc:
            raise errors.StoreUnavailable(str(exc), self.name) from exc
        if answer.status == 200 or (answer.status == 206 and headers):
            return answer
        answer.close()
        if answer.status in (404, 410):
            raise errors.Missing("The image's data is not on the server.", self.name)
        if answer.status == 416:
            raise errors.StoreError("The object is shorter than its record says.", self.name)
        kind = errors.StoreUnavailable if answer.status >= 500 or answer.status == 429 else errors.StoreError
        raise kind(f"The server answered {answer.status}.", self.name)


def _clean(url: str) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and a header with these instead."""
    found = _WITH_USER.fullmatch(url)
    if found is None:
        return url, {}
    given = base64.b64encode(unquote_to_bytes(found[2])).decode()
    return found[1] + found[3], {"Authorization": f"Basic {given}"}


class _Part:
    """`Body` of an answer. If the server ignored the range and sent everything, the other bytes are skipped."""

    def __init__(self, store: str, answer: Answer, offset: int, length: int | None) -> None:
        self._store = store
        self._answer = answer
        self._cancelled = False
        total = answer.size
        self._skip = offset
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != offset:
                raise errors.StoreError("The server sent another part than it was asked for.", store)
            total, self._skip = int(found[2]) + 1, 0
        if total is None and length is None:
            raise errors.StoreError("The server does not tell the size of the data.", store)
        if total is not None and (offset > total or (length is not None and offset + length > total)):
            raise errors.StoreError("The object is shorter than its record says.", store)
        self.size: int = length if length is not None else (total or 0) - offset

    def __iter__(self) -> Iterator[bytes]:
        skip, remaining = self._skip, self.size
        try:
            if self._cancelled:
                raise errors.FetchFailed("cancelled")
            for piece in self._answer if remaining else ():
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                part = piece[skip : skip + remaining]
                skip, remaining = 0, remaining - len(part)
                yield part
                if self._cancelled:
                    raise errors.FetchFailed("cancelled")
                if not remaining:
                    return
        except errors.FetchFailed as exc:
            if self._cancelled:
                raise errors.Cancelled("The read was cancelled.", self._store) from exc
            raise errors.StoreUnavailable(str(exc), self._store) from exc
        if remaining:
            raise errors.StoreError("The server sent less than it announced.", self._store)

    def file(self) -> IO[bytes] | None:
        return None

    def cancel(self) -> None:
        self._cancelled = True
        self._answer.cancel()

    def close(self) -> None:
        self._answer.close()
