"""`python -m tests.tree`, a part of `make lint`: symbolic links lead to files of the tree, or whoever clones it has none."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def astray(root: Path) -> Iterator[str]:
    """Links that git knows, or would add, and that lead out of the tree, to nothing or into what git does not know."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    names = set(filter(None, listed.stdout.split("\0")))
    known = {root.resolve() / part for name in names for part in (Path(name), *Path(name).parents)}
    for name in sorted(names):
        if (root / name).is_symlink():
            target = (root / name).readlink()
            if target.is_absolute() or (root / name).resolve() not in known or not (root / name).exists():
                yield f"{name} -> {target}"


def main() -> int:
    found = list(astray(Path.cwd()))
    for one in found:
        print(f"a link leads out of the tree: {one}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
