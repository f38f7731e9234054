"""Sources of images on other servers: a file at a URL, and an image of another Image service.

`WebSource` is a `Source` for `Passing` (`images/stream.py`). All requests go through `net.py`, which decides where they
may lead. This module decides what counts as the file: one whole answer, or the rest of the same file after a
connection broke. It does not compare hashes and writes nothing.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from typing import Any, Final
from urllib.parse import quote

from calotype import errors
from calotype.net import Net, parse
from calotype.wire import Answer

#: How long one wait is: so late a cancel is seen at most, seconds.
_WAIT: Final = 0.5
#: Statuses after which the same request may succeed.
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_STRONG: Final = re.compile(r'"[!#-~]*"')
#: The largest record of an image in another service, bytes.
_MOST_RECORD: Final = 1 << 20
_REFUSALS: Final = {
    401: "does not accept the token",
    403: "does not allow this",
    404: "has no such image, or does not show it",
    410: "has the image no more",
    503: "is not available",
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a server may be. Times are in seconds.

    A server has a credit of `window` seconds. Waiting for it costs the time waited, and each byte earns 1/`rate`
    seconds, up to the full credit. Without credit the fetch has failed. So a server that sends nothing, or next to
    nothing, is given up after `window`; one that keeps the rate never is; time in which nobody waits for it is free.

    While there is no connection, waiting costs half: after a cut the server has up to twice the `window` to go on.
    """

    rate: int = 64 << 10  #: bytes a second; 0: any byte restores the credit
    window: float = 60.0
    silence: float = 30.0  #: a connection that is silent for so long is given up, if the rest can be had by another
    pause: float = 1.0  #: before the first try after a cut; each next pause is twice as long
    most_pause: float = 16.0


