"""What is made of the parser: help, completion, the manual page; and how soon."""

import importlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calotype.auth import basic
from calotype.cli import completion, parser
from tests.cli.conftest import Run
from tests.docs import samples

COMMANDS = list(completion.commands())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["serve", "--help"], ["completion", "bash"]])
def test_what_needs_no_service_imports_nothing_of_it_and_is_soon_there(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from calotype.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout
        imported = set(done.stderr.split())
        assert not imported & {"oslo_config", "sqlalchemy", "falcon", "gunicorn", "yaml", "bcrypt", "ssl"}
    assert min(seconds) < 0.3


def test_every_command_has_the_function_that_it_names() -> None:
    for command in COMMANDS:
        if not command.commands:
            options = ["NAME", "--project", "x"] if command.path[-1] == "add" else []
            last = command.path[-1]
            if (
                last in ("remove", "adopt", "relocate", "show", "retry", "cancel", "drop")
                and command.path[0] != "config"
            ):
                options = ["x"]
            options = ["bash"] if last == "completion" else options
            run = parser.parser().parse_args([*command.path, *options]).run
            module, _, function = run.partition(":")
            assert callable(getattr(importlib.import_module(f"calotype.cli.{module}"), function))


def test_the_roles_of_the_parser_are_those_that_there_are() -> None:
    assert (*basic.ROLES, "service") == parser.ROLES


def test_everything_is_explained() -> None:
    for command in COMMANDS[1:]:
        assert command.help, command.path
        for argument in command.arguments:
            assert argument.help or not argument.names, (command.path, argument)


# --- completion ------------------------------------------------------------------------------------------

TYPED = {
    "": {name for name, _ in COMMANDS[0].commands} | {"-h", "--help", "--version"},
    "st": {"status", "store"},
    "user ": {"add", "list", "remove", "-h", "--help"},
    "db ch": {"check"},
    "store verify --js": {"--json"},
    "user add --role m": {"manager", "member"},
    "user add --state-dir d": {"directory"},
    "user add --project ": set(),
    "serve --bind": {"--bind"},
    "completion ": {"bash", "zsh", "fish", "-h", "--help"},
    "db load-metadefs f": {"file.json"},
    "serve --config-file f": {"file.json"},
}


@pytest.mark.parametrize("typed", TYPED)
def test_bash_completes(run: Run, tmp_path: Path, typed: str) -> None:
    (tmp_path / "script").write_text(run("completion", "bash").out)
    (tmp_path / "directory").mkdir()
    (tmp_path / "file.json").touch()
    words = ["calotype", *typed.split(" ")]
    listed = " ".join(f"'{word}'" for word in words)
    asked = f"source ./script; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _calotype; printf '%s\\n' ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == TYPED[typed]


@pytest.mark.parametrize("shell", parser.SHELLS)
def test_a_shell_can_read_its_script(run: Run, tmp_path: Path, shell: str) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", shell).out)
    for command in COMMANDS:
        for name, _ in command.commands:
            assert name in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes(run: Run, tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "script").write_text(run("completion", "fish").out)
    for typed, wanted in {
        "st": {"status", "store"},
        "db ch": {"check"},
        "user add --role m": {"manager", "member"},
    }.items():
        asked = f"source {tmp_path}/script; complete -C 'calotype {typed}'"
        done = subprocess.run(["fish", "--no-config", "-c", asked], capture_output=True, text=True, timeout=60)
        assert {line.partition("\t")[0] for line in done.stdout.splitlines()} == wanted


# --- the manual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lint", [["groff", "-man", "-ww", "-z"], ["mandoc", "-T", "lint", "-W", "warning"]], ids=lambda one: one[0]
)
def test_the_manual_page_has_no_mistake(lint: list[str]) -> None:
    if shutil.which(lint[0]) is None:
        pytest.skip(f"{lint[0]} is not installed")
    done = subprocess.run([*lint, samples.MANUAL], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_manual_page_has_every_command_and_option() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    command = ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=300n", samples.MANUAL]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ}).stdout
    for one in COMMANDS:
        if one.path and not one.commands:
            assert " ".join(("calotype", *one.path)) in text
        for argument in one.arguments:
            for name in argument.names:
                assert name in text or name == "--version", (one.path, name)


# --- exit codes ------------------------------------------------------------------------------------------


def test_who_reads_no_further_is_no_mistake(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m calotype.cli.main config show --state-dir {tmp_path} | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "[DEFAULT]\n"
    assert done.returncode in (0, 141)  # or it was quicker than its reader
