"""The memory outside of the service: which images were asked for, with which contents, and what was acknowledged.

Every request is written down before it is sent, every answer when it came. Each image has at most one edit and one
delete under way, so that the journal can tell every state that a crash may leave: what was acknowledged is there,
what was sent without an answer is there in full or not at all.
"""

import functools
import hashlib
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import requests

from tests.support import Client

MIB = 1 << 20
_LARGEST = 24 * MIB


@functools.cache
def _pool() -> bytes:
    return random.Random(5).randbytes(_LARGEST + 2 * MIB)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that can be made again at any time; two contents with different seeds differ."""

    seed: int
    size: int

    def data(self) -> bytes:
        start = self.seed * 4099 % (2 * MIB)
        data = bytearray(memoryview(_pool())[start : start + self.size])
        stamp = self.seed.to_bytes(8, "big")
        data[: min(8, self.size)] = stamp[-self.size :] if 0 < self.size < 8 else stamp[: self.size]
        if self.size >= 512:
            data[510:512] = b"\0\0"  # By chance it might be the signature of a partition table.
        return bytes(data)

    @property
    def sha512(self) -> str:
        return _sha512(self)


@functools.lru_cache(maxsize=4096)
def _sha512(content: Content) -> str:
    return hashlib.sha512(content.data()).hexdigest()


def some_content(rng: random.Random) -> Content:
    """Sizes at which something changes (nothing, one buffer, ring of buffers), and anything up to 24 MiB."""
    kind = rng.random()
    if kind < 0.1:
        size = rng.choice([0, 1, 511, 512])
    elif kind < 0.6:
        size = rng.randrange(1, 64 << 10)
    elif kind < 0.7:
        size = MIB + rng.choice([-1, 0, 1])
    elif kind < 0.92:
        size = rng.randrange(MIB, 6 * MIB)
    else:
        size = rng.randrange(6 * MIB, _LARGEST + 1)
    return Content(rng.getrandbits(62), size)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a record, applied in full or not at all."""

    name: str | None = None
    properties: tuple[tuple[str, str], ...] = ()
    add_tag: str | None = None
    remove_tag: str | None = None


@dataclass
class Entry:
    """What is known of one image. `maybe` are contents sent without an answer yet; `edit` and `deleting` likewise."""

    id: str
    name: str
    properties: dict[str, str]
    tags: set[str]
    created: bool = False
    content: Content | None = None
    maybe: list[Content] = field(default_factory=list)
    edit: Edit | None = None
    deleting: bool = False
    deleted: bool = False

    @property
    def living(self) -> bool:
        return self.created and not self.deleted and not self.deleting

    def apply(self, edit: Edit) -> None:
        self.name = edit.name or self.name
        self.properties |= dict(edit.properties)
        self.tags = (self.tags | ({edit.add_tag} if edit.add_tag else set())) - {edit.remove_tag or ""}

    def record(self, edit: Edit | None = None) -> dict[str, Any]:
        """The attributes that clients set, as the API shows them, with an edit or without."""
        copy = Entry(self.id, self.name, dict(self.properties), set(self.tags))
        if edit:
            copy.apply(edit)
        return {"name": copy.name, "tags": sorted(copy.tags), **copy.properties}


class Journal:
    """Every image ever asked for. Take `lock` to read or change entries.

    A file that exists is read: its lines tell all that was asked for and answered so far. Half a line at its end was
    never written: nobody has sent or been answered what it tells.
    """

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()
        self.entries: dict[str, Entry] = {}
        self.problems: list[str] = []
        self.acknowledged = 0
        self.users: dict[str, str] = {}  #: users that must be there, with their passwords
        self.touched: set[str] = set()  #: images of which something was asked since this was cleared
        lines, _, half = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        for line in lines.splitlines():
            self._remember(**json.loads(line))
        if half:
            os.truncate(path, path.stat().st_size - len(half))
        self._file: TextIO = path.open("a")

    def write(self, what: str, image_id: str, **facts: Any) -> None:
        """One line, for whoever has to find out what happened."""
        self.touched.add(image_id)
        self._file.write(json.dumps({"at": round(time.time(), 4), "what": what, "image": image_id, **facts}) + "\n")
        self._file.flush()

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self.write("problem", "", text=text)

    def user(self, name: str, password: str) -> None:
        """Whoever added this user was told that it is done."""
        self.users[name] = password
        self.write("user", "", name=name, password=password)

    def _remember(self, what: str, image: str, status: int = 0, **facts: Any) -> None:
        """What `load.py` did to the entry of an image when it wrote this line."""
        entry = self.entries.get(image)
        if what == "create":
            self.entries[image] = Entry(image, facts["name"], facts["properties"], set(facts["tags"]))
        if what == "user":
            self.users[facts["name"]] = facts["password"]
        if entry is None:
            return
        done = 200 <= status < 300
        match what:
            case "create answered":
                entry.created = done
            case "upload":
                entry.maybe.append(Content(facts["seed"], facts["size"]))
            case "upload answered":
                content = next(one for one in entry.maybe if one.seed == facts["seed"])
                entry.maybe.remove(content)
                entry.content = content if done else entry.content
            case "edit":
                properties = tuple((name, value) for name, value in facts["edit"].pop("properties"))
                entry.edit = Edit(properties=properties, **facts["edit"])
            case "edit answered":
                if done and entry.edit:
                    entry.apply(entry.edit)
                entry.edit = None
            case "delete":
                entry.deleting = True
            case "delete answered":
                entry.deleted, entry.deleting = done, False
            case "trim":
                entry.deleted = True
        self.acknowledged += done

    def close(self) -> None:
        self._file.close()

    def answered(self, what: str, entry: Entry, status: int, *allowed: int, **facts: Any) -> bool:
        """Note an answer, with `lock` held. Whether it says that the request was carried out."""
        self.write(f"{what} answered", entry.id, status=status, **facts)
        if status not in allowed:
            self.problem(f"{what} of image {entry.id} answered {status}")
        if status < 300:
            self.acknowledged += 1
        return status < 300

    def living(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.living]

    def buried(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.deleted]


def create(client: Client, entry: Entry) -> requests.Response:
    """Ask for the record of an entry."""
    formats = {"disk_format": "raw", "container_format": "bare"}
    return client.create(id=entry.id, **formats, name=entry.name, tags=sorted(entry.tags), **entry.properties)
