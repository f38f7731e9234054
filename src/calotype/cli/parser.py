"""The command line: every command with its arguments and help texts. It imports nothing that takes long to import.

`run` of a command names the module and the function that carry it out. Help, completion (`completion.py`) and the
manual page are made from this parser alone.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from calotype import __version__

EXIT_CODES: Final = """\
exit codes:
  0  done
  1  failed, with one line on standard error that says why
  2  the arguments or the configuration are wrong, with one line that says what to change
"""

_EPILOG: Final = f"""\
The first image in three commands, after `calotype serve` in another terminal:

  eval "$(calotype env)"                       # who you are: prints exports
  openstack image create --file disk.raw --disk-format raw --container-format bare first
  openstack image save --file copy.raw first

`openstack` comes with: pip install python-openstackclient
`calotype COMMAND --help` explains each command.

{EXIT_CODES}"""

#: The same as in `auth/basic.py`, whose import would take longer than everything here.
ROLES: Final = ("admin", "manager", "member", "reader", "service")
SHELLS: Final = ("bash", "zsh", "fish")
_JOB_ID: Final = "the id of a job, as the list shows it"

_VERIFY_CODES: Final = (
    "Exit codes: 0 all is sound; 1 something is wrong; 2 wrong arguments or configuration; 3 nothing wrong was found, "
    "but not everything could be looked at."
)


class Parser(argparse.ArgumentParser):
    """argparse's parser that also keeps a list of what was added to it. argparse has no public way to get it."""

    def __init__(self, **settings: Any) -> None:
        self.arguments: list[argparse.Action] = []
        self.commands: dict[str, tuple[str, Parser]] = {}  #: help and parser by name
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.arguments.append(super().add_argument(*names, **settings))
        return self.arguments[-1]

    def add_exclusive(self) -> Callable[..., None]:
        """`add_argument` for arguments of which only one may be given."""
        group = self.add_mutually_exclusive_group()

        def add(*names: str, **settings: Any) -> None:
            self.arguments.append(group.add_argument(*names, **settings))

        return add


class Commands:
    """The commands of a parser."""

    def __init__(self, owner: Parser) -> None:
        self._owner = owner
        self._subparsers = owner.add_subparsers(title="commands", metavar="COMMAND")

    def add_parser(self, name: str, **words: Any) -> Parser:
        made = self._subparsers.add_parser(name, **words)
        self._owner.commands[name] = (words["help"], made)
        return made


