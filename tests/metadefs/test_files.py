"""`calotype db load-metadefs|unload-metadefs|export-metadefs`: what each mode does, and that nothing is half done."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.api import metadef_views
from calotype.cli.main import main
from calotype.db.engine import Database, now
from calotype.metadefs import loading
from calotype.metadefs.loading import Mode
from calotype.model import Definitions
from tests.cli.test_cli import Place, place
from tests.cli.test_cli import calotype as in_a_process_of_its_own

__all__ = ["place"]

OLD: dict[str, Any] = {
    "namespace": "Site::Disks",
    "display_name": "Disks",
    "description": "What our disks are like",
    "visibility": "public",
    "protected": True,
    "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": "disk_"}, {"name": "Site::Shelf"}],
    "properties": {
        "speed": {"title": "Speed", "type": "integer", "default": 4, "minimum": 1},
        "kind": {"title": "Kind", "type": "string", "enum": ["ssd", "hdd"], "operators": ["<or>"]},
    },
    "objects": [
        {"name": "mirror", "required": ["copies"], "properties": {"copies": {"title": "Copies", "type": "integer"}}},
        {"name": "bare", "properties": {}},
    ],
    "tags": [{"name": "fast"}, {"name": "cheap"}],
}
NEW: dict[str, Any] = {
    "namespace": "Site::Disks",
    "display_name": "All disks",
    "visibility": "private",
    "owner": "storage",
    "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": "d_"}, {"name": "Site::Rack"}],
    "properties": {"speed": {"title": "Speed", "type": "string"}, "age": {"title": "Age", "type": "integer"}},
    "objects": [{"name": "mirror", "properties": {}}, {"name": "stripe", "properties": {}}],
    "tags": [{"name": "fast"}, {"name": "old"}],
}


def calotype(*arguments: str | Path, code: int = 0) -> str:
    """Run the command in this process, which takes a tenth of the time; its output, both streams."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as exc:
            found = int(exc.code or 0)
    assert found == code, said.getvalue()
    return said.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def put(directory: Path, name: str, content: Any) -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def exported(place: Place, directory: Path) -> dict[str, dict[str, Any]]:
    """All that is in the catalogue, by the names of the files that an export writes."""
    calotype("db", "export-metadefs", directory, *place)
    return {path.name: json.loads(path.read_text()) for path in directory.iterdir()}


def test_what_is_loaded_can_be_exported_and_loaded_again_without_a_change(
    place: Place, files: Path, tmp_path: Path
) -> None:
    calotype("db", "sync", *place)
    put(files, "disks.json", OLD)
    put(files, "other.json", {"namespace": "Ünder 50 %", "visibility": "public", "protected": False, "owner": "me"})
    put(files, "notes.txt", "no definitions")
    said = calotype("db", "load-metadefs", files, *place)
    assert "Site::Disks: added (2 associations added, 2 properties added, 2 objects added, 2 tags added)" in said
    assert said.endswith("Namespaces: 2 added.\n")
    found = exported(place, tmp_path / "out")
    assert found.keys() == {"Site::Disks.json", "Ünder 50 %25.json"}
    wanted = OLD | {"owner": "admin"}
    wanted["objects"] = [{"required": [], **one} for one in OLD["objects"]]
    assert found["Site::Disks.json"] == wanted | {"tags": found["Site::Disks.json"]["tags"]}
    assert [tag["name"] for tag in found["Site::Disks.json"]["tags"]] == ["fast", "cheap"]
    assert "2 unchanged" in calotype("db", "load-metadefs", tmp_path / "out", "--merge", "--overwrite", *place)


