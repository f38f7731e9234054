"""`calotype completion bash|zsh|fish`: prints a script by which the shell completes the commands of `parser.py`.

The script has a table of what may follow each command, so completing starts no Python.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from calotype.cli.parser import Parser, parser

#: Placeholders in the help that stand for files.
_FILES = frozenset(("F", "FILE", "PATH"))
_DIRECTORIES = frozenset(("D", "DIR"))


@dataclass(frozen=True)
class Argument:
    """An option, or, without names, a positional argument. `values` are its possible values."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...] = ()
    files: bool = False
    directories: bool = False


@dataclass(frozen=True)
class Command:
    """A command, by its words after `calotype`, and what may follow it."""

    path: tuple[str, ...]
    help: str
    commands: tuple[tuple[str, str], ...]  #: names and help
    arguments: tuple[Argument, ...]


def run(options: argparse.Namespace) -> int:
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](list(commands())), end="")
    return 0


def commands() -> Iterator[Command]:
    """Every command of the parser, outer ones first."""
    yield from _commands(parser(), (), "")


def _commands(made: Parser, path: tuple[str, ...], words: str) -> Iterator[Command]:
    listed = tuple((name, below) for name, (below, _) in made.commands.items())
    yield Command(path, words, listed, tuple(map(_argument, made.arguments)))
    for name, (below, command) in made.commands.items():
        yield from _commands(command, (*path, name), below)


def _argument(action: argparse.Action) -> Argument:
    names = tuple(name for name in action.option_strings if "_" not in name)
    placeholder = action.metavar if isinstance(action.metavar, str) else ""
    return Argument(
        names,
        (action.help or "").replace("%%", "%"),
        action.nargs != 0,
        tuple(map(str, action.choices or ())),
        placeholder in _FILES,
        placeholder in _DIRECTORIES,
    )


# --- bash ------------------------------------------------------------------------------------------------


def _bash(found: list[Command]) -> str:
    """The script for bash. It looks up the next words by the commands typed so far."""
    paths = "|".join(f'"{" ".join(one.path)}"' for one in found if one.path)
    cases = []
    for one in found:
        words = [name for name, _ in one.commands]
        words += [name for argument in one.arguments for name in argument.names]
        words += [value for argument in one.arguments if not argument.names for value in argument.values]
        files = any(not argument.names and argument.files for argument in one.arguments)
        cases.append(f'        "{" ".join(one.path)}") words="{" ".join(words)}"{" files=-f" if files else ""};;')
    values = {}
    for one in found:
        for argument in one.arguments:
            for name in argument.names if argument.takes_value else ():
                values[name] = (
                    f'-W "{" ".join(argument.values)}"' if argument.values
                    else "-d" if argument.directories else "-f" if argument.files else '-W ""'
                )  # fmt: skip
    taking = [f'        {name}) COMPREPLY=($(compgen {how} -- "$current")); return;;' for name, how in values.items()]
    lines = [
        "# Completion of calotype for bash, made by `calotype completion bash`.",
        "_calotype() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" path="" words="" files="" word i',
        '    case "${COMP_WORDS[COMP_CWORD-1]}" in',
        *taking,
        "    esac",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        word="${path:+$path }${COMP_WORDS[i]}"',
        f'        case "$word" in {paths}) path="$word";; esac',
        "    done",
        '    case "$path" in',
        *cases,
        "    esac",
        '    COMPREPLY=($(compgen $files -W "$words" -- "$current"))',
        "}",
        "complete -o filenames -F _calotype calotype",
    ]
    return "\n".join(lines) + "\n"


# --- zsh -------------------------------------------------------------------------------------------------


def _zsh(found: list[Command]) -> str:
    """The script for zsh: a function for each command, which calls `_arguments`."""
    lines = ["#compdef calotype", "# Completion of calotype for zsh, made by `calotype completion zsh`.", ""]
    for one in found:
        specs = [spec for argument in one.arguments for spec in _zsh_specs(argument)]
        if one.commands:
            specs += ["'1: :->command'", "'*:: :->rest'"]
        lines += [f"{_zsh_name(one.path)}() {{", "    local state line", "    _arguments -C \\"]
        lines += [f"        {spec} \\" for spec in specs[:-1]] + [f"        {specs[-1]}"]
        if one.commands:
            lines += ["    case $state in"]
            lines += ["    command) local -a commands; commands=("]
            lines += [f"        {_quoted(name + ':' + _plain(words))}" for name, words in one.commands]
            lines += ["        ); _describe command commands;;", "    rest) case $line[1] in"]
            lines += [f"        {name}) {_zsh_name((*one.path, name))};;" for name, _ in one.commands]
            lines += ["        esac;;", "    esac"]
        lines += ["}", ""]
    lines += ['if [[ "$funcstack[1]" = _calotype ]]; then _calotype "$@"; else compdef _calotype calotype; fi']
    return "\n".join(lines) + "\n"


def _zsh_name(path: tuple[str, ...]) -> str:
    return "_" + "_".join(("calotype", *path)).replace("-", "_")


def _zsh_specs(argument: Argument) -> list[str]:
    action = ":_files" if argument.files else ":_files -/" if argument.directories else ": "
    if argument.values:
        action = f":({' '.join(argument.values)})"
    value = f":value{action}" if argument.takes_value else ""
    if not argument.names:
        return [_quoted(f"*:value{action}")]
    words = re.sub(r"([\[\]:])", r"\\\1", _plain(argument.help))
    return [_quoted(f"*{name}[{words}]{value}") for name in argument.names]


# --- fish ------------------------------------------------------------------------------------------------


def _fish(found: list[Command]) -> str:
    """The script for fish: a line for each word, with the condition under which it is offered."""
    lines = ["# Completion of calotype for fish, made by `calotype completion fish`.", "complete -c calotype -f"]
    for one in found:
        conditions = [f"__fish_seen_subcommand_from {word}" for word in one.path]
        if one.commands:
            conditions.append(f"not __fish_seen_subcommand_from {' '.join(name for name, _ in one.commands)}")
        when = f" -n {_quoted('; and '.join(conditions))}" if conditions else ""
        for name, words in one.commands:
            lines.append(f"complete -c calotype{when} -a {name} -d {_quoted(_plain(words))}")
        for argument in one.arguments:
            lines.append(f"complete -c calotype{when}{_fish_argument(argument)}")
    return "\n".join(lines) + "\n"


def _fish_argument(argument: Argument) -> str:
    said = ""
    for name in argument.names:
        said += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if argument.names and argument.takes_value:
        said += " -r" if argument.files or argument.directories else " -x"  # x: it takes a value, and no file
    if argument.values:
        said += f" -a {_quoted(' '.join(argument.values))}"
    elif argument.files:
        said += " -F"
    elif argument.directories:
        said += " -a '(__fish_complete_directories)'"
    return f"{said} -d {_quoted(_plain(argument.help))}"


def _plain(words: str) -> str:
    return words.replace("`", "")


def _quoted(words: str) -> str:
    """In single quotes, for zsh and fish. Quotes inside are removed, because the two shells escape them differently."""
    return "'" + words.replace("'", "") + "'"
