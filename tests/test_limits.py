"""Which limits a configuration sets, and what happens while Keystone is away. Real ones: `tests/compat/`."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from calotype import config, errors, limits
from calotype.images import lifecycle, quota
from calotype.images.lifecycle import NewImage
from calotype.limits import Allowance
from calotype.model import Query
from tests.inprocess import ADMIN, ALICE, CONF, parts
from tests.support import free_port

MIB = 1 << 20


def built(tmp_path: Path, text: str) -> limits.Limits:
    (tmp_path / "c.conf").write_text(text)
    return limits.build(config.load([str(tmp_path / "c.conf")]))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("12B", 12), ("5KB", 5 << 10), ("7MB", 7 << 20), ("500GB", 500 << 30), ("2TB", 2 << 40)],
)
def test_a_quota_is_a_number_with_a_unit(tmp_path: Path, text: str, size: int) -> None:
    found = built(tmp_path, f"[DEFAULT]\nuser_storage_quota = {text}\n")
    assert found.of("red", "blue") == Allowance("blue", size=size)
    assert found.of("red", None) is None


@pytest.mark.parametrize("text", ["", "user_storage_quota = 0", "user_storage_quota = 0TB"])
def test_without_a_quota_nothing_is_limited(tmp_path: Path, text: str) -> None:
    assert built(tmp_path, f"[DEFAULT]\n{text}\n").of("red", "red") is None


@pytest.mark.parametrize("text", ["-1", "1.5GB", "10XB", "GB", "10 GB", "1e3", "10gb", "9" * 19])
def test_what_is_no_quota_stops_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(errors.ConfigError, match="user_storage_quota"):
        built(tmp_path, f"[DEFAULT]\nuser_storage_quota = {text}\n")


KEYSTONE = """\
[DEFAULT]
use_keystone_limits = true
user_storage_quota = 1
[oslo_limit]
auth_type = password
auth_url = http://127.0.0.1:{port}/v3
username = calotype
password = secret
user_domain_id = default
system_scope = all
endpoint_id = e
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("auth_type = password", "", "auth_type"),
        ("auth_type = password", "auth_type = nonsense", "nonsense"),
        ("endpoint_id = e", "", "endpoint_id"),
    ],
)
def test_what_is_missing_to_ask_keystone_stops_the_start(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        built(tmp_path, KEYSTONE.replace(old, new))


def test_while_keystone_is_away_the_service_starts_and_allows_nothing_that_is_limited(tmp_path: Path) -> None:
    conf = KEYSTONE.format(port=free_port()) + CONF
    with parts(tmp_path, f"sqlite:///{tmp_path}/c.db", conf) as app:
        with pytest.raises(errors.Busy, match="Keystone"):
            lifecycle.create(app.service, ALICE, NewImage())
        with pytest.raises(errors.Busy, match="Keystone"):
            quota.report(app.service, ALICE)
        image = lifecycle.create(app.service, replace(ADMIN, project=None), NewImage())  # no project, no limits
        assert lifecycle.list_(app.service, ADMIN, Query(10)) == ([image], None)


def test_what_many_want_to_know_at_once_is_asked_once() -> None:
    asked: list[str] = []

    def ask(about: str) -> Mapping[str, int]:
        asked.append(about)
        time.sleep(0.05)
        if about == "bad":
            raise errors.Busy("not now")
        return {about: len(asked)} if about != "none" else {}

    def tell(remembered: limits._Remembered, about: str) -> object:
        try:
            return remembered.get(about)
        except errors.Busy as exc:
            return str(exc)

    remembered = limits._Remembered(ask, fresh=600, failed=600)
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda about: found.append(tell(remembered, about)), args=(about,))
        for about in ["red", "bad", "none"] * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(asked) == ["bad", "none", "red"]
    assert found.count("not now") == 8
    assert found.count({}) == 8
    assert len([one for one in found if isinstance(one, dict) and set(one) == {"red"}]) == 8
    forgetful = limits._Remembered(ask, fresh=0, failed=0)
    assert [tell(forgetful, about) for about in ("red", "red", "bad")] == [{"red": 4}, {"red": 5}, "not now"]
    assert len(asked) == 6
