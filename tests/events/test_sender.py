"""Who sends, when, in what order, and what stays when it fails."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import config, errors, notifiers
from calotype.app import App
from calotype.db import locks, outbox
from calotype.db.engine import Tx
from calotype.jobs import sender
from calotype.jobs.sender import Sender
from tests.events.test_told import queued
from tests.inprocess import another_host
from tests.support import until


class Listener:
    """A notifier of the test's: it takes what it is sent, until it is told to fail."""

    def __init__(self, before: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        self.taken: list[Mapping[str, Any]] = []
        self._before = before

    def send(self, message: Mapping[str, Any]) -> None:
        self._before(message)
        self.taken.append(message)

    @property
    def names(self) -> list[str]:
        return [message["payload"]["name"] for message in self.taken]


def create(app: App, count: int) -> list[str]:
    names = [f"n{number}" for number in range(count)]
    for name in names:
        queued(app, name=name)
    return names


def waiting(app: App) -> int:
    return app.db.snapshot(outbox.count)


def test_all_that_waits_is_sent_in_order_and_forgotten(app: App) -> None:
    listener = Listener()
    names = create(app, sender._BATCH + 5)
    assert Sender(app.service, [listener], 60).send_waiting() == len(names)
    assert listener.names == names
    assert waiting(app) == 0
    first = listener.taken[0]
    assert set(first) == {"message_id", "publisher_id", "event_type", "priority", "payload", "timestamp"}
    assert (first["publisher_id"], first["event_type"], first["priority"]) == (
        "image.localhost",
        "image.create",
        "INFO",
    )
    assert len({message["message_id"] for message in listener.taken}) == len(names)


def test_what_is_not_taken_stays_and_is_sent_again_under_the_same_id(app: App) -> None:
    names = create(app, 5)

    def refuse(message: Mapping[str, Any]) -> None:
        if message["payload"]["name"] == broken:
            raise OSError("the broker is away")

    first, second = Listener(), Listener(refuse)
    one = Sender(app.service, [first, second], 60)
    broken = "n2"
    with pytest.raises(OSError, match="away"):
        one.send_waiting()
    assert (first.names, second.names, waiting(app)) == (names[:3], names[:2], 3)
    broken = ""
    other = Sender(app.service, [first, second], 60)  # nobody has to wait for who failed
    assert other.send_waiting() == 3
    assert second.names == names
    assert first.taken[2] == first.taken[3]
    assert waiting(app) == 0


def test_one_process_sends_at_a_time_and_one_that_slept_too_long_forgets_nothing(app: App, tmp_path: Path) -> None:
    names = create(app, 3)
    svc = app.service
    asleep, wake = threading.Event(), threading.Event()

    def sleep(message: Mapping[str, Any]) -> None:
        if message["payload"]["name"] == "n1" and not wake.is_set():
            asleep.set()
            wake.wait(20)

    slow, quick = Listener(sleep), Listener()
    thread = threading.Thread(target=Sender(svc, [slow], 60).send_waiting, daemon=True)
    thread.start()
    assert asleep.wait(20)
    with another_host(app, tmp_path) as (other, clock):
        assert Sender(other, [quick], 60).send_waiting() == 0
        assert quick.taken == []
        # It is silent for too long, another one begins to send, and something new happens.
        lock = locks.Lock(sender.LOCK, sender.LEASE, other.leases)
        for _ in range(3):
            assert not app.db.write(lock.acquire)
            clock.seconds += 5
        assert app.db.write(lock.acquire)
        wake.set()
        thread.join(20)
        assert slow.names == names
        assert waiting(app) == 3
        app.db.write(lock.release)
        assert Sender(other, [quick], 60).send_waiting() == 3
    assert quick.names == names


def test_the_lock_of_who_died_is_free_at_once(app: App, tmp_path: Path) -> None:
    create(app, 1)
    with another_host(app, tmp_path) as (other, _):
        assert app.db.write(locks.Lock(sender.LOCK, sender.LEASE, other.leases).acquire)
        one = Sender(app.service, [Listener()], 60)
        assert one.send_waiting() == 0
        owners = config.state_path(app.conf, "owners")
        (owners / other.leases.owner).touch()  # nobody has it locked
        assert one.send_waiting() == 1


def test_an_announced_event_is_sent_soon_and_a_failing_driver_is_left_alone_for_a_while(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "_FIRST_BACKOFF", 0.2)
    tries = []
    away = True

    def refuse(_: Mapping[str, Any]) -> None:
        if away:
            tries.append(1)
            raise OSError("the broker is away")

    listener = Listener(refuse)
    app.sender = Sender(app.service, [listener], poll=3600)
    app.sender.start()
    names = create(app, 3)
    until(lambda: tries)
    before = len(tries)
    for _ in range(60):  # however much there is to tell
        app.sender.nudge()
        time.sleep(0.01)
    assert len(tries) - before <= 3, "it hardly pauses"
    until(lambda: len(tries) >= 3)
    assert app.sender.waiting == 3
    assert "3 events wait to be sent" in caplog.text
    away = False
    until(lambda: listener.names == names)
    more = create(app, 1)
    until(lambda: listener.names == [*names, *more])
    until(lambda: waiting(app) == 0)
    app.sender.stop()
    app.sender = None


def test_a_database_that_fails_in_any_way_does_not_end_the_sending(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_FIRST_BACKOFF", 0.01)
    failures = []
    snapshot = app.db.snapshot

    def forbidden(work: Callable[[Tx], Any]) -> Any:
        if len(failures) < 2:  # the sender's look, and the one to say how many events wait
            failures.append(1)
            raise sa.exc.ProgrammingError("SELECT", None, Exception("permission denied"))
        return snapshot(work)

    listener = Listener()
    app.sender = Sender(app.service, [listener], poll=0.02)
    monkeypatch.setattr(app.db, "snapshot", forbidden)
    app.sender.start()
    until(lambda: len(failures) == 2)
    names = create(app, 1)
    until(lambda: listener.names == names)
    app.sender.stop()
    app.sender = None


def _load(tmp_path: Path, lines: str) -> Any:
    (tmp_path / "c.conf").write_text(f"[oslo_messaging_notifications]\n{lines}\n")
    return config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("driver = smoke_signals", "not known"),
        ("driver = messagingv2\ntransport_url = rabbit://u:secret@[::1", "transport_url"),
        ("driver = messagingv2\ntransport_url = pigeon://u:secret@host/", "transport_url"),
    ],
)
def test_a_driver_that_cannot_be_used_stops_the_start(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words) as refusal:
        notifiers.build(_load(tmp_path, lines))
    assert "secret" not in str(refusal.value)


def test_without_oslo_messaging_the_extra_is_named_and_log_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "oslo_messaging", None)
    with pytest.raises(errors.ConfigError, match=r"calotype\[notifications\]"):
        notifiers.build(_load(tmp_path, "driver = messagingv2"))
    assert len(notifiers.build(_load(tmp_path, "driver = log\ndriver = noop\ndriver = log"))) == 1
