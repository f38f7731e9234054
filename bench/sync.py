"""What `calotype db sync` costs on a database of images: `python -m bench.sync [COUNT] [--database KIND]`.

Fills tables as Glance leaves them, brings them to this release and says how long that took, and what an image then
takes more in indexes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from bench import dataset, services
from calotype.db import schema, tables
from calotype.db.engine import Database

_SIZES = {
    "mariadb": "SELECT sum(index_length) FROM information_schema.tables WHERE table_schema = database()",
    "postgresql": "SELECT sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sync", description=__doc__.split(":")[0])
    parser.add_argument("count", nargs="?", type=int, default=200_000, help="images (default: 200000)")
    parser.add_argument("--database", choices=list(_SIZES), default="mariadb")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calotype-bench-") as directory:
        url = services.fresh(args.database, Path(directory), 1024)
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        tables.glance_tables().create_all(engine)
        with engine.connect() as connection:
            connection.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
        dataset.fill(engine, args.count)

        def size() -> int:
            with engine.connect() as connection:
                if args.database == "mariadb":
                    names = "images, image_tags, image_properties, image_members, image_locations"
                    connection.exec_driver_sql(f"ANALYZE TABLE {names}").all()
                return int(connection.exec_driver_sql(_SIZES[args.database]).scalar_one())

        before, database = size(), Database(url)
        begun = time.monotonic()
        schema.sync(database)
        took = time.monotonic() - begun
        assert schema.inspect(database).ready
        database.close()
        more = (size() - before) / args.count / 1024
        print(f"{args.count} images, {args.database}: {took:.1f} s; indexes {more:.1f} KiB an image larger")


if __name__ == "__main__":
    main()
