"""Quotas: what a project has, compared with what it may have.

Hard ones: whoever wants more takes the project's turn, reads what it uses, with what others have reserved, and writes
down what it adds to that, in one transaction. Of two who would both fit alone, one does. `limits.py` knows what a
project may have; ask it with `allowance` before the transaction. None there means that nothing is limited, and then
nothing is asked of the database here.
"""

from calotype import errors
from calotype.context import Context
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.db.usage import lock_project, usage
from calotype.limits import Allowance
from calotype.model import Image, Job
from calotype.service import Service

#: Bytes that are reserved for data of unknown size before it comes; then as many again as there are, up to the second.
#: 1 GiB takes nine transactions, and no upload keeps more than 256 MiB from others that it does not need.
FIRST_STEP, LARGEST_STEP = 16 << 20, 256 << 20


def allowance(svc: Service, ctx: Context, owner: str | None) -> Allowance | None:
    """What limits the caller's work on an image of `owner`. Not in a transaction. Raises `Busy`."""
    return svc.limits.of(ctx.project, owner)


def count_image(tx: Tx, allowed: Allowance | None) -> None:
    """Count an image that was added in this transaction. Raises `OverLimit`."""
    if allowed is None or allowed.images is None:
        return
    lock_project(tx, allowed.project)
    there = usage(tx, allowed.project, "images")["images"]
    if there > allowed.images:
        raise errors.OverLimit(
            f"Project {allowed.project} may have {allowed.images} images; it has {there - 1}, and 1 more was asked for."
        )


def count_uploading(tx: Tx, allowed: Allowance | None) -> None:
    """Count an image that began to wait for its data in this transaction. Raises `OverLimit`."""
    if allowed is None or allowed.uploading is None:
        return
    lock_project(tx, allowed.project)
    coming = usage(tx, allowed.project, "uploading")["uploading"]
    if coming > allowed.uploading:
        raise errors.OverLimit(
            f"Project {allowed.project} may have {allowed.uploading} images that are uploading; it has {coming - 1}, "
            "and 1 more was asked for."
        )


def room(tx: Tx, allowed: Allowance | None, size: int | None) -> int:
    """How many bytes to reserve, in this transaction, for data of this size, or of a size that is not known yet.

    Who adds a copy in the same transaction need not reserve anything. Raises `OverLimit`.
    """
    if allowed is None or allowed.size is None:
        return size or 0
    remaining = _remaining(tx, allowed, allowed.size, 1 if size is None else size)
    return min(FIRST_STEP, remaining) if size is None else size


class Growing:
    """Room for data of unknown size: more is reserved for its job as it comes."""

    def __init__(self, svc: Service, allowed: Allowance, limit: int, job: Job) -> None:
        self._svc = svc
        self._allowed = allowed
        self._limit = limit
        self._job = job
        self._reserved = job.reserved

    def admit(self, size: int) -> None:
        """Data has come to this size, and may go on. Raises `OverLimit`, `Gone`, `Busy`."""
        if size > self._reserved:
            self._reserved = self._svc.db.write(lambda tx: self._reserve(tx, size))

    def _reserve(self, tx: Tx, size: int) -> int:
        remaining = _remaining(tx, self._allowed, self._limit, size, except_job=self._job)
        step = min(max(self._reserved, FIRST_STEP), LARGEST_STEP)
        reserved = min(max(size, self._reserved + step), remaining)
        if not jobs.reserve(tx, self._job, reserved):
            raise errors.Gone("The image was deleted, or its upload given up, while data was arriving.")
        return reserved


def growing(svc: Service, allowed: Allowance | None, size: int | None, job: Job) -> Growing | None:
    """What has to be asked as data comes; None where nothing more is to be reserved for it."""
    if size is not None or allowed is None or allowed.size is None:
        return None
    return Growing(svc, allowed, allowed.size, job)


def _remaining(tx: Tx, allowed: Allowance, limit: int, wanted: int, *, except_job: Job | None = None) -> int:
    """The bytes that the project may use for this, at least as many as are wanted. Raises `OverLimit`."""
    lock_project(tx, allowed.project)
    used = usage(tx, allowed.project, "stored", "reserved", except_job=except_job.id if except_job else "")
    remaining = limit - used["stored"] - used["reserved"]
    if wanted > remaining:
        raise errors.OverLimit(
            f"Project {allowed.project} may store {limit} bytes; it has stored {used['stored']}, uploads and deletes "
            f"under way keep {used['reserved']}, and {wanted} more were asked for."
        )
    return remaining


def within(limit: int, count: int, what: str) -> None:
    """Refuse more of something than an image may have; a negative limit lifts it. Raises `OverLimit`.

    Hard because whoever asks has the image's row locked.
    """
    if 0 <= limit < count:
        raise errors.OverLimit(f"The limit of {limit} {what} on an image has been exceeded: {count} were asked for.")


def one_more_location(svc: Service, image: Image) -> None:
    """Refuse a location that would be one too many, for an image that is locked. Raises `OverLimit`."""
    within(svc.conf.image_location_quota, len(image.locations) + 1, "locations")


def report(svc: Service, ctx: Context) -> dict[str, tuple[int, int]]:
    """What the caller's project uses and may use, by the limits' names; sizes are MiB, -1 is no limit.

    Empty where limits are not Keystone's. Raises `Busy`.
    """
    allowed = allowance(svc, ctx, None)
    if allowed is None:
        return {}
    parts = ("stored", "reserved", "staged", "images", "uploading")
    used = svc.db.snapshot(lambda tx: usage(tx, allowed.project, *parts))
    sizes = {
        "image_size_total": (used["stored"] + used["reserved"], allowed.size),
        "image_stage_total": (used["staged"], allowed.staged),
    }
    counts = {
        "image_count_total": (used["images"], allowed.images),
        "image_count_uploading": (used["uploading"], allowed.uploading),
    }
    found = {name: (use >> 20, -1 if most is None else most >> 20) for name, (use, most) in sizes.items()}
    return found | {name: (use, -1 if most is None else most) for name, (use, most) in counts.items()}
