"""`Sender`: sends the events of the outbox, in order, from one process at a time.

An event leaves the outbox after every notifier has accepted it. So no event is lost, whatever fails meanwhile, but one
may be sent twice, with the same message_id. Each process of a service with notifications has a sender; the one that
holds the lock sends.
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

#: The name of the lock that a sender needs.
LOCK: Final = "events"
#: How long the lock lasts without being renewed.
LEASE: Final = timedelta(seconds=10)
#: How long a sender goes on before it renews the lock and removes what was sent, seconds.
_RENEW_SECONDS = 2.0
#: How many events are read at a time.
_BATCH = 100
#: How long after `nudge` to look for events, seconds: the transaction has yet to commit.
_COMMIT_WAIT = 0.02
#: The pause after a failure, seconds: the first one, and the longest; it doubles.
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 30.0


class Sender:
    """A thread that sends waiting events until `stop`. `waiting` is how many there were at the last failure."""

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
        """Look for events soon: a transaction that adds one is about to commit."""
        self._announced.set()

    def stop(self) -> None:
        """End after the current event. The rest waits for another process, or for the next start."""
        self._stopping.set()
        self._announced.set()
        self._thread.join(timeout=10)

    def send_waiting(self) -> int:
        """Send all waiting events, unless another process has the lock; returns how many.

        Raises what a notifier raises, and `Busy`.
        """
        sent = 0
        if not self._svc.db.snapshot(outbox.has_events):
            return sent
        batch = self._svc.db.write(self._acquire_lock)
        while batch:
            sent_events, failure = self._send_batch(batch)
            is_last = failure is not None or self._stopping.is_set()
            batch = self._svc.db.write(partial(self._remove_and_continue, sent_events=sent_events, is_last=is_last))
            sent += len(sent_events)
            if failure is not None:
                raise failure
        return sent

    def _acquire_lock(self, tx: Tx) -> list[Event]:
        return self._next(tx) if self._lock.acquire(tx) else []

    def _remove_and_continue(self, tx: Tx, sent_events: Sequence[Event], is_last: bool) -> list[Event]:
        # Without the lock nothing is removed: another process has read these events, and sends them again.
        if not self._lock.renew(tx):
            return []
        outbox.remove(tx, sent_events)
        return self._next(tx, is_last)

    def _next(self, tx: Tx, is_last: bool = False) -> list[Event]:
        batch = [] if is_last else outbox.next_events(tx, _BATCH)
        if not batch:
            self._lock.release(tx)
        return batch

    def _send_batch(self, batch: Sequence[Event]) -> tuple[list[Event], Exception | None]:
        """Send events until one fails, or it is time to renew the lock; returns the sent ones, and the failure."""
        sent_events: list[Event] = []
        end = time.monotonic() + _RENEW_SECONDS
        for event in batch:
            if sent_events and (self._stopping.is_set() or time.monotonic() > end):
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
            except Exception as exc:  # noqa: BLE001  # whatever a library raises, the event stays in the outbox
                return sent_events, exc
            sent_events.append(event)
        return sent_events, None

    def _run(self) -> None:
        failures, delay = 0, 0.0
        while not self._stopping.is_set():
            if self._announced.wait(delay):
                self._announced.clear()
                delay = _COMMIT_WAIT
                self._stopping.wait(_COMMIT_WAIT)
            try:
                sent = self.send_waiting()
            except Exception as exc:  # noqa: BLE001  # whatever it is, the sender goes on
                failures += 1
                delay = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(failures - 1, 10))
                self._log_failure(exc, delay)
                self._stopping.wait(delay)  # not `_announced`: new events must not cut the backoff short
                continue
            failures = 0
            # The transaction may take longer to commit: look again soon, then less and less often.
            delay = _COMMIT_WAIT if sent else min(self._poll, max(delay, _COMMIT_WAIT) * 4)

    def _log_failure(self, exc: Exception, delay: float) -> None:
        try:
            self.waiting = self._svc.db.snapshot(outbox.count)
        except Exception:  # noqa: BLE001  # whatever it is, the sender goes on
            LOG.warning("events cannot be read: %s", errors.reason(exc))
            return
        why = errors.reason(exc)
        LOG.warning("%d events wait to be sent, trying again in %g s: %s", self.waiting, delay, why)
