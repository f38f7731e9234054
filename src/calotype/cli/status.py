"""`calotype status`: shows what the service is doing. It changes nothing."""

import argparse
import json
from collections import Counter
from collections.abc import Container
from typing import Any

from calotype import config, transfers
from calotype.cli import clouds, job
from calotype.cli.common import load
from calotype.cli.serve import serving
from calotype.cli.store import current_service, store_facts, store_line
from calotype.cli.tables import size, span, table
from calotype.db import jobs, outbox
from calotype.db.jobs import JobState
from calotype.service import Service

#: The most jobs that are listed one by one.
_MOST = 1000


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    with current_service(conf) as svc:
        facts = _facts(svc)
    if options.json:
        print(json.dumps(facts))
    else:
        _show(facts)
    return 0


def _facts(svc: Service) -> dict[str, Any]:
    conf = svc.conf
    seen = {one.image_id: one for one in transfers.running(config.state_path(conf, "transfers"))}
    counts, listed = svc.db.snapshot(lambda tx: (jobs.counts(tx), jobs.states(tx, _MOST)))
    waiting, oldest = svc.db.snapshot(outbox.waiting)
    return {
        "service": {
            "state_dir": conf.state_dir,
            "serving": serving(conf),
            "endpoint": clouds.endpoint(config.state_path(conf, "clouds.yaml")),
        },
        "uploads": [_upload(one, seen.get(one.image_id)) for one in listed if _uploads(one, seen)],
        "jobs": [job.facts(one) for one in listed if not _uploads(one, seen)],
        "counts": [{"kind": kind, "state": state, "count": count} for kind, state, count in counts],
        "events": {"waiting": waiting, "oldest": oldest},
        "stores": list(store_facts(svc)),
    }


def _uploads(one: JobState, seen: Container[str]) -> bool:
    """Whether the job is a running upload, perhaps into the staging directory; `seen` are images of those known here.

    A pending job of these kinds waits, or cleans up. A running one of kind `stage` may clean up as well.
    """
    return one.state == "running" and (one.kind == "upload" or (one.kind == "stage" and one.image_id in seen))


def _upload(one: JobState, seen: transfers.Upload | None) -> dict[str, Any]:
    """An upload as JSON. `size` and `rate` are null unless its process has our state directory."""
    return {
        "kind": one.kind,
        "image_id": one.image_id,
        "project": one.project,
        "store": one.copies[0][0] if one.copies else None,
        "expected": seen.expected if seen else None,
        "size": seen.size if seen else None,
        "rate": round(seen.rate) if seen else None,
        "age": round(seen.age if seen else one.age, 1),
        "process": one.owner,
    }


def _show(facts: dict[str, Any]) -> None:
    """Print the facts for people."""
    service, uploads, listed = facts["service"], facts["uploads"], facts["jobs"]
    where = f" on {service['endpoint']}" if service["endpoint"] else ""
    state = f"runs{where}" if service["serving"] else "no `calotype serve` runs"
    print(f"Service: {state} (state in {service['state_dir']})")
    print(f"Uploads: {len(uploads) or 'none'}")
    if uploads:
        head = ["IMAGE", "PROJECT", "STORE", "BYTES", "OF", "RATE", "AGE", "PROCESS"]
        for line in table([head, *(_cells(one) for one in uploads)], "  "):
            print(line)
    others = Counter({(one["kind"], one["state"]): one["count"] for one in facts["counts"]})
    others.subtract((one["kind"], "running") for one in uploads)
    said = ", ".join(f"{count} {kind} {state}" for (kind, state), count in sorted(others.items()) if count > 0)
    print(f"Jobs: {said or 'none'}")
    for one in listed:
        print(f"  {job.line(one)}")
    events = facts["events"]
    if events["waiting"]:
        print(f"Events: {events['waiting']} wait to be sent, the oldest for {span(events['oldest'])}")
    print("Stores:")
    for store in facts["stores"]:
        print(f"  {store_line(store)}")


def _cells(one: dict[str, Any]) -> list[str]:
    sizes = [size(one["size"]), size(one["expected"]), size(one["rate"]) + ("/s" if one["rate"] else "")]
    return [one["image_id"], one["project"] or "-", one["store"] or "-", *sizes, f"{one['age']:.0f} s", one["process"]]
