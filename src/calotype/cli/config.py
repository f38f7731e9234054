"""`calotype config show|check`: what is in force, and whether it can be served."""

import argparse
import sys

from oslo_config import cfg

from calotype import app, config, insides
from calotype.cli import serve
from calotype.cli.common import Commands, group, load
from calotype.db import schema
from calotype.images import places


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    verbs = group(commands, "config", "show the options in force, and check that they can be served")
    show = verbs.add_parser("show", parents=[common], help="print every option with its value; secrets are hidden")
    show.set_defaults(run=run_show)
    check = verbs.add_parser(
        "check", parents=[common], help="try everything but listening; exit code 0 when it can be served, else 1"
    )
    check.set_defaults(run=run_check)


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
    serve.check_listening(conf)
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
