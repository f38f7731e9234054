"""How lists grow with the number of images: Calotype alone, with few and with many images on one database server.

    python -m bench.growth [--database mariadb|postgresql|sqlite] [--small N] [--large N] …

Three callers: an administrator, the member of a project that owns 40 % of the images, and a project that sees what
is public and the 10 % that are shared with it. First and deep pages of 25 in every order and by every indexed
filter, small and large in turns; medians of wall time, and of CPU of service and database together. Then every
other filter and some combinations with many images alone, in seconds.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from tests.databases import KINDS
from tests.support import Service

from bench import dataset, meter, services
from bench.client import Connection, Refused, Target, basic
from bench.meter import Server
from calotype.api.listing import SORT_KEYS
from calotype.db.tables import image_members, image_tags, images

MUST, GOAL = 1.5, 1.2  #: times what it costs with few images
MUST_SECONDS, GOAL_SECONDS = 3.0, 0.3  #: with many images, for whatever else is asked
DEEP_LARGE, DEEP_SMALL = 90_000, 9_000  #: places in the result, where it has as many
#: who asks → (user, project); see `dataset.Shape` for what each owns and sees
CALLERS = {"admin": ("admin", "admin"), "owner": ("alice", "red"), "member": ("bob", "blue")}


@dataclass(frozen=True, slots=True)
class Listing:
    """One list: its query string, and the same in SQL to find a deep marker by."""

    query: str
    where: tuple[sa.ColumnElement[bool], ...] = ()
    visibility: str | None = None
    key: str = "created_at"
    descending: bool = True


def listings() -> list[Listing]:
    """The default order, each order by one key, equality on each column that has an index, and on a tag."""
    found = [Listing("")]
    for key in sorted(SORT_KEYS):
        found += [Listing(f"sort={key}:{way}", key=key, descending=way == "desc") for way in ("asc", "desc")]
    checksum, value = dataset.content(0)
    equal = [("name", dataset.POPULAR_NAME), ("name", "image-000007"), ("owner", "red")]
    equal += [("owner", dataset.SMALL_PROJECT), ("status", "active"), ("status", "queued")]
    equal += [("checksum", checksum), ("os_hash_value", value)]
    found += [Listing(f"{name}={value}", (images.c[name] == value,)) for name, value in equal]
    found += [Listing(f"visibility={name}", visibility=name) for name in ("public", "private", "shared", "community")]
    for tag in (dataset.POPULAR_TAG, dataset.RARE_TAG):
        has = sa.exists().where(image_tags.c.image_id == images.c.id, image_tags.c.value == tag)
        found.append(Listing(f"tag={tag}", (has.where(image_tags.c.deleted == sa.false()),)))
    return found


def others() -> list[str]:
    """Query strings of other filters, and combinations."""
    since, late = quote("2025-07-01T00:00:00Z"), quote("2025-12-31T00:00:00Z")
    name, tag = dataset.POPULAR_NAME, dataset.POPULAR_TAG
    found = [f"{key}={value}" for key, value in (dataset.COMMON_PROPERTY, dataset.RARE_PROPERTY)]
    found += ["{}={}".format(*dataset.ABSENT_PROPERTY), "build=00000007", "architecture=riscv64&os_distro=windows"]
    found += ["size_min=1073741824", "size_max=1048576", "size_min=21000000000&size_max=21001000000", "size=1073741824"]
    found += ["virtual_size=2147483648", f"created_at=gte:{late}", f"created_at=lt:{since}", f"updated_at=gt:{late}"]
    found += [f"created_at=gt:{since}&created_at=lt:{since[:-1]}", f"updated_at=lt:{since}&sort=name:asc"]
    found += ["protected=true", "protected=false", "os_hidden=true", "min_ram=512", "min_ram_min=2048", "min_disk=10"]
    found += ["disk_format=vhd", "container_format=ova", "os_hash_algo=sha512", "os_hash_algo=md5"]
    found += [f"name=in:{name},image-000001,image-000002", "status=in:queued,saving", "disk_format=in:iso,ami"]
    found += [f"tag={tag}&tag={dataset.OTHER_TAG}", f"tag={tag}&tag={dataset.RARE_TAG}", "tag=nobody-has-this"]
    found += [f"name={name}&status=active", f"name={name}&status=queued&sort=size:asc", "name=nobody-has-this"]
    found += ["owner=red&visibility=private", "owner=red&sort=name:asc", f"owner={dataset.SMALL_PROJECT}&sort=size:asc"]
    found += ["status=queued&sort=name:asc", "visibility=private&sort=size:desc", f"tag={tag}&sort=name:asc"]
    found += ["sort=name:asc,size:desc", "sort=status:asc,disk_format:desc,created_at:asc", "sort=size:asc,id:desc"]
    found += ["member_status=all", "member_status=pending&visibility=shared", "visibility=all"]
    found += ["visibility=all&sort=name:asc", "visibility=shared&member_status=accepted&sort=updated_at:desc"]
    found += ["limit=1000", "limit=1000&sort=name:asc", f"limit=1000&tag={tag}"]
    return found


# --- deep pages ------------------------------------------------------------------------------------------


def seen(caller: str, visibility: str | None) -> sa.ColumnElement[bool]:
    """What a caller's list may show of the rows that `dataset.py` makes."""
    project = CALLERS[caller][1]
    member = sa.exists().where(
        image_members.c.image_id == images.c.id,
        image_members.c.member == project,
        image_members.c.status == "accepted",
        image_members.c.deleted == sa.false(),
    )
    public = images.c.visibility.in_(("public", "community"))
    found: sa.ColumnElement[bool] = (images.c.owner == project) | public | ((images.c.visibility == "shared") & member)
    if caller == "admin":
        found = sa.true()
    if visibility is not None:
        return found & (images.c.visibility == visibility)
    return found & ((images.c.visibility != "community") | (images.c.owner == project))


