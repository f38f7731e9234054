"""`calotype job list|show|retry|cancel|drop`: what the jobs are doing, and what to do with one that is in the way."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from calotype import errors
from calotype.cli.common import agreed, load
from calotype.cli.main import FAILED, told
from calotype.cli.store import current_service
from calotype.cli.tables import size, span, table
from calotype.db import jobs
from calotype.db.jobs import JobState
from calotype.jobs import control
from calotype.jobs.kinds import KINDS
from calotype.service import Service

#: The exit code of a cancel that was asked for and has not happened yet.
ASKED: Final = 3
#: How long `cancel` waits for the job, seconds. A runner looks every two seconds, one that runs the job twice a second.
_PATIENCE: Final = 6.0
#: The most jobs that are listed.
_MOST: Final = 1000


def _with_service(command: Callable[[Service, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Give a command the service, and close its database at the end."""

    def run(options: argparse.Namespace) -> int:
        with current_service(load(options)) as svc:
            return command(svc, options)

    return run


@_with_service
def run_list(svc: Service, options: argparse.Namespace) -> int:
    if unknown := [kind for kind in options.kind if kind not in KINDS]:
        raise errors.Invalid(f"There is no kind of job {unknown[0]!r}; there are {', '.join(KINDS)}.")
    found = _states(svc, images=options.image, kinds=options.kind)
    if options.json:
        for one in found:
            print(json.dumps(facts(one)))
    elif not found:
        print("There are no jobs." if not (options.image or options.kind) else "There are no such jobs.")
    else:
        head = ["ID", "KIND", "IMAGE", "PROJECT", "STATE", "ATTEMPT", "PROGRESS", "DUE", "AGE", "HOST", "ERROR"]
        for line in table([head, *(_cells(facts(one)) for one in found)]):
            print(line)
    if len(found) == _MOST:
        print(f"These are the {_MOST} oldest; choose by --image and --kind.", file=sys.stderr)
    return 0


@_with_service
def run_show(svc: Service, options: argparse.Namespace) -> int:
    control.get(svc, options.id)
    for one in _states(svc, ids=[options.id]):
        if options.json:
            print(json.dumps(facts(one)))
        else:
            _show(facts(one))
    return 0


@_with_service
def run_retry(svc: Service, options: argparse.Namespace) -> int:
    def retry(job_id: str) -> int:
        if control.retry(svc, job_id):
            print(f"Job {job_id} is due now: the next runner that looks begins it.")
        else:
            print(f"Job {job_id} is running.")
        return 0

    return _each(options.id, retry)


@_with_service
def run_cancel(svc: Service, options: argparse.Namespace) -> int:
    def cancel(job_id: str) -> int:
        job = control.cancel(svc, job_id, options.reason)
        until = time.monotonic() + _PATIENCE
        while (found := _states(svc, ids=[job_id])) and not _is_stuck(found[0]) and time.monotonic() < until:
            time.sleep(0.1)
        if not found:
            done = control.ending(svc, job) == "success"
            print(f"Job {job_id} was done before it could be cancelled." if done else f"Job {job_id} is cancelled.")
            return 0
        (one,) = found
        if one.failure is not None:
            error = f" The last try of that failed: {one.error}" if one.error else ""
            print(f"Job {job_id} is being undone: {one.failure}{error}")
            return 0
        who = f"{one.owner} runs it" if one.owner else "no runner has taken it"
        print(f"Job {job_id} is asked to stop, and has not stopped yet: {who}. See calotype job show {job_id}.")
        return ASKED

    return _each(options.id, cancel)


@_with_service
def run_drop(svc: Service, options: argparse.Namespace) -> int:
    left = control.remains(svc, options.id)
    for sentence in left or ["Nothing is left behind."]:
        print(sentence)
    if not agreed(f"Drop job {options.id}?", yes=options.yes):
        print("Nothing was changed.", file=sys.stderr)
        return FAILED
    control.drop(svc, options.id)
    print(f"Job {options.id} is dropped.")
    return 0


# --- what others show of jobs ----------------------------------------------------------------------------


