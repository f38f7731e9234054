"""Many images in a database, the same ones for the same seed: what lists are measured on.

`fill` writes rows straight into the tables of Glance's schema, so that a million images take minutes. It works on
SQLite, MariaDB and PostgreSQL, and on Glance's own database as well as on Calotype's. There is no data behind the
locations. The names below are values that a measurement can ask for; each comes with its share of the images, which
is the same at every size.

    python -m bench.dataset URL COUNT [--seed N]
"""

import argparse
import bisect
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from calotype.db import schema, tables

#: The newest image is older than this.
END = datetime(2026, 1, 1)
DAYS = 730

POPULAR_NAMES = tuple(f"{system}-{release}" for system in ("ubuntu", "debian", "rocky") for release in (1, 2, 3))
POPULAR_NAME = POPULAR_NAMES[0]  #: 3 % of the images have it
POPULAR_TAG = "production"  #: 20 %
OTHER_TAG = "nightly"  #: 20 %, too, of which a fifth have both
RARE_TAG = "team-0007"  #: 0.08 %
COMMON_PROPERTY = ("architecture", "x86_64")  #: 85 %
RARE_PROPERTY = ("audit", "needed")  #: 0.1 %
ABSENT_PROPERTY = ("audit", "never")
SMALL_PROJECT = "project-0500"  #: owns 0.05 %


def content(number: int) -> tuple[str, str]:
    """`checksum` and `os_hash_value` of one content. Contents 0 to 4 are those of 4 % of the images each."""
    digest = random.Random(f"content {number}").getrandbits(640)
    return f"{digest & (1 << 128) - 1:032x}", f"{digest >> 128:0128x}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Whose the images are and who sees them, as shares of all images; the remaining ones belong to many projects."""

    owner: str = "red"
    owned: float = 0.4
    member: str = "blue"
    joined: float = 0.1  #: shared with `member`, and accepted
    public: float = 0.05
    community: float = 0.05
    private: float = 0.3
    deleted: float = 0.05  #: more rows, of images that are deleted
    store: str = "main"
    projects: int = 1000


#: Everything belongs to one project, and an administrator without a project lists the same images as its members.
ONE_OWNER = Shape(owned=1.0, joined=0.0, community=0.0)

_IMAGES = (
    "id name disk_format container_format size virtual_size status visibility checksum os_hash_algo os_hash_value "
    "min_disk min_ram owner protected os_hidden created_at updated_at deleted_at deleted"
).split()
_CHILD = "created_at updated_at deleted_at deleted".split()
#: table → columns that are written, in their order; keys that count up are the database's business.
COLUMNS: dict[str, list[str]] = {
    "images": _IMAGES,
    "image_properties": ["image_id", "name", "value", *_CHILD],
    "image_tags": ["image_id", "value", *_CHILD],
    "image_locations": ["image_id", "value", "meta_data", "status", *_CHILD],
    "image_members": ["image_id", "member", "can_share", "status", *_CHILD],
}
_NULL = "\\N"


