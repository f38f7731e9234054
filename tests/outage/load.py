"""Clients at work while the database goes and comes, each with images of its own, and what they may find afterwards.

A client knows what was acknowledged. After an answer that leaves a change open (503, or none) it looks at the image:
the change is there in full or not at all. Whatever else happens is written into `problems`.
"""

import copy
import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.support import Client, Service

#: Answers that leave a change open. Nobody may say 500.
OPEN = (503, 507)


@dataclass
class Known:
    """What an image must be."""

    id: str
    name: str = ""
    tags: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    data: bytes | None = None
    there: bool = True

    def shown(self) -> dict[str, Any]:
        size = None if self.data is None else len(self.data)
        status = "queued" if self.data is None else "active"
        return {"id": self.id, "name": self.name, "tags": sorted(self.tags), "size": size, "status": status}


class Worker(threading.Thread):
    """One client. `last` is when it last heard of a success."""

    def __init__(self, service: Service, seed: int) -> None:
        super().__init__(daemon=True)
        self._client: Client = service.client("alice")
        self._rng = random.Random(seed)
        self._images: dict[str, Known] = {}
        self._over = threading.Event()
        self.problems: list[str] = []
        self.acknowledged: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.resolved: Counter[bool] = Counter()
        self.last = 0.0

    def run(self) -> None:
        try:
            while not self._over.is_set() and len(self.problems) < 20:
                self._step()
            self._check()
        except Exception as exc:
            self.problems.append(f"a client ended: {exc!r}")

    def finish(self) -> None:
        """No more changes: look at every image that there ever was, and end. `join` waits for it."""
        self._over.set()

    def _check(self) -> None:
        listed = self._listed()
        for known in self._images.values():
            if not self._is(known):
                self.problems.append(f"{known.id} is {self._look(known.id)}, not {known}")
            if known.there != (known.id in listed):
                self.problems.append(f"{known.id} exists: {known.there}, is listed: {known.id in listed}")

    # --- requests ----------------------------------------------------------------------------------------

    def _step(self) -> None:
        rng = self._rng
        there = [known for known in self._images.values() if known.there]
        if len(there) < 5:
            return self._change("create", Known(str(uuid.UUID(int=rng.getrandbits(128), version=4))))
        before = rng.choice(there)
        if before.data is None and rng.random() < 0.5:
            return self._change("upload", before)
        what = rng.choice(["patch", "tag", "untag", "share", "unshare", "delete", "list", "show", "download"])
        if what == "list":
            listed = self._ask("list", lambda: self._client.get("/v2/images?limit=1000"), 200)
            ids = {image["id"] for image in listed.json()["images"]} if listed is not None else None
            if ids is not None and (missing := {known.id for known in there} - ids):
                self.problems.append(f"a list lacks {missing}")
        elif what == "show":
            shown = self._ask("show", lambda: self._client.get(f"/v2/images/{before.id}"), 200)
            if shown is not None and not _fits(shown.json(), before):
                self.problems.append(f"shown is {shown.json()}, not {before}")
        elif what == "download":
            wanted = 204 if before.data is None else 200
            got = self._ask("download", lambda: self._client.file(before.id), wanted)
            if got is not None and before.data is not None and got.content != before.data:
                self.problems.append(f"{before.id} is downloaded with wrong bytes")
        else:
            self._change(what, before)
        return None

    def _change(self, what: str, before: Known) -> None:
        after = copy.deepcopy(before)
        client, path, rng = self._client, f"/v2/images/{before.id}", self._rng
        if what == "create":
            before.there = False
            after.name, after.tags = f"n{rng.random()}", {"a", "b"}
            formats = {"disk_format": "raw", "container_format": "bare"}
            self._images[before.id] = before
            self._settle(
                what,
                before,
                after,
                201,
                lambda: client.create(id=after.id, name=after.name, tags=["a", "b"], **formats),
            )
        elif what == "upload":
            after.data = rng.randbytes(rng.choice([1, 2000, 300_000]))[:-2] + b"\0\0"
            self._settle(what, before, after, 204, lambda: client.put(before.id, after.data))
        elif what == "patch":
            after.name = f"n{rng.random()}"
            step = {"op": "replace", "path": "/name", "value": after.name}
            self._settle(what, before, after, 200, lambda: client.patch(before.id, step))
        elif what == "tag":
            after.tags |= {tag := f"t{rng.randrange(9)}"}
            self._settle(what, before, after, 204, lambda: client.request("PUT", f"{path}/tags/{tag}"))
        elif what == "untag" and before.tags:
            tag = rng.choice(sorted(before.tags))
            after.tags -= {tag}
            self._settle(what, before, after, 204, lambda: client.request("DELETE", f"{path}/tags/{tag}"))
        elif what == "share" and "blue" not in before.members:
            after.members |= {"blue"}
            share = {"member": "blue"}
            self._settle(what, before, after, 200, lambda: client.request("POST", f"{path}/members", json=share))
        elif what == "unshare" and before.members:
            after.members -= {"blue"}
            self._settle(what, before, after, 204, lambda: client.request("DELETE", f"{path}/members/blue"))
        elif what == "delete":
            after.there = False
            self._settle(what, before, after, 204, lambda: client.delete(before.id))

    def _settle(self, what: str, before: Known, after: Known, wanted: int, ask: Any) -> None:
        if self._ask(what, ask, wanted) is not None:
            self._images[before.id] = after
            return
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for known in (after, before):
                if self._is(known):
                    self.resolved[known is after] += 1
                    self._images[before.id] = known
                    return
            time.sleep(0.05)
        self.problems.append(f"{what} of {before.id} left {self._look(before.id)}, neither {before} nor {after}")
        self._images[before.id] = after

    def _ask(self, what: str, ask: Any, wanted: int) -> requests.Response | None:
        """The answer if it is the right one."""
        try:
            answer: requests.Response = ask()
        except requests.RequestException as exc:
            self.problems.append(f"{what}: {exc!r}")
            return None
        if answer.status_code == wanted:
            self.acknowledged[what] += 1
            self.last = time.monotonic()
            return answer
        if answer.status_code not in OPEN:
            self.problems.append(f"{what} is answered {answer.status_code}: {answer.text[:200]}")
        self.open[what] += 1
        return None

    # --- looking -----------------------------------------------------------------------------------------

    def _look(self, image_id: str) -> dict[str, Any] | None:
        """What there is; None when there is nothing. Waits for an answer that is one."""
        end = time.monotonic() + 30
        while True:
            shown = self._client.get(f"/v2/images/{image_id}")
            if shown.status_code == 404:
                return None
            if shown.status_code == 200:
                members = self._client.get(f"/v2/images/{image_id}/members")
                data = self._client.file(image_id)
                if members.status_code == 200 and data.status_code in (200, 204):
                    found = dict(shown.json())
                    found["members"] = sorted(member["member_id"] for member in members.json()["members"])
                    found["data"] = data.content if data.status_code == 200 else None
                    return found
            if time.monotonic() > end:
                raise AssertionError(f"nobody can tell what {image_id} is: {shown.status_code}")
            time.sleep(0.05)

    def _is(self, known: Known) -> bool:
        found = self._look(known.id)
        if found is None or not known.there:
            return (found is None) == (not known.there)
        return _fits(found, known) and found["members"] == sorted(known.members) and found["data"] == known.data

    def _listed(self) -> set[str]:
        found: set[str] = set()
        path: str | None = "/v2/images?limit=1000"
        while path:
            page = self._client.get(path).json()
            found |= {image["id"] for image in page["images"]}
            path = page.get("next")
        return found


def _fits(shown: dict[str, Any], known: Known) -> bool:
    return {**shown, "tags": sorted(shown["tags"])}.items() >= known.shown().items()
