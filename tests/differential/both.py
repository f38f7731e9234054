"""Sends what the script asks to both services, one request at a time, and keeps what differs."""

import http.client
import json as json_
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.differential.answers import Answer, Difference, compare, facts

_NONE: Any = object()
_PATIENCE = 60.0  #: seconds that work which goes on after an answer may take
_LONG = re.compile(r"(.)\1{40,}")


@dataclass
class Side:
    """One of the two: where it is, and the headers by which it knows each caller."""

    url: str
    callers: Mapping[str | None, Mapping[str, str]]
    root: str = ""  #: directory of its stores, which some answers tell
    ids: dict[str, str] = field(default_factory=dict)  #: what it made, by the names that the script gave

    def place(self, path: str) -> str:
        """A path of the script, with the ids of this side."""
        return re.sub(r"\{(\w+)\}", lambda name: self.ids[name[1]], path)

    def send(self, method: str, path: str, headers: Mapping[str, str], data: bytes | list[bytes] | None) -> Answer:
        """One request on a connection of its own, and the whole answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if isinstance(data, list):
                connection.putheader("Transfer-Encoding", "chunked")
            elif data is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data, encode_chunked=isinstance(data, list))
            answer = connection.getresponse()
            seen: dict[str, str] = {}
            for name, value in answer.getheaders():
                seen[name.lower()] = f"{seen[name.lower()]}, {value}" if name.lower() in seen else value
            return Answer(answer.status, seen, answer.read())
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return Answer(0, {}, b"")  # the service hung up without a word
        finally:
            connection.close()


class Both:
    """What a script is given to ask. `differences` fills up; `number` counts the requests."""

    def __init__(self, glance: Side, calotype: Side, projects: Mapping[str, str], web: str) -> None:
        self.glance, self.calotype, self.web = glance, calotype, web
        self.section = ""
        self.show = ""  #: of which requests to print the answers as they came; a regular expression
        self.number = 0
        self.differences: list[Difference] = []
        self.statuses: dict[int, int] = {}
        self._projects = projects

    def project(self, user: str) -> str:
        return self._projects[user]

    def until(self, path: str, condition: Callable[[Any], bool]) -> None:
        ends = ["in time" if self._comes(side, path, condition) else "never" for side in (self.glance, self.calotype)]
        if "never" in ends:
            self.differences.append(Difference(f"{self.section}: until {path}", "end", *ends))

    def _comes(self, side: Side, path: str, condition: Callable[[Any], bool]) -> bool:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            answer = side.send("GET", side.place(path), side.callers["admin"], None)
            if answer.status == 200 and condition(json_.loads(answer.body)):
                return True
            time.sleep(0.1)
        return False

    def __call__(
        self,
        who: str | None,
        method: str,
        path: str,
        *,
        json: Any = _NONE,
        data: bytes | list[bytes] | None = None,
        headers: Mapping[str, str] = {},
        keep: str = "",
    ) -> None:
        if json is not _NONE:
            data = json_.dumps(json).encode()
            headers = {"Content-Type": "application/json"} | headers
        self.number += 1
        label = self._label(who, method, path, headers, data)
        found = []
        for side in (self.glance, self.calotype):
            sent = {"Accept": "application/json"} | side.callers[who] | headers
            answer = side.send(method, side.place(path), {name: value for name, value in sent.items() if value}, data)
            if keep and answer.status == 201:
                side.ids[keep] = json_.loads(answer.body)["id"]
            if self.show and re.search(self.show, label):
                print(f"{label}\n  {answer}\n", flush=True)
            found.append(facts(method, answer, {side.url: "<url>", side.root: "<root>", self.web: "<web>"}))
        self.statuses[int(found[0]["status"])] = self.statuses.get(int(found[0]["status"]), 0) + 1
        self.differences += compare(label, *found)

    def _label(self, who: str | None, method: str, path: str, headers: Mapping[str, str], data: Any) -> str:
        """What tells a request from others, in the report and in `differences.py`."""
        parts = [f"{self.section}: {who or 'anybody'} {method} {path}"]
        parts += [f"{name}: {value}" for name, value in headers.items()]
        if isinstance(data, list):
            parts.append(f"{len(data)} chunks")
        elif data is not None:
            parts.append(data.decode() if len(data) < 4096 and data.isascii() else f"{len(data)} bytes {data[:40]!r}")
        text = _LONG.sub(lambda found: f"{found[1]}*{len(found[0])}", " | ".join(parts).replace(self.web, "<web>"))
        return text if len(text) < 400 else f"{text[:400]}…"
