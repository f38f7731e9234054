"""Ask qemu-img about every change of every field, write `verdicts.txt` anew, and tell where Calotype differs."""

import collections
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.formats import sweep


def main() -> int:
    wanted = sys.argv[1:]
    version = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True).stdout.split(" (")[
        0
    ]
    with tempfile.TemporaryDirectory(prefix="calotype-formats-") as folder:
        bases = sweep.bases(Path(folder))
        changes = sweep.all_changes(bases)
        verdicts = dict(zip(changes, sweep.told(bases, changes), strict=True))
        sweep.write(verdicts, version)
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for change, opened in verdicts.items():
            reason = sweep.ours(bases[change.variant.name], change)
            count = counts[change.variant.name]
            count["changes"] += 1
            count["refused"] += not opened
            if opened != (reason is None):
                count["missed" if reason is None else "stricter"] += 1
                if wanted:
                    print(change, "MISSED" if reason is None else f"STRICTER {reason}")
    for name, count in counts.items():
        print(f"{name}: of {count['changes']} changes qemu-img refuses {count['refused']}; of these Calotype accepts "
              f"{count['missed']}; it refuses {count['stricter']} others")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
