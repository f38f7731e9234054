"""Which limits a configuration sets, what Keystone says of them, and what happens while it is away."""

import socket
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from calotype import config, errors, limits
from calotype.images import lifecycle, quota
from calotype.images.lifecycle import NewImage
from calotype.limits import Allowance
from calotype.model import Query
from tests.inprocess import ADMIN, ALICE, CONF, parts
from tests.keystone import ACCOUNT, REGION, Keystone, TokenClient
from tests.support import PASSWORD, free_port, running

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


def test_a_keystone_that_does_not_answer_is_not_waited_for_long(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = built(tmp_path, KEYSTONE.format(port=silent.getsockname()[1]) + "timeout = 1\n")
        begun = time.monotonic()
        with pytest.raises(errors.Busy, match="Keystone"):
            found.of("red", "red")
        assert time.monotonic() - begun < 30


def test_what_many_want_to_know_at_once_is_asked_once() -> None:
    asked: list[str] = []

    def ask(about: str) -> Mapping[str, int]:
        asked.append(about)
        time.sleep(0.05)
        if about == "bad":
            raise errors.Busy("not now")
        return {about: len(asked)} if about != "none" else {}

    def tell(remembered: limits._CachedAnswers, about: str) -> object:
        try:
            return remembered.get(about)
        except errors.Busy as exc:
            return str(exc)

    remembered = limits._CachedAnswers(ask, ttl=600, failure_ttl=600)
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
    forgetful = limits._CachedAnswers(ask, ttl=0, failure_ttl=0)
    assert [tell(forgetful, about) for about in ("red", "red", "bad")] == [{"red": 4}, {"red": 5}, "not now"]
    assert len(asked) == 6


# --- a real Keystone -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registered:
    """A service of the test's own in Keystone, whose limits nobody else changes."""

    keystone: Keystone
    service: str
    endpoint: str

    def register(self, **values: int) -> None:
        """Set defaults for all projects."""
        entries = [self._entry(name) | {"default_limit": value} for name, value in values.items()]
        self.keystone.call("POST", "registered_limits", registered_limits=entries)

    def override(self, project: str, **values: int) -> None:
        """Set limits of one project."""
        entries = [self._entry(name) | {"resource_limit": value} for name, value in values.items()]
        entries = [entry | {"project_id": self.keystone.project(project)} for entry in entries]
        self.keystone.call("POST", "limits", limits=entries)

    def _entry(self, name: str) -> dict[str, object]:
        return {"service_id": self.service, "region_id": REGION, "resource_name": name}

    def conf(self, more: str = "") -> str:
        """A configuration that asks for these limits."""
        return (
            "[DEFAULT]\nuse_keystone_limits = true\nuser_storage_quota = 1\n[oslo_limit]\nauth_type = password\n"
            f"auth_url = {self.keystone.url}\nusername = {ACCOUNT}\npassword = {PASSWORD}\n"
            f"user_domain_name = Default\nsystem_scope = all\n{more or 'endpoint_id = ' + self.endpoint}\n"
        )


@pytest.fixture
def registered(keystone: Keystone) -> Registered:
    reader = keystone.call("GET", "roles?name=reader")["roles"][0]["id"]
    keystone.call("PUT", f"system/users/{keystone.user(ACCOUNT)}/roles/{reader}")
    if not keystone.call("GET", "services?type=identity")["services"]:  # every other Keystone is in its own catalog
        made = keystone.call("POST", "services", service={"name": "keystone", "type": "identity"})["service"]["id"]
        entry = {"service_id": made, "interface": "public", "url": keystone.url, "region_id": REGION}
        keystone.call("POST", "endpoints", endpoint=entry)
    kind = f"image-{uuid.uuid4().hex[:8]}"
    service = keystone.call("POST", "services", service={"name": kind, "type": kind})["service"]["id"]
    entry = {"service_id": service, "interface": "public", "url": "http://127.0.0.1:1", "region_id": REGION}
    return Registered(keystone, service, keystone.call("POST", "endpoints", endpoint=entry)["endpoint"]["id"])


def test_limits_are_the_projects_own_or_the_registered_ones(tmp_path: Path, registered: Registered) -> None:
    red, blue = registered.keystone.project("red"), registered.keystone.project("blue")
    registered.register(
        image_size_total=10, image_stage_total=20, image_count_total=-1, image_count_uploading=4, other=5
    )
    registered.override("red", image_size_total=3, image_stage_total=-1)
    kind = registered.keystone.call("GET", f"services/{registered.service}")["service"]["type"]
    named = f"endpoint_service_type = {kind}\nendpoint_region_name = {REGION}\nendpoint_interface = publicURL"
    for more in ("", named):
        found = built(tmp_path, registered.conf(more))
        assert found.of(red, blue) == Allowance(red, size=3 * MIB, staged=None, images=None, uploading=4)
        assert found.of(blue, red) == Allowance(blue, size=10 * MIB, staged=20 * MIB, images=None, uploading=4)


def test_what_is_not_registered_is_not_allowed_and_the_log_says_so(
    tmp_path: Path, registered: Registered, caplog: pytest.LogCaptureFixture
) -> None:
    registered.register(image_count_total=7)
    found = built(tmp_path, registered.conf())
    assert found.of("red", "red") == Allowance("red", size=0, staged=0, images=7, uploading=0)
    assert "not registered in Keystone" in caplog.text
    assert "image_size_total, image_stage_total, image_count_uploading" in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PASSWORD, "wrong"),
        ("endpoint_id = ", "endpoint_id = x"),
        ("endpoint_id = ", "endpoint_service_type = nonsense\n#"),
    ],
)
def test_what_keystone_does_not_tell_us_is_not_unlimited(
    tmp_path: Path, registered: Registered, old: str, new: str
) -> None:
    found = built(tmp_path, registered.conf().replace(old, new))
    with pytest.raises(errors.Busy, match="Keystone"):
        found.of("red", "red")


