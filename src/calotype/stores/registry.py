"""The configured stores: which there are, which one is meant, and whether the configuration is safe to serve.

Multi-store is the only mode. Without `enabled_backends` there is one file store in the state directory, or in
the data directory of a single-store Glance.
"""

import itertools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from oslo_config import cfg

from calotype import config, errors
from calotype.model import Location
from calotype.stores import file, http, memory
from calotype.stores.base import Driver, Feature, Health, Identified, Store
from calotype.stores.probing import Breaker, Probes

LOG = logging.getLogger(__name__)

#: The drivers that are here, by their types in `enabled_backends`. Others are entry points of the group `ENTRY_POINTS`.
DRIVERS: dict[str, Driver] = {
    "file": file.FileStore,
    "filesystem": file.FileStore,
    "http": http.HttpStore,
    "https": http.HttpStore,
    "memory": memory.MemoryStore,
}
ENTRY_POINTS = "calotype.stores"
#: Makes the one store that there is when the configuration names none.
UNCONFIGURED: Callable[[cfg.ConfigOpts, str], Store] = file.unconfigured

#: Options that every store's section has.
COMMON: list[cfg.Opt] = [
    cfg.StrOpt("store_description", default="", help="Words about the store, shown to users."),
    cfg.IntOpt("weight", default=0, help="Copies in the heaviest store are read first."),
    cfg.BoolOpt(
        "read_only", default=False, help="Take no uploads (410), and remove nothing: deletes wait until this is unset."
    ),
]

DEFAULT_NAME = "local"
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_RESERVED = "os_glance_"


class Stores:
    """Every configured store, by name, in the order of the configuration."""

    def __init__(self, stores: Iterable[Store], default: str, read_only: Collection[str] = ()) -> None:
        """`read_only` are the names of those that the operator lets take no change."""
        self._read_only = frozenset(read_only)
        self._stores = {store.name: store for store in stores}
        self._probes = Probes(self)
        self.default = default
        self.breaker = Breaker()

    def __iter__(self) -> Iterator[Store]:
        return iter(self._stores.values())

    def __contains__(self, name: str) -> bool:
        return name in self._stores

    def get(self, name: str) -> Store | None:
        return self._stores.get(name)

    def health(self) -> Mapping[str, Health]:
        """How each store is, by name, from memory: a store that hangs holds up nobody."""
        return self._probes.health()

    def meant(self, name: str, identity: str | None) -> Store | None:
        """The store that had this name, if it has an identity whatever it is called by now."""
        same = (one for one in self if isinstance(one, Identified) and one.identity == identity)
        return next(same, None) if identity else self.get(name)

    def for_writing(self, name: str | None) -> Store:
        """The store of this name, or the default. Raises `Invalid`, `StoreReadOnly`.

        Also `StoreUnavailable` for one whose place is not the one that is meant, before anything is changed for it.
        """
        store = self._stores.get(name or self.default)
        if store is None:
            raise errors.Invalid(f"There is no store named {name!r}; see GET /v2/info/stores.")
        if not self.takes_data(store):
            raise errors.StoreReadOnly(f"Store {store.name} does not take new data.", store.name)
        if isinstance(store, Identified):
            store.confirm()
        return store

    def takes_data(self, store: Store) -> bool:
        """Whether new data may be put into a store, by what it can and what the operator lets it."""
        return Feature.WRITE in store.features and store.name not in self._read_only

    def for_removing(self, location: Location) -> Store:
        """The store that holds a copy which is to go. Raises `StoreUnavailable` where that has to wait."""
        store = self.of(location)
        if store is None:
            raise errors.StoreUnavailable("The store of this copy is not configured.", location.store or "")
        if store.name in self._read_only:
            raise errors.StoreUnavailable(f"Store {store.name} is read-only: its data stays for now.", store.name)
        return store

    def of(self, location: Location) -> Store | None:
        """The store that holds a copy: as its metadata says, else the first one whose namespace its URL lies in."""
        named = self._stores.get(location.store or "")
        if named is not None and named.owns(location.url):
            return named
        return next((store for store in self if store.owns(location.url)), None)

    def by_preference(self, locations: Iterable[Location], prefer: Iterable[str] = ()) -> list[tuple[Store, Location]]:
        """Copies that can be read: preferred stores first, in the order of the preference, then by weight."""
        found = [(store, location) for location in locations if (store := self.of(location)) is not None]
        if len(found) < 2:
            return found
        order = {name: place for place, name in enumerate(prefer)}
        return sorted(found, key=lambda pair: (order.get(pair[0].name, len(order)), -pair[0].weight, pair[1].id))


