"""`calotype env`: the exports that let `openstack` talk to this service as its first admin."""

import argparse
import shlex
from pathlib import Path

from calotype import config, errors
from calotype.cli import clouds
from calotype.cli.common import Commands, load


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "env",
        parents=[common],
        help="print the exports that let `openstack` use this service",
        description='Print shell exports for the openstack client: eval "$(calotype env)"',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    path = config.state_path(load(options), "clouds.yaml")
    if not path.exists():
        raise errors.NotFound(f"{path} does not exist yet; `calotype serve` makes it at its first start.")
    print(exports(path))
    return 0


def exports(path: Path) -> str:
    """One line of shell."""
    return f"export OS_CLIENT_CONFIG_FILE={shlex.quote(str(path))} OS_CLOUD={clouds.CLOUD}"
