"""Options are read as operators write them: lists with and without brackets, Glance's older names, the environment."""

from pathlib import Path
from typing import Any

import pytest

from calotype import config, errors
from calotype.config import ItemList
from calotype.stores import registry


def read(tmp_path: Path, text: str) -> Any:
    (tmp_path / "c.conf").write_text(text)
    return config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))


# --- lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []), ("[]", []), ("[ ]", []), ("http", ["http"]), ("[http]", ["http"]), ("http,https", ["http", "https"]),
        ("[http,https]", ["http", "https"]), (" [ http , https ] ", ["http", "https"]), ("[http,https,]", ["http", "https"]),
        ("['http', \"https\"]", ["http", "https"]), ("\"http\", 'https'", ["http", "https"]), ("http,", ["http"]),
        ("[http,\nhttps]", ["http", "https"]), ("http\nhttps", ["http", "https"]), ("[\nhttp,\nhttps,\n]", ["http", "https"]),
        ("[::1]", ["::1"]), ("[::1],[::2]", ["[::1]", "[::2]"]), ("[[::1],[::2]]", ["[::1]", "[::2]"]), ("::1,::2", ["::1", "::2"]),
    ],
)  # fmt: skip
def test_a_list_may_have_brackets_quotes_and_blanks(text: str, items: list[str]) -> None:
    assert ItemList()(text) == items


@pytest.mark.parametrize("text", ["[http", "http]", "[http],https]", "a,,b", "[a,,b]", ",", "[,]", "['']", '""', "]a["])
def test_a_list_that_could_be_misread_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ItemList()(text)


@pytest.mark.parametrize(
    "items", ["raw qcow2", "[raw qcow2]", "(raw,qcow2)", "raw;qcow2", "raw # all", "“raw”, “qcow2”", "raw|iso"]
)
@pytest.mark.parametrize(
    "name", ["image_format disk_formats", "image_format gpt_safety_checks_nonfatal", "cors allow_methods",
    "DEFAULT disabled_notifications", "import_filtering_opts disallowed_schemes", "import_filtering_opts disallowed_hosts"],
)  # fmt: skip
def test_what_looks_like_several_items_is_not_one(tmp_path: Path, name: str, items: str) -> None:
    with pytest.raises(errors.ConfigError, match="items are separated by commas"):
        read(tmp_path, "[{}]\n{} = {}\n".format(*name.split(), items))


@pytest.mark.parametrize(
    "line",
    [
        "[healthcheck]\nallowed_source_ranges = 192.0.2.0/33", "[healthcheck]\nallowed_source_ranges = 10.0.0.1/8",
        "[healthcheck]\nallowed_source_ranges = 10.0.0.0/8 ::1/128", "[cors]\nallowed_origin = horizon.example.org",
        "[cors]\nallowed_origin = https://horizon.example.org/", "[cors]\nallowed_origin = https://a https://b",
    ],
)  # fmt: skip
def test_an_item_that_would_match_nothing_stops_the_start(tmp_path: Path, line: str) -> None:
    with pytest.raises(errors.ConfigError, match=line.split(" = ")[0].split("\n")[1]):
        read(tmp_path, f"{line}\n")


