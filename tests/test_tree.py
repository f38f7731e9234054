"""Links in the tree."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.tree import astray


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "page.md").write_text("here")
    (root / ".gitignore").write_text("/ours\n")
    (root / "ours").write_text("not in git")
    (tmp_path / "outside").write_text("elsewhere")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


@pytest.mark.parametrize("target", ["page.md", "../docs/page.md", "."])
def test_a_link_within_the_tree_is_fine(tree: Path, target: str) -> None:
    os.symlink(target, tree / "docs" / "link")
    assert list(astray(tree)) == []


@pytest.mark.parametrize("target", ["../../outside", "/etc/hostname", "nothing", "../ours", "{tree}/docs/page.md"])
@pytest.mark.parametrize("added", [False, True])
def test_a_link_that_a_clone_could_not_follow_is_refused(tree: Path, target: str, added: bool) -> None:
    os.symlink(target := target.format(tree=tree), tree / "docs" / "link")
    if added:
        subprocess.run(["git", "add", "docs"], cwd=tree, check=True)
    assert list(astray(tree)) == [f"docs/link -> {target}"]
