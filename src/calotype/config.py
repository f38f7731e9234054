"""Every option: its name, type, default and help. An option with the same meaning as one of Glance has its name.

`load` reads the files into a `ConfigOpts`, which is passed as an argument; nothing reads a global one.
"""

import ipaddress
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

from oslo_config import cfg, types

from calotype import errors, net


class DirectoryPath(types.String):
    """The path of a directory. Raises `ValueError` for one with a ~, which only shells expand."""

    def __call__(self, value: Any) -> str:
        if str(value).startswith("~"):
            raise ValueError(f"write the whole path: {value} would be a directory of the name ~")
        return str(super().__call__(value))


class ItemList(types.List):
    """Items separated by commas. Brackets around the whole list are allowed, as in Glance's files.

    Blanks, line ends and quotes around an item are removed. Raises `ValueError` for an empty item and for an unmatched
    bracket: if these were ignored, a filter of URLs could let through what it should refuse.
    """

    def __call__(self, value: Any) -> list[Any]:
        if not isinstance(value, str):
            return [self.item_type(item) for item in value]
        text = value.strip()
        if _closing(text) == len(text) - 1:
            text = text[1:-1].strip()
        lines = [line.strip().removesuffix(",") for line in text.splitlines()]
        items = [item.strip().strip("\"'").strip() for line in lines if line for item in line.split(",")]
        if text and not all(items or [""]):
            raise ValueError("an item is empty")
        if odd := next((item for item in items if {"[", "]"} & set(_BRACKETED.sub("", item))), None):
            raise ValueError(f"a bracket of {odd} has no partner")
        return [self.item_type(item) for item in items]


def _word(text: str) -> str:
    """An item that is one word. Raises `ValueError` for several, which somebody meant to be several items."""
    if odd := _ODD.search(text):
        raise ValueError(f"items are separated by commas, and have no {odd[0]!r} in them: {text}")
    return text


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


_LOG_LEVEL = re.compile(r"[^=\s]+\s*=\s*(CRITICAL|FATAL|ERROR|WARNING|WARN|INFO|DEBUG|TRACE|NOTSET|\d+)", re.IGNORECASE)
_ADDRESS6 = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]")
_ODD = re.compile(r"[\s;|(){}<>\"'“”„#]")
_BRACKETED = re.compile(r"\[[^\[\]]*\]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@\\]+", re.IGNORECASE)


