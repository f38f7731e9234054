"""Events that were committed with what they tell of, until somebody has taken them.

Rows are sent in the order of their ids. Of two transactions about one image the second begins when the first has
committed, so ids of one image are in the order of what happened. A row with a smaller id than one that was sent may
still appear, about another image: so what was sent is removed row by row.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from calotype.db.engine import Tx
from calotype.db.tables import outbox
from calotype.model import Event

_INSERT = sa.insert(outbox)
_FIRST = sa.select(outbox).order_by(outbox.c.id).limit(sa.bindparam("most"))
_ANY = sa.select(outbox.c.id).limit(1)


def add(tx: Tx, event: Event) -> None:
    """Leave an event, to be sent once the transaction is committed."""
    payload = json.dumps(event.payload, ensure_ascii=False)
    values = {"message_id": event.id, "event_type": event.type, "priority": event.priority}
    tx.execute(_INSERT, values | {"payload": payload, "created_at": event.at})


def waits(tx: Tx) -> bool:
    """Whether there is something to send."""
    return tx.execute(_ANY).first() is not None


def waiting(tx: Tx) -> int:
    """How many events wait."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one())


def first(tx: Tx, most: int) -> list[Event]:
    """The events to send next, in order."""
    return [_event(row) for row in tx.execute(_FIRST, {"most": most})]


def remove(tx: Tx, events: Sequence[Event]) -> None:
    """Forget events that were sent."""
    # SQLite gives an id away again when the table was empty: the message's own says which event is meant.
    numbers, ids = [event.number for event in events], [event.id for event in events]
    tx.execute(sa.delete(outbox).where(outbox.c.id.in_(numbers), outbox.c.message_id.in_(ids)))


def _event(row: Any) -> Event:
    return Event(row.message_id, row.event_type, row.priority, json.loads(row.payload), row.created_at, row.id)
