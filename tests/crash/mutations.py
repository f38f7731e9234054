"""Each sync taken out of the product in turn, and the harness of lost power that must find it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import calotype

_SOURCE = Path(calotype.__file__).parents[1]
_STORE, _DURABLE, _LEASES = "stores/file.py", "durable.py", "db/leases.py"
#: Every call that makes something durable, and nothing else.
_SYNC = re.compile(r"^(?!def ).*(?:os\.f(?:data)?sync|sync_directory)\(|PRAGMA synchronous", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """What is left out, where it stands, and the text there: a part that is found once, and what it becomes.

    `test` is one in `test_power.py` that finds it, where losing power under load cannot.
    """

    what: str
    file: str
    before: str
    after: str
    test: str = ""

    def command(self, cuts: int, seed: int) -> list[str]:
        """What finds it: it ends with 1, and lines that begin with > say why."""
        if self.test:
            return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/crash", "-k", self.test]
        return [sys.executable, "-m", "tests.crash", "--power", str(cuts), "--seed", str(seed)]

    def apply(self, source: Path) -> None:
        path = source / "calotype" / self.file
        text = path.read_text()
        assert text.count(self.before) == 1, f"{self.file} has {self.before!r} {text.count(self.before)} times"
        path.write_text(text.replace(self.before, self.after))


MUTATIONS = [
    Mutation("the data of an upload", _STORE, "os.fsync(file)\n", "pass\n"),
    Mutation(
        "the name of an upload",
        _STORE,
        "os.unlink(self._part, dir_fd=directory)\n                os.fsync(directory)\n",
        "os.unlink(self._part, dir_fd=directory)\n",
    ),
    Mutation("a delete", _STORE, "os.fsync(directory)\n            if not removed and", "if not removed and"),
    Mutation(
        "a delete that was done before a kill",
        _STORE,
        "# Also where it was gone: whoever removed it may have been killed before this.\n",
        "if not removed:\n                raise errors.Missing('', self.name)\n",
        # Under load it takes hundreds of losses until nothing else syncs the directory in time.
        test="test_a_delete_that_was_begun",
    ),
    Mutation(
        "cleaning up",
        _STORE,
        "file_objects.remove(directory, image_id, note)\n            os.fsync(directory)\n",
        "file_objects.remove(directory, image_id, note)\n",
    ),
    Mutation("a quarantine", _STORE, "sync_directory(aside)\n        return", "return", test="test_what_is_put_aside"),
    Mutation(
        "the end of a quarantine",
        _STORE,
        "os.fsync(directory)\n            data.unlink",
        "data.unlink",
        test="test_what_is_put_aside",
    ),
    Mutation(
        "the store's directory",
        _STORE,
        "make_directory(self.directory)",
        "self.directory.mkdir(parents=True, exist_ok=True)",
    ),
    Mutation(
        "the state directory",
        "cli/common.py",
        "make_directory(state)",
        "state.mkdir(parents=True, exist_ok=True)",
    ),
    Mutation("new directories", _DURABLE, "sync_directory(one.parent)", "pass"),
    Mutation("names, wherever", _DURABLE, "os.fsync(number)", "pass"),
    Mutation("the data of the users file", _DURABLE, "os.fsync(file.fileno())", "pass"),
    Mutation("the name of the users file", _DURABLE, "sync_directory(path.parent)", "pass"),
    Mutation(
        "the directory of the living",
        _LEASES,
        "make_directory(self._directory)",
        "self._directory.mkdir(parents=True, exist_ok=True)",
        # Under load SQLite and the users file sync the directory that it is in; they may be elsewhere.
        test="test_who_lived",
    ),
    Mutation("the name of who lives", _LEASES, "sync_directory(self._directory)", "pass"),
    Mutation("SQLite: commits", "db/drivers.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),
    Mutation("SQLite: everything", "db/drivers.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF"),
]


def syncs() -> Iterator[str]:
    """The file of each call in the sources."""
    for path in _SOURCE.rglob("*.py"):
        for _ in _SYNC.findall(path.read_text()):
            yield str(path.relative_to(_SOURCE / "calotype"))


def left_out() -> Iterator[str]:
    """The file of each call that a mutation leaves out."""
    return (mutation.file for mutation in MUTATIONS if _SYNC.search(mutation.before))


def survivors(cuts: int, seed: int, chosen: Sequence[Mutation]) -> list[str]:
    """Run each mutation until it is found, for so many losses of power at most. Prints; what was not found."""
    left = []
    for mutation in chosen:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="calotype-mutation-") as copy:
            shutil.copytree(_SOURCE / "calotype", Path(copy) / "calotype")
            mutation.apply(Path(copy))
            command = mutation.command(cuts, seed)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([copy, os.getcwd()])}
            run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert run.returncode in (0, 1), run.stdout + run.stderr
        why = [line for line in run.stdout.splitlines() if line.startswith(">")]
        assert why or run.returncode == 0, run.stdout + run.stderr
        print(f"{mutation.what}: {' '.join(why) or 'NOT FOUND'} ({time.monotonic() - begin:.0f} s)", flush=True)
        left += [] if why else [mutation.what]
    return left
