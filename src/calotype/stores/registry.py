"""The configured stores: makes them, refuses unsafe configurations, and finds the store for a name or a copy.

Multi-store is the only mode. Without `enabled_backends` there is one file store in the state directory, or in
the data directory of a single-store Glance.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from oslo_config import cfg

from calotype import config, errors
from calotype.buffers import Budget
from calotype.model import Location
from calotype.stores import file, http, memory, rbd, s3, swift
from calotype.stores.access import Access, Settings
from calotype.stores.base import Driver, Feature, Health, Identified, Store
from calotype.stores.probing import Breaker, Probes

LOG = logging.getLogger(__name__)

#: Our own drivers, by their types in `enabled_backends`. Others are entry points of the group `ENTRY_POINTS`.
DRIVERS: dict[str, Driver] = {
    "file": file.FileStore,
    "filesystem": file.FileStore,
    "http": http.HttpStore,
    "https": http.HttpStore,
    "memory": memory.MemoryStore,
    "rbd": rbd.RbdStore,
    "s3": s3.S3Store,
    "swift": swift.SwiftStore,
}
ENTRY_POINTS = "calotype.stores"
#: Makes the only store of a configuration that names none.
UNCONFIGURED: Callable[[cfg.ConfigOpts, str], Store] = file.unconfigured

#: The options of every store's section.
COMMON: list[cfg.Opt] = [
    cfg.StrOpt("store_description", default="", help="Words about the store, shown to users."),
    cfg.IntOpt("weight", default=0, help="Copies in the heaviest store are read first."),
    cfg.BoolOpt(
        "read_only", default=False, help="Take no uploads (410), and remove nothing: deletes wait until this is unset."
    ),
    cfg.IntOpt(
        "max_uploads",
        default=0,
        min=0,
        help="Uploads that one process sends to the store at once; 0: no limit but [server] transfers. More of them, "
        "up to a quarter as many and at least one, wait for up to 10 seconds, and are then answered 507. Refused for a "
        "store that takes none.",
    ),
    cfg.IntOpt(
        "max_downloads",
        default=0,
        min=0,
        help="Reads of data from the store that one process has under way at once, hashing among them; 0: no limit. "
        "More of them wait in the same way, or read another copy.",
    ),
    cfg.FloatOpt(
        "connect_timeout",
        min=0.1,
        help="Seconds that the store may take for a connection; default: the driver's. Refused for types without one.",
    ),
    cfg.FloatOpt(
        "read_timeout",
        min=0.1,
        help="Seconds that the store may take for an answer, and for each next piece of data; default: the driver's. "
        "Refused for types without one.",
    ),
    cfg.IntOpt(
        "max_retries",
        default=0,
        min=0,
        max=100,
        help="How often a step that failed is tried again where that is safe: opening a download, asking for a size, a "
        "delete, and the beginning of an upload; never one that has sent data. Client libraries of networks do "
        "the same on their own.",
    ),
    cfg.FloatOpt(
        "retry_interval",
        default=0.5,
        min=0,
        help="Seconds before the first of these; each next pause is twice as long, up to 10 seconds.",
    ),
]

DEFAULT_NAME = "local"
#: The store that keeps data until it is imported. Users never see it.
STAGING = "os_glance_staging_store"
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_RESERVED = "os_glance_"
#: How sections of libraries begin. oslo.config tells no sections apart whose names differ in letter case only.
_OTHERS = ("oslo_", "keystone_authtoken")


class Stores:
    """Every configured store, by name, in the order of the configuration."""

    def __init__(
        self,
        stores: Iterable[Store],
        default: str,
        settings: Mapping[str, Settings] | None = None,
        *,
        staging: file.FileStore,
    ) -> None:
        """`settings` are the common options of each store, by its name."""
        settings = settings or {}
        self.staging = staging
        self._stores = {store.name: store for store in stores}
        self._read_only = frozenset(name for name, one in settings.items() if one.read_only)
        self._probes = Probes(self)
        self._breaker = Breaker()
        self._access = {
            store.name: Access(store, settings.get(store.name, Settings()), self._breaker) for store in (*self, staging)
        }
        self.default = default

    def __iter__(self) -> Iterator[Store]:
        return iter(self._stores.values())

    def __contains__(self, name: str) -> bool:
        return name in self._stores

    def get(self, name: str) -> Store | None:
        return self._stores.get(name)

    def access(self, store: Store) -> Access:
        """The `Access` by which image data is written to and read from this store."""
        return self._access[store.name]

    def cancel_reads(self) -> None:
        """Cancel all running reads, and those that begin later, because the process ends."""
        for access in self._access.values():
            access.cancel_reads()

    def health(self) -> Mapping[str, Health]:
        """The health of each store by name, from a cache: a store that hangs does not delay the caller."""
        return self._probes.health()

    def meant(self, name: str, identity: str | None) -> Store | None:
        """The store with this identity, whatever its name is now; without an identity, the store of this name."""
        same = (one for one in (*self, self.staging) if isinstance(one, Identified) and one.identity == identity)
        return next(same, None) if identity else self.get(name)

    def for_writing(self, name: str | None) -> Store:
        """The store of this name, or the default. Raises `Invalid`, `StoreReadOnly`, `StoreUnavailable`.

        `StoreUnavailable` is raised for a store that failed a short time ago and whose health is still bad, and for one
        whose place has not the store's identity. So an upload fails before it changes anything.
        """
        store = self._stores.get(name or self.default)
        if store is None:
            raise errors.Invalid(f"There is no store named {name!r}; see GET /v2/info/stores.")
        if not self.takes_data(store):
            raise errors.StoreReadOnly(f"Store {store.name} does not take new data.", store.name)
        if self._breaker.is_aside(store) and not (health := self._probes.of(store)).ok:
            cause = errors.StoreError(health.error or "The store is not well.", store.name)
            raise errors.StoreUnavailable(f"Store {store.name} failed, and does not work yet.", store.name) from cause
        if isinstance(store, Identified):
            store.confirm()
        return store

    def takes_data(self, store: Store) -> bool:
        """Whether new data may be put into a store: its driver can, and the operator allows it."""
        return Feature.WRITE in store.features and store.name not in self._read_only

    def for_removing(self, location: Location) -> Store:
        """The store of a copy that is to be removed. Raises `StoreUnavailable` if this has to wait."""
        store = self.of(location)
        if store is None:
            raise errors.StoreUnavailable("The store of this copy is not configured.", location.store or "")
        if store.name in self._read_only:
            raise errors.StoreUnavailable(f"Store {store.name} is read-only: its data stays for now.", store.name)
        return store

    def of(self, location: Location) -> Store | None:
        """The store of a copy: the one in its metadata, else the first one whose namespace contains its URL."""
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
        return Stores([UNCONFIGURED(conf, DEFAULT_NAME)], DEFAULT_NAME, staging=_staging(conf))
    if not default:
        raise errors.ConfigError(
            "[glance_store] default_backend must name one of the enabled_backends: " + ", ".join(backends)
        )
    if default not in backends:
        raise errors.ConfigError(f"[glance_store] default_backend {default!r} is not among the enabled_backends.")
    made = _make_all(conf, backends)
    _refuse_shared(made)
    settings = {
        store.name: Settings(**{one.name: _value(conf, store.name, one.name) for one in fields(Settings)})
        for store in made
    }
    for store in made:
        if settings[store.name].max_uploads and Feature.WRITE not in store.features:
            raise errors.ConfigError(f"Store {store.name}: max_uploads is set, and the store takes no uploads.")
    stores = Stores(made, default, settings, staging=_staging(conf))
    if not any(stores.takes_data(store) for store in stores if store.name == default):
        raise errors.ConfigError(f"[glance_store] default_backend {default!r} does not take new data.")
    return stores


def _staging(conf: cfg.ConfigOpts) -> file.FileStore:
    """The staging directory: that of the reserved store's section, of `node_staging_uri`, or in the state directory."""
    conf.register_opts(file.OPTIONS, group=STAGING)
    options = {option.dest: conf[STAGING][option.dest] for option in file.OPTIONS}
    directory = options["filesystem_store_datadir"]
    if not directory and conf.node_staging_uri:
        scheme, _, path = conf.node_staging_uri.partition("://")
        if scheme != "file" or not path.startswith("/"):
            raise errors.ConfigError(f"node_staging_uri: {conf.node_staging_uri} is not of the form file:///directory.")
        directory = path
    directory = directory or str(Path(conf.state_dir) / "staging")
    return file.FileStore(STAGING, {**options, "filesystem_store_datadir": directory})


