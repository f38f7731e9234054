"""The outbox: events that are committed together with the change that they report, until they have been sent.

Rows are sent in the order of their ids. Two transactions about one image run one after the other, so the ids of its
events are in the order of the changes. An event of another image may still appear with a smaller id than one that was
sent. So sent events are removed row by row, and not up to an id.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from calotype.db.clock import db_now
from calotype.db.engine import Tx
from calotype.db.tables import outbox
from calotype.model import Event

_INSERT = sa.insert(outbox)
_NEXT = sa.select(outbox).order_by(outbox.c.id).limit(sa.bindparam("limit"))
_ANY = sa.select(outbox.c.id).limit(1)


def add(tx: Tx, event: Event) -> None:
    """Add an event. It is sent once the transaction is committed."""
    payload = json.dumps(event.payload, ensure_ascii=False)
    values = {"message_id": event.id, "event_type": event.type, "priority": event.priority}
    tx.execute(_INSERT, values | {"payload": payload, "created_at": event.at})


def has_events(tx: Tx) -> bool:
    """Whether any event waits to be sent."""
    return tx.execute(_ANY).first() is not None


def count(tx: Tx) -> int:
    """How many events wait to be sent."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one())


def waiting(tx: Tx) -> tuple[int, float | None]:
    """How many events wait to be sent, and for how many seconds the oldest one does, by the database's clock."""
    found = sa.select(sa.func.count(), sa.func.min(outbox.c.created_at), db_now()).select_from(outbox)
    number, oldest, present = tx.execute(found).one()
    return int(number), None if oldest is None else max(0.0, (present - oldest).total_seconds())


def clear(tx: Tx) -> int:
    """Remove all events that wait to be sent, because an operator says so; returns how many."""
    return int(tx.execute(sa.delete(outbox)).rowcount)


def next_events(tx: Tx, limit: int) -> list[Event]:
    """Up to `limit` events to send next, in order."""
    return [_event(row) for row in tx.execute(_NEXT, {"limit": limit})]


def remove(tx: Tx, events: Sequence[Event]) -> None:
    """Remove events that were sent."""
    # SQLite reuses a row's id once the table was empty, so the message id is compared as well.
    numbers, ids = [event.number for event in events], [event.id for event in events]
    tx.execute(sa.delete(outbox).where(outbox.c.id.in_(numbers), outbox.c.message_id.in_(ids)))


def _event(row: Any) -> Event:
    return Event(row.message_id, row.event_type, row.priority, json.loads(row.payload), row.created_at, row.id)