@pytest.mark.parametrize(
    ("options", "verdict", "title", "speed", "properties", "objects", "types", "tags"),
    [
        ((), "skipped", "Disks", "integer", "speed kind", "mirror bare", "Image Shelf", "fast cheap"),
        (("--merge",), "changed (1 association added, 1 property added, 1 object added, 1 tag added)", "Disks", "integer",
         "speed kind age", "mirror bare stripe", "Image Rack Shelf", "fast cheap old"),
        (("--merge", "--prefer_new"), "changed (1 association added, 1 property added, 1 object added, 1 tag added, 1 namespace changed, "
         "1 association changed, 1 property changed, 1 object changed)", "All disks", "string", "speed kind age", "mirror bare stripe",
         "Image Rack Shelf", "fast cheap old"),
        (("--merge", "--overwrite"), "changed (1 association added, 1 property added, 1 object added, 1 tag added, 1 namespace changed, "
         "1 association changed, 1 property changed, 1 object changed, 1 association removed, 1 property removed, 1 object removed, "
         "1 tag removed)", "All disks", "string", "speed age", "mirror stripe", "Image Rack", "fast old"),
    ],
)  # fmt: skip
def test_the_modes(
    place: Place, files: Path, tmp_path: Path, options: tuple[str, ...], verdict: str, title: str, speed: str,
    properties: str, objects: str, types: str, tags: str,
) -> None:  # fmt: skip
    calotype("db", "sync", *place)
    calotype("db", "load-metadefs", put(files, "old.json", OLD), *place)
    new = put(files, "new.json", NEW)
    dry = calotype("db", "load-metadefs", new, "--dry-run", *options, *place)
    before = exported(place, tmp_path / "before")["Site::Disks.json"]
    assert before["display_name"] == "Disks"
    assert len(before["properties"]) == 2
    said = calotype("db", "load-metadefs", new, *options, *place)
    assert f"Site::Disks: {verdict}\n" in said
    assert dry.splitlines()[0] == said.splitlines()[0]
    found = exported(place, tmp_path / "after")["Site::Disks.json"]
    assert found["display_name"] == title
    assert found["protected"] == (title == "Disks")
    assert found["owner"] == ("admin" if title == "Disks" else "storage")
    assert found["properties"]["speed"]["type"] == speed
    assert " ".join(found["properties"]) == properties
    assert " ".join(one["name"] for one in found["objects"]) == objects
    assert found["objects"][0]["required"] == (["copies"] if title == "Disks" else [])
    assert " ".join(one["name"].rpartition("::")[2] for one in found["resource_type_associations"]) == types
    assert found["resource_type_associations"][0]["prefix"] == ("disk_" if title == "Disks" else "d_")
    assert " ".join(one["name"] for one in found["tags"]) == tags
    again = calotype("db", "load-metadefs", new, *options, *place)
    assert f"Site::Disks: {'unchanged' if options else 'skipped'}\n" in again or options == ("--merge",)


@pytest.mark.parametrize("options", [("--prefer-new",), ("--overwrite",), ("--merge", "--prefer-new", "--overwrite")])
def test_modes_that_make_no_sense_are_refused(place: Place, files: Path, options: tuple[str, ...]) -> None:
    calotype("db", "sync", *place)
    put(files, "old.json", OLD)
    code = 2 if len(options) == 3 else 1
    assert "--overwrite" in calotype("db", "load-metadefs", files, *options, *place, code=code)
    assert "Namespaces: 1 added." in calotype("db", "load-metadefs", files, *place)


def test_a_file_that_is_wrong_is_named_and_the_others_are_loaded(place: Place, files: Path, tmp_path: Path) -> None:
    calotype("db", "sync", *place)
    bad = {
        "a": "{",
        "b": [1],
        "c": {"display_name": "nameless"},
        "d": OLD | {"objects": [{"description": "nameless"}]},
        "e": OLD | {"namespace": "Twice", "tags": [{"name": "t"}, {"name": "t"}]},
        "f": OLD | {"namespace": "Deep", "properties": {"p": {"title": "T", "type": "colour"}}},
        "g": OLD | {"namespace": "Emoji", "description": "\U0001f4f7"},
        "h": OLD | {"namespace": "Long", "description": "x" * 501},
    }
    for name, content in bad.items():
        put(files, f"{name}.json", content)
    put(files, "z.json", {"namespace": "Good"})
    said = calotype("db", "load-metadefs", files, *place, code=1)
    for name in bad:
        assert f"{files}/{name}.json: " in said
    assert said.count("Good: added") == 1
    assert "Namespaces: 1 added, 8 refused." in said
    assert exported(place, tmp_path / "out").keys() == {"Good.json"}


def test_an_answer_of_the_api_is_a_file(place: Place, files: Path) -> None:
    read = metadef_views.to_definitions(OLD, "red", now())
    calotype("db", "sync", *place)
    put(files, "answer.json", metadef_views.definitions(read))
    assert "Site::Disks: added (2 associations added" in calotype("db", "load-metadefs", files, *place)


