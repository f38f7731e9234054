"""From the options of `[database]` to drivers and pools. What real servers make of them is in `tests/outage/`."""

import logging
from pathlib import Path
from typing import Any

import pytest

from calotype import app, config, config_check, errors
from calotype.db import drivers
from calotype.db.drivers import Settings
from calotype.db.engine import Database
from tests.support import free_port


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("mysql://u:p@h/d", "mysql+pymysql"),
        ("mariadb://u:p@h/d", "mariadb+pymysql"),
        ("mysql+pymysql://u:p@h/d", "mysql+pymysql"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
        ("sqlite:////x", "sqlite+pysqlite"),
    ],
)
def test_a_url_without_a_driver_gets_ours(given: str, driver: str) -> None:
    url = drivers.parse(given)
    assert url.drivername == driver
    assert (url.username, url.password) == (("u", "p") if "@" in given else (None, None))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mysql+mysqldb://u:secret@h/d", r"mysql\+pymysql://.*calotype\[mysql\]"),
        ("postgresql+psycopg2://u:secret@h/d", r"postgresql\+psycopg://.*calotype\[postgresql\]"),
        ("oracle://u:secret@h/d", "oracle is not served"),
        ("u:secret@h", "not the URL"),
    ],
)
def test_another_driver_is_refused_with_what_to_write_and_without_the_password(given: str, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words) as found:
        Database(given)
    assert "secret" not in str(found.value)


def test_a_driver_that_is_missing_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'pymysql'")

    monkeypatch.setattr(drivers.sa, "create_engine", missing)
    with pytest.raises(errors.ConfigError, match=r"pip install 'calotype\[mysql\]'"):
        Database("mysql://u:p@h/d")


def test_parameters_are_put_at_the_end_of_the_url_and_utf8_is_meant_in_full() -> None:
    url = drivers.parse("mysql://u:p@h/d?charset=utf8", "ssl_ca=/etc/ssl/ca.pem&program_name=images")
    assert dict(url.query) == {"charset": "utf8mb4", "ssl_ca": "/etc/ssl/ca.pem", "program_name": "images"}


@pytest.mark.parametrize(
    ("size", "overflow"), [(5, 50), (5, 0), (1, 0), (1, 1), (2, 0), (3, 4), (10, 90), (1, 20), (50, 1)]
)
def test_readers_and_writers_share_what_is_allowed(size: int, overflow: int) -> None:
    both = drivers.pools(Settings(max_pool_size=size, max_overflow=overflow))
    assert sum(pool.size + pool.overflow for pool in both) == max(2, size + overflow)
    assert all(pool.size >= 1 and pool.overflow >= 0 for pool in both)
    assert sum(pool.size for pool in both) == max(2, size)


def test_a_limit_that_is_lifted_is_lifted_for_both() -> None:
    assert (
        drivers.pools(Settings(max_overflow=-1))[0].overflow
        == drivers.pools(Settings(max_overflow=-1))[1].overflow
        == -1
    )
    assert [pool.size for pool in drivers.pools(Settings(max_pool_size=0))] == [0, 0]


@pytest.mark.parametrize(
    ("mode", "meant"),
    [
        ("TRADITIONAL", "sql_mode = 'TRADITIONAL',"),
        ("ANSI_QUOTES", "sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES',"),
        ("", "sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'),"),
        ("STRICT_TRANS_TABLES", "sql_mode = 'STRICT_TRANS_TABLES',"),
    ],
)
def test_a_session_on_mariadb_is_strict(mode: str, meant: str) -> None:
    assert meant in drivers._mysql_arguments(Settings(mysql_sql_mode=mode))["init_command"]


def test_a_session_on_galera_waits_for_others_if_that_is_asked_for() -> None:
    assert "wsrep" not in drivers._mysql_arguments(Settings())["init_command"]
    assert "wsrep_sync_wait = 1" in drivers._mysql_arguments(Settings(mysql_wsrep_sync_wait=1))["init_command"]


def test_older_names_of_options_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text(
        f"[DEFAULT]\nsql_connection = sqlite:///{tmp_path}/other.db\nsql_idle_timeout = 77\nsql_max_retries = 3\n"
        "[DATABASE]\nsql_max_pool_size = 7\nsqlalchemy_max_overflow = 8\nsqlalchemy_pool_timeout = 9\n"
        "reconnect_interval = 4\n"
    )
    conf = config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))
    options = conf.database
    assert options.connection.endswith("other.db")
    assert (options.connection_recycle_time, options.max_retries, options.retry_interval) == (77, 3, 4)
    assert (options.max_pool_size, options.max_overflow, options.pool_timeout) == (7, 8, 9)


def test_options_without_effect_are_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.conf").write_text("[database]\nslave_connection = sqlite://\nsqlite_synchronous = false\n")
    with caplog.at_level(logging.WARNING):
        config_check.tell(config_check.account(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))))
    (said,) = caplog.messages
    assert "no effect" in said
    assert "[database] slave_connection, [database] sqlite_synchronous" in said


@pytest.mark.parametrize("scheme", ["mysql", "postgresql"])
def test_a_start_gives_up_in_the_end_when_there_is_no_database(
    tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{scheme}://u:secret@127.0.0.1:{free_port()}/d"
    (tmp_path / "c.conf").write_text(f"[database]\nconnection = {url}\nmax_retries = 2\nretry_interval = 0\n")
    conf = config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))
    with pytest.raises(errors.Busy):
        app.build(conf)
    assert len([text for text in caplog.messages if "waiting for the database" in text]) == 2
    assert "secret" not in caplog.text
    caplog.clear()
    with pytest.raises(errors.Busy):
        app.build(conf, wait=False)
    assert not caplog.messages
