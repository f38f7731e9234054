"""Shared by commands: load the configuration, find the state directory, set up the log, ask for confirmation."""

import argparse
import contextlib
import getpass
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from oslo_config import cfg
from oslo_log import log

from calotype import app, config, config_check, errors
from calotype.durable import make_directory, open_private

_SQLITE_MAGIC = b"SQLite format 3\0"
#: The owner of files whose real owner is unknown, as on NFS and in containers.
_NOBODY = 65534


def load(options: argparse.Namespace) -> cfg.ConfigOpts:
    """Load the configuration that the arguments name. Raises `ConfigError`, also if the state directory is a file."""
    _check_files(options.config_file or ([] if options.config_dir else config.usual_files()), options.config_dir)
    conf = config.load(options.config_file, options.config_dir, state_dir=options.state_dir)
    path = Path(conf.state_dir)
    try:
        base = next(one for one in (path, *path.parents) if one.exists() or one.is_symlink())
        words = "" if base.is_dir() else f"{base} is not a directory"
    except OSError as exc:  # no right to look, or a name that is too long
        words = exc.strerror or str(exc)
    if words:
        raise errors.ConfigError(
            f"The state directory {path} cannot be used: {words}. Name another one by --state-dir."
        )
    return conf


def _check_files(files: Sequence[str], directories: Sequence[str]) -> None:
    """Raise `ConfigError` for a file or directory that is missing or cannot be read, or for a file that is no text."""
    for name in directories:
        try:
            os.listdir(name)
        except OSError as exc:
            raise errors.ConfigError(f"The configuration directory {name} cannot be read: {exc.strerror}.") from exc
    for path in config_check.files(files, directories):
        config_check.read_text(path)


def require_database(conf: cfg.ConfigOpts) -> None:
    """Raise `NotFound` or `ConfigError` if the database should be a SQLite file, but is none that can be used.

    SQLite would create a missing file. So a command with a wrong path would see an empty database and leave it behind.
    """
    path = app.database_file(conf)
    if path is None:
        return
    try:
        with path.open("rb") as file:
            begins = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError as exc:
        raise errors.NotFound(
            f"There is no database {path}: name the state directory of the service by --state-dir, or its "
            "configuration by --config-file; `calotype serve` and `calotype db sync` make a new one."
        ) from exc
    except NotADirectoryError as exc:
        raise errors.ConfigError(f"There is no database {path}: {path.parent} is not a directory.") from exc
    except IsADirectoryError as exc:
        raise errors.ConfigError(f"The database {path} is a directory; it must be a file.") from exc
    except PermissionError as exc:
        raise errors.ConfigError(f"The database {path} cannot be read: {_act_as(path)}.") from exc
    if begins and begins != _SQLITE_MAGIC:
        raise errors.ConfigError(f"{path} is not a database of SQLite; restore it from a backup, or move it away.")
    if not all(os.access(one, os.W_OK, effective_ids=True) for one in (path, path.parent)):
        raise errors.ConfigError(f"The database {path} cannot be written: {_act_as(path)}.")


def make_state(conf: cfg.ConfigOpts) -> None:
    """Create the state directory if it is missing. Raises `ConfigError`."""
    state = config.state_path(conf, "")
    try:
        make_directory(state)
    except OSError as exc:
        raise errors.ConfigError(
            f"The state directory {state} cannot be made: {exc.strerror}. Name another one by --state-dir."
        ) from exc


def make_database(conf: cfg.ConfigOpts) -> None:
    """Create an empty file for a SQLite database if it is missing, and its state directory. Raises `ConfigError`.

    SQLite would create the file as well, but with the permissions of the umask, and owned by root.
    """
    state, path = config.state_path(conf, ""), app.database_file(conf)
    if path is None:
        return
    if path.parent not in (state, *state.parents) and not path.parent.is_dir():
        raise errors.ConfigError(f"The database {path} cannot be made: {path.parent} is not a directory; make it.")
    if not path.exists():
        if path.parent in (state, *state.parents):
            make_state(conf)
        try:
            os.close(open_private(path, os.O_RDWR))
        except OSError as exc:
            raise errors.ConfigError(
                f"The database {path} cannot be made: {exc.strerror}; {_act_as(path.parent)}."
            ) from exc
    require_database(conf)


def require_owner(directory: Path) -> None:
    """Raise `ConfigError` if root runs the service in another user's directory: it would create files of root there.

    Short commands need no such check: they give the files that they create to the directory's owner.
    """
    owner = directory.stat().st_uid if directory.exists() else 0
    if os.geteuid() == 0 and owner not in (0, _NOBODY):
        user = _user_name(owner)
        raise errors.ConfigError(
            f"{directory} belongs to {user}, who could not read what root makes in it: "
            f"run this as {user} (runuser -u {user} -- calotype …)."
        )


def set_up_log(conf: cfg.ConfigOpts, *, to_stderr: bool = False) -> None:
    """Set up the log by the configuration, or to standard error only, for commands that print findings.

    These do not open the service's log file: if root created it, the service could not write to it. Raises
    `ConfigError`.
    """
    if to_stderr:
        for name, value in {"log_config_append": None, "log_file": None, "log_dir": None, "use_stderr": True}.items():
            conf.set_override(name, value)
    try:
        log.setup(conf, "calotype")
    except log.LogConfigError as exc:
        raise errors.ConfigError(f"[DEFAULT] log_config_append: {exc}") from exc
    except OSError as exc:
        raise errors.ConfigError(f"The log file {exc.filename} cannot be written: {exc.strerror}.") from exc
    except Exception as exc:  # oslo.log and logging have errors of many kinds for what they cannot do
        raise errors.ConfigError(f"The log cannot be set up by the options in [DEFAULT]: {exc}") from exc


def users_file(conf: cfg.ConfigOpts) -> Path:
    """The path of the users file. Raises `ConfigError` if Keystone has the users."""
    if "keystone" in config.flavor(conf):
        raise errors.ConfigError(
            "The users of this service are Keystone's ([paste_deploy] flavor): manage them by `openstack user …`."
        )
    return app.users_file(conf)


def password(*, twice: bool) -> str:
    """The password from $CALOTYPE_PASSWORD, else from the terminal, else from the first line of standard input."""
    if (given := os.environ.get("CALOTYPE_PASSWORD")) is not None:
        return given
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    typed = getpass.getpass("Password: ")
    if twice and typed != getpass.getpass("Again: "):
        raise errors.Invalid("The two passwords differ.")
    return typed


def agreed(question: str, *, yes: bool) -> bool:
    """Ask the user, and return whether they agree. Raises `Invalid` without a terminal and without --yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise errors.Invalid(f"{question} Nobody can be asked here: give --yes to agree. Nothing was changed.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _act_as(path: Path) -> str:
    """A sentence that says as which user to run the command, or what else to do, if permissions are missing."""
    with contextlib.suppress(OSError):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return "its file system is read-only"
    try:
        user = _user_name(path.stat().st_uid)
    except OSError:
        return f"give yourself the rights to {path.parent}, or run this as its owner"
    return f"run this as {user}, who owns it" if path.stat().st_uid != os.geteuid() else "chmod u+rw"


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