def parser() -> Parser:
    """The parser of `calotype`. A parsed command has `run`: module and function, as `main.py` calls it."""
    made = Parser(
        prog="calotype",
        description="Calotype, an OpenStack Image service: stores golden images and hands them out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"calotype {__version__}")
    made.set_defaults(helps=made)
    commands = Commands(made)
    for add in (_serve, _status, _job, _env, _user, _db, _store, _repair, _config, _worker, _completion):
        add(commands)
    return made


# --- the service -----------------------------------------------------------------------------------------


def _serve(commands: Commands) -> None:
    command = _command(
        commands,
        "serve",
        "serve:run",
        help="start the service; the first start makes database, store, admin and clouds.yaml",
        description="Start the service and stay in the foreground. Without a configuration everything that is "
        "missing (database, store, first admin, clouds.yaml) is made in the state directory; with Keystone no admin.",
    )
    command.add_argument("--bind", metavar="HOST:PORT", help="default 127.0.0.1:9292")
    command.add_argument("--workers", metavar="N", type=_count(1), help="worker processes, default 1")
    command.add_argument(
        "--allow-plain-http", action="store_true", help="listen beyond loopback although there is no TLS"
    )


def _status(commands: Commands) -> None:
    command = _command(
        commands,
        "status",
        "status:run",
        help="show what the service is doing: uploads, jobs, stores and their room; changes nothing",
        description="Show the uploads that run, with bytes so far and rate, the jobs, and the stores with their room. "
        "Bytes and rate are known of processes with the same state directory. Changes nothing.",
    )
    command.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _job(commands: Commands) -> None:
    verbs = _group(commands, "job", "show the jobs that outlive a process, and retry, cancel or drop one")
    lists = _command(
        verbs,
        "list",
        "job:run_list",
        help="list the jobs, oldest first: kind, state, progress, error; changes nothing",
    )
    lists.add_argument("--image", action="append", default=[], metavar="ID", help="of this image only; may be repeated")
    lists.add_argument("--kind", action="append", default=[], metavar="KIND", help="of this kind only; may be repeated")
    lists.add_argument("--json", action="store_true", help="a JSON object a line, for programs")
    show = _command(
        verbs,
        "show",
        "job:run_show",
        help="show all about one job: its step, progress, rate, stores and errors; changes nothing",
    )
    show.add_argument("id", metavar="ID", help=_JOB_ID)
    show.add_argument("--json", action="store_true", help="one JSON object, for programs")
    retry = _command(verbs, "retry", "job:run_retry", help="try jobs now that wait after a failure")
    retry.add_argument("id", metavar="ID", nargs="+", help=_JOB_ID)
    cancel = _command(
        verbs,
        "cancel",
        "job:run_cancel",
        help="stop jobs, and have undone what they did",
        description="Ask whoever runs these jobs to stop and to undo what they did, and wait a few seconds for that. "
        "Jobs that cannot be undone, such as deletes, are refused with the reason.",
        epilog="Exit codes: 0 each has ended or is being undone; 1 one is refused; 2 wrong arguments or "
        "configuration; 3 one was asked and has not stopped yet.",
    )
    cancel.add_argument("id", metavar="ID", nargs="+", help=_JOB_ID)
    cancel.add_argument(
        "--reason",
        metavar="WORDS",
        type=_filled,
        default="An operator has cancelled the job.",
        help="what the task of the user says, instead of: An operator has cancelled the job.",
    )
    drop = _command(
        verbs,
        "drop",
        "job:run_drop",
        help="forget a job and leave what it made, if nothing else helps",
        description="Remove a job that can neither be finished nor undone, as when its store is gone for ever. Says "
        "what is left behind, and asks. Its task fails.",
    )
    drop.add_argument("id", metavar="ID", help=_JOB_ID)
    _yes(drop, "do not ask")


def _worker(commands: Commands) -> None:
    _command(
        commands,
        "worker",
        "worker:run",
        help="work off jobs beside a service under uWSGI or mod_wsgi; `calotype serve` needs none",
        description="Clean up after uploads that died, finish deletes, hash data whose location was added and send "
        "notifications, for a service that runs as calotype.wsgi:application under another server. Ends at SIGTERM.",
    )


# --- users -----------------------------------------------------------------------------------------------


def _env(commands: Commands) -> None:
    command = _command(
        commands,
        "env",
        "env:run",
        help="print the exports that let `openstack` use this service",
        description='Print shell exports for the openstack client: eval "$(calotype env)". Without --user they are '
        "those of the first administrator, whose password is in clouds.yaml. With --user the password comes from "
        "$CALOTYPE_PASSWORD, from the terminal, or from standard input, and is checked before anything is printed.",
    )
    command.add_argument("--user", metavar="NAME", help="be this user of the users file")


def _user(commands: Commands) -> None:
    verbs = _group(commands, "user", "add, list and remove the users of a service without Keystone")
    add = _command(
        verbs,
        "add",
        "user:run_add",
        help="add a user, or replace one; prints what the person needs",
        description="Add a user, or replace one. The password comes from $CALOTYPE_PASSWORD, from the terminal, or "
        "from standard input; with --generate one is made up. Prints the exports that the person needs, or writes "
        "them a clouds.yaml. A running service knows at once.",
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument("--project", required=True, help="project that the user works in; images belong to projects")
    add.add_argument(
        "--role",
        action="append",
        choices=ROLES,
        help="may be repeated; admin includes manager includes member includes reader (default: member)",
    )
    add.add_argument(
        "--generate", action="store_true", help="make up a password; it is all that is written to standard output"
    )
    add.add_argument(
        "--clouds-file",
        metavar="FILE",
        type=Path,
        help="write a clouds.yaml with the password for the person, readable by its owner alone, and show no password",
    )
    _yes(add, "do not ask before a user or a file is replaced, or the last administrator is made something else")
    _command(verbs, "list", "user:run_list", help="list users, without their passwords; changes nothing")
    remove = _command(verbs, "remove", "user:run_remove", help="remove a user; their images stay")
    remove.add_argument("name", metavar="NAME")
    _yes(remove, "do not ask before the last administrator is removed")


# --- the database ----------------------------------------------------------------------------------------


def _db(commands: Commands) -> None:
    verbs = _group(commands, "db", "create, upgrade, check and purge the database, and load metadata definitions")
    _command(
        verbs,
        "sync",
        "db:run_sync",
        help="create the tables, or bring them to this release's revision; repeatable",
    )
    check = _command(
        verbs,
        "check",
        "db:run_check",
        help="is the schema this release's? exit code 0 yes, 3 no: run `calotype db sync`",
    )
    check.add_argument("--json", action="store_true", help="say it for programs")
    purge = _command(
        verbs,
        "purge",
        "db:run_purge",
        help="remove the rows of images deleted long ago; their ids stay refused for ever",
    )
    purge.add_argument(
        "--age_in_days",
        "--age-in-days",
        type=_count(0),
        metavar="N",
        help="how long ago; default: [database] purge_age_in_days",
    )
    purge.add_argument(
        "--max_rows",
        "--max-rows",
        type=_count_or_all,
        default=100,
        metavar="N",
        help="at most so many a table, -1 all; default 100",
    )
    drop = _command(
        verbs,
        "drop-events",
        "db:run_drop_events",
        help="remove all notifications that wait to be sent, if nobody will ever receive them",
    )
    _yes(drop, "do not ask")
    _metadefs(verbs)


def _metadefs(verbs: Commands) -> None:
    loads = _command(
        verbs,
        "load-metadefs",
        "metadefs:run_load",
        help="load metadata definitions from JSON files; repeatable",
    )
    _path(loads, "file, or directory of *.json files; default: metadata_source_path")
    loads.add_argument("--merge", action="store_true", help="give namespaces that are there what they do not have")
    either = loads.add_exclusive()
    either(
        "--prefer-new",
        "--prefer_new",
        action="store_true",
        help="with --merge: what is there becomes what is in the file",
    )
    either("--overwrite", action="store_true", help="with --merge: so it does, and what is not in the file goes")
    loads.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    unloads = _command(
        verbs,
        "unload-metadefs",
        "metadefs:run_unload",
        help="remove the namespaces of some JSON files, or all metadata definitions",
    )
    _path(unloads, "file, or directory of *.json files, whose namespaces go; without it everything goes")
    exports = _command(
        verbs,
        "export-metadefs",
        "metadefs:run_export",
        help="write all metadata definitions as JSON files that can be loaded",
    )
    _path(exports, "directory, which is made if it is missing; default: metadata_source_path")


# --- stores ----------------------------------------------------------------------------------------------


def _store(commands: Commands) -> None:
    verbs = _group(commands, "store", "check the image data in the stores")
    verify = _command(
        verbs,
        "verify",
        "store:run_verify",
        help="read every copy of every image, and compare size and hash with its record",
        description="Read every copy of every active or deactivated image and compare size and hash with the record. "
        f"Changes nothing; a service may run beside it. {_VERIFY_CODES}",
    )
    _selection(verify)
    verify.add_argument(
        "--share",
        type=share,
        default=(1, 1, 1),
        metavar="K/N|P%",
        help="the K-th of N parts of the images, so that 1/7 to 7/7 are all of them; or the same P %% each time",
    )
    lists = _command(
        verbs,
        "list",
        "store:run_list",
        help="show each store with its place, its room, and whether it takes writes; changes nothing",
    )
    lists.add_argument("--json", action="store_true", help="a JSON object a line, for programs")
    adopt = _command(
        verbs,
        "adopt",
        "store:run_adopt",
        help="take the place of a store into use as it is, whatever is in it",
        description="Write the store's identity into its place, so that the store takes writes. For a directory of a "
        "Glance, or of a database that was lost, and for one that was restored without its identity. Do this only to "
        "the right place: one whose file system is not mounted would become a store without its images.",
    )
    adopt.add_argument("name", metavar="STORE", help="the store's name in the configuration")
    relocate = _command(
        verbs,
        "relocate",
        "store:run_relocate",
        help="give the images of a store that was moved or renamed their new locations",
        description="Look for every copy that is on record where the store was before, and write down where it is now. "
        f"What is not there, in its size, is left as it is. {_VERIFY_CODES}",
    )
    relocate.add_argument("name", metavar="STORE", help="the store's name in the configuration")
    relocate.add_argument(
        "--from", dest="origin", metavar="DIR", help="where it was; default: where it is known to have been"
    )
    relocate.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")


def _repair(commands: Commands) -> None:
    command = _command(
        commands,
        "repair",
        "repair:run",
        help="find what does not match between records and stores, and put it aside; deletes nothing",
        description="Find copies that are missing or wrong, and data that no record knows; put wrong and unknown data "
        "into its store's quarantine, take wrong copies off their records where another one is sound, and deactivate "
        f"images without any sound copy. Deletes nothing; a service may run beside it. {_VERIFY_CODES}",
    )
    either = command.add_exclusive()
    either("--dry-run", action="store_true", help="list, and change nothing")
    either("--yes", action="store_true", help="do not ask")
    either("--list-quarantine", action="store_true", help="list what was put aside")
    either("--restore", metavar="STORE/KEY", help="undo one quarantine, as the list names it")
    _selection(command)
    command.add_argument("--deep", action="store_true", help="hash all data; without this only sizes are compared")
    command.add_argument(
        "--older-than",
        type=_minutes,
        default=60,
        metavar="MIN",
        help="data without a record is left alone for so many minutes since it was last touched; default 60",
    )


def _selection(command: Parser) -> None:
    """Add the arguments that select what to check, and how."""
    command.add_argument(
        "--store", action="append", default=[], metavar="NAME", help="this store only; may be repeated"
    )
    command.add_argument("--image", action="append", default=[], metavar="ID", help="this image only; may be repeated")
    command.add_argument("--rate", type=_rate, metavar="N", help="read at most N MiB a second; default: no limit")
    command.add_argument(
        "--json", action="store_true", help="a JSON object a line for programs, the last one a summary"
    )


# --- everything else -------------------------------------------------------------------------------------


def _config(commands: Commands) -> None:
    verbs = _group(commands, "config", "show the options in force, and check that they can be served")
    _command(verbs, "show", "config:run_show", help="print every option with its value; secrets are hidden")
    check = _command(
        verbs,
        "check",
        "config:run_check",
        help="account for every option, and tell all that would stop the start",
        description="Account for every option of the files and of the environment, and tell everything that would stop "
        "the start. Changes and creates nothing.",
        epilog="Exit codes: 0 it can be served; 1 it cannot; 2 wrong arguments; 3 with --strict: it can be served, but "
        "options are unknown or something is doubtful.",
    )
    check.add_argument("--strict", action="store_true", help="exit with 3 for unknown options and doubts")
    check.add_argument("--json", action="store_true", help="print JSON")


def _completion(commands: Commands) -> None:
    command = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description='Print a completion script: eval "$(calotype completion bash)" in ~/.bashrc, '
        "calotype completion zsh > _calotype in a directory of $fpath, or "
        "calotype completion fish > ~/.config/fish/completions/calotype.fish",
    )
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run="completion:run")


