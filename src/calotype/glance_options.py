"""Options of Glance that mean something else here, or nothing: what becomes of each in a configuration of Glance's.

A table, and nothing is read here. What Calotype reads under Glance's name stands in `config.py` and in the drivers of
stores; `config_check.py` accounts for a whole configuration with both.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What becomes of an option that somebody set."""

    USED = "used"
    REPLACED = "replaced"
    WITHOUT_EFFECT = "without effect"
    REFUSED = "refused"  #: to pass it over would leave something unprotected, or out of sight
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of an option, and why, or by what it is replaced.

    Where it depends on the value, `harmless` tells whether one is passed over without a loss.
    """

    verdict: Verdict
    words: str = ""
    harmless: Callable[[str], bool] | None = None


def _nothing(words: str) -> Fate:
    return Fate(Verdict.WITHOUT_EFFECT, words)


def _now(words: str) -> Fate:
    return Fate(Verdict.REPLACED, words)


def _refused(words: str, harmless: Callable[[str], bool]) -> Fate:
    return Fate(Verdict.REFUSED, words, harmless)


def _empty(value: str) -> bool:
    return not value.strip()


def _true(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "on", "yes", "")


_CACHE: Final = _nothing("there is no image cache; data is read from the stores")
_IMPORT: Final = _nothing("an import is a job here, see [jobs], and runs no plugins")
_SCRUB: Final = _nothing("deleted data is removed at once, by jobs")
_SERVER: Final = _nothing("the server has no such setting")
_API: Final = _nothing("the Images API v2 is all there is")
_REGISTRY: Final = _nothing("there is no registry")
_POOL: Final = _nothing("connections are not made by oslo.db; see [database] in the documentation")
_DEBUG: Final = _nothing("there is no such debugger or profiler")
_TOKENS: Final = _nothing("the present keystonemiddleware does not know it")
_STORE: Final = _nothing("stores here have no such setting")
_DATADIRS: Final = _refused(
    "images in these directories would not be found: name a store for each of them in [DEFAULT] enabled_backends",
    _empty,
)
_BUS: Final = _nothing("no notification goes to a message bus; see [oslo_messaging_notifications] driver")

#: Section → names, separated by blanks → what becomes of them. `*`: every option of the section that is not known.
_TABLE: Final[Mapping[str, Mapping[str, Fate]]] = {
    "DEFAULT": {
        "image_cache_dir image_cache_driver image_cache_max_size image_cache_stall_time image_cache_sqlite_db "
        "cache_prefetcher_interval": _CACHE,
        "worker_self_reference_url": _nothing("no worker asks another one for what it has staged or cached"),
        "delayed_delete scrub_time scrub_pool_size wakeup_time daemon restore scrubber_datadir cleanup_scrubber "
        "cleanup_scrubber_time": _SCRUB,
        "backlog tcp_keepidle max_header_line": _SERVER,
        "http_keepalive": _now("[server] keepalive_timeout"),
        "client_socket_timeout": _now("[server] client_timeout and send_timeout"),
        "graceful_shutdown_timeout": _now("[server] graceful_timeout"),
        "cert_file": _now("[server] tls_cert"),
        "key_file": _now("[server] tls_key"),
        "ca_file": _refused("clients without a certificate would be served: let a proxy ask for one", _empty),
        "secure_proxy_ssl_header": _now("[oslo_middleware] enable_proxy_headers_parsing"),
        "metadata_encryption_key": _refused(
            "locations would be stored in the clear, and those on record unreadable", _empty
        ),
        "owner_is_tenant": _refused("images that belong to users would belong to their projects", _true),
        "show_multiple_locations": _now(
            "POST and GET /v2/images/{image_id}/locations, for services; it let owners of an image replace its content "
            "(OSSN-0065, OSSN-0090). For direct_url: show_image_direct_url"
        ),
        "admin_role": _now("the rule context_is_admin of the policy"),
        "enforce_secure_rbac": _now("[oslo_policy] enforce_new_defaults"),
        "location_strategy store_type_preference": _now("weight in the section of each store"),
        "enable_v1_api enable_v2_api enable_v3_api enable_v1_registry enable_v2_registry": _API,
        "allow_additional_image_properties": _nothing("additional properties are allowed, as with Glance"),
        "registry_host registry_port registry_client_protocol registry_client_key_file registry_client_cert_file "
        "registry_client_ca_file registry_client_insecure registry_client_timeout use_user_token data_api "
        "admin_user admin_password admin_tenant_name auth_url auth_strategy auth_region": _REGISTRY,
        "digest_algorithm": _nothing("signatures of images are not verified"),
        "pydev_worker_debug_host pydev_worker_debug_port": _DEBUG,
        "verbose": _now("debug"),
        "lock_path": _nothing("locks are in the database and in state_dir"),
        "db_enforce_mysql_charset db_auto_create sqlite_db sqlite_synchronous": _POOL,
        "rpc_backend notification_strategy rabbit_host rabbit_port rabbit_hosts rabbit_userid rabbit_password "
        "rabbit_virtual_host rabbit_use_ssl": _now("transport_url in [oslo_messaging_notifications] or [DEFAULT]"),
        "identity_uri": _now("[keystone_authtoken] auth_url"),
        "eventlet_executor_pool_size": _IMPORT,
        "default_swift_reference swift_store_config_file": _STORE,
        "transport_url control_exchange rpc_response_timeout executor_thread_pool_size rpc_ping_enabled": _BUS,
    },
    "paste_deploy": {"config_file": _nothing("no paste file is read: filters that it adds do not run")},
    "image_format": {
        "vmdk_allowed_types": _nothing("nothing is converted; a VMDK that names other files is refused always")
    },
    "glance_store": {
        "stores": _now("[DEFAULT] enabled_backends"),
        "filesystem_store_datadirs": _DATADIRS,
    },
    "task": {"*": _IMPORT},
    "oslo_middleware": {
        "secure_proxy_ssl_header": _now("enable_proxy_headers_parsing"),
        "max_request_body_size": _nothing("bodies that are not image data have limits of their own"),
        "http_basic_auth_user_file": _now("[http_basic] users_file"),
    },
    "oslo_policy": {
        "enforce_scope": _nothing("it is always enforced: a token of the system passes no rule of projects")
    },
    "healthcheck": {"path": _nothing("the path is /healthcheck")},
    "keystone_authtoken": {
        "identity_uri auth_host auth_port auth_protocol auth_admin_prefix": _now("auth_url"),
        "admin_user": _now("username"),
        "admin_password": _now("password"),
        "admin_tenant_name": _now("project_name"),
        "delay_auth_decision": _nothing(
            "each token is decided on at once; for those without one: allow_anonymous_access"
        ),
        "auth_uri": _now("www_authenticate_uri"),
        "signing_dir hash_algorithms check_revocations_for_cached revocation_cache_time admin_token "
        "auth_version": _TOKENS,
    },
    "database": {
        "slave_connection": _nothing("reads from there would not see what was just written"),
        "sqlite_synchronous": _nothing("what was answered stays"),
        "db_retry_interval db_inc_retry_interval db_max_retry_interval": _nothing(
            "pauses between tries grow from 10 ms to half a second"
        ),
        "backend use_db_reconnect connection_debug connection_trace mysql_enable_ndb min_pool_size use_tpool "
        "synchronous_reader sqlite_db": _POOL,
    },
    "oslo_messaging_notifications": {"retry": _nothing("events wait until they are taken")},
    "oslo_messaging_rabbit": {"*": _BUS},
    "oslo_messaging_kafka": {"*": _BUS},
    "oslo_messaging_amqp": {"*": _BUS},
    "image_import_opts": {"*": _IMPORT},
    "image_conversion": {"*": _IMPORT},
    "inject_metadata_properties": {"*": _IMPORT},
    "taskflow_executor": {"*": _IMPORT},
    "wsgi": {"*": _IMPORT},
    "os_glance_tasks_store": {"*": _IMPORT},
    "store_type_location_strategy": {"*": _now("weight in the section of each store")},
    "profiler": {"*": _DEBUG},
    "oslo_reports": {"*": _DEBUG},
    "oslo_concurrency": {"*": _nothing("locks are in the database and in state_dir")},
    "key_manager": {"*": _nothing("signatures of images are not verified; signed images are refused at upload")},
    "barbican": {"*": _nothing("signatures of images are not verified; signed images are refused at upload")},
    "barbican_service_user": {
        "*": _nothing("signatures of images are not verified; signed images are refused at upload")
    },
    "vault": {"*": _nothing("signatures of images are not verified; signed images are refused at upload")},
    "privsep": {"*": _STORE},
    "privsep_osbrick": {"*": _STORE},
    "audit_middleware_notifications": {
        "*": _nothing("there is no CADF audit; see the notifications and the access log")
    },
}

#: Options that sections of Glance's stores have, by how they begin: no release has one of another meaning.
STORE_PREFIXES: Final = (
    *("filesystem_", "rbd_", "rados_", "swift_", "default_swift_", "s3_", "cinder_", "vmware_", "http_", "https_"),
    *("sheepdog_", "rootwrap_config"),
)
STORE: Final[Mapping[str, Fate]] = {"filesystem_store_datadirs": _DATADIRS}
NO_SUCH_STORE_OPTION: Final = _STORE


def sections() -> Mapping[str, Mapping[str, Fate]]:
    """Section → option → what becomes of it; `*` stands for those of a section that are not named."""
    return {section: dict(_single(rows)) for section, rows in _TABLE.items()}


def _single(rows: Mapping[str, Fate]) -> Iterator[tuple[str, Fate]]:
    for names, fate in rows.items():
        for name in names.split():
            yield name, fate
