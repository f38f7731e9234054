"""Use-cases go through `write`, `snapshot` and `read`, which outlive what databases do."""

import ast
from pathlib import Path

import calotype

SOURCE = Path(calotype.__file__).parent


def test_outside_of_db_and_commands_nobody_begins_a_transaction_that_is_tried_only_once() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in ("db", "cli")]
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("write_once", "read_once")
        and isinstance(node.value, ast.Name | ast.Attribute)
        and (node.value.id if isinstance(node.value, ast.Name) else node.value.attr) in ("db", "database", "_db")
    ]
    assert len(files) > 20
    assert found == []