# --- what they are made of -------------------------------------------------------------------------------


def _command(commands: Commands, name: str, run: str, **words: str) -> Parser:
    """A command that reads the configuration; `run` is the module here and the function in it."""
    words.setdefault("description", _sentence(words["help"]))
    command = commands.add_parser(name, **words)
    command.add_argument(
        "--config-file",
        metavar="F",
        action="append",
        default=[],
        type=_filled,
        help="ini file, as glance-api.conf; may be repeated",
    )
    command.add_argument(
        "--config-dir",
        metavar="D",
        action="append",
        default=[],
        type=_filled,
        help="directory of *.conf files; may be repeated",
    )
    command.add_argument(
        "--state-dir",
        metavar="DIR",
        type=_filled,
        help="directory for database, images, users where nothing else is configured",
    )
    command.set_defaults(run=run)
    return command


def _group(commands: Commands, name: str, words: str) -> Commands:
    """A command with subcommands. Without one of these it prints its help."""
    command = commands.add_parser(name, help=words, description=_sentence(words))
    command.set_defaults(helps=command)
    return Commands(command)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _yes(command: Parser, words: str) -> None:
    command.add_argument("--yes", action="store_true", help=words)


def _path(command: Parser, words: str) -> None:
    command.add_argument("path", metavar="PATH", nargs="?", type=Path, help=words)
    command.add_argument("--path", dest="path", metavar="PATH", type=Path, default=argparse.SUPPRESS, help="the same")


