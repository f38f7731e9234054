"""The kinds of jobs: for each its lane and its steps.

A step is a function that ends in one of these ways:

- It returns: it is done, and the next one runs. The last one removes the job in the transaction that ends the work.
- It raises `Postponed`: the job is due again later.
- It raises an error that `is_final`: what was done is undone, by the `undo` of this step and those before it, the last
  one first. The `undo` of the first step removes the job.
- It raises anything else: it is tried again after a pause. A kind with a limit of `attempts` then fails for good.

A step may run again from its beginning, in another process, after any of its statements. What it has kept with
`Work.keep` is there then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Final

from calotype import errors
from calotype.db import jobs
from calotype.images import data, importing, imports, locations, removal
from calotype.images.work import CancelAsked, Failed, Work, backoff
from calotype.jobs import chores
from calotype.model import Job

_FINAL: Final = (
    CancelAsked,
    Failed,
    errors.Invalid,
    errors.ContentRejected,
    errors.Conflict,
    errors.Forbidden,
    errors.NotFound,
    errors.OverLimit,
    errors.LocationRefused,
)


def is_final(failure: Exception) -> bool:
    """Whether another attempt cannot mend a failure."""
    if isinstance(failure, errors.SourceBroken):
        return failure.lasting
    return isinstance(failure, _FINAL) and not isinstance(failure, errors.BodyBroken)


class Lane(Enum):
    """Where a kind of job runs: chores one after another, transfers of whole images beside each other."""

    CHORE = "chore"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a job. `undo` removes what `run` has done or begun; like `run` it may run more than once.

    After a `final` step nothing is undone any more: what is left is done, however often it is tried.
    """

    name: str
    run: Callable[[Work], None]
    undo: Callable[[Work], None] | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. With `attempts` None it is tried until it succeeds. `backoff` is the pause before another try."""

    lane: Lane
    steps: Sequence[Step]
    attempts: int | None = None
    backoff: Callable[[Job], timedelta] = field(default=lambda job: jobs.backoff(job))

    def can_undo(self, step: int) -> bool:
        """Whether a job that is at this step can still be undone."""
        return any(one.undo for one in self.steps) and not any(one.final for one in self.steps[:step])


KINDS: Final[Mapping[str, Kind]] = {
    data.KIND: Kind(Lane.CHORE, [Step("clean up", chores.abandon_upload)]),
    removal.KIND: Kind(Lane.CHORE, [Step("remove", chores.finish_delete)]),
    locations.KIND: Kind(Lane.TRANSFER, [Step("hash", locations.hash_data, locations.refuse)]),
    imports.STAGED: Kind(Lane.CHORE, [Step("remove staged data", importing.drop_staged)]),
    imports.KIND: Kind(
        Lane.TRANSFER,
        [
            Step("receive", importing.receive, importing.undo),
            Step("end", importing.end, final=True),
            Step("tidy", importing.tidy),
        ],
        attempts=5,
        backoff=backoff,
    ),
}


def undoable() -> tuple[str, ...]:
    """The names of the kinds that can be undone."""
    return tuple(name for name, kind in KINDS.items() if kind.can_undo(0))


def of_lane(lane: Lane) -> tuple[str, ...]:
    """The names of the kinds in a lane."""
    return tuple(name for name, kind in KINDS.items() if kind.lane is lane)