def _closing(text: str) -> int:
    """The index of the bracket that closes the one at the start of the text; -1 if there is none."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth <= 0:
            return place if character == "]" else -1
    return -1


class Text(types.String):
    """A text that a function checks and converts. It raises `ValueError` for a wrong one."""

    def __init__(self, convert: Callable[[str], str]) -> None:
        super().__init__()
        self._convert = convert

    def __call__(self, value: Any) -> str:
        return self._convert(str(super().__call__(value)))


class ListOpt(cfg.ListOpt):
    """An option whose value is a list, in any of the notations that OpenStack's configuration files use.

    Items are single words unless there is another `item_type`.
    """

    def __init__(self, name: str, *, item_type: Any = None, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.type = ItemList(item_type or Text(_word))


class WebUrl(types.String):
    """A URL of http or https, or an empty text."""

    def __call__(self, value: Any) -> str:
        text = str(super().__call__(value))
        if text and not net.is_web_url(text):
            raise ValueError(f"{text} is no URL of http or https")
        return text


def _origin(text: str) -> str:
    """The type of an option that is an origin as browsers name it. Another text would never be one."""
    if text not in ("*", "null") and not (_ORIGIN.fullmatch(text) and net.is_well_formed(text)):
        raise ValueError(f"{text} is no origin; write https://HOST or https://HOST:PORT, with nothing behind it")
    return text


def _was(name: str, group: str = "DEFAULT") -> cfg.DeprecatedOpt:
    """An older name of an option, which oslo.db still reads."""
    return cfg.DeprecatedOpt(name, group=group)


DEFAULT: list[cfg.Opt] = [
    cfg.Opt(
        "state_dir",
        type=DirectoryPath(),
        help="Directory for everything that Calotype makes itself when nothing else is configured: the SQLite "
        "database, the first store, the users file, lock files. Default: /var/lib/calotype for root, "
        "~/.local/state/calotype for others.",
    ),
    cfg.StrOpt(
        "bind_host",
        help="Address that `calotype serve` listens on, as Glance has it; [server] bind says both and wins.",
    ),
    cfg.PortOpt("bind_port", min=1, help="Port that goes with bind_host."),
    cfg.IntOpt("api_limit_max", default=1000, min=1, help="Most images that one list answer holds."),
    cfg.IntOpt(
        "limit_param_default", default=25, min=1, help="Images in a list answer when the client names no limit."
    ),
    cfg.StrOpt(
        "metadata_source_path",
        default="/etc/glance/metadefs/",
        help="Directory of JSON files that `calotype db load-metadefs` reads, and `export-metadefs` writes, "
        "when not told otherwise.",
    ),
    cfg.IntOpt(
        "max_request_id_length",
        default=64,
        min=0,
        help="Longest X-Openstack-Request-ID accepted from a client, in characters; 0 lifts the limit.",
    ),
    cfg.Opt(
        "public_endpoint",
        type=WebUrl(),
        help="Base URL that clients use, for the versions document; default: as requested.",
    ),
    cfg.DictOpt(
        "enabled_backends",
        default={},
        help="Stores as id:type pairs, for example fast:file,cheap:file. Each id has a section of its own. "
        "Unset: one file store named 'local' in the state directory.",
    ),
    cfg.StrOpt("hashing_algorithm", default="sha512", help="Hash for os_hash_value: a strong one of Python's hashlib."),
    cfg.BoolOpt(
        "md5_checksum",
        default=True,
        help="Also compute the old MD5 `checksum`. Nothing is ever decided by it; switch it off under FIPS or to "
        "save its CPU time.",
    ),
    cfg.IntOpt("image_size_cap", default=1 << 40, min=1, max=1 << 63, help="Largest image, in bytes."),
    cfg.IntOpt("image_member_quota", default=128, help="Members per image; negative lifts the limit."),
    cfg.IntOpt("image_property_quota", default=128, help="Custom properties per image; negative lifts the limit."),
    cfg.IntOpt("image_tag_quota", default=128, help="Tags per image; negative lifts the limit."),
    cfg.StrOpt("default_publisher_id", default="image.localhost", help="Publisher id in notifications."),
    ListOpt(
        "disabled_notifications",
        default=[],
        help="Notifications that are not sent: event types, or groups, which are what stands before the first dot.",
    ),
    ListOpt(
        "enabled_import_methods",
        item_type=types.String(choices=["glance-direct", "web-download", "glance-download", "copy-image"]),
        default=["glance-direct", "web-download", "copy-image"],
        help="Ways to import data that users are offered: glance-direct (upload it, then import it), web-download, "
        "glance-download, copy-image.",
    ),
    cfg.StrOpt(
        "node_staging_uri",
        help="file:///directory where uploads wait to be imported, if [os_glance_staging_store] "
        "filesystem_store_datadir is not set; default: staging in state_dir. Hosts may share one.",
    ),
    cfg.IntOpt("image_location_quota", default=10, help="Copies per image; negative lifts the limit."),
    cfg.StrOpt(
        "user_storage_quota",
        regex=r"^[0-9]{1,18}([KMGT]?B)?$",
        default="0",
        help="Bytes that all copies of all images of one project may have together; KB, MB, GB or TB may follow, of "
        "1024 each; 0 lifts the limit. Without effect with use_keystone_limits.",
    ),
    cfg.BoolOpt(
        "use_keystone_limits", default=False, help="Ask Keystone for the limits of projects; see [oslo_limit]."
    ),
    cfg.StrOpt(
        "property_protection_file",
        help="File that says who may create, read, update and delete which custom properties; see the policy guide.",
    ),
    cfg.StrOpt(
        "property_protection_rule_format",
        default="roles",
        choices=["roles", "policies"],
        help="What that file names: roles, or rules of the policy files.",
    ),
    cfg.BoolOpt(
        "allow_anonymous_access",
        default=False,
        help="Let who shows no credentials read, as a caller without roles and project. What such a caller sees is for "
        "the policy to say: by default, nothing.",
    ),
    cfg.BoolOpt(
        "show_image_direct_url",
        default=False,
        help="Show services the location of an image's first copy, as direct_url. Users never see it.",
    ),
    cfg.BoolOpt(
        "do_secure_hash",
        default=True,
        help="Read data whose location is added, to hash it, or to compare it with the hash that was given.",
    ),
    cfg.IntOpt("http_retries", default=3, min=0, help="How often hashing it is tried again."),
]

SERVER: list[cfg.Opt] = [
    cfg.StrOpt("bind", default="127.0.0.1:9292", help="HOST:PORT that `calotype serve` listens on."),
    cfg.IntOpt(
        "workers",
        default=1,
        min=1,
        deprecated_opts=[_was("workers")],
        help="Worker processes of `calotype serve`; also read from [DEFAULT], where Glance has it.",
    ),
    cfg.IntOpt(
        "threads",
        default=2048,
        min=1,
        help="Requests that one worker works on at once; threads start when they are needed, and end.",
    ),
    cfg.IntOpt(
        "transfers",
        default=1000,
        min=1,
        help="Uploads that one process works on at once; more of them wait for some seconds and are then answered 507. "
        "Keep it well below threads, which all other requests need.",
    ),
    cfg.IntOpt(
        "transfer_memory",
        default=64,
        min=1,
        help="Memory that passing data may take in one process, MiB, whatever the number of uploads; those that find "
        "none wait for it.",
    ),
    cfg.IntOpt(
        "part_memory",
        default=256,
        min=16,
        help="Memory that one process takes, beside transfer_memory, for parts of images on their way to object stores "
        "such as S3, MiB. Uploads that get none for 10 seconds are answered 507.",
    ),
    cfg.FloatOpt("header_timeout", default=30.0, min=1, help="Seconds that a client may take for a request's head."),
    cfg.IntOpt("keepalive_timeout", default=15, min=1, help="Seconds that a connection may be idle between requests."),
    cfg.FloatOpt(
        "client_timeout", default=60.0, min=1, help="Seconds without a byte after which an upload is given up."
    ),
    cfg.FloatOpt(
        "send_timeout", default=300.0, min=1, help="Seconds without a byte taken after which an answer is given up."
    ),
    cfg.IntOpt(
        "min_rate",
        default=500,
        min=0,
        help="Bytes a second that a client must send while it is waited for, over a minute, or take, over "
        "send_timeout; 0: no limit.",
    ),
    cfg.IntOpt("graceful_timeout", default=30, min=1, help="Seconds that running transfers get to end at a shutdown."),
    cfg.StrOpt("tls_cert", help="PEM file with the certificate chain; with tls_key, `calotype serve` speaks HTTPS."),
    cfg.StrOpt("tls_key", help="PEM file with the private key."),
    cfg.BoolOpt(
        "access_log",
        default=False,
        help="Log each request that `calotype serve` answers, at level INFO, with the logger calotype.access.",
    ),
    cfg.BoolOpt(
        "allow_plain_http",
        default=False,
        help="Listen beyond loopback without TLS. Passwords and images then cross the network in the clear.",
    ),
]

HTTP_BASIC: list[cfg.Opt] = [
    cfg.StrOpt("users_file", help="Users, projects and password hashes; default: users.json in the state directory."),
    cfg.IntOpt("verify_parallel", default=2, min=1, help="Passwords that one worker verifies at once; each costs CPU."),
]

DATABASE: list[cfg.Opt] = [
    cfg.StrOpt(
        "connection",
        secret=True,
        deprecated_opts=[_was("sql_connection"), _was("sql_connection", "DATABASE"), _was("connection", "sql")],
        help="SQLAlchemy URL; default: calotype.db in the state directory. mysql://, mariadb:// and postgresql:// need "
        "the extra mysql or postgresql installed.",
    ),
    cfg.StrOpt(
        "connection_parameters",
        default="",
        help="Put at the end of the URL's parameters: param1=value1&param2=value2.",
    ),
    cfg.IntOpt(
        "max_pool_size",
        default=5,
        min=0,
        deprecated_opts=[_was("sql_max_pool_size"), _was("sql_max_pool_size", "DATABASE")],
        help="Connections that a worker keeps open; 0 lifts all limits.",
    ),
    cfg.IntOpt(
        "max_overflow",
        default=50,
        min=-1,
        deprecated_opts=[_was("sql_max_overflow"), _was("sqlalchemy_max_overflow", "DATABASE")],
        help="Connections that a worker opens beyond these for a crowd of requests; -1 lifts the limit.",
    ),
    cfg.FloatOpt(
        "pool_timeout",
        default=30,
        min=0,
        deprecated_opts=[_was("sqlalchemy_pool_timeout", "DATABASE")],
        help="Seconds that a request waits for one of them before it is answered 503.",
    ),
    cfg.IntOpt(
        "connection_recycle_time",
        default=3600,
        min=-1,
        deprecated_opts=[
            _was("idle_timeout", "database"),
            _was("idle_timeout", "DATABASE"),
            _was("sql_idle_timeout"),
            _was("sql_idle_timeout", "DATABASE"),
            _was("idle_timeout", "sql"),
        ],
        help="Age in seconds at which a connection is replaced before its next use; -1: never.",
    ),
    cfg.FloatOpt(
        "response_timeout",
        default=30,
        min=2,
        help="Seconds that the database may take for one answer; then the connection is given up. Not for commands.",
    ),
    cfg.FloatOpt(
        "transaction_timeout",
        default=30,
        min=2,
        help="Seconds that a transaction may wait in all, for a connection, for others that write, for answers and for "
        "tries that were in vain; then it is answered 503.",
    ),
    cfg.IntOpt(
        "max_retries",
        default=10,
        min=-1,
        deprecated_opts=[_was("sql_max_retries"), _was("sql_max_retries", "DATABASE")],
        help="How often a start tries again to reach the database; -1: for ever.",
    ),
    cfg.IntOpt(
        "retry_interval",
        default=10,
        min=0,
        deprecated_opts=[_was("sql_retry_interval"), _was("reconnect_interval", "DATABASE")],
        help="Seconds between these.",
    ),
    cfg.IntOpt(
        "db_max_retries",
        default=20,
        min=0,
        help="How often a transaction is run again that the database gave up (deadlock, conflict, lost connection); "
        "never for longer than 15 seconds.",
    ),
    cfg.IntOpt(
        "purge_age_in_days",
        default=30,
        min=0,
        help="How long ago an image must have been deleted for `calotype db purge` to remove its rows.",
    ),
    cfg.StrOpt(
        "mysql_sql_mode",
        default="TRADITIONAL",
        help="SQL mode of sessions on MariaDB; empty keeps the server's. One that is not strict is made strict.",
    ),
    cfg.IntOpt(
        "mysql_wsrep_sync_wait",
        min=0,
        max=15,
        help="wsrep_sync_wait of sessions on Galera: 1 makes reads wait for what other nodes committed before.",
    ),
]

IMAGE_FORMAT: list[cfg.Opt] = [
    ListOpt(
        "container_formats",
        deprecated_opts=[_was("container_formats")],
        default=["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"],
        help="Values allowed for container_format.",
    ),
    ListOpt(
        "disk_formats",
        deprecated_opts=[_was("disk_formats")],
        default=["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"],
        help="Values allowed for disk_format.",
    ),
    cfg.BoolOpt(
        "require_image_format_match",
        default=True,
        help="Refuse data whose detected format is not the image's disk_format. Unsafe data is refused always.",
    ),
    ListOpt("gpt_safety_checks_nonfatal", default=[], help="Partition-table checks that may fail, by name (mbr)."),
]

GLANCE_STORE: list[cfg.Opt] = [
    cfg.StrOpt("default_backend", help="Id of the store that takes an upload which names none."),
    cfg.StrOpt(
        "filesystem_store_datadir",
        help="Directory of a single-store Glance; used when enabled_backends is unset. Deprecated: name the store.",
    ),
    cfg.StrOpt("default_store", help="Of a single-store Glance; only file stores can be taken over this way."),
]

PASTE: list[cfg.Opt] = [
    cfg.StrOpt(
        "flavor",
        help="As Glance has it: with `keystone` in it Keystone is asked who a caller is; otherwise the users file is, "
        "by HTTP basic authentication. No paste file is read.",
    )
]
#: What a flavor is made of, joined by `+`.
FLAVORS = frozenset({"keystone", "caching", "cachemanagement"})

KEYSTONE: list[cfg.Opt] = [
    cfg.FloatOpt(
        "remember",
        default=10.0,
        min=0,
        help="Seconds that a worker takes a token for valid without asking memcached or Keystone again; never beyond "
        "its expiry. A revoked token is refused that much later. 0: ask each time.",
    )
]

JOBS: list[cfg.Opt] = [
    cfg.FloatOpt(
        "poll", default=2.0, min=0.1, help="Seconds between looks for work that this process has not announced."
    ),
    cfg.IntOpt(
        "hash_rate",
        default=100,
        min=0,
        help="MiB a second that one job reads to hash data whose location was added; 0: no limit.",
    ),
    cfg.IntOpt(
        "transfers",
        default=4,
        min=1,
        help="Jobs of one worker process that move or read whole images at once. If there are several places, the last "
        "one is for a project that has none.",
    ),
    cfg.IntOpt("transfers_per_host", default=8, min=1, help="The same for all processes of a host."),
    cfg.IntOpt(
        "min_rate",
        default=64,
        min=0,
        help="KiB a second that such a job must get, over a minute, from the store or server that it reads. One that "
        "gets less fails. 0: no limit.",
    ),
    cfg.IntOpt(
        "host_patience",
        default=60,
        min=1,
        help="Minutes that an import waits for the host on which its data was staged, if nobody is there.",
    ),
    cfg.IntOpt(
        "staging_hours", default=24, min=1, help="Hours after which staged data that nobody has imported is removed."
    ),
]

IMPORT_FILTERING: list[cfg.Opt] = [
    ListOpt("allowed_schemes", default=["http", "https"], help="Schemes of URLs that users may name; empty: any."),
    ListOpt("disallowed_schemes", default=[], help="Schemes that they may not."),
    ListOpt(
        "allowed_hosts",
        default=[],
        help="Hosts of such URLs; empty: any. An address written here may be private or of this host, and localhost "
        "may be this host; a name may not: see private_hosts.",
    ),
    ListOpt("disallowed_hosts", default=[], help="Hosts, or addresses of hosts, that are never fetched from."),
    ListOpt("allowed_ports", default=[80, 443], item_type=types.Port(), help="Ports of such URLs; empty: any."),
    ListOpt("disallowed_ports", default=[], item_type=types.Port(), help="Ports that are never connected to."),
    ListOpt(
        "private_hosts",
        default=[],
        help="Hosts that may lie at private addresses and on this host. It does not narrow allowed_hosts, and does not "
        "widen it.",
    ),
    ListOpt(
        "nat64_prefixes",
        default=[],
        help="Prefixes that your network's NAT64 and DNS64 use, as 2001:db8:64::/96; an address in one counts as the "
        "IPv4 address that it carries. Lengths: 32, 40, 48, 56, 64 or 96.",
    ),
]
IMPORT_PROXY: cfg.Opt = cfg.StrOpt(
    "proxy",
    secret=True,
    help="Proxy for URLs of users, as http://[user:password@]host:port; default: none, and none from the environment. "
    "It is asked by CONNECT for addresses and ports, because names are resolved and checked here. Private addresses "
    "that are allowed are connected to without it.",
)

GLANCE_DOWNLOAD: list[cfg.Opt] = [
    ListOpt(
        "extra_properties",
        default=["hw_", "trait:", "os_distro", "os_secure_boot", "os_type"],
        help="Beginnings of the names of properties that glance-download takes over from the image elsewhere.",
    ),
]

NOTIFICATIONS: list[cfg.Opt] = [
    cfg.MultiStrOpt(
        "driver",
        default=[],
        deprecated_opts=[_was("notification_driver")],
        help="Where notifications go: messagingv2 or messaging (a message bus; they need the extra notifications "
        "installed), log, noop; may be repeated. Unset: nowhere.",
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        deprecated_opts=[_was("notification_transport_url")],
        help="URL of the message bus; default: [DEFAULT] transport_url. Other options of oslo.messaging, such as those "
        "in [oslo_messaging_rabbit], are read by itself.",
    ),
    ListOpt(
        "topics",
        default=["notifications"],
        deprecated_opts=[_was("notification_topics")],
        help="Topics; the priority is added: notifications.info.",
    ),
]

TASK: list[cfg.Opt] = [
    cfg.IntOpt(
        "task_time_to_live",
        default=48,
        min=0,
        deprecated_opts=[_was("task_time_to_live")],
        help="Hours for which a task can be looked at after its end.",
    ),
]

OSLO_LIMIT: list[cfg.Opt] = [
    cfg.StrOpt("endpoint_id", help="The endpoint of this service in Keystone, whose limits are asked for."),
    cfg.StrOpt("endpoint_service_name", help="Without endpoint_id: the service's name, to find the endpoint by."),
    cfg.StrOpt("endpoint_service_type", help="Without endpoint_id: the service's type, image."),
    cfg.StrOpt("endpoint_region_name", help="Without endpoint_id: the region of the endpoint."),
    cfg.StrOpt(
        "endpoint_interface",
        default="public",
        choices=["public", "internal", "admin", "publicURL", "internalURL", "adminURL"],
        help="Without endpoint_id: the interface of the endpoint.",
    ),
]

HEALTHCHECK: list[cfg.Opt] = [
    ListOpt(
        "backends",
        default=["disable_by_file"],
        help="What must be well for /healthcheck to answer 200: disable_by_file, disable_by_files_ports, "
        "enable_by_files, database (it answers), store (the default store works), runner (a process on this host works "
        "off jobs).",
    ),
    cfg.BoolOpt(
        "detailed",
        default=False,
        help="Tell the results of all of these by name, with reasons. They say nothing of hosts and paths.",
    ),
    cfg.StrOpt(
        "disable_by_file_path",
        default="/etc/glance/healthcheck_disable",
        help="While this file exists, /healthcheck answers 503, so that a load balancer sends no requests here.",
    ),
    ListOpt(
        "disable_by_file_paths",
        default=[],
        item_type=types.String(),
        help="The same for the port that was asked at, as port:path pairs; with the backend disable_by_files_ports.",
    ),
    ListOpt(
        "enable_by_file_paths",
        default=[],
        item_type=types.String(),
        help="Files that must all exist; with the backend enable_by_files.",
    ),
    ListOpt(
        "allowed_source_ranges",
        default=[],
        item_type=Text(_network),
        help="Networks that may ask, as 192.0.2.0/24; for others /healthcheck does not exist. Empty: everybody.",
    ),
    cfg.BoolOpt(
        "ignore_proxied_requests",
        default=False,
        help="/healthcheck does not exist for requests that came through a proxy, as their headers tell.",
    ),
]

CORS: list[cfg.Opt] = [
    ListOpt(
        "allowed_origin",
        item_type=Text(_origin),
        default=[],
        help="Origins whose pages may use the API in a browser, as https://horizon.example.com; * allows all, without "
        "credentials. Empty: none.",
    ),
    cfg.BoolOpt("allow_credentials", default=True, help="Whether browsers may send credentials with such requests."),
    ListOpt(
        "expose_headers",
        default=[
            *("X-Image-Meta-Checksum", "X-Auth-Token", "X-Subject-Token", "X-Service-Token", "X-OpenStack-Request-ID"),
            *("OpenStack-image-store-ids", "Location", "ETag", "Content-Range", "Content-MD5", "Accept-Ranges"),
        ],
        help="Headers of answers that such pages may read, besides the simple ones.",
    ),
    cfg.IntOpt("max_age", default=3600, min=0, help="Seconds that browsers may remember a preflight."),
    ListOpt("allow_methods", default=["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"], help="Methods allowed."),
    ListOpt(
        "allow_headers",
        default=[
            *("Content-MD5", "X-Image-Meta-Checksum", "X-Storage-Token", "Accept-Encoding", "X-Auth-Token"),
            *("X-Identity-Status", "X-Roles", "X-Service-Catalog", "X-User-Id", "X-Tenant-Id"),
            *("X-OpenStack-Request-ID", "Authorization", "Range", "If-Range", "If-None-Match", "X-Image-Meta-Store"),
            *("X-OpenStack-Image-Size",),
        ],
        help="Headers of requests allowed, besides the simple ones.",
    ),
]

OSLO_MIDDLEWARE: list[cfg.Opt] = [
    cfg.BoolOpt(
        "enable_proxy_headers_parsing",
        default=False,
        help="Believe Forwarded, X-Forwarded-Proto, -Host, -Port, -Prefix and -For, whoever sends them. Only for "
        "services that nobody reaches but through a proxy which sets them.",
    ),
]

GROUPS: dict[str, list[cfg.Opt]] = {
    "DEFAULT": DEFAULT,
    "server": SERVER,
    "http_basic": HTTP_BASIC,
    "database": DATABASE,
    "image_format": IMAGE_FORMAT,
    "glance_store": GLANCE_STORE,
    "paste_deploy": PASTE,
    "keystone": KEYSTONE,
    "oslo_messaging_notifications": NOTIFICATIONS,
    "oslo_limit": OSLO_LIMIT,
    "healthcheck": HEALTHCHECK,
    "cors": CORS,
    "oslo_middleware": OSLO_MIDDLEWARE,
    "jobs": JOBS,
    "import_filtering_opts": [*IMPORT_FILTERING, IMPORT_PROXY],
    "glance_download_properties": GLANCE_DOWNLOAD,
    "task": TASK,
}


def load(
    files: Sequence[str] = (), dirs: Sequence[str] = (), *, state_dir: str | None = None, search: bool = True
) -> cfg.ConfigOpts:
    """Read configuration files into a new `ConfigOpts`. Later files override earlier ones.

    If no file is given and `search` is set, the usual files are read (`usual_files`); if there are none, the defaults
    apply. Environment variables such as OS_DEFAULT__STATE_DIR override files. Raises `ConfigError` with the file that
    cannot be read, or with all options that have an invalid value.
    """
    if not files and not dirs and search:
        files = usual_files()
    conf = read(files, dirs)
    if wrong := wrong_values(conf):
        raise errors.ConfigError("The configuration cannot be read: " + " ".join(wrong))
    settle(conf, state_dir)
    return conf


class Options(cfg.ConfigOpts):
    """Options without a command line.

    Of those that a library has for its command line, oslo.config would check the values while it reads the files, and
    end the program at the first wrong one.
    """

    def register_cli_opts(self, opts: list[cfg.Opt], group: Any = None) -> None:
        self.register_opts(opts, group)


def read(files: Sequence[str] = (), dirs: Sequence[str] = ()) -> cfg.ConfigOpts:
    """Read the files without checking values. Raises `ConfigError` for a file or directory that cannot be read."""
    conf = Options()
    register(conf)
    if missing := [name for name in dirs if not Path(name).is_dir()]:
        raise errors.ConfigError(f"The configuration cannot be read: there is no directory {missing[0]}.")
    try:
        conf(
            args=[],
            project="calotype",
            default_config_files=[str(Path(f).absolute()) for f in files],
            default_config_dirs=[str(Path(d).absolute()) for d in dirs],
        )
    except (cfg.Error, ValueError) as exc:
        raise errors.ConfigError(f"The configuration cannot be read: {exc}") from exc
    for name, found in (("config_file", files), ("config_dir", dirs)):  # whatever the files say of these
        conf.set_override(name, [str(Path(one).absolute()) for one in found])
    return conf


def wrong_values(conf: cfg.ConfigOpts, *, mend: bool = False) -> list[str]:
    """A sentence for each option of ours and of the log that has an invalid value; `mend` sets these to their defaults.

    oslo.config checks a value only when it is read. An invalid one should stop the start, not a request.
    """
    logs = [(section, [one for one in some if one.dest in conf]) for section, some in library_options("oslo.log")]
    wrong = wrong_among(conf, [*GROUPS.items(), *logs], mend=mend)
    for pair in conf.default_log_levels or () if mend or not wrong else ():
        if not _LOG_LEVEL.fullmatch(pair):
            wrong.append(f"[DEFAULT] default_log_levels: {pair} is no LOGGER=LEVEL, as calotype=DEBUG.")
    return wrong


def wrong_among(
    conf: cfg.ConfigOpts, sections: Iterable[tuple[str, Iterable[cfg.Opt]]], *, mend: bool = False
) -> list[str]:
    """As `wrong_values`, for these options, which are registered."""
    wrong = []
    for section, options in sections:
        for option in options:
            try:
                value = getattr(conf if section == "DEFAULT" else conf[section], option.dest)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{value} is not finite")
                if isinstance(option, cfg.ListOpt) and not isinstance(option.type, ItemList) and value:
                    _refuse_brackets(",".join(map(str, value)))
            except (cfg.Error, ValueError, RecursionError) as exc:
                wrong.append(f"[{section}] {option.dest}: {'wrong value' if option.secret else reason(exc)}.")
                if mend:
                    conf.set_override(option.dest, option.default, group=None if section == "DEFAULT" else section)
    return wrong


def _refuse_brackets(text: str) -> None:
    """Raise `ValueError` for a list of a library that is in brackets: to the library these belong to the items."""
    if _closing(text) == len(text) - 1 and not _ADDRESS6.fullmatch(text):
        raise ValueError(f"a list of this library is written without brackets: {text[1:-1]}")


def reason(exc: BaseException) -> str:
    """Why an option has an invalid value. oslo.config wraps the error that says it, and that quotes the value."""
    cause = (exc.__cause__ or exc.__context__ or exc) if isinstance(exc, cfg.Error) else exc
    return "it refers to itself" if isinstance(cause, RecursionError) else str(cause).rstrip(".")


@cache
def installed() -> EntryPoints:
    """What installed libraries tell of their options. Slow: it reads the metadata of every package."""
    return entry_points(group="oslo.config.opts")


def library_options(library: str) -> Iterator[tuple[str, list[cfg.Opt]]]:
    """The options that a library registers, by section."""
    for entry in installed().select(name=library):
        with warnings.catch_warnings(action="ignore"):  # of eventlet, which some import and nobody here uses
            found = entry.load()()
        for group, options in found:
            yield str(getattr(group, "name", group) or "DEFAULT"), list(options)


def settle(conf: cfg.ConfigOpts, state_dir: str | None = None) -> None:
    """Set options that follow from others: the state directory, and the address to listen on by Glance's options."""
    if state_dir is not None:
        conf.set_override("state_dir", str(Path(state_dir).absolute()))
    else:
        conf.set_override("state_dir", str(Path(conf.state_dir or _usual_state_dir()).absolute()))
    if conf.bind_host or conf.bind_port:
        host, port = conf.bind_host or "127.0.0.1", conf.bind_port or 9292
        conf.set_default("bind", f"[{host}]:{port}" if ":" in host.strip("[]") else f"{host}:{port}", group="server")


