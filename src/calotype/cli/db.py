"""`calotype db sync|check|purge`: the schema, and rows that nobody needs any more."""

import argparse
from datetime import timedelta

from calotype import app, config
from calotype.cli.common import Commands, group, load
from calotype.db import images, schema
from calotype.db.engine import now


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    verbs = group(commands, "db", "create, upgrade, check and purge the database")
    sync = verbs.add_parser(
        "sync", parents=[common], help="create the tables, or bring them to this release's revision; repeatable"
    )
    sync.set_defaults(run=run_sync)
    check = verbs.add_parser(
        "check", parents=[common], help="is the schema this release's? exit code 0 yes, 3 no: run `calotype db sync`"
    )
    check.set_defaults(run=run_check)
    purge = verbs.add_parser(
        "purge",
        parents=[common],
        help="remove the rows of images deleted long ago; their ids stay refused for ever",
    )
    purge.add_argument("--age_in_days", "--age-in-days", type=int, default=30, metavar="N", help="default 30")
    purge.add_argument(
        "--max_rows",
        "--max-rows",
        type=int,
        default=100,
        metavar="N",
        help="at most so many a table, -1 all; default 100",
    )
    purge.set_defaults(run=run_purge)


def run_sync(options: argparse.Namespace) -> int:
    conf = load(options)
    config.state_path(conf, "").mkdir(mode=0o700, parents=True, exist_ok=True)
    found = schema.sync(app.database(conf, patient=True))
    print(
        f"The schema is at {schema.HEAD}" + (" already." if found == schema.HEAD else f"; it was {found or 'empty'}.")
    )
    return 0


def run_check(options: argparse.Namespace) -> int:
    found = schema.current(app.database(load(options)))
    if found == schema.HEAD:
        print(f"The schema is at {found}, as it should be.")
        return 0
    print(f"The schema is at {found or 'nothing'}, this release wants {schema.HEAD}. Run: calotype db sync")
    return 3


def run_purge(options: argparse.Namespace) -> int:
    with app.database(load(options), patient=True).begin() as tx:
        gone = images.purge(tx, now() - timedelta(days=max(options.age_in_days, 0)), options.max_rows)
    print(f"{gone} deleted images purged; their ids stay refused.")
    return 0
