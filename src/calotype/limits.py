"""What a project may have: from the configuration, or from Keystone's unified limits.

What it has is `db/usage.py`; `images/quota.py` compares the two. Keystone is asked here as oslo.limit asks it, with
oslo.limit's options. That library itself reads the global configuration, keeps what it read for ever or not at all,
and compares before it is known who else is about to.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oslo_config import cfg

from calotype import errors

LOG = logging.getLogger(__name__)

#: How long a project's limits are remembered, seconds, and that Keystone did not tell them.
FRESH, FAILED = 10.0, 1.0
#: How long Keystone may take for one answer, seconds, where `[oslo_limit] timeout` does not say.
_PATIENCE = 10.0
_MOST_REMEMBERED = 10_000
_MIB = 1 << 20
_UNITS: Final = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

#: The unified limits, by the names under which they are registered in Keystone.
NAMES: Final = ("image_size_total", "image_stage_total", "image_count_total", "image_count_uploading")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a project may have: bytes of data, images, and images that data is coming for. None: no limit."""

    project: str
    size: int | None = None
    staged: int | None = None
    images: int | None = None
    uploading: int | None = None


class Limits(Protocol):
    """Where limits are written. Shared by threads; may ask another service, so never call it in a transaction."""

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        """Whose limits apply, of two projects, when one works on an image of the other; and which they are.

        None where nothing is limited. Raises `Busy` when that cannot be told now.
        """


def build(conf: cfg.ConfigOpts) -> Limits:
    """The limits of a configuration. Raises `ConfigError`; Keystone need not be there yet."""
    return KeystoneLimits(conf) if conf.use_keystone_limits else StorageLimit(conf.user_storage_quota)


class StorageLimit:
    """`user_storage_quota`, as operators write it: one number of bytes for each project that owns images. 0: none."""

    def __init__(self, text: str) -> None:
        digits = text.rstrip("BKMGT")
        self._size = int(digits) * _UNITS[text.removeprefix(digits)]

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        return Allowance(owner, size=self._size) if self._size and owner else None


