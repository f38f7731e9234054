"""`calotype config show|check`: prints the options in force; checks whether the service can start with them."""

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from oslo_config import cfg

from calotype import app, config, config_check, errors, insides
from calotype.auth import basic
from calotype.cli import listening
from calotype.cli.common import load
from calotype.cli.main import told
from calotype.config_check import Account, Finding
from calotype.db import schema
from calotype.glance_options import Verdict
from calotype.images import places
from calotype.stores import registry
from calotype.stores.base import Identified

#: The exit code of `config check --strict` if there are doubts but no problems.
DOUBTFUL = 3
_HEADINGS = {
    Verdict.USED: "used",
    Verdict.REPLACED: "replaced",
    Verdict.WITHOUT_EFFECT: "without effect",
    Verdict.REFUSED: "would weaken protection (refused)",
    Verdict.UNKNOWN: "unknown",
}


def run_show(options: argparse.Namespace) -> int:
    conf = load(options)
    last = None
    for section, opt, value in config.values(conf):
        if section != last:
            print(f"{chr(10) if last else ''}[{section}]")
        last = section
        print(f"{opt.dest} = {_text(opt, value)}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    with _quiet():
        report = _check(options)
    (_print_json if options.json else _print)(report)
    if report.problems:
        return 1
    return DOUBTFUL if options.strict and (report.doubts or report.account.of(Verdict.UNKNOWN)) else 0


@dataclass
class _Report:
    """The findings about a configuration, as sentences. `problems` would keep the service from starting."""

    account: Account
    problems: list[str]
    doubts: list[str]
    notes: list[str]

    def problem(self, words: str) -> None:
        if words and words not in self.problems:
            self.problems.append(words)

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Turn an error of the block into a problem of the report."""
        try:
            yield
        except errors.CalotypeError as exc:
            for line in [told(exc)] if isinstance(exc, errors.Busy) else str(exc).splitlines():
                self.problem(line)
        except OSError as exc:
            self.problem(f"{told(exc)}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the log, because the report has all findings."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _check(options: argparse.Namespace) -> _Report:
    names, directories = options.config_file, options.config_dir
    if not names and not directories:
        names = config.usual_files()
    found: list[config_check.Setting] = []
    problems = [f"There is no directory {name}." for name in directories if not Path(name).is_dir()]
    sound = []
    for path in config_check.files(names, directories):
        settings, wrong = config_check.settings(path)
        found += settings
        problems += wrong
        if not wrong:
            sound.append(str(path))
    try:
        conf = config.read(sound)
    except errors.ConfigError as exc:  # whatever `settings` does not find; the report goes on without the files
        problems.append(str(exc))
        conf = config.read()
    problems += config.wrong_values(conf, mend=True)
    config.settle(conf, options.state_dir)
    account = config_check.account(conf, found)
    report = _Report(account, problems, list(account.doubts), [])
    with report.trying():
        listening.check_listening(conf)
    with report.trying():
        insides.check("gunicorn", "Linux")
    for words in app.problems(conf):
        report.problem(words)
    with report.trying():
        report.doubts += app.doubts(conf)
    with report.trying():
        _look_at_paths(conf, report)
    _look_at_database(conf, report)
    return report


def _look_at_paths(conf: cfg.ConfigOpts, report: _Report) -> None:
    """Check the directories that the service would write to, and the files that it would read."""
    report.problem(_unwritable("state_dir", Path(conf.state_dir)))
    if directory := _log_directory(conf):
        missing = f"The log cannot be written: there is no directory {directory}."
        report.problem(_unwritable("log", directory) if directory.exists() else missing)
    if conf.log_config_append and not Path(conf.log_config_append).is_file():
        report.problem(f"log_config_append: there is no file {conf.log_config_append}.")
    with report.trying():
        for store in registry.build(conf):
            if isinstance(store, Identified):
                report.problem(_unwritable(f"Store {store.name}", Path(store.place)))
    for name in ("tls_cert", "tls_key"):
        path = conf.server[name]
        if path and Path(path).is_file() and not _may(path, os.R_OK):
            report.problem(f"[server] {name} {path} may not be read by this user.")
    with report.trying():
        if "keystone" not in config.flavor(conf):
            basic.read_users(app.users_file(conf))


def _log_directory(conf: cfg.ConfigOpts) -> Path | None:
    file, directory = conf.log_file, conf.log_dir
    if not file and not directory:
        return None
    return Path(directory or "", file).absolute().parent if file else Path(directory).absolute()


def _may(path: str | Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _unwritable(name: str, path: Path) -> str:
    """Why a directory cannot be written to, or cannot be created; empty if it can."""
    existing = next(one for one in (path, *path.absolute().parents) if os.path.lexists(one))  # it or a parent
    if not existing.is_dir():
        return f"{name}: {existing} is no directory."
    if not _may(existing, os.W_OK | os.X_OK):
        done = "be written to" if existing == path else f"hold {path}"
        return f"{name}: {existing} may not {done} by this user."
    return ""


def _look_at_database(conf: cfg.ConfigOpts, report: _Report) -> None:
    """Check the schema, and the identities of the stores. A missing SQLite file is not created."""
    own = conf.database.connection is None
    with report.trying():
        database = app.database(conf)
        if (file := app.database_file(conf)) is not None:
            if not file.exists():
                if own:
                    report.notes.append(f"calotype serve will make the database {file}.")
                else:
                    report.problem(f"[database] connection: there is no file {file}; run: calotype db sync")
                    report.problem(_unwritable("[database] connection", file.parent))
                return
            if not _may(file, os.R_OK | os.W_OK):
                report.problem(f"[database] connection: {file} may not be read and written by this user.")
                return
        try:
            if own and schema.pending(database):
                report.notes.append("calotype serve will upgrade the database.")
                return
            schema.require_current(database)
        finally:
            database.close()
        if report.problems:
            report.notes.append("Where the data of the stores is was not looked at: mend the rest first.")
            return
        built = app.App(conf)
        try:
            for verdict in places.recognise(built.service, change=False):
                if not verdict.ready:
                    report.problem(f"Store {verdict.store} takes no writes: {verdict.words}")
            for unserved in places.unserved(built.service):
                report.problem(str(unserved))
        finally:
            built.db.close()


def _print(report: _Report) -> None:
    for source, found in groupby(report.account.findings, attrgetter("source")):
        here = list(found)
        print(f"{source}:")
        for verdict in Verdict:
            if some := [one for one in here if one.verdict is verdict]:
                print(f"  {_HEADINGS[verdict]}:", *(f"    {line}" for line in _lines(some)), sep="\n")
        print()
    for heading, sentences in (("Problems", report.problems), ("Doubts", report.doubts), ("Notes", report.notes)):
        if sentences:
            print(f"{heading}:", *(f"  {one}" for one in sentences), "", sep="\n")
    number = len(report.problems)
    if number:
        print(f"The configuration cannot be served: {number} {'problem' if number == 1 else 'problems'}.")
    else:
        print("The configuration can be served.")


def _lines(findings: list[Finding]) -> Iterator[str]:
    """The lines of the report. Options with the same remark share a line, as do those of a section without a remark."""
    lines: dict[str, dict[str, list[str]]] = {}
    for one in findings:
        sections = lines.setdefault(one.words or f"[{one.section}]", {})
        sections.setdefault(one.section, []).append(one.option)
    for words, sections in lines.items():
        names = "; ".join(f"[{section}] {', '.join(dict.fromkeys(some))}" for section, some in sections.items())
        yield names if words.startswith("[") and words.endswith("]") else f"{names}: {words}"


def _print_json(report: _Report) -> None:
    said = {
        "ready": not report.problems,
        "options": [asdict(finding) for finding in report.account.findings],
        "problems": report.problems,
        "doubts": report.doubts,
        "notes": report.notes,
    }
    print(json.dumps(said, indent=2))


def _text(opt: cfg.Opt, value: object) -> str:
    if value is None:
        return "<unset>"
    if opt.secret:
        return "<hidden>"
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
