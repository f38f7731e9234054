"""Writes one image into Swift. `swift.py` says which objects there are meanwhile, and why."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from calotype import errors
from calotype.buffers import Budget, Piece
from calotype.stores.base import Stored
from calotype.stores.parts import Parts
from calotype.stores.swift_account import Reply
from calotype.stores.swift_objects import ATTEMPT, Place, parsed
from calotype.stores.swift_read import length_of

#: When what an upload left expires by itself, seconds.
EXPIRY: Final = 7 * 86400


@dataclass(frozen=True, slots=True)
class Plan:
    """How an image is laid out. Sizes are in bytes.

    From `large` on it has segments of the size `segment`. `at_once` are sent at the same time, `most` are in one
    manifest. Without `static` the manifest is that of a dynamic large object.
    """

    large: int
    segment: int
    at_once: int
    most: int
    static: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    name: str
    size: int
    etag: str


class SwiftWrite:
    """`Write` of one image."""

    window = Parts.window

    def __init__(
        self,
        place: Place,
        image_id: str,
        attempt: str,
        plan: Plan,
        *,
        memory: Budget,
        note: Callable[[], object],
        make_container: Callable[[], object],
        url: Callable[[], str],
        lone: bool,
    ) -> None:
        """`make_container` is called if it is missing. `lone`: the container is for this image alone.

        `note` saves where it is, `url` returns its location.
        """
        self._place, self._image_id, self._attempt, self._plan = place, image_id, attempt, plan
        self._note, self._make_container, self._url, self._lone = note, make_container, url, lone
        self._mark = f"{image_id}.{attempt}"
        self._names: list[str] = []  # what may be there of it, besides the image
        self._finishing = self._done = False
        self._parts: Parts[_Segment] = Parts(
            self._send,
            size=lambda _: plan.segment,
            at_once=plan.at_once,
            memory=memory,
            threads=place.account.threads,
            store=place.store,
        )

    def mark(self) -> None:
        """Make the mark, and the container if need be."""
        self._names.append(self._mark)
        headers = {"X-Delete-After": str(EXPIRY)}
        if self._request("PUT", self._mark, headers=headers, body=b"", allowed=(404,)).status == 404:
            self._make_container()
            self._request("PUT", self._mark, headers=headers, body=b"")

    def put(self, piece: Piece) -> None:
        self._parts.put(piece)

    def commit(self) -> Stored:
        if not self._finish_whole():
            segments = self._parts.finish()
            self._keep([one.name for one in segments])
            if self._plan.static:
                self._join(segments)
            else:
                prefix = quote(f"{self._place.container}/{self._mark}-")
                self._finish(b"", {"X-Object-Manifest": prefix})
        self._done = True
        self._parts.close()
        return Stored(self._url(), self._parts.total, object_id=self._attempt)

    def _finish_whole(self) -> bool:
        """Store a small image as one object; False if it needs segments."""
        whole = self._parts.whole()
        if whole is None:
            return False
        with whole:
            if len(whole) >= self._plan.large:
                return False
            self._finish(whole, {"ETag": _md5(whole)})
            return True

    def abort(self) -> None:
        if self._done:
            return
        self._parts.close()
        place = self._place
        place.remove(self._names)
        if self._finishing:
            found = place.head(self._image_id, newest=True)
            if found is not None and found.get(ATTEMPT) == self._attempt:
                place.remove([self._image_id])
        if self._lone:
            place.remove_container()
        self._done = True

    # --- segments ----------------------------------------------------------------------------------------

    def _send(self, number: int, data: memoryview) -> _Segment:
        name = f"{self._mark}-{number:05}"
        self._names.append(name)
        etag = _md5(data)
        headers = {"ETag": etag, "X-Delete-After": str(EXPIRY)}
        self._request("PUT", name, headers=headers, body=data, outlast_hangs=True)
        return _Segment(name, len(data), etag)

    def _keep(self, names: Iterable[str]) -> None:
        """Let segments not expire: metadata that is set without an expiry has none. Raises `Gone` if one is missing."""

        def keep(name: str) -> None:
            if self._request("POST", name, allowed=(404,)).status == 404:
                raise self._gone()

        self._place.account.together([(lambda name=name: keep(name)) for name in names])  # type: ignore[misc]

    def _join(self, segments: Sequence[_Segment]) -> None:
        """Write the manifest; if there are more segments than one may list, one of manifests."""
        most = self._plan.most
        if len(segments) > most:
            groups = [segments[start : start + most] for start in range(0, len(segments), most)]
            joined: list[_Segment] = []
            for number, group in enumerate(groups, 1):
                name = f"{self._mark}-m{number:05}"
                self._names.append(name)
                reply = self._request(
                    "PUT", name, query="multipart-manifest=put", body=self._manifest(group), allowed=(400,)
                )
                self._check_manifest(reply.status, reply.data)
                joined.append(_Segment(name, sum(one.size for one in group), reply.headers["ETag"].strip('"')))
            segments = joined
        # The server looks at every segment; meanwhile it says that it is alive.
        self._finish(self._manifest(segments), {"Accept": "application/json"}, "multipart-manifest=put&heartbeat=on")

    def _manifest(self, segments: Iterable[_Segment]) -> bytes:
        container = self._place.container
        return json.dumps(
            [{"path": f"/{container}/{one.name}", "size_bytes": one.size, "etag": one.etag} for one in segments]
        ).encode()

    def _check_manifest(self, status: int, data: bytes) -> None:
        """Raise unless a manifest was accepted."""
        if status // 100 == 2:
            return
        if status == 400 and b"404" in data:
            raise self._gone()
        raise self._place.account.failure(status)

    # --- the end -----------------------------------------------------------------------------------------

    def _finish(self, body: "memoryview | bytes", headers: Mapping[str, str], query: str = "") -> None:
        """Make the object of the image's name, unless there is one, and see that it is ours and the writer's right."""
        self._note()
        self._finishing = True
        headers = {"If-None-Match": "*", ATTEMPT: self._attempt, "Content-Type": "application/octet-stream", **headers}
        reply = self._request(
            "PUT", self._image_id, query=query, headers=headers, body=body, allowed=(400, 412), outlast_hangs=True
        )
        status, data = reply.status, reply.data
        if "heartbeat" in query and status == 202:
            told = parsed(data, self._place.store)
            status = int(str(told.get("Response Status", "500")).split()[0])
        if status != 412:  # it may be ours, from a try whose answer was lost: that is looked at below
            self._check_manifest(status, data)
        held: list[bool] = []
        found: list[Mapping[str, str] | None] = []
        place = self._place

        def unmark() -> None:
            # If the answer to a first try was lost, nobody knows who removed the mark: then it is not taken as held.
            held.append(self._request("DELETE", self._mark, allowed=(404,)).status != 404)

        place.account.together([unmark, lambda: found.append(place.head(self._image_id, newest=True))])
        if found[0] is None or not held[0]:
            raise self._gone()
        if found[0].get(ATTEMPT) != self._attempt:
            raise errors.AlreadyStored("The store already holds an object of this name.", place.store)
        if length_of(found[0], place.store) != self._parts.total:
            raise errors.StoreError("The store has not kept all of the image.", place.store)

    def _gone(self) -> errors.Gone:
        return errors.Gone("The upload was given up while data was arriving.")

    def _heed(self) -> None:
        if self._parts.cancelled.is_set():
            raise errors.Gone("The upload was given up while data was arriving.")

    def _request(self, method: str, name: str, **more: Any) -> Reply:
        return self._place.request(method, name, heed=self._heed, **more)


def _md5(data: "memoryview | bytes") -> str:
    """What Swift compares an object with, against damage on the way. Nothing is decided by it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
