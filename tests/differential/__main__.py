"""`make differential`: the same requests to a real Glance 33 and to Calotype, and every difference accounted for.

    python -m tests.differential [--sections lists,patches] [--show REGEX] [--peer DIRECTORY]

Both have one Keystone, one memcached, a database each on one MariaDB server, and two file stores. It is red when
something differs that `differences.py` does not declare, and when something declared does not differ any more.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import services
from bench.glance import VERSION, Glance, install

from tests.differential import imports, script
from tests.differential.asking import ANYBODY, BAD, PERSONAS
from tests.differential.both import Both, Side
from tests.differential.differences import DECLARED, judge, line
from tests.differential.script import DATA, QCOW2
from tests.keystone import Keystone, Memcached
from tests.support import USERS, Service
from tests.webserver import serving

SECTIONS = (*script.SECTIONS, *imports.SECTIONS)
STORES = ("fast", "cheap")
_CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file
{methods}
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {root}/fast
[cheap]
filesystem_store_datadir = {root}/cheap
"""
_METHODS = "enabled_import_methods = [glance-direct,web-download,copy-image,glance-download]"
#: Glance fetches from hosts of these alone then, and so does Calotype.
_FETCHES = "[import_filtering_opts]\nallowed_hosts = [127.0.0.1,127.0.0.3]\nallowed_ports = []\n"


@contextlib.contextmanager
def both(directory: Path, peer: Path) -> Iterator[Both]:
    """Glance and Calotype, empty, for whom the callers are the same."""
    keystone, memcached = Keystone().start(), Memcached()
    identity = keystone.conf(memcached)
    urls = [services.fresh("mariadb", directory, 128) for _ in range(2)]
    glance = Glance(
        install(peer), directory / "glance", urls[0], STORES, authtoken=identity + _FETCHES, settings=_METHODS
    )
    glance.prepare()
    services.sync(urls[1])
    root = directory / "calotype"
    conf = _CONF.format(root=root, methods=_METHODS) + identity + _FETCHES
    calotype = Service(root / "state", conf, database=urls[1], users=False)
    users = [who for who in PERSONAS if who not in (ANYBODY, BAD)]
    callers = {who: {"X-Auth-Token": keystone.token(who)} for who in users}
    callers |= {ANYBODY: {}, BAD: {"X-Auth-Token": "wrong"}}
    projects = {who: keystone.project(USERS[who][0]) for who in users}
    place = f"http://127.0.0.1:{glance.port}"
    keystone.offer(place)  # from which both download with glance-download
    try:
        glance.start()
        calotype.start()
        with serving(host="127.0.0.3", files={"/disk": DATA, "/qcow2": QCOW2, "/empty": b""}) as web:
            yield Both(
                Side(place, callers, str(glance.root)), Side(calotype.url, callers, str(root)), projects, web.url
            )
    finally:
        glance.stop()
        if calotype.process:
            calotype.stop()
        memcached.stop()
        keystone.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare Calotype's answers with those of a real Glance 33.")
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--sections", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--show", default="", help="print both answers to requests that match this regular expression")
    parser.add_argument("--peer", type=Path, default=Path(".peer"), help="where Glance is, default %(default)s")
    options = parser.parse_args()
    chosen = options.sections.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="calotype-differential-") as name,
        both(Path(name), options.peer.resolve()) as asked,
    ):
        asked.show = options.show
        for section in SECTIONS:
            if section.__name__ in chosen:
                asked.section = section.__name__
                section(asked)
    # What is declared for sections that were left out cannot be seen.
    whole = set(chosen) == set(names)
    wrong = [text for text in judge(asked.differences, DECLARED) if whole or text.startswith("not declared")]
    print("\n".join(wrong))
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(asked.statuses.items()))
    print(
        f"{asked.number} requests to Glance {VERSION} and to Calotype in {time.monotonic() - begin:.0f} s "
        f"(Glance answered {statuses}); {len(asked.differences)} facts differ, for "
        f"{len({line(one.line) for one in DECLARED})} reasons that docs/api/differences.md names; {len(wrong)} for none."
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
