"""What load balancers hear: of files, the database, the store, the runner; how soon; who may ask."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from falcon import testing

from calotype import config, errors
from calotype.app import App
from calotype.db.leases import LEASE
from calotype.images import health, stores
from tests.inprocess import ADMIN, CONF, parts
from tests.support import until

JSON = {"Accept": "application/json"}


@contextmanager
def checked(path: Path, lines: str) -> Iterator[tuple[App, testing.TestClient]]:
    with parts(path, f"sqlite:///{path}/db", f"{CONF}[healthcheck]\n{lines}\n") as app:
        yield app, testing.TestClient(app.wsgi)


def ask(of: testing.TestClient, **more: object) -> tuple[int, str]:
    found = of.simulate_get("/healthcheck", **more)  # type: ignore[arg-type]
    return found.status_code, found.text


def test_by_default_only_a_file_takes_it_out(tmp_path: Path) -> None:
    with checked(tmp_path, f"disable_by_file_path = {tmp_path}/off") as (_, of):
        assert ask(of) == (200, "OK")
        assert of.simulate_head("/healthcheck").status_code == 200
        assert of.simulate_get("/healthcheck", headers=JSON).json == {"detailed": False, "reasons": ["OK"]}
        (tmp_path / "off").touch()
        assert ask(of) == (503, "DISABLED BY FILE")
        assert of.simulate_head("/healthcheck").status_code == 503
        found = of.simulate_get("/healthcheck", headers=JSON)
        assert (found.status_code, found.json) == (503, {"detailed": False, "reasons": ["DISABLED BY FILE"]})
        (tmp_path / "off").unlink()
        assert ask(of) == (200, "OK")


def test_a_file_may_be_meant_for_one_port(tmp_path: Path) -> None:
    lines = f"backends = disable_by_files_ports\ndisable_by_file_paths = 9292:{tmp_path}/off-1, 9293:{tmp_path}/off-2"
    with checked(tmp_path, lines) as (_, of):
        (tmp_path / "off-2").touch()
        for port, status in ((9292, 200), (9293, 503), (80, 200)):
            assert ask(of, port=port)[0] == status
        assert ask(of, extras={"SERVER_PORT": "db8"})[0] == 200


def test_files_may_be_wanted(tmp_path: Path) -> None:
    lines = f"backends = enable_by_files\nenable_by_file_paths = {tmp_path}/on-1, {tmp_path}/on-2"
    with checked(tmp_path, lines) as (_, of):
        (tmp_path / "on-1").touch()
        assert ask(of) == (503, "FILE PATH MISSING")
        (tmp_path / "on-2").touch()
        assert ask(of) == (200, "OK")


@pytest.mark.parametrize(
    "lines",
    ["backends = weather", "backends = disable_by_file, enable_by_files", "disable_by_file_paths = /no/port"],
)
def test_what_makes_no_sense_stops_the_start(tmp_path: Path, lines: str) -> None:
    with pytest.raises(errors.ConfigError, match="healthcheck"), checked(tmp_path, lines):
        pass


def test_a_store_that_does_not_work_is_told_and_nothing_of_where_it_is(tmp_path: Path) -> None:
    with checked(tmp_path, "backends = database, store\ndetailed = true") as (_, of):
        assert ask(of) == (200, "database: OK\nstore: OK\nrunner: no process on this host works off jobs")
        (tmp_path / "one").rename(tmp_path / "gone")
        until(lambda: ask(of)[0] == 503)
        found = of.simulate_get("/healthcheck", headers=JSON).json
        assert found["detailed"] is True
        assert {one["class"]: one["reason"] for one in found["reasons"]} == {
            "database": "OK",
            "store": "does not work",
            "runner": "no process on this host works off jobs",
        }
        assert str(tmp_path) not in ask(of)[1]
        (tmp_path / "gone").rename(tmp_path / "one")
        until(lambda: ask(of)[0] == 200)


def test_a_runner_is_missed_when_none_beats(tmp_path: Path) -> None:
    with checked(tmp_path, "backends = runner") as (app, of):
        assert ask(of)[0] == 503
        app.start()
        try:
            until(lambda: ask(of)[0] == 200)
        finally:
            assert app.runner
            app.runner.stop()
        file = config.state_path(app.conf, "owners") / "runner"
        moment, _, boot = file.read_text().partition(" ")
        file.write_text(f"{float(moment) - LEASE.total_seconds() - 1} {boot}")
        until(lambda: ask(of)[0] == 503)


def test_a_database_that_hangs_hangs_no_check_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TIMEOUT", 0.3)
    with checked(tmp_path, "backends = database, store") as (app, of):
        hold, asked = threading.Event(), []

        def hangs() -> None:
            asked.append(1)
            assert hold.wait(20)

        monkeypatch.setattr(app.db, "check", hangs)
        begun = time.monotonic()
        answers = [ask(of) for _ in range(3)]
        assert time.monotonic() - begun < 5
        assert answers == [(503, "database does not answer")] * 3
        assert len(asked) == 1
        hold.set()
        until(lambda: ask(of)[0] == 200)


def test_a_crowd_of_checks_asks_the_database_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CACHE_SECONDS", 60.0)
    with checked(tmp_path, "backends = database") as (app, of):
        asked = []
        monkeypatch.setattr(app.db, "check", lambda: asked.append(1))
        assert {ask(of)[0] for _ in range(50)} == {200}
        assert len(asked) == 1


def test_only_those_networks_may_ask_that_are_named(tmp_path: Path) -> None:
    with checked(tmp_path, "allowed_source_ranges = 192.0.2.0/24, 2001:db8::/32\nignore_proxied_requests = true") as (
        _,
        of,
    ):
        for address, status in (("192.0.2.7", 200), ("2001:db8::1", 200), ("192.0.3.1", 404), ("", 404)):
            assert ask(of, extras={"REMOTE_ADDR": address})[0] == status, address
        proxied = {"X-Forwarded-For": "192.0.2.7"}
        assert ask(of, extras={"REMOTE_ADDR": "192.0.2.7"}, headers=proxied)[0] == 404


@pytest.mark.alone
def test_a_store_that_hangs_delays_neither_its_details_nor_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checked(tmp_path, "backends = store") as (app, of):
        store = next(iter(app.service.stores))
        hold, real = threading.Event(), store.check
        monkeypatch.setattr(store, "check", lambda: hold.wait(20) and real())
        begun = time.monotonic()
        found = stores.details(app.service, ADMIN)
        assert time.monotonic() - begun < 0.3
        assert [one.health.ok for one in found if one.health] == [False] + [True] * (len(found) - 1)
        assert ask(of) == (503, "store does not answer")
        hold.set()
        until(lambda: ask(of)[0] == 200)
