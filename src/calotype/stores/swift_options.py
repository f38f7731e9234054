"""The options of a store of type `swift`, by Glance's names, and the logins that they give. `swift.py` is the store."""

import configparser
from collections.abc import Mapping
from typing import Any, Final

from oslo_config import cfg

from calotype import errors, net
from calotype.stores.swift_account import Login

#: Glance's unit for sizes of objects and segments, bytes.
UNIT: Final = 1000 * 1024

_NOT_READ = "Not read: the service always acts with its own credentials, and keeps no segments on disk."

OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt(
        "swift_store_config_file",
        help="File with a section of credentials for each reference, as Glance reads it. It takes the place of "
        "swift_store_auth_address, swift_store_user and swift_store_key.",
    ),
    cfg.StrOpt(
        "default_swift_reference",
        default="ref1",
        help="The reference whose account takes new images. It is part of each location.",
    ),
    cfg.StrOpt("swift_store_auth_address", help="URL of Keystone, or of tempauth."),
    cfg.StrOpt("swift_store_user", secret=True, help="The service's account as project:user."),
    cfg.StrOpt("swift_store_key", secret=True, help="Its password."),
    cfg.StrOpt("swift_store_auth_version", default="3", help="3: Keystone; 1: tempauth. 2 is read as 3."),
    cfg.StrOpt("swift_store_container", default="glance", help="The container, or how the names of containers begin."),
    cfg.BoolOpt("swift_store_create_container_on_put", default=False, help="Create a container that is missing."),
    cfg.IntOpt(
        "swift_store_multiple_containers_seed",
        default=0,
        min=0,
        max=32,
        help="How many characters of the image id name the container, after an underscore; 0: one container for all.",
    ),
    cfg.BoolOpt(
        "swift_store_multi_tenant",
        default=False,
        help="Each image in a container of its own, in the account of the project that uploads it.",
    ),
    cfg.ListOpt(
        "swift_store_admin_tenants",
        default=[],
        help="Projects that may write to the containers of a multi-tenant store.",
    ),
    cfg.IntOpt(
        "swift_store_large_object_size",
        default=5120,
        min=1,
        help="Images of this size, in units of 1,024,000 bytes, or more are stored in segments, and so is what does "
        "not fit into one segment.",
    ),
    cfg.IntOpt(
        "swift_store_large_object_chunk_size",
        default=200,
        min=1,
        help="The size of a segment, in units of 1,024,000 bytes. Segments are smaller if part_memory, divided by "
        "swift_store_thread_pool_size, is.",
    ),
    cfg.IntOpt(
        "swift_store_thread_pool_size",
        default=8,
        min=1,
        max=256,
        help="Segments of one image that are sent at once. With 1 they are sent one after the other, and joined by a "
        "dynamic large object, as Glance does; else by a static one.",
    ),
    cfg.StrOpt("swift_store_cacert", help="PEM file with the certificates that servers are verified with."),
    cfg.BoolOpt(
        "swift_store_auth_insecure",
        default=False,
        help="Do not verify certificates: who is on the way can change data.",
    ),
    cfg.StrOpt("swift_store_region", help="The region of Swift in Keystone's catalog."),
    cfg.StrOpt(
        "swift_store_endpoint_type",
        default="publicURL",
        choices=["publicURL", "internalURL", "adminURL", "public", "internal", "admin"],
        help="The interface of Swift in Keystone's catalog.",
    ),
    cfg.StrOpt("swift_store_service_type", default="object-store", help="The type of Swift in Keystone's catalog."),
    cfg.StrOpt("swift_store_endpoint", help="URL of the account in Swift, in place of what the authentication tells."),
    cfg.IntOpt(
        "swift_store_retry_get_count",
        default=3,
        min=0,
        help="How often a download that was cut off goes on with a new request.",
    ),
    cfg.BoolOpt("swift_store_use_trusts", default=True, help=_NOT_READ),
    cfg.IntOpt("swift_store_expire_soon_interval", default=60, help=_NOT_READ),
    cfg.BoolOpt("swift_buffer_on_upload", default=False, help=_NOT_READ),
    cfg.StrOpt("swift_upload_buffer_dir", help=_NOT_READ),
    cfg.BoolOpt("swift_store_ssl_compression", default=True, help="Not read: nothing is compressed on its way."),
]

_VERSIONS: Final = {"1": 1, "1.0": 1, "v1": 1, "v1.0": 1, "2": 3, "2.0": 3, "3": 3, "v3": 3}


def logins(name: str, options: Mapping[str, Any]) -> dict[str, Login]:
    """The logins by reference. Raises `ConfigError`."""
    reference = options["default_swift_reference"]
    path = options["swift_store_config_file"]
    if path is None:
        wanted = ("swift_store_auth_address", "swift_store_user", "swift_store_key")
        if missing := [one for one in wanted if not options[one]]:
            raise errors.ConfigError(
                f"Store {name}: set {', '.join(missing)} in section [{name}], or swift_store_config_file."
            )
        given = {
            "auth_address": options["swift_store_auth_address"],
            "user": options["swift_store_user"],
            "key": options["swift_store_key"],
            "auth_version": options["swift_store_auth_version"],
        }
        return {reference: _login(name, reference, given)}
    if options["swift_store_multi_tenant"]:
        raise errors.ConfigError(
            f"Store {name}: swift_store_config_file and swift_store_multi_tenant exclude each other; unset one of them."
        )
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, ValueError, configparser.Error) as exc:
        raise errors.ConfigError(
            f"Store {name}: swift_store_config_file cannot be read: {type(exc).__name__}."
        ) from exc
    if reference not in parser:
        raise errors.ConfigError(f"Store {name}: swift_store_config_file has no section [{reference}].")
    usual = options["swift_store_auth_version"]
    return {one: _login(name, one, {"auth_version": usual, **parser[one]}) for one in parser.sections()}


def _login(store: str, reference: str, given: Mapping[str, str]) -> Login:
    where = f"Store {store}, reference {reference}"
    address = given.get("auth_address") or ""
    if not net.is_web_url(address):
        raise errors.ConfigError(f"{where}: auth_address must be a URL of http or https.")
    version = _VERSIONS.get(given.get("auth_version", "3"))
    if version is None:
        raise errors.ConfigError(f"{where}: auth_version must be 1 or 3.")
    application = None
    if given.get("application_credential_id") and given.get("application_credential_secret"):
        application = (given["application_credential_id"], given["application_credential_secret"])
    user, key = given.get("user") or "", given.get("key") or ""
    if application is None and (":" not in user or not key):
        raise errors.ConfigError(f"{where}: user must be project:user, and key its password.")
    if application is not None and version == 1:
        raise errors.ConfigError(f"{where}: application credentials are for auth_version 3 alone.")
    if any(character in reference for character in "/?#@%"):
        raise errors.ConfigError(f"{where}: a reference is part of URLs, and must have no /, ?, #, @ and %.")
    domains = _domain(given, "user"), _domain(given, "project")
    return Login(reference, address, version, user, key, domains, application)


def _domain(given: Mapping[str, str], whose: str) -> Mapping[str, str]:
    if found := given.get(f"{whose}_domain_name"):
        return {"name": found}
    return {"id": given.get(f"{whose}_domain_id") or "default"}