def _make_all(conf: cfg.ConfigOpts, backends: Mapping[str, str]) -> list[Store]:
    """Make all stores. Raises one `ConfigError` that says what is wrong with each of them."""
    made, wrong = [], []
    part_memory = Budget(conf.server.part_memory << 20)
    for name, kind in backends.items():
        try:
            made.append(_make(conf, name, kind, part_memory))
        except errors.ConfigError as exc:
            wrong.append(str(exc))
    if wrong:
        raise errors.ConfigError("\n".join(wrong))
    return made


def _make(conf: cfg.ConfigOpts, name: str, kind: str, part_memory: Budget) -> Store:
    if name.lower().startswith(_RESERVED):
        raise errors.ConfigError(f"enabled_backends: names that begin with {_RESERVED} are reserved ({name}).")
    sections = {section.lower() for section in (*config.GROUPS, "backend_defaults")}
    if name.lower() in sections or name.lower().startswith(_OTHERS):
        raise errors.ConfigError(
            f"enabled_backends: {name!r} is the name of another section; call the store otherwise."
        )
    if not _NAME.match(name):
        raise errors.ConfigError(f"enabled_backends: {name!r} is no store name; use letters, digits, _ . and -.")
    driver = _driver(name, kind)
    options = [*COMMON, *driver.options]
    try:
        for group in (name, "backend_defaults"):
            conf.register_opts(options, group=group)
    except cfg.DuplicateOptError as exc:
        raise errors.ConfigError(f"Store {name}: the driver {kind!r} has another option {exc.opt_name!r}.") from exc
    for timeout in ("connect_timeout", "read_timeout"):
        if timeout not in driver.timeouts and _value(conf, name, timeout) is not None:
            raise errors.ConfigError(
                f"Store {name}: {timeout} is set, and stores of type {kind} have no such time-out; unset it in "
                f"[{name}] and in [backend_defaults]."
            )
    wanted = [*(option.dest for option in driver.options), *driver.timeouts]
    values = {option: _value(conf, name, option) for option in wanted}
    values |= {"filters": config.filters(conf), "proxy": config.proxy(conf), "part_memory": part_memory}
    description, weight = (_value(conf, name, option) for option in ("store_description", "weight"))
    return driver(name, values, description=description, weight=weight)


