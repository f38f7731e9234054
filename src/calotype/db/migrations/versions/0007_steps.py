"""Jobs of several steps, and the copies that they write.

Each step looks first: MariaDB takes nothing back of a migration that breaks off.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "step": sa.Integer(),
    "checkpoint": _LONG,
    "failure": sa.Text(),
    "cancel": sa.Text(),
    "progress": sa.Text(),
    "place": sa.String(36),
    "failures": sa.Integer(),
}


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    options = inspector.get_table_options("calotype_jobs")
    alike = {name: value for name, value in options.items() if name.endswith("_collate")}
    present = {column["name"] for column in inspector.get_columns("calotype_jobs")}
    for name, kind in _COLUMNS.items():
        if name not in present:
            op.add_column("calotype_jobs", sa.Column(name, kind))
    if "staging" not in {column["name"] for column in inspector.get_columns("calotype_processes")}:
        op.add_column("calotype_processes", sa.Column("staging", sa.String(36)))
    op.create_table(
        "calotype_copies",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("calotype_jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("store", sa.String(64), primary_key=True),
        sa.Column("identity", sa.String(36)),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("note", _LONG),
        sa.Column("url", sa.Text),
        sa.Column("object", sa.String(255)),
        sa.Column("facts", _LONG),
        sa.Column("error", sa.Text),
        if_not_exists=True,
        **alike,
    )
    if "calotype_notes" in inspector.get_table_names():
        _move_uploads()
        op.drop_table("calotype_notes")


def _move_uploads() -> None:
    """Give each upload that was under way its copy, with the note of its one attempt that wrote, the first."""
    connection = op.get_bind()
    job = sa.table("calotype_jobs", *(sa.column(name, sa.Text) for name in ("id", "kind", "payload")))
    note = sa.table("calotype_notes", *(sa.column(name, sa.Text) for name in ("id", "job_id", "note")))
    copy = sa.table(
        "calotype_copies",
        *(sa.column(name, sa.Text) for name in ("job_id", "store", "identity", "state", "note")),
        sa.column("attempt", sa.Integer),
    )
    connection.execute(sa.delete(copy))  # by a migration that broke off, if there are any
    notes: dict[str, str] = {}
    for row in connection.execute(sa.select(note).order_by(note.c.id)).all():
        found = json.loads(row.note)  # the token of an attempt and its note; of old releases, the note of the first
        if said := found.get("object") if isinstance(found, dict) else found[1]:
            notes[row.job_id] = said
    rows = []
    for row in connection.execute(sa.select(job).where(job.c.kind == "upload")).all():
        payload = json.loads(row.payload)
        facts = {"job_id": row.id, "store": payload["store"], "identity": payload.get("identity")}
        rows.append(facts | {"state": "writing", "attempt": 1, "note": notes.get(row.id)})
    if rows:
        op.bulk_insert(copy, rows)
