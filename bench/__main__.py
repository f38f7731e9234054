"""`make bench`: what the data path costs beside its floors, in one run; and start-up, idle memory, memory a transfer.

    python -m bench [--size MiB] [--times N] [--big GiB] [--directory DIR]

CPU-seconds are those of the service's processes alone (user and system), medians over rounds in which floors and
service take turns, so that a machine that slows down slows all. Ratios are what to look at.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.support import PASSWORD, Client, Service

from bench import floors
from bench.client import MIB, Target, basic, elsewhere, receive, send


def target(service: Service) -> Target:
    """The service as alice reaches it."""
    return Target(service.port, basic("alice"))


def processes(service: Service) -> list[psutil.Process]:
    assert service.process
    master = psutil.Process(service.process.pid)
    return [master, *master.children()]


def cpu(service: Service) -> float:
    """CPU-seconds that the service has used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes(service))


class Figures:
    """Named samples, printed as medians."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> float:
        return statistics.median(self.samples[name])


def data_path(service: Service, directory: Path, size: int, times: int) -> Figures:
    """Uploads in both encodings and downloads, in turns with their floors."""
    alice, figures = service.client("alice"), Figures()
    put(service, alice, size, None, figures=None)  # warms up the disk, the code and the password
    with floors.cached_file(directory, size) as cached:
        for _ in range(times):
            figures.add("hash", floors.hash_floor(size))
            figures.add("receive", floors.receive_floor(directory, size))
            image_id = put(service, alice, size, None, figures=figures, name="PUT, Content-Length", keep=True)
            figures.add("send", floors.send_floor(cached))
            before = cpu(service)
            figures.add("GET wall", elsewhere(receive, target(service), image_id, size))
            figures.add("GET", cpu(service) - before)
            alice.delete(image_id)
            put(service, alice, size, 64 << 10, figures=figures, name="PUT, chunks of 64 KiB")
    return figures


def put(
    service: Service,
    alice: Client,
    size: int,
    chunk: int | None,
    *,
    figures: Figures | None,
    name: str = "",
    keep: bool = False,
) -> str:
    image_id = alice.queued()
    before = cpu(service)
    wall = elsewhere(send, target(service), image_id, size, chunk)
    if figures is not None:
        figures.add(name, cpu(service) - before)
        figures.add(f"{name} wall", wall)
    if not keep:
        alice.delete(image_id)
    return image_id


@contextmanager
def peak(service: Service) -> Iterator[list[float]]:
    """The largest PSS of all of the service's processes during the block, MiB, as the one element of the list."""
    found, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            found[0] = max(found[0], sum(pss(service)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def pss(service: Service) -> list[float]:
    """Proportional memory of each process, the master first, MiB."""
    return [process.memory_full_info().pss / MIB for process in processes(service)]


def start_up(directory: Path) -> list[float]:
    """Seconds from the command to the first answer of /healthcheck, the first start not counted."""
    service, found = Service(directory / "start"), []
    for _ in range(6):
        begin = time.monotonic()
        service.start()
        found.append(time.monotonic() - begin)
        service.stop()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the data path against its floors.")
    parser.add_argument("--size", type=int, default=1024, help="MiB an upload, default 1024")
    parser.add_argument("--times", type=int, default=5, help="rounds, default 5")
    parser.add_argument(
        "--big", type=int, default=10, help="GiB of the sparse upload that memory is watched in; 0 skips it"
    )
    parser.add_argument("--directory", type=Path, help="where to put files; default: a temporary directory")
    options = parser.parse_args()
    size = options.size * MIB
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        print(f"start-up to /healthcheck: {statistics.median(start_up(directory)):.2f} s (median of 5)")
        conf = (
            "[DEFAULT]\nenabled_backends = plain:file, thin:file\n[glance_store]\ndefault_backend = plain\n"
            f"[plain]\nfilesystem_store_datadir = {directory}/plain\n"
            f"[thin]\nfilesystem_store_datadir = {directory}/thin\nfilesystem_thin_provisioning = true\n"
        )
        service = Service(directory / "state", conf).start()
        try:
            service.client("alice").get("/v2/images")
            idle = pss(service)
            print(f"idle memory: master {idle[0]:.0f}, worker {idle[1]:.0f} MiB PSS")
            figures = data_path(service, directory, size, options.times)
            report(figures, options.size)
            if options.big:
                transfer_memory(service, options.big)
        finally:
            service.stop()


def report(figures: Figures, mib: int) -> None:
    upload = figures["hash"] + figures["receive"]
    print(f"\nCPU-seconds for {mib} MiB, medians of {len(figures.samples['hash'])}:")
    print(f"  {'md5 + sha512 of warm memory':34} {figures['hash']:6.2f}")
    print(f"  {'receive, write, fsync':34} {figures['receive']:6.2f}")
    for name in ("PUT, Content-Length", "PUT, chunks of 64 KiB"):
        wall = mib / figures[name + " wall"]
        print(f"  {name:34} {figures[name]:6.2f}   {figures[name] / upload:.2f} x floor   {wall:.0f} MiB/s")
    print(f"  {'sendfile':34} {figures['send']:6.2f}")
    wall = mib / figures["GET wall"]
    print(f"  {'GET':34} {figures['GET']:6.2f}   {figures['GET'] / figures['send']:.2f} x floor   {wall:.0f} MiB/s")


def transfer_memory(service: Service, gib: int) -> None:
    """A sparse upload into a thin store, watched."""
    alice = service.client("alice")
    image_id = alice.queued()
    before = sum(pss(service))
    with peak(service) as most:
        seconds = elsewhere(send_thin, service.port, image_id, gib << 30)
    print(
        f"\n{gib} GiB of zeros into a thin store: {seconds:.0f} s, memory + {most[0] - before:.1f} MiB PSS at its peak"
    )
    alice.delete(image_id)


def send_thin(port: int, image_id: str, size: int) -> None:
    """PUT zeros, chunked, into the store named thin. Runs in its own process."""
    import requests

    def zeros() -> Iterator[bytes]:
        block = bytes(MIB)
        for _ in range(size // MIB):
            yield block

    headers = {"Content-Type": "application/octet-stream", "x-image-meta-store": "thin"}
    url = f"http://127.0.0.1:{port}/v2/images/{image_id}/file"
    answer = requests.put(url, data=zeros(), headers=headers, auth=("alice", PASSWORD), timeout=3600)
    if answer.status_code != 204:
        raise SystemExit(f"upload refused: {answer.status_code} {answer.text}")


if __name__ == "__main__":
    main()
