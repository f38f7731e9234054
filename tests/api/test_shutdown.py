"""SIGTERM and SIGHUP while the service is at work."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from tests.support import Client, Service, names, running, write_users

pytestmark = pytest.mark.slow

GRACE = 4
#: Seconds that a transfer takes: some end within the grace, some do not, and some would not for a long time.
QUICK, SLOW = 2.0, 60.0
DATA = random.Random(4).randbytes(4 << 20)
CONF = f"[server]\ngraceful_timeout = {GRACE}\n"


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


# --- the end ---------------------------------------------------------------------------------------------


def _upload(client: Client, image_id: str, seconds: float) -> int:
    """The status of an upload that takes so long; 0 if the connection broke."""

    def drip() -> Iterator[bytes]:
        for at in range(0, len(DATA), 64 << 10):
            yield DATA[at : at + (64 << 10)]
            time.sleep(seconds * (64 << 10) / len(DATA))

    with contextlib.suppress(requests.RequestException):
        return client.put(image_id, drip()).status_code
    return 0


def _download(client: Client, image_id: str, seconds: float) -> bytes | None:
    """The data of an image, taken in so long; nothing if it was cut."""
    with contextlib.suppress(requests.RequestException):
        answer = client.get(f"/v2/images/{image_id}/file", stream=True)
        pieces = []
        for piece in answer.iter_content(2 << 20):
            pieces.append(piece)
            time.sleep(seconds * len(piece) / (32 << 20))
        return b"".join(pieces)
    return None


def test_20_transfers_are_finished_within_the_grace_or_fail_cleanly(state: Path) -> None:
    with running(state, CONF) as service:
        alice = service.client()
        large = DATA * 8  # more than the system's buffers hold
        there = alice.active(large)
        waiting = [alice.queued() for _ in range(12)]
        results: dict[Any, Any] = {}

        def transfer(work: Callable[..., Any], key: Any, image_id: str, seconds: float) -> threading.Thread:
            def run() -> None:
                results[key] = work(service.client(), image_id, seconds)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        pace = [QUICK if number % 2 else SLOW for number in range(20)]
        threads = [transfer(_upload, image_id, image_id, pace[n]) for n, image_id in enumerate(waiting)]
        threads += [transfer(_download, n, there, pace[n]) for n in range(12, 20)]
        until(lambda: all(alice.show(image_id)["status"] == "saving" for image_id in waiting))
        begin = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begin < SLOW / 3
        for thread in threads:
            thread.join(30)

        for number, image_id in enumerate(waiting):
            assert results[image_id] == (204 if pace[number] == QUICK else 0)
        for number in range(12, 20):
            assert results[number] == (large if pace[number] == QUICK else None)
        # Nothing is left for the next start to clean up.
        kept = {*names(service.images)}
        assert kept == {there, *(image_id for n, image_id in enumerate(waiting) if pace[n] == QUICK)}

        service.start()
        alice = service.client()
        for number, image_id in enumerate(waiting):
            image = alice.show(image_id)
            if pace[number] == QUICK:
                assert (image["status"], image["os_hash_value"]) == ("active", hashlib.sha512(DATA).hexdigest())
            else:
                assert (image["status"], image["size"]) == ("queued", None)
                assert alice.put(image_id, b"again").status_code == 204


# --- reading again ---------------------------------------------------------------------------------------


def _hang_up(service: Service) -> None:
    assert service.process
    before = service.log.count("were looked at again")
    service.process.send_signal(signal.SIGHUP)
    until(lambda: service.log.count("were looked at again") >= before + 2)  # the master and its worker


def _worker(service: Service) -> int:
    assert service.process
    (one,) = psutil.Process(service.process.pid).children()
    return one.pid


def test_sighup_reads_policy_users_and_log_level_again_and_disturbs_no_transfer(state: Path) -> None:
    conf = "[DEFAULT]\ndebug = {}\n[oslo_policy]\npolicy_file = " + str(state / "policy.yaml") + "\n"
    state.mkdir(exist_ok=True)
    rules = state / "policy.yaml"
    rules.write_text("{}")
    with running(state, conf.format(False)) as service:
        alice, pid = service.client(), _worker(service)
        image_id = alice.queued()
        done: list[int] = []
        slow = threading.Thread(target=lambda: done.append(_upload(service.client(), image_id, 3)))
        slow.start()
        until(lambda: alice.show(image_id)["status"] == "saving")

        rules.write_text(yaml.safe_dump({"get_images": "!"}))
        write_users(state / "users.json", {"dora": ("red", ("member",)), "alice": ("red", ("member",))})
        (state / "calotype.conf").write_text(conf.format(True))
        assert "DEBUG" not in service.log
        _hang_up(service)
        assert alice.get("/v2/images").status_code == 403
        assert service.client("dora").show(image_id)["id"] == image_id
        assert service.client("bob").get("/v2/images").status_code == 401
        until(lambda: "DEBUG" in service.log)

        # What is broken keeps what was.
        rules.write_text("get_images: [")
        (state / "users.json").write_text("{")
        (state / "calotype.conf").write_text("debug = [[[\n= nonsense")
        _hang_up(service)
        assert alice.get("/v2/images").status_code == 403
        assert service.client("dora").show(image_id)["id"] == image_id
        assert "the old one stays" in service.log
        assert "rules in force stay" in service.log
        assert "last good file" in service.log

        slow.join()
        assert done == [204]
        assert _worker(service) == pid
        (state / "calotype.conf").write_text(conf.format(False))  # sound for the next start


def test_a_log_that_was_moved_away_is_made_anew(state: Path) -> None:
    log = state / "logs" / "calotype.log"
    log.parent.mkdir(parents=True)
    with running(state, f"[DEFAULT]\nlog_file = {log}\n") as service:
        moved = log.with_suffix(".1")
        shutil.move(log, moved)
        assert service.process
        os.kill(service.process.pid, signal.SIGHUP)
        until(lambda: log.exists() and "were looked at again" in log.read_text())
        assert "were looked at again" not in moved.read_text()
