"""`calotype status`: shows what the service is doing. It changes nothing."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from calotype import config, transfers
from calotype.cli import clouds
from calotype.cli.common import load
from calotype.cli.serve import serving
from calotype.cli.store import current_service, store_facts, store_line
from calotype.db import jobs
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
    return {
        "service": {
            "state_dir": conf.state_dir,
            "serving": serving(conf),
            "endpoint": clouds.endpoint(config.state_path(conf, "clouds.yaml")),
        },
        "uploads": [_upload(job, seen.get(job.image_id)) for job in listed if _uploads(job)],
        "jobs": [asdict(job) for job in listed if not _uploads(job)],
        "counts": [{"kind": kind, "state": state, "count": count} for kind, state, count in counts],
        "stores": list(store_facts(svc)),
    }


def _uploads(job: JobState) -> bool:
    """Whether the job is a running upload. A pending job of this kind only cleans up after an upload that died."""
    return job.kind == "upload" and job.state == "running"


def _upload(job: JobState, seen: transfers.Upload | None) -> dict[str, Any]:
    """An upload as JSON. `size` and `rate` are null unless its process has our state directory."""
    return {
        "image_id": job.image_id,
        "project": job.project,
        "store": job.store,
        "expected": seen.expected if seen else None,
        "size": seen.size if seen else None,
        "rate": round(seen.rate) if seen else None,
        "age": round(seen.age if seen else job.age, 1),
        "process": job.owner,
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
        _table([head, *(_cells(one) for one in uploads)])
    others = Counter({(one["kind"], one["state"]): one["count"] for one in facts["counts"]})
    others.subtract({("upload", "running"): len(uploads)})
    said = ", ".join(f"{count} {kind} {state}" for (kind, state), count in sorted(others.items()) if count > 0)
    print(f"Jobs: {said or 'none'}")
    for job in listed:
        due = f", again in {job['due']:.0f} s" if job["state"] == "pending" and job["due"] > 0 else ""
        error = f": {job['error']}" if job["error"] else ""
        print(f"  {job['kind']} of image {job['image_id']}: {job['state']}, attempt {job['attempt']}{due}{error}")
    print("Stores:")
    for store in facts["stores"]:
        print(f"  {store_line(store)}")


def _cells(one: dict[str, Any]) -> list[str]:
    sizes = [_bytes(one["size"]), _bytes(one["expected"]), _bytes(one["rate"]) + ("/s" if one["rate"] else "")]
    return [one["image_id"], one["project"] or "-", one["store"] or "-", *sizes, f"{one['age']:.0f} s", one["process"]]


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