def _filled(words: str) -> str:
    """The type of paths. It refuses an empty one, as from an unset variable: it would be another directory."""
    if not words.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return words


def _count(least: int) -> Callable[[str], int]:
    def number(words: str) -> int:
        try:
            if int(words) >= least:
                return int(words)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{words!r} is not a whole number of at least {least}")

    return number


def _count_or_all(words: str) -> int:
    return -1 if words == "-1" else _count(1)(words)


def share(words: str) -> tuple[int, int, int]:
    """Parse the first part, the last part and the number of parts."""
    if (found := re.fullmatch(r"(\d+)/(\d+)", words)) and 1 <= int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[1]), int(found[2])
    if (found := re.fullmatch(r"(\d+)%?", words)) and 1 <= int(found[1]) <= 100:
        return 1, int(found[1]), 100
    raise argparse.ArgumentTypeError(f"{words} is neither like 1/7 nor like 10%")


def _rate(words: str) -> float:
    return _number(words, "is not a number above 0", lambda value: value > 0)


def _minutes(words: str) -> float:
    return _number(words, "is not a number of 0 or above", lambda value: value >= 0)


def _number(words: str, wrong: str, accepted: Callable[[float], bool]) -> float:
    try:
        if accepted(float(words)):
            return float(words)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{words!r} {wrong}")
