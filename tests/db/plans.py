"""How each database answers the main lists: written to docs/contribute/queries.md by `make plans`, held by a test.

Written down is what matters of a plan: by which index each table is read, whether the index alone is enough (covering), and
what is sorted. A line is indented as deep as the part of the statement that it belongs to, where the database says so.
"""

import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from calotype.context import Context
from calotype.db import pages, tables
from calotype.db.drivers import Settings
from calotype.db.engine import Database
from calotype.db.record_cache import RecordCache
from calotype.model import VISIBILITIES, Query
from tests import databases

DOCUMENT = Path(__file__).parents[2] / "docs" / "contribute" / "queries.md"
COUNT = 16_000
OWNER = Context(project="red")
MEMBER = Context(project="blue")
ADMIN = Context(project="admin", is_admin=True)


@dataclass(frozen=True)
class List:
    """A list that clients ask for. `deep`: not its first page, but one in the middle."""

    title: str
    caller: Context
    query: Query
    deep: bool = False


LISTS = [
    List("Default order, as an owner", OWNER, Query(26)),
    List("Default order, as an owner, in the middle", OWNER, Query(26), deep=True),
    List("Default order, as an administrator", ADMIN, Query(26)),
    List("By name, as an administrator, in the middle", ADMIN, Query(26, sort=(("name", "asc"),)), deep=True),
    List("By size, descending, as an owner", OWNER, Query(26, sort=(("size", "desc"),))),
    *(
        List(f"By {first[0]}, then by {second[0]}, as an owner", OWNER, Query(26, sort=(first, second)))
        for first, second in (
            (("name", "asc"), ("created_at", "desc")),
            (("name", "asc"), ("size", "desc")),
            (("size", "asc"), ("name", "asc")),
            (("status", "asc"), ("name", "asc")),
            (("container_format", "asc"), ("disk_format", "asc")),
        )
    ),
    List(
        "By name, then by size, as an administrator, in the middle",
        ADMIN,
        Query(26, sort=(("name", "asc"), ("size", "desc"))),
        deep=True,
    ),
    List("With visibility=shared, as a member of few images", MEMBER, Query(26, visibility="shared")),
    List("With visibility=public, as an owner", OWNER, Query(26, visibility="public")),
    List("With a name, as an administrator", ADMIN, Query(26, one_of={"name": ("image-7",)})),
    List("With status=active, as an owner", OWNER, Query(26, one_of={"status": ("active",)})),
    List("With a tag that few images have, as an owner", OWNER, Query(26, tags=("rare",))),
    List("With a property that many images have, as an owner", OWNER, Query(26, properties={"distro": "debian"})),
    List("With protected=true, as an owner", OWNER, Query(26, one_of={"protected": (True,)})),
]