def test_a_service_keeps_to_the_limits_of_keystone(state: Path, registered: Registered) -> None:
    keystone = registered.keystone
    registered.register(image_size_total=1, image_stage_total=0, image_count_total=100, image_count_uploading=2)
    registered.override("red", image_size_total=2, image_count_total=5)
    with running(state, keystone.conf() + registered.conf()) as service:
        alice, bob = (TokenClient(service.url, keystone.token(name)) for name in ("alice", "bob"))
        with ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(
                    lambda _: TokenClient(service.url, keystone.token("alice")).create(
                        disk_format="raw", container_format="bare"
                    ),
                    range(16),
                )
            )
        made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        refused = [answer for answer in answers if answer.status_code == 413]
        assert (len(made), len(refused)) == (5, 11)
        assert "may have 5 images; it has 5, and 1 more" in refused[0].text
        assert alice.put(made[0], b"x" * (MIB + 1)).status_code == 204
        over = alice.put(made[1], b"x" * MIB)
        assert over.status_code == 413
        assert all(str(number) in over.text for number in (2 * MIB, MIB + 1, MIB))
        assert alice.put(made[1], iter([b"x" * (MIB - 1)])).status_code == 204
        assert alice.show(made[2])["status"] == "queued"
        usage = alice.get("/v2/info/usage").json()["usage"]
        assert usage == {
            "image_size_total": {"usage": 2, "limit": 2},
            "image_stage_total": {"usage": 0, "limit": 0},
            "image_count_total": {"usage": 5, "limit": 5},
            "image_count_uploading": {"usage": 0, "limit": 2},
        }
        assert alice.delete(made[0]).status_code == 204
        assert alice.get("/v2/info/usage").json()["usage"]["image_size_total"]["usage"] == 0
        assert bob.put(bob.queued(), b"x" * MIB).status_code == 204