def fill(engine: sa.Engine, count: int, *, seed: int = 1, shape: Shape = Shape()) -> None:
    """Add `count` images, and some deleted ones, to tables that are there and empty."""
    with tempfile.TemporaryDirectory(prefix="calotype-dataset-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        write(directory, count, seed=seed, shape=shape)
        with _indexes_later(engine):
            _LOADERS[engine.dialect.name](engine, directory)


@contextmanager
def _indexes_later(engine: sa.Engine) -> Iterator[None]:
    """Without the indexes named `calotype_…` while rows are loaded: made at the end they cost a fraction."""
    with engine.begin() as connection:
        missing = schema.missing_indexes(connection)
        there = [index for index in tables.our_indexes(connection.dialect.name) if index not in missing]
        for index in there:
            index.drop(connection)
    yield
    with engine.begin() as connection:
        for index in there:
            index.create(connection)


# --- making rows -----------------------------------------------------------------------------------------


def write(directory: Path, count: int, *, seed: int, shape: Shape) -> None:
    """A file for each table, `TABLE.tsv`, in the text format that COPY and LOAD DATA share."""
    rows = _Rows(seed, count, shape)
    with ExitStack() as stack:
        files = {name: stack.enter_context((directory / f"{name}.tsv").open("w")) for name in COLUMNS}
        for number in range(count + int(count * shape.deleted)):
            for name, text in rows.image(number, deleted=number >= count):
                files[name].write(text)


def _weighted(values: Sequence[tuple[Any, float]]) -> Callable[[float], Any]:
    """From a number between 0 and 1 to a value, by its weight."""
    ends = list(itertools.accumulate(weight for _, weight in values))
    return lambda point: values[bisect.bisect(ends, point * ends[-1])][0]


_FORMAT = _weighted(
    [
        (("qcow2", "bare"), 45),
        (("raw", "bare"), 30),
        (("iso", "bare"), 8),
        (("vmdk", "bare"), 5),
        (("vmdk", "ova"), 3),
        (("ami", "ami"), 3),
        (("vhd", "ovf"), 3),
        (("raw", "docker"), 3),
    ]
)
_STATUS = _weighted([("active", 90), ("queued", 5), ("deactivated", 3), ("saving", 1), ("importing", 1)])
_DISTRO = _weighted([("ubuntu", 40), ("debian", 25), ("rocky", 15), ("fedora", 10), ("windows", 10)])
_ARCHITECTURE = _weighted([("x86_64", 85), ("aarch64", 14), ("riscv64", 1)])


class _Rows:
    """Makes the rows of one image after the other, as lines of text."""

    def __init__(self, seed: int, count: int, shape: Shape) -> None:
        self._rng = random.Random(seed)
        self._count = count
        self._shape = shape
        shares = {name: getattr(shape, name) for name in ("public", "community", "private")}
        shared = 1 - sum(shares.values())
        self._visibility = _weighted([*shares.items(), ("shared", shared)])
        # Of the images that are shared and whose owner is another, so many are shared with the member.
        others = (1 - shape.owned) * shared
        self._joins = min(1.0, shape.joined / others) if others else 0.0

    def image(self, number: int, *, deleted: bool) -> Iterator[tuple[str, str]]:
        """Pairs of a table and the lines that go there."""
        point, shape = self._rng.random, self._shape
        image_id = _uuid(self._rng.getrandbits(128))
        created, updated = self._times()
        status = "deleted" if deleted else _STATUS(point())
        gone = f"{updated}\t1" if deleted else f"{_NULL}\t0"
        ends = f"{created}\t{updated}\t{gone}\n"
        owner = shape.owner if point() < shape.owned else f"project-{int(point() * shape.projects):04}"
        visibility = self._visibility(point())
        data = _NULL, _NULL, _NULL, _NULL, _NULL
        if status not in ("queued", "saving", "importing"):
            data = self._data(number)
            meta = f'{{"store": "{shape.store}"}}'
            where = f"{image_id}\tfile:///srv/{shape.store}/{image_id}\t{meta}"
            yield "image_locations", f"{where}\t{'deleted' if deleted else 'active'}\t{ends}"
        size, virtual, checksum, algorithm, value = data
        disk, container = _FORMAT(point()) if status != "queued" or point() < 0.9 else (_NULL, _NULL)
        yield (
            "images",
            f"{image_id}\t{self._name()}\t{disk}\t{container}\t{size}\t{virtual}\t{status}\t{visibility}\t{checksum}\t"
            f"{algorithm}\t{value}\t{int(point() * 5) * 10}\t{(0, 0, 512, 1024, 2048)[int(point() * 5)]}\t{owner}\t"
            f"{int(point() < 0.02)}\t{int(point() < 0.03)}\t{ends}",
        )
        yield "image_properties", self._properties(image_id, number, ends)
        yield "image_tags", "".join(f"{image_id}\t{tag}\t{ends}" for tag in self._tags(number))
        if visibility == "shared":
            yield "image_members", self._members(image_id, owner, ends)

    def _times(self) -> tuple[str, str]:
        """When it was made and changed: a fifth at the full hour, where many are made at once; half never changed."""
        seconds = int(self._rng.random() * DAYS * 86400)
        if self._rng.random() < 0.2:
            seconds -= seconds % 3600
        created = END - timedelta(seconds=DAYS * 86400 - seconds)
        later = int(self._rng.random() * 30 * 86400) if self._rng.random() < 0.5 else 0
        # Six digits: SQLite compares times as text.
        return f"{created}.000000", f"{created + timedelta(seconds=later)}.000000"

    def _name(self) -> str:
        point = self._rng.random()
        if point < 0.02:
            return _NULL
        if point < 0.02 + 0.03 * len(POPULAR_NAMES):
            return POPULAR_NAMES[int((point - 0.02) / 0.03)]
        return f"image-{int(self._rng.random() * self._count):06}"  # some come twice or more

    def _data(self, number: int) -> tuple[str, str, str, str, str]:
        """size, virtual_size, checksum, os_hash_algo, os_hash_value."""
        point = self._rng.random()
        if point < 0.2:
            which = int(point / 0.04)
            checksum, value = _POPULAR_CONTENTS[which]
            size = (which + 1) << 30
        else:
            bits = self._rng.getrandbits(640)
            checksum, value = f"{bits & (1 << 128) - 1:032x}", f"{bits >> 128:0128x}"
            size = 1 + int(self._rng.random() * (20 << 30))
        virtual = str(size * 2) if self._rng.random() < 0.7 else _NULL
        return str(size), virtual, checksum, "sha512", value

    def _properties(self, image_id: str, number: int, ends: str) -> str:
        point = self._rng.random
        pairs = [("os_distro", _DISTRO(point())), ("os_version", f"{int(point() * 12)}.04")]
        pairs += [("architecture", _ARCHITECTURE(point())), ("hw_disk_bus", "virtio" if point() < 0.8 else "scsi")]
        pairs.append(("build", f"{number:08}"))
        if point() < 0.001:
            pairs.append(RARE_PROPERTY)
        return "".join(f"{image_id}\t{name}\t{value}\t{ends}" for name, value in pairs)

    def _tags(self, number: int) -> tuple[str, str]:
        point = self._rng.random
        first = POPULAR_TAG if point() < 0.2 else f"batch-{number // 100}"
        return first, OTHER_TAG if point() < 0.2 else f"team-{int(point() * 1000):04}"

    def _members(self, image_id: str, owner: str, ends: str) -> str:
        point, shape, lines = self._rng.random, self._shape, []
        if owner != shape.owner and (joins := point()) < self._joins * 1.2:
            status = "accepted" if joins < self._joins else "pending"
            lines.append(f"{image_id}\t{shape.member}\t0\t{status}\t{ends}")
        if point() < 0.1:
            lines.append(f"{image_id}\tproject-{int(point() * shape.projects):04}\t0\taccepted\t{ends}")
        return "".join(lines)


_POPULAR_CONTENTS = [content(number) for number in range(5)]


def _uuid(bits: int) -> str:
    """A random UUID as clients write it."""
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[bits & 3]}{text[17:20]}-{text[20:]}"