class KeystoneLimits:
    """Unified limits, of the caller's project. What Keystone said is remembered for `FRESH` seconds."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._keystone = _Keystone(conf)
        self._registered = _Remembered(self._keystone.registered)
        self._overrides = _Remembered(self._keystone.overrides)

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        if not caller:
            return None
        found = {**self._registered.get(""), **self._overrides.get(caller)}
        # As oslo.limit has it: what is not registered is not allowed, and what is negative is not limited.
        size, staged, images, uploading = (None if found.get(name, 0) < 0 else found.get(name, 0) for name in NAMES)
        return Allowance(
            caller,
            size=None if size is None else size * _MIB,
            staged=None if staged is None else staged * _MIB,
            images=images,
            uploading=uploading,
        )


class _Keystone:
    """Questions to Keystone. Each raises `Busy` when there is no answer that makes sense."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        from keystoneauth1 import adapter, exceptions, loading

        self._failures: tuple[type[Exception], ...] = (exceptions.ClientException, KeyError, TypeError, ValueError)
        group = "oslo_limit"
        loading.register_session_conf_options(conf, group)
        loading.register_adapter_conf_options(conf, group, include_deprecated=False)
        loading.register_auth_conf_options(conf, group)
        self._options = conf.oslo_limit
        if not self._options.auth_type:
            raise errors.ConfigError("use_keystone_limits: [oslo_limit] auth_type is missing, and what goes with it.")
        if not (
            self._options.endpoint_id or self._options.endpoint_service_type or self._options.endpoint_service_name
        ):
            raise errors.ConfigError(
                "use_keystone_limits: [oslo_limit] must name the service whose limits these are, by endpoint_id or by "
                "endpoint_service_type or endpoint_service_name."
            )
        try:
            auth = loading.load_auth_from_conf_options(conf, group)
            session = loading.load_session_from_conf_options(conf, group, auth=auth)
        except (exceptions.ClientException, cfg.Error, ValueError) as exc:
            raise errors.ConfigError(f"[oslo_limit] cannot be used: {exc}") from exc
        session.timeout = session.timeout or _PATIENCE
        self._adapter: Any = adapter.Adapter(  # one protocol for all that comes back from elsewhere: JSON
            session,
            service_type=self._options.service_type or "identity",
            service_name=self._options.service_name,
            interface=self._options.valid_interfaces,
            region_name=self._options.region_name,
            endpoint_override=self._options.endpoint_override,
            min_version="3",
            max_version="3.latest",
        )
        self._service: dict[str, str] = {}  #: ids of the service and its region; empty until Keystone told them

    def registered(self, _: str) -> Mapping[str, int]:
        """The limits of projects that have none of their own, by name."""
        found = self._limits("registered_limits", "default_limit")
        if missing := [name for name in NAMES if name not in found]:
            LOG.error(
                "limits are not registered in Keystone and count as 0, nothing allowed: %s (service %s, region %s)",
                ", ".join(missing), self._service.get("service_id"), self._service.get("region_id"),
            )  # fmt: skip
        return found

    def overrides(self, project: str) -> Mapping[str, int]:
        """A project's own limits, by name."""
        return self._limits("limits", "resource_limit", project_id=project)

    def _limits(self, kind: str, value: str, **where: str) -> dict[str, int]:
        try:
            if not self._service:
                self._service = self._find_service()
            answer = self._adapter.get(f"/{kind}", params=self._service | where).json()[kind]
            return {one["resource_name"]: int(one[value]) for one in answer if one["resource_name"] in NAMES}
        except self._failures as exc:
            raise errors.Busy("Keystone does not tell the limits of the project just now.") from exc

    def _find_service(self) -> dict[str, str]:
        options = self._options
        if options.endpoint_id:
            endpoint = self._adapter.get(f"/endpoints/{options.endpoint_id}").json()["endpoint"]
        else:
            named = {"type": options.endpoint_service_type, "name": options.endpoint_service_name}
            service = self._only("services", named)
            where = {
                "region_id": options.endpoint_region_name,
                "interface": options.endpoint_interface.removesuffix("URL"),
            }
            endpoint = self._only("endpoints", {"service_id": service["id"]} | where)
        found = {"service_id": endpoint["service_id"], "region_id": endpoint.get("region_id")}
        return {name: value for name, value in found.items() if value}

    def _only(self, kind: str, where: Mapping[str, str | None]) -> Any:
        params = {name: value for name, value in where.items() if value}
        found = self._adapter.get(f"/{kind}", params=params).json()[kind]
        if len(found) != 1:
            raise ValueError(f"Keystone has {len(found)} {kind} with {params}; [oslo_limit] must name one")
        return found[0]


class _Remembered:
    """A question's answers, kept for a while: one thread asks, others who want to know the same wait for it."""

    def __init__(
        self, ask: Callable[[str], Mapping[str, int]], *, fresh: float = FRESH, failed: float = FAILED
    ) -> None:
        self._ask = ask
        self._fresh_for = fresh
        self._failed_for = failed
        self._known: dict[str, tuple[float, Mapping[str, int] | errors.Busy]] = {}
        self._asking: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, about: str) -> Mapping[str, int]:
        known = self._fresh(about)
        if known is None:
            with self._lock:
                asking = self._asking.setdefault(about, threading.Lock())
            with asking:
                known = self._fresh(about)
                known = self._renew(about) if known is None else known
        if isinstance(known, errors.Busy):
            raise errors.Busy(str(known)) from known.__cause__
        return known

    def _fresh(self, about: str) -> Mapping[str, int] | errors.Busy | None:
        until, known = self._known.get(about, (0.0, None))
        return known if time.monotonic() < until else None

    def _renew(self, about: str) -> Mapping[str, int] | errors.Busy:
        found: Mapping[str, int] | errors.Busy
        try:
            found = self._ask(about)
        except errors.Busy as exc:
            found = exc
        with self._lock:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
                self._asking.clear()
            self._known[about] = (
                time.monotonic() + (self._failed_for if isinstance(found, errors.Busy) else self._fresh_for),
                found,
            )
        return found
