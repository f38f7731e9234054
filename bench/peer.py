"""`make peer`: Calotype beside a real Glance 33, in one run, on one MariaDB server.

    python -m bench.peer [--sections show,list,pages,create,data,metadefs,growth] [--keystone] [--rounds N] …

The peer sets itself up (`glance.py`). Both services have the same rows (`dataset.py`), the same clients
(`client.py`), and take turns; a figure is the median of its rounds. Requests a second are what the clients saw; CPU
is that of all processes of the service, and that of the database server in the same time (`meter.py`). How Calotype
alone grows with the number of images is `growth.py`.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import sqlalchemy as sa
from tests.keystone import Keystone, Memcached

from bench import client, dataset, definitions, growth, meter, services
from bench.client import Connection, Step, Target
from bench.glance import CALLERS, PROCESSES, VERSION, Glance, install
from bench.meter import Server
from calotype.api.listing import SORT_KEYS
from calotype.db import tables

SECTIONS = ("show", "list", "pages", "create", "data", "metadefs", "growth")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Promise:
    """How many times better than Glance a measure must be, and should. `measure` is one of `Figure.RATIOS`."""

    measure: str
    must: float
    goal: float


_METADEFS = {
    "metadefs list": (Promise("both", 10, 10), Promise("rate", 10, 10)),
    "metadefs show": (Promise("both", 5, 5), Promise("rate", 5, 5)),
}
#: section → what it must reach, without Keystone and behind one.
PROMISES: dict[bool, dict[str, tuple[Promise, ...]]] = {
    False: {
        "show": (Promise("server", 5, 8), Promise("rate", 4, 8)),
        "list": (Promise("both", 30, 60),),
        "pages": (Promise("both", 15, 25),),
        "create": (Promise("both", 6, 10),),
        **_METADEFS,
    },
    True: {
        "show": (Promise("server", 4.5, 7),),
        "list": (Promise("both", 25, 25),),
        "pages": (),
        "create": (Promise("both", 5, 5),),
        **_METADEFS,
    },
}
MOST_STATEMENTS = 2
#: Orders by two keys: where few images are alike in the first one, where many are, and where half of them are.
ORDERS = (
    *("name:asc,created_at:desc", "name:asc,size:desc", "size:asc,name:asc", "created_at:desc,name:asc"),
    *("status:asc,name:asc", "container_format:asc,disk_format:asc", "disk_format:desc,size:asc"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two services."""

    name: str
    target: Target
    server: Server


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one service: steps a second, and CPU-milliseconds a step."""

    rate: float
    server: float
    database: float

    @property
    def both(self) -> float:
        return self.server + self.database


@dataclass
class Figure:
    """What both services did in all rounds."""

    glance: list[Sample] = field(default_factory=list)
    calotype: list[Sample] = field(default_factory=list)

    RATIOS: ClassVar = {"rate": "requests/s", "server": "server CPU", "both": "CPU with database"}

    def median(self, name: str, measure: str) -> float:
        return float(statistics.median(getattr(sample, measure) for sample in getattr(self, name)))

    def ratio(self, measure: str) -> float:
        """How many times better Calotype is."""
        glance, calotype = self.median("glance", measure), self.median("calotype", measure)
        return calotype / glance if measure == "rate" else glance / max(calotype, 1e-9)


class Bench:
    """Both services at work, and the table of figures as it is printed."""

    def __init__(
        self,
        glance: Side,
        calotype: Side,
        engine: sa.Engine,
        options: argparse.Namespace,
        complaints: Callable[[], str],
        owner: str,
    ) -> None:
        self.sides = (glance, calotype)
        self.complaints = complaints  #: the last errors in the logs of both
        self.owner = owner  #: the project of the images
        self.promises = PROMISES[options.keystone]
        self.engine = engine  #: to Calotype's database; the server is the one of both
        self.database = meter.database_server(engine)
        self.options = options
        self.missed: list[str] = []

    def compare(self, label: str, steps: Callable[[Side], Step], promises: tuple[Promise, ...], clients: int) -> None:
        """Measure a step of both services in turns, and print the line."""
        try:
            self._print(label, self._rounds(steps, clients), promises)
        except client.Refused as exc:
            print(f"{label:34} | FAILED: {str(exc)[:600]}\n{self.complaints()}", flush=True)
            self.missed.append(f"{label}: could not be measured")

    def _rounds(self, steps: Callable[[Side], Step], clients: int) -> Figure:
        figure = Figure()
        for side in self.sides:  # each process of each service gets to know what it will be asked
            client.run(side.target, steps(side), clients=clients, seconds=min(1, self.options.seconds), least=4)
        for _ in range(self.options.rounds):
            for side, samples in zip(self.sides, (figure.glance, figure.calotype), strict=True):
                samples.append(self._sample(side, steps(side), clients))
        return figure

    def _sample(self, side: Side, step: Step, clients: int) -> Sample:
        before = [0.0, 0.0]

        def on_start() -> None:
            before[:] = side.server.cpu(), self.database.cpu()

        load = client.run(side.target, step, clients=clients, seconds=self.options.seconds, on_start=on_start)
        server, database = side.server.cpu() - before[0], self.database.cpu() - before[1]
        return Sample(load.steps / load.seconds, 1000 * server / load.steps, 1000 * database / load.steps)

    def _print(self, label: str, figure: Figure, promises: tuple[Promise, ...]) -> None:
        cells = [f"{label:34}"]
        for name in ("glance", "calotype"):
            rate, server, database = (figure.median(name, part) for part in ("rate", "server", "database"))
            cells.append(f"{rate:8.1f} {server:8.2f} {database:8.2f}")
        cells.append(" ".join(f"{figure.ratio(measure):6.1f}" for measure in Figure.RATIOS))
        cells.append("; ".join(self._verdict(label, figure, promise) for promise in promises))
        print(" | ".join(cells), flush=True)

    def _verdict(self, label: str, figure: Figure, promise: Promise) -> str:
        found, what = figure.ratio(promise.measure), Figure.RATIOS[promise.measure]
        return self.judge(f"{label}: {what}", what, found, promise.must, promise.goal)

    def judge(self, name: str, what: str, found: float, must: float, goal: float) -> str:
        """A verdict in words on a figure that should be large; a missed one is remembered for the end."""
        if found >= must:
            return f"{what} ≥ {goal:.3g}: goal" if found >= goal else f"{what} ≥ {must:.3g}: ok"
        self.missed.append(f"{name} {found:.2f} x, must be {must:.3g} x")
        return f"{what} < {must:.3g}: MISSED"

    def heading(self, text: str) -> None:
        print(f"\n{text}")
        print(f"{'':34} | {'Glance':^26} | {'Calotype':^26} | times better")
        columns = f"{'req/s':>8} {'ms':>8} {'ms db':>8}"
        print(f"{'':34} | {columns} | {columns} | {'req/s':>6} {'ms':>6} {'ms+db':>6}")


# --- the sections ----------------------------------------------------------------------------------------


def get(path: str) -> Callable[[Side], Step]:
    """A step that gets one path."""

    def steps(side: Side) -> Step:
        request = side.target.head("GET", path)
        return lambda connection, _number, _turn: connection.call(request, 200)

    return steps


def one_after_the_other(paths: list[str]) -> Callable[[Side], Step]:
    """Steps that get many paths in turn. All of them together are more than Calotype remembers."""
    turns = itertools.count(1)

    def steps(side: Side) -> Step:
        requests = [side.target.head("GET", path) for path in paths]
        first = 7919 * next(turns)  # a round goes on somewhere else than the one before
        return lambda connection, number, turn: connection.call(
            requests[(first + 31 * number + turn) % len(requests)], 200
        )

    return steps


def show(bench: Bench) -> None:
    """GET of one image: one of 500, by 1 and by 16 clients; each of all in turn; and what a GET asks the database."""
    bench.heading("GET /v2/images/{image_id}")
    paths = [f"/v2/images/{image_id}" for image_id in some_ids(bench.engine, 500)]
    steps = one_after_the_other(paths)
    for clients in (1, 16):
        bench.compare(f"show, {clients} at once", steps, bench.promises["show"], clients)
    every = [f"/v2/images/{image_id}" for image_id in some_ids(bench.engine, bench.options.images)]
    bench.compare("show of each image once, 1 at once", one_after_the_other(every), bench.promises["show"], 1)
    for clients, side in itertools.product((1, 16), bench.sides):
        asked = statements(bench, side, steps(side), clients)
        words = ", ".join(f"{name} {value:.2f}" for name, value in asked.items())
        print(f"{side.name}, {clients} at once, asks the database a request: {words}")
        if side.name == "Calotype" and round(asked["Com_select"], 1) > MOST_STATEMENTS:
            bench.missed.append(f"show: {asked['Com_select']:.2f} statements, must be ≤ {MOST_STATEMENTS}")


def statements(bench: Bench, side: Side, step: Step, clients: int, times: int = 400) -> dict[str, float]:
    """What MariaDB counts for one step, without what looking at the counters costs."""
    first = meter.counters(bench.engine)
    second = meter.counters(bench.engine)
    times = client.run(side.target, step, clients=clients, seconds=0, least=times // clients).steps
    third = meter.counters(bench.engine)
    return {name: (third[name] - 2 * second[name] + first[name]) / times for name in first}


def some_ids(engine: sa.Engine, count: int) -> list[str]:
    """Ids of active images."""
    images = tables.images
    wanted = sa.select(images.c.id).where(images.c.status == "active").order_by(images.c.id).limit(count)
    with engine.connect() as connection:
        return list(connection.execute(wanted).scalars())


def list_(bench: Bench) -> None:
    """A page of 25: the default, each sort key, two of them, each filter."""
    bench.heading(f"GET /v2/images: 25 of {bench.options.images} images that the caller owns")
    queries = {"default": "", **{f"sort={key}:asc": f"sort={key}:asc" for key in sorted(SORT_KEYS)}}
    queries |= {f"sort={keys}": f"sort={keys}" for keys in ORDERS}
    queries |= {text[:34]: text for text in filters(some_ids(bench.engine, 3), bench.owner)}
    for label, query in queries.items():
        if not re.search(bench.options.only, label):
            continue
        path = f"/v2/images?{query}"
        with contextlib.suppress(client.Refused):  # which is told by what follows
            if difference := differs(bench, path):
                print(f"  {label}: {difference}")
        bench.compare(label, get(path), bench.promises["list"], 1)
    if re.search(bench.options.only, "every page"):
        newest = tables.images.c.created_at.desc(), tables.images.c.id.desc()
        mine = sa.select(tables.images.c.id).where(sa.not_(tables.images.c.deleted), sa.not_(tables.images.c.os_hidden))
        with bench.engine.connect() as connection:
            markers = connection.execute(mine.order_by(*newest)).scalars().all()[24:-25:25]
        paths = [f"/v2/images?limit=25&marker={marker}" for marker in markers]
        bench.compare("every page in turn", one_after_the_other(paths), bench.promises["list"], 1)


def filters(ids: list[str], owner: str) -> list[str]:
    """A query string for each filter that both services know."""
    checksum, value = dataset.content(0)
    since = quote("2025-07-01T00:00:00Z")
    equal = {"name": dataset.POPULAR_NAME, "owner": owner, "visibility": "public", "status": "active"}
    equal |= {"checksum": checksum, "os_hash_value": value, "os_hash_algo": "sha512", "tag": dataset.POPULAR_TAG}
    equal |= {"disk_format": "raw", "container_format": "bare", "size": str(1 << 30), "virtual_size": str(2 << 30)}
    equal |= {"size_min": str(1 << 30), "size_max": str(4 << 30), "min_ram": "512", "min_disk": "10", "id": ids[0]}
    equal |= {"min_ram_min": "512", "min_disk_max": "10"}
    equal |= {"protected": "true", "os_hidden": "true", "member_status": "all"}
    equal |= dict([dataset.COMMON_PROPERTY])
    more = [f"{name}={value}" for name, value in [dataset.RARE_PROPERTY, dataset.ABSENT_PROPERTY]]
    more += [f"name=in:{dataset.POPULAR_NAME},{dataset.POPULAR_NAMES[1]}", "status=in:active,queued"]
    more += [f"id=in:{','.join(ids)}", f"tag={dataset.POPULAR_TAG}&tag={dataset.RARE_TAG}"]
    more += [f"created_at=gte:{since}", f"updated_at=lt:{since}", "visibility=all"]
    return [f"{name}={value}" for name, value in equal.items()] + more


def differs(bench: Bench, path: str) -> str:
    """How the answers of both services differ in the images that they hold; "" if they do not."""
    answers = []
    for side in bench.sides:
        connection = Connection(side.target)
        answers.append([image["id"] for image in json.loads(connection.get(path))["images"]])
        connection.close()
    glance, calotype = answers
    if glance == calotype:
        return ""
    common = len(set(glance) & set(calotype))
    return f"the answers differ: Glance {len(glance)} images, Calotype {len(calotype)}, {common} of them in common"


def pages(bench: Bench) -> None:
    """The largest page, by 1 and by 4 clients."""
    bench.heading(f"GET /v2/images?limit=1000 of {bench.options.images} images")
    for clients in (1, 4):
        bench.compare(f"limit=1000, {clients} at once", get("/v2/images?limit=1000"), bench.promises["pages"], clients)


def create(bench: Bench) -> None:
    """A record with tags and properties is made and deleted, by 1 and by 8 clients."""
    bench.heading("POST /v2/images and DELETE of it (pairs)")
    values = {"name": "new", "disk_format": "raw", "container_format": "bare", "tags": ["one", "two"]}
    body = json.dumps(values | {"os_distro": "debian", "architecture": "x86_64", "build": "1"}).encode()

    def steps(_side: Side) -> Step:
        return lambda connection, _number, _turn: connection.delete(connection.create(body))

    for clients in (1, 8):
        bench.compare(f"create + delete, {clients} at once", steps, bench.promises["create"], clients)


def data(bench: Bench) -> None:
    """PUT and GET of one large image of format raw, in turns."""
    size = bench.options.size * MIB
    samples: dict[tuple[str, str], list[float]] = {}
    values = json.dumps({"disk_format": "raw", "container_format": "bare"}).encode()
    for _ in range(bench.options.transfers + 1):  # the first one warms up
        for side in bench.sides:
            connection = Connection(side.target)
            image_id = connection.create(values)
            for what, work in (("PUT", client.send), ("GET", client.receive)):
                os.sync()  # nobody pays for the other's dirty pages
                before = side.server.cpu()
                wall = client.elsewhere(work, side.target, image_id, size)
                samples.setdefault((side.name, f"{what} CPU"), []).append(side.server.cpu() - before)
                samples.setdefault((side.name, f"{what} wall"), []).append(wall)
            connection.close()
            connection.delete(image_id)
            connection.close()
    median = {key: statistics.median(values[1:]) for key, values in samples.items()}
    print(f"\nPUT and GET of {bench.options.size} MiB, seconds (medians of {bench.options.transfers})")
    for what in ("PUT wall", "PUT CPU", "GET wall", "GET CPU"):
        glance, calotype = median["Glance", what], median["Calotype", what]
        verdict = ""
        if what == "PUT wall":
            verdict = bench.judge("PUT", "Glance / Calotype", glance / calotype, 1.6, 1.6)
        if what == "GET CPU":
            verdict = bench.judge(
                "GET CPU, Glance / Calotype", "Glance / Calotype", glance / calotype, 1 / 0.65, 1 / 0.65
            )
        print(f"{what:10} Glance {glance:6.2f}   Calotype {calotype:6.2f}   {glance / calotype:5.2f} x   {verdict}")


def metadefs(bench: Bench) -> None:
    """Lists and shows of namespaces with many properties."""
    count, properties = bench.options.namespaces, bench.options.properties
    bench.heading(f"GET /v2/metadefs/namespaces: {count} namespaces with {properties} properties each")
    for query in ("", "?limit=1000", "?limit=100&sort_key=namespace&sort_dir=asc", "?resource_types=OS::Bench::Type1"):
        path = f"/v2/metadefs/namespaces{query}"
        if len({_in_order(Connection(side.target).get(path)) for side in bench.sides}) > 1:
            print(f"  {query or 'default'}: the answers differ")
        bench.compare(f"list{query}"[:34], get(path), bench.promises["metadefs list"], 1)
    bench.compare("list, 8 at once", get("/v2/metadefs/namespaces"), bench.promises["metadefs list"], 8)
    paths = [f"/v2/metadefs/namespaces/{definitions.name(number)}" for number in range(count)]
    if len({_in_order(Connection(side.target).get(paths[1])) for side in bench.sides}) > 1:
        print("  show: the answers differ")
    for clients in (1, 8):
        bench.compare(f"show, {clients} at once", get(paths[1]), bench.promises["metadefs show"], clients)
    bench.compare("show of each in turn", one_after_the_other(paths), bench.promises["metadefs show"], 1)
    for side in bench.sides:
        asked = {
            path: statements(bench, side, get(path)(side), 1, 100) for path in (paths[1], "/v2/metadefs/namespaces")
        }
        words = "; ".join(
            f"{path}: {one['Com_select']:.1f} SELECT of {one['Questions']:.1f}" for path, one in asked.items()
        )
        print(f"{side.name} asks the database a request: {words}")


def _in_order(answer: bytes) -> str:
    """The namespaces of an answer, without the order of associations and objects: Glance's database is free in it."""
    found = json.loads(answer)
    found = found.get("namespaces", [found])
    for one in found:
        for kind in ("resource_type_associations", "objects"):
            one.get(kind, []).sort(key=itemgetter("name"))
    return json.dumps(found, sort_keys=True)


