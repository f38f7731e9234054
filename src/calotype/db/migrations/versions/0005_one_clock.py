"""Processes that beat, notes as rows of their own, payloads of any length, and locks without a moment of some host.

Each step looks first: MariaDB takes nothing back of a migration that breaks off.
"""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_BIGINT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    # A foreign key wants the collation that ids of jobs have, which may be another than that of images.
    options = inspector.get_table_options("calotype_jobs")
    alike = {name: value for name, value in options.items() if name.endswith("_collate")}
    op.create_table(
        "calotype_processes",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("seen_at", _MOMENT, nullable=False),
        if_not_exists=True,
        **alike,
    )
    op.create_table(
        "calotype_notes",
        sa.Column("id", _BIGINT, primary_key=True),
        sa.Column("job_id", sa.String(32), sa.ForeignKey("calotype_jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("note", _LONG, nullable=False),
        if_not_exists=True,
        **alike,
    )
    if "calotype_notes_job" not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("calotype_notes")}:
        op.create_index("calotype_notes_job", "calotype_notes", ["job_id"])
    columns = {column["name"]: column["type"] for column in inspector.get_columns("calotype_jobs")}
    if "notes" in columns:
        _move_notes()
        op.execute("ALTER TABLE calotype_jobs DROP COLUMN notes")
    if op.get_bind().dialect.name in ("mysql", "mariadb") and not isinstance(columns["payload"], mysql.LONGTEXT):
        op.execute("ALTER TABLE calotype_jobs MODIFY payload LONGTEXT NOT NULL")
    columns = {column["name"]: column["type"] for column in inspector.get_columns("calotype_locks")}
    if "beat" not in columns:
        op.add_column("calotype_locks", sa.Column("beat", sa.BigInteger))
    if "until" in columns:
        until = op.get_bind().dialect.identifier_preparer.quote("until")
        op.execute(f"ALTER TABLE calotype_locks DROP COLUMN {until}")
    lock = sa.table("calotype_locks", sa.column("name", sa.String))
    if op.get_bind().execute(sa.select(lock.c.name).where(lock.c.name == "sweep")).first() is None:
        op.bulk_insert(lock, [{"name": "sweep"}])


def _move_notes() -> None:
    connection = op.get_bind()
    job = sa.table("calotype_jobs", sa.column("id", sa.String), sa.column("notes", sa.Text))
    note = sa.table("calotype_notes", sa.column("job_id", sa.String), sa.column("note", sa.Text))
    connection.execute(sa.delete(note))  # by a migration that broke off, if there are any
    for row in connection.execute(sa.select(job).where(job.c.notes != "[]")).all():
        if found := [{"job_id": row.id, "note": json.dumps(one)} for one in json.loads(row.notes)]:
            op.bulk_insert(note, found)
