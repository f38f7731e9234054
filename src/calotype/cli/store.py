"""`calotype store list|verify|adopt|relocate`: where stores are, and whether every copy is what its record says."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from oslo_config import cfg

from calotype import app, errors
from calotype.cli.common import load, require_database, set_up_log
from calotype.cli.main import USAGE, code_of, told
from calotype.db import audit, schema
from calotype.images import checking, places
from calotype.images.checking import WRONG, Finding, Problem, Selection, Tally
from calotype.service import Service
from calotype.stores.base import Identified


def run_verify(options: argparse.Namespace) -> int:
    first, last, parts = options.share
    what = Selection(tuple(options.store), tuple(options.image), parts, first, last)
    try:
        with service(options, what) as svc:
            tally, progress = Tally(), Progress(svc, what, options.rate)
            found = list(shown(checking.verify(svc, what, tally, progress.read), progress, options.json))
    except errors.CalotypeError as exc:
        return failed(exc)
    summarize(found, tally, options.json)
    return code(found)


def run_list(options: argparse.Namespace) -> int:
    with current_service(load(options)) as svc:
        for one in store_facts(svc):
            print(json.dumps(one) if options.json else store_line(one))
    return 0


@contextmanager
def current_service(conf: cfg.ConfigOpts) -> Iterator[Service]:
    """The configured service for a command that only looks: unlike `service` it does not look at the stores' places."""
    require_database(conf)
    svc = app.App(conf).service
    with closing(svc.db):
        schema.require_current(svc.db)
        yield svc


def store_facts(svc: Service) -> Iterator[dict[str, Any]]:
    """The facts about each store, in the order of the configuration. `free` and `total` are bytes."""
    verdicts = {one.store: one for one in places.recognise(svc, change=False)}
    for store in svc.stores:
        health, verdict = store.check(), verdicts.get(store.name)
        yield {
            "name": store.name,
            "type": store.kind,
            "default": store.name == svc.stores.default,
            "place": store.place if isinstance(store, Identified) else None,
            "identity": store.identity if isinstance(store, Identified) else None,
            "ok": health.ok and (verdict is None or verdict.ready),
            "free": health.free,
            "total": health.total,
            "words": (verdict.words if verdict else "") or health.error or "",
        }


def store_line(facts: dict[str, Any]) -> str:
    """The facts about a store as a line for people."""
    free, total = facts["free"], facts["total"]
    room = f"{free >> 30} of {total >> 30} GiB free" if free and total else ""
    state = "ok" if facts["ok"] else "TAKES NO WRITES"
    name = f"{facts['name']} (default)" if facts["default"] else facts["name"]
    return "  ".join(filter(None, [name, facts["type"], facts["place"] or "", room, state, facts["words"]]))


def run_adopt(options: argparse.Namespace) -> int:
    with _built(load(options)) as svc:
        print(places.adopt(svc, options.name))
    return 0


def run_relocate(options: argparse.Namespace) -> int:
    done, remaining = 0, 0
    with _built(load(options)) as svc:
        for one in places.relocate(svc, options.name, options.origin, change=not options.dry_run):
            done, remaining = done + one.done, remaining + (not one.done)
            if not one.done:
                words = f"its data is not in store {options.name} as the record says"
                print(f"image {one.image_id}: {words}", file=sys.stderr)
    would = "would have" if options.dry_run else "have"
    print(f"{done} copies {would} a new location; {remaining} are not there and stay as they are.")
    return 1 if remaining else 0


@contextmanager
def service(options: argparse.Namespace, what: Selection) -> Iterator[Service]:
    """The configured service, with its log on stderr. Raises `Invalid` for an unknown store."""
    conf = load(options)
    require_database(conf)
    set_up_log(conf, to_stderr=True)
    with _built(conf) as svc:
        if unknown := [name for name in what.stores if name not in svc.stores]:
            raise errors.Invalid(
                f"There is no store named {unknown[0]!r}; there are {', '.join(s.name for s in svc.stores)}."
            )
        yield svc


@contextmanager
def _built(conf: cfg.ConfigOpts) -> Iterator[Service]:
    require_database(conf)
    svc = app.build(conf, wait=False).service
    with closing(svc.db):
        yield svc


class Progress:
    """Shows the progress in a line if stderr is a terminal. Limits reading to `rate` MiB a second."""

    def __init__(self, svc: Service, what: Selection, rate: float | None) -> None:
        self._started = time.monotonic()
        self._rate = rate
        self._bytes = self._shown = 0.0
        self._terminal = sys.stderr.isatty()
        self._svc, self._all = svc, svc.db.snapshot(audit.count_images_with_data) if self._terminal else 0
        self._what = what

    def read(self, count: int) -> None:
        self._bytes += count
        if self._rate:
            ahead = self._bytes / (self._rate * (1 << 20)) - (time.monotonic() - self._started)
            time.sleep(max(ahead, 0))
        now = time.monotonic()
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            mib = self._bytes / (1 << 20)
            speed = mib / max(now - self._started, 0.001)
            print(f"\r\033[K{mib:,.0f} MiB read of {self._all:,} images, {speed:,.0f} MiB/s", end="", file=sys.stderr)

    def clear(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def shown(findings: Iterable[Finding], progress: Progress, as_json: bool) -> Iterator[Finding]:
    """The same findings, each printed as it comes."""
    for finding in findings:
        progress.clear()
        print(json.dumps(facts(finding)) if as_json else text(finding), flush=True)
        yield finding
    progress.clear()


def facts(finding: Finding) -> dict[str, str | None]:
    """A finding for programs. It has no location, because that may contain credentials."""
    return {
        "problem": str(finding.problem),
        "store": finding.store,
        "image": finding.image_id,
        "name": finding.name,
        "detail": finding.words,
    }


def text(finding: Finding) -> str:
    what = f"image {finding.image_id}" if finding.image_id else (finding.name or "")
    return f"{finding.problem}: {what} in store {finding.store or '-'}: {finding.words}".replace("\n", "?")


def summarize(found: list[Finding], tally: Tally, as_json: bool) -> None:
    counts = {str(problem): sum(one.problem is problem for one in found) for problem in Problem}
    if as_json:
        print(json.dumps({"summary": {k: v for k, v in asdict(tally).items() if k != "sound"} | {"problems": counts}}))
        return
    wrong = sum(one.problem in WRONG for one in found)
    print(f"{tally.images} images, {tally.copies} copies, {tally.bytes} bytes read: {wrong} wrong, "
          f"{counts['unreadable']} unreadable, {counts['out of service']} out of service, "
          f"{tally.unverifiable} without a hash.")  # fmt: skip


def failed(exc: errors.CalotypeError) -> int:
    """Print the error that ended a command, and return its exit code."""
    print(f"calotype: {told(exc)}", file=sys.stderr)
    return code_of(exc) if code_of(exc) == USAGE else 3


def code(found: Iterable[Finding]) -> int:
    problems = {finding.problem for finding in found}
    return 1 if problems & WRONG else 3 if Problem.UNREADABLE in problems else 0
