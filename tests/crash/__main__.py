"""The long form: `python -m tests.crash --kills 1000`. Prints one line at the end; keeps the state of a failure."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import databases
from tests.crash.harness import Crashes
from tests.crash.journal import MIB


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="kill -9 under load, again and again")
    parser.add_argument("--kills", type=int, default=100, help="default 100")
    parser.add_argument("--database", choices=databases.KINDS, default="sqlite", help="default sqlite")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: another one each time")
    options = parser.parse_args()
    state = Path(tempfile.mkdtemp(prefix="calotype-crash-"))
    print(f"seed {options.seed}, state in {state}", flush=True)
    database = databases.for_service(options.database)
    crashes = Crashes(state, options.seed, database=database, images=250, bytes_=512 * MIB)
    try:
        while crashes.summary.kills < options.kills:
            crashes.round()
            if sys.stderr.isatty():
                print(f"\r{crashes.summary.kills}", end="", file=sys.stderr, flush=True)
        crashes.finish()
    except AssertionError as exc:
        print(f"FAILED with seed {options.seed}: {exc}\n{crashes.line()}\nstate kept in {state}")
        return 1
    finally:
        if crashes.service.process and crashes.service.process.poll() is None:
            crashes.service.kill()
    print(crashes.line())
    shutil.rmtree(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
