"""Steps of jobs: run, undone, tried again, cancelled and handed over; and the places for those that take long."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.db import jobs, tables
from calotype.images import work as work_module
from calotype.images.work import Failed, Postponed, Work
from calotype.jobs import kinds
from calotype.jobs.kinds import Kind, Lane, Step
from calotype.jobs.worker import Runner
from calotype.model import Job
from calotype.transfers import HostSlots
from tests.inprocess import Clock, backlog, hurry
from tests.support import until

Run = Callable[[Work], None]


class Trial:
    """A kind of job whose steps note that they ran. `runs` and `undoes` replace what a step does, by its name."""

    def __init__(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app = app
        self.monkeypatch = monkeypatch
        self.seen: list[str] = []
        self.runs: dict[str, Run] = {}
        self.undoes: dict[str, Run] = {}

    def define(self, *names: str, lane: Lane = Lane.CHORE, attempts: int | None = None) -> None:
        steps = [Step(name, self._run(name, names), self._undo(name, names)) for name in names]
        self.monkeypatch.setitem(kinds.KINDS, "trial", Kind(lane, steps, attempts))  # type: ignore[arg-type]

    def _run(self, name: str, names: tuple[str, ...]) -> Run:
        def run(work: Work) -> None:
            self.seen.append(name)
            self.runs.get(name, lambda _: None)(work)
            if name == names[-1]:
                self.finish(work)

        return run

    def _undo(self, name: str, names: tuple[str, ...]) -> Run:
        def undo(work: Work) -> None:
            self.seen.append(f"undo {name}: {work.failure}")
            self.undoes.get(name, lambda _: None)(work)
            if name == names[0]:
                self.finish(work)

        return undo

    def finish(self, work: Work) -> None:
        with self.app.db.write_once() as tx:
            assert jobs.finish(tx, work.job)

    def submit(self, project: str | None = None, image: str = "image") -> Job:
        with self.app.db.write_once() as tx:
            return jobs.submit(tx, "trial", image, {}, project=project)

    def work_off(self, *, rounds: int = 1) -> None:
        """Let as many runners as there are rounds do what is due, one after the other."""
        for _ in range(rounds):
            hurry(self.app)
            runner = Runner(self.app.service, 1)
            runner.run_due_jobs()
            until(lambda: not runner.transfers)  # noqa: B023

    def row(self) -> Any:
        with self.app.db.read_once() as tx:
            return tx.execute(sa.select(tables.jobs)).one()

    def cancel(self, job: Job, why: str = "no more") -> None:
        with self.app.db.write_once() as tx:
            assert jobs.ask_to_cancel(tx, job.id, why)


@pytest.fixture
def trial(app: App, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(app, monkeypatch)


def failing(*failures: Exception | None) -> Run:
    """What a step does that fails so often."""
    left = list(failures)

    def run(_: Work) -> None:
        failure = left.pop(0) if left else None
        if failure is not None:
            raise failure

    return run


def test_a_step_that_fails_is_tried_again_by_another_process_with_what_was_kept(trial: Trial) -> None:
    trial.define("one", "two", "three")
    trial.runs["one"] = lambda work: work.keep(found=1)
    trial.runs["two"] = failing(OSError("disk on fire"))
    found: list[dict[str, Any]] = []
    trial.runs["three"] = lambda work: found.append(dict(work.facts))
    trial.submit()
    trial.work_off(rounds=2)
    assert trial.seen == ["one", "two", "two", "three"]
    assert found == [{"found": 1}]
    assert backlog(trial.app) == 0


def test_after_a_failure_for_good_the_steps_are_undone_in_reverse(trial: Trial) -> None:
    trial.define("one", "two", "three")
    trial.runs["two"] = failing(Failed("it is no use"))
    trial.submit()
    trial.work_off()
    assert trial.seen == ["one", "two", "undo two: it is no use", "undo one: it is no use"]
    assert backlog(trial.app) == 0


def test_undoing_is_tried_until_the_store_is_back_and_nothing_else_is(trial: Trial) -> None:
    trial.define("one", "two")
    trial.runs["two"] = failing(Failed("it is no use"))
    trial.undoes["one"] = failing(errors.StoreUnavailable("away", "one"))
    trial.submit()
    trial.work_off()
    row = trial.row()
    assert (row.state, row.failure, row.error) == ("pending", "it is no use", "away")
    del trial.seen[:]
    trial.work_off()
    assert trial.seen == ["undo two: it is no use", "undo one: it is no use"]
    assert backlog(trial.app) == 0


def test_a_job_of_limited_attempts_is_undone_after_the_last(trial: Trial) -> None:
    trial.define("one", attempts=3)
    trial.runs["one"] = failing(*[errors.StoreUnavailable("away", "one")] * 9)
    trial.submit()
    trial.work_off(rounds=2)
    assert trial.seen == ["one"] * 2
    trial.work_off()
    assert trial.seen == ["one"] * 3 + ["undo one: away"]
    assert backlog(trial.app) == 0


def test_what_only_waits_uses_up_no_attempts(trial: Trial) -> None:
    trial.define("one", attempts=2)
    waits = [Postponed(60, "somebody else is at it") for _ in range(5)]
    trial.runs["one"] = failing(*waits, OSError("a failure"), *waits)
    trial.submit()
    trial.work_off(rounds=5)
    row = trial.row()
    assert (row.state, row.error, row.attempt, row.failures) == ("pending", "somebody else is at it", 5, 0)
    trial.work_off(rounds=6)
    assert trial.row().failure is None
    trial.runs["one"] = failing(OSError("another failure"))
    trial.work_off()
    assert trial.seen[-1] == "undo one: The service failed."


def test_a_running_job_obeys_a_cancel(trial: Trial) -> None:
    trial.define("one", "two", lane=Lane.TRANSFER)
    begun, looked = threading.Event(), threading.Event()

    def endless(work: Work) -> None:
        begun.set()
        while not looked.wait(0.02):
            work.check()

    trial.runs["two"] = endless
    job = trial.submit()
    runner = Runner(trial.app.service, 1)
    try:
        assert runner.run_due_jobs() == 1
        assert begun.wait(20)
        trial.cancel(job)
        until(lambda: not runner.transfers)
    finally:
        looked.set()
    assert trial.seen == ["one", "two", "undo two: no more", "undo one: no more"]
    assert work_module.CHECK_SECONDS <= 0.5, "it is obeyed within a second"
    assert backlog(trial.app) == 0


def test_a_waiting_job_obeys_a_cancel_at_once_and_does_not_go_on(trial: Trial) -> None:
    trial.define("one", "two")
    trial.runs["two"] = failing(OSError("disk on fire"))
    job = trial.submit()
    trial.work_off()
    del trial.seen[:]
    trial.cancel(job)
    Runner(trial.app.service, 1).run_due_jobs()  # although the next try is a minute away
    assert trial.seen == ["undo two: no more", "undo one: no more"]


def test_a_cancel_does_not_stop_the_undoing(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "CHECK_SECONDS", 0)
    trial.define("one")
    job = trial.submit()
    trial.cancel(job)
    trial.undoes["one"] = lambda work: work.check()
    trial.work_off()
    assert trial.seen == ["undo one: no more"]
    assert backlog(trial.app) == 0


def test_who_slept_while_its_attempt_was_taken_over_can_record_nothing(trial: Trial) -> None:
    trial.define("one", "two")
    job = trial.submit()
    with trial.app.db.write_once() as tx:
        first = jobs.claim(tx, jobs.Claims("a", ["trial"]))
        assert first is not None
        jobs.release(tx, jobs.running_attempts(tx))
        assert jobs.claim(tx, jobs.Claims("b", ["trial"]))
    slept = Work(trial.app.service, first, lambda: None, Clock())
    for act in (slept.done, lambda: slept.keep(x=1), slept.check, lambda: slept.progress("x", 1, 2)):
        slept._clock.seconds += 10  # type: ignore[attr-defined]
        with pytest.raises(errors.Gone):
            act()
    with trial.app.db.write_once() as tx:
        assert not jobs.fail_for_good(tx, first, "late")
        assert not jobs.postpone(tx, first, "late", delay=jobs.timedelta(0))
        found = jobs.get(tx, job.id)
    assert found is not None
    assert (found.step, found.checkpoint, found.failure, found.failures) == (0, {}, None, 0)


def test_progress_is_written_every_other_second_and_never_goes_back(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    report = jobs.report

    def counted(tx: Any, job: Job, progress: Any = None) -> str | None:
        shown.append(progress["bytes"])
        return report(tx, job, progress)

    monkeypatch.setattr(jobs, "report", counted)
    trial.submit()
    for owner in ("a", "b"):  # the second one takes over, and begins anew
        with trial.app.db.write_once() as tx:
            jobs.release(tx, jobs.running_attempts(tx))
            job = jobs.claim(tx, jobs.Claims(owner, ["trial"]))
        assert job is not None
        clock = Clock()
        work = Work(trial.app.service, job, lambda: None, clock)
        for number in range(100):
            clock.seconds += 0.125
            work.progress("Copying", number << 20, 200 << 20)
    assert len(shown) == 2 * 6, "of 12.5 seconds each"
    assert shown == sorted(shown)
    assert shown[6:] == [shown[5]] * 6
    with trial.app.db.read_once() as tx:
        (state,) = jobs.states(tx, 9)
    assert state.progress["step"] == "Copying"
    assert state.progress["of"] == 200 << 20
    assert state.progress["rate"] == pytest.approx(8 << 20, rel=0.01)


def test_a_runner_that_ends_hands_back_what_takes_long(trial: Trial) -> None:
    trial.define("one", "two", lane=Lane.TRANSFER)
    begun, over = threading.Event(), threading.Event()

    def endless(work: Work) -> None:
        begun.set()
        while not over.wait(0.02):
            work.check()

    trial.runs["two"] = endless
    trial.submit()
    runner = Runner(trial.app.service, 0.05)
    runner.start()
    try:
        assert begun.wait(20)
        runner.stop()
    finally:
        over.set()
    row = trial.row()
    assert (row.state, row.owner, row.step, row.error, row.failures) == ("pending", None, 1, "the service ended", 0)
    trial.work_off()
    assert trial.seen == ["one", "two", "two"]
    assert backlog(trial.app) == 0


# --- places ----------------------------------------------------------------------------------------------


def test_a_project_whose_transfers_hang_holds_up_nobody_else(trial: Trial) -> None:
    trial.app.conf.set_override("transfers", 2, group="jobs")
    trial.define("one", lane=Lane.TRANSFER)
    over, images = threading.Event(), []

    def transfer(work: Work) -> None:
        images.append(work.job.image_id)
        if work.job.project == "red":
            assert over.wait(60)

    trial.runs["one"] = transfer
    for number in range(3):
        trial.submit("red", f"red {number}")
    runner = Runner(trial.app.service, 0.05)
    try:
        assert runner.run_due_jobs() == 1, "the other place is kept for another project"
        blues = [trial.submit("blue", f"blue {number}").image_id for number in range(3)]
        runner.start()
        until(lambda: set(blues) <= set(images), 30)
        assert [one for one in images if one.startswith("red")] == ["red 0"]
        over.set()
        until(lambda: len(images) == 6, 30)
    finally:
        over.set()
        runner.stop()


def test_the_last_place_of_a_host_is_for_a_project_that_has_none(trial: Trial, tmp_path: Path) -> None:
    trial.app.conf.set_override("transfers_per_host", 2, group="jobs")
    trial.define("one", lane=Lane.TRANSFER)
    over, begun = threading.Event(), []

    def transfer(work: Work) -> None:
        begun.append(work.job.image_id)
        assert over.wait(60)

    trial.runs["one"] = transfer
    trial.submit("red", "red 0")
    trial.submit("red", "red 1")
    runners = [Runner(trial.app.service, 1), Runner(trial.app.service, 1)]
    try:
        assert [one.run_due_jobs() for one in runners] == [1, 0]
        trial.submit("blue", "blue")
        assert [one.run_due_jobs() for one in runners] == [1, 0]
        until(lambda: begun == ["red 0", "blue"])
    finally:
        over.set()
        until(lambda: not any(one.transfers for one in runners))


def test_the_dead_are_remembered_while_a_place_is_free_for_other_projects_only(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is left of theirs would wait for a lease."""
    trial.app.conf.set_override("transfers_per_host", 2, group="jobs")
    trial.define("one", lane=Lane.TRANSFER)
    over, forgotten = threading.Event(), list[list[str]]()
    trial.runs["one"] = lambda _: None if over.wait(60) else pytest.fail("it hangs")
    monkeypatch.setattr(trial.app.service.leases, "forget_owners", forgotten.append)
    runner = Runner(trial.app.service, 1)
    try:
        for image in ("red 0", "red 1"):
            trial.submit("red", image)
        assert runner.run_due_jobs() == 1
        assert forgotten == []
    finally:
        over.set()
        until(lambda: not runner.transfers)
    assert runner.run_due_jobs() == 1
    until(lambda: not runner.transfers)
    runner.run_due_jobs()
    assert len(forgotten) >= 1


def test_the_places_of_a_host_are_shared_by_its_processes_and_given_back_by_the_dead(tmp_path: Path) -> None:
    holds = (
        "import sys, time\nfrom pathlib import Path\nfrom calotype.transfers import HostSlots\n"
        f"print(HostSlots(Path({str(tmp_path)!r}), 2).take() is not None, flush=True)\ntime.sleep(600)"
    )
    slots = HostSlots(tmp_path, 2)
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        mine = slots.take()
        assert mine is not None
        assert mine[1], "it is the last"
        assert slots.take() is None
        mine[0]()
        again = slots.take()
        assert again is not None
        other.send_signal(signal.SIGKILL)
        other.wait(30)
    assert slots.take() is not None
    assert slots.take() is None
    again[0]()
    assert slots.take() is not None
