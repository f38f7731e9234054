"""`make fuzz ARGS="--seconds 60 patch"`: feed one target, or each in turn, with inputs that find new ways through the code.

Needs atheris, which the extra `fuzz` installs. It begins with the corpus. A finding is printed and written to the
directory that is named at the start; add it to `corpus.py` when it is mended.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.corpus import CORPUS


def main() -> int:
    names = sorted(CORPUS)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(names)}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.one:
        return fuzz(arguments.targets[0], arguments.seconds)
    failed = []
    for name in arguments.targets or names:
        # libFuzzer ends its process, so each target has one.
        command = [sys.executable, "-m", "tests.fuzz", "--one", "--seconds", str(arguments.seconds), name]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print("findings in: " + ", ".join(failed) if failed else "nothing was found")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["calotype", "oslo_utils.imageutils"]):
        from tests.fuzz.targets import TARGETS

    place = Path(tempfile.mkdtemp(prefix=f"calotype-fuzz-{name}-"))
    (place / "corpus").mkdir()
    for number, data in enumerate(CORPUS[name]):
        (place / "corpus" / f"given-{number}").write_bytes(data)
    print(f"{name}: {seconds} seconds; findings go to {place}", flush=True)
    # The limit of memory is high because instrumented code keeps some 3 KiB of each input; without it nothing is kept.
    options = [
        f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=8192", "-print_final_stats=1",
        f"-artifact_prefix={place}/finding-", str(place / "corpus"),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
