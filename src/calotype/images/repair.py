"""Repairs what `checking.py` finds: takes bad copies out of service and quarantines stray data.

No data is removed: a quarantine is a rename within the store, and can be undone. Every step is one transaction or one
rename. If a run is killed between two steps, the next run finds what is left to do.
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
    """All problems of records and stores. One that seems absent, or another one, is reported as such."""
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
    """Repair a problem; returns what was done and how to undo it, in words. None if the problem is gone."""
    if finding.problem is Problem.STRAY:
        return _mend_stray(svc, finding, age)
    if finding.problem not in WRONG or finding.image_id is None:
        return None
    # All copies are checked again in full: what to do with the image depends on which of them are sound.
    image = checking.find_image(svc, finding.image_id)
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
    actions = [] if sound else [_deactivate(svc, image)]
    if mine.location is not None and mine.problem is not Problem.MISSING:
        actions.append(_quarantine(svc, mine, {"image": image.id, "location": mine.location.id, "why": mine.words}))
    if mine.location is not None and sound:
        actions.append(_remove_from_record(svc, mine, sound))
    LOG.warning("repair of image %s in store %s: %s", image.id, mine.store, "; ".join(filter(None, actions)))
    return "; ".join(filter(None, actions))


def restore(svc: Service, store_name: str, key: str) -> Quarantined:
    """Undo a quarantine: restore the data and the copy in the record. A deactivated image stays deactivated."""
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
    store = _audited_store(svc, finding)
    assert finding.entry is not None
    if not checking.unclaimed(svc, store, [finding.entry], age):
        return None
    done = _quarantine(svc, finding, {"why": finding.words})
    if done:
        LOG.warning("repair of %s in store %s: %s", finding.name, finding.store, done)
    return done or None


def _deactivate(svc: Service, image: Image) -> str:
    def work(tx: Tx) -> None:
        if db_images.move(tx, image.id, "active", "deactivated", now=svc.now()):
            svc.events.image(tx, image.id, "image.update")

    svc.db.write(work)
    return f"image {image.id} has no sound copy and is deactivated (with sound data: reactivate it)"


def _quarantine(svc: Service, finding: Finding, facts: Mapping[str, Any]) -> str:
    store = _audited_store(svc, finding)
    if finding.entry is None:
        return ""
    key = store.quarantine(finding.entry, {**facts, "when": svc.now().isoformat()})
    return f"put aside (undo: calotype repair --restore {finding.store}/{key})" if key else ""


def _remove_from_record(svc: Service, finding: Finding, sound: set[int]) -> str:
    image_id, location = finding.image_id or "", finding.location
    assert location is not None

    def work(tx: Tx) -> bool:
        current = db_images.get(tx, SERVICE, image_id, lock=True)
        # If the sound copy was removed meanwhile, this one stays in the record, for the next run to find.
        if current is None or not any(place.id in sound for place in current.locations):
            return False
        return db_images.remove_location(tx, image_id, location.id, svc.now())

    dropped = svc.db.write(work)
    return f"the copy in store {finding.store} is off the record, another one is sound" if dropped else ""


def _audited_store(svc: Service, finding: Finding) -> Audits:
    store = svc.stores.get(finding.store)
    if not isinstance(store, Audits):
        raise errors.StoreUnavailable("This kind of store has no quarantine; nothing was changed.", finding.store)
    return store
