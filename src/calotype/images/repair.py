"""Taking what is wrong out of service, so that nobody is served it and nothing is lost.

Data is put aside in its store, never removed. Every step is one transaction or one rename, in an order in which the
next run finds what this one left, wherever it was killed.
"""

import logging
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from calotype import errors
from calotype.context import SERVICE
from calotype.db import audit
from calotype.db import images as db_images
from calotype.db.engine import Tx
from calotype.images import checking
from calotype.images.checking import WRONG, Finding, Problem, Selection, Tally
from calotype.model import Image
from calotype.service import Service
from calotype.stores.base import Audits, Quarantined

LOG = logging.getLogger(__name__)


def survey(
    svc: Service, what: Selection, age: timedelta, tally: Tally, pace: checking.Pace = lambda _: None
) -> Iterator[Finding]:
    """What does not match, in both directions. A store that seems to be absent, or another one's, is left alone."""
    missing: dict[str, list[Finding]] = {}
    for finding in checking.verify(svc, what, tally, pace):
        if finding.problem is Problem.MISSING and finding.store and not what.image_ids:
            missing.setdefault(finding.store, []).append(finding)
        else:
            yield finding
    for store, found in missing.items():
        if tally.sound.get(store):
            yield from found
        else:
            words = f"none of the {len(found)} copies is there: is it mounted? Name an image by --image if it is"
            yield Finding(Problem.UNREADABLE, words, store)
    if what.image_ids:
        return
    known = svc.db.snapshot(audit.count_images_with_data)
    for finding in checking.strays(svc, what, age):
        if known or finding.problem is not Problem.STRAY:
            yield finding
        else:
            words = f"{finding.name}: the database knows no image with data at all; is it the right one?"
            yield Finding(Problem.UNREADABLE, words, finding.store)


def mend(svc: Service, finding: Finding, age: timedelta) -> str | None:
    """Take it out of service; what was done and how to undo it, in words. None when it is not wrong any more."""
    if finding.problem is Problem.STRAY:
        return _mend_stray(svc, finding, age)
    if finding.problem not in WRONG or finding.image_id is None:
        return None
    # Looked at again with every copy and every byte: what is sound decides what becomes of the image.
    image = checking.record(svc, finding.image_id)
    if image is None or image.status not in ("active", "deactivated"):
        return None
    found = checking.verify_image(svc, image, Selection(), Tally(), lambda _: None)
    mine = next((one for one in found if one.location == finding.location and one.problem in WRONG), None)
    if mine is None:
        return None
    bad = {one.location.id for one in found if one.location is not None}
    sound = {place.id for place in image.locations} - bad
    if not sound and any(one.problem is Problem.UNREADABLE for one in found):
        raise errors.StoreUnavailable("Another copy cannot be read, so nobody knows whether it is sound.", mine.store)
    done = [] if sound else [_deactivate(svc, image)]
    if mine.location is not None and mine.problem is not Problem.MISSING:
        done.append(_put_aside(svc, mine, {"image": image.id, "location": mine.location.id, "why": mine.words}))
    if mine.location is not None and sound:
        done.append(_drop(svc, mine, sound))
    LOG.warning("repair of image %s in store %s: %s", image.id, mine.store, "; ".join(filter(None, done)))
    return "; ".join(filter(None, done))


def restore(svc: Service, store_name: str, key: str) -> Quarantined:
    """Undo a quarantine: the data gets its name back, and the record its copy. A deactivated image stays so."""
    store = svc.stores.get(store_name)
    if not isinstance(store, Audits):
        raise errors.NotFound(f"There is no store named {store_name!r} with a quarantine.")
    found = store.restore(key)
    image_id, location = found.facts.get("image"), found.facts.get("location")

    def work(tx: Tx) -> None:
        if image_id and not db_images.is_deleted(tx, image_id) and db_images.is_location_active(tx, location) is False:
            db_images.restore_location(tx, image_id, location)

    svc.db.write(work)
    LOG.warning("restored %s in store %s from quarantine", found.name, store_name)
    return found


def _mend_stray(svc: Service, finding: Finding, age: timedelta) -> str | None:
    store = _auditable(svc, finding)
    assert finding.entry is not None
    if not checking.unclaimed(svc, store, [finding.entry], age):
        return None
    done = _put_aside(svc, finding, {"why": finding.words})
    if done:
        LOG.warning("repair of %s in store %s: %s", finding.name, finding.store, done)
    return done or None


def _deactivate(svc: Service, image: Image) -> str:
    def work(tx: Tx) -> None:
        if db_images.move(tx, image.id, "active", "deactivated", now=svc.now()):
            svc.events.image(tx, image.id, "image.update")

    svc.db.write(work)
    return f"image {image.id} has no sound copy and is deactivated (with sound data: reactivate it)"


def _put_aside(svc: Service, finding: Finding, facts: Mapping[str, Any]) -> str:
    store = _auditable(svc, finding)
    if finding.entry is None:
        return ""
    key = store.quarantine(finding.entry, {**facts, "when": svc.now().isoformat()})
    return f"put aside (undo: calotype repair --restore {finding.store}/{key})" if key else ""


def _drop(svc: Service, finding: Finding, sound: set[int]) -> str:
    image_id, location = finding.image_id or "", finding.location
    assert location is not None

    def work(tx: Tx) -> bool:
        now = db_images.get(tx, SERVICE, image_id, lock=True)
        # Should somebody have removed the sound copy meanwhile, this one stays on record, and the next run sees it.
        if now is None or not any(place.id in sound for place in now.locations):
            return False
        return db_images.remove_location(tx, image_id, location.id, svc.now())

    dropped = svc.db.write(work)
    return f"the copy in store {finding.store} is off the record, another one is sound" if dropped else ""


def _auditable(svc: Service, finding: Finding) -> Audits:
    store = svc.stores.get(finding.store)
    if not isinstance(store, Audits):
        raise errors.StoreUnavailable("This kind of store has no quarantine; nothing was changed.", finding.store)
    return store