# --- loading them ----------------------------------------------------------------------------------------


def _load_mariadb(engine: sa.Engine, directory: Path) -> None:
    loader = sa.create_engine(engine.url, connect_args={"local_infile": True}, isolation_level="AUTOCOMMIT")
    with loader.connect() as connection:
        # Without these checks an empty table's indexes are sorted once instead of searched for each row.
        connection.exec_driver_sql("SET unique_checks = 0, foreign_key_checks = 0, max_statement_time = 0")
        for name, columns in COLUMNS.items():
            connection.exec_driver_sql(
                f"LOAD DATA LOCAL INFILE '{directory / name}.tsv' INTO TABLE {name} CHARACTER SET utf8mb4 "
                f"({', '.join(columns)})"
            )
            connection.exec_driver_sql(f"ANALYZE TABLE {name}").all()
    loader.dispose()


def _load_postgresql(engine: sa.Engine, directory: Path) -> None:
    raw = engine.raw_connection()
    try:
        cursor: Any = raw.cursor()
        cursor.execute("SET session_replication_role = replica")  # no look at foreign keys
        for name, columns in COLUMNS.items():
            with (
                (directory / f"{name}.tsv").open("rb") as file,
                cursor.copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy,
            ):
                while block := file.read(1 << 20):
                    copy.write(block)
        cursor.execute("SET session_replication_role = DEFAULT")
        raw.commit()
    finally:
        raw.close()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def _load_sqlite(engine: sa.Engine, directory: Path) -> None:
    raw = engine.raw_connection()
    try:
        cursor: Any = raw.cursor()
        cursor.execute("PRAGMA foreign_keys = OFF")
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.execute("PRAGMA cache_size = -1000000")  # KiB
        for name, columns in COLUMNS.items():
            marks = ", ".join("?" * len(columns))
            with (directory / f"{name}.tsv").open() as file:
                rows = ([None if value == _NULL else value for value in line[:-1].split("\t")] for line in file)
                cursor.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows)
            raw.commit()
        cursor.execute("ANALYZE")
        raw.commit()
    finally:
        raw.invalidate()  # with its settings
        engine.dispose()


_LOADERS: dict[str, Callable[[sa.Engine, Path], None]] = {
    "mariadb": _load_mariadb,
    "mysql": _load_mariadb,
    "postgresql": _load_postgresql,
    "sqlite": _load_sqlite,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the empty tables of an image service's database.")
    parser.add_argument("url", help="SQLAlchemy URL; `calotype db sync` or `glance-manage db_sync` has been there")
    parser.add_argument("count", type=int, help="images")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    engine = sa.create_engine(options.url)
    begin = time.monotonic()
    fill(engine, options.count, seed=options.seed)
    with engine.connect() as connection:
        found = connection.execute(sa.select(sa.func.count()).select_from(tables.images)).scalar_one()
    print(f"{found} rows of images in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
