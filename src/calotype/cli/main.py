"""`calotype`: parses the arguments (`parser.py`), imports the module of the command, and calls it.

An expected error is printed as one line on standard error. A traceback is a bug.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from calotype import errors
from calotype.cli.parser import parser

#: Exit codes, as in the help; `INTERRUPTED` is the one that shells use for Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 1 failed, 2 wrong arguments or configuration; some have more."""
    made = parser()
    options = made.parse_args(arguments)
    if not hasattr(options, "run"):
        options.helps.print_help()
        return USAGE
    # New files are private. Files that others may read get their permissions explicitly.
    os.umask(0o077)
    module, _, function = options.run.partition(":")
    try:
        code = int(getattr(importlib.import_module(f"calotype.cli.{module}"), function)(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of the output has closed it, as `| head` does. Else Python would report this once more at exit.
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
        words = str(exc)
        if isinstance(exc, errors.Busy) and (cause := _root(exc)) is not exc:
            # What the database itself says: it is missing, read-only, full or not reachable.
            words = f"{words.rstrip('.')} ({cause.args[-1] if cause.args else cause})."
    return " ".join(words.split())


def _root(exc: BaseException) -> BaseException:
    return exc if exc.__cause__ is None else _root(exc.__cause__)


def code_of(exc: BaseException) -> int:
    """The exit code for an error: 2 if the arguments or the configuration have to be corrected, else 1."""
    return USAGE if isinstance(exc, errors.ConfigError | errors.Invalid) else FAILED


if __name__ == "__main__":
    sys.exit(main())
