"""`calotype user add|list|remove`: the users of a service without Keystone."""

import argparse
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from calotype import errors
from calotype.auth import basic
from calotype.cli import clouds, env
from calotype.cli.common import agreed, load, password, users_file


def run_add(options: argparse.Namespace) -> int:
    conf = load(options)
    path = users_file(conf)
    _require_directory(path)
    endpoint = env.endpoint(conf)
    before = basic.read_users(path)
    roles = tuple(dict.fromkeys(options.role or ["member"]))
    _agree(path, before, options.name, roles, yes=options.yes)
    if (file := options.clouds_file) is not None:
        _require_replaceable(file, yes=options.yes)
    given = secrets.token_urlsafe(18) if options.generate else password(twice=True)
    user = basic.make_user(options.name, options.project, roles, given)
    with basic.changing_users(path) as users:
        if users.get(user.name) != before.get(user.name):
            raise errors.Conflict(f"Somebody else changed user {user.name} in {path} at the same time.")
        users[user.name] = user
        remaining = dict(users)
        if file is not None:  # before the users are written: without it nobody would know the password
            clouds.write(file.absolute(), endpoint, user.name, given)
    done = "Replaced" if user.name in before else "Added"
    said = [f"{done} user {user.name} (project {user.project}, role {', '.join(roles)}) in {path}"]
    if not _admins(remaining):
        said.append("There is no administrator yet: add one with --role admin.")
    if file is not None:
        said.append(f"{file} has the password and everything else. What the person does with it:")
        said.append(f"  export OS_CLIENT_CONFIG_FILE={shlex.quote(file.name)} OS_CLOUD={clouds.CLOUD}")
    else:
        said.append("What the person needs, in a shell:")
        # Only a generated password is shown, never a typed one.
        said.append(f"  {env.personal_exports(endpoint, user.name, given if options.generate else '...')}")
    said.append("  openstack image list")
    print("\n".join(said), file=sys.stderr)
    if options.generate and file is None:
        print(given)  # alone on standard output, for scripts
    return 0


def run_list(options: argparse.Namespace) -> int:
    path = users_file(load(options))
    _require_file(path)
    users = basic.read_users(path)
    width = max([4, *(len(name) for name in users)])
    print(f"{'USER':{width}}  {'ROLES':24}  PROJECT")
    for user in sorted(users.values(), key=lambda user: user.name):
        print(f"{user.name:{width}}  {','.join(user.roles):24}  {user.project}")
    return 0


def run_remove(options: argparse.Namespace) -> int:
    path = users_file(load(options))
    _require_file(path)
    before = basic.read_users(path)
    if options.name not in before:
        raise errors.NotFound(f"There is no user {options.name!r} in {path}.")
    _agree(path, before, options.name, (), yes=options.yes)
    with basic.changing_users(path) as users:
        users.pop(options.name, None)
    print(f"Removed user {options.name} from {path}; the images of project {before[options.name].project} stay.")
    return 0


def _require_replaceable(file: Path, *, yes: bool) -> None:
    """Raise `Invalid` for an existing file, unless it has our cloud alone and was agreed to be replaced."""
    if not os.path.lexists(file):
        return
    others = clouds.others(file)
    if others is None:
        raise errors.Invalid(f"{file} exists and is no clouds.yaml of ours: name another file. Nothing was changed.")
    if others:
        raise errors.Invalid(
            f"{file} has other clouds in it ({', '.join(others)}): name another file. Nothing was changed."
        )
    if not yes:
        raise errors.Invalid(f"{file} exists: give --yes to replace it. Nothing was changed.")


def _require_directory(path: Path) -> None:
    """Raise unless the directory exists: the users file may be new, but a missing directory means a wrong path."""
    if not path.parent.is_dir():
        raise errors.NotFound(
            f"There is no directory {path.parent} for the users file. Name the state directory of the service by "
            "--state-dir, or its configuration by --config-file; `calotype serve` makes a new one."
        )


def _require_file(path: Path) -> None:
    if not path.exists():
        raise errors.NotFound(
            f"There is no users file {path}. Name the state directory of the service by --state-dir, or its "
            "configuration by --config-file; `calotype serve` and `calotype user add` make a new one."
        )


def _agree(path: Path, users: Mapping[str, basic.User], name: str, roles: tuple[str, ...], *, yes: bool) -> None:
    """Ask before a user is replaced or the last administrator is removed. Raises `Invalid` unless agreed."""
    questions = []
    if (old := users.get(name)) is not None and roles:
        questions.append(f"{path} has a user {name} (project {old.project}, role {', '.join(old.roles)}): replace it?")
    if _admins(users) == [name] and "admin" not in roles:
        questions.append(f"{name} is the last administrator in {path}: go on without any?")
    for question in questions:
        if not agreed(question, yes=yes):
            raise errors.Invalid("Nothing was changed.")


def _admins(users: Mapping[str, basic.User]) -> list[str]:
    return [user.name for user in users.values() if "admin" in user.roles]
