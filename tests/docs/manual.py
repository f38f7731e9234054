"""The manual page, made from the parser of the command line."""

import argparse
from collections.abc import Iterator

from calotype import __version__
from calotype.cli.parser import EXIT_CODES, Parser, parser


def page() -> str:
    """calotype(1), in the macros of man(7)."""
    made = parser()
    lines = [
        f'.TH CALOTYPE 1 "" "Calotype {__version__}"',
        '.\\" Made by `make samples`.',
        ".SH NAME",
        "calotype \\- an OpenStack Image service",
        ".SH SYNOPSIS",
        *_synopsis("calotype", "COMMAND [OPTIONS]"),
        ".SH DESCRIPTION",
        _text(made.description or ""),
        ".SH COMMANDS",
        *_commands(made, "calotype"),
        ".SH OPTIONS",
        "Of every command that reads the configuration:",
        *_options(_common(made)),
        ".SH EXIT STATUS",
        *_exit_codes(),
        ".SH FILES",
        *_item("/etc/calotype/calotype.conf"),
        "the configuration, where no other is named",
        *_item("/var/lib/calotype"),
        "the state directory of root, where no other is named; of others it is ~/.local/state/calotype",
        ".SH ENVIRONMENT",
        *_item("CALOTYPE_PASSWORD"),
        _text("the password that `calotype user add` and `calotype env --user` would ask for"),
        *_item("OS_GLANCE_CONFIG_DIR"),
        "the directory of glance-api.conf, instead of /etc/calotype/calotype.conf",
    ]
    return "\n".join(lines) + "\n"


def _commands(made: Parser, name: str) -> Iterator[str]:
    for word, (_, command) in made.commands.items():
        full = f"{name} {word}"
        if command.commands:
            yield from _commands(command, full)
            continue
        yield f'.SS "{_text(full)}"'
        places = [one for one in command.arguments if not one.option_strings]
        yield from _synopsis(full, " ".join(["[OPTIONS]", *(_place(one) for one in places)]))
        yield ".PP"
        yield _text((command.description or "").replace("%%", "%"))
        shared = {tuple(one.option_strings) for one in _common(parser())}
        yield from _options([one for one in command.arguments if tuple(one.option_strings) not in shared])


def _common(made: Parser) -> list[argparse.Action]:
    _, worker = made.commands["worker"]  # which has no option of its own
    return worker.arguments


def _options(actions: list[argparse.Action]) -> Iterator[str]:
    for one in actions:
        if one.option_strings:
            value = f" \\fI{_text(_value(one))}\\fR" if one.nargs != 0 else ""
            yield from _item(", ".join(one.option_strings), value)
        else:
            yield from _item(_value(one))
        yield _text((one.help or "; ".join(one.choices or ())).replace("%%", "%")) or "the name"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _place(action: argparse.Action) -> str:
    return f"[{_value(action)}]" if action.nargs == "?" else _value(action)


def _synopsis(name: str, rest: str) -> list[str]:
    return [f'.B "{_text(name)}"', _text(rest)]


def _item(name: str, more: str = "") -> list[str]:
    return [".TP", f"\\fB{_text(name)}\\fR{more}"]


def _exit_codes() -> Iterator[str]:
    for line in EXIT_CODES.splitlines()[1:]:
        code, _, words = line.strip().partition("  ")
        yield from (*_item(code), _text(words))


def _text(words: str) -> str:
    """Escaped; a line that begins with a dot or a quote would be a request."""
    escaped = " ".join(words.replace("\\", "\\e").replace("-", "\\-").split())
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
