"""Requests to Swift accounts: tokens and their renewal, retries, and what an answer means in our words.

`Login` says who the service is to one Swift. `Account` sends requests in its name; any thread may use it. `swift.py`
knows how images are laid out. Every request has a connection of its own, so none meets one that the server has closed.
"""

import contextlib
import ipaddress
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from calotype import __version__, errors, net
from calotype.threads import ThreadPool
from calotype.wire import FAILURES, Address, Answer, Heed, Wire, tls_context

LOG = logging.getLogger(__name__)

#: How often a request is sent before its failure counts, and the pause before the second time, seconds. Each further
#: pause is twice as long.
TRIES: Final = 4
_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
#: Answers after which the same request may succeed: a time-out, a conflict of two writers, what was damaged on its way,
#: too many requests, a connection that the server lost, and failures of servers behind the one that answers.
_PASSING: Final = frozenset({408, 409, 422, 429, 498, 499, 500, 502, 503, 504})
_BUSY: Final = frozenset({429, 498})
#: A token is renewed so long before it expires, seconds.
_EARLY: Final = 60.0
_SLICE: Final = 256 << 10
#: How many small requests of one step are sent at once.
_AT_ONCE: Final = 64
_MOST_ADDRESSES: Final = 4
#: The largest answer that is read into memory, bytes: a page of a listing has less.
_MOST_DATA: Final = 64 << 20


