"""`images/fanout.py`: several stores get the bytes of one read; one that fails or hangs costs no other."""

import contextlib
import gc
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from oslo_context import context

from calotype import errors
from calotype.buffers import BUFFER, LITTLE, Piece
from calotype.context import SERVICE
from calotype.images import fanout
from calotype.images.fanout import AHEAD, FanOut, Target
from calotype.stores.access import Access, Settings
from calotype.stores.base import Store, Stored, Write
from calotype.stores.probing import Breaker
from calotype.transfers import Transfers
from tests.images.test_stream import Memory, pattern
from tests.images.test_stream import passing as make_passing
from tests.stores.remote_toy import RemoteToys
from tests.stores.suite import ID, content
from tests.stores.test_contract import file_store
from tests.stores.toy import Backend, ToyStore
from tests.support import until

#: So small that most pieces have 64 KiB: an image of many pieces is then quickly written.
MEMORY = BUFFER
DATA = pattern(40 * LITTLE + 77)
THREE = ("one", "two", "three")

#: Called in a store's thread before each of its steps: what it is, and how many of this kind there were before.
Fault = Callable[[str, int], object]


class Planted:
    """A store, and a fault that each step of a write passes: `begin`, `put`, `commit`, and `committed` at its end."""

    def __init__(self, store: Store, fault: Fault) -> None:
        self.store = store
        self.fault = fault
        self.writes: list[PlantedWrite] = []
        self.wrapper = PlantedWrite

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def begin(self, *given: Any, **more: Any) -> Write:
        self.fault("begin", 0)
        write = self.wrapper(self.store.begin(*given, **more), self.fault)
        self.writes.append(write)
        return write


class PlantedWrite:
    def __init__(self, write: Write, fault: Fault) -> None:
        self.window = write.window
        self.write = write
        self.fault = fault
        self.steps: list[str] = []
        self.puts = 0

    def put(self, piece: Piece) -> None:
        before = hashlib.md5(piece.view).digest()
        self.fault("put", self.puts)
        assert hashlib.md5(piece.view).digest() == before, "its memory was used again"
        self.write.put(piece)
        self.puts += 1

    def commit(self) -> Stored:
        self.steps.append("commit")
        self.fault("commit", 0)
        stored = self.write.commit()
        self.fault("committed", 0)
        return stored

    def abort(self) -> None:
        self.steps.append("abort")
        self.write.abort()


def nothing(_: str, __: int) -> None:
    pass


def rest(seconds: float, *_: Any) -> None:
    time.sleep(seconds)


class Raise:
    """A fault: one step raises."""

    def __init__(self, step: str, number: int = 0, exc: Exception | None = None) -> None:
        self.at = step, number
        self.exc = exc or errors.StoreUnavailable("planted", "two")

    def __call__(self, *step: Any) -> None:
        if step == self.at:
            raise self.exc


class Hang:
    """A fault: one step does not return until the test says so."""

    def __init__(self, step: str, number: int = 0) -> None:
        self.at = step, number
        self.reached = threading.Event()
        self.free = threading.Event()

    def __call__(self, *step: Any) -> None:
        if step == self.at:
            self.reached.set()
            assert self.free.wait(60)


