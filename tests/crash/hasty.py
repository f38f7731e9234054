"""`calotype` with short leases, so that a process that sleeps for seconds loses its jobs to others.

Its callers have a catalog with one other region, as if a Keystone had sent it.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from calotype.auth import basic
from calotype.auth.base import Delegation
from calotype.cli import main as calotype
from calotype.db import leases
from calotype.images import work

#: As long as a process may sleep without losing a job, seconds.
LEASE = 3.0
#: The other region, and the variable with the URL of its Image service.
REGION, VARIABLE = "There", "CALOTYPE_TEST_REGION"


def main() -> int:
    leases.LEASE = timedelta(seconds=LEASE)
    leases._BEAT_SECONDS = LEASE / 6
    work.PROGRESS_SECONDS = 0.3  # type: ignore[misc]
    basic.BasicAuth.delegation = _delegation  # type: ignore[assignment,method-assign]
    return calotype.main()


def _delegation(_: basic.BasicAuth, __: Mapping[str, Any]) -> Delegation:
    there = {"region": REGION, "publicURL": os.environ[VARIABLE]}
    return Delegation("a token", [{"type": "image", "endpoints": [there]}])
