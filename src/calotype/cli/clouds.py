"""The `clouds.yaml` with the endpoint and the credentials for a service without Keystone."""

from pathlib import Path
from typing import Any

import yaml

from calotype.durable import make_directory, replace_file

CLOUD = "calotype"


def write(path: Path, endpoint: str, user: str, password: str) -> None:
    """Write the file, readable by its owner only."""
    # With http_basic there is no catalog, so the image endpoint must be given.
    cloud = {
        "auth_type": "http_basic",
        "auth": {"endpoint": endpoint, "username": user, "password": password},
        "image_endpoint_override": endpoint,
    }
    make_directory(path.parent)
    replace_file(path, yaml.safe_dump({"clouds": {CLOUD: cloud}}, sort_keys=False))


def endpoint(path: Path) -> str | None:
    """The endpoint in such a file; None if it has none."""
    try:
        return str(yaml.safe_load(path.read_text())["clouds"][CLOUD]["image_endpoint_override"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None


def others(path: Path) -> list[str] | None:
    """The clouds in such a file apart from ours; None if it is no such file."""
    try:
        return sorted(str(name) for name in yaml.safe_load(path.read_text())["clouds"] if name != CLOUD)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None


def move(path: Path, endpoint: str) -> None:
    """Change the endpoint in an existing file. Everything else in it stays."""
    try:
        found: Any = yaml.safe_load(path.read_text())
        cloud = found["clouds"][CLOUD]
        if cloud["image_endpoint_override"] == endpoint:
            return
        cloud["auth"]["endpoint"] = cloud["image_endpoint_override"] = endpoint
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return
    replace_file(path, yaml.safe_dump(found, sort_keys=False))
