"""`calotype config show|check`: what is in force, and whether it can be served."""

import argparse
import sys

from oslo_config import cfg

from calotype import app, config, insides
from calotype.cli import listening
from calotype.cli.common import load
from calotype.db import schema
from calotype.images import places


def run_show(options: argparse.Namespace) -> int:
    conf = load(options)
    last = None
    for section, opt, value in config.values(conf):
        if section != last:
            print(f"{chr(10) if last else ''}[{section}]")
        last = section
        print(f"{opt.dest} = {_text(opt, value)}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    conf = load(options)
    listening.check_listening(conf)
    insides.check("gunicorn", "Linux")
    built = app.App(conf)
    # The database of the state directory is made and upgraded by `calotype serve` itself.
    own = conf.database.connection is None
    if own and not config.state_path(conf, "calotype.db").exists():
        print("The configuration can be served.")
        return 0
    if own and schema.pending(built.db):
        print("The configuration can be served; calotype serve will upgrade the database.")
        return 0
    schema.require_current(built.db)
    wrong = [
        f"Store {verdict.store} takes no writes: {verdict.words}"
        for verdict in places.recognise(built.service, change=False)
        if not verdict.ready
    ]
    wrong += map(str, places.unserved(built.service))
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    print("The configuration can be served.")
    return 0


def _text(opt: cfg.Opt, value: object) -> str:
    if value is None:
        return "<unset>"
    if opt.secret:
        return "<hidden>"
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
