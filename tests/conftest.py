"""Fixtures: one service for the whole run, clients for its users."""

import contextlib
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype.auth import basic
from tests import PASSWORD_COST, VIOLATIONS, databases, needed, observer, support
from tests.keystone import Keystone, Memcached
from tests.support import Client, Service, running

#: Two file stores and one in memory, so that every test of the API runs in multi-store mode.
CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file, brief:memory
image_property_quota = 20
image_tag_quota = 20
image_member_quota = 5
image_size_cap = 67108864
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
store_description = quick and dear
weight = 200
[cheap]
filesystem_store_datadir = {state}/cheap
weight = 100
[brief]
memory_store_size = 64
"""
#: For clients that import: all methods, and a web server of the tests' own. The service is a region elsewhere to itself.
METHODS = "enabled_import_methods = glance-direct, web-download, copy-image, glance-download\n"
FETCHES = "[import_filtering_opts]\nallowed_ports =\nprivate_hosts = 127.0.0.3, 127.0.0.1\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=databases.KINDS,
        default="sqlite",
        help="what records are kept in; but for sqlite only tests run to which it makes a difference",
    )
    parser.addoption(
        "--alone",
        choices=("also", "only", "never"),
        default="also",
        help="run the tests that measure time and want a machine of their own, nothing else, or not them",
    )
    parser.addoption(
        "--queue",
        type=Path,
        metavar="DIRECTORY",
        help="run only the files that no other run with this directory has begun",
    )
    parser.addoption(
        "--check", action="store_true", help="only what is quick and needs nothing that pip does not bring"
    )


def pytest_configure() -> None:
    """Who ends a run by SIGTERM, as `timeout` does, leaves no servers behind, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handle, os.environ[VIOLATIONS] = tempfile.mkstemp(prefix="calotype-violations-")
    os.close(handle)
    observer.observe()
    basic._COST = PASSWORD_COST


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was found when the last test was over, as services of the run stopped."""
    if left := Path(os.environ[VIOLATIONS]).read_text():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nnot as the API is described:\n{left}")


def pytest_unconfigure() -> None:
    os.unlink(os.environ.pop(VIOLATIONS))


@pytest.fixture(autouse=True)
def every_answer_is_as_described() -> Iterator[None]:
    """Fail the test in which a service answered what the description of the API does not say."""
    found = Path(os.environ[VIOLATIONS])
    yield
    if found.stat().st_size:
        violations = found.read_text().splitlines()
        found.write_text("")
        pytest.fail("not as the API is described:\n" + "\n".join(dict.fromkeys(violations)), pytrace=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    support.needed = needed.needs(item, item.config.getoption("--database"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The few tests that measure time begin sooner if the other files are not read."""
    if config.getoption("--alone") != "only" or not collection_path.name.startswith("test_"):
        return None
    return True if "pytest.mark.alone" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another run does: a test to which a database makes no difference runs with SQLite."""
    sqlite = config.getoption("--database") == "sqlite"
    alone = "never" if config.getoption("--check") else config.getoption("--alone")

    def wanted(item: pytest.Item) -> bool:
        if alone == ("never" if item.get_closest_marker("alone") else "only"):
            return False
        if config.getoption("--check") and (item.get_closest_marker("slow") or needed.needs(item, "sqlite")):
            return False
        return not (sqlite and "server" in item.fixturenames) if needed.differs(item) else sqlite

    kept = [item for item in items if wanted(item)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=list(set(items).difference(kept)))
        items[:] = kept


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """As pytest's own, but runs that share a queue of files share the work, and end at the same time."""
    queue = session.config.getoption("--queue")
    if queue is None or session.config.option.collectonly or session.testsfailed:
        return None
    items = _taken(session.items, queue)
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _taken(items: list[pytest.Item], queue: Path) -> Iterator[pytest.Item]:
    """The tests of the files that this run comes to first; files with a test that takes long come before the others."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def is_short(path: Path) -> bool:
        return not any(item.get_closest_marker("slow") or item.get_closest_marker("needs") for item in files[path])

    for path in sorted(files, key=is_short):
        with contextlib.suppress(FileExistsError):
            (queue / "-".join(path.parts[-2:])).touch(exist_ok=False)
            yield from files[path]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests are looked at by no collection of garbage: tests ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--database"))


@pytest.fixture
def database_url(database_kind: str, tmp_path: Path) -> str:
    """For a database of the kind that this run is about, which `databases.synced` makes."""
    return databases.reserved(database_kind, tmp_path)


@pytest.fixture
def empty_database_url(database_kind: str, tmp_path: Path) -> str:
    """A database without tables."""
    return databases.fresh(database_kind, tmp_path)


@pytest.fixture
def own_database(database_kind: str) -> str:
    """For a service of the test's own: `running(state, database=own_database)`."""
    return databases.for_service(database_kind)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("service")
    with running(state, CONF.format(state=state), database=databases.for_service(database_kind)) as started:
        yield started


@pytest.fixture
def alice(service: Service) -> Client:
    """A member of project red."""
    return service.client("alice")


@pytest.fixture
def bob(service: Service) -> Client:
    """A member of project blue."""
    return service.client("bob")


@pytest.fixture
def admin(service: Service) -> Client:
    return service.client("admin")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that nobody else uses."""
    return tmp_path / "state"


@pytest.fixture(scope="session")
def keystone() -> Iterator[Keystone]:
    """One Keystone for the whole run; leave its users and their tokens as they are."""
    started = Keystone().start()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def memcached() -> Iterator[Memcached]:
    started = Memcached()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory, keystone: Keystone, memcached: Memcached) -> Iterator[Service]:
    """A service that asks the Keystone of the run, and is in its catalog. Who asks makes no difference to a database."""
    state = tmp_path_factory.mktemp("cloud")
    shown = CONF.replace("[DEFAULT]", f"[DEFAULT]\nshow_image_direct_url = true\n{METHODS}")
    conf = shown.format(state=state) + keystone.conf(memcached) + FETCHES
    with running(state, conf) as started:
        keystone.offer(started.url)
        yield started
