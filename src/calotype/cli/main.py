"""`calotype`: reads the arguments (`parser.py`), imports the one command that they name, calls it.

What goes wrong on purpose is one line on standard error. A traceback is a mistake of ours.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from calotype import errors
from calotype.cli.parser import parser

#: Exit codes, as the help tells them; and that of a shell for Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed, 2 wrong arguments or configuration; some commands have more."""
    made = parser()
    options = made.parse_args(arguments)
    if not hasattr(options, "run"):
        options.helps.print_help()
        return USAGE
    # Whatever is made is nobody else's business. Files that others may read are made so by name.
    os.umask(0o077)
    module, _, function = options.run.partition(":")
    try:
        code = int(getattr(importlib.import_module(f"calotype.cli.{module}"), function)(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads our output has seen enough, as `| head` does. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (errors.CalotypeError, OSError) as exc:
        print(f"calotype: {told(exc)}", file=sys.stderr)
        return code_of(exc)
    except (KeyboardInterrupt, EOFError):
        return INTERRUPTED


def told(exc: BaseException) -> str:
    """An error in one line."""
    if isinstance(exc, OSError):
        words = f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror or str(exc)
    else:
        # What a database says comes with its cause: it is missing, read-only, full, or not there.
        words = errors.reason(exc) if isinstance(exc, errors.Busy) else str(exc)
    return " ".join(words.split())


def code_of(exc: BaseException) -> int:
    """The exit code for an error: is it for whoever typed the command, or wrote the configuration, to mend?"""
    return USAGE if isinstance(exc, errors.ConfigError | errors.Invalid) else FAILED


if __name__ == "__main__":
    sys.exit(main())
