"""What the documents say of options, errors, routes, layers, files and targets is what the code says."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from oslo_config import cfg

from calotype import config, glance_options, policy
from calotype.api.errors import STATUS
from calotype.api.routes import ROUTES
from calotype.auth.basic import ROLES
from calotype.cli.main import main
from calotype.db import jobs, leases, tables, watch
from calotype.glance_options import Verdict
from calotype.images import work
from calotype.jobs import worker
from calotype.model import Job
from calotype.stores.registry import COMMON
from tests.docs import manual, samples
from tests.support import free_port

ROOT = samples.ROOT
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/*.md")])
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MAKE = re.compile(r"\bmake ([a-z]+)")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def code(text: str) -> str:
    """All that a document shows as code: blocks and quoted words."""
    return "\n".join([*_BLOCK.findall(text), *re.findall(r"`([^`]+)`", _BLOCK.sub("", text))])


def section(text: str, heading: str) -> str:
    """What stands between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$\n", text, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    rest = text[found.end() :]
    end = _HEADING.search(rest)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without headings and quotes."""
    found = []
    lines = text.splitlines()
    for place, line in enumerate(lines):
        following = lines[place + 1] if place + 1 < len(lines) else ""
        if not line.startswith("|") or re.match(r"^\|[-| ]+\|$", line) or re.match(r"^\|[-| ]+\|$", following):
            continue
        cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
        found.append([cell.strip().strip("`").replace("\\|", "|") for cell in cells])
    return found


# --- samples ---------------------------------------------------------------------------------------------


def test_the_sample_configuration_is_what_the_code_makes() -> None:
    assert samples.CONFIG.read_text() == samples.config_sample(), "run: make samples"


def test_the_sample_policy_is_what_the_code_makes() -> None:
    assert samples.POLICY.read_text() == samples.policy_sample(), "run: make samples"


def test_the_description_of_the_api_is_what_the_code_makes() -> None:
    assert samples.OPENAPI.read_text() == samples.openapi_document(), "run: make samples"


def test_the_manual_page_is_what_the_code_makes() -> None:
    assert samples.MANUAL.read_text() == manual.page(), "run: make samples"


def test_the_samples_change_nothing_when_they_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(samples.POLICY.read_text())
    plain, sampled = config.load(search=False), config.load([str(samples.CONFIG)])
    assert [value for *_, value in config.values(sampled)] == [value for *_, value in config.values(plain)]
    sampled = config.load([str(samples.CONFIG)], [str(tmp_path)])
    policy.Policy(sampled)


# --- options ---------------------------------------------------------------------------------------------


def option_tables() -> Iterator[tuple[str, list[cfg.Opt]]]:
    for group, options in config.GROUPS.items():
        yield f"[{group}]", options
    yield "Every store", COMMON
    for kind, options in samples.kinds().items():
        yield f"A store of type {kind}", options


@pytest.mark.parametrize(("heading", "options"), list(option_tables()))
def test_every_option_is_documented_with_its_default_and_nothing_else_is(heading: str, options: list[cfg.Opt]) -> None:
    documented = rows(section(read("docs/operate/configure.md"), heading))
    assert [row[:2] for row in documented] == [[option.dest, samples.default(option)] for option in options]
    assert all(len(row) == 3 and row[2] for row in documented)


def test_no_section_is_documented_that_does_not_exist() -> None:
    wanted = {heading for heading, _ in option_tables()}
    text = read("docs/operate/configure.md")
    headings = [line.lstrip("# ") for line in text.splitlines() if _HEADING.match(line)]
    assert {heading for heading in headings if rows(section(text, heading))} == wanted


_UNITS = re.compile(r"seconds?|minutes|hours|days|bytes|KiB|MiB|GiB|characters|octal", re.IGNORECASE)


@pytest.mark.parametrize(("heading", "options"), list(option_tables()))
def test_an_option_is_documented_in_the_unit_that_its_help_tells(heading: str, options: list[cfg.Opt]) -> None:
    for row, option in zip(rows(section(read("docs/operate/configure.md"), heading)), options, strict=True):
        assert set(_UNITS.findall(row[2])) == set(_UNITS.findall(option.help or "")), option.dest


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_are_named_with_their_section_exist(document: Path) -> None:
    known = {section: {option.dest for option in options} for section, options in config.GROUPS.items()}
    for section, options in glance_options.sections().items():
        if section in known:  # the others are sections of libraries, which have more than these
            known[section] |= set(options)
    known.pop("DEFAULT")  # has oslo.log's as well
    known.pop("oslo_limit")  # has those of keystoneauth as well
    for group, option in re.findall(r"`\[(\w+)\] (\w+)`", document.read_text()):
        assert option in known.get(group, {option}), f"[{group}] {option}"


def test_the_options_that_are_shown_are_the_documented_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.conf").touch()
    assert main(["config", "show", "--config-file", str(tmp_path / "empty.conf")]) == 0
    shown = re.findall(r"^\[\w+\]", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted(heading for heading, _ in option_tables() if heading.startswith("["))


def test_what_is_refused_at_the_start_is_documented_wherever_that_is_the_subject() -> None:
    fates = [one for options in glance_options.sections().values() for one in options.items()]
    refused = {name for name, fate in fates if fate.verdict is Verdict.REFUSED}
    absent = section(read("SECURITY.md"), "What this release does not do")
    assert set(re.findall(r"`(\w+)[^`]*` is set", absent)) == refused
    assert all(re.search(rf"`{name}\b", read("docs/operate/configure.md")) for name in refused)


# --- commands --------------------------------------------------------------------------------------------

_COMMAND = re.compile(r"(?<!exec )\bcalotype (?!calotype)([a-z]+)(?: ([a-z][a-z-]+))?((?: [^`\s|&;>#]+)*)")
_GROUPS = ("config", "db", "job", "store", "user")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, second, rest in set(_COMMAND.findall(code(document.read_text()))):
        words = [verb, second] if verb in _GROUPS and second else [verb]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        shown = capsys.readouterr()
        assert ended.value.code == 0, f"calotype {' '.join(words)}: {shown.err}"
        for option in re.findall(r" (--[a-z-]+)", rest):
            assert option in shown.out, f"calotype {' '.join(words)} {option}"


def test_the_log_goes_to_standard_output_and_words_to_people_to_standard_error(tmp_path: Path) -> None:
    where = ["--state-dir", str(tmp_path), "--bind", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen(
        [sys.executable, "-m", "calotype.cli.main", "serve", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as service:
        try:
            assert service.stderr
            assert service.stdout
            greeting = service.stderr.readline()
        finally:
            service.terminate()
        log = service.stdout.read()
    assert greeting.startswith("Calotype serves on")
    assert " INFO gunicorn.error " in log
    for document in ("docs/operate/install.md", "docs/operate/configure.md", "docs/operate/logs.md"):
        assert "standard output" in read(document), document


# --- the API ---------------------------------------------------------------------------------------------


def test_every_error_is_documented_with_its_status_and_nothing_else_is() -> None:
    documented = [(row[0], row[1]) for row in rows(section(read("docs/api/errors.md"), "Statuses"))]
    assert documented == [(kind.__name__, str(status)) for kind, status in STATUS]


def test_every_route_is_documented_and_nothing_else_is() -> None:
    documented = rows(read("docs/api/routes.md"))
    assert [(row[0], row[1]) for row in documented] == [(route.method, route.path) for route in ROUTES]
    assert [row[2] == "open" for row in documented] == [route.open for route in ROUTES]
    for row in documented:
        assert len(row) == 5, row
        assert set(re.findall(r"\w+", row[2])) <= {*policy.RULES, "open", "none", "and", "of"}, row


def test_the_status_of_a_route_is_one_that_the_description_of_the_api_has() -> None:
    paths = json.loads(samples.OPENAPI.read_text())["paths"]
    for method, path, _, status, _ in rows(read("docs/api/routes.md")):
        assert status in paths[path][method.lower()]["responses"], f"{method} {path}"


def test_what_the_glossary_calls_absent_has_no_route() -> None:
    absent = [row[0] for row in rows(read("docs/glossary.md")) if "Not in this release" in row[1]]
    assert absent
    # an empty list of import methods is all that there is of imports
    served = {word for route in ROUTES if route.path != "/v2/info/import" for word in re.findall(r"[a-z]+", route.path)}
    for word in re.findall(r"[a-z]+", " ".join(absent)):
        assert not {word, f"{word}s"} & served, word


def test_the_floor_of_the_policy_is_documented_as_it_is() -> None:
    documented = rows(section(read("docs/operate/policy.md"), "The floor"))
    assert {row[0] for row in documented} == policy._FLOOR


def test_the_rules_that_are_asked_are_documented_as_they_are() -> None:
    documented = {row[0] for row in rows(section(read("docs/operate/policy.md"), "Rules that this release asks"))}
    paths = [path for part in ("images", "metadefs") for path in (ROOT / "src" / "calotype" / part).glob("*.py")]
    source = "\n".join(path.read_text() for path in paths)
    asked = {name for name in policy.RULES if f'"{name}"' in source} | {"context_is_admin"}
    assert documented == asked


def test_every_event_is_documented_and_nothing_else_is() -> None:
    table = section(read("docs/operate/notifications.md"), "Events")
    documented = re.findall(r"`(image\.[a-z.]+|task\.create)`", "".join(re.findall(r"^\|[^|]+\|", table, re.MULTILINE)))
    files = [ROOT / "src/calotype/events.py", *(ROOT / "src/calotype/images").glob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    assert sorted(documented) == sorted(set(re.findall(r'"(image\.[a-z.]+|task\.create)"', source)))


def test_the_times_of_jobs_are_documented_as_they_are() -> None:
    documented = [float(row[1]) for row in rows(section(read("docs/operate/jobs.md"), "Times"))]
    poll = next(option.default for option in config.JOBS if option.dest == "poll")
    failed = [Job("id", "delete", "image", 1, None, {}, failures=failures) for failures in (0, 1, 99)]
    tries = [*map(jobs.backoff, failed), work.backoff(failed[0])]
    beat = leases._BEAT_SECONDS
    transfers = [work.CHECK_SECONDS, work.PROGRESS_SECONDS]
    moments = [leases.LEASE, beat, watch.LONGEST_STEP, poll, *transfers, *tries, worker._SWEEP_SECONDS]
    assert documented == [one.total_seconds() if isinstance(one, timedelta) else one for one in moments]


def test_the_roles_are_documented_in_their_order() -> None:
    documented = [row[0] for row in rows(section(read("docs/operate/policy.md"), "Users and roles"))]
    assert documented == [*ROLES, "service"]


# --- the code --------------------------------------------------------------------------------------------


def test_the_layers_are_those_that_lint_checks() -> None:
    block = re.search(r"```layers\n(.*?)```", read("ARCHITECTURE.md"), re.DOTALL)
    assert block
    drawn = [re.split(r"  +", line)[0] for line in block[1].splitlines()]
    contract = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    assert drawn == [layer.replace("calotype.", "") for layer in contract["layers"]]


def test_every_file_that_is_named_exists() -> None:
    named = re.compile(r"[\w./-]+\.(?:py|toml|md|sample)|(?:src|tests|docs|etc|bench|changes)/[\w./-]*")
    here = ("", "src/calotype/", "docs/")
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/contribute/testing.md"):
        for name in named.findall(code(read(document))):
            if "your" in name or "NNNN" in name:  # what a recipe asks the reader to write
                continue
            assert any((ROOT / place / name).exists() for place in here), f"{document} names {name}"


def test_every_name_is_in_the_file_in_which_the_text_says_that_it_is() -> None:
    text = read("ARCHITECTURE.md") + read("CONTRIBUTING.md")
    found = re.findall(r"((?:`\w+`(?:, | and )?)+) (?:in|of) `([\w/.]+\.py)`", text)
    assert len(found) > 40, "the texts say it in another way"
    for names, file in found:
        path = next(path for path in (ROOT / "src/calotype" / file, ROOT / file) if path.exists())
        for name in re.findall(r"\w+", names):
            assert re.search(rf'(?:def|class) {name}\b|\b{name}\b.*[=:]|"{name}"', path.read_text()), (
                f"{name} in {file}"
            )


def test_every_table_of_ours_is_documented() -> None:
    ours = {name for name in tables.metadata.tables if name.startswith("calotype_")}
    ours |= {"calotype_version", "calotype_revision", "calotype_object"}  # alembic's, and two columns
    assert set(re.findall(r"`(calotype_\w+)`", read("docs/operate/database.md"))) == ours


# --- the documents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(document.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert set(_MAKE.findall(code(document.read_text()))) <= targets


def test_the_front_page_names_the_commands_that_people_look_for() -> None:
    readme = read("README.md")
    for command in ("make serve", "make test", "make lint", "pip install .", "calotype serve"):
        assert command in readme
    assert len(readme.splitlines()) <= 90


def test_the_front_page_links_every_document() -> None:
    linked = {
        (ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(read("README.md")) if "://" not in link
    }
    reference = ROOT / "docs/api/reference"  # its README leads to the rest
    apart = {ROOT / "README.md", *(ROOT / "changes").iterdir(), *reference.iterdir()} - {reference / "README.md"}
    assert [str(path) for path in DOCUMENTS if path not in linked | apart] == []


_FIGURE = re.compile(r"\b(?:million|thousand|hundred|\d[\d,.]*[ -]?(?:s|ms|[KMGT]iB|images|times|users))\b|\d ?%")


def test_a_figure_on_the_front_page_has_a_command_that_reproduces_it() -> None:
    for paragraph in re.split(r"\n(?=- |\n)", _BLOCK.sub("", read("README.md"))):
        if _FIGURE.search(re.sub(r"`[^`]*`", "", paragraph)):
            assert re.search(r"`(?:make [a-z]+|python -m )", paragraph), paragraph
