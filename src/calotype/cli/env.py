"""`calotype env`: prints shell exports for using this service with `openstack`."""

import argparse
import shlex
from pathlib import Path

from oslo_config import cfg

from calotype import config, errors
from calotype.auth import basic
from calotype.cli import clouds, listening
from calotype.cli.common import load, password, users_file

#: Variables to unset: the client would combine them with ours, for example those of an earlier `calotype env`.
FORGET = (
    "unset OS_CLIENT_CONFIG_FILE OS_CLOUD OS_AUTH_TYPE OS_ENDPOINT OS_IMAGE_ENDPOINT_OVERRIDE OS_USERNAME OS_PASSWORD"
)


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    users = users_file(conf)
    if options.user is not None:
        user = basic.read_users(users).get(options.user)
        if user is None:
            raise errors.NotFound(f"There is no user {options.user!r} in {users}; add one by `calotype user add`.")
        given = password(twice=False)
        if not basic.matches(user, given):
            raise errors.Forbidden(f"This is not the password of {options.user}.")
        print(personal_exports(endpoint(conf), options.user, given))
        return 0
    path = config.state_path(conf, "clouds.yaml")
    if not path.exists():
        raise errors.NotFound(
            f"{path} does not exist; `calotype serve` makes it at its first start. For users that you added: "
            "calotype env --user NAME"
        )
    if clouds.endpoint(path) is None:
        raise errors.ConfigError(
            f"{path} has no cloud {clouds.CLOUD} that can be read. For a user whose password you know: "
            "calotype env --user NAME"
        )
    print(f"{FORGET}; {exports(path)}")
    return 0


def exports(path: Path) -> str:
    """A line of shell that selects the cloud in a `clouds.yaml`."""
    return f"export OS_CLIENT_CONFIG_FILE={shlex.quote(str(path))} OS_CLOUD={clouds.CLOUD}"


def personal_exports(endpoint: str, user: str, password: str) -> str:
    """A line of shell with the credentials of a user of the service at `endpoint`. It needs no file."""
    # With http_basic there is no catalog, so the image endpoint must be given.
    values = {"AUTH_TYPE": "http_basic", "ENDPOINT": endpoint, "IMAGE_ENDPOINT_OVERRIDE": endpoint, "USERNAME": user}
    values["PASSWORD"] = password
    said = " ".join(f"OS_{name}={shlex.quote(value)}" for name, value in values.items())
    return f"{FORGET}; export {said}"


def endpoint(conf: cfg.ConfigOpts) -> str:
    """The URL for clients: the configured one, else that of the last start, else that of the next one."""
    found = conf.public_endpoint or clouds.endpoint(config.state_path(conf, "clouds.yaml"))
    return str(found or listening.url(conf)).rstrip("/")
