"""The `clouds.yaml` that tells a client where a service without Keystone is, and who uses it."""

from pathlib import Path
from typing import Any

import yaml

from calotype.durable import make_directory, replace_file

CLOUD = "calotype"


def write(path: Path, endpoint: str, user: str, password: str) -> None:
    """Make the file, readable by its owner alone."""
    # The client asks the catalog for the image endpoint unless it is told; http_basic has no catalog.
    cloud = {
        "auth_type": "http_basic",
        "auth": {"endpoint": endpoint, "username": user, "password": password},
        "image_endpoint_override": endpoint,
    }
    make_directory(path.parent)
    replace_file(path, yaml.safe_dump({"clouds": {CLOUD: cloud}}, sort_keys=False))


def endpoint(path: Path) -> str | None:
    """Where the service is that such a file is about; None where it does not say."""
    try:
        return str(yaml.safe_load(path.read_text())["clouds"][CLOUD]["image_endpoint_override"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None


def move(path: Path, endpoint: str) -> None:
    """Let an existing file point at another endpoint; leave alone what is not ours."""
    try:
        found: Any = yaml.safe_load(path.read_text())
        cloud = found["clouds"][CLOUD]
        if cloud["image_endpoint_override"] == endpoint:
            return
        cloud["auth"]["endpoint"] = cloud["image_endpoint_override"] = endpoint
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return
    replace_file(path, yaml.safe_dump(found, sort_keys=False))
