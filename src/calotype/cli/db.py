"""`calotype db sync|check|purge|drop-events`: the schema, and rows that nobody needs. More verbs: `metadefs.py`."""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta

from calotype import app, errors
from calotype.cli.common import agreed, load, make_database, require_database
from calotype.cli.main import FAILED
from calotype.db import images, outbox, schema
from calotype.db.engine import now
from calotype.images import places

#: How many rows of each table one transaction of a purge removes.
_BATCH = 1000


def run_sync(options: argparse.Namespace) -> int:
    conf = load(options)
    make_database(conf)
    with closing(app.database(conf, patient=True)) as db:
        found = schema.sync(db)
    print(
        f"The schema is at {schema.HEAD}" + (" already." if found == schema.HEAD else f"; it was {found or 'empty'}.")
    )
    try:
        svc = app.App(conf).service
        with closing(svc.db):
            verdicts = places.recognise(svc, adopt=True)
    except (
        errors.ConfigError,
        ImportError,
    ) as exc:  # a host that only runs `db sync` may lack libraries of the service
        print(f"calotype: the stores were not looked at: {exc}", file=sys.stderr)
        return 0
    for verdict in verdicts:
        if verdict.words:
            says = "takes no writes: " if not verdict.ready else ""
            print(f"Store {verdict.store}: {says}{verdict.words}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    conf = load(options)
    path = app.database_file(conf)
    if path is not None and not path.exists():
        report = schema.Report(None, schema.HEAD, (), ())
    else:
        require_database(conf)
        with closing(app.database(conf)) as db:
            path, report = None, schema.inspect(db)
    if options.json:
        print(json.dumps(asdict(report) | {"ready": report.ready}))
    elif path is not None:
        print(f"There is no database {path}. Run: calotype db sync")
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
    require_database(conf)
    age = conf.database.purge_age_in_days if options.age_in_days is None else options.age_in_days
    before, remaining = now() - timedelta(days=age), options.max_rows
    images_gone = 0
    with closing(app.database(conf, patient=True)) as db:
        schema.require_current(db)
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


def run_drop_events(options: argparse.Namespace) -> int:
    conf = load(options)
    require_database(conf)
    db = app.database(conf, patient=True)
    schema.require_current(db)
    count = db.snapshot(outbox.count)
    if count and not agreed(f"Remove {count} events that nobody was told of?", yes=options.yes):
        print("Nothing was changed.", file=sys.stderr)
        return FAILED
    print(f"{db.write(outbox.clear) if count else 0} events are removed.")
    return 0