def fill(db: Database) -> None:
    """Enough rows that a database would notice a missing index, with statistics."""
    choose = random.Random(20261122)
    images, members, tags, properties, locations = [], [], [], [], []
    for number in range(COUNT):
        image_id = f"{choose.getrandbits(32):08x}-0000-4000-8000-{number:012d}"
        when = datetime(2026, 1, 1) + timedelta(minutes=choose.randrange(100_000))
        child = {"image_id": image_id, "created_at": when, "deleted": False}
        visibility = choose.choice(VISIBILITIES)
        images.append(
            {
                "id": image_id,
                "name": f"image-{choose.randrange(COUNT // 2)}" if number % 10 else None,
                "disk_format": choose.choice(("raw", "qcow2")),
                "container_format": "bare",
                "size": choose.randrange(2**40) if number % 7 else None,
                "status": choose.choice(("active", "active", "active", "queued")),
                "visibility": visibility,
                "owner": choose.choice(("red", "red", "green", f"p{number % 50}")),
                "protected": number % 5 == 0,
                "os_hidden": number % 100 == 0,
                "created_at": when,
                "updated_at": when,
                "deleted": False,
                "min_disk": 0,
                "min_ram": 0,
            }
        )
        if visibility == "shared":
            project = "blue" if number % 80 == 0 else f"p{number % 200}"
            members.append(child | {"member": project, "can_share": False, "status": "accepted"})
        tags.append(child | {"value": "rare" if number % 800 == 0 else f"t{number % 4}"})
        properties.append(child | {"name": "distro", "value": choose.choice(("debian", "rocky"))})
        properties.append(child | {"name": "serial", "value": str(number)})
        locations.append(child | {"value": f"file:///{image_id}", "meta_data": "{}", "status": "active"})
    with db.write_once() as tx:
        for table, rows in (
            (tables.images, images),
            (tables.image_members, members),
            (tables.image_tags, tags),
            (tables.image_properties, properties),
            (tables.image_locations, locations),
        ):
            tx.execute(sa.insert(table), rows)
    with db.writes.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        names = ("images", "image_members", "image_tags", "image_properties", "image_locations")
        if db.url.get_backend_name() in ("mysql", "mariadb"):
            connection.exec_driver_sql(f"ANALYZE TABLE {', '.join(names)}").all()
        elif db.is_sqlite:
            pass  # SQLite plans without statistics unless somebody asks for them; nobody does.
        else:
            for name in names:  # what else it did would depend on the hour
                connection.exec_driver_sql(f"ALTER TABLE {name} SET (autovacuum_enabled = false)")
            connection.exec_driver_sql("SET default_statistics_target = 1000")  # all rows are looked at, no sample
            connection.exec_driver_sql(f"VACUUM ANALYZE {', '.join(names)}")


def plans(db: Database) -> dict[str, list[str]]:
    """For each list the plan of each of its statements, one line a step."""
    db.reads.dispose()  # SQLite explains a statement that it knows already without a look at the schema
    return {each.title: list(_plan(db, each)) for each in LISTS}


def _plan(db: Database, wanted: List) -> Iterator[str]:
    seen: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        seen.append((statement, values))

    query = wanted.query
    with db.read_once() as tx:
        if wanted.deep:
            some = pages.page(tx, RecordCache(), wanted.caller, replace(query, limit=1000))
            query = replace(query, marker=some[-1].id)
        event.listen(db.reads, "before_cursor_execute", remember)
        try:
            pages.page(tx, RecordCache(), wanted.caller, query)
        finally:
            event.remove(db.reads, "before_cursor_execute", remember)
        explain = {"sqlite": _sqlite, "postgresql": _postgresql}.get(db.url.get_backend_name(), _mariadb)
        first = True
        for statement, values in seen:
            if statement.startswith(("SELECT", "WITH")):
                if not first:
                    yield "then"
                first = False
                yield from explain(tx.connection.dbapi_connection.cursor(), statement, values)


def _mariadb(cursor: Any, statement: str, values: Any) -> Iterator[str]:
    cursor.execute("EXPLAIN " + statement, values)
    for _id, _kind, table, access, _possible, key, _length, _ref, _rows, extra in cursor.fetchall():
        if table is None or table.startswith("<"):
            continue
        notes = [access]
        notes += ["covering"] if "Using index" in extra else []
        notes += ["sorts"] if "filesort" in extra else []
        yield f"{table} by {key}: {', '.join(notes)}"


def _sqlite(cursor: Any, statement: str, values: Any) -> Iterator[str]:
    cursor.execute("EXPLAIN QUERY PLAN " + statement, values)
    depth = {0: -1}
    for number, parent, _, detail in cursor.fetchall():
        depth[number] = depth.get(parent, -1) + 1
        yield "  " * depth[number] + re.sub(r" \((subquery-)?\d+\)|\banon_\d+", "", detail).replace(
            "(subquery", "subquery"
        )