class _TooSlow(errors.FetchFailed):
    """Nothing came, or went, for as long as is waited."""


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials for one account. `version` is 1 (tempauth) or 3 (Keystone); `user` is `project:user`.

    `domains` are those of the user and of the project, as Keystone's API names them. An application credential, its id
    and its secret, takes the place of user and key.
    """

    reference: str
    address: str
    version: int
    user: str = ""
    key: str = field(default="", repr=False)
    domains: tuple[Mapping[str, str], Mapping[str, str]] = ({"id": "default"}, {"id": "default"})
    application: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def tenant(self) -> str:
        return self.user.partition(":")[0]


@dataclass(slots=True)
class Network:
    """How Swift and Keystone are reached. Times are in seconds. `endpoint` replaces what authentication tells."""

    connect_timeout: float
    read_timeout: float
    ca_file: str | None = None
    insecure: bool = False
    region: str | None = None
    interface: str = "public"
    service_type: str = "object-store"
    endpoint: str | None = None
    pause: float = _PAUSE
    names: net.NameLookups = field(default_factory=lambda: net.NameLookups(64))
    tls: list[Any] = field(default_factory=list)

    def prepare(self) -> None:
        """Read the certificates. Raises `OSError`."""
        if not self.tls:
            self.tls.append(tls_context(self.ca_file, insecure=self.insecure))

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: "memoryview | bytes | None" = None,
        heed: Heed | None = None,
    ) -> Answer:
        """One request. Raises `FetchFailed` if there is no answer, and what `heed` raises. Close the answer."""
        try:
            target = net.parse(url)
        except errors.UrlRefused as exc:
            raise errors.FetchFailed("The address of the server is not one that can be used.") from exc
        wire = self._connect(target, heed)
        sent = {
            "Host": target.netloc,
            "User-Agent": f"calotype/{__version__}",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        if body is not None or method in ("PUT", "POST"):
            sent["Content-Length"] = str(len(body or b""))
        try:
            wire.set_deadline(time.monotonic() + self.read_timeout)
            pieces = None if body is None else self._pieces(wire, memoryview(body))
            return wire.ask(
                method,
                target.path,
                sent,
                body=pieces,
                url=target.url,
                budget=None,
                min_rate=0,
                patience=self.read_timeout,
                until=None,
            )
        except TimeoutError as exc:
            wire.close()
            raise _TooSlow("The server does not answer in time.") from exc
        except FAILURES as exc:
            wire.close()
            raise errors.FetchFailed("The server did not answer as HTTP servers do.") from exc
        except BaseException:
            wire.close()
            raise

    def _pieces(self, wire: Wire, body: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(body), _SLICE):
            wire.set_deadline(time.monotonic() + self.read_timeout)
            yield body[start : start + _SLICE]
        wire.set_deadline(time.monotonic() + self.read_timeout)

    def _connect(self, target: net.Target, heed: Heed | None) -> Wire:
        until = time.monotonic() + self.connect_timeout
        failure: Exception | None = None
        for address in self._addresses(target, heed)[:_MOST_ADDRESSES]:
            wire = Wire(address, target.port, until, heed)
            try:
                wire.connect()
                if target.scheme == "https":
                    self.prepare()
                    wire.secure(self.tls[0], target.host)
            except FAILURES as exc:
                wire.close()
                failure = exc
            except BaseException:
                wire.close()
                raise
            else:
                return wire
        kind = _TooSlow if isinstance(failure, TimeoutError) else errors.FetchFailed
        raise kind("The server cannot be connected to.") from failure

    def _addresses(self, target: net.Target, heed: Heed | None) -> list[Address]:
        try:
            return [ipaddress.ip_address(target.host)]
        except ValueError:
            pass  # it is a name
        try:
            found = self.names.find(net.resolve, target.host, target.port, self.connect_timeout, heed)
        except (OSError, errors.Busy) as exc:
            raise errors.FetchFailed("The server's name was not found.") from exc
        return [ipaddress.ip_address(one) for one in found]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data or b"null")


@dataclass(frozen=True, slots=True)
class _Session:
    token: str = field(repr=False)
    url: str  #: of the account, without a slash at its end
    project: str  #: the part of the account's name that says whose it is
    until: float

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self.until


class Account:
    """One account of Swift, and others that the same login may use. Thread-safe."""

    def __init__(self, store: str, login: Login, network: Network, threads: ThreadPool) -> None:
        self.login = login
        self.network = network
        self.threads = threads
        self.store = store
        self._lock = threading.Lock()
        self._current: _Session | None = None
        self._failed: tuple[float, errors.StoreError] | None = None

    # --- where -------------------------------------------------------------------------------------------

    def url(self, account: str | None = None, heed: Heed | None = None) -> str:
        """The URL of the login's own account, or of another one of this name. Raises `StoreError`."""
        own = self._session(heed).url
        return own if account is None else f"{own.rpartition('/')[0]}/{quote(account, safe='')}"

    def name(self) -> str:
        """The name of the login's own account."""
        return self.url().rpartition("/")[2]

    def name_for(self, project: str | None) -> str:
        """The name of a project's account; the own one without a project."""
        session = self._session()
        own = session.url.rpartition("/")[2]
        if project is None:
            return own
        if not session.project or not own.endswith(session.project):
            raise errors.StoreError("The accounts of projects cannot be told from the service's own.", self.store)
        return own.removesuffix(session.project) + project

    # --- requests ----------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str = "",
        *,
        account: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: "memoryview | bytes | None" = None,
        allowed: Collection[int] = (),
        heed: Heed | None = None,
        outlast_hangs: bool = False,
        tries: int = TRIES,
    ) -> Reply:
        """Send a request that may be repeated, and read the answer. `path` is quoted, and begins with a slash.

        Answers other than 2xx and those in `allowed` are raised in our words. What may pass is tried again, `tries`
        times in all; a server that hangs only with `outlast_hangs`, and once.
        """

        def ask(session: _Session) -> Reply:
            url = self._join(session, account, path, query)
            answer = self.network.ask(method, url, {"X-Auth-Token": session.token, **(headers or {})}, body, heed)
            try:
                return Reply(answer.status, answer.headers, _data(answer))  # type: ignore[arg-type]
            finally:
                answer.close()

        reply: Reply = self._retried(ask, heed, allowed, outlast_hangs=outlast_hangs, tries=tries)
        return reply

    def open(
        self, path: str, *, account: str | None, headers: Mapping[str, str], allowed: Collection[int], heed: Heed
    ) -> Answer:
        """GET an object. The caller reads the answer, and closes it."""

        def ask(session: _Session) -> Answer:
            url = self._join(session, account, path, "")
            return self.network.ask("GET", url, {"X-Auth-Token": session.token, **headers}, None, heed)

        answer: Answer = self._retried(ask, heed, allowed)
        return answer

    def _join(self, session: _Session, account: str | None, path: str, query: str) -> str:
        base = session.url if account is None else f"{session.url.rpartition('/')[0]}/{quote(account, safe='')}"
        return f"{base}{path}{'?' if query else ''}{query}"

    def _retried(
        self,
        ask: Callable[[_Session], Any],
        heed: Heed | None,
        allowed: Collection[int],
        *,
        outlast_hangs: bool = False,
        tries: int = TRIES,
    ) -> Any:
        renewed = False
        number = 0
        while True:
            session = self._session(heed)
            number += 1
            wait = 0.0
            try:
                answer = ask(session)
            except errors.FetchFailed as exc:
                slow = isinstance(exc, _TooSlow)
                if number >= tries or (slow and not outlast_hangs):
                    raise errors.StoreUnavailable(f"Store {self.store} cannot be reached.", self.store) from exc
                outlast_hangs = outlast_hangs and not slow
                LOG.warning("store %s: a request is sent again: %s", self.store, errors.reason(exc))
            else:
                status = answer.status
                if status // 100 == 2 or status in allowed:
                    return answer
                if isinstance(answer, Answer):
                    answer.close()
                if status == 401 and not renewed:
                    renewed = True
                    number -= 1
                    self._forget(session)
                    continue
                if status not in _PASSING or number >= tries:
                    raise self.failure(status)
                wait = _seconds(answer.headers.get("Retry-After"))
                LOG.warning("store %s answered %d: the request is sent again", self.store, status)
            _pause(max(wait, min(self.network.pause * 2 ** (number - 1), _LONGEST_PAUSE)), heed)

    def failure(self, status: int) -> errors.StoreError:
        """What an answer means."""
        name = self.store
        if status in (401, 403):
            return errors.StoreUnavailable(f"Store {name} refuses the service's credentials.", name)
        if status in (404, 410):
            return errors.Missing("The image's data is not in the store.", name)
        if status in (413, 507):
            return errors.StoreFull("The store has no room for this image.", name)
        if status == 412:
            return errors.AlreadyStored("The store already holds an object of this name.", name)
        if status in _BUSY:
            return errors.StoreBusy(f"Store {name} asks for fewer requests.", name)
        if status in _PASSING or status >= 500:
            return errors.StoreUnavailable(f"Store {name} answered {status}.", name)
        return errors.StoreError(f"Store {name} answered {status}.", name)

    def together(self, steps: Sequence[Callable[[], object]]) -> None:
        """Run all steps, several at once. Raises the first failure when all have ended."""
        if len(steps) < 2:
            for step in steps:
                step()
            return
        waiting = iter(steps)
        lock = threading.Condition()
        failures: list[BaseException] = []
        running = 0

        def work() -> None:
            nonlocal running
            while True:
                with lock:
                    step = next(waiting, None)
                    if step is None:
                        return
                    running += 1
                try:
                    step()
                except BaseException as exc:  # noqa: BLE001 - raised below
                    failures.append(exc)
                with lock:
                    running -= 1
                    lock.notify_all()

        for _ in range(min(_AT_ONCE, len(steps)) - 1):
            with contextlib.suppress(RuntimeError):  # the system gives no thread: this one does it
                self.threads.submit(work)
        work()
        with lock:
            lock.wait_for(lambda: not running)
        if failures:
            raise failures[0]

    # --- tokens ------------------------------------------------------------------------------------------

    def _session(self, heed: Heed | None = None) -> _Session:
        current = self._current
        if current is not None and current.is_fresh:
            return current
        asked = time.monotonic()
        with self._lock:  # one authenticates for all
            if self._current is not None and self._current.is_fresh:
                return self._current
            if self._failed is not None and self._failed[0] >= asked:  # while this one waited for its turn
                failure = self._failed[1]
                raise type(failure)(str(failure), self.store) from failure.__cause__
            try:
                self._current = self._authenticated(heed)
            except errors.StoreError as exc:
                self._failed = time.monotonic(), exc
                raise
            self._failed = None
            return self._current

    def _forget(self, session: _Session) -> None:
        """The token is not valid any more. Another thread may have a new one already."""
        with self._lock:
            if self._current is session:
                self._current = None

    def _authenticated(self, heed: Heed | None) -> _Session:
        try:
            session = self._by_keystone(heed) if self.login.version == 3 else self._by_tempauth(heed)
        except errors.FetchFailed as exc:
            raise errors.StoreUnavailable(f"Store {self.store} gets no token now.", self.store) from exc
        except (KeyError, TypeError, ValueError, StopIteration) as exc:
            raise errors.StoreUnavailable(f"Store {self.store} was given a token of no use.", self.store) from exc
        return session

    def _by_tempauth(self, heed: Heed | None) -> _Session:
        headers = {"X-Auth-User": self.login.user, "X-Auth-Key": self.login.key}
        reply = self._ask_for_token("GET", self.login.address, headers, None, heed)
        lasts = float(reply.headers.get("X-Auth-Token-Expires") or 3600)
        url = self.network.endpoint or reply.headers["X-Storage-Url"]
        return _Session(reply.headers["X-Auth-Token"], url.rstrip("/"), self.login.tenant, _end(lasts))

    def _by_keystone(self, heed: Heed | None) -> _Session:
        login = self.login
        asked: dict[str, Any]
        if login.application is not None:
            identity, secret = login.application
            method = {"application_credential": {"id": identity, "secret": secret}}
            asked = {"identity": {"methods": ["application_credential"], **method}}
        else:
            project, _, name = login.user.partition(":")
            user = {"name": name, "domain": login.domains[0], "password": login.key}
            asked = {"identity": {"methods": ["password"], "password": {"user": user}}}
            asked["scope"] = {"project": {"name": project, "domain": login.domains[1]}}
        address = login.address.rstrip("/").removesuffix("/v2.0")
        address = address if address.endswith("/v3") else f"{address}/v3"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        body = json.dumps({"auth": asked}).encode()
        reply = self._ask_for_token("POST", f"{address}/auth/tokens", headers, body, heed)
        token = reply.json()["token"]
        url = self.network.endpoint or next(_endpoints(token, self.network))
        begins, ends = (datetime.fromisoformat(token[name]) for name in ("issued_at", "expires_at"))
        lasts = (ends - begins).total_seconds()  # by the clock of Keystone alone
        project = token["project"]["id"]
        return _Session(reply.headers["X-Subject-Token"], url.rstrip("/"), project, _end(lasts))

    def _ask_for_token(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, heed: Heed | None
    ) -> Reply:
        for number in range(1, TRIES + 1):
            answer = self.network.ask(method, url, headers, body, heed)
            try:
                reply = Reply(answer.status, answer.headers, _data(answer))  # type: ignore[arg-type]
            finally:
                answer.close()
            if reply.status // 100 == 2:
                return reply
            if reply.status not in _PASSING or number == TRIES:
                break
            _pause(min(self.network.pause * 2 ** (number - 1), _LONGEST_PAUSE), heed)
        if reply.status in (400, 401, 403, 404):
            raise errors.StoreUnavailable(f"Store {self.store}: its credentials were refused.", self.store)
        raise errors.StoreUnavailable(f"Store {self.store} gets no token now.", self.store)


