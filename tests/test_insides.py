"""What is used of other libraries beyond their public parts stands in one list, holds here, and is checked at the start."""

import ast
import importlib
import inspect
import logging
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calotype import errors, insides
from calotype.cli.main import main

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "calotype"
MODULES = sorted(".".join(path.relative_to(SRC).with_suffix("").parts) for path in SRC.rglob("*.py"))
PARTS = [(library.name, part) for library in insides.LIBRARIES.values() for part in library.parts]

#: Names that look private and are not: their documentation tells of them.
DOCUMENTED = {
    "_mapping",  # SQLAlchemy's rows
    "_fields",  # named tuples
    "_exit",  # os
    "_typeshed",  # for type checkers
    *("load", "load_config", "run"),  # gunicorn's BaseApplication
}


# --- the list --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", insides.LIBRARIES.values(), ids=lambda library: library.name)
def test_a_library_has_all_that_is_used_of_it(library: insides.Library) -> None:
    assert list(library.missing()) == []
    assert insides.is_within(library.version, library.versions)


def test_who_installs_calotype_gets_versions_that_the_list_was_seen_to_hold_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [f"python{project['requires-python']}", *project["dependencies"]]
    wanted += [one for name, extra in project["optional-dependencies"].items() if name != "test" for one in extra]
    bounds = {re.split(r"[\[<>=]", one)[0]: re.sub(r"^[^<>=]*", "", one) for one in wanted}
    ours = {name: library.versions for name, library in insides.LIBRARIES.items() if name != "Linux"}
    assert ours == {name: bounds.get(name) for name in ours}
    assert all(",<" in versions for versions in ours.values())


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda value: getattr(value, "place", value))
def test_a_part_is_of_the_library_and_used_where_the_list_says(name: str, part: insides.Part) -> None:
    text = source(part.user)
    if part.user == "insides":
        text = text[: text.index("# --- the list")]
    names = part.names.split() or [part.place.rpartition(".")[2].rpartition(":")[2]]
    place = part.place.rpartition(".")[2].rpartition(":")[2]
    assert any(re.search(rf"\b{re.escape(one)}\b", text) for one in [*names, place])


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("27", ">=27,<28", True),
        ("27.0.1", ">=27,<28", True),
        ("28.0", ">=27,<28", False),
        ("26.9", ">=27,<28", False),
        ("3.10.2", ">=3.2,<3.4", False),
        ("3.3.9", ">=3.2,<3.4", True),
        ("28.0rc1", ">=27,<28", False),
        ("6.1.0-18-amd64", ">=4.1", True),
        ("(of unknown version)", ">=4.1", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, bounds: str, fits: bool) -> None:
    assert insides.is_within(version, bounds) is fits


# --- at the start ----------------------------------------------------------------------------------------

_CONFIGURATIONS = {
    "botocore": "[DEFAULT]\nenabled_backends = one:s3\n[glance_store]\ndefault_backend = one\n[one]\ns3_store_host = h\n"
    "s3_store_access_key = a\ns3_store_secret_key = b\ns3_store_bucket = images\n",
    "gunicorn": "",
    "keystonemiddleware": "[paste_deploy]\nflavor = keystone\n[keystone_authtoken]\nauth_type = password\nauth_url = http://127.0.0.1:1/\n",
    "oslo.context": "",
    "oslo.messaging": "[oslo_messaging_notifications]\ndriver = messagingv2\ntransport_url = fake://\n",
    "oslo.policy": "",
    "oslo.utils": "",
    "psycopg": "[database]\nconnection = postgresql://127.0.0.1:1/none\n",
    "PyMySQL": "[database]\nconnection = mysql://127.0.0.1:1/none\n",
    "SQLAlchemy": "",
    "python": "",
    "Linux": "",
}


@pytest.mark.parametrize("name", insides.LIBRARIES)
def test_a_part_that_is_gone_is_a_sentence_at_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    insides.limited_psycopg.cache_clear()
    insides.limited_pymysql.cache_clear()
    known = insides.LIBRARIES[name]
    gone = insides.Part("server", "logging:Logger", "a_part_that_is_gone")
    monkeypatch.setitem(insides.LIBRARIES, name, replace(known, parts=(*known.parts, gone)))
    (tmp_path / "calotype.conf").write_text(_CONFIGURATIONS[name])
    (tmp_path / "state").mkdir()
    places = ["--config-file", str(tmp_path / "calotype.conf"), "--state-dir", str(tmp_path / "state")]
    assert main(["config", "check", *places]) == 1
    sentence = (
        f"{name} {known.version} has no a_part_that_is_gone in logging.Logger: Calotype needs {name}{known.versions}."
    )
    said = capsys.readouterr()
    assert f"Problems:\n  {sentence}\n\n" in said.out
    assert not said.err


def test_a_library_that_is_not_in_use_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = insides.Part("server", "nobody_has_this")
    for name in ("botocore", "keystonemiddleware", "oslo.messaging", "psycopg", "PyMySQL"):
        monkeypatch.setitem(insides.LIBRARIES, name, replace(insides.LIBRARIES[name], parts=(gone,)))
    assert main(["config", "check", "--state-dir", str(tmp_path)]) == 0


