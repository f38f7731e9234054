"""Cross-origin requests as browsers make them, and what a proxy says of a request: believed when told to, else not."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from falcon import testing

from calotype import errors
from calotype.api.proxies import believe
from tests.inprocess import CONF, parts
from tests.support import PASSWORD, USERS, write_users

HORIZON = "https://horizon.example.com"


@contextmanager
def client(path: Path, more: str) -> Iterator[testing.TestClient]:
    write_users(path / "users.json", {"alice": USERS["alice"]})
    with parts(path, f"sqlite:///{path}/db", CONF + more) as app:
        yield testing.TestClient(app.wsgi)


def auth() -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()}


def preflight(of: testing.TestClient, origin: str = HORIZON, method: str = "PUT", headers: str = "") -> testing.Result:
    sent = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers:
        sent["Access-Control-Request-Headers"] = headers
    return of.simulate_options("/v2/images", headers=sent)


def allowed(result: testing.Result) -> bool:
    return "access-control-allow-origin" in result.headers


# --- CORS ------------------------------------------------------------------------------------------------


def test_a_preflight_is_answered_before_anybody_is_asked_for_credentials(tmp_path: Path) -> None:
    with client(tmp_path, f"[cors]\nallowed_origin = {HORIZON}, https://other.example.com\nmax_age = 60\n") as of:
        found = preflight(of, headers="x-auth-token, Range,content-type")
        assert found.status_code == 200
        names = ("allow-origin", "allow-methods", "allow-headers", "allow-credentials", "max-age")
        assert [found.headers.get(f"access-control-{name}") for name in names] == [
            HORIZON,
            "PUT",
            "x-auth-token,Range,content-type",
            "true",
            "60",
        ]
        assert found.headers["vary"] == "Origin"
        assert found.headers["x-openstack-request-id"].startswith("req-")


def test_a_preflight_of_what_is_not_allowed_gets_no_leave(tmp_path: Path) -> None:
    with client(tmp_path, f"[cors]\nallowed_origin = {HORIZON}\nallow_methods = GET,PUT\n") as of:
        assert allowed(preflight(of))
        for refused in (
            preflight(of, origin="https://evil.example.com"),
            preflight(of, origin=HORIZON + ".evil.example.com"),
            preflight(of, origin=HORIZON.upper()),
            preflight(of, origin="null"),
            preflight(of, method="DELETE"),
            preflight(of, headers="x-auth-token, x-of-my-own"),
        ):
            assert refused.status_code == 200
            assert not [name for name in refused.headers if name.startswith("access-control-")]


def test_answers_say_who_may_read_them_also_when_they_refuse(tmp_path: Path) -> None:
    with client(tmp_path, f"[cors]\nallowed_origin = {HORIZON}\n") as of:
        for headers, status in (({**auth()}, 200), ({}, 401)):
            found = of.simulate_get("/v2/images", headers=headers | {"Origin": HORIZON})
            assert (found.status_code, found.headers["access-control-allow-origin"]) == (status, HORIZON)
            assert "X-OpenStack-Request-ID" in found.headers["access-control-expose-headers"].split(",")
            assert found.headers["access-control-allow-credentials"] == "true"
        for headers in ({"Origin": "https://evil.example.com"}, {}):
            found = of.simulate_get("/v2/images", headers=auth() | headers)
            assert (found.status_code, found.headers["vary"]) == (200, "Origin")
            assert not allowed(found)


def test_any_origin_gets_no_credentials(tmp_path: Path) -> None:
    with client(tmp_path, "[cors]\nallowed_origin = *\n") as of:
        for found in (preflight(of), of.simulate_get("/versions", headers={"Origin": HORIZON})):
            assert found.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in found.headers


def test_without_origins_nothing_is_said(tmp_path: Path) -> None:
    with client(tmp_path, "") as of:
        assert preflight(of).status_code == 401
        found = of.simulate_get("/versions", headers={"Origin": HORIZON})
        assert not [name for name in found.headers if name.startswith("access-control-") or name == "vary"]


def test_cors_leaves_the_file_to_the_server(tmp_path: Path) -> None:
    with client(tmp_path, f"[cors]\nallowed_origin = {HORIZON}\n") as of:
        made = of.simulate_post("/v2/images", json={"disk_format": "raw", "container_format": "bare"}, headers=auth())
        path = f"/v2/images/{made.json['id']}/file"
        octets = {"Content-Type": "application/octet-stream"}
        assert of.simulate_put(path, body=b"bytes", headers=auth() | octets).status_code == 204
        handed: list[Any] = []

        def wrapper(file: Any, size: int) -> Any:
            handed.append(answer := iter([file.read()]))
            return answer

        environment = testing.create_environ(path, headers=auth() | {"Origin": HORIZON})
        answer = of.app(environment | {"wsgi.file_wrapper": wrapper}, testing.StartResponseMock())  # type: ignore[arg-type]
        assert handed
        assert answer is handed[0]


# --- proxies ---------------------------------------------------------------------------------------------

SAID = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "images.example.com",
    "X-Forwarded-Prefix": "/image",
    "X-Forwarded-For": "192.0.2.7",
}


def places(of: testing.TestClient, headers: dict[str, str]) -> tuple[str, str, str]:
    """What links lead to: of a new image, of the versions, of the way to v2."""
    made = of.simulate_post("/v2/images", json={}, headers=auth() | headers)
    assert made.status_code == 201
    versions = of.simulate_get("/versions", headers=headers).json["versions"]
    location = of.simulate_get("/v2", headers=headers).headers["location"]
    return made.headers["location"].partition("/v2/images")[0], versions[0]["links"][0]["href"], location


def test_what_a_proxy_says_is_in_the_links_when_it_is_to_be_believed(tmp_path: Path) -> None:
    with client(tmp_path, "[oslo_middleware]\nenable_proxy_headers_parsing = true\n") as of:
        base = "https://images.example.com/image"
        assert places(of, SAID) == (base, f"{base}/v2/", f"{base}/v2/")
        assert places(of, {})[0] == "http://falconframework.org"


def test_what_a_proxy_says_is_passed_over_by_default(tmp_path: Path) -> None:
    with client(tmp_path, "") as of:
        for headers in (SAID, {"Forwarded": "proto=https;host=images.example.com"}):
            assert places(of, headers)[0] == "http://falconframework.org"


@pytest.mark.parametrize(
    ("headers", "scheme", "host", "address", "prefix"),
    [
        ({}, "http", "here:9292", "127.0.0.1", ""),
        ({"X_FORWARDED_PROTO": "https"}, "https", "here:9292", "127.0.0.1", ""),
        ({"X_FORWARDED_HOST": "a.example, b.example"}, "http", "a.example", "127.0.0.1", ""),
        ({"X_FORWARDED_HOST": "a", "X_FORWARDED_PORT": "8443"}, "http", "a:8443", "127.0.0.1", ""),
        ({"X_FORWARDED_PROTO": "https", "X_FORWARDED_HOST": "a", "X_FORWARDED_PORT": "443"}, "https", "a", "127.0.0.1", ""),
        ({"X_FORWARDED_HOST": "[2001:db8::1]", "X_FORWARDED_PORT": "8443"}, "http", "[2001:db8::1]:8443", "127.0.0.1", ""),
        ({"X_FORWARDED_HOST": "a:1", "X_FORWARDED_PORT": "2"}, "http", "a:1", "127.0.0.1", ""),
        ({"X_FORWARDED_FOR": "192.0.2.1, 10.0.0.1"}, "http", "here:9292", "192.0.2.1", ""),
        ({"X_FORWARDED_PREFIX": "/image/"}, "http", "here:9292", "127.0.0.1", "/image"),
        ({"FORWARDED": 'for="[2001:db8::7]:4711";Proto=https; host=a, for=b;host=c'}, "https", "a", "2001:db8::7", ""),
        ({"FORWARDED": "host=a", "X_FORWARDED_HOST": "b", "X_FORWARDED_PROTO": "https"}, "http", "a", "127.0.0.1", ""),
        ({"FORWARDED": "for=192.0.2.1:80"}, "http", "here:9292", "192.0.2.1", ""),
        # what nobody knows
        ({"X_FORWARDED_PROTO": "javascript", "X_FORWARDED_FOR": "unknown"}, "http", "here:9292", "127.0.0.1", ""),
    ],
)  # fmt: skip
def test_headers_of_proxies_are_read_as_they_are_meant(
    headers: dict[str, str], scheme: str, host: str, address: str, prefix: str
) -> None:
    env = {"wsgi.url_scheme": "http", "HTTP_HOST": "here:9292", "REMOTE_ADDR": "127.0.0.1", "SCRIPT_NAME": ""}
    env |= {f"HTTP_{name}": value for name, value in headers.items()}
    believe(env)
    names = ("wsgi.url_scheme", "HTTP_HOST", "REMOTE_ADDR", "SCRIPT_NAME")
    assert [env[name] for name in names] == [scheme, host, address, prefix]


@pytest.mark.parametrize(
    "headers",
    [
        *({"X_FORWARDED_HOST": host} for host in ("a b", "a/../@b", "evil@a", "a?x", "a#x", "a:65536", "a:x", "[zz]", "[::1", "[1:2]")),
        {"FORWARDED": "host=evil@a/path"}, {"X_FORWARDED_PORT": "x"}, {"X_FORWARDED_PORT": "65536"},
        *({"X_FORWARDED_PREFIX": prefix} for prefix in ("//evil.example", "/a b", "/..", "/a/./b", "/a?x", "@evil")),
    ],
)  # fmt: skip
def test_headers_of_proxies_that_no_link_may_hold_are_refused(headers: dict[str, str]) -> None:
    env = {"wsgi.url_scheme": "http", "HTTP_HOST": "here:9292", "REMOTE_ADDR": "127.0.0.1", "SCRIPT_NAME": ""}
    with pytest.raises(errors.Invalid):
        believe(env | {f"HTTP_{name}": value for name, value in headers.items()})
