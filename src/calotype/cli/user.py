"""`calotype user add|list|remove`: who may use a service without Keystone."""

import argparse
import getpass
import os
import secrets
import sys

from calotype import app, errors
from calotype.auth import basic
from calotype.cli.common import Commands, group, load


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    verbs = group(commands, "user", "add, list and remove the users of a service without Keystone")
    add = verbs.add_parser(
        "add",
        parents=[common],
        help="add a user, or replace one",
        description="Add a user, or replace one. The password comes from $CALOTYPE_PASSWORD, from the terminal, or "
        "from standard input; with --generate one is made up and printed. A running service knows at once.",
    )
    add.add_argument("name")
    add.add_argument("--project", required=True, help="project that the user works in; images belong to projects")
    add.add_argument(
        "--role",
        action="append",
        choices=[*basic.ROLES, "service"],
        help="may be repeated; admin includes manager includes member includes reader (default: member)",
    )
    add.add_argument("--generate", action="store_true", help="make up a password and print it")
    add.set_defaults(run=run_add)
    lists = verbs.add_parser("list", parents=[common], help="list users, without their passwords")
    lists.set_defaults(run=run_list)
    remove = verbs.add_parser("remove", parents=[common], help="remove a user; their images stay")
    remove.add_argument("name")
    remove.set_defaults(run=run_remove)


def run_add(options: argparse.Namespace) -> int:
    path = app.users_file(load(options))
    password = secrets.token_urlsafe(18) if options.generate else _password()
    user = basic.make_user(options.name, options.project, tuple(options.role or ["member"]), password)
    with basic.changing_users(path) as users:
        users[user.name] = user
    if options.generate:
        print(password)
    return 0


def run_list(options: argparse.Namespace) -> int:
    users = basic.read_users(app.users_file(load(options)))
    width = max([4, *(len(name) for name in users)])
    print(f"{'USER':{width}}  {'ROLES':24}  PROJECT")
    for user in sorted(users.values(), key=lambda user: user.name):
        print(f"{user.name:{width}}  {','.join(user.roles):24}  {user.project}")
    return 0


def run_remove(options: argparse.Namespace) -> int:
    with basic.changing_users(app.users_file(load(options))) as users:
        if users.pop(options.name, None) is None:
            raise errors.NotFound(f"There is no user {options.name!r}.")
    return 0


def _password() -> str:
    if (given := os.environ.get("CALOTYPE_PASSWORD")) is not None:
        return given
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Again: "):
        raise errors.Invalid("The two passwords differ.")
    return password