def _postgresql(cursor: Any, statement: str, values: Any) -> Iterator[str]:
    cursor.execute("EXPLAIN (FORMAT JSON, COSTS OFF) " + statement, values)
    (found,) = cursor.fetchone()
    tree = json.loads(found) if isinstance(found, str) else found
    yield from _node(tree[0]["Plan"], 0)


def _node(node: dict[str, Any], depth: int) -> Iterator[str]:
    # Through a bitmap or not is a matter of a few rows more or less.
    kind = node["Node Type"].replace("Bitmap Index Scan", "Index Scan")
    kept = (kind != "Bitmap Heap Scan" and ("Scan" in kind and kind != "Subquery Scan")) or "Sort" in kind
    if kept:
        index = f" using {node['Index Name']}" if "Index Name" in node else ""
        table = f" on {node['Relation Name']}" if "Relation Name" in node else ""
        yield "  " * depth + kind + index + table
    for child in node.get("Plans", []):
        yield from _node(child, depth + kept)


# --- the document ----------------------------------------------------------------------------------------

_HEAD = """\
# Queries of lists

How MariaDB, PostgreSQL and SQLite answer the main lists, as they say themselves (EXPLAIN) with 16,000 images.
`tests/db/test_plans.py` compares: a lost index, or a statement that uses it no more, is seen. After a change on purpose
write this file anew with `make plans` and read the difference. What the statements are made of stands in `db/pages.py`.

Good signs: each part of a page comes from a `calotype_…` index that covers it, without a sort below it. What a page
sorts is the few entries that these parts have brought together.
"""


def document(found: dict[str, dict[str, list[str]]]) -> str:
    """The whole text; `found` has the plans of each kind of database."""
    text = [_HEAD]
    for each in LISTS:
        text.append(f"## {each.title}\n")
        for kind in databases.KINDS:
            text.append("```plan " + kind + "\n" + "\n".join(found[kind][each.title]) + "\n```\n")
    return "\n".join(text)


def documented(kind: str) -> dict[str, list[str]]:
    """The plans that the document has for one kind of database."""
    found = {}
    for part in DOCUMENT.read_text().split("\n## ")[1:]:
        title, _, rest = part.partition("\n")
        block = re.search(rf"```plan {kind}\n(.*?)\n```", rest, re.DOTALL)
        assert block, f"no plan of {kind} for: {title}"
        found[title] = block[1].split("\n")
    return found


def lost(found: dict[str, list[str]], documented: dict[str, list[str]]) -> dict[str, set[str]]:
    """By list, the indexes of ours that it used and uses no more, and the tables that it now reads without an index.

    All else a database weighs anew with each estimate: in which order it goes through them, whether by a bitmap, and
    which of several indexes finds it the owner of no image, or one image by its id.
    """
    titles = {title: _lost(found[title], lines) for title, lines in documented.items()}
    return {title: what for title, what in titles.items() if what}


#: A bitmap of PostgreSQL's that finds images by their ids, as the primary key does.
_BY_ID = re.compile(r"\s*Index Scan using calotype_(owner|visibility)_id")


def _lost(found: list[str], documented: list[str]) -> set[str]:
    own, whole = re.compile(r"calotype_\w+"), re.compile(r"Seq Scan on \w+|SCAN \w+$|\w+ by None: ALL")

    def named(lines: list[str], what: re.Pattern[str]) -> set[str]:
        return {name for line in lines for name in what.findall(line)}

    meant = named([line for line in documented if not _BY_ID.fullmatch(line)], own)
    return (meant - named(found, own)) | (named(found, whole) - named(documented, whole))


def gather(kind: str) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        db = Database(
            databases.synced(databases.reserved(kind, Path(directory))),
            Settings(response_timeout=None, transaction_timeout=300),
        )
        fill(db)
        try:
            return plans(db)
        finally:
            db.close()


if __name__ == "__main__":
    DOCUMENT.write_text(document({kind: gather(kind) for kind in databases.KINDS}))
    sys.exit(0)
