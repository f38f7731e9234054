"""Is the schema what this code expects, and make it so.

Starting a service must not pay for importing alembic, so the expected head stands here as a constant; a test
compares it with the newest revision.
"""

import logging
from pathlib import Path

import sqlalchemy as sa

from calotype import errors
from calotype.db.engine import Database
from calotype.db.tables import GLANCE_HEAD

HEAD = "0002"


def current(db: Database) -> str | None:
    """Our revision in the database, None before the first `sync`."""
    with db.read() as tx:
        if not sa.inspect(tx).has_table("calotype_version"):
            return None
        return tx.execute(sa.text("SELECT version_num FROM calotype_version")).scalar()


def pending(db: Database) -> bool:
    """Whether `sync` has something to do. Raises `ConfigError` when the database is newer than this code."""
    found = current(db)
    if found is not None and found > HEAD:
        raise errors.ConfigError(
            f"The database is at revision {found}, this release knows up to {HEAD}: start a newer Calotype."
        )
    return found != HEAD


def sync(db: Database) -> str | None:
    """Bring the schema to this release's revision; the revision that was found. One at a time, repeatable."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # its plugins introduce themselves one by one
    from alembic import command
    from alembic.config import Config

    found = current(db)
    if not pending(db):
        return found
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with db.begin() as tx:
        _refuse_half_migrated(tx)
        config.attributes["connection"] = tx
        command.upgrade(config, "head")
    return found


def _refuse_half_migrated(tx: sa.Connection) -> None:
    if not sa.inspect(tx).has_table("alembic_version"):
        return
    rows = set(tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalars())
    if rows and rows != {GLANCE_HEAD}:
        raise errors.ConfigError(
            f"This Glance database is at {', '.join(sorted(rows))}; Calotype takes over one at {GLANCE_HEAD} only. "
            "Run Glance's own `glance-manage db sync` first."
        )