def test_unloading_removes_what_files_name_or_everything(place: Place, files: Path, tmp_path: Path) -> None:
    calotype("db", "sync", *place)
    old = put(files, "old.json", OLD)
    put(files, "other.json", {"namespace": "Other"})
    calotype("db", "load-metadefs", files, *place)
    put(files, "missing.json", {"namespace": "Missing"})
    said = calotype("db", "unload-metadefs", old, *place)
    assert "Site::Disks: removed" in said
    assert exported(place, tmp_path / "one").keys() == {"Other.json"}
    assert "1 removed, 2 not there" in calotype("db", "unload-metadefs", files, *place)
    calotype("db", "load-metadefs", files, *place)
    assert "Removed: 3 namespaces with all that was in them, 2 resource types." in calotype(
        "db", "unload-metadefs", *place
    )
    assert exported(place, tmp_path / "none") == {}


def test_the_configured_directory_is_read_when_no_other_is_named(tmp_path: Path, files: Path) -> None:
    put(files, "old.json", OLD)
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\nmetadata_source_path = {files}\n")
    where = ("--state-dir", tmp_path, "--config-file", tmp_path / "c.conf")
    in_a_process_of_its_own("db", "sync", *where)
    assert "Namespaces: 1 added." in in_a_process_of_its_own("db", "load-metadefs", *where)
    assert "Namespaces: 1 skipped." in in_a_process_of_its_own("db", "load-metadefs", "--path", files, *where)
    assert "does not exist" in in_a_process_of_its_own("db", "load-metadefs", files / "nowhere", *where, code=1)
    assert "is no directory" in in_a_process_of_its_own("db", "export-metadefs", files / "old.json", *where, code=1)


def test_an_export_leaves_nothing_half_written(place: Place, files: Path, tmp_path: Path) -> None:
    calotype("db", "sync", *place)
    put(files, "old.json", OLD)
    calotype("db", "load-metadefs", files, *place)
    out = tmp_path / "out"
    out.mkdir()
    (out / "Site::Disks.json").mkdir()  # in the way
    assert "cannot be written" in calotype("db", "export-metadefs", out, *place, code=1)
    assert [path.name for path in out.iterdir()] == ["Site::Disks.json"]


def test_more_namespaces_than_one_look_brings_are_all_exported(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.db import schema

    monkeypatch.setattr(loading, "_PAGE", 2)
    db = Database(database_url)
    schema.sync(db)
    try:
        for number in range(5):
            loading.load(db, metadef_views.to_definitions({"namespace": f"N{number}"}, "red", now()), Mode.SKIP)
        assert [found.namespace.name for found in loading.catalogue(db)] == [f"N{number}" for number in range(5)]
    finally:
        db.close()


def test_an_export_goes_on_when_a_namespace_goes(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.db import schema

    monkeypatch.setattr(loading, "_PAGE", 1)
    db = Database(database_url)
    schema.sync(db)
    try:
        for number in range(3):
            loading.load(db, metadef_views.to_definitions({"namespace": f"N{number}"}, "red", now()), Mode.SKIP)
        found = []
        for one in loading.catalogue(db):
            found.append(one.namespace.name)
            assert loading.unload(db, [one.namespace.name])
        assert found == ["N0", "N1", "N2"]
    finally:
        db.close()


def test_what_is_loaded_over_another_may_differ_in_case_alone(database_url: str) -> None:
    from calotype.db import schema

    db = Database(database_url)
    schema.sync(db)

    def load(word: str) -> loading.Outcome:
        body = {
            "namespace": "N",
            "resource_type_associations": [{"name": word}],
            "properties": {word: {"title": "T", "type": "string"}},
            "objects": [{"name": word}],
            "tags": [{"name": word}],
        }
        return loading.load(db, metadef_views.to_definitions(body, "red", now()), Mode.OVERWRITE)

    try:
        load("Word")
        outcome = load("word")
        assert outcome.added == outcome.removed == {"association": 1, "property": 1, "object": 1, "tag": 1}
        (found,) = loading.catalogue(db)
        assert [one.name for one in (*found.properties, *found.objects, *found.tags)] == ["word"] * 3
    finally:
        db.close()


def test_a_conflict_undoes_the_whole_namespace(database_url: str) -> None:
    from calotype.db import schema

    db = Database(database_url)
    schema.sync(db)
    try:
        twice = metadef_views.to_definitions(OLD | {"tags": [{"name": "t"}, {"name": "t"}]}, "red", now())
        with pytest.raises(errors.Conflict):
            loading.load(db, twice, Mode.SKIP)
        assert not list(loading.catalogue(db))
        again = metadef_views.to_definitions(OLD, "red", now())
        assert loading.load(db, again, Mode.SKIP).is_new
        found = next(loading.catalogue(db))
        assert isinstance(found, Definitions)
        assert [link.resource_type for link in found.associations] == ["OS::Glance::Image", "Site::Shelf"]
    finally:
        db.close()
