"""Fixtures: one service for the whole run, clients for its users."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import VIOLATIONS, databases, observer
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=databases.KINDS,
        default="sqlite",
        help="what records are kept in; but for sqlite only tests run to which it makes a difference",
    )
    parser.addoption(
        "--without-database",
        choices=("also", "only", "never"),
        default="also",
        help="with sqlite: run the tests to which a database makes no difference, nothing else, or not them",
    )
    parser.addoption(
        "--half", type=int, choices=(1, 2), help="run every second file only, from the first or the second"
    )


def pytest_configure() -> None:
    """Who ends a run by SIGTERM, as `timeout` does, leaves no servers behind, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handle, os.environ[VIOLATIONS] = tempfile.mkstemp(prefix="calotype-violations-")
    os.close(handle)
    observer.observe()


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another run does: a test without a database runs with SQLite, one of a server without."""
    sqlite = config.getoption("--database") == "sqlite"
    without = config.getoption("--without-database") if sqlite else "never"
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "database_kind" in fixtures:
            there = without != "only" and not (sqlite and "server" in fixtures)
        else:
            there = without != "never"
        (kept if there else others).append(item)
    if half := config.getoption("--half"):
        files = sorted({item.path for item in kept})
        others += [item for item in kept if files.index(item.path) % 2 != half - 1]
        kept = [item for item in kept if files.index(item.path) % 2 == half - 1]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = kept


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--database"))


@pytest.fixture
def database_url(database_kind: str, tmp_path: Path) -> str:
    """An empty database of the kind that this run is about."""
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
    shown = CONF.replace("[DEFAULT]", "[DEFAULT]\nshow_image_direct_url = true")
    conf = shown.format(state=state) + keystone.conf(memcached)
    with running(state, conf) as started:
        keystone.offer(started.url)
        yield started