def values(conf: cfg.ConfigOpts) -> list[tuple[str, cfg.Opt, Any]]:
    """Each of our options with its section and its value."""
    return [
        (section, option, getattr(conf if section == "DEFAULT" else conf[section], option.dest))
        for section, options in GROUPS.items()
        for option in options
    ]


def flavor(conf: cfg.ConfigOpts) -> frozenset[str]:
    """The parts of the paste flavor. Raises `ConfigError` for an unknown one."""
    parts = frozenset(filter(None, (conf.paste_deploy.flavor or "").split("+")))
    if unknown := parts - FLAVORS:
        raise errors.ConfigError(f"[paste_deploy] flavor = {conf.paste_deploy.flavor}: {min(unknown)} is not known.")
    return parts


def notification_drivers(conf: cfg.ConfigOpts) -> list[str]:
    """The configured notification drivers without duplicates, and without those that send nothing."""
    return [name for name in dict.fromkeys(conf.oslo_messaging_notifications.driver) if name not in ("", "noop")]


def register(conf: cfg.ConfigOpts) -> None:
    """Register our options. Those of libraries are registered where the library is set up."""
    from oslo_log import log

    log.register_options(conf)
    conf.set_default("instance_uuid_format", "[image: %(uuid)s] ")
    for group, options in GROUPS.items():
        conf.register_opts(options, group=None if group == "DEFAULT" else group)


