"""The sender: hands the events of the outbox to the drivers, in order, one process at a time.

An event leaves the outbox after every driver has taken it, so none is lost, whatever is away or dies meanwhile; one may
be sent again, with the same message_id. Each process of a service with notifications has a sender.
"""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from calotype import errors
from calotype.db import locks, outbox
from calotype.db.engine import Tx
from calotype.model import Event
from calotype.notifiers import Notifier
from calotype.service import Service

LOG = logging.getLogger(__name__)

#: The row of `calotype_locks` that the sender of all processes has.
LOCK: Final = "events"
#: How long it has it without a word, as others see it.
LEASE: Final = timedelta(seconds=10)
#: How long it sends before it says one, seconds.
_SPELL = 2.0
#: Events that are read at once.
_BATCH = 100
#: How soon after an event was announced it is looked for, seconds: its transaction is still to commit.
_SOON = 0.02
#: How long a driver that failed is left alone, seconds: the first time, and what it doubles up to.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Sender:
    """A thread that sends what waits, until `stop`. `waiting` is how many events did at the last failure."""

    def __init__(self, svc: Service, notifiers: Sequence[Notifier], poll: float) -> None:
        self._svc = svc
        self._notifiers = notifiers
        self._poll = poll
        self._lock = locks.Lock(LOCK, LEASE, svc.leases)
        self._announced = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self.waiting = 0

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """There will be something to send, once a transaction is committed."""
        self._announced.set()

    def stop(self) -> None:
        """End after the event at hand. What is left waits for another process, or the next start."""
        self._stopping.set()
        self._announced.set()
        self._thread.join(timeout=10)

    def send_waiting(self) -> int:
        """Send what waits, unless another process does; how many events. Raises what a driver raises, and `Busy`."""
        sent = 0
        if not self._svc.db.snapshot(outbox.has_events):
            return sent
        batch = self._svc.db.write(self._take)
        while batch:
            taken, failure = self._hand_over(batch)
            last = failure is not None or self._stopping.is_set()
            batch = self._svc.db.write(partial(self._go_on, taken=taken, last=last))
            sent += len(taken)
            if failure is not None:
                raise failure
        return sent

    def _take(self, tx: Tx) -> list[Event]:
        return self._next(tx) if self._lock.acquire(tx) else []

    def _go_on(self, tx: Tx, taken: Sequence[Event], last: bool) -> list[Event]:
        # Who was silent for too long removes nothing: another one is about to send the same events, and will.
        if not self._lock.renew(tx):
            return []
        outbox.remove(tx, taken)
        return self._next(tx, last)

    def _next(self, tx: Tx, last: bool = False) -> list[Event]:
        batch = [] if last else outbox.next_events(tx, _BATCH)
        if not batch:
            self._lock.release(tx)
        return batch

    def _hand_over(self, batch: Sequence[Event]) -> tuple[list[Event], Exception | None]:
        """The events that all drivers took, and why the next one was not."""
        taken: list[Event] = []
        end = time.monotonic() + _SPELL
        for event in batch:
            if taken and (self._stopping.is_set() or time.monotonic() > end):
                break
            message = {
                "message_id": event.id,
                "publisher_id": self._svc.conf.default_publisher_id,
                "event_type": event.type,
                "priority": event.priority,
                "payload": event.payload,
                "timestamp": str(event.at),
            }
            try:
                for notifier in self._notifiers:
                    notifier.send(message)
            except Exception as exc:  # noqa: BLE001  # whatever a library raises, the event stays
                return taken, exc
            taken.append(event)
        return taken, None

    def _run(self) -> None:
        failures, pause = 0, 0.0
        while not self._stopping.is_set():
            if self._announced.wait(pause):
                self._announced.clear()
                pause = _SOON
                self._stopping.wait(_SOON)
            try:
                sent = self.send_waiting()
            except Exception as exc:  # noqa: BLE001  # the same
                failures += 1
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10))
                self._complain(exc, pause)
                self._stopping.wait(pause)  # however many more events there are meanwhile
                continue
            failures = 0
            # A transaction may take longer: look again soon, then less and less often.
            pause = _SOON if sent else min(self._poll, max(pause, _SOON) * 4)

    def _complain(self, exc: Exception, pause: float) -> None:
        try:
            self.waiting = self._svc.db.snapshot(outbox.count)
        except Exception:  # noqa: BLE001  # the same
            LOG.warning("events cannot be read: %s", errors.reason(exc))
            return
        why = errors.reason(exc)
        LOG.warning("%d events wait to be sent, trying again in %g s: %s", self.waiting, pause, why)
