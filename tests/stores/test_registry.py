"""Which configurations of stores are served, and which are refused with what words."""

import logging
from pathlib import Path

import pytest
from oslo_config import cfg

from calotype import config, errors
from calotype.model import Location
from calotype.stores import registry
from calotype.stores.access import Settings
from calotype.stores.http import HttpStore
from calotype.stores.memory import MemoryStore

HEAD = "[DEFAULT]\nenabled_backends = {backends}\n[glance_store]\ndefault_backend = {default}\n"


S3 = "[backend_defaults]\ns3_store_access_key=a\ns3_store_secret_key=b\n"


def build(tmp_path: Path, text: str) -> registry.Stores:
    (tmp_path / "c.conf").write_text(text.replace("{tmp}", str(tmp_path)))
    return registry.build(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path / "state")))


def test_nothing_configured_is_one_file_store(tmp_path: Path) -> None:
    stores = build(tmp_path, "")
    assert [store.name for store in stores] == [stores.default] == ["local"]
    assert stores.get(stores.default).details()["data_dir"] == str(tmp_path / "state" / "images")


def test_the_directory_of_a_single_store_glance_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stores = build(tmp_path, "[glance_store]\nfilesystem_store_datadir = {tmp}/old\n")
    assert stores.get("local").details()["data_dir"] == str(tmp_path / "old")
    assert "single-store" in caplog.text


def test_sections_take_unset_options_from_backend_defaults(tmp_path: Path) -> None:
    stores = build(
        tmp_path,
        HEAD.format(backends="a:file,b:file", default="b")
        + "[a]\nfilesystem_store_datadir={tmp}/a\nweight=7\nstore_description=words\n"
        + "[b]\nfilesystem_store_datadir={tmp}/b\nfilesystem_store_chunk_size=8192\n"
        + "[backend_defaults]\nfilesystem_store_chunk_size=4096\nfilesystem_thin_provisioning=true\n",
    )
    a, b = stores
    assert (a.weight, a.description) == (7, "words")
    assert (a.details()["chunk_size"], b.details()["chunk_size"]) == (4096, 8192)
    assert a.details()["thin_provisioning"]


def test_two_buckets_of_one_server_and_two_servers_are_two_places(tmp_path: Path) -> None:
    text = HEAD.format(backends="a:s3,b:s3,c:s3,d:http,e:https", default="a") + S3
    for name, host, bucket in (("a", "h", "one"), ("b", "h", "two"), ("c", "g", "one")):
        text += f"[{name}]\ns3_store_host={host}\ns3_store_bucket=bucket-{bucket}\n"
    assert len(list(build(tmp_path, text))) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD.format(backends="a:file", default="") + "[a]\nfilesystem_store_datadir={tmp}/a\n", "default_backend must name"),
        (HEAD.format(backends="a:file", default="b") + "[a]\nfilesystem_store_datadir={tmp}/a\n", "not among"),
        (HEAD.format(backends="a:file,b:file", default="a") + "[a]\nfilesystem_store_datadir={tmp}/a\n[b]\nfilesystem_store_datadir={tmp}/x/../a\n", "same directory"),
        (HEAD.format(backends="a:s3,b:s3", default="a") + "[a]\n[b]\n" + S3 + "s3_store_host=https://h:443\ns3_store_bucket=images\n", "same place"),
        (HEAD.format(backends="os_glance_x:file", default="os_glance_x"), "reserved"),
        (HEAD.format(backends="OS_GLANCE_x:file", default="OS_GLANCE_x"), "reserved"),
        (HEAD.format(backends="database:file", default="database"), "another section"),
        (HEAD.format(backends="a b:file", default="a b"), "no store name"),
        (HEAD.format(backends="a:floppy", default="a"), "of type 'floppy'"),
        (HEAD.format(backends="a:file", default="a"), "set filesystem_store_datadir"),
        (HEAD.format(backends="a:file,b:file", default="a") + "[a]\nfilesystem_store_datadir={tmp}/a\n[b]\nfilesystem_store_datadir={tmp}/a/b\n", "within"),
        ("[glance_store]\ndefault_store = rbd\n", "default_store = rbd"),
        ("[glance_store]\ndefault_backend = a\n", "names no store"),
    ],
)  # fmt: skip
def test_what_could_lose_data_is_refused_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        build(tmp_path, text)


def test_two_names_of_one_directory_are_seen_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = HEAD.format(backends="a:file,b:file", default="a")
    with pytest.raises(errors.ConfigError, match="same directory"):
        build(tmp_path, text + "[a]\nfilesystem_store_datadir={tmp}/real\n[b]\nfilesystem_store_datadir={tmp}/link\n")


def test_a_location_is_found_by_name_or_else_by_its_url(tmp_path: Path) -> None:
    text = HEAD.format(backends="a:file,b:file", default="a")
    stores = build(tmp_path, text + "[a]\nfilesystem_store_datadir={tmp}/a\n[b]\nfilesystem_store_datadir={tmp}/b\n")
    url = f"file://{tmp_path}/b/x"
    for metadata in ({"store": "b"}, {}, {"store": "gone"}, {"backend": "b"}, {"store": "a"}):
        found = stores.of(Location(1, url, metadata))
        assert found is not None
        assert found.name == "b"
    assert stores.of(Location(1, "file:///elsewhere/x", {"store": "b"})) is None


