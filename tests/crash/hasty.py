"""`calotype` with short leases, so that a process that sleeps for seconds loses its jobs to others."""

from datetime import timedelta

from calotype.cli import main as calotype
from calotype.db import leases
from calotype.images import work

#: As long as a process may sleep without losing a job, seconds.
LEASE = 3.0


def main() -> int:
    leases.LEASE = timedelta(seconds=LEASE)
    leases._BEAT_SECONDS = LEASE / 6
    work.PROGRESS_SECONDS = 0.3  # type: ignore[misc]
    return calotype.main()