def _value(conf: cfg.ConfigOpts, name: str, option: str) -> Any:
    """The value of a store's option in its section, else in `[backend_defaults]`. Raises `ConfigError`."""
    section = name
    try:
        origin = conf.get_location(option, group=name)
        if origin is None or origin.location is cfg.Locations.opt_default:
            section = "backend_defaults"
        return getattr(conf[section], option)
    except (cfg.Error, ValueError) as exc:
        raise errors.ConfigError(f"[{section}] {option}: {exc.__cause__ or exc.__context__ or exc}.") from exc


def options_of(kind: str) -> list[cfg.Opt] | None:
    """The options in the section of a store of this type; None for an unknown type."""
    try:
        return [*COMMON, *_driver("", kind).options]
    except errors.ConfigError:
        return None


def _driver(name: str, kind: str) -> Driver:
    """The driver of a type. Our own drivers take precedence over those of other packages."""
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
    """Raise `ConfigError` if two stores have the same place: each would delete data of the other."""
    for one, other in itertools.combinations(stores, 2):
        if isinstance(one, Identified) and isinstance(other, Identified):
            why = one.overlap(other)
        else:  # a scheme alone is no place
            shared = any(not prefix.endswith("://") for prefix in {*one.prefixes()} & {*other.prefixes()})
            why = "keep their images at the same place; give each its own" if shared else None
        if why:
            raise errors.ConfigError(f"Stores {one.name} and {other.name} {why}.")
