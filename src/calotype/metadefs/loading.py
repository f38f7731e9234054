"""Bringing whole namespaces into the catalogue and out of it, for operators: no caller is asked about, nothing is told.

What is loaded has been read by `api/metadef_views.py`, from a file as from a request.
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

#: Namespaces that one look at the list brings.
_PAGE: Final = 100


class Mode(Enum):
    """What becomes of a namespace that is there already."""

    SKIP = "stays as it is"
    MERGE = "gets what it does not have"
    PREFER_NEW = "gets that, and what is there becomes what is loaded"
    OVERWRITE = "becomes what is loaded; what is not loaded goes"


@dataclass(slots=True)
class Outcome:
    """What loading did to a namespace. Counters have the words for what was counted: property, object and so on."""

    namespace: str
    is_new: bool = False
    skipped: bool = False
    added: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    @property
    def has_changes(self) -> bool:
        return self.is_new or any((self.added, self.changed, self.removed))


class _Undo(Exception):
    """Ends a transaction that was to show what would happen."""


def load(db: Database, new: Definitions, mode: Mode, *, dry_run: bool = False) -> Outcome:
    """Bring one namespace into the catalogue, all or nothing. Raises `Conflict`, `Busy`, `Invalid`.

    Its resource types are protected when they are new.
    """
    shown: list[Outcome] = []

    def work(tx: Tx) -> Outcome:
        outcome = _load(tx, new, mode)
        if dry_run:
            shown.append(outcome)
            raise _Undo
        return outcome

    try:
        return db.write(work)
    except _Undo:
        return shown[-1]


def unload(db: Database, names: Iterable[str]) -> list[str]:
    """Remove namespaces with all that is in them, protected or not; those that there were. Resource types stay."""

    def work(tx: Tx, name: str) -> bool:
        found = metadefs.get(tx, SERVICE, name, lock=True)
        if found is not None:
            metadefs.remove(tx, found.id)
        return found is not None

    return [name for name in names if db.write(lambda tx, name=name: work(tx, name))]  # type: ignore[misc]


def unload_all(db: Database) -> tuple[list[str], int]:
    """Empty the catalogue; the names of the namespaces, and how many resource types that were."""
    return db.write(metadefs.clear)


def catalogue(db: Database) -> Iterator[Definitions]:
    """All namespaces with all that is in them, in the order in which they were added; each as it is at one moment."""
    after: Namespace | None = None
    while True:

        def some(tx: Tx, after: Namespace | None = after) -> list[Definitions]:
            return metadefs.page(
                tx, SERVICE, limit=_PAGE, after=after, sort_key="id", descending=False, with_parts=True
            )

        page = db.read(some)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].namespace


def _load(tx: Tx, new: Definitions, mode: Mode) -> Outcome:
    outcome = Outcome(new.namespace.name)
    there, outcome.is_new = _get_or_add(tx, new.namespace)
    old = Definitions(there)
    if not outcome.is_new:
        if mode is Mode.SKIP:
            outcome.skipped = True
            return outcome
        old = metadefs.get_definitions(tx, SERVICE, there.name) or old
        if mode is not Mode.MERGE:
            _load_namespace(tx, there, new.namespace, outcome)
    _load_associations(tx, old, new.associations, mode, outcome)
    _load_parts(tx, PROPERTY, old.namespace, old.properties, new.properties, mode, outcome)
    _load_parts(tx, OBJECT, old.namespace, old.objects, new.objects, mode, outcome)
    _load_parts(tx, TAG, old.namespace, old.tags, new.tags, mode, outcome)
    return outcome


def _get_or_add(tx: Tx, new: Namespace) -> tuple[Namespace, bool]:
    """The namespace of that name, locked, and whether it is new."""
    there = metadefs.get(tx, SERVICE, new.name, lock=True)
    if there is not None:
        return there, False
    try:
        return metadefs.add(tx, new), True
    except errors.Conflict:  # somebody else added it just now
        there = metadefs.get(tx, SERVICE, new.name, lock=True)
        if there is None:
            raise
        return there, False


def _load_namespace(tx: Tx, old: Namespace, new: Namespace, outcome: Outcome) -> None:
    changed = replace(new, id=old.id, created_at=old.created_at)
    if replace(changed, updated_at=old.updated_at) != old:
        metadefs.update(tx, changed)
        outcome.changed["namespace"] += 1


def _load_associations(tx: Tx, old: Definitions, new: Iterable[Association], mode: Mode, outcome: Outcome) -> None:
    number = old.namespace.id
    there = {one.resource_type: one for one in old.associations}
    # A type keeps the name that it was given first, whatever the database takes for the same.
    new = [
        replace(one, resource_type=metadefs.resource_type(tx, one.resource_type) or one.resource_type) for one in new
    ]
    missing, different, gone = _sorted_out(there, new, lambda one: one.resource_type, mode)
    for one in sorted(missing, key=lambda one: one.resource_type.lower()):  # in one order, as `namespaces.fill`
        metadefs.add_association(tx, number, one, protected=True)
    for _name, one in different:
        metadefs.update_association(tx, number, one)
    for one in gone:
        metadefs.remove_association(tx, number, one.resource_type)
    _count(outcome, "association", missing, different, gone)


def _load_parts(
    tx: Tx, kind: Kind[P], namespace: Namespace, old: Iterable[P], new: Iterable[P], mode: Mode, outcome: Outcome
) -> None:
    there = {one.name: one for one in old}

    def name_there(one: P) -> str:
        if not there or one.name in there:
            return one.name
        found = metadefs.part(tx, kind, namespace.id, one.name)  # under what the database takes for the same name
        return found.name if found is not None else one.name

    missing, different, gone = _sorted_out(there, new, name_there, mode)
    metadefs.add_parts(tx, kind, namespace.id, missing)
    for name, one in different:
        metadefs.update_part(tx, kind, namespace.id, name, one)
    for one in gone:
        metadefs.remove_part(tx, kind, namespace.id, one.name)
    _count(outcome, kind.word, missing, different, gone)


def _sorted_out(
    old: Mapping[str, Any], new: Iterable[Any], key: Callable[[Any], str], mode: Mode
) -> tuple[list[Any], list[tuple[str, Any]], list[Any]]:
    """What is to be added, what is to be written anew and over which name, what is to go."""
    missing, different, names = [], [], set[str]()
    for one in new:
        name = key(one)
        there = old.get(name)
        if there is None or name in names:  # what comes twice is a conflict, as the database will find
            missing.append(one)
        elif replace(one, created_at=there.created_at, updated_at=there.updated_at) != there:
            different.append((name, one))
        names.add(name)
    gone = [one for name, one in old.items() if name not in names]
    return missing, different if mode is not Mode.MERGE else [], gone if mode is Mode.OVERWRITE else []


def _count(outcome: Outcome, word: str, missing: list[Any], different: list[Any], gone: list[Any]) -> None:
    for counter, some in ((outcome.added, missing), (outcome.changed, different), (outcome.removed, gone)):
        if some:
            counter[word] += len(some)


def _type_of(one: Association) -> str:
    return one.resource_type