# --- setting up ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def both(directory: Path, options: argparse.Namespace) -> Iterator[Bench]:
    """Glance and Calotype at work on equal rows."""
    venv = install(options.peer.resolve())
    owner, identity, caller = "red", "", {"Glance": CALLERS[options.caller], "Calotype": client.basic("alice")}
    if options.keystone:
        keystone, memcached = Keystone(expiration=24 * 3600).start(), Memcached()
        owner, identity = keystone.project("red"), keystone.conf(memcached)
        caller = dict.fromkeys(caller, (f"X-Auth-Token: {keystone.token('alice')}",))
    urls = [services.fresh("mariadb", directory, options.pool) for _ in range(2)]
    glance = Glance(venv, directory / "glance", urls[0], (services.STORE,), options.caller, identity)
    glance.prepare()
    services.sync(urls[1])
    engines = [sa.create_engine(url) for url in urls]
    shape = replace(dataset.ONE_OWNER, owner=owner)
    for engine in engines:
        dataset.fill(engine, options.images, seed=options.seed, shape=shape)
        definitions.fill(engine, options.namespaces, options.properties, owner)
    calotype = services.calotype(directory / "calotype", urls[1], options.workers, identity)
    try:
        glance.start()
        calotype.start()
        assert glance.process
        assert calotype.process
        sides = (
            Side("Glance", Target(glance.port, caller["Glance"]), Server(glance.process.pid)),
            Side("Calotype", Target(calotype.port, caller["Calotype"]), Server(calotype.process.pid)),
        )
        yield Bench(*sides, engines[1], options, lambda: complaints(glance.log + calotype.log), owner)
    finally:
        glance.stop()
        if calotype.process:
            calotype.stop()
        if options.keystone:
            memcached.stop()
            keystone.remove()
        for engine in engines:
            engine.dispose()