@pytest.mark.parametrize("item", ["10.0.0.0/8", "*.example.org", "a.example:80", "http://a.example", "2130706433"])
def test_a_host_that_is_none_is_named(tmp_path: Path, item: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        config.filters(read(tmp_path, f"[import_filtering_opts]\ndisallowed_hosts = a.example, {item}\n"))
    assert f"disallowed_hosts: {item} is neither" in str(caught.value)


def test_a_relative_state_directory_is_that_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OS_DEFAULT__STATE_DIR", "./here")
    assert config.load(search=False).state_dir == f"{tmp_path}/here"


FILTERS = [option.dest for option in config.IMPORT_FILTERING]


@pytest.mark.parametrize("brackets", ["{}", "[{}]", "[ {} ]", "['{}']"])
@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_of_urls_is_read_with_and_without_brackets(tmp_path: Path, name: str, brackets: str) -> None:
    items = {"schemes": "ftp", "hosts": "example.org", "ports": "8080", "prefixes": "2001:db8:64::/96"}
    item = items[name.rpartition("_")[2]]
    conf = read(tmp_path, f"[import_filtering_opts]\n{name} = {brackets.format(item)}\n")
    assert {str(one) for one in getattr(config.filters(conf), name)} == {item}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_of_urls_may_be_empty_as_glance_writes_it(tmp_path: Path, name: str) -> None:
    conf = read(tmp_path, f"[import_filtering_opts]\n{name} = []\n")
    assert getattr(config.filters(conf), name) == frozenset()


def test_a_scheme_that_is_disallowed_in_brackets_is_blocked(tmp_path: Path) -> None:
    conf = read(tmp_path, "[import_filtering_opts]\ndisallowed_schemes = [HTTP]\nallowed_schemes = []\n")
    assert config.filters(conf).disallowed_schemes == {"http"}
    with pytest.raises(errors.ConfigError, match="no scheme"):
        config.filters(read(tmp_path, "[import_filtering_opts]\ndisallowed_schemes = http://\n"))


@pytest.mark.parametrize(
    "prefix",
    [
        *("64:ff9b::/80", "64:ff9b::1/96", "10.0.0.0/8", "x", "::/96", "::ffff:0:0/96", "fe80::/64", "ff00::/32"),
        *("fd00:ec2::/96", "::/32", "2001:db8::/128", "2001:db8::"),
    ],
)
def test_a_prefix_that_nat64_cannot_have_stops_the_start(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(errors.ConfigError, match="nat64_prefixes"):
        config.filters(read(tmp_path, f"[import_filtering_opts]\nnat64_prefixes = {prefix}\n"))


def test_a_proxy_is_configured_by_the_option_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert config.proxy(read(tmp_path, "")) is None
    found = config.proxy(read(tmp_path, "[import_filtering_opts]\nproxy = http://me:p%40ss@proxy.internal:8080/\n"))
    assert found is not None
    assert (found.host, found.port) == ("proxy.internal", 8080)
    assert found.headers == {"Proxy-Authorization": "Basic bWU6cEBzcw=="}
    assert "bWU6" not in repr(found)
    for wrong in (
        "https://proxy:1",
        "socks5://proxy:1",
        "proxy:3128",
        "http://",
        "http://p:secret@proxy:x",
        "http://p/x",
    ):
        with pytest.raises(errors.ConfigError, match="proxy") as caught:
            config.proxy(read(tmp_path, f"[import_filtering_opts]\nproxy = {wrong}\n"))
        assert "secret" not in str(caught.value)


def test_every_list_of_ours_is_read_in_both_ways() -> None:
    lists = [option for options in config.GROUPS.values() for option in options if isinstance(option.default, list)]
    several = [option for option in lists if not option.multi]
    assert len(several) >= 15
    for option in several:
        items = {
            "allowed_source_ranges": "192.0.2.0/24",
            "allowed_origin": "https://a.example",
            "enabled_import_methods": "web-download",
        }
        item = "8080" if option.dest.endswith("_ports") else items.get(option.dest, "a")
        assert option.type(f"[{item}]") == option.type(item), option.dest


def test_an_origin_that_no_browser_names_is_refused(tmp_path: Path) -> None:
    for text in ("https://h", "http://[::1]:8080", "moz-extension://0d2c", "null", "*", "https://a, https://b:1", ""):
        read(tmp_path, f"[cors]\nallowed_origin = {text}\n")
    for text in ("https://h/", "h", "https://h:x", "https://u@h", "https://h, https://h/x"):
        with pytest.raises(errors.ConfigError, match="is no origin"):
            read(tmp_path, f"[cors]\nallowed_origin = {text}\n")


# --- the environment -------------------------------------------------------------------------------------


def test_the_environment_wins_over_files_and_the_command_line_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.conf").write_text("[DEFAULT]\nstate_dir = /from/file\n[server]\nbind = 127.0.0.1:1\n")
    monkeypatch.setenv("OS_DEFAULT__STATE_DIR", "/from/environment")
    monkeypatch.setenv("OS_SERVER__BIND", "127.0.0.1:2")
    monkeypatch.setenv("OS_IMPORT_FILTERING_OPTS__DISALLOWED_SCHEMES", "[http]")
    conf = config.load([str(tmp_path / "c.conf")])
    assert (conf.state_dir, conf.server.bind) == ("/from/environment", "127.0.0.1:2")
    assert config.filters(conf).disallowed_schemes == {"http"}
    assert config.load([str(tmp_path / "c.conf")], state_dir="/from/line").state_dir == "/from/line"


def test_options_of_stores_can_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DEFAULT__ENABLED_BACKENDS": "fast:file,slow:file",
        "GLANCE_STORE__DEFAULT_BACKEND": "fast",
        "FAST__FILESYSTEM_STORE_DATADIR": f"{tmp_path}/fast",
        "SLOW__FILESYSTEM_STORE_DATADIR": f"{tmp_path}/slow",
    }.items():
        monkeypatch.setenv(f"OS_{name}", value)
    stores = registry.build(config.load(search=False))
    assert [getattr(store, "place", "") for store in stores] == [f"{tmp_path}/fast", f"{tmp_path}/slow"]


def test_a_wrong_value_in_the_environment_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_DEFAULT__IMAGE_SIZE_CAP", "much")
    with pytest.raises(errors.ConfigError, match="image_size_cap"):
        config.load(search=False)


@pytest.mark.parametrize("line", ["state_dir =", "state_dir = ''"])
def test_an_empty_state_directory_is_the_usual_one(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\n{line}\n")
    assert Path(config.load([str(tmp_path / "c.conf")]).state_dir).name == "calotype"


def test_an_import_method_that_is_misspelt_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text("[DEFAULT]\nenabled_import_methods = [web_download]\n")
    with pytest.raises(errors.ConfigError, match=r"enabled_import_methods.*web_download"):
        config.load([str(tmp_path / "c.conf")])