def test_a_value_that_is_set_counts_even_when_it_is_the_default(tmp_path: Path) -> None:
    stores = build(
        tmp_path,
        HEAD.format(backends="a:file", default="a")
        + "[a]\nfilesystem_store_datadir={tmp}/a\nfilesystem_thin_provisioning=false\n"
        + "[backend_defaults]\nfilesystem_thin_provisioning=true\n",
    )
    assert not next(iter(stores)).details()["thin_provisioning"]


def test_the_options_of_a_single_store_glance_are_kept(tmp_path: Path) -> None:
    text = "[glance_store]\nfilesystem_store_datadir={tmp}/old\nfilesystem_thin_provisioning=true\n"
    assert next(iter(build(tmp_path, text))).details()["thin_provisioning"]


TWO = HEAD.format(backends="a:file,b:file", default="a") + "[a]\nfilesystem_store_datadir={tmp}/a\n"
TWO += "[b]\nfilesystem_store_datadir={tmp}/b\n"


def test_a_read_only_store_takes_nothing_gives_what_it_has_and_loses_nothing(tmp_path: Path) -> None:
    stores = build(tmp_path, f"{TWO}read_only = true\n")
    with pytest.raises(errors.StoreReadOnly):
        stores.for_writing("b")
    place = Location(1, f"file://{tmp_path}/b/x", {"store": "b"})
    with pytest.raises(errors.StoreUnavailable, match="read-only"):
        stores.for_removing(place)
    assert [(store.name, stores.takes_data(store)) for store in stores] == [("a", True), ("b", False)]
    assert [store.name for store, _ in stores.by_preference([place])] == ["b"]
    with pytest.raises(errors.ConfigError, match="does not take new data"):
        build(tmp_path, TWO.replace("default_backend = a", "default_backend = b") + "read_only = true\n")


def test_the_common_options_of_a_section_are_kept_to_and_taken_from_backend_defaults(tmp_path: Path) -> None:
    text = TWO + "max_retries = 7\nread_only = true\n"
    text += (
        "[backend_defaults]\nmax_uploads = 3\nmax_downloads = 4\nmax_retries = 1\nretry_interval = 0.2\nweight = 9\n"
    )
    a, b = stores = build(tmp_path, text)
    assert stores.access(a)._settings == Settings(
        max_uploads=3, max_downloads=4, max_retries=1, retry_interval=0.2, read_only=False
    )
    assert stores.access(b)._settings.max_retries == 7
    assert [stores.takes_data(one) for one in (a, b)] == [True, False]
    assert [one.weight for one in (a, b)] == [9, 9]


WEB = HEAD.format(backends="a:file,w:http", default="a") + "[a]\nfilesystem_store_datadir={tmp}/a\n"


def test_time_outs_are_handed_to_a_driver_that_has_them_and_refused_for_others(tmp_path: Path) -> None:
    _, web = build(tmp_path, WEB + "[w]\nconnect_timeout = 3\nread_timeout = 5\n")
    assert isinstance(web, HttpStore)
    assert (web.net.connect_timeout, web.net.head_timeout, web.net.read_timeout) == (3, 5, 5)
    _, web = build(tmp_path, WEB + "[w]\n")
    assert isinstance(web, HttpStore)
    assert (web.net.connect_timeout, web.net.head_timeout, web.net.read_timeout) == (10, 30, 30)
    for more in ("read_timeout = 5\n[w]\n", "connect_timeout = 5\n[w]\n", "[backend_defaults]\nread_timeout = 5\n"):
        with pytest.raises(errors.ConfigError, match="stores of type file have no such time-out"):
            build(tmp_path, WEB + more)
    with pytest.raises(errors.ConfigError, match="takes no uploads"):
        build(tmp_path, WEB + "[w]\nmax_uploads = 2\n")


def test_a_driver_may_not_mean_something_else_by_a_common_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(MemoryStore):
        options = [cfg.StrOpt("max_uploads")]  # noqa: RUF012

    monkeypatch.setitem(registry.DRIVERS, "odd", Odd)
    with pytest.raises(errors.ConfigError, match="another option 'max_uploads'"):
        build(tmp_path, HEAD.format(backends="o:odd", default="o"))


def test_a_driver_may_come_from_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "toy-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[calotype.stores]\ntoy = calotype.stores.memory:MemoryStore\nfile = nowhere:Bad\nbad = nowhere:Bad\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    text = HEAD.format(backends="a:file,b:toy", default="b") + "[a]\nfilesystem_store_datadir={tmp}/a\n[b]\n"
    a, b = build(tmp_path, f"{text}memory_store_size = 3\n")
    assert (a.kind, b.kind, b.details()["size"]) == ("file", "memory", 3 << 20)
    with pytest.raises(errors.ConfigError, match="cannot be loaded"):
        build(tmp_path, text.replace("b:toy", "b:bad"))