def filters(conf: cfg.ConfigOpts) -> net.Filters:
    """The filters for URLs that users name. Raises `ConfigError` for an invalid host, scheme or prefix."""
    found: dict[str, Any] = {
        option.dest: frozenset(conf.import_filtering_opts[option.dest]) for option in IMPORT_FILTERING
    }
    for name in ("allowed_schemes", "disallowed_schemes"):
        found[name] = frozenset(text.lower() for text in found[name])  # as in a parsed URL
        if odd := next((text for text in found[name] if not _SCHEME.fullmatch(text)), None):
            raise errors.ConfigError(f"[import_filtering_opts] {name}: {odd} is no scheme; write http, not http://.")
    for name in ("allowed_hosts", "disallowed_hosts", "private_hosts"):
        for text in found[name]:
            try:
                net.hosts([text])
            except errors.UrlRefused as exc:
                raise errors.ConfigError(
                    f"[import_filtering_opts] {name}: {text} is neither the name nor the address of one host; "
                    "networks, ports and wildcards cannot be given here."
                ) from exc
        found[name] = net.hosts(found[name])
    try:
        found["nat64_prefixes"] = frozenset(map(net.nat64_prefix, found["nat64_prefixes"]))
    except ValueError as exc:
        raise errors.ConfigError(f"[import_filtering_opts] nat64_prefixes: {exc}.") from exc
    return net.Filters(**found)


def proxy(conf: cfg.ConfigOpts) -> net.Proxy | None:
    """The proxy for URLs that users name. Raises `ConfigError`, which does not quote it: it may have a password."""
    url = conf.import_filtering_opts.proxy
    try:
        return net.Proxy.parse(url) if url else None
    except ValueError:
        raise errors.ConfigError(
            "[import_filtering_opts] proxy: it is not of the form http://[user:password@]host:port."
        ) from None


def state_path(conf: cfg.ConfigOpts, name: str) -> Path:
    """A path in the state directory."""
    return Path(conf.state_dir) / name


def usual_files() -> list[str]:
    """The existing configuration files at the usual places."""
    if directory := os.environ.get("OS_GLANCE_CONFIG_DIR"):
        candidates = [Path(directory) / "glance-image-import.conf", Path(directory) / "glance-api.conf"]
    else:
        candidates = [Path("/etc/calotype/calotype.conf")]
    return [str(path) for path in candidates if path.is_file()]


def _usual_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/calotype")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "calotype"
