"""`calotype db load-metadefs|unload-metadefs|export-metadefs`: what each mode does, and that nothing is half done."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from calotype import errors
from calotype.api import metadef_views
from calotype.cli.main import main
from calotype.cli.metadefs import _files
from calotype.context import SERVICE
from calotype.db import metadefs
from calotype.db.engine import Database, now
from calotype.db.metadefs import TAG
from calotype.metadefs import loading
from calotype.metadefs.loading import Mode
from calotype.model import Definitions, MetadefTag, Namespace
from tests import databases
from tests.cli.test_cli import Place
from tests.cli.test_cli import calotype as in_a_process_of_its_own

OLD: dict[str, Any] = {
    "namespace": "Site::Disks",
    "display_name": "Disks",
    "description": "What our disks are like",
    "visibility": "public",
    "protected": True,
    "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": "disk_"}, {"name": "Site::Shelf"}],
    "properties": {
        "speed": {"title": "Speed", "type": "integer", "default": 4, "minimum": 1},
        "kind": {
            "title": "Kind",
            "type": "string",
            "enum": ["ssd", "hdd"],
            "operators": ["<or>"],
            "confidential": True,
        },
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


@pytest.fixture
def place(tmp_path: Path, database_kind: str, database_url: str) -> Place:
    """What tells a command where an empty catalogue is."""
    databases.synced(database_url)
    if database_kind == "sqlite":
        return "--state-dir", tmp_path
    (tmp_path / "place.conf").write_text(f"[database]\nconnection = {database_url}\n")
    return "--state-dir", tmp_path, "--config-file", tmp_path / "place.conf"


def exported(place: Place, directory: Path) -> dict[str, dict[str, Any]]:
    """All that is in the catalogue, by the names of the files that an export writes."""
    calotype("db", "export-metadefs", directory, *place)
    return {path.name: json.loads(path.read_text()) for path in directory.iterdir()}


def test_what_is_loaded_can_be_exported_and_loaded_again_without_a_change(
    place: Place, files: Path, tmp_path: Path
) -> None:
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
@pytest.mark.any_database
def test_modes_that_make_no_sense_are_refused(place: Place, files: Path, options: tuple[str, ...]) -> None:
    put(files, "old.json", OLD)
    assert "--overwrite" in calotype("db", "load-metadefs", files, *options, *place, code=2)
    assert "Namespaces: 1 added." in calotype("db", "load-metadefs", files, *place)


@pytest.mark.any_database
def test_a_file_that_is_wrong_is_named_and_the_others_are_loaded(place: Place, files: Path, tmp_path: Path) -> None:
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


@pytest.mark.any_database
def test_what_glance_exported_is_loaded_and_null_means_nothing(place: Place, files: Path, tmp_path: Path) -> None:
    definition = {"name": "p", "title": "T", "type": "string", "description": None, "enum": ["a", None]}
    found = {
        "namespace": "Exported",
        "display_name": None,
        "description": None,
        "visibility": None,
        "protected": None,
        "owner": None,
        "resource_type_associations": [{"name": "OS::Glance::Image", "prefix": None, "properties_target": None}],
        "properties": {"p": definition | {"default": None}, "schema": {"title": "No field", "type": "string"}},
        "objects": [
            {"name": "null", "description": None, "required": None, "properties": None},
            {"name": "o", "description": None, "properties": {"p": definition}},
        ],
        "tags": None,
    }
    calotype("db", "load-metadefs", put(files, "exported.json", found), *place)
    assert "1 unchanged" in calotype("db", "load-metadefs", files, "--merge", "--overwrite", *place)
    wanted = {"title": "T", "type": "string", "enum": ["a", None]}
    assert exported(place, tmp_path / "out") == {
        "Exported.json": {
            "namespace": "Exported",
            "visibility": "private",
            "protected": False,
            "owner": "admin",
            "resource_type_associations": [{"name": "OS::Glance::Image"}],
            "properties": {"p": wanted, "schema": {"title": "No field", "type": "string"}},
            "objects": [
                {"name": "null", "required": [], "properties": {}},
                {"name": "o", "required": [], "properties": {"p": wanted}},
            ],
        }
    }
    for wrong in ({"objects": [None]}, {"tags": [None]}, {"properties": {"p": None}}, {"namespace": None}):
        path = put(files, "wrong.json", found | wrong)
        assert "does not match" in calotype("db", "load-metadefs", path, "--merge", *place, code=1)


def test_a_name_that_comes_twice_is_refused_whether_it_is_there_or_not(
    place: Place, files: Path, tmp_path: Path
) -> None:
    calotype("db", "load-metadefs", put(files, "old.json", OLD), *place)
    new = put(files, "new.json", OLD | {"display_name": "New", "tags": [{"name": "fast"}, {"name": "fast"}]})
    for options in ("--merge",), ("--merge", "--prefer-new"), ("--merge", "--overwrite"):
        assert "already has a tag fast" in calotype("db", "load-metadefs", new, *options, *place, code=1)
    assert exported(place, tmp_path / "out")["Site::Disks.json"]["display_name"] == "Disks"


@pytest.mark.any_database
def test_a_directory_that_cannot_be_read_is_no_empty_one(files: Path) -> None:
    files.chmod(0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(errors.Invalid, match="cannot be read: Permission denied"):
            _files(files)
    finally:
        os.seteuid(me)
        files.chmod(0o700)


@pytest.mark.any_database
def test_an_answer_of_the_api_is_a_file(place: Place, files: Path) -> None:
    read = metadef_views.to_definitions(OLD, "red", now())
    put(files, "answer.json", metadef_views.definitions(read))
    assert "Site::Disks: added (2 associations added" in calotype("db", "load-metadefs", files, *place)


def test_unloading_removes_what_files_name_or_everything(place: Place, files: Path, tmp_path: Path) -> None:
    old = put(files, "old.json", OLD)
    put(files, "other.json", {"namespace": "Other"})
    calotype("db", "load-metadefs", files, *place)
    put(files, "missing.json", {"namespace": "Missing"})
    said = calotype("db", "unload-metadefs", old, *place)
    assert "Site::Disks: removed" in said
    assert exported(place, tmp_path / "one").keys() == {"Other.json"}
    broken = put(files, "broken.json", "{")
    said = calotype("db", "unload-metadefs", files, *place, code=1)
    assert f"{broken}: Malformed JSON" in said
    assert "1 removed, 2 not there, 1 refused." in said
    broken.unlink()
    calotype("db", "load-metadefs", files, *place)
    assert calotype("db", "unload-metadefs", *place).splitlines() == [
        "Missing: removed",
        "Site::Disks: removed",
        "Other: removed",
        "Removed: 3 namespaces with all that was in them, 2 resource types.",
    ]
    assert exported(place, tmp_path / "none") == {}
    assert "Removed: 0 namespaces" in calotype("db", "unload-metadefs", *place)


@pytest.mark.any_database
def test_the_configured_directory_is_read_when_no_other_is_named(tmp_path: Path, files: Path) -> None:
    put(files, "old.json", OLD)
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\nmetadata_source_path = {files}\n")
    where = ("--state-dir", tmp_path, "--config-file", tmp_path / "c.conf")
    in_a_process_of_its_own("db", "sync", *where)
    assert "Namespaces: 1 added." in in_a_process_of_its_own("db", "load-metadefs", *where)
    assert "Namespaces: 1 skipped." in in_a_process_of_its_own("db", "load-metadefs", "--path", files, *where)
    assert "does not exist" in in_a_process_of_its_own("db", "load-metadefs", files / "nowhere", *where, code=2)
    assert "is no directory" in in_a_process_of_its_own("db", "export-metadefs", files / "old.json", *where, code=2)


@pytest.mark.any_database
def test_an_export_leaves_nothing_half_written(place: Place, files: Path, tmp_path: Path) -> None:
    put(files, "old.json", OLD)
    calotype("db", "load-metadefs", files, *place)
    out = tmp_path / "out"
    out.mkdir()
    (out / "Site::Disks.json").mkdir()  # in the way
    assert "cannot be written" in calotype("db", "export-metadefs", out, *place, code=2)
    assert [path.name for path in out.iterdir()] == ["Site::Disks.json"]


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    db = Database(databases.synced(database_url))
    yield db
    db.close()


def read(found: dict[str, Any]) -> Definitions:
    return metadef_views.to_definitions(found, "red", now())


def test_more_namespaces_than_one_look_brings_are_all_exported(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_PAGE", 2)
    for number in range(5):
        loading.load(db, read({"namespace": f"N{number}"}), Mode.SKIP)
    assert [found.namespace.name for found in loading.catalogue(db)] == [f"N{number}" for number in range(5)]
    seen = []
    for found in loading.catalogue(db):  # and the last one of a look may be gone when the next one comes
        seen.append(found.namespace.name)
        loading.unload(db, seen[-1:])
    assert seen == [f"N{number}" for number in range(5)]


def test_names_that_only_glance_gave_lead_nowhere_else_and_the_rest_is_exported(
    place: Place, tmp_path: Path, database_url: str
) -> None:
    db = Database(database_url)
    names = ["", "..", "a/b", "../../evil", "/etc/evil", "new\nline", "€" * 80]
    with db.write_once() as tx:
        for name in names:
            metadefs.add(tx, Namespace(0, name, "red", now(), now()))
    db.close()
    out = tmp_path / "some" / "where"
    found = exported(place, out)
    assert sorted(one["namespace"] for one in found.values()) == sorted(names)
    assert [path.name for path in out.parent.iterdir()] == ["where"]
    assert not list(tmp_path.glob("*evil*"))
    said = calotype("db", "load-metadefs", out, "--merge", "--overwrite", *place, code=1)
    assert "6 refused, 1 unchanged" in said


def test_a_conflict_undoes_the_whole_namespace(db: Database) -> None:
    with pytest.raises(errors.Conflict):
        loading.load(db, read(OLD | {"tags": [{"name": "t"}, {"name": "t"}]}), Mode.SKIP)
    assert not list(loading.catalogue(db))
    assert loading.load(db, read(OLD), Mode.SKIP).is_new
    found = next(loading.catalogue(db))
    assert isinstance(found, Definitions)
    assert [kind.protected for kind in db.read(metadefs.resource_types)] == [True, True]
    assert [link.resource_type for link in found.associations] == ["OS::Glance::Image", "Site::Shelf"]


def test_names_that_the_database_takes_for_one_are_one(db: Database, database_kind: str) -> None:
    new = {
        "namespace": "site::disks",
        "resource_type_associations": [{"name": "OS::GLANCE::IMAGE", "prefix": "x_"}],
        "properties": {"SPEED": {"title": "Faster", "type": "integer"}},
        "objects": [{"name": "MIRROR", "properties": {}}],
        "tags": [{"name": "FAST"}, {"name": "new"}],
    }
    for mode, name, prefix, wanted in (
        (Mode.SKIP, "Site::Disks", "disk_", "speed kind mirror bare cheap fast"),
        (Mode.MERGE, "Site::Disks", "disk_", "speed kind mirror bare cheap fast new"),
        (Mode.PREFER_NEW, "site::disks", "x_", "SPEED kind MIRROR bare FAST cheap new"),
        (Mode.OVERWRITE, "site::disks", "x_", "SPEED MIRROR FAST new"),
    ):
        loading.unload_all(db)
        loading.load(db, read(OLD), Mode.SKIP)
        assert loading.load(db, read(new), mode).is_new == (database_kind != "mariadb")
        assert not loading.load(db, read(new), mode).has_changes
        if database_kind != "mariadb":
            assert [found.namespace.name for found in loading.catalogue(db)] == ["Site::Disks", "site::disks"]
            continue
        (found,) = loading.catalogue(db)
        assert found.namespace.name == name
        names = [one.name for one in (*found.properties, *found.objects)]
        assert " ".join(names + sorted(one.name for one in found.tags)) == wanted
        assert (found.associations[0].resource_type, found.associations[0].prefix) == ("OS::Glance::Image", prefix)
        assert len(found.associations) == (1 if mode is Mode.OVERWRITE else 2)


def test_of_many_who_load_the_same_at_once_one_adds_it_and_nobody_fails(db: Database) -> None:
    types = [{"name": f"T{number}"} for number in range(6)]
    for number in range(5):
        orders = (types, types[::-1], types[3:] + types[:3], types)
        start = Barrier(len(orders))

        def one(order: list[dict[str, str]], number: int = number, start: Barrier = start) -> bool:
            new = OLD | {"namespace": f"N{number}", "resource_type_associations": order}
            start.wait(20)
            return loading.load(db, read(new), Mode.OVERWRITE).is_new

        with ThreadPoolExecutor(len(orders)) as threads:
            assert sorted(threads.map(one, orders)) == [False, False, False, True]
        loading.unload_all(db)


def test_all_goes_even_what_is_being_added(db: Database) -> None:
    loading.load(db, read(OLD), Mode.SKIP)
    with ThreadPoolExecutor(1) as threads:
        with db.write_once() as tx:
            found = metadefs.get(tx, SERVICE, OLD["namespace"], lock=True)
            assert found
            metadefs.add_parts(tx, TAG, found.id, [MetadefTag("late", now(), now())])
            going = threads.submit(loading.unload_all, db)
            with pytest.raises(TimeoutError):
                going.result(0.3)
        assert going.result(20) == ([OLD["namespace"]], 2)
    assert not list(loading.catalogue(db))
