"""`calotype worker`: runs jobs and sends notifications for services under another WSGI server than ours."""

import argparse
import signal
import threading

from calotype import app, config
from calotype.cli.common import load, require_database, require_owner, set_up_log


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    require_owner(config.state_path(conf, ""))
    require_database(conf)
    set_up_log(conf)
    built = app.build(conf)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: built.reload())
    built.start()
    stop.wait()
    built.stop()
    return 0
