"""`python -m bench.rbd`: the rbd driver on a Ceph of its own, without the service.

Uploads with one write at a time and with eight, beside a loop that writes one object after the other, as Glance does;
and the last MiB of a sparse image of 10 GiB. Medians of rounds in which the ways take turns.
"""

import argparse
import contextlib
import statistics
import time
import uuid
from collections.abc import Callable

from tests.stores.ceph import ceph, rbd_store

from calotype.buffers import BUFFER, Buffers
from calotype.context import SERVICE
from calotype.images.stream import WriteWindow
from calotype.stores.base import writing
from calotype.stores.rbd import RbdStore

MIB = 1 << 20
BUFFERS = Buffers(64 * MIB)


def upload(store: RbdStore, size: int) -> float:
    """MiB a second."""
    image_id = str(uuid.uuid4())
    begun = time.monotonic()
    with writing(store, image_id, attempt="ab12-1", size=size, note=lambda _: None, ctx=SERVICE) as write:
        window = WriteWindow(write, lambda: None)
        for _ in range(size // BUFFER):
            piece = BUFFERS.take(BUFFER)
            piece.view[:8] = b"not zero"
            window.put(piece)
            piece.release()
        url = write.commit().url
    took = time.monotonic() - begun
    store.delete(url, ctx=SERVICE)
    return size / MIB / took


def one_after_the_other(size: int, data_pool: str | None) -> float:
    """MiB a second of a loop that writes objects of 8 MiB, waits for each, and takes a snapshot."""
    data = memoryview(bytearray(b"not zero" * MIB))
    with contextlib.closing(ceph().admin.pool("one")) as pool:
        begun = time.monotonic()
        pool.create("loop", size, features=61, order=23, data_pool=data_pool)
        with contextlib.closing(pool.open("loop")) as image:
            for offset in range(0, size, len(data)):
                transfer = image.write(offset, [data])
                while not transfer.ended:
                    image.collect()
                    time.sleep(0.0005)
            image.flush()
            image.take_snapshot("snap")
        took = time.monotonic() - begun
        with contextlib.closing(pool.open("loop")) as image:
            image.unprotect("snap")
            image.remove_snapshot(image.snapshots()[0])
        ceph().rbd("rm", "--no-progress", "one/loop")
    return size / MIB / took


def end_of_large(store: RbdStore, url: str) -> float:
    """Milliseconds until the last MiB of 10 GiB was read."""
    begun = time.monotonic()
    with contextlib.closing(store.read(url, offset=(10 << 30) - MIB, length=MIB, ctx=SERVICE)) as body:
        assert sum(map(len, body)) == MIB
    return 1000 * (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rbd")
    parser.add_argument("--mib", type=int, default=256, help="size of an upload, default 256")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    size = options.mib * MIB
    cluster = ceph()
    cluster.ensure_pool("one")
    cluster.pool("coded", erasure=True)
    slow = {"connect_timeout": 60.0, "read_timeout": 60.0, "rbd_store_chunk_size": 8, "rbd_store_pool": "one"}
    ways: dict[str, Callable[[], float]] = {}
    for kind, pool in (("replicated", None), ("erasure-coded", "coded")):
        ways[f"{kind}, one object after the other, MiB/s"] = lambda pool=pool: one_after_the_other(size, pool)  # type: ignore[misc]
        for writes in (1, 8):
            store = rbd_store(**slow, rbd_store_data_pool=pool, rbd_store_writes=writes)
            ways[f"{kind}, {writes} at a time, MiB/s"] = lambda store=store: upload(store, size)  # type: ignore[misc]
    store = rbd_store(**slow)
    image_id = str(uuid.uuid4())
    cluster.rbd("create", "--size", "10G", f"one/{image_id}")
    cluster.rbd("snap", "create", f"one/{image_id}@snap")
    url = f"rbd://{cluster.fsid}/one/{image_id}/snap"
    ways["the last MiB of 10 GiB, ms"] = lambda: end_of_large(store, url)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(way())
    for name, values in found.items():
        print(f"{name:50} {statistics.median(values):8.1f}   {' '.join(f'{value:.0f}' for value in sorted(values))}")


if __name__ == "__main__":
    main()