def facts(one: JobState) -> dict[str, Any]:
    """A job as JSON. `age` and `due` are seconds, `reserved` bytes."""
    values = asdict(one)
    steps = KINDS[one.kind].steps if one.kind in KINDS else ()
    values["step"] = steps[min(one.step, len(steps) - 1)].name if steps else None
    values["copies"] = [{"store": store, "state": state, "error": error} for store, state, error in one.copies]
    return values


def line(job: dict[str, Any]) -> str:
    """The facts about a job as a line for people."""
    parts = [_state(job), f"attempt {job['attempt']}"]
    parts += [_progress(job)] if job["progress"] else []
    parts += [f"due in {span(job['due'])}"] if _waits(job) else []
    error = f": {job['error']}" if job["error"] else ""
    return f"{job['id']} {job['kind']} of image {job['image_id']}: {', '.join(parts)}{error}"


# --- parts -----------------------------------------------------------------------------------------------


def _states(svc: Service, **chosen: list[str]) -> list[JobState]:
    return svc.db.snapshot(lambda tx: jobs.states(tx, _MOST, **chosen))


def _each(ids: list[str], do: Callable[[str], int]) -> int:
    """Do it for each id, and tell of each failure in a line; returns the highest exit code."""
    code = 0
    for job_id in ids:
        try:
            code = max(code, do(job_id))
        except (errors.NotFound, errors.Conflict) as exc:
            print(f"calotype: {told(exc)}", file=sys.stderr)
            code = max(code, FAILED)
    return code


def _is_stuck(one: JobState) -> bool:
    """Whether undoing has failed, and is tried again later."""
    return one.failure is not None and one.state == "pending" and one.due > 0


def _state(job: dict[str, Any]) -> str:
    if job["failure"] is not None:
        return "undoing"
    return "cancelling" if job["cancel"] is not None else str(job["state"])


def _waits(job: dict[str, Any]) -> bool:
    return bool(job["state"] == "pending" and job["due"] > 0)


def _progress(job: dict[str, Any]) -> str:
    told = job["progress"]
    if not told:
        return str(job["step"] or "-")
    of = "" if told["of"] is None else f" of {size(told['of'])}"
    rate = "" if told["rate"] is None else f", {size(told['rate'])}/s"
    return f"{told['step']} {size(told['bytes'])}{of}{rate}"


def _cells(job: dict[str, Any]) -> list[str]:
    error = " ".join(str(job["failure"] or job["error"] or "").split())
    return [
        job["id"],
        job["kind"],
        job["image_id"],
        job["project"] or "-",
        _state(job),
        str(job["attempt"]),
        _progress(job),
        f"in {span(job['due'])}" if _waits(job) else "-",
        span(job["age"]),
        str(job["owner"]).partition(":")[0] if job["owner"] else "-",
        error if len(error) <= 80 else error[:79] + "…",
    ]


def _show(job: dict[str, Any]) -> None:
    """Print all facts about a job for people."""
    for name, value in _lines(job):
        print(f"{name + ':':10} {value}")
    if job["copies"]:
        print("Copies:")
        rows = [[copy["store"], copy["state"], copy["error"] or ""] for copy in job["copies"]]
        for text in table([["STORE", "STATE", "ERROR"], *rows], "  "):
            print(text)


def _lines(job: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Job", f"{job['id']}, {job['kind']}, {span(job['age'])} old"
    yield "Image", job["image_id"]
    yield "Project", job["project"] or "-"
    yield "State", _state(job) + (f", due in {span(job['due'])}" if _waits(job) else "")
    yield "Step", str(job["step"] or "-")
    yield "Progress", _progress(job) if job["progress"] else "-"
    yield "Attempt", f"{job['attempt']}" + (f", by {job['owner']}" if job["owner"] else "")
    optional = {"Reserved": size(job["reserved"]) if job["reserved"] else None, "Task": job["task"]}
    optional |= {"Place": job["place"], "Cancel": job["cancel"], "Failure": job["failure"], "Error": job["error"]}
    yield from ((name, value) for name, value in optional.items() if value)