class Trial:
    """A fan-out into stores with faults. Its clock jumps when the stores that hang are all that is waited for."""

    def __init__(self, stores: Mapping[str, Store], faults: Mapping[str, Fault], **changes: Any) -> None:
        self.transfers = changes.pop("transfers", None) or Transfers(MEMORY, 1000)
        self.source = changes.pop("source", None) or Memory(DATA)
        self.on_failure: Callable[[str], object] = changes.pop("on_failure", lambda _: None)
        self.on_stored: Callable[[str], object] = changes.pop("on_stored", lambda _: None)
        settings = changes.pop("settings", Settings())
        fan = {name: changes.pop(name) for name in ("patience", "commit_patience") if name in changes}
        self.checks = changes
        self.faults = faults
        self.stores = {name: Planted(store, faults.get(name, nothing)) for name, store in stores.items()}
        self.breaker = Breaker()
        self.notes: dict[str, str] = {}
        self.stored: dict[str, Stored] = {}
        self.failed: dict[str, errors.CalotypeError] = {}
        self.seconds = 0.0
        self.fan: FanOut | None = None
        self.targets = [
            Target(Access(store, settings, self.breaker, lambda _: None), "ab12-1", partial(self._note, name))  # type: ignore[arg-type]
            for name, store in self.stores.items()
        ]
        self.fan = FanOut(ID, self.targets, size=None, ctx=SERVICE, failed=self._failure, clock=self.clock, **fan)

    def run(self) -> Self:
        one = make_passing(self.source, transfers=self.transfers, **self.checks)
        assert self.fan
        with one, self.fan as fan:
            fan.receive(one)
            for target, stored in fan.commit():
                name = target.access.store.name
                assert name not in self.stored
                self.stored[name] = stored
                self.on_stored(name)
        return self

    def clock(self) -> float:
        """A quarter of an hour passes if the stores that hang are all that is waited for."""
        if self.fan:
            waiting = [one for one in self.fan._branches if one._unfinished and not one.result]
            faults = [self.faults.get(one.target.access.store.name) for one in waiting]
            if waiting and all(isinstance(one, Hang) and one.reached.is_set() for one in faults):
                self.seconds += 1000.0
        return self.seconds

    def end(self) -> None:
        """What hangs returns, and nothing is left: no thread, no memory, and no write that has not ended."""
        for one in self.faults.values():
            if isinstance(one, Hang):
                one.free.set()
        until(lambda: not store_threads())
        gc.collect()
        until(lambda: self.transfers.buffers.budget.used == 0)

    def holds(self, *names: str) -> None:
        """Assert that these stores have the image, and the others nothing after they were cleaned."""
        assert sorted(self.stored) == sorted(names)
        for name, store in self.stores.items():
            if name in names:
                assert content(store.store, self.stored[name].url) == DATA
            else:
                with contextlib.suppress(errors.Missing):
                    store.store.size(self.url(name), ctx=SERVICE)
                    raise AssertionError(f"{name} has an object")

    def url(self, name: str) -> str:
        return self.stores[name].store.prefixes()[0] + ID

    def _note(self, name: str, what: str) -> None:
        self.notes[name] = what

    def _failure(self, target: Target, exc: errors.CalotypeError) -> None:
        name = target.access.store.name
        assert name not in self.failed, "told twice"
        self.failed[name] = exc
        self.on_failure(name)


def store_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("store ")]


@pytest.fixture(autouse=True)
def stores_that_hang_are_soon_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "LOOK", 0.01)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Mapping[str, Store]]:
    """Three real directories. At the end each has the image alone, or nothing."""
    yield {name: file_store(tmp_path, name) for name in THREE}
    for name in THREE:
        assert {path.name for path in (tmp_path / name).iterdir()} <= {".calotype-store", ID}


def test_every_store_gets_what_was_read_once(files: Mapping[str, Store]) -> None:
    trial = Trial(files, {}).run()
    trial.holds(*THREE)
    assert trial.source.at == len(DATA)
    assert trial.failed == {}
    trial.end()


def test_stores_of_any_kind_are_written_together(tmp_path: Path) -> None:
    toys = RemoteToys(tmp_path)
    try:
        stores: dict[str, Store] = {"file": file_store(tmp_path, "file"), "toy": toys.store("toy")}
        stores["near"] = ToyStore("near", Backend(), frozenset())
        trial = Trial(stores, {}).run()
        trial.holds("file", "toy", "near")
        trial.end()
    finally:
        toys.close()


@pytest.mark.parametrize("size", [0, 1, LITTLE])
def test_small_images_are_written_too(files: Mapping[str, Store], size: int) -> None:
    trial = Trial(files, {}, source=Memory(DATA[:size])).run()
    assert {name: content(files[name], one.url) for name, one in trial.stored.items()} == dict.fromkeys(
        THREE, DATA[:size]
    )
    trial.end()


@pytest.mark.parametrize("step", ["begin", "put", "commit"])
def test_all_stores_are_at_work_at_once(files: Mapping[str, Store], step: str) -> None:
    together = threading.Barrier(3)
    trial = Trial(files, dict.fromkeys(THREE, lambda *at: together.wait(30) if at[0] == step else None)).run()
    trial.holds(*THREE)
    trial.end()


# --- failures --------------------------------------------------------------------------------------------

STEPS = [("begin", 0), ("put", 0), ("put", 7), ("commit", 0), ("committed", 0)]
step_name = "{0[0]}-{0[1]}".format


@pytest.mark.parametrize("at", STEPS, ids=step_name)
def test_a_store_that_fails_is_left_out(files: Mapping[str, Store], at: tuple[str, int]) -> None:
    trial = Trial(files, {"two": Raise(*at)}).run()
    assert {name: str(exc) for name, exc in trial.failed.items()} == {"two": "planted"}
    assert trial.breaker.is_aside(files["two"])
    files["two"].clean(ID, "ab12-1", trial.notes.get("two"))
    trial.holds("one", "three")
    trial.end()


