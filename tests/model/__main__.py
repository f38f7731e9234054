"""The long form: `python -m tests.model --steps 200000 --database postgresql`."""

import argparse
import tempfile
import time
from pathlib import Path

from tests import databases
from tests.model.machine import walk

parser = argparse.ArgumentParser(prog="python -m tests.model", description="random calls beside a reference model")
parser.add_argument("--steps", type=int, default=200_000, help="default 200000")
parser.add_argument("--database", choices=databases.KINDS, default="sqlite", help="default sqlite")
parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: another one each time")
options = parser.parse_args()
print(f"seed {options.seed}", flush=True)
with tempfile.TemporaryDirectory(prefix="calotype-model-") as state:
    url = databases.fresh(options.database, Path(state))
    begun = time.monotonic()
    steps = walk(Path(state), url, steps=options.steps, seed=options.seed)
print(f"{steps} steps with {options.database} in {time.monotonic() - begun:.0f} s, all as the model says")
