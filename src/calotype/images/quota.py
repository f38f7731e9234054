"""Quotas: compares what a project uses with its limits, and reserves what an upload will use.

Quotas are never exceeded. A transaction that adds something locks the project, reads what it uses and what others have
reserved, and writes what it adds itself. So of two requests that would fit one at a time, one is refused.

Call `allowance` before the transaction, as it may ask Keystone. If it returns None, nothing is limited, and no function
here asks the database anything.
"""

from calotype import errors
from calotype.context import Context
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.db.usage import lock_project, usage
from calotype.limits import Allowance
from calotype.model import Image, Job
from calotype.service import Service

#: Bytes to reserve for data of unknown size: the first step, and the largest; each step doubles the reservation. So
#: 1 GiB takes nine transactions, and no upload reserves more than 256 MiB that it does not need.
FIRST_STEP, LARGEST_STEP = 16 << 20, 256 << 20


def allowance(svc: Service, ctx: Context, owner: str | None) -> Allowance | None:
    """The limits for the caller's work on an image of `owner`. Not to be called in a transaction. Raises `Busy`."""
    return svc.limits.of(ctx.project, owner)


def check_image_count(tx: Tx, allowed: Allowance | None) -> None:
    """Raise `OverLimit` if the image that this transaction has added is one too many."""
    if allowed is None or allowed.images is None:
        return
    lock_project(tx, allowed.project)
    count = usage(tx, allowed.project, "images")["images"]
    if count > allowed.images:
        raise errors.OverLimit(
            f"Project {allowed.project} may have {allowed.images} images; it has {count - 1}, and 1 more was asked for."
        )


def check_uploading_count(tx: Tx, allowed: Allowance | None) -> None:
    """Raise `OverLimit` if the image that this transaction has begun to upload is one too many."""
    if allowed is None or allowed.uploading is None:
        return
    lock_project(tx, allowed.project)
    count = usage(tx, allowed.project, "uploading")["uploading"]
    if count > allowed.uploading:
        raise errors.OverLimit(
            f"Project {allowed.project} may have {allowed.uploading} images that are uploading; it has {count - 1}, "
            "and 1 more was asked for."
        )


def check_staged(tx: Tx, allowed: Allowance | None, size: int) -> int | None:
    """How many more bytes of the project may wait to be imported, None for any number.

    Raises `OverLimit` if that is less than `size`.
    """
    if allowed is None or allowed.staged is None:
        return None
    lock_project(tx, allowed.project)
    staged = usage(tx, allowed.project, "staged")["staged"]
    if staged + size > allowed.staged:
        raise errors.OverLimit(
            f"Project {allowed.project} may stage {allowed.staged} bytes; it has staged {staged}, and {size} more were "
            "asked for."
        )
    return allowed.staged - staged


def bytes_to_reserve(tx: Tx, allowed: Allowance | None, size: int | None, *, instead_of: Job | None = None) -> int:
    """How many bytes this transaction has to reserve for data of this size; None: of a size that is not known yet.

    If the transaction adds the copy itself, it need not reserve them. They replace the reservation of `instead_of`.
    Raises `OverLimit`.
    """
    if allowed is None or allowed.size is None:
        return size or 0
    remaining = _remaining(tx, allowed, allowed.size, 1 if size is None else size, except_job=instead_of)
    return min(FIRST_STEP, remaining) if size is None else size


def reserve(svc: Service, allowed: Allowance | None, size: int, job: Job) -> None:
    """Let a job reserve so many bytes, if it has fewer. Raises `OverLimit`, `Gone`, `Busy`."""
    if allowed is None or size <= job.reserved:
        return

    def work(tx: Tx) -> None:
        if not jobs.reserve(tx, job, bytes_to_reserve(tx, allowed, size, instead_of=job)):
            raise errors.Gone("The job was taken away.")

    svc.db.write(work)


class GrowingReservation:
    """The reservation for data of unknown size, which grows as the data arrives."""

    def __init__(self, svc: Service, allowed: Allowance, limit: int, job: Job) -> None:
        self._svc = svc
        self._allowed = allowed
        self._limit = limit
        self._job = job
        self._reserved = job.reserved

    def admit(self, size: int) -> None:
        """Reserve more if the data has come to this size. Raises `OverLimit`, `Gone`, `Busy`."""
        if size > self._reserved:
            self._reserved = self._svc.db.write(lambda tx: self._reserve(tx, size))

    def _reserve(self, tx: Tx, size: int) -> int:
        remaining = _remaining(tx, self._allowed, self._limit, size, except_job=self._job)
        step = min(max(self._reserved, FIRST_STEP), LARGEST_STEP)
        reserved = min(max(size, self._reserved + step), remaining)
        if not jobs.reserve(tx, self._job, reserved):
            raise errors.Gone("The image was deleted, or its upload given up, while data was arriving.")
        return reserved


def growing_reservation(
    svc: Service, allowed: Allowance | None, size: int | None, job: Job
) -> GrowingReservation | None:
    """The reservation to grow as data arrives; None if its size is known, or nothing is limited."""
    if size is not None or allowed is None or allowed.size is None:
        return None
    return GrowingReservation(svc, allowed, allowed.size, job)


def _remaining(tx: Tx, allowed: Allowance, limit: int, wanted: int, *, except_job: Job | None = None) -> int:
    """How many bytes the project may still use. Raises `OverLimit` if that is less than `wanted`."""
    lock_project(tx, allowed.project)
    used = usage(tx, allowed.project, "stored", "reserved", except_job=except_job.id if except_job else "")
    remaining = limit - used["stored"] - used["reserved"]
    if wanted > remaining:
        raise errors.OverLimit(
            f"Project {allowed.project} may store {limit} bytes; it has stored {used['stored']}, uploads and deletes "
            f"under way keep {used['reserved']}, and {wanted} more were asked for."
        )
    return remaining


def check_limit(limit: int, count: int, what: str) -> None:
    """Raise `OverLimit` if an image would have more of something than it may; a negative limit is none.

    The caller has locked the image's row, so the limit is never exceeded.
    """
    if 0 <= limit < count:
        raise errors.OverLimit(f"The limit of {limit} {what} on an image has been exceeded: {count} were asked for.")


def check_location_count(svc: Service, image: Image) -> None:
    """Raise `OverLimit` if a locked image may not have another location."""
    check_limit(svc.conf.image_location_quota, len(image.locations) + 1, "locations")


def report(svc: Service, ctx: Context) -> dict[str, tuple[int, int]]:
    """What the caller's project uses and may use, by the names of the limits. Sizes are in MiB; -1 is no limit.

    Empty unless limits come from Keystone. Raises `Busy`.
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
