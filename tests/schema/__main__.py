"""`make schema`: Schemathesis for longer than the tests have time for.

python -m tests.schema [--examples N] [--seed N] [--personas admin,alice,reader] [--phases …]
"""

import argparse
import random
import sys
import tempfile
from itertools import product
from pathlib import Path

from tests.conftest import CONF
from tests.schema.runs import PERSONAS, run
from tests.support import running


def main() -> None:
    parser = argparse.ArgumentParser(description="Send what the description of the API allows, and what it does not.")
    parser.add_argument(
        "--examples", type=int, default=100, help="requests of each route and phase, default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: another one each time")
    parser.add_argument("--personas", default=",".join(PERSONAS), help="default: %(default)s")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful", help="default: %(default)s")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="calotype-schema-") as name:
        state = Path(name) / "state"
        with running(state, CONF.format(state=state)) as service:
            for persona, phase in product(options.personas.split(","), options.phases.split(",")):
                found = run(service, persona, Path(name), examples=options.examples, seed=options.seed, phase=phase)
                failed = failed or found.code != 0
                said = found.said if found.code else found.said[found.said.find("API capabilities") :]
                print(f"== {persona}, {phase}\n{said}", flush=True)
            failed = failed or "Traceback" in service.log
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
