"""The database schema: compare it with the one that this release expects, and migrate it.

The expected revision is the constant `HEAD`, so that starting a service need not import alembic. A test compares it
with the newest migration.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from calotype import errors
from calotype.db.engine import Database
from calotype.db.tables import GLANCE_HEAD, alembic_version, image_locations, images, our_indexes

HEAD = "0007"
#: Columns of ours in Glance's tables.
_COLUMNS = (images.c.calotype_revision, image_locations.c.calotype_object)


def current(db: Database) -> str | None:
    """Our revision in the database, None before the first `sync`."""
    with db.read_once() as tx:
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


def require_current(db: Database) -> None:
    """Raise `ConfigError` unless the schema is that of this release."""
    if not pending(db):
        return
    found = inspect(db)
    if found.revision is not None:
        said = f"The database schema is that of an older release ({found.revision}; this one wants {HEAD})"
    elif found.glance_revisions:
        said = f"The database is one of Glance, at {', '.join(found.glance_revisions)}, that was not taken over yet"
    else:
        said = "The database is empty"
    raise errors.ConfigError(f"{said}; run: calotype db sync")


@dataclass(frozen=True, slots=True)
class Report:
    """What `inspect` finds: our revision and the `wanted` one, Glance's revisions, and which of our indexes and columns
    are missing in Glance's tables."""

    revision: str | None
    wanted: str
    glance_revisions: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return self.revision == self.wanted and not self.missing


def inspect(db: Database) -> Report:
    """Compare the database with this release. Reads only."""
    found = current(db)
    with db.read_once() as tx:
        glance: tuple[str, ...] = ()
        if sa.inspect(tx).has_table("alembic_version"):
            glance = tuple(sorted(tx.execute(sa.select(alembic_version.c.version_num)).scalars()))
        missing: tuple[str, ...] = ()
        if found == HEAD:
            missing = tuple(sorted(str(index.name) for index in missing_indexes(tx)))
            missing += tuple(column.name for column in _missing_columns(tx))
    return Report(found, HEAD, glance, missing)


def missing_indexes(tx: sa.Connection) -> list[sa.Index]:
    """Indexes of ours that somebody dropped. Lists need them (`pages.py`)."""
    if tx.dialect.name == "sqlite":  # which does not describe indexes on expressions
        existing = set(tx.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'index'")).scalars())
    else:
        tables = sa.inspect(tx).get_multi_indexes()
        existing = {index["name"] for indexes in tables.values() for index in indexes}
    ours = our_indexes(tx.dialect.name)
    return [index for index in ours if index.name not in existing]


def sync(db: Database) -> str | None:
    """Migrate the schema to this release; returns the revision before. Repeatable; only one may run at a time."""
    found, behind = current(db), pending(db)
    with db.write_once() as tx:
        if behind:
            _refuse_half_migrated(tx)
            _upgrade(tx)
        for column in _missing_columns(tx):
            kind = column.type.compile(tx.dialect)
            tx.execute(sa.text(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}"))
        for index in missing_indexes(tx):
            index.create(tx)
    return found


def _upgrade(tx: sa.Connection) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # at INFO it logs each of its plugins
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = tx
    command.upgrade(config, "head")


def _missing_columns(tx: sa.Connection) -> list[sa.Column[Any]]:
    """Columns of ours that are missing, as after a table was restored from a dump of Glance's."""
    inspector = sa.inspect(tx)
    return [
        column
        for column in _COLUMNS
        if column.name not in {found["name"] for found in inspector.get_columns(column.table.name)}
    ]


def _refuse_half_migrated(tx: sa.Connection) -> None:
    if not sa.inspect(tx).has_table("alembic_version"):
        return
    rows = set(tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalars())
    if rows and rows != {GLANCE_HEAD}:
        raise errors.ConfigError(
            f"This Glance database is at {', '.join(sorted(rows))}; Calotype takes over one at {GLANCE_HEAD} only. "
            "Run Glance's own `glance-manage db sync` first."
        )
