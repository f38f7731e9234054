"""Where the time of one request goes inside the service: `python -m bench.layers [PATH …]`.

One process, no sockets: the application is called as a server would call it, on a database with images
(`dataset.py`). For each path: CPU-milliseconds of the process for a call as it is, then each part's share of it under
cProfile, which makes small functions look dearer than they are.
"""

import argparse
import cProfile
import io
import pstats
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from tests.databases import KINDS
from tests.support import write_users

from bench import dataset, services
from bench.client import basic
from calotype import config
from calotype.app import App
from calotype.db.tables import images

PATHS = ("/v2/images/{id}", "/v2/images", "/v2/images?tag=production", "/v2/images?limit=1000")


def caller(app: App) -> Callable[[str], bytes]:
    """A function that has the application answer a GET."""
    heads = dict(line.split(": ", 1) for line in basic("alice"))

    def call(path: str) -> bytes:
        where, _, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": where,
            "QUERY_STRING": query,
            "RAW_URI": path,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "9292",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "HTTP_AUTHORIZATION": heads["Authorization"],
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
        }
        status = []
        body = b"".join(app.wsgi(environ, lambda text, _headers, _error=None: status.append(text)))
        assert status[0].startswith("200"), (path, status, body[:500])
        return body

    return call


def part(file: str) -> str:
    """The part of the program that a source file belongs to."""
    if found := re.search(r"/calotype/(\w+/\w+|\w+)\.py$", file):
        return f"calotype.{found[1].replace('/', '.')}"
    if found := re.search(r"/site-packages/(\w+)", file):
        return found[1]
    return "built in" if file == "~" else "standard library"


def shares(work: Callable[[], object], calls: int) -> list[tuple[str, float]]:
    """Each part's share of the time, the largest first; what is built in counts for the one who calls it."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        work()
    profile.disable()
    spent: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file == "~" and callers:
            for (calling, _, _), (_, _, by_caller, _) in callers.items():
                spent[part(calling)] += by_caller
        else:
            spent[part(file)] += own
    total = sum(spent.values())
    return [(name, 100 * seconds / total) for name, seconds in spent.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Show where the time of a request goes.")
    parser.add_argument("paths", nargs="*", default=PATHS, help="{id} is the id of an image; default: %(default)s")
    parser.add_argument("--database", choices=KINDS, default="mariadb")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args()
    with application(options.database, options.images) as (app, _, image_id):
        call = caller(app)
        for path in options.paths:
            report(call, path.replace("{id}", image_id), options.calls)


@contextmanager
def application(database: str, number: int) -> Iterator[tuple[App, str, str]]:
    """The application on a new database with so many images; the database's URL, and the id of an image with data."""
    with tempfile.TemporaryDirectory(prefix="calotype-profile-") as name:
        place = Path(name)
        url = services.fresh(database, place, 1024)
        services.sync(url)
        dataset.fill(engine := sa.create_engine(url), number, seed=1, shape=dataset.ONE_OWNER)
        with engine.connect() as connection:
            image_id = connection.execute(sa.select(images.c.id).where(images.c.status == "active").limit(1)).scalar()
        engine.dispose()
        service = services.calotype(place / "calotype", url, 1)
        service.state.mkdir(parents=True)
        write_users(service.state / "users.json")
        file = service.state / "calotype.conf"
        file.write_text(f"{service.conf}\n[database]\nconnection = {url}\n")
        app = App(config.load([str(file)], state_dir=str(service.state)))
        yield app, url, str(image_id)
        app.db.close()


def report(call: Callable[[str], bytes], path: str, calls: int) -> None:
    calls = max(5, calls // 20) if "limit=1000" in path else calls
    call(path)
    before = time.process_time()
    for _ in range(calls):
        call(path)
    spent = 1000 * (time.process_time() - before) / calls
    print(f"\n{path}: {spent:.2f} CPU-ms a call")
    for name, share in shares(lambda: call(path), calls):
        if share >= 2:
            print(f"  {share:4.0f} %  {name}")


if __name__ == "__main__":
    main()
