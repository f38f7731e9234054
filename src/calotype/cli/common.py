"""What several commands do: find the configuration and the state that are meant, and ask before something goes."""

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

from calotype import app, config, errors
from calotype.durable import make_directory, open_private

_SQLITE_MAGIC = b"SQLite format 3\0"
#: The owner of files whose real owner is not known here, as on NFS and in containers.
_NOBODY = 65534


def load(options: argparse.Namespace) -> cfg.ConfigOpts:
    """The configuration that the arguments name. Raises `ConfigError`, also for a state directory that is none."""
    _check_files(options.config_file, options.config_dir)
    conf = config.load(options.config_file, options.config_dir, state_dir=options.state_dir)
    path = Path(conf.state_dir)
    there = next(one for one in (path, *path.parents) if one.exists() or one.is_symlink())
    if not there.is_dir():
        raise errors.ConfigError(
            f"The state directory {path} cannot be used: {there} is not a directory. Name another one by --state-dir."
        )
    return conf


def _check_files(files: Sequence[str], directories: Sequence[str]) -> None:
    """Raise `ConfigError` for a configuration that is not there or no text, which the library does not name."""
    for name in files:
        try:
            Path(name).read_text(encoding="utf-8")
        except OSError as exc:
            raise errors.ConfigError(f"The configuration file {name} cannot be read: {exc.strerror}.") from exc
        except UnicodeDecodeError as exc:
            raise errors.ConfigError(f"The configuration file {name} is no text: {exc.reason} in it.") from exc
    for name in directories:
        try:
            os.listdir(name)
        except OSError as exc:
            raise errors.ConfigError(f"The configuration directory {name} cannot be read: {exc.strerror}.") from exc


def require_database(conf: cfg.ConfigOpts) -> None:
    """Raise `NotFound` or `ConfigError` unless the database, if it is SQLite's, is a file that can be used.

    SQLite makes a file that is not there: a command that was told the wrong place would find nothing in it, and
    leave it behind.
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


def make_database(conf: cfg.ConfigOpts) -> None:
    """Make the state directory, and an empty file for a database of SQLite's, where they are missing.

    SQLite would make the file as well, but as the umask says, and as root's. Raises `ConfigError`.
    """
    state, path = config.state_path(conf, ""), app.database_file(conf)
    if path is not None and path.parent not in (state, *state.parents) and not path.parent.is_dir():
        raise errors.ConfigError(f"The database {path} cannot be made: {path.parent} is not a directory; make it.")
    try:
        make_directory(state)
    except OSError as exc:
        raise errors.ConfigError(
            f"The state directory {state} cannot be made: {exc.strerror}. Name another one by --state-dir."
        ) from exc
    if path is None:
        return
    if not path.exists():
        try:
            os.close(open_private(path, os.O_RDWR))
        except OSError as exc:
            raise errors.ConfigError(
                f"The database {path} cannot be made: {exc.strerror}; {_act_as(path.parent)}."
            ) from exc
    require_database(conf)


def require_owner(directory: Path) -> None:
    """Raise `ConfigError` for root in another user's directory: what a service of root's makes there is root's alone.

    Commands that end by themselves need not ask: they give what they make to the directory's owner.
    """
    owner = directory.stat().st_uid if directory.exists() else 0
    if os.geteuid() == 0 and owner not in (0, _NOBODY):
        user = _user_name(owner)
        raise errors.ConfigError(
            f"{directory} belongs to {user}, who could not read what root makes in it: "
            f"run this as {user} (runuser -u {user} -- calotype …)."
        )


def set_up_log(conf: cfg.ConfigOpts, *, to_stderr: bool = False) -> None:
    """Begin to log as the configuration says, or to standard error alone: for commands whose output is for findings.

    Those leave the service's log file alone, which root would make root's. Raises `ConfigError`.
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


def users_file(conf: cfg.ConfigOpts) -> Path:
    """The file of the users. Raises `ConfigError` where they are Keystone's."""
    if "keystone" in config.flavor(conf):
        raise errors.ConfigError(
            "The users of this service are Keystone's ([paste_deploy] flavor): manage them by `openstack user …`."
        )
    return app.users_file(conf)


def password(*, twice: bool) -> str:
    """What $CALOTYPE_PASSWORD says, or is typed at the terminal, or stands in the first line of standard input."""
    if (given := os.environ.get("CALOTYPE_PASSWORD")) is not None:
        return given
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    typed = getpass.getpass("Password: ")
    if twice and typed != getpass.getpass("Again: "):
        raise errors.Invalid("The two passwords differ.")
    return typed


def agreed(question: str, *, yes: bool) -> bool:
    """Whether the person agrees. Raises `Invalid` where there is nobody to ask, and no --yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise errors.Invalid(f"{question} Nobody can be asked here: give --yes to agree. Nothing was changed.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _act_as(path: Path) -> str:
    """What to do about rights that are missing."""
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
