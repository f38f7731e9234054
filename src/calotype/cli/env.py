"""`calotype env`: the exports that let `openstack` talk to this service as one of its users."""

import argparse
import shlex
from pathlib import Path

from oslo_config import cfg

from calotype import config, errors
from calotype.auth import basic
from calotype.cli import clouds, listening
from calotype.cli.common import load, password, users_file

#: What the client would mix with what we say, as one from an earlier `calotype env`.
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
    print(f"{FORGET}; {exports(path)}")
    return 0


def exports(path: Path) -> str:
    """One line of shell: the cloud of a `clouds.yaml`."""
    return f"export OS_CLIENT_CONFIG_FILE={shlex.quote(str(path))} OS_CLOUD={clouds.CLOUD}"


def personal_exports(endpoint: str, user: str, password: str) -> str:
    """One line of shell: a user of the service at `endpoint`, without any file."""
    # The client asks the catalog for the image endpoint unless it is told; http_basic has no catalog.
    values = {"AUTH_TYPE": "http_basic", "ENDPOINT": endpoint, "IMAGE_ENDPOINT_OVERRIDE": endpoint, "USERNAME": user}
    values["PASSWORD"] = password
    said = " ".join(f"OS_{name}={shlex.quote(value)}" for name, value in values.items())
    return f"{FORGET}; export {said}"


def endpoint(conf: cfg.ConfigOpts) -> str:
    """Where clients find the service: as configured, else where it served last, else where it will."""
    found = conf.public_endpoint or clouds.endpoint(config.state_path(conf, "clouds.yaml"))
    return str(found or listening.url(conf)).rstrip("/")