def marker(connection: sa.Connection, caller: str, listing: Listing, depth: int) -> tuple[str | None, int]:
    """The id at a depth of a caller's result, or as deep as a page still follows; None in an empty result."""
    where = [images.c.deleted == sa.false(), images.c.os_hidden == sa.false(), *listing.where]
    where.append(seen(caller, listing.visibility))
    total = connection.execute(sa.select(sa.func.count()).select_from(images).where(*where)).scalar_one()
    depth = min(depth, max(total - 26, total // 2))
    if depth == 0:
        return None, 0
    unset: dict[str, Any] = {"name": "", "disk_format": "", "container_format": "", "size": 0}
    column: sa.ColumnElement[Any] = images.c[listing.key]
    key = sa.func.coalesce(column, unset[listing.key]) if listing.key in unset else column
    order = [key, *(images.c[tie] for tie in ("created_at", "id") if tie != listing.key)]
    ordered = [part.desc() if listing.descending else part.asc() for part in order]
    found = sa.select(images.c.id).where(*where).order_by(*ordered).limit(1).offset(depth - 1)
    return str(connection.execute(found).scalar_one()), depth


# --- measuring -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, in seconds."""

    wall: float
    cpu: float


class Slow(Exception):
    """No answer within the time-out."""


class Station:
    """A service on one database, and connections for its callers. A request that takes too long restarts it."""

    def __init__(self, service: Service, engine: sa.Engine, timeout: float) -> None:
        self.service, self.engine, self._timeout = service, engine, timeout
        self._database = meter.database_server(engine)
        self.start()

    def start(self) -> None:
        self.service.start()
        assert self.service.process
        self._server = Server(self.service.process.pid)
        # A little more than the database's own limit, so that it is the database that gives up where it can.
        self._connections = {
            caller: Connection(Target(self.service.port, basic(user)), timeout=self._timeout + 2)
            for caller, (user, _) in CALLERS.items()
        }

    def ask(self, caller: str, path: str) -> tuple[Sample, int]:
        """Get a list; what it cost, and how many images it held. Raises `Slow`."""
        connection = self._connections[caller]
        before = self._server.cpu() + self._database.cpu()
        begin = time.monotonic()
        try:
            body = connection.get(path)
        except (OSError, Refused) as exc:
            self.service.kill()
            self.start()
            if isinstance(exc, Refused) and time.monotonic() - begin < self._timeout / 2:
                raise
            raise Slow from exc
        wall = time.monotonic() - begin
        return Sample(wall, self._server.cpu() + self._database.cpu() - before), len(json.loads(body)["images"])


@dataclass
class Line:
    """What one list costs with few images and with many."""

    label: str
    rows: list[int] = field(default_factory=list)
    small: list[Sample] = field(default_factory=list)
    large: list[Sample] = field(default_factory=list)
    slow: bool = False

    def median(self, size: str, measure: str) -> float:
        return float(statistics.median(getattr(sample, measure) for sample in getattr(self, size)))

    def ratio(self, measure: str) -> float:
        return self.median("large", measure) / self.median("small", measure)

    @property
    def worse(self) -> float:
        """The larger one of both ratios; infinite without an answer."""
        return float("inf") if self.slow else max(self.ratio("wall"), self.ratio("cpu"))


def compare(
    line: Line, caller: str, paths: tuple[str, str], stations: tuple[Station, Station], times: int, budget: float
) -> None:
    """Ask both in turns, `times` times, or until `budget` seconds are gone."""
    begin = time.monotonic()
    try:
        for turn in range(times + 1):
            if turn > 1 and time.monotonic() - begin > budget:
                break
            found = [station.ask(caller, path) for station, path in zip(stations, paths, strict=True)]
            if turn == 0:
                line.rows = [rows for _, rows in found]  # and both are warm now
                if time.monotonic() - begin < budget:
                    continue
            line.small.append(found[0][0])
            line.large.append(found[1][0])
    except Slow:
        line.slow = True


def growing(stations: tuple[Station, Station], options: argparse.Namespace) -> list[str]:
    """Every list of the first kind, for every caller, first and deep; what missed its must."""
    print(f"\nFrom {options.small} to {options.large} images: milliseconds a list of 25, wall and CPU with database")
    print(f"{'':52} {'rows':>8} | {'wall':>8} {'CPU':>8} | {'wall':>8} {'CPU':>8} | {'wall':>6} {'CPU':>6}")
    lines = []
    for caller in CALLERS:
        for listing in listings():
            if not re.search(options.only, f"{caller} {listing.query}"):
                continue
            for depth, paths in pages(stations, caller, listing):
                line = Line(f"{caller}: {listing.query[:32] or 'default'}, {depth}")
                compare(line, caller, paths, stations, options.times, options.budget)
                tell(line, options.timeout)
                lines.append(line)
    for most, what in ((GOAL, "goal"), (MUST, "must")):
        within = sum(line.worse <= most for line in lines)
        print(f"{within} of {len(lines)} are within {most} x ({what}).")
    return [f"{line.label}: {line.worse:.2f} x, must be ≤ {MUST} x" for line in lines if line.worse > MUST]


def pages(stations: tuple[Station, Station], caller: str, listing: Listing) -> Iterator[tuple[str, tuple[str, str]]]:
    """The first page and a deep one: what to call it, and the paths on both."""
    path = f"/v2/images?limit=25&{listing.query}".removesuffix("&")
    yield "first", (path, path)
    found = []
    for station, depth in zip(stations, (DEEP_SMALL, DEEP_LARGE), strict=True):
        with station.engine.connect() as connection:
            found.append(marker(connection, caller, listing, depth))
    if all(place for place, _ in found):
        small, large = (f"{path}&marker={place}" for place, _ in found)
        yield f"{found[0][1]}/{found[1][1]}", (small, large)


def tell(line: Line, timeout: float) -> None:
    if line.slow:
        print(f"{line.label:52} no answer within {timeout:g} s: MISSED", flush=True)
        return
    cells = [f"{line.label:52} {'/'.join(map(str, line.rows)):>8}"]
    for size in ("small", "large"):
        cells.append(" ".join(f"{1000 * line.median(size, measure):8.1f}" for measure in ("wall", "cpu")))
    cells.append(" ".join(f"{line.ratio(measure):6.2f}" for measure in ("wall", "cpu")))
    cells.append("goal" if line.worse <= GOAL else "ok" if line.worse <= MUST else "MISSED")
    print(" | ".join(cells), flush=True)


def remaining(station: Station, options: argparse.Namespace) -> list[str]:
    """Every other filter and combinations, with many images, for every caller; what missed its must."""
    print(f"\nWith {options.large} images, other filters and combinations: seconds (medians of 3, first request apart)")
    missed = []
    for query in others():
        cells = []
        for caller in CALLERS:
            if not re.search(options.only, f"{caller} {query}"):
                continue
            label = f"{caller}: {query}"
            try:
                first, rows = station.ask(caller, f"/v2/images?{query}")
                again = [station.ask(caller, f"/v2/images?{query}")[0].wall for _ in range(3 if first.wall < 3 else 1)]
            except Slow:
                cells.append(f"{caller} > {options.timeout:g} s: MISSED")
                missed.append(f"{label}: no answer within {options.timeout:g} s")
                continue
            wall = statistics.median(again)
            verdict = "goal" if wall <= GOAL_SECONDS else "ok" if wall <= MUST_SECONDS else "MISSED"
            cells.append(f"{caller} {rows:4} rows {first.wall:6.3f} {wall:6.3f} {verdict:6}")
            if wall > MUST_SECONDS:
                missed.append(f"{label}: {wall:.1f} s, must be ≤ {MUST_SECONDS:g} s")
        if cells:
            print(f"{query[:56]:56} | {' | '.join(cells)}", flush=True)
    return missed


# --- setting up ------------------------------------------------------------------------------------------


@contextmanager
def stations(directory: Path, kind: str, options: argparse.Namespace) -> Iterator[tuple[Station, Station]]:
    """Two services, one on a database with few images and one on a database with many."""
    made = []
    engines = []
    try:
        for name, count in (("small", options.small), ("large", options.large)):
            url = services.fresh(kind, directory / name, options.pool)
            services.sync(url)
            engine = sa.create_engine(url)
            engines.append(engine)
            begin = time.monotonic()
            dataset.fill(engine, count, seed=options.seed)
            print(f"{count} images are there after {time.monotonic() - begin:.0f} s", flush=True)
        for name, engine in zip(("small", "large"), engines, strict=True):
            services.statement_limit(engine, options.timeout)
            url = engine.url.render_as_string(hide_password=False)
            service = services.calotype(directory / name, url, options.workers)
            made.append(service)
        few, many = (Station(service, engine, options.timeout) for service, engine in zip(made, engines, strict=True))
        yield few, many
    finally:
        for service in made:
            if service.process:
                service.stop()
        for engine in engines:
            engine.dispose()


def measure(directory: Path, kind: str, options: argparse.Namespace) -> list[str]:
    """All of it on one kind of database; what missed its must."""
    print(f"\nGrowth on {kind}; Calotype with {options.workers} worker(s)")
    with stations(directory, kind, options) as (small, large):
        missed = growing((small, large), options)
        return missed + remaining(large, options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that this command shares with `peer.py`."""
    parser.add_argument("--small", type=int, default=10_000, help="images in the small database, default %(default)s")
    parser.add_argument("--large", type=int, default=1_000_000, help="images in the large one, default %(default)s")
    parser.add_argument("--times", type=int, default=7, help="requests a list of the growth, default %(default)s")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for one request, default %(default)s")
    parser.add_argument(
        "--budget",
        type=float,
        default=20,
        help="seconds for all requests of one list of the growth, default %(default)s",
    )
    parser.add_argument(
        "--only", default="", help="lists whose caller and query match this pattern, such as 'owner sort='"
    )
    parser.add_argument("--workers", type=int, default=1, help="worker processes of Calotype, default %(default)s")
    parser.add_argument(
        "--pool", type=int, default=1024, help="MiB of memory for the database's pages, default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the rows, default %(default)s")
    parser.add_argument("--directory", type=Path, help="where to put files; default: a temporary directory")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how lists grow with the number of images.")
    parser.add_argument("--database", choices=KINDS, default="mariadb", help="default %(default)s")
    add_arguments(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="calotype-growth-") as name:
        missed = measure(Path(name), options.database, options)
    print("\nMissed:\n  " + "\n  ".join(missed) if missed else "\nEverything that must be reached is reached.")


if __name__ == "__main__":
    main()
