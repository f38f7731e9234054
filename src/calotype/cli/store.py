"""`calotype store list|verify|adopt|relocate`: where stores are, and whether every copy is what its record says."""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from oslo_log import log

from calotype import app, errors
from calotype.cli.common import Commands, group, load
from calotype.db import audit, schema
from calotype.images import checking, places
from calotype.images.checking import WRONG, Finding, Problem, Selection, Tally
from calotype.service import Service
from calotype.stores.base import Identified

EXIT = "Exit codes: 0 all is sound; 1 something is wrong; 2 wrong arguments; 3 nothing wrong was found, but not \
everything could be looked at."


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    verbs = group(commands, "store", "check the image data in the stores")
    verify = verbs.add_parser(
        "verify",
        parents=[common],
        help="read every copy of every image, and compare size and hash with its record",
        description="Read every copy of every active or deactivated image and compare size and hash with the record. "
        f"Changes nothing; a service may run beside it. {EXIT}",
    )
    selecting(verify)
    verify.add_argument(
        "--share",
        type=share,
        default=(1, 1, 1),
        metavar="K/N|P%",
        help="the K-th of N parts of the images, so that 1/7 to 7/7 are all of them; or the same P %% each time",
    )
    verify.set_defaults(run=run_verify)
    lists = verbs.add_parser(
        "list",
        parents=[common],
        help="show each store with its place, its room, and whether it takes writes; changes nothing",
    )
    lists.add_argument("--json", action="store_true", help="a JSON object a line, for programs")
    lists.set_defaults(run=run_list)
    adopt = verbs.add_parser(
        "adopt",
        parents=[common],
        help="take the place of a store into use as it is, whatever is in it",
        description="Write the store's identity into its place, so that the store takes writes. For a directory of a "
        "Glance, or of a database that was lost, and for one that was restored without its identity. Say so of a place "
        "that is the right one: one whose file system is not mounted would become a store without its images.",
    )
    adopt.add_argument("name", metavar="STORE", help="the store's name in the configuration")
    adopt.set_defaults(run=run_adopt)
    relocate = verbs.add_parser(
        "relocate",
        parents=[common],
        help="give the images of a store that was moved or renamed their new locations",
        description="Look for every copy that is on record where the store was before, and write down where it is now. "
        f"What is not there, in its size, is left as it is. {EXIT}",
    )
    relocate.add_argument("name", metavar="STORE", help="the store's name in the configuration")
    relocate.add_argument(
        "--from", dest="origin", metavar="DIR", help="where it was; default: where it is known to have been"
    )
    relocate.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    relocate.set_defaults(run=run_relocate)


def selecting(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what to look at, and how."""
    parser.add_argument("--store", action="append", default=[], metavar="NAME", help="this store only; may be repeated")
    parser.add_argument("--image", action="append", default=[], metavar="ID", help="this image only; may be repeated")
    parser.add_argument("--rate", type=_rate, metavar="N", help="read at most N MiB a second; default: no limit")
    parser.add_argument("--json", action="store_true", help="a JSON object a line for programs, the last one a summary")


def run_verify(options: argparse.Namespace) -> int:
    first, last, parts = options.share
    what = Selection(tuple(options.store), tuple(options.image), parts, first, last)
    try:
        svc = service(options, what)
        tally, progress = Tally(), Progress(svc, what, options.rate)
        found = list(shown(checking.verify(svc, what, tally, progress.read), progress, options.json))
    except errors.CalotypeError as exc:
        print(f"calotype: {exc}", file=sys.stderr)
        return 3
    summarize(found, tally, options.json)
    return code(found)


def run_list(options: argparse.Namespace) -> int:
    svc = app.App(load(options)).service
    schema.require_current(svc.db)
    verdicts = {one.store: one for one in places.recognise(svc, change=False)}
    for store in svc.stores:
        health, verdict = store.check(), verdicts.get(store.name)
        ok = health.ok and (verdict is None or verdict.ready)
        words = (verdict.words if verdict else "") or health.error or ""
        facts = {
            "name": store.name,
            "type": store.kind,
            "default": store.name == svc.stores.default,
            "place": store.place if isinstance(store, Identified) else None,
            "identity": store.identity if isinstance(store, Identified) else None,
            "ok": ok,
            "free": health.free,
            "total": health.total,
            "words": words,
        }
        if options.json:
            print(json.dumps(facts))
            continue
        room = f"{health.free >> 30} of {health.total >> 30} GiB free" if health.free and health.total else ""
        state = "ok" if ok else "TAKES NO WRITES"
        name = f"{store.name} (default)" if facts["default"] else store.name
        print("  ".join(filter(None, [name, store.kind, str(facts["place"] or ""), room, state, words])))
    return 0


def run_adopt(options: argparse.Namespace) -> int:
    print(places.adopt(app.build(load(options), wait=False).service, options.name))
    return 0


def run_relocate(options: argparse.Namespace) -> int:
    svc = app.build(load(options), wait=False).service
    done, remaining = 0, 0
    for one in places.relocate(svc, options.name, options.origin, change=not options.dry_run):
        done, remaining = done + one.done, remaining + (not one.done)
        if not one.done:
            print(f"image {one.image_id}: its data is not in store {options.name} as the record says", file=sys.stderr)
    would = "would have" if options.dry_run else "have"
    print(f"{done} copies {would} a new location; {remaining} are not there and stay as they are.")
    return 1 if remaining else 0


def service(options: argparse.Namespace, what: Selection) -> Service:
    """The parts of the configured service, with its log on stderr. Raises `Invalid` for a store that there is not."""
    conf = load(options)
    log.setup(conf, "calotype")
    for handler in logging.getLogger().handlers:  # standard output is for findings
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    svc = app.build(conf, wait=False).service
    if unknown := [name for name in what.stores if name not in svc.stores]:
        raise errors.Invalid(f"There is no store named {unknown[0]!r}.")
    return svc


class Progress:
    """A line on a terminal, and nothing elsewhere; holds reading back to `rate` MiB a second."""

    def __init__(self, svc: Service, what: Selection, rate: float | None) -> None:
        self._begun = time.monotonic()
        self._rate = rate
        self._bytes = self._shown = 0.0
        self._terminal = sys.stderr.isatty()
        self._svc, self._all = svc, svc.db.snapshot(audit.count_images_with_data) if self._terminal else 0
        self._what = what

    def read(self, count: int) -> None:
        self._bytes += count
        if self._rate:
            ahead = self._bytes / (self._rate * (1 << 20)) - (time.monotonic() - self._begun)
            time.sleep(max(ahead, 0))
        now = time.monotonic()
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            mib = self._bytes / (1 << 20)
            speed = mib / max(now - self._begun, 0.001)
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
    """What programs are told; no location, as it may hold credentials."""
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


def code(found: Iterable[Finding]) -> int:
    problems = {finding.problem for finding in found}
    return 1 if problems & WRONG else 3 if Problem.UNREADABLE in problems else 0


def share(words: str) -> tuple[int, int, int]:
    """First and last part, and how many there are."""
    if (found := re.fullmatch(r"(\d+)/(\d+)", words)) and 1 <= int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[1]), int(found[2])
    if (found := re.fullmatch(r"(\d+)%?", words)) and 1 <= int(found[1]) <= 100:
        return 1, int(found[1]), 100
    raise argparse.ArgumentTypeError(f"{words} is neither like 1/7 nor like 10%")


def _rate(words: str) -> float:
    if not float(words) > 0:
        raise argparse.ArgumentTypeError(f"{words} is not above 0")
    return float(words)