def build(conf: cfg.ConfigOpts) -> Stores:
    """The stores of a configuration. Raises `ConfigError` where serving it could lose or mix up data."""
    backends: dict[str, str] = conf.enabled_backends or {}
    default = conf.glance_store.default_backend
    if not backends:
        if default:
            raise errors.ConfigError("[glance_store] default_backend is set, but enabled_backends names no store.")
        return Stores([UNCONFIGURED(conf, DEFAULT_NAME)], DEFAULT_NAME)
    if not default:
        raise errors.ConfigError(
            "[glance_store] default_backend must name one of the enabled_backends: " + ", ".join(backends)
        )
    if default not in backends:
        raise errors.ConfigError(f"[glance_store] default_backend {default!r} is not among the enabled_backends.")
    made = [_make(conf, name, kind) for name, kind in backends.items()]
    _refuse_shared(made)
    read_only = [name for name in backends if conf[name].read_only]
    stores = Stores(made, default, read_only)
    if not any(stores.takes_data(store) for store in stores if store.name == default):
        raise errors.ConfigError(f"[glance_store] default_backend {default!r} does not take new data.")
    return stores


def _make(conf: cfg.ConfigOpts, name: str, kind: str) -> Store:
    if name.lower().startswith(_RESERVED):
        raise errors.ConfigError(f"enabled_backends: names that begin with {_RESERVED} are reserved ({name}).")
    if name in config.GROUPS or name in ("backend_defaults", "oslo_policy"):
        raise errors.ConfigError(
            f"enabled_backends: {name!r} is the name of another section; call the store otherwise."
        )
    if not _NAME.match(name):
        raise errors.ConfigError(f"enabled_backends: {name!r} is no store name; use letters, digits, _ . and -.")
    driver = _driver(name, kind)
    options = list(driver.options)
    conf.register_opts([*COMMON, *options], group=name)
    conf.register_opts(options, group="backend_defaults")
    section = getattr(conf, name)
    values: dict[str, Any] = {}
    for option in options:
        origin = conf.get_location(option.dest, group=name)
        unset = origin is None or origin.location is cfg.Locations.opt_default
        values[option.dest] = getattr(conf.backend_defaults if unset else section, option.dest)
    values["filters"] = config.filters(conf)
    return driver(name, values, description=section.store_description, weight=section.weight)


def _driver(name: str, kind: str) -> Driver:
    """The driver of a type. What another package brings never takes the place of one that is here."""
    if kind in DRIVERS:
        return DRIVERS[kind]
    for found in entry_points(group=ENTRY_POINTS, name=kind):
        try:
            driver: Driver = found.load()
        except Exception as exc:
            raise errors.ConfigError(f"Store {name}: the driver {kind!r} of {found.value} cannot be loaded.") from exc
        return driver
    raise errors.ConfigError(
        f"enabled_backends: store {name} is of type {kind!r}; this release has {', '.join(sorted(DRIVERS))}, and no "
        "package here brings another one."
    )


def _refuse_shared(stores: Iterable[Store]) -> None:
    """Raise `ConfigError` where each of two stores would delete what the other one keeps."""
    for one, other in itertools.combinations((store for store in stores if isinstance(store, Identified)), 2):
        if why := one.overlap(other):
            raise errors.ConfigError(f"Stores {one.name} and {other.name} {why}.")
