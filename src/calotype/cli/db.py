"""`calotype db sync|check|purge`: the schema, and rows that nobody needs any more. More verbs: `metadefs.py`."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

from calotype import app, config, errors
from calotype.cli import metadefs
from calotype.cli.common import Commands, group, load
from calotype.db import images, schema
from calotype.db.engine import now
from calotype.durable import make_directory
from calotype.images import places

#: Rows of each table that one transaction of a purge removes.
_BATCH = 1000


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    verbs = group(commands, "db", "create, upgrade, check and purge the database, and load metadata definitions")
    sync = verbs.add_parser(
        "sync", parents=[common], help="create the tables, or bring them to this release's revision; repeatable"
    )
    sync.set_defaults(run=run_sync)
    check = verbs.add_parser(
        "check", parents=[common], help="is the schema this release's? exit code 0 yes, 3 no: run `calotype db sync`"
    )
    check.add_argument("--json", action="store_true", help="say it for programs")
    check.set_defaults(run=run_check)
    purge = verbs.add_parser(
        "purge",
        parents=[common],
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
        type=_count(-1),
        default=100,
        metavar="N",
        help="at most so many a table, -1 all; default 100",
    )
    purge.set_defaults(run=run_purge)
    metadefs.register(verbs, common)


def run_sync(options: argparse.Namespace) -> int:
    conf = load(options)
    make_directory(config.state_path(conf, ""))
    found = schema.sync(app.database(conf, patient=True))
    print(
        f"The schema is at {schema.HEAD}" + (" already." if found == schema.HEAD else f"; it was {found or 'empty'}.")
    )
    try:
        verdicts = places.recognise(app.App(conf).service, adopt=True)
    except (errors.ConfigError, ImportError) as exc:  # a host for the database alone may lack what serving takes
        print(f"calotype: the stores were not looked at: {exc}", file=sys.stderr)
        return 0
    for verdict in verdicts:
        if verdict.words:
            says = "takes no writes: " if not verdict.ready else ""
            print(f"Store {verdict.store}: {says}{verdict.words}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    report = schema.inspect(app.database(load(options)))
    if options.json:
        print(json.dumps(asdict(report) | {"ready": report.ready}))
    elif report.ready:
        print(f"The schema is at {report.revision}, as it should be.")
    elif report.missing:
        print(f"Indexes are missing: {', '.join(report.missing)}. Run: calotype db sync")
    else:
        found = report.revision or "nothing"
        print(f"The schema is at {found}, this release wants {report.wanted}. Run: calotype db sync")
    return 0 if report.ready else 3


def run_purge(options: argparse.Namespace) -> int:
    conf = load(options)
    db = app.database(conf, patient=True)
    age = conf.database.purge_age_in_days if options.age_in_days is None else options.age_in_days
    before, remaining = now() - timedelta(days=age), options.max_rows
    images_gone = 0
    while remaining:
        some = _BATCH if remaining < 0 else min(_BATCH, remaining)
        with db.write_once() as tx:
            gone, rows = images.purge(tx, before, some)
        images_gone += gone
        remaining -= some if remaining > 0 else 0
        if not rows:
            break
    print(f"{images_gone} deleted images purged; their ids stay refused.")
    return 0


def _count(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least or (int(text) == 0 and least < 0):
            raise argparse.ArgumentTypeError(f"{text} is not {'-1 or a number above 0' if least < 0 else '0 or above'}")
        return int(text)

    return number