def _endpoints(token: Mapping[str, Any], network: Network) -> Iterator[str]:
    for service in token["catalog"]:
        if service["type"] == network.service_type:
            for endpoint in service["endpoints"]:
                region = endpoint.get("region_id") or endpoint.get("region")
                if endpoint["interface"] == network.interface and network.region in (None, region):
                    yield endpoint["url"]


def _end(lasts: float) -> float:
    """When a token that lasts so many seconds must be renewed."""
    return time.monotonic() + max(lasts - _EARLY, lasts / 2)


def _data(answer: Answer) -> bytes:
    found = bytearray()
    if answer.size == 0:
        return b""
    try:
        for piece in answer:
            found += piece
            if len(found) == answer.size:
                break  # without a look whether the server sends more
            if len(found) > _MOST_DATA:
                raise errors.FetchFailed("The server's answer is too long.")
    except errors.ConnectionCut:
        raise
    except errors.FetchFailed as exc:
        raise _TooSlow("The server does not end its answer in time.") from exc
    return bytes(found)


def _seconds(text: str | None) -> float:
    """The value of a `Retry-After`."""
    return min(float(text), _LONGEST_PAUSE) if text and text.isdigit() else 0.0


def _pause(seconds: float, heed: Heed | None) -> None:
    until = time.monotonic() + seconds
    while (remaining := until - time.monotonic()) > 0:
        time.sleep(min(remaining, 0.2))
        if heed is not None:
            heed()