def test_the_service_does_not_begin_with_a_gunicorn_that_lacks_a_part(tmp_path: Path) -> None:
    start = (
        "import sys; from gunicorn.workers.gthread import ThreadWorker; del ThreadWorker._cap_keepalive; "
        "from calotype.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:  # nobody serves here, whatever happens
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-c", start, "serve", "--state-dir", str(tmp_path), "--bind", bind]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    said = "has no gunicorn.workers.gthread.ThreadWorker._cap_keepalive: Calotype needs gunicorn>=27.0.1,<28."
    assert ended.stderr.splitlines()[-1].endswith(said), ended.stderr


@pytest.mark.parametrize(
    ("place", "names", "missing"),
    [
        ("no_such_module:Class", "", "no_such_module"),
        ("logging:Nobody.method", "", "logging.Nobody"),
        ("logging:Logger.nobody", "", "logging.Logger.nobody"),
        ("logging:Logger", "info nobody", "nobody in logging.Logger"),
        ("logging:Logger.info", "msg _log", None),
        ("logging:Logger.info", "msg verbosely", "verbosely in logging.Logger.info"),
        ("logging:Logger.__init__", "name handlers", None),
        ("logging:Logger.__init__", "handles", "handles in logging.Logger.__init__"),
    ],
)
def test_of_a_function_parameters_and_the_names_in_its_code_are_looked_for(
    place: str, names: str, missing: str | None
) -> None:
    assert insides.Part("server", place, names).missing() == missing


def test_what_does_not_do_what_it_should_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insides, "_BYTES_ACKED", 1000)  # as on a kernel that tells less
    with pytest.raises(errors.ConfigError, match=r"Linux .* has no part that does what is asked of it .*Linux>=4\.1"):
        insides.check("Linux")


def test_a_version_that_nobody_has_looked_at_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newer = replace(insides.LIBRARIES["gunicorn"], installed=lambda: "28.0.0")
    monkeypatch.setitem(insides.LIBRARIES, "gunicorn", newer)
    with caplog.at_level(logging.WARNING, "calotype.insides"):
        insides.check("gunicorn")
    assert caplog.messages == ["gunicorn 28.0.0 is used, and Calotype was made for gunicorn>=27.0.1,<28"]


# --- nowhere else ----------------------------------------------------------------------------------------


def source(module: str) -> str:
    return (SRC / f"{module.replace('.', '/')}.py").read_text()


def used(text: str) -> Iterator[str]:
    """Private names in a module that nothing in it defines: attributes, imports, and what `getattr` asks for."""
    tree = ast.parse(text)
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        match node:
            # An attribute that an object of ours is given; `+=` needs one that is there.
            case ast.Assign(targets=targets):
                stored: list[ast.AST] = [part for target in targets for part in ast.walk(target)]
            case ast.AnnAssign(target=target):
                stored = [target]
            case _:
                continue
        for one in stored:
            match one:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr) | ast.Name(id=attr):
                    ours.add(attr)
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Attribute(attr=attr):
                names = [attr]
            case ast.ImportFrom(module=module) if module and not module.startswith("calotype"):
                names = [*module.split("."), *(alias.name for alias in node.names)]
            case ast.Import():
                names = [part for alias in node.names for part in alias.name.split(".")]
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                names = [name]
        yield from (name for name in names if re.match(r"_(?!_)", name) and name not in ours)


def overridden(module: str) -> Iterator[str]:
    """Methods that replace private ones of a library; of gunicorn, which documents few, any."""
    classes = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.ClassDef)]
    loaded = importlib.import_module(f"calotype.{module}") if classes else None
    for node in classes:
        made = getattr(loaded, node.name, None)  # None: within a function
        for method in node.body if inspect.isclass(made) else ():
            if not isinstance(method, ast.FunctionDef) or method.name.startswith("__"):
                continue
            for base in made.__mro__:
                private = method.name.startswith("_") or base.__module__.startswith("gunicorn.")
                if private and not base.__module__.startswith("calotype.") and method.name in vars(base):
                    yield method.name


def listed(module: str) -> set[str]:
    """What the list says that one of our modules uses."""
    return {
        name
        for _, part in PARTS
        if part.user == module
        for name in (*part.names.split(), *re.split(r"[.:]", part.place))
    }


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("db.migrations")])
def test_private_names_of_libraries_are_used_where_the_list_says_and_nowhere_else(module: str) -> None:
    assert {*used(source(module)), *overridden(module)} - DOCUMENTED - listed(module) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("library.thing._inside()", ["_inside"]),
        ("from library import _inside", ["_inside"]),
        ("from library._inner import inside", ["_inner"]),
        ("import library._inner", ["_inner"]),
        ("getattr(thing, '_inside', None)", ["_inside"]),
        ("class A(B):\n def f(self):\n  return self._inside", ["_inside"]),
        ("class A(B):\n def f(self):\n  self._inside += 1", ["_inside"]),
        ("class A(B):\n def __init__(self):\n  self._ours, x = 1, 2\n def f(self):\n  return self._ours", []),
        ("class A:\n def _ours(self): ...\nA()._ours()", []),
        ("from calotype.x import _ours", []),
        ("thing.__dict__", []),
    ],
)
def test_a_private_name_of_somebody_else_is_found(text: str, found: list[str]) -> None:
    assert list(used(text)) == found


def test_a_method_that_replaces_a_private_one_is_found() -> None:
    assert {"_keepalive_after", "_cap_keepalive", "murder_pending"} <= set(overridden("server"))
    assert {"_initialize", "_check_for_fat"} == set(overridden("images.formats.partitions"))
