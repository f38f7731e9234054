"""`calotype`: reads the arguments, loads the configuration, calls one command."""

import argparse
import sys
from collections.abc import Sequence

from calotype import __version__, errors

_EPILOG = """\
The first image in three commands, after `calotype serve` in another terminal:

  eval "$(calotype env)"                       # who you are: prints two exports
  openstack image create --file disk.raw --disk-format raw --container-format bare first
  openstack image save --file copy.raw first

`openstack` comes with: pip install python-openstackclient
`calotype COMMAND --help` explains each command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 refused with a sentence on stderr, 2 wrong arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        options.helps.print_help()
        return 2
    try:
        return int(options.run(options) or 0)
    except errors.CalotypeError as exc:
        # What the database says: it is missing, read-only, full, or not there.
        print(f"calotype: {errors.reason(exc) if isinstance(exc, errors.Busy) else exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from calotype.cli import config, db, env, repair, serve, store, user, worker

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config-file", metavar="F", action="append", default=[], help="ini file, as glance-api.conf; may be repeated"
    )
    common.add_argument(
        "--config-dir", metavar="D", action="append", default=[], help="directory of *.conf files; may be repeated"
    )
    common.add_argument(
        "--state-dir", metavar="DIR", help="directory for database, images, users where nothing else is configured"
    )
    parser = argparse.ArgumentParser(
        prog="calotype",
        description="Calotype, an OpenStack Image service: stores golden images and hands them out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"calotype {__version__}")
    parser.set_defaults(helps=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (serve, env, user, db, store, repair, config, worker):
        module.register(commands, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
