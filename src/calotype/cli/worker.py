"""`calotype worker`: jobs and notifications of services that run under another server than ours."""

import argparse
import signal
import threading

from oslo_log import log

from calotype import app
from calotype.cli.common import Commands, load


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "worker",
        parents=[common],
        help="work off jobs beside a service under uWSGI or mod_wsgi; `calotype serve` needs none",
        description="Clean up after uploads that died, finish deletes, hash data whose location was added and send "
        "notifications, for a service that runs as calotype.wsgi:application under another server. Ends at SIGTERM.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    log.setup(conf, "calotype")
    built = app.build(conf)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: built.reload())
    built.start()
    stop.wait()
    built.stop()
    return 0
