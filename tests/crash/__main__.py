"""The long forms, each with one line at the end; the state of a failure is kept.

`python -m tests.crash --kills 1000`, `--imports 300` for kills amid imports, `--power 500` for losses of power, `--mutations` to see that these find each sync
that is left out.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests import databases
from tests.crash import mutations
from tests.crash.harness import STORES, Crashes
from tests.crash.imports import ImportCrashes
from tests.crash.journal import MIB
from tests.crash.power import PowerCuts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="kill -9 under load, again and again")
    parser.add_argument("--kills", type=int, default=100, help="default 100")
    parser.add_argument("--database", choices=databases.KINDS, default="sqlite", help="default sqlite")
    parser.add_argument("--store", choices=STORES, default="file", help="the driver that is killed; default file")
    parser.add_argument("--imports", type=int, metavar="KILLS", help="kill or stop so many processes amid imports")
    parser.add_argument("--power", type=int, metavar="CUTS", help="lose power so many times, instead of kill -9")
    parser.add_argument(
        "--mutations",
        nargs="?",
        const="",
        metavar="WORDS",
        help="leave each sync out in turn, and lose power until it is found; with words, those that have them",
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: another one each time")
    options = parser.parse_args()
    if options.mutations is not None:
        chosen = [one for one in mutations.MUTATIONS if options.mutations in one.what]
        left = mutations.survivors(options.power or 300, options.seed, chosen)
        print(f"{len(chosen) - len(left)} of {len(chosen)} mutations found")
        return 1 if left else 0
    state = Path(tempfile.mkdtemp(prefix="calotype-crash-"))
    print(f"seed {options.seed}, state in {state}", flush=True)
    if options.imports:
        return kill_imports(state, options)
    return lose_power(state, options) if options.power else kill(state, options)


def kill(state: Path, options: argparse.Namespace) -> int:
    database = databases.for_service(options.database)
    kit = STORES[options.store](state)
    try:
        crashes = Crashes(state, options.seed, kit, database=database, images=250, bytes_=512 * MIB)
    except pytest.skip.Exception:
        shutil.rmtree(state)
        print(f"the data of store {options.store} does not outlive its process")
        return 2
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
        kit.close()
    print(crashes.line())
    shutil.rmtree(state)
    return 0


def kill_imports(state: Path, options: argparse.Namespace) -> int:
    crashes = ImportCrashes(state, options.seed, database=databases.for_service(options.database))
    tells = sys.stderr.isatty()
    try:
        crashes.run(options.imports, lambda count: tells and print(f"\r{count}", end="", file=sys.stderr, flush=True))
    except AssertionError as exc:
        print(f"FAILED with seed {options.seed}: {exc}\n{crashes.line()}\nstate kept in {state}")
        return 1
    print(crashes.line())
    shutil.rmtree(state)
    return 0


def lose_power(state: Path, options: argparse.Namespace) -> int:
    cuts = PowerCuts(state, options.seed)
    try:
        cuts.run(options.power)
    except AssertionError as exc:
        print(f"FAILED with seed {options.seed}: {exc}")
        return 1
    finally:
        print(cuts.line())
        shutil.rmtree(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