class WebSource:
    """A file at a URL. Use it in one thread; `cancel`, `size` and `received` are for any thread.

    After a cut it asks for the rest by Range. It must be the rest of the same file, as a strong ETag or the time of the
    last change tells, or the size alone if the file is `verified`. Only bytes that were not received are asked for.

    Memory: 64 KiB.
    """

    size: int | None  #: the size of the file in bytes, None while it is not known
    received: int  #: bytes so far

    def __init__(
        self,
        net: Net,
        url: str,
        *,
        cap: int,
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        verified: bool = False,
        pace: Pace | None = None,
        check: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cap` is the largest size in bytes. `secrets` are headers for the origin of the URL only.

        `verified`: the caller compares a hash of all bytes with one that it knew before. Then a file without validators
        is continued after a cut, and an answer whose end is not marked is accepted. `check` is called about twice a
        second while anything waits, and raises if the fetch must stop.
        """
        self.size = None
        self.received = 0
        self._net = net
        self._url = url
        self._cap = cap
        self._headers = dict(headers or {})
        self._secrets = dict(secrets or {})
        self._verified = verified
        self._pace = pace or Pace()
        self._check = check
        self._clock = clock
        self._answer: Answer | None = None
        self._validator: tuple[str, str] | None = None  # the header's name and value
        self._ended = False
        self._cancelled = False
        self._checked = clock()
        self._credit = self._pace.window
        self._silent = 0.0  # how long this connection has been silent
        self._reopening: float | None = None  # since when a connection is being made to go on
        self._cut: Exception | None = None  # why the last connection ended
        self._pause = self._pace.pause
        self._again_at = 0.0
        self._places: list[str] = []  # where the rest can be asked for

    def open(self) -> None:
        """Ask for the file, and set `size` if it is announced.

        Raises `UrlRefused`, `SourceBroken`, `OverLimit` if it is too large, `Busy`, and what `check` raises.
        """
        try:
            answer = self._ask(self._url)
        except errors.FetchFailed as exc:
            raise errors.SourceBroken(str(exc)) from exc
        try:
            if answer.status != 200:
                raise _refused(answer.status)
            if _is_multipart(answer.headers):
                raise errors.SourceBroken(
                    "The URL's server sends parts of a file, which nobody asked for.", lasting=True
                )
            if not answer.marks_end and not self._verified:
                raise errors.SourceBroken(
                    "The URL's server tells neither the size nor the end of its data: what is cut off would not be "
                    "noticed. Give the data's hash as well.",
                    lasting=True,
                )
            self._learn_size(answer.size)
        except BaseException:
            answer.close()
            raise
        self._validator = _validator(answer.headers)
        # The file itself first, which may lead elsewhere this time; then the place that it led to.
        self._places = list(dict.fromkeys([self._url, answer.url]))
        self._answer = answer

    def ready(self, size: int) -> int:
        """As `Source.ready`. Raises `SourceBroken`, `UrlRefused`, and what `check` raises."""
        got = self._read(lambda answer: answer.ready(size, _WAIT))
        if not got and not self._ended:
            self._refuse_slow()
        return 1 if self._ended else got or 0

    def readinto(self, view: memoryview) -> int:
        """As `Source.readinto`. Raises as `ready`, and `OverLimit`."""
        while not self._ended:
            got = self._read(lambda answer: answer.readinto(view, _WAIT))
            if got:
                self._count(got)
            elif got == 0:
                self._finish()
            if not self._ended:
                self._refuse_slow()
            if got:
                return got
        return 0

    def cancel(self) -> None:
        """End the fetch, from any thread. A thread that waits for data gets `SourceBroken` within half a second."""
        self._cancelled = True
        answer = self._answer
        if answer is not None:
            answer.cancel()

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    # --- one connection ----------------------------------------------------------------------------------

    def _read(self, read: Callable[[Answer], int | None]) -> int | None:
        """What `read` returns; None if there is no connection at present."""
        self._heed()
        if self._ended:
            return 0
        if self._answer is None and self._cut is None:
            self.open()
        if self._answer is None:
            self._go_on()
            return None
        started = self._clock()
        try:
            got = read(self._answer)
        except errors.ConnectionCut as exc:
            self._spend(self._clock() - started)
            self._drop(exc)
            return None
        except errors.FetchFailed as exc:
            raise errors.SourceBroken(str(exc), lasting=True) from exc
        waited = self._clock() - started
        self._spend(waited)
        self._silent = 0.0 if got else self._silent + waited
        if self._silent >= self._pace.silence and self._can_go_on():
            self._drop(errors.ConnectionCut("The URL's server fell silent."))
        return got

    def _count(self, got: int) -> None:
        self.received += got
        earned = got / self._pace.rate if self._pace.rate else self._pace.window
        self._credit = min(self._credit + earned, self._pace.window)
        self._pause = self._pace.pause
        if self.received > self._cap:
            raise self._over_limit()
        if self.size is not None and self.received > self.size:
            raise errors.SourceBroken("The URL's server sent more than it announced.", lasting=True)

    def _finish(self) -> None:
        """After the end of an answer: of the file, or of a part of it, when the server sent less than the rest."""
        if self.size is not None and self.received < self.size:
            self._drop(errors.ConnectionCut(f"The URL's server sent {self.received} of {self.size} bytes."))
            return
        self._ended = True
        self.close()

    def _spend(self, seconds: float) -> None:
        self._credit -= seconds

    def _refuse_slow(self) -> None:
        if self._credit > 0:
            return
        if self._cut is not None and self._answer is None:
            raise errors.SourceBroken(f"{self._broke_off()} It did not go on.") from self._cut
        raise errors.SourceBroken(
            f"The URL's server is too slow: it sent fewer than {self._pace.rate} bytes a second for more than "
            f"{self._pace.window:g} seconds, and {self.received} bytes in all.",
            lasting=True,  # who waited so long for it is not made to wait as long again
        )

    def _heed(self) -> None:
        """Raise if the fetch must stop. Called before and while anything waits."""
        now = self._clock()
        if self._check is not None and (self._cancelled or now - self._checked >= _WAIT):
            self._checked = now
            self._check()  # its reason is better than ours
        if self._cancelled:
            raise errors.SourceBroken("The fetch was cancelled.")
        if self._reopening is not None:
            self._spend_reopening(self._reopening)
            self._refuse_slow()

    def _spend_reopening(self, since: float) -> None:
        self._reopening = self._clock()
        self._spend((self._reopening - since) / 2)

    def _ask(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        secrets = self._secrets if parse(url).origin == parse(self._url).origin else {}
        return self._net.open(url, headers={**self._headers, **(headers or {})}, secrets=secrets, heed=self._heed)

    def _learn_size(self, size: int | None) -> None:
        self.size = size if self.size is None else self.size
        if self.size is not None and self.size > self._cap:
            raise self._over_limit()

    def _over_limit(self) -> errors.OverLimit:
        return errors.OverLimit(f"the image is larger than the {self._cap} bytes that are allowed")

    # --- after a cut -------------------------------------------------------------------------------------

    def _can_go_on(self) -> bool:
        return self._verified or self._validator is not None

    def _drop(self, why: Exception) -> None:
        """Give the connection up. Raises `SourceBroken` if the rest cannot be asked for."""
        self.close()
        self._cut = why
        self._heed()  # what ended the fetch is the reason, not that the connection ended
        if not self._can_go_on():
            raise errors.SourceBroken(
                f"{self._broke_off()} It gives neither a strong ETag nor Last-Modified, so that nobody could tell the "
                "rest of this file from that of another one."
            ) from why
        self._silent = 0.0
        self._wait_longer()

    def _broke_off(self) -> str:
        return f"The URL's server broke off after {self.received} of {self.size or 'unknown'} bytes."

    def _wait_longer(self) -> None:
        self._again_at = self._clock() + self._pause
        self._pause = min(2 * self._pause, self._pace.most_pause)

    def _go_on(self) -> None:
        """Make a connection for the rest of the file, or wait for the time to do so."""
        self._reopening = self._clock()
        try:
            if (pause := self._again_at - self._clock()) > 0:
                time.sleep(min(pause, _WAIT))
                self._heed()
                return
            self._answer = self._rest()
        except (errors.FetchFailed, errors.Busy) as exc:
            self._cut = exc
            self._wait_longer()
        finally:
            self._spend_reopening(self._reopening)
            self._reopening = None

    def _rest(self) -> Answer | None:
        """An answer with the rest of the file; None if none came, and one may come later."""
        place = self._places[0]
        headers = {"Range": f"bytes={self.received}-"}
        if self._validator:
            headers["If-Range"] = self._validator[1]
        answer = self._ask(place, headers)
        if answer.status in _PASSING:
            answer.close()
            self._wait_longer()
            return None
        try:
            if answer.status not in (200, 206):
                raise _refused(answer.status)
            self._compare(answer)
        except errors.SourceBroken:
            answer.close()
            self._places.pop(0)
            if not self._places:
                raise
            return None  # the other place is asked at once
        except BaseException:
            answer.close()
            raise
        return answer

    def _compare(self, answer: Answer) -> None:
        """Raise `SourceBroken` unless an answer is the rest of the same file."""
        if self._validator:
            name, value = self._validator
            found = answer.headers.get_all(name, [])
            if found != [value] and (name == "ETag" or found):
                raise errors.SourceBroken("The file at the URL was changed while it was fetched.")
        if answer.status == 200:
            raise errors.SourceBroken(
                f"{self._broke_off()} Then it sent the whole file, not the rest: it was changed, or the server cannot "
                "send parts."
            )
        ranges = answer.headers.get_all("Content-Range", [])
        part = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 and not _is_multipart(answer.headers) else None
        if part is None:
            raise errors.SourceBroken("The URL's server does not say which part of the file it sends.")
        start, last, total = (int(number) for number in part.groups())
        if start != self.received or not start <= last < total or answer.size not in (None, last + 1 - start):
            raise errors.SourceBroken("The URL's server sent another part of the file than it was asked for.")
        if self.size not in (None, total):
            raise errors.SourceBroken("The file at the URL was changed while it was fetched: it has another size.")
        self._learn_size(total)


def _refused(status: int) -> errors.SourceBroken:
    return errors.SourceBroken(f"The URL's server answered {status}.", lasting=status not in _PASSING)


def _is_multipart(headers: HTTPMessage) -> bool:
    return any(one.strip().lower().startswith("multipart/byteranges") for one in headers.get_all("Content-Type", []))


def _validator(headers: HTTPMessage) -> tuple[str, str] | None:
    """The header by which a file can be told from another one at the same URL: its name and value, for If-Range."""
    for name in ("ETag", "Last-Modified"):
        found = headers.get_all(name, [])
        if len(found) == 1 and (_STRONG.fullmatch(found[0]) if name == "ETag" else _is_past(found[0], headers)):
            return name, found[0]
    return None


def _is_past(modified: str, headers: HTTPMessage) -> bool:
    """Whether a file that is changed now would get another time of change (RFC 9110, 8.8.2.2)."""
    try:
        changed = parsedate_to_datetime(modified)
        sent = headers.get("Date")
        return sent is None or parsedate_to_datetime(sent) - changed >= timedelta(seconds=1)
    except (ValueError, TypeError):  # no date; or only one of them has a time zone
        return False


class RemoteImages:
    """The Image service of another region. The token goes to the origin of its endpoint only, and never to a log.

    The caller took the endpoint from a catalog that it trusts, so its host may have a private address.
    """

    def __init__(self, net: Net, endpoint: str, token: str, *, check: Callable[[], object] | None = None) -> None:
        """`check` is as in `WebSource`. Raises `UrlRefused`."""
        self._base = endpoint.rstrip("/").removesuffix("/v2") + "/v2/images/"
        self._net = net.trusting(endpoint)
        self._secrets = {"X-Auth-Token": token}
        self._check = check

    def record(self, image_id: str) -> dict[str, Any]:
        """The record of an image, as its API shows it.

        Raises `UrlRefused`, `SourceBroken` with the reason, `Busy`, and what `check` raises.
        """
        try:
            found = json.loads(self._get(self._base + quote(image_id, safe="")))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise errors.SourceBroken("The other Image service does not answer with an image.", lasting=True)
        return found

    def _get(self, url: str) -> bytes:
        try:
            answer = self._net.open(url, secrets=self._secrets, budget=_MOST_RECORD, heed=self._check)
            with contextlib.closing(answer):
                if answer.status != 200:
                    raise _refused_there(answer.status)
                return b"".join(answer)
        except (errors.FetchFailed, errors.OverLimit) as exc:
            raise errors.SourceBroken(f"The other Image service does not answer as it should: {exc}") from exc

    def data(self, image_id: str, *, cap: int, verified: bool, pace: Pace | None = None) -> WebSource:
        """The data of an image. `verified`: the caller compares the hash that the record has."""
        return WebSource(
            self._net,
            f"{self._base}{quote(image_id, safe='')}/file",
            cap=cap,
            secrets=self._secrets,
            verified=verified,
            pace=pace,
            check=self._check,
        )


def _refused_there(status: int) -> errors.SourceBroken:
    what = _REFUSALS.get(status, f"answered {status}")
    return errors.SourceBroken(f"The other Image service {what}.", lasting=status not in _PASSING)
