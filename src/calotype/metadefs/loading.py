"""Loading whole namespaces into the catalogue, and unloading them, by commands of operators.

No policy is checked, and no event is sent. `api/metadef_views.py` parses the files that are loaded, as it does bodies
of requests.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, TypeVar

from calotype import errors
from calotype.context import SERVICE
from calotype.db import metadefs
from calotype.db.engine import Database, Tx
from calotype.db.metadefs import OBJECT, PROPERTY, TAG, Kind
from calotype.model import Association, Definitions, MetadefPart, Namespace

P = TypeVar("P", bound=MetadefPart)

#: How many namespaces one query reads.
_PAGE: Final = 100


class Mode(Enum):
    """What to do with a namespace that exists already."""

    SKIP = "stays as it is"
    MERGE = "gets what it does not have"
    PREFER_NEW = "gets that, and what is there becomes what is loaded"
    OVERWRITE = "becomes what is loaded; what is not loaded goes"


@dataclass(slots=True)
class Outcome:
    """What loading did to a namespace. The counters have the numbers by kind: property, object and so on."""

    namespace: str
    is_new: bool = False
    skipped: bool = False
    added: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    @property
    def has_changes(self) -> bool:
        return self.is_new or any((self.added, self.changed, self.removed))


class _DryRun(Exception):
    """Rolls the transaction of a dry run back."""


def load(db: Database, new: Definitions, mode: Mode, *, dry_run: bool = False) -> Outcome:
    """Load one namespace, all of it or nothing. Raises `Conflict`, `Busy`, `Invalid`.

    Resource types that are new are added as protected ones.
    """
    shown: list[Outcome] = []

    def work(tx: Tx) -> Outcome:
        outcome = _load(tx, new, mode)
        if dry_run:
            shown.append(outcome)
            raise _DryRun
        return outcome

    try:
        return db.write(work)
    except _DryRun:
        return shown[-1]


def unload(db: Database, names: Iterable[str]) -> list[str]:
    """Remove namespaces with their parts, also protected ones; returns those that existed. Resource types stay."""

    def work(tx: Tx, name: str) -> bool:
        found = metadefs.get(tx, SERVICE, name, lock=True)
        if found is not None:
            metadefs.remove(tx, found.id)
        return found is not None

    return [name for name in names if db.write(lambda tx, name=name: work(tx, name))]  # type: ignore[misc]


def unload_all(db: Database) -> tuple[list[str], int]:
    """Empty the catalogue; returns the names of the namespaces, and how many resource types there were."""
    return db.write(metadefs.clear)


def catalogue(db: Database) -> Iterator[Definitions]:
    """All namespaces with all that is in them, oldest first; each is read as of one moment."""
    after: Namespace | None = None
    while True:

        def read_page(tx: Tx, after: Namespace | None = after) -> list[Definitions]:
            return metadefs.page(
                tx, SERVICE, limit=_PAGE, after=after, sort_key="id", descending=False, with_parts=True
            )

        page = db.read(read_page)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].namespace


def _load(tx: Tx, new: Definitions, mode: Mode) -> Outcome:
    outcome = Outcome(new.namespace.name)
    existing, outcome.is_new = _get_or_add(tx, new.namespace)
    old = Definitions(existing)
    if not outcome.is_new:
        if mode is Mode.SKIP:
            outcome.skipped = True
            return outcome
        old = metadefs.get_definitions(tx, SERVICE, existing.name) or old
        if mode is not Mode.MERGE:
            _load_namespace(tx, existing, new.namespace, outcome)
    _load_associations(tx, old, new.associations, mode, outcome)
    _load_parts(tx, PROPERTY, old.namespace, old.properties, new.properties, mode, outcome)
    _load_parts(tx, OBJECT, old.namespace, old.objects, new.objects, mode, outcome)
    _load_parts(tx, TAG, old.namespace, old.tags, new.tags, mode, outcome)
    return outcome


def _get_or_add(tx: Tx, new: Namespace) -> tuple[Namespace, bool]:
    """The namespace of that name, locked, and whether it is new."""
    existing = metadefs.get(tx, SERVICE, new.name, lock=True)
    if existing is not None:
        return existing, False
    try:
        return metadefs.add(tx, new), True
    except errors.Conflict:  # somebody else added it just now
        existing = metadefs.get(tx, SERVICE, new.name, lock=True)
        if existing is None:
            raise
        return existing, False


def _load_namespace(tx: Tx, old: Namespace, new: Namespace, outcome: Outcome) -> None:
    changed = replace(new, id=old.id, created_at=old.created_at)
    if replace(changed, updated_at=old.updated_at) != old:
        metadefs.update(tx, changed)
        outcome.changed["namespace"] += 1


def _load_associations(tx: Tx, old: Definitions, new: Iterable[Association], mode: Mode, outcome: Outcome) -> None:
    number = old.namespace.id
    existing = {one.resource_type: one for one in old.associations}
    # A type keeps the name as it was first written; the database may take another spelling for the same name.
    new = [
        replace(one, resource_type=metadefs.resource_type(tx, one.resource_type) or one.resource_type) for one in new
    ]
    missing, different, obsolete = _compare(existing, new, lambda one: one.resource_type, mode)
    for one in sorted(
        missing, key=lambda one: one.resource_type.lower()
    ):  # in one order, as in `namespaces.add_contents`
        metadefs.add_association(tx, number, one, protected=True)
    for _name, one in different:
        metadefs.update_association(tx, number, one)
    for one in obsolete:
        metadefs.remove_association(tx, number, one.resource_type)
    _count(outcome, "association", missing, different, obsolete)


def _load_parts(
    tx: Tx, kind: Kind[P], namespace: Namespace, old: Iterable[P], new: Iterable[P], mode: Mode, outcome: Outcome
) -> None:
    existing = {one.name: one for one in old}

    def stored_name(one: P) -> str:
        if not existing or one.name in existing:
            return one.name
        found = metadefs.part(
            tx, kind, namespace.id, one.name
        )  # the database may take another spelling for the same name
        return found.name if found is not None else one.name

    missing, different, obsolete = _compare(existing, new, stored_name, mode)
    metadefs.add_parts(tx, kind, namespace.id, missing)
    for name, one in different:
        metadefs.update_part(tx, kind, namespace.id, name, one)
    for one in obsolete:
        metadefs.remove_part(tx, kind, namespace.id, one.name)
    _count(outcome, kind.word, missing, different, obsolete)


def _compare(
    old: Mapping[str, Any], new: Iterable[Any], key: Callable[[Any], str], mode: Mode
) -> tuple[list[Any], list[tuple[str, Any]], list[Any]]:
    """What to add, what to change with the name that it has now, and what to remove."""
    missing, different, names = [], [], set[str]()
    for one in new:
        name = key(one)
        existing = old.get(name)
        if existing is None or name in names:  # a name that comes twice is a conflict: the database will say so
            missing.append(one)
        elif replace(one, created_at=existing.created_at, updated_at=existing.updated_at) != existing:
            different.append((name, one))
        names.add(name)
    obsolete = [one for name, one in old.items() if name not in names]
    return missing, different if mode is not Mode.MERGE else [], obsolete if mode is Mode.OVERWRITE else []


def _count(outcome: Outcome, word: str, missing: list[Any], different: list[Any], obsolete: list[Any]) -> None:
    for counter, found in ((outcome.added, missing), (outcome.changed, different), (outcome.removed, obsolete)):
        if found:
            counter[word] += len(found)
