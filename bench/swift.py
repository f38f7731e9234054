"""`python -m bench.swift`: uploads of unknown size to a Swift whose every request waits, by eight threads and by one.

A proxy before a real Swift holds each request for half a second, so waiting is most of the time. The image has 44
segments of the smallest size. With one thread they follow each other, as those of Glance do, and the manifest is its.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.stores.suite import feed
from tests.stores.swift_kit import Swifts

from calotype.buffers import Budget
from calotype.context import SERVICE
from calotype.stores.swift_options import UNIT

SEGMENTS = 44
MUST = 3.0


def upload(kit: Swifts, threads: int, delay: float) -> float:
    """Seconds of an upload."""
    store = kit.store(swift_store_thread_pool_size=threads, part_memory=Budget(256 << 20), read_timeout=60.0)
    store._account.request("HEAD")  # the token is there already, as in a service
    piece = bytes(1 << 20)
    attempt = f"ab12-{time.time_ns()}"
    kit.proxy.delay = delay
    begun = time.monotonic()
    write = store.begin("11111111-2222-4333-8444-555555555555", attempt=attempt, size=None, note=str, ctx=SERVICE)
    feed(write, (piece[: min(1 << 20, SEGMENTS * UNIT - at)] for at in range(0, SEGMENTS * UNIT, 1 << 20)))
    stored = write.commit()
    took = time.monotonic() - begun
    kit.proxy.delay = 0.0
    assert stored.size == SEGMENTS * UNIT
    store.delete(stored.url, ctx=SERVICE)
    return took


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.swift", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds before each request is passed on")
    options = parser.parse_args()
    kit = Swifts(Path(tempfile.gettempdir()))
    upload(kit, 8, 0.0)  # makes the container
    found: dict[int, list[float]] = {1: [], 8: []}
    for _ in range(options.rounds):
        for threads, times in found.items():
            times.append(upload(kit, threads, options.delay))
    one, eight = (statistics.median(times) for times in found.values())
    print(f"{SEGMENTS} segments, {options.delay:g} s before each request, medians of {options.rounds}:")
    print(f"one thread {one:.1f} s, eight {eight:.1f} s: {one / eight:.1f} times as fast (must reach {MUST:g})")
    kit.close()
    return 0 if one / eight >= MUST else 1


if __name__ == "__main__":
    sys.exit(main())
