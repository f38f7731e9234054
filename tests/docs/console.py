"""Console sessions of the documents: what is typed after `$ `, and the answer that is shown below it.

    $ curl -i "$IMAGES/v2/images/$IMAGE"
    HTTP/1.1 200 OK
    Content-Type: application/json

    {"id": "…", "size": …, "tags": ["linux", …], …}

`play` types the commands of a session into one shell, so that a variable that is set by one is there for the next,
and `differences` says where an answer is not what is shown. `…` stands for anything: in a text for some of it, as a
value for any value, among the entries of an array or the members of an object for those that are left out. Nothing
else may be missing or too much, but for headers: those that are shown must be there.
"""

import json
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|[\[\]{}:,]|…|[^\s\[\]{}:,…"]+')
_ANY = "\ue000"  #: in place of a value that may be any
_REST = "\ue001"  #: in place of entries or members that are left out


@dataclass(frozen=True)
class Step:
    """A command, of one line or more, and the lines below it."""

    command: str
    shown: str


def steps(text: str) -> list[Step]:
    """What is done in the blocks of a document that are marked `console`."""
    return [step for _, block in _BLOCK.findall(text) for step in _steps(textwrap.dedent(block).splitlines())]


def _steps(lines: Sequence[str]) -> Iterator[Step]:
    place = 0
    while place < len(lines):
        assert lines[place].startswith("$ "), f"a command begins with `$ `: {lines[place]!r}"
        command = [lines[place].removeprefix("$ ")]
        while _goes_on("\n".join(command)):
            place += 1
            command.append(lines[place])
        place += 1
        start = place
        while place < len(lines) and not lines[place].startswith("$ "):
            place += 1
        yield Step("\n".join(command), "\n".join(lines[start:place]).strip())


def _goes_on(command: str) -> bool:
    if found := re.search(r"<<'?(\w+)", command):  # a here-document, to the line that ends it
        return command.splitlines()[-1] != found[1]
    try:
        shlex.split(command)
    except ValueError:  # a quote that is not closed, a backslash at the end
        return True
    return False


def play(
    steps: Sequence[Step],
    directory: Path,
    environment: Mapping[str, str],
    shell: Sequence[str] = ("bash", "-c"),
    seconds: float = 60,
) -> list[str]:
    """The output of each command, typed one after the other in a directory. A command that fails ends it there."""
    lines = [f"{step.command}\ncode=$?; printf '\\036'; [ $code = 0 ] || exit $code" for step in steps]
    done = subprocess.run(
        [*shell, "\n".join(lines)],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    outputs = done.stdout.split("\036")[:-1]
    last = f"$ {steps[len(outputs) - 1].command}" if outputs else "before the first command"
    assert done.returncode == 0, f"{last}\n{outputs[-1:]}\n{done.stderr}"
    return outputs


def differences(shown: str, got: str) -> list[str]:
    """Where what came is not what is shown."""
    if not shown.startswith("HTTP/"):
        return _text(shown, got.strip(), "output")
    (status, headers, body), (real_status, real_headers, real_body) = _answer(shown), _answer(got)
    found = [] if status == real_status else [f"status: {real_status!r}, not {status!r}"]
    for name, value in headers.items():
        found += _text(value, real_headers.get(name, "(none)"), name)
    if body.startswith(("{", "[")):
        try:
            return found + list(_json(read(body), json.loads(real_body), "body"))
        except json.JSONDecodeError as exc:
            return [*found, f"body: {exc}: {real_body!r}"]
    return found + _text(body, real_body, "body")


def _answer(text: str) -> tuple[str, dict[str, str], str]:
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    if head.startswith("HTTP/1.1 100 "):  # go on and send the body
        return _answer(body)
    status, *fields = head.splitlines()
    pairs = (field.partition(":") for field in fields)
    return status.strip(), {name.lower(): value.strip() for name, _, value in pairs}, body.strip()


def read(text: str) -> Any:
    """JSON in which `…` stands for what is not shown."""
    whole, opened, last = [], [], ""
    for token in _TOKEN.findall(text):
        if token in "{[":
            opened.append(token)
        elif token in "}]":
            opened.pop()
        if token != "…":
            whole.append(token)
        elif last != ":" and opened[-1] == "{":
            whole.append(f'"{_REST}": 0')
        else:
            whole.append(f'"{_ANY if last == ":" else _REST}"')
        last = token.strip() or last
    return json.loads("".join(whole))


def _json(shown: Any, got: Any, where: str) -> Iterator[str]:
    if shown == _ANY:
        return
    if isinstance(shown, dict) and isinstance(got, dict):
        for name in [name for name in shown if name != _REST]:
            if name in got:
                yield from _json(shown[name], got[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is shown, and is not there"
        if _REST not in shown:
            yield from (f"{where}.{name} is there, and is not shown" for name in got if name not in shown)
    elif isinstance(shown, list) and isinstance(got, list):
        wanted = [one for one in shown if one != _REST]
        if len(wanted) == len(got) or (len(wanted) < len(got) and _REST in shown):
            for place, one in enumerate(wanted):
                yield from _json(one, got[place], f"{where}[{place}]")
        else:
            yield f"{where} has {len(got)} entries, not {len(wanted)}"
    elif isinstance(shown, str) and isinstance(got, str):
        yield from _text(shown, got, where)
    elif shown != got or type(shown) is not type(got):
        yield f"{where}: {got!r}, not {shown!r}"


def _text(shown: str, got: str, where: str) -> list[str]:
    pattern = ".*".join(map(re.escape, shown.split("…")))
    return [] if re.fullmatch(pattern, got, re.DOTALL) else [f"{where}: {got!r}, not {shown!r}"]
