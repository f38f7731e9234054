"""`calotype repair`: lists what does not match between records and stores, and takes it out of service."""

import argparse
import json
import sys
from datetime import timedelta

from calotype import errors
from calotype.cli.common import agreed
from calotype.cli.store import Progress, code, failed, service, shown, summarize, text
from calotype.images import repair
from calotype.images.checking import WRONG, Finding, Selection, Tally
from calotype.service import Service
from calotype.stores.base import Audits


def run(options: argparse.Namespace) -> int:
    what = Selection(tuple(options.store), tuple(options.image), deep=options.deep)
    age = timedelta(minutes=options.older_than)
    try:
        with service(options, what) as svc:
            if options.list_quarantine:
                return _list(svc, what, options.json)
            if options.restore:
                return _restore(svc, options.restore, options.json)
            tally, progress = Tally(), Progress(svc, what, options.rate)
            found = list(shown(repair.survey(svc, what, age, tally, progress.read), progress, options.json))
            summarize(found, tally, options.json)
            wrong = [one for one in found if one.problem in WRONG]
            if options.dry_run or not wrong:
                return code(found)
            if not _agreed(len(wrong), yes=options.yes):
                return 1
            remaining = _mend(svc, wrong, age, options.json)
            return code([*remaining, *(one for one in found if one.problem not in WRONG)])
    except errors.CalotypeError as exc:
        return failed(exc)


def _restore(svc: Service, what: str, as_json: bool) -> int:
    store, _, key = what.partition("/")
    name = repair.restore(svc, store, key).name
    print(json.dumps({"restored": name}) if as_json else f"{name} is back in store {store}.")
    return 0


def _mend(svc: Service, wrong: list[Finding], age: timedelta, as_json: bool) -> list[Finding]:
    """Repair the findings. Returns those that could not be repaired."""
    remaining = []
    for one in wrong:
        try:
            done = repair.mend(svc, one, age) or "it is not wrong any more"
        except errors.CalotypeError as exc:
            done = f"nothing was done: {exc}"
            remaining.append(one)
        words = {
            "repaired": one not in remaining,
            "store": one.store,
            "image": one.image_id,
            "name": one.name,
            "done": done,
        }
        print(
            json.dumps(words) if as_json else f"{text(one).partition(': ')[2].rpartition(':')[0]}: {done}", flush=True
        )
    return remaining


def _list(svc: Service, what: Selection, as_json: bool) -> int:
    for store in svc.stores:
        if not isinstance(store, Audits) or not what.includes_store(store):
            continue
        for one in store.quarantined():
            key = f"{store.name}/{one.key}"
            about = {"key": key, "name": one.name, "size": one.size, **one.facts}
            print(json.dumps(about) if as_json else f"{key}  {one.size} bytes  {one.facts.get('when')}  "
                  f"{one.facts.get('why')}")  # fmt: skip
    return 0


def _agreed(count: int, *, yes: bool) -> bool:
    """Ask for confirmation. If nobody can be asked this is False, and no error: the findings have been printed."""
    try:
        if agreed(f"Put these {count} out of service? Nothing is deleted.", yes=yes):
            return True
        print("Nothing was changed.", file=sys.stderr)
    except errors.Invalid as exc:
        print(f"calotype: {exc}", file=sys.stderr)
    return False
