"""Runs many commands of an unmodified client in one process, because starting it for each would take a second.

    python -m tests.compat.shells openstack < commands      one JSON list of arguments a line

What comes out is one JSON object a line: `code`, `out`, `err`.
"""

import contextlib
import io
import json
import sys
import traceback


class Terminal(io.StringIO):
    """A standard input where somebody could type."""

    def isatty(self) -> bool:
        return True


def run(client: str, arguments: list[str]) -> int:
    if client == "openstack":
        from openstackclient import shell

        return int(shell.main(arguments) or 0)
    from glanceclient.shell import OpenStackImagesShell

    OpenStackImagesShell().main(arguments)
    return 0


def main() -> None:
    client = sys.argv[1]
    answers, commands = sys.stdout, sys.stdin
    sys.stdin = Terminal()  # one that is none is an image's data to clients
    for line in commands:
        out, err = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
        code: object = 1
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = run(client, json.loads(line))
            except SystemExit as exc:
                code = 0 if exc.code is None else exc.code
            except Exception:
                traceback.print_exc()
        said = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
        print(json.dumps({"code": code, "out": said, "err": err.getvalue()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
