"""`calotype config check`: one complete report, which accounts for every option, changes nothing and is what a start does."""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import sqlalchemy as sa

from calotype import config
from calotype.cli.main import main
from calotype.db import schema
from calotype.db.engine import Database
from calotype.stores import registry
from tests import warm
from tests.cli.test_cli import calotype, free
from tests.support import free_port, running, write_users

SAMPLES = Path(__file__).parent / "configurations"
PROTECTIONS = "[.*]\ncreate = @\nread = @\nupdate = @\ndelete = @\n"


def check(tmp_path: Path, text: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The report on a configuration, as JSON; the command is run in this process."""
    if not (tmp_path / "c.conf").exists() or (tmp_path / "c.conf").read_text() != text:
        (tmp_path / "c.conf").write_text(text)
    where = ("--config-file", str(tmp_path / "c.conf"), "--state-dir", str(tmp_path / "s"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["config", "check", *where, "--json", *arguments]) == code, said.getvalue()
    report: dict[str, Any] = json.loads(said.getvalue())
    return report


def verdicts(report: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(one["section"], one["option"]): (one["verdict"], one["words"]) for one in report["options"]}


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    paths = [directory, *directory.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


# --- whole configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", sorted(path.stem for path in SAMPLES.glob("*.conf")))
def test_a_configuration_of_a_deployment_is_accounted_for_to_the_last_option(tmp_path: Path, sample: str) -> None:
    text = (SAMPLES / f"{sample}.conf").read_text().replace("@STATE@", str(tmp_path))
    connection = next(line for line in text.splitlines() if line.startswith("connection = "))
    text = text.replace(connection, f"connection = sqlite:///{tmp_path}/glance.db")
    (tmp_path / "property-protections-rules.conf").write_text(PROTECTIONS)
    (tmp_path / "logging.conf").touch()
    (tmp_path / "policy.yaml").touch()
    database = Database(f"sqlite:///{tmp_path}/glance.db")
    schema.sync(database)
    database.close()
    written = [line.partition(" = ")[0] for line in text.splitlines() if " = " in line and line[0] != "#"]
    (tmp_path / "c.conf").write_text(text)
    before = tree(tmp_path)
    report = check(tmp_path, text, "--strict")
    assert report["ready"]
    assert [one["option"] for one in report["options"]] == written
    assert {one["verdict"] for one in report["options"]} <= {"used", "replaced", "without effect"}
    assert all(one["words"] for one in report["options"] if one["verdict"] != "used")
    assert tree(tmp_path).keys() == before.keys()


def test_stores_that_there_are_not_are_said_each(tmp_path: Path) -> None:
    text = (
        "[DEFAULT]\nenabled_backends = a:nope, b:file, c:nix\n[glance_store]\ndefault_backend = b\n"
        "[a]\nrbd_store_pool = images\n[b]\nfilesystem_store_chunk_sise = 1\nfilesystem_store_timeout = 3\n"
    )
    report = check(tmp_path, text, code=1)
    assert {one.split()[2] for one in report["problems"] if "is of type" in one} == {"a", "c"}
    assert any("filesystem_store_datadir" in one for one in report["problems"])
    found = verdicts(report)
    assert found["a", "rbd_store_pool"] == ("without effect", "this release has no stores of type nope")
    assert found["b", "filesystem_store_timeout"][0] == "without effect"


@pytest.mark.parametrize("section", ["a", "backend_defaults"])
def test_a_wrong_value_in_the_section_of_a_store_is_a_problem(tmp_path: Path, section: str) -> None:
    stores = "[DEFAULT]\nenabled_backends = a:file\n[glance_store]\ndefault_backend = a\n"
    text = f"{stores}[a]\nfilesystem_store_datadir = {tmp_path}/x\n[{section}]\nweight = much\n"
    assert f"[{section}] weight: " in check(tmp_path, text, code=1)["problems"][0]


EVERYTHING = """\
[DEFAULT]
image_size_cap = much
hashing_algorithm = md5
enabled_backends = a:file
metadata_encryption_key = 0123456789abcdef
property_protection_file = nope.conf
user_storage_quota = 10 parsec
this line is none
log_file = {tmp}/nowhere/calotype.log
[server]
bind = 0.0.0.0:9292
[oslo_policy]
policy_file = nope.yaml
[oslo_messaging_notifications]
driver = pigeon
[paste_deploy]
flavor = keystoned
[import_filtering_opts]
disallowed_schemes = [http
[healthcheck
[database]
connection = sqlite:///{tmp}/nowhere/glance.db
"""


def test_every_error_is_told_at_once(tmp_path: Path) -> None:
    report = check(tmp_path, EVERYTHING.format(tmp=tmp_path), code=1)
    lines = [one for one in report["problems"] if "c.conf, line" in one]
    assert ["line 8:" in lines[0], "line 20:" in lines[1]] == [True, True], lines
    assert len(report["options"]) == 13
    # A file with lines that cannot be read has no values: these are told once it can be read.
    sound = EVERYTHING.replace("this line is none\n", "").replace("[healthcheck\n", "")
    report = check(tmp_path, sound.format(tmp=tmp_path), code=1)
    text = "\n".join(report["problems"])
    for words in (
        "image_size_cap", "md5", "default_backend", "metadata_encryption_key", "nope.yaml", "nope.conf", "pigeon", "keystoned",
        "without TLS", "user_storage_quota", "disallowed_schemes", "there is no directory", "there is no file",
    ):  # fmt: skip
        assert words in text, words


# --- single options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ("[DEFAULT]\nimage_size_cap = 5", "used", ""), ("[DEFAULT]\nworkers = 2", "used", "[server] workers"),
        ("[DEFAULT]\ndisk_formats = raw", "used", "[image_format] disk_formats"), ("[DEFAULT]\nsql_idle_timeout = 5", "used", ""),
        ("[DEFAULT]\nnotification_driver = log", "used", "[oslo_messaging_notifications] driver"),
        ("[DEFAULT]\nlog-dir = /tmp", "used", ""), ("[DEFAULT]\nuse_json = true", "used", ""),
        ("[oslo_policy]\nremote_timeout = 5", "used", ""), ("[DATABASE]\nsql_max_pool_size = 5", "used", ""),
        ("[DEFAULT]\nhttp_keepalive = true", "replaced", "[server] keepalive_timeout"),
        ("[DEFAULT]\nshow_multiple_locations = true", "replaced", "OSSN-0090"),
        ("[DEFAULT]\nsecure_proxy_ssl_header = X", "replaced", "enable_proxy_headers_parsing"),
        ("[DEFAULT]\nscrub_time = 5", "without effect", "by jobs"), ("[profiler]\nwhatever = 1", "without effect", ""),
        ("[keystone_authtoken]\nauth_url = x", "without effect", "does not name keystone"),
        ("[oslo_limit]\nendpoint_id = x", "without effect", "use_keystone_limits"),
        ("[DEFAULT]\nowner_is_tenant = true", "without effect", "asks for nothing"),
        ("[DEFAULT]\nmetadata_encryption_key =", "without effect", "asks for nothing"),
        ("[glance_store]\nswift_store_user = x", "without effect", ""),
        ("[DEFAULT]\nimage_sise_cap = 5", "unknown", "did you mean image_size_cap?"),
        ("[DEFAULT]\ndefault_backend = a", "unknown", "it belongs in [glance_store]"),
        ("[server]\nimage_size_cap = 1", "unknown", "it belongs in [DEFAULT]"),
        ("[Default]\ndebug = true", "unknown", "it belongs in [DEFAULT]"),
        ("[imagee_format]\nfoo = raw", "unknown", "did you mean [image_format]?"),
        ("[imagee_format]\ndisk_formats = raw", "unknown", "belongs in [image_format]"),
        ("[fast]\nfilesystem_store_datadir = /x", "unknown", "names no store fast"),
        ("[fast]\nweight = 3", "unknown", "names no store fast"), ("[zzz]\nqqq = 1", "unknown", "no such section"),
    ],
)  # fmt: skip
def test_each_option_has_a_verdict_and_the_words_that_help(tmp_path: Path, text: str, verdict: str, words: str) -> None:
    (finding,) = check(tmp_path, text + "\n")["options"]
    assert finding["verdict"] == verdict
    assert words in finding["words"]


@pytest.mark.parametrize(
    "line",
    [
        "metadata_encryption_key = k",
        "owner_is_tenant = False",
        "ca_file = /etc/ca.pem",
        "filesystem_store_datadirs = /a",
    ],
)
def test_what_would_weaken_protection_is_refused_by_check_and_start_alike(tmp_path: Path, line: str) -> None:
    section = "glance_store" if line.startswith("filesystem") else "DEFAULT"
    report = check(tmp_path, f"[{section}]\n{line}\n", code=1)
    assert [one["verdict"] for one in report["options"]] == ["refused"]
    (problem,) = report["problems"]
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s")
    assert problem in calotype("serve", *place, *free(), code=2)


def test_options_of_stores_are_known_in_their_sections(tmp_path: Path) -> None:
    options = [option for option in registry.options_of("file") or () if option.default is not None]
    lines = "\n".join(f"{option.dest} = {option.default}" for option in options)
    text = (
        f"[DEFAULT]\nenabled_backends = Fast:file\n[glance_store]\ndefault_backend = Fast\n"
        f"[Fast]\nfilesystem_store_datadir = {tmp_path}/x\n{lines}\n[backend_defaults]\nfilesystem_store_reserve = 1\n"
    )
    assert {one["verdict"] for one in check(tmp_path, text)["options"]} == {"used"}


def test_what_is_set_twice_is_a_doubt_and_strict_says_so(tmp_path: Path) -> None:
    twice = "[DEFAULT]\nimage_size_cap = 1\n[task]\n[DEFAULT]\nimage_size_cap = 2\n"
    (doubt,) = check(tmp_path, twice)["doubts"]
    assert "image_size_cap is set 2 times" in doubt
    check(tmp_path, twice, "--strict", code=3)
    check(tmp_path, "[DEFAULT]\nimage_sise_cap = 1\n", "--strict", code=3)
    several = "[oslo_messaging_notifications]\ndriver = log\ndriver = noop\n[DEFAULT]\nscrub_time = 1\n"
    assert check(tmp_path, several, "--strict")["doubts"] == []
    (tmp_path / "policy.yaml").write_text('"delte_image": "!"\n')
    database = f"[database]\nconnection = sqlite:///{tmp_path}/c.db\n"
    calotype("db", "sync", "--config-file", _written(tmp_path / "d.conf", database), "--state-dir", tmp_path / "s")
    report = check(tmp_path, database, "--strict", code=3)
    assert "delete_image" in report["doubts"][0]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_environment_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEFAULT__IMAGE_SIZE_CAP", "DEFAULT__IMAGE_SISE_CAP", "AUTH_URL", "SOMEBODY__ELSE", "DEFUALT__DEBUG"):
        monkeypatch.setenv(f"OS_{name}", "5")
    found = {one["source"]: one["verdict"] for one in check(tmp_path, "")["options"]}
    assert found == {
        "OS_DEFAULT__IMAGE_SIZE_CAP": "used",
        "OS_DEFAULT__IMAGE_SISE_CAP": "unknown",
        "OS_DEFUALT__DEBUG": "unknown",
    }
    monkeypatch.setenv("OS_DEFAULT__IMAGE_SIZE_CAP", "x")
    assert "image_size_cap" in check(tmp_path, "", code=1)["problems"][0]


def test_variables_of_another_spelling_are_doubts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = "[DEFAULT]\nenabled_backends = Ceph-1:file\n[glance_store]\ndefault_backend = Ceph-1\n"
    conf += f"[Ceph-1]\nfilesystem_store_datadir = {tmp_path}/images\n"
    for name in (
        "OS_SERVER_BIND",
        "OS_DEFAULT__state_dir",
        "OS_CEPH-1_WEIGHT",
        "OS_CEPH-1__MAX_UPLOADS",
        "OS_PROJECT_ID",
    ):
        monkeypatch.setenv(name, "5")
    report = check(tmp_path, conf)
    assert [one["source"] for one in report["options"] if one["source"].startswith("OS_")] == ["OS_CEPH-1__MAX_UPLOADS"]
    assert report["doubts"] == [
        "The environment variable OS_CEPH-1_WEIGHT is not read; did you mean OS_CEPH-1__WEIGHT?",
        "The environment variable OS_DEFAULT__state_dir is not read; did you mean OS_DEFAULT__STATE_DIR?",
        "The environment variable OS_SERVER_BIND is not read; did you mean OS_SERVER__BIND?",
    ]


def test_the_report_for_people_names_everything_and_no_value(tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text(
        "[DEFAULT]\nimage_cache_dir = /x\nimage_cache_max_size = 1\nimage_sise_cap = 1\n"
        "metadata_encryption_key = s3cret\n[database]\nconnection = sqlite:////s3cret\n"
    )
    said = calotype("config", "check", "--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s", code=1)
    assert "[DEFAULT] image_cache_dir, image_cache_max_size: there is no image cache" in said
    assert "would weaken protection (refused):\n    [DEFAULT] metadata_encryption_key: " in said
    assert "unknown:\n    [DEFAULT] image_sise_cap: did you mean image_size_cap?" in said
    assert said.rstrip().endswith("cannot be served: 2 problems.")
    assert "= s3cret" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[DEFAULT]\nlog_file = a\0b\n", "null bytes"), (b"\xef\xbb\xbf[DEFAULT]\n", "byte order mark"),
        (b"[DEFAULT]\n# caf\xe9\n", "not text in UTF-8"), (b"[DEFAULT]\ndebug = maybe\n", "[DEFAULT] debug: Unexpected boolean"),
        (b"[DEFAULT]\nlog_file = $nope\n", "[DEFAULT] log_file: no such option nope"),
        (b"[DEFAULT]\nlog_dir = $log_dir\n", "[DEFAULT] log_dir: it refers to itself"),
        (b"[DEFAULT]\npublic_endpoint = $public_endpoint\n", "[DEFAULT] public_endpoint: it refers to itself"),
        (b"[DEFAULT]\nstate_dir = ~/calotype\n", "[DEFAULT] state_dir: write the whole path"),
        (b"[DEFAULT]\nmax_logfile_count = x\n", "[DEFAULT] max_logfile_count"),
        (b"[DEFAULT]\nbind_port = 0\n", "[DEFAULT] bind_port"), (b"[DEFAULT]\nbind_host = 127.0.0.1:9292\n", "no name or address"),
        (b"[oslo_policy]\nremote_timeout = x\n", "[oslo_policy] remote_timeout"),
        (b"[DEFAULT]\ndefault_log_levels = calotype=LOUD\n", "default_log_levels: calotype=LOUD is no LOGGER=LEVEL"),
        (b"[DEFAULT]\ndefault_log_levels = calotype\n", "default_log_levels: calotype is no LOGGER=LEVEL"),
        (b"[server]\nclient_timeout = nan\n", "[server] client_timeout: nan is not finite"),
        (b"[DEFAULT]\npublic_endpoint = images.example.org\n", "[DEFAULT] public_endpoint"),
        (b"[http_basic]\nusers_file = /etc\n", "/etc is no users file"),
        (b"[database]\nconnection = mysql://u:s3cret@h:x/d\n", "not the URL of a database"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_a_file_the_report_is_whole_and_the_start_says_the_same(
    tmp_path: Path, text: bytes, words: str
) -> None:
    (tmp_path / "c.conf").write_bytes(text)
    place = ("--config-file", str(tmp_path / "c.conf"), "--state-dir", str(tmp_path / "s"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["config", "check", "--json", *place]) == 1
    (problem,) = json.loads(said.getvalue())["problems"]
    assert words in problem
    refused = calotype("serve", *place, code=2)
    assert words in refused
    assert len(refused.splitlines()) == 1
    assert "s3cret" not in problem + refused


LIBRARIES = """\
[DEFAULT]
use_keystone_limits = true
rpc_response_timeout = x
transport_url = fake://
[paste_deploy]
flavor = keystone
[oslo_policy]
remote_timeout = x
[keystone_authtoken]
auth_type = password
insecure = maybe
memcache_security_strategy = foo
service_token_roles = [service, admin]
memcached_servers = [::1]
[oslo_limit]
timeout = x
[oslo_messaging_notifications]
driver = messagingv2
retry = x
[oslo_messaging_rabbit]
ssl = maybe
"""


def test_all_wrong_values_of_libraries_are_told_at_once(tmp_path: Path) -> None:
    problems = check(tmp_path, LIBRARIES, code=1)["problems"]
    assert not any("memcached_servers" in one for one in problems)  # one IPv6 address
    for words in (
        "[DEFAULT] rpc_response_timeout", "[oslo_policy] remote_timeout", "[keystone_authtoken] insecure",
        "[keystone_authtoken] memcache_security_strategy",
        "[keystone_authtoken] service_token_roles: a list of this library is written without brackets", "[oslo_limit] timeout", "[oslo_messaging_notifications] retry",
        "[oslo_messaging_rabbit] ssl",
    ):  # fmt: skip
        assert len([one for one in problems if one.startswith(words)]) == 1, words


@pytest.mark.parametrize("name", ["Server", "CORS", "default", "Keystone_AuthToken", "oslo_policy", "Backend_Defaults"])
def test_a_store_has_no_section_of_something_else(tmp_path: Path, name: str) -> None:
    text = f"[DEFAULT]\nenabled_backends = {name}:file\n[glance_store]\ndefault_backend = {name}\n"
    problems = check(tmp_path, f"{text}[{name}]\nfilesystem_store_datadir = {tmp_path}/x\n", code=1)["problems"]
    assert any("is the name of another section" in one for one in problems)


def test_one_option_under_two_names_is_a_doubt(tmp_path: Path) -> None:
    text = "[DEFAULT]\nworkers = 1\nsql_max_retries = 1\n[SERVER]\nworkers = 2\n[database]\nmax_retries = 2\nmax-retries = 3\n"
    first, second = sorted(check(tmp_path, text)["doubts"])
    assert (
        "[DEFAULT] sql_max_retries and [database] max_retries and [database] max-retries are the same option" in first
    )
    assert "[DEFAULT] workers and [SERVER] workers are the same option" in second


def test_what_a_single_store_was_has_no_effect_beside_named_stores(tmp_path: Path) -> None:
    text = (
        "[DEFAULT]\nenabled_backends = a:file\n[glance_store]\ndefault_backend = a\ndefault_store = file\n"
        f"filesystem_store_datadir = /old\n[a]\nfilesystem_store_datadir = {tmp_path}/x\n"
    )
    found = verdicts(check(tmp_path, text))
    for option in ("default_store", "filesystem_store_datadir"):
        assert found["glance_store", option] == ("without effect", "enabled_backends names the stores")
    assert found["a", "filesystem_store_datadir"][0] == "used"


def test_doubts_about_policies_need_no_database(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text('"get_imagee": "role:admin"\n"get_image": "@"\n"get_image": "@"\n')
    first, second = check(tmp_path, "", "--strict", code=3)["doubts"]
    assert "get_image is there more than once" in first
    assert "get_imagee" in second


# --- paths and the database ------------------------------------------------------------------------------


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As nobody, when the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_paths_without_rights_have_sentences_of_their_own(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir()
    for name in ("key.pem", "glance.db", "policy.yaml", "protections.conf"):
        (closed / name).touch()
        (closed / name).chmod(0)
    closed.chmod(0o555)
    (open_directory / "c.conf").write_text(
        f"[DEFAULT]\nlog_dir = {closed}\nenabled_backends = a:file\nproperty_protection_file = {closed}/protections.conf\n"
        f"[glance_store]\ndefault_backend = a\n[a]\nfilesystem_store_datadir = {closed}/images\n"
        f"[server]\ntls_cert = {closed}/key.pem\ntls_key = {closed}/key.pem\n"
        f"[oslo_policy]\npolicy_file = {closed}/policy.yaml\n[database]\nconnection = sqlite:///{closed}/glance.db\n"
    )
    (open_directory / "closed.conf").touch(0)
    conf = (open_directory / "c.conf").read_text()
    more = ("--state-dir", str(closed / "state"), "--config-file", str(open_directory / "closed.conf"))
    check(open_directory, "")  # imports all that there is, as somebody who may
    (open_directory / "c.conf").write_text(conf)
    (open_directory / "c.conf").chmod(0o644)
    with without_rights():
        problems = check(open_directory, conf, *more, code=1)["problems"]
    text = "\n".join(problems)
    for words in (
        f"state_dir: {closed} may not hold", f"log: {closed} may not be written", f"Store a: {closed} may not hold",
        f"tls_key {closed}/key.pem may not be read", f"{closed}/glance.db may not be read and written",
        f"{closed}/policy.yaml cannot be used", "protections.conf cannot be used", "closed.conf cannot be read: Permission",
    ):  # fmt: skip
        assert words in text, words


def test_a_database_that_is_missing_old_newer_or_glances_is_told_apart(tmp_path: Path) -> None:
    conf = f"[database]\nconnection = sqlite:///{tmp_path}/one.db\n"
    assert "there is no file" in check(tmp_path, conf, code=1)["problems"][0]
    assert not (tmp_path / "one.db").exists()
    database = Database(f"sqlite:///{tmp_path}/one.db")
    with database.write_once() as tx:
        tx.execute(sa.text("CREATE TABLE other (id INTEGER)"))
    assert "is empty; run: calotype db sync" in check(tmp_path, conf, code=1)["problems"][0]
    with database.write_once() as tx:
        tx.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        tx.execute(sa.text("INSERT INTO alembic_version VALUES ('2024_1_contract01')"))
    assert "one of Glance, at 2024_1_contract01" in check(tmp_path, conf, code=1)["problems"][0]
    with database.write_once() as tx:
        tx.execute(sa.text("CREATE TABLE calotype_version (version_num VARCHAR(32))"))
        tx.execute(sa.text("INSERT INTO calotype_version VALUES ('0001')"))
    assert "older release (0001;" in check(tmp_path, conf, code=1)["problems"][0]
    with database.write_once() as tx:
        tx.execute(sa.text("UPDATE calotype_version SET version_num = '9999'"))
    assert "start a newer Calotype" in check(tmp_path, conf, code=1)["problems"][0]
    database.close()


def test_a_database_that_does_not_answer_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    conf = f"[DEFAULT]\nhashing_algorithm = md5\n[database]\nconnection = mysql://u:s3cret@127.0.0.1:{free_port()}/d\n"
    problems = check(tmp_path, conf, code=1)["problems"]
    assert len(problems) == 2
    assert "refused" in problems[1]
    assert "s3cret" not in problems[1]


def test_checking_a_state_directory_changes_nothing_in_it(state: Path, tmp_path: Path) -> None:
    with running(state) as service:
        service.client().active(b"data")
    before = tree(state)
    said = calotype("config", "check", *service.place)
    assert "can be served" in said
    assert tree(state).keys() == before.keys()
    said = calotype("config", "check", "--state-dir", tmp_path / "new")
    assert "will make the database" in said
    assert not (tmp_path / "new").exists()


# --- the start -------------------------------------------------------------------------------------------


def test_a_start_says_once_what_has_no_effect(state: Path) -> None:
    conf = "[DEFAULT]\nimage_cache_dir = /x\nscrub_time = 1\nimage_sise_cap = 5\nhttp_keepalive = true\n"
    with running(state, conf, "--workers", "2") as service:
        lines = [line for line in service.log.splitlines() if "options" in line]
        assert len(lines) == 3
        assert "[DEFAULT] image_sise_cap: did you mean image_size_cap?" in lines[0]
        assert "now [server] keepalive_timeout" in lines[1]
        assert "[DEFAULT] image_cache_dir, [DEFAULT] scrub_time" in lines[2]


def test_glances_options_say_where_to_listen_and_with_how_many_workers(tmp_path: Path) -> None:
    port = free_port()
    write_users(tmp_path / "users.json")
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\nbind_host = 127.0.0.1\nbind_port = {port}\nworkers = 2\n")
    with (tmp_path / "log").open("wb") as log:
        command = ["serve", "--config-file", str(tmp_path / "c.conf"), "--state-dir", str(tmp_path)]
        process = warm.start("calotype", command, stderr=log, stdout=log)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                assert requests.get(f"http://127.0.0.1:{port}/healthcheck", timeout=60).text == "OK"
                break
            except requests.ConnectionError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
        while len(psutil.Process(process.pid).children()) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize(
    ("text", "bind", "workers"),
    [
        ("", "127.0.0.1:9292", 1), ("[DEFAULT]\nbind_port = 1\n", "127.0.0.1:1", 1), ("[DEFAULT]\nbind_host = ::\n", "[::]:9292", 1),
        ("[DEFAULT]\nbind_host = 192.0.2.1\nbind_port = 80\nworkers = 3\n", "192.0.2.1:80", 3),
        ("[DEFAULT]\nbind_host = 192.0.2.1\nworkers = 3\n[server]\nbind = 127.0.0.1:5\nworkers = 4\n", "127.0.0.1:5", 4),
    ],
)  # fmt: skip
def test_our_options_win_over_those_of_glance(tmp_path: Path, text: str, bind: str, workers: int) -> None:
    (tmp_path / "c.conf").write_text(text)
    conf = config.load([str(tmp_path / "c.conf")])
    assert (conf.server.bind, conf.server.workers) == (bind, workers)


def test_the_start_tells_all_wrong_values_too(tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text("[DEFAULT]\nimage_size_cap = x\n[task]\ntask_time_to_live = y\n")
    said = calotype("serve", "--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s", *free(), code=2)
    assert "image_size_cap" in said
    assert "task_time_to_live" in said
    assert f"{tmp_path}/nope" in calotype("serve", "--config-dir", tmp_path / "nope", code=2)


@pytest.mark.parametrize("line", ["log_file = /nowhere/x.log", "log_config_append = /nowhere/x.conf"])
def test_a_log_that_cannot_be_written_is_a_sentence_by_check_and_start_alike(tmp_path: Path, line: str) -> None:
    assert "/nowhere" in check(tmp_path, f"[DEFAULT]\n{line}\n", code=1)["problems"][0]
    said = calotype("serve", "--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s", *free(), code=2)
    assert re.search(r"^calotype: .*/nowhere", said, re.MULTILINE)
