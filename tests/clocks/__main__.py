"""The long form: two hosts whose clocks lie, under load; then their database is away, and one of them is stopped.

`python -m tests.clocks --database mariadb --seconds 120`
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import requests

from tests.clocks.hosts import Host, Load, drip, left, step_clocks, two_hosts
from tests.databases import KINDS, Server, synced


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clocks", description="two hosts whose clocks lie")
    parser.add_argument("--database", choices=KINDS[1:], default="mariadb", help="default mariadb")
    parser.add_argument("--seconds", type=float, default=120, help="of load while clocks are set; default 120")
    parser.add_argument("--away", type=float, default=45, help="seconds that the database hangs; default 45")
    parser.add_argument("--stopped", type=float, default=60, help="seconds that a host is stopped; default 60")
    options = parser.parse_args()
    state = Path(tempfile.mkdtemp(prefix="calotype-clocks-"))
    server = Server(options.database).start()
    url = synced(server.reserved())
    problems: list[str] = []
    with two_hosts(state, url) as hosts:
        if options.seconds:
            problems += clocks(hosts, options.seconds)
        if options.away:
            problems += outage(hosts, server, options.away)
        if options.stopped:
            problems += stop(hosts, options.stopped)
        problems += left(url, state / "store")
        problems += [f"{host.name} has a traceback in its log" for host in hosts if "Traceback" in host.log]
    server.remove()
    print("\n".join(problems[:20]) or "nothing is wrong")
    print(f"state in {state}")
    return 1 if problems else 0


def clocks(hosts: list[Host], seconds: float) -> list[str]:
    """Uploads that are longer than a beat, deletes and lists, while clocks are ten minutes apart and set."""
    assert hosts[1].clock
    hosts[1].clock.shift(600)
    load = Load(hosts, upload_seconds=12, threads=4)
    load.begin()
    time.sleep(seconds / 2)  # ten minutes apart, and otherwise right
    step_clocks(hosts, seconds / 2, pause=4)
    load.end()
    print(f"clocks: {dict(load.answers)}, {len(load.problems)} failed", flush=True)
    return load.problems


def outage(hosts: list[Host], server: Server, seconds: float) -> list[str]:
    """Uploads begin, the database hangs, and they end after it came back: each of them well."""
    uploads = Uploads(hosts, count=4, seconds=seconds + 25)
    time.sleep(8)
    with server.paused():
        time.sleep(seconds)
    answers, problems = uploads.end()
    print(f"the database was away for {seconds:g} s: {dict(answers)}, {len(problems)} wrong", flush=True)
    return problems + ([] if set(answers) == {(204, "active")} else [f"uploads over an outage: {answers}"])


def stop(hosts: list[Host], seconds: float) -> list[str]:
    """One host is stopped in mid-upload: the other one takes over what is its own, and nobody loses anything else."""
    first = Uploads(hosts[:1], count=4, seconds=20)
    second = Uploads(hosts[1:], count=4, seconds=seconds + 20)
    time.sleep(8)
    with hosts[0].stopped():
        time.sleep(seconds)
    answers, problems = first.end()
    others, more = second.end()
    print(f"a host was stopped for {seconds:g} s: {dict(answers)}, on the other one {dict(others)}", flush=True)
    if set(others) != {(204, "active")}:
        more.append(f"uploads to the host that went on: {others}")
    return problems + more


class Uploads:
    """Uploads that begin at once, to each of some hosts."""

    def __init__(self, hosts: list[Host], count: int, seconds: float) -> None:
        self._results: list[tuple[int, str]] = []
        self._problems: list[str] = []
        self._threads = []
        for host in hosts:
            for number in range(count):
                thread = threading.Thread(target=self._one, args=(host, number, seconds), daemon=True)
                thread.start()
                self._threads.append(thread)

    def end(self) -> tuple[Counter[tuple[int, str]], list[str]]:
        """How many were answered with which code and left the image in which status; and what is wrong."""
        for thread in self._threads:
            thread.join(200)
        if len(self._results) != len(self._threads):
            self._problems.append(f"{len(self._threads) - len(self._results)} clients have no answer")
        return Counter(self._results), self._problems

    def _one(self, host: Host, number: int, seconds: float) -> None:
        client = host.client()
        content = bytes([number]) * 100_000
        try:
            image_id = client.queued()
            code = client.put(image_id, drip(content, seconds)).status_code
        except (requests.RequestException, AssertionError) as exc:
            self._problems.append(f"{host.name}: {exc!r}")
            return
        end = time.monotonic() + 40
        while (status := client.show(image_id)["status"]) == "saving" and time.monotonic() < end:
            time.sleep(0.5)
        self._results.append((code, status))
        if (code == 204) != (status == "active") or status == "saving":
            self._problems.append(f"image {image_id}: answered {code}, and is {status}")
        if status == "active" and client.file(image_id).content != content:
            self._problems.append(f"image {image_id} has other bytes")
        client.delete(image_id)


if __name__ == "__main__":
    sys.exit(main())
