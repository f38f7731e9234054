"""Containers of Swift, and the names of what belongs to an image in them. `swift.py` says what each name is."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from calotype import errors
from calotype.stores.swift_account import Account, Reply

LOG = logging.getLogger(__name__)

#: Metadata of an image's object: the attempt that wrote it.
ATTEMPT: Final = "X-Object-Meta-Calotype-Attempt"

NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,254}")
OURS: Final = re.compile(r"(?P<image>[0-9A-Za-z-]+)\.(?P<attempt>[0-9a-zA-Z]+-[0-9]+)(?:-m?[0-9]{5,})?")
GLANCES: Final = re.compile(r"(?P<image>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-[0-9]{5}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a container's listing. `age` is in seconds since the object was written, by Swift's clock."""

    name: str
    age: float


@dataclass(frozen=True, slots=True)
class Place:
    """A container. `name` is that of its account, None for the own one of the login.

    `base` is the URL of the account, if a location tells it.
    """

    account: Account
    container: str
    name: str | None = None
    base: str | None = None

    @property
    def store(self) -> str:
        return self.account.store

    def path(self, object_: str = "") -> str:
        return f"/{quote(self.container, safe='')}" + (f"/{quote(object_, safe='')}" if object_ else "")

    def request(self, method: str, object_: str = "", **more: Any) -> Reply:
        """`Account.request` about an object, or about the container."""
        return self.account.request(method, self.path(object_), account=self.name, **more)

    def head(self, object_: str, *, newest: bool = False) -> Mapping[str, str] | None:
        """The headers of an object; None if there is none. With `newest` all replicas are asked."""
        reply = self.request("HEAD", object_, headers={"X-Newest": "true"} if newest else {}, allowed=(404,))
        return None if reply.status == 404 else reply.headers

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose names have a prefix, in the order of names. Without the container there are none."""
        return pages(self.account, self.path(), self.name, prefix)

    def remove(self, names: Iterable[str], until: float | None = None) -> bool:
        """Remove objects, several at once; those that are gone are no error. False if the time is over before."""
        late = threading.Event()

        def remove(name: str) -> None:
            if until is not None and time.monotonic() > until:
                late.set()
            else:
                self.request("DELETE", name, allowed=(404,))

        self.account.together([(lambda name=name: remove(name)) for name in names])  # type: ignore[misc]
        return not late.is_set()

    def remove_container(self) -> None:
        """It stays if something is in it."""
        self.request("DELETE", allowed=(404, 409), tries=1)

    def left_by(self, mark: str) -> list[str]:
        """What an upload with this mark has put there: the mark, segments, and manifests of segments."""
        return [one.name for one in self.entries(mark) if one.name == mark or one.name.startswith(f"{mark}-")]

    def segments_of(self, image: str, headers: Mapping[str, str]) -> list[str]:
        """The names of an image's segments, by the headers of its object: those that are its own."""
        if headers.get("X-Static-Large-Object", "").lower() == "true":
            return self._listed_in(image)
        container, _, prefix = unquote(headers.get("X-Object-Manifest", "")).partition("/")
        if not prefix:
            return []
        if container != self.container or not re.fullmatch(re.escape(image) + r"(\.[0-9a-zA-Z]+-[0-9]+)?-", prefix):
            self._warn_of_others()
            return []
        # Whoever may write to the container can add other names with this prefix.
        return [one.name for one in self.entries(prefix) if re.fullmatch(re.escape(prefix) + "[0-9]{5,}", one.name)]

    def _listed_in(self, manifest: str, depth: int = 0) -> list[str]:
        reply = self.request("GET", manifest, query="multipart-manifest=get", allowed=(404,))
        if reply.status == 404 or depth > 1:
            return []
        found: list[str] = []
        for entry in parsed(reply.data, self.store):
            container, _, name = str(entry.get("name", "")).lstrip("/").partition("/")
            if container != self.container or not name.startswith((f"{manifest.partition('.')[0]}.", f"{manifest}-")):
                self._warn_of_others()
                continue
            if entry.get("sub_slo"):
                found += self._listed_in(name, depth + 1)
            found.append(name)
        return found

    def _warn_of_others(self) -> None:
        LOG.warning("store %s: a manifest names segments that are not its image's; they stay", self.store)


def pages(account: Account, path: str, name: str | None, prefix: str) -> Iterator[Entry]:
    """The listing of a container, or of an account."""
    marker = ""
    while True:
        query = urlencode({"format": "json", "prefix": prefix, "marker": marker})
        reply = account.request("GET", path, account=name, query=query, allowed=(404,))
        page = parsed(reply.data, account.store) if reply.status == 200 else []
        for entry in page:
            yield Entry(entry["name"], _age(entry, reply.headers))
        if not page:
            return
        marker = page[-1]["name"]


def image_of(name: str) -> str | None:
    """The image that an object has to do with; None for a name that is not of ours."""
    found = OURS.fullmatch(name) or GLANCES.fullmatch(name)
    return found["image"] if found else name if NAME.fullmatch(name) else None


def parsed(data: bytes, store: str) -> Any:
    """The JSON of an answer."""
    try:
        return json.loads(data)
    except ValueError as exc:
        raise errors.StoreUnavailable(f"Store {store} did not answer as Swift does.", store) from exc


def _age(entry: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    changed = entry.get("last_modified")
    if changed is None:
        return 0.0
    now = parsedate_to_datetime(headers["Date"]) if headers.get("Date") else datetime.now(UTC)
    return (now - datetime.fromisoformat(changed).replace(tzinfo=UTC)).total_seconds()
