"""What several commands do."""

import argparse
from typing import Any, Protocol

from oslo_config import cfg

from calotype import config


class Commands(Protocol):
    """What `add_subparsers` gives."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser: ...


def load(options: argparse.Namespace) -> cfg.ConfigOpts:
    """The configuration that the arguments name."""
    return config.load(options.config_file, options.config_dir, state_dir=options.state_dir)


def group(commands: Commands, name: str, words: str) -> Commands:
    """A command that has commands of its own; alone it prints its help."""
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.set_defaults(helps=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")