@pytest.mark.parametrize("at", STEPS[:-1], ids=step_name)
def test_if_all_fail_the_last_failure_is_raised(files: Mapping[str, Store], at: tuple[str, int]) -> None:
    trial = Trial(files, {name: Raise(*at) for name in THREE})
    with pytest.raises(errors.StoreUnavailable) as raised:
        trial.run()
    assert list(trial.failed.values())[-1] is raised.value
    assert set(trial.failed) == set(THREE)
    trial.holds()
    trial.end()


@pytest.mark.parametrize("at", STEPS, ids=step_name)
def test_the_caller_may_end_all_because_one_has_failed(files: Mapping[str, Store], at: tuple[str, int]) -> None:
    def stop(_: str) -> None:
        raise errors.Conflict("all must succeed")

    late = Hang("commit") if at[0].startswith("commit") else nothing
    trial = Trial(files, {"two": Raise(*at), "one": late, "three": late}, on_failure=stop)
    with pytest.raises(errors.Conflict):
        trial.run()
    trial.end()
    files["two"].clean(ID, "ab12-1", trial.notes.get("two"))
    trial.holds()


def test_a_driver_that_raises_something_else_is_left_out_as_well(
    files: Mapping[str, Store], caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(files, {"two": Raise("put", 3, ZeroDivisionError("secret"))}).run()
    assert {name: str(exc) for name, exc in trial.failed.items()} == {"two": "Store two failed unexpectedly."}
    assert "ZeroDivisionError" in caplog.text
    trial.holds("one", "three")
    trial.end()


def test_a_note_that_fails_costs_one_copy(files: Mapping[str, Store]) -> None:
    def note(_: str) -> None:
        raise errors.Gone("given up")

    trial = Trial(files, {})
    object.__setattr__(trial.targets[0], "note", note)
    trial.run().holds("two", "three")
    assert isinstance(trial.failed["one"], errors.Gone)
    trial.end()


def test_a_system_without_threads_fails_the_stores_that_get_none(
    files: Mapping[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "store two":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    trial = Trial(files, {}).run()
    assert isinstance(trial.failed["two"], errors.Busy)
    trial.holds("one", "three")
    trial.end()


# --- stores that hang ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", STEPS, ids=step_name)
def test_a_store_that_hangs_is_given_up_and_the_others_go_on(files: Mapping[str, Store], at: tuple[str, int]) -> None:
    hang = Hang(*at)
    trial = Trial(files, {"two": hang}, settings=Settings(max_uploads=1)).run()
    assert set(trial.stored) == {"one", "three"}
    assert set(trial.failed) == {"two"}
    assert isinstance(trial.failed["two"], errors.StoreUnavailable)
    assert ("for 600 seconds" if at[0].startswith("commit") else "for 60 seconds") in str(trial.failed["two"])
    assert trial.breaker.is_aside(files["two"])
    # it hangs, and keeps what it was writing
    assert store_threads() == ["store two"]
    until(lambda: trial.transfers.buffers.budget.used <= (BUFFER if at[0] == "put" else 0))
    assert bool(trial.transfers.buffers.budget.used) == (at[0] == "put")
    slots = trial.targets[1].access._uploads
    assert slots
    assert slots.is_full
    trial.end()
    trial.holds("one", "three")
    assert not slots.is_full
    steps = [step for write in trial.stores["two"].writes for step in write.steps]
    assert steps[-1:] == ["abort"]
    assert ("commit" in steps) == at[0].startswith("commit")


def test_a_commit_that_hangs_cannot_finish_after_the_store_was_cleaned(files: Mapping[str, Store]) -> None:
    hang = Hang("commit")
    trial = Trial(files, {"two": hang}).run()
    files["two"].clean(ID, "ab12-1", trial.notes.get("two"))
    trial.end()
    trial.holds("one", "three")
    assert "two" not in trial.notes


def test_a_store_that_hangs_delays_the_others_only_when_its_pieces_wait(files: Mapping[str, Store]) -> None:
    hang = Hang("put", 2)
    seen = []

    def failed(_: str) -> None:
        seen.append([trial.stores[name].writes[0].puts for name in ("one", "three")])

    class Waits(Trial):
        def clock(self) -> float:
            if self.fan and self.fan._branches[1].has_room:
                return 0.0
            return super().clock()

    trial = Waits(files, {"two": hang}, on_failure=failed)
    trial.run()
    assert seen == [[3 + AHEAD, 3 + AHEAD]]
    trial.end()
    trial.holds("one", "three")


def test_if_all_hang_the_transfer_ends(files: Mapping[str, Store]) -> None:
    trial = Trial(files, {"one": Hang("put", 2), "two": Hang("begin"), "three": Hang("put", 5)}, patience=5.0)
    with pytest.raises(errors.StoreUnavailable, match="has not answered for 5 seconds"):
        trial.run()
    assert set(trial.failed) == set(THREE)
    trial.end()


def test_a_store_that_makes_progress_is_not_given_up_however_long_it_takes(files: Mapping[str, Store]) -> None:
    def slow(*_: Any) -> None:
        trial.seconds += 40.0

    trial = Trial({"two": files["two"]}, {"two": slow})
    trial.run().holds("two")
    assert trial.seconds > 400
    trial.end()


def test_a_store_that_had_nothing_to_do_was_not_hanging(files: Mapping[str, Store]) -> None:
    class Slow(Memory):
        def readinto(self, view: memoryview) -> int:
            assert trial.fan
            (branch,) = trial.fan._branches
            until(lambda: not branch._unfinished)
            trial.seconds += 1000.0
            return super().readinto(view)

    trial = Trial({"two": files["two"]}, {}, source=Slow(DATA))
    trial.run().holds("two")
    trial.end()


def test_a_write_that_keeps_pieces_for_ever_is_given_up_and_they_are_taken_back(
    files: Mapping[str, Store], caplog: pytest.LogCaptureFixture
) -> None:
    class Keeps(PlantedWrite):
        def __init__(self, write: Write, fault: Fault) -> None:
            super().__init__(write, fault)
            self.window = 3

        def put(self, piece: Piece) -> None:
            self.fault("put", self.puts)
            self.puts += 1

    hang = Hang("put", 1)
    hang.free.set()  # it returns at once, but the pieces stay
    trial = Trial(files, {"two": hang})
    trial.stores["two"].wrapper = Keeps
    trial.run().holds("one", "three")
    assert set(trial.failed) == {"two"}
    trial.end()
    assert trial.stores["two"].writes[0].puts == 3
    assert "kept 3 pieces" in caplog.text


def test_a_slow_store_holds_back_the_others_but_lets_them_be_some_pieces_ahead(files: Mapping[str, Store]) -> None:
    transfers = Transfers(64 << 20, 1000)
    ahead, memory = [], []

    def slow(step: str, number: int) -> None:
        if step == "put":
            quick = trial.stores["one"].writes[0]
            until(lambda: source.at == len(data) or quick.puts > number + AHEAD)
            ahead.append(quick.puts - number)
            memory.append(transfers.buffers.budget.used)

    data = pattern(16 * BUFFER)
    source = Memory(data)
    trial = Trial(files, {"two": slow}, transfers=transfers, source=source)
    trial.run()
    assert {content(files[name], one.url) == data for name, one in trial.stored.items()} == {True}
    assert max(ahead) == AHEAD + 1
    assert max(memory) <= (AHEAD + 2) * BUFFER
    trial.end()


# --- ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"want": {"hash": "0" * 128}}, {"expect": len(DATA) + 1}, {"cap": len(DATA) - 1}])
def test_nothing_is_committed_anywhere_unless_all_is_right(files: Mapping[str, Store], change: dict[str, Any]) -> None:
    trial = Trial(files, {}, **change)
    with pytest.raises((errors.Invalid, errors.OverLimit)):
        trial.run()
    trial.end()
    trial.holds()
    assert [write.steps for store in trial.stores.values() for write in store.writes] == [["abort"]] * 3


def test_a_commit_needs_a_whole_image(files: Mapping[str, Store]) -> None:
    trial = Trial(files, {})
    assert trial.fan
    with trial.fan as fan, pytest.raises(RuntimeError, match="not verified"):
        next(fan.commit())
    trial.end()
    trial.holds()


@pytest.mark.parametrize("step", ["read", "wait", "commit"])
def test_a_transfer_that_is_not_wanted_any_more_leaves_nothing(files: Mapping[str, Store], step: str) -> None:
    """It ends while it reads, while it waits for a store, and while stores commit."""
    hang = {"read": nothing, "wait": Hang("put", 3), "commit": Hang("commit")}[step]
    seconds = [0.0]

    def alive() -> None:
        over = hang.reached.is_set() if isinstance(hang, Hang) else trial.source.at > len(DATA) // 2
        if over and (step != "commit" or len(trial.stored) == 2):
            raise errors.Gone("deleted")

    def clock() -> float:
        seconds[0] += 1.0
        return seconds[0]

    trial = Trial(files, {"two": hang}, patience=1e9, commit_patience=1e9, alive=alive, clock=clock)
    with pytest.raises(errors.Gone, match="deleted"):
        trial.run()
    assert store_threads() == (["store two"] if isinstance(hang, Hang) else [])
    trial.end()
    for name in trial.stored:
        files[name].clean(ID, "ab12-1", trial.notes[name])
    trial.stored.clear()
    trial.holds()


def test_copies_are_told_as_they_are_done(files: Mapping[str, Store]) -> None:
    hang = Hang("commit")

    def stored(_: str) -> None:
        if len(trial.stored) == 2:
            hang.free.set()

    trial = Trial(files, {"two": hang}, on_stored=stored, commit_patience=1e9)
    trial.run()
    assert list(trial.stored)[-1] == "two"
    trial.holds(*THREE)
    trial.end()


def test_a_caller_that_cannot_record_a_copy_ends_the_others(files: Mapping[str, Store]) -> None:
    def stored(_: str) -> None:
        raise errors.Conflict("not recorded")

    trial = Trial(files, {"two": Hang("commit"), "three": Hang("commit")}, on_stored=stored)
    with pytest.raises(errors.Conflict):
        trial.run()
    trial.end()
    assert list(trial.stored) == ["one"]
    trial.holds("one")


def test_a_store_writes_the_log_of_the_transfer(files: Mapping[str, Store]) -> None:
    seen = set()
    context.RequestContext(request_id="req-1", overwrite=True)
    try:
        Trial(files, {"two": lambda *_: seen.add(context.get_current().request_id)}).run().end()
    finally:
        context._request_store.context = None
    assert seen == {"req-1"}


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1000, LITTLE, 2 * LITTLE, BUFFER])
def test_any_budget_is_enough(files: Mapping[str, Store], total: int) -> None:
    data = DATA[:300_000]
    trial = Trial(files, {}, transfers=Transfers(total, 10), source=Memory(data)).run()
    assert [content(files[name], one.url) == data for name, one in trial.stored.items()] == [True] * 3
    trial.end()


@pytest.mark.parametrize("total", [2 * LITTLE, 4 * LITTLE])
def test_a_store_that_hangs_with_all_of_the_memory_is_given_up(files: Mapping[str, Store], total: int) -> None:
    transfers = Transfers(total, 10)

    class Waits(Trial):
        def clock(self) -> float:
            return super().clock() if transfers.buffers.budget.waiting else self.seconds

    trial = Waits(files, {"two": Hang("put", 1)}, transfers=transfers).run()
    assert "not answered" in str(trial.failed["two"])
    trial.holds("one", "three")
    trial.end()


def test_transfers_share_what_silent_uploads_leave_of_the_memory(tmp_path: Path) -> None:
    transfers = Transfers(2 * BUFFER, 1000)
    silent = [transfers.buffers.take(LITTLE) for _ in range(29)]  # of 32
    trials: list[Trial] = []
    for number in range(6):
        names = [f"{number}-{name}" for name in THREE]
        stores = {name: file_store(tmp_path, name) for name in names}
        trials.append(Trial(stores, {names[1]: lambda *_: time.sleep(0.001)}, transfers=transfers))
    threads = [threading.Thread(target=trial.run) for trial in trials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for trial in trials:
        trial.holds(*trial.stores)
    for piece in silent:
        piece.release()
    trials[0].end()


# --- any mixture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_store_has_all_or_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    stores: dict[str, Store] = {}
    faults: dict[str, Fault] = {}
    for number in range(draw.randint(1, 5)):
        name = f"s{number}"
        toy = draw.random() < 0.4
        stores[name] = ToyStore(name, Backend(room=64 << 20), frozenset()) if toy else file_store(tmp_path, name)
        at = draw.choice(["begin", "put", "put", "put", "commit", "committed"])
        count = draw.randint(0, 9) if at == "put" else 0
        pause: Fault = partial(rest, draw.uniform(0, 0.01))
        faults[name] = draw.choice([nothing, nothing, Raise(at, count), Hang(at, count), pause])
    wrong = draw.random() < 0.2
    trial = Trial(stores, faults, want={"hash": "0" * 128} if wrong else None)
    bad = {name for name, fault in faults.items() if isinstance(fault, Raise | Hang)}
    if wrong or bad == set(stores):
        with pytest.raises((errors.Invalid, errors.StoreUnavailable)):
            trial.run()
    else:
        trial.run()
        assert set(trial.failed) == bad
    expected = set() if wrong else set(stores) - bad
    trial.end()
    for name in stores.keys() - expected:
        stores[name].clean(ID, "ab12-1", trial.notes.get(name))
    trial.holds(*expected)
    for name, store in stores.items():
        left = store.backend.kept if isinstance(store, ToyStore) else set(map(str, (tmp_path / name).glob(f"{ID}*")))
        assert len(left) == (name in expected)
