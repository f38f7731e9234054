"""The limits of projects: from the configuration, or from Keystone's unified limits.

`db/usage.py` knows what a project uses; `images/quota.py` compares that with its limits. Keystone is asked in the way
of oslo.limit, with its options. That library is not used: it reads the global configuration, caches limits for ever or
not at all, and compares usage without a lock.
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

#: How long limits are cached, seconds; and a failure to get them.
TTL, FAILURE_TTL = 10.0, 1.0
#: How long Keystone may take for an answer, seconds, unless `[oslo_limit] timeout` is set.
_TIMEOUT = 10.0
_MAX_CACHED = 10_000
_MIB = 1 << 20
_UNITS: Final = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

#: The unified limits, by the names under which they are registered in Keystone.
NAMES: Final = ("image_size_total", "image_stage_total", "image_count_total", "image_count_uploading")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a project may have: bytes stored and staged, images, images whose data is arriving. None: no limit."""

    project: str
    size: int | None = None
    staged: int | None = None
    images: int | None = None
    uploading: int | None = None


class Limits(Protocol):
    """A source of limits. Threads share it. It may ask another service, so never call it in a transaction."""

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        """The limits that apply when project `caller` works on an image of project `owner`: of one of the two.

        None if nothing is limited. Raises `Busy` if the limits cannot be read now.
        """


def build(conf: cfg.ConfigOpts) -> Limits:
    """The source of limits that is configured. Raises `ConfigError`; Keystone need not be reachable yet."""
    return KeystoneLimits(conf) if conf.use_keystone_limits else StorageLimit(conf.user_storage_quota)


class StorageLimit:
    """`user_storage_quota`, as operators write it: how many bytes each project may store. 0: no limit."""

    def __init__(self, text: str) -> None:
        digits = text.rstrip("BKMGT")
        self._size = int(digits) * _UNITS[text.removeprefix(digits)]

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        return Allowance(owner, size=self._size) if self._size and owner else None


class KeystoneLimits:
    """Keystone's unified limits of the caller's project, cached for `TTL` seconds."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._keystone = _Keystone(conf)
        self._registered = _CachedAnswers(self._keystone.registered)
        self._overrides = _CachedAnswers(self._keystone.overrides)

    def of(self, caller: str | None, owner: str | None) -> Allowance | None:
        if not caller:
            return None
        found = {**self._registered.get(""), **self._overrides.get(caller)}
        # As in oslo.limit: what is not registered is not allowed, and a negative limit is none.
        size, staged, images, uploading = (None if found.get(name, 0) < 0 else found.get(name, 0) for name in NAMES)
        return Allowance(
            caller,
            size=None if size is None else size * _MIB,
            staged=None if staged is None else staged * _MIB,
            images=images,
            uploading=uploading,
        )


class _Keystone:
    """Requests to Keystone. Each method raises `Busy` if there is no usable answer."""

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
        session.timeout = session.timeout or _TIMEOUT
        self._adapter: Any = adapter.Adapter(
            session,
            service_type=self._options.service_type or "identity",
            service_name=self._options.service_name,
            interface=self._options.valid_interfaces,
            region_name=self._options.region_name,
            endpoint_override=self._options.endpoint_override,
            min_version="3",
            max_version="3.latest",
        )
        self._service: dict[str, str] = {}  #: ids of the service and its region; empty before the first request

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

    def _limits(self, kind: str, value: str, **parameters: str) -> dict[str, int]:
        try:
            if not self._service:
                self._service = self._find_service()
            answer = self._adapter.get(f"/{kind}", params=self._service | parameters).json()[kind]
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
            parameters = {
                "region_id": options.endpoint_region_name,
                "interface": options.endpoint_interface.removesuffix("URL"),
            }
            endpoint = self._only("endpoints", {"service_id": service["id"]} | parameters)
        found = {"service_id": endpoint["service_id"], "region_id": endpoint.get("region_id")}
        return {name: value for name, value in found.items() if value}

    def _only(self, kind: str, parameters: Mapping[str, str | None]) -> Any:
        params = {name: value for name, value in parameters.items() if value}
        found = self._adapter.get(f"/{kind}", params=params).json()[kind]
        if len(found) != 1:
            raise ValueError(f"Keystone has {len(found)} {kind} with {params}; [oslo_limit] must name one")
        return found[0]


class _CachedAnswers:
    """Caches the answers to a question, by key. One thread asks; others with the same key wait for its answer."""

    def __init__(
        self, ask: Callable[[str], Mapping[str, int]], *, ttl: float = TTL, failure_ttl: float = FAILURE_TTL
    ) -> None:
        self._ask = ask
        self._ttl = ttl
        self._failure_ttl = failure_ttl
        self._answers: dict[str, tuple[float, Mapping[str, int] | errors.Busy]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> Mapping[str, int]:
        answer = self._cached(key)
        if answer is None:
            with self._lock:
                lock = self._locks.setdefault(key, threading.Lock())
            with lock:
                answer = self._cached(key)
                answer = self._renew(key) if answer is None else answer
        if isinstance(answer, errors.Busy):
            raise errors.Busy(str(answer)) from answer.__cause__
        return answer

    def _cached(self, key: str) -> Mapping[str, int] | errors.Busy | None:
        expires, answer = self._answers.get(key, (0.0, None))
        return answer if time.monotonic() < expires else None

    def _renew(self, key: str) -> Mapping[str, int] | errors.Busy:
        found: Mapping[str, int] | errors.Busy
        try:
            found = self._ask(key)
        except errors.Busy as exc:
            found = exc
        with self._lock:
            if len(self._answers) >= _MAX_CACHED:
                self._answers.clear()
                self._locks.clear()
            self._answers[key] = (
                time.monotonic() + (self._failure_ttl if isinstance(found, errors.Busy) else self._ttl),
                found,
            )
        return found
