"""`calotype db load-metadefs|unload-metadefs|export-metadefs`: metadata definitions in the JSON files of operators."""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from oslo_config import cfg

from calotype import app, errors
from calotype.api import metadef_schemas, metadef_views, schemas
from calotype.api.request import parse_json
from calotype.cli.common import load, require_database
from calotype.db import schema
from calotype.db.engine import Database, now
from calotype.durable import make_directory, replace_file
from calotype.metadefs import loading
from calotype.metadefs.loading import Mode, Outcome
from calotype.model import Definitions

#: The owner of a namespace whose file names none.
_OWNER: Final = "admin"
#: Read-only fields in answers of the API, which files need not have.
_DERIVED: Final = frozenset(("self", "schema", "created_at", "updated_at"))
_PLURALS: Final = {"property": "properties"}
#: Characters that are replaced in names of files.
_UNSAFE: Final = re.compile(r"[/%\x00-\x1f]")


def run_load(options: argparse.Namespace) -> int:
    if (options.prefer_new or options.overwrite) and not options.merge:
        raise errors.Invalid("--prefer-new and --overwrite say how to merge: give --merge as well.")
    mode = Mode.SKIP
    if options.merge:
        mode = Mode.PREFER_NEW if options.prefer_new else Mode.OVERWRITE if options.overwrite else Mode.MERGE
    conf = load(options)
    verdicts: Counter[str] = Counter()
    with _database(conf) as db:
        for path in _files(options.path or Path(conf.metadata_source_path)):
            try:
                outcome = loading.load(db, _read(path), mode, dry_run=options.dry_run)
            except errors.Busy:
                raise
            except errors.CalotypeError as exc:
                verdicts["refused"] += 1
                print(f"{path}: {exc}", file=sys.stderr)
                continue
            verdict = _verdict(outcome)
            verdicts[verdict] += 1
            print(f"{outcome.namespace}: {verdict}{_changes(outcome)}")
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none found"
    print(f"Namespaces: {said}.{' Nothing was changed: this was a dry run.' if options.dry_run else ''}")
    return 1 if verdicts["refused"] else 0


def run_unload(options: argparse.Namespace) -> int:
    with _database(load(options)) as db:
        return _unload(db, options.path)


def _unload(db: Database, path: Path | None) -> int:
    if path is None:
        gone, types = loading.unload_all(db)
        for name in gone:
            print(f"{name}: removed")
        print(f"Removed: {len(gone)} namespaces with all that was in them, {types} resource types.")
        return 0
    names, refused = [], 0
    for file in _files(path):
        try:
            names.append(_read(file).namespace.name)
        except errors.Invalid as exc:
            refused += 1
            print(f"{file}: {exc}", file=sys.stderr)
    gone = loading.unload(db, names)
    for name in gone:
        print(f"{name}: removed")
    said = f", {refused} refused" if refused else ""
    print(f"Namespaces: {len(gone)} removed, {len(names) - len(gone)} not there{said}.")
    return 1 if refused else 0


def run_export(options: argparse.Namespace) -> int:
    conf = load(options)
    directory = options.path or Path(conf.metadata_source_path)
    if directory.exists() and not directory.is_dir():
        raise errors.Invalid(f"{directory} is no directory.")
    count = 0
    with _database(conf) as db:
        try:
            make_directory(directory, 0o755)
            for found in loading.catalogue(db):
                path = directory / f"{_UNSAFE.sub(lambda sign: quote(sign[0], safe=''), found.namespace.name)}.json"
                replace_file(path, json.dumps(_exported(found), indent=4, ensure_ascii=False) + "\n", 0o644)
                print(path)
                count += 1
        except OSError as exc:
            raise errors.Invalid(f"The files cannot be written: {exc}") from exc
    print(f"Namespaces: {count} exported.")
    return 0


@contextmanager
def _database(conf: cfg.ConfigOpts) -> Iterator[Database]:
    """The database, open as long as the block runs. Raises unless it exists and has the schema of this release."""
    require_database(conf)
    with closing(app.database(conf, patient=True)) as db:
        schema.require_current(db)
        yield db


def _files(path: Path) -> list[Path]:
    """The file, or those of the directory. Raises `Invalid`."""
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        return sorted(one for one in path.iterdir() if one.name.endswith(".json"))
    except FileNotFoundError as exc:
        raise errors.Invalid(f"{path} does not exist.") from exc
    except OSError as exc:
        raise errors.Invalid(f"{path} cannot be read: {exc.strerror}.") from exc


def _read(path: Path) -> Definitions:
    """The namespace in a file. Raises `Invalid`."""
    try:
        found = parse_json(path.read_bytes(), "file")
    except OSError as exc:
        raise errors.Invalid(f"The file cannot be read: {exc}") from exc
    if not isinstance(found, dict):
        raise errors.Invalid("The file must hold a JSON object: a namespace.")
    try:
        values = _without_derived(found)
        schemas.check(metadef_schemas.NAMESPACE, values)
    except errors.Invalid as exc:
        raise errors.Invalid(str(exc).replace("Provided object", "The file")) from exc
    return metadef_views.to_definitions(values, _OWNER, now())


def _without_derived(found: dict[str, Any]) -> dict[str, Any]:
    """The namespace in a file without nulls and read-only fields, so that it is like a request.

    So answers of the API can be loaded, and exports of Glance, which have null for a missing value.
    """
    values: dict[str, Any] = _without_nulls(found, _DERIVED)
    for name in ("objects", "resource_type_associations", "tags"):
        if isinstance(values.get(name), list):
            values[name] = [_without_nulls(one, _DERIVED) for one in values[name]]
    objects = values.get("objects")
    for one in (values, *(objects if isinstance(objects, list) else ())):
        if isinstance(one, dict) and isinstance(one.get("properties"), dict):
            one["properties"] = {name: _without_nulls(definition) for name, definition in one["properties"].items()}
    return values


def _without_nulls(found: Any, derived: Collection[str] = ()) -> Any:
    """A JSON object without nulls, and without the fields `derived`."""
    if not isinstance(found, dict):
        return found
    return {name: value for name, value in found.items() if value is not None and name not in derived}


def _exported(found: Definitions) -> dict[str, Any]:
    return _without_derived(metadef_views.definitions(found))


def _verdict(outcome: Outcome) -> str:
    if outcome.is_new:
        return "added"
    if outcome.skipped:
        return "skipped"
    return "changed" if outcome.has_changes else "unchanged"


def _changes(outcome: Outcome) -> str:
    """`: 2 properties added, 1 object removed`, or nothing."""
    said = []
    for verb, counter in (("added", outcome.added), ("changed", outcome.changed), ("removed", outcome.removed)):
        for word, count in counter.items():
            said.append(f"{count} {word if count == 1 else _PLURALS.get(word, word + 's')} {verb}")
    return f" ({', '.join(said)})" if said else ""