def complaints(log: str) -> str:
    """The last errors of a log, shortened."""
    return "\n".join("  " + line[:300] for line in re.findall(r"^.*Error\b.*$", log, re.MULTILINE)[-3:])


def introduce(options: argparse.Namespace) -> None:
    """What is measured, and how."""
    both = "Keystone tells who asks, memcached remembers it; the caller is a member of a project."
    print(
        f"Glance {VERSION}: uWSGI, {PROCESSES} processes; "
        f"{both if options.keystone else f'it takes the caller for {options.caller}.'}\n"
        f"Calotype: workers {options.workers}; "
        f"{both if options.keystone else 'HTTP basic authentication; the caller is a member of a project.'}\n"
        f"Medians of {options.rounds} rounds of {options.seconds:g} s, {os.cpu_count()} CPUs; ms is CPU-milliseconds a "
        "request of the service, ms db of the database."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Calotype beside a real Glance 33 on one MariaDB server.")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="default: %(default)s")
    parser.add_argument(
        "--peer", type=Path, default=Path(".peer"), help="where Glance is installed, default %(default)s"
    )
    parser.add_argument(
        "--caller",
        choices=CALLERS,
        default="member",
        help="whom Glance takes the caller for: admin without a project, or member of one; default %(default)s",
    )
    parser.add_argument(
        "--keystone", action="store_true", help="let both ask one Keystone, with one memcached, who the caller is"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds a figure, default %(default)s")
    parser.add_argument("--seconds", type=float, default=2, help="a round of a service, default %(default)s")
    parser.add_argument("--images", type=int, default=10_000, help="images in each database, default %(default)s")
    parser.add_argument("--namespaces", type=int, default=1000, help="of metadata definitions, default %(default)s")
    parser.add_argument("--properties", type=int, default=50, help="of a namespace, default %(default)s")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the transfers, default %(default)s")
    parser.add_argument("--transfers", type=int, default=5, help="rounds of transfers, default %(default)s")
    growth.add_arguments(parser)
    parser.set_defaults(workers=os.cpu_count())
    options = parser.parse_args()
    wanted = options.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    missed: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="calotype-peer-") as name:
        if set(wanted) - {"growth"}:
            with both(Path(name), options) as bench:
                introduce(options)
                sections = {"show": show, "list": list_, "pages": pages, "create": create, "data": data}
                sections["metadefs"] = metadefs
                for section, work in sections.items():
                    if section in wanted:
                        work(bench)
                missed += bench.missed
        if "growth" in wanted:
            missed += growth.measure(Path(name) / "growth", "mariadb", options)
    print("\nMissed:\n  " + "\n  ".join(missed) if missed else "\nEverything that must be reached is reached.")


if __name__ == "__main__":
    main()
