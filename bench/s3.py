"""An upload of unknown size to S3, beside s3transfer, the library that boto3 uploads with.

    python -m bench.s3 [--mib N] [--times N] [--server "URL ACCESS SECRET"]

Seconds and memory of the upload alone: each in a process of its own, in turns, medians. Without `--server` the server
is one that takes and drops what it gets, so that the clients are measured. Otherwise a bucket `calotype-bench` is made.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from calotype.buffers import BUFFER, Budget, Buffers
from calotype.context import SERVICE
from calotype.stores.base import writing
from calotype.stores.s3 import OPTIONS, S3Store

BUCKET = "calotype-bench"
KEY = "11111111-2222-4333-8444-555555555555"


class Sink(BaseHTTPRequestHandler):
    """As much of S3 as uploads need. It keeps the sizes and the metadata alone."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    objects: ClassVar[dict[str, tuple[int, str]]] = {}
    uploads: ClassVar[dict[str, tuple[int, str]]] = {}

    def do_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        left, block = size, memoryview(bytearray(1 << 20))
        while left:
            got = self.rfile.readinto(block[: min(left, len(block))])  # type: ignore[attr-defined]
            left -= got
        path, _, query = self.path.partition("?")
        attempt = self.headers.get("x-amz-meta-calotype-attempt", "")
        upload = re.sub(".*uploadId=", "", query)
        if self.command == "HEAD" and path.count("/") > 1:
            if path not in self.objects:
                self.answer(404)
            else:
                total, written_by = self.objects[path]
                self.answer(200, {"Content-Length": str(total), "x-amz-meta-calotype-attempt": written_by})
        elif self.command == "POST" and query.startswith("uploads"):
            name = f"u{len(self.uploads)}"
            self.uploads[name] = 0, attempt
            self.answer(200, text=f"<R><UploadId>{name}</UploadId></R>")
        elif self.command == "POST":
            self.objects[path] = self.uploads.pop(upload)
            self.answer(200, text="<R><ETag>x</ETag></R>")
        elif self.command == "PUT" and "uploadId" in query:
            upload = re.findall("uploadId=([^&]+)", query)[0]
            total, attempt = self.uploads[upload]
            self.uploads[upload] = total + size, attempt
            self.answer(200)
        elif self.command == "DELETE":
            self.objects.pop(path, None)
            self.answer(204)
        else:
            self.answer(200, text="<R></R>" if self.command == "GET" else "")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815

    def answer(self, status: int, headers: dict[str, str] | None = None, text: str = "") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(text)), "ETag": '"x"'} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


class Pieces:
    """A file of a size that nobody knows."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._data = bytes(range(256)) * 4096 * 8  # what s3transfer asks for at once

    def read(self, size: int = -1) -> bytes:
        found = self._data[: min(self._left, len(self._data), size if size >= 0 else self._left)]
        self._left -= len(found)
        return found


def ours(server: list[str], size: int) -> None:
    given = dict(zip(("s3_store_host", "s3_store_access_key", "s3_store_secret_key"), server, strict=True))
    options = {one.dest: one.default for one in OPTIONS} | given
    store = S3Store("bench", options | {"s3_store_bucket": BUCKET, "part_memory": Budget(256 << 20)})
    store._probe.abilities(60)
    measured = Measured()
    buffers, source = Buffers(64 << 20), Pieces(size)
    with writing(store, KEY, attempt="a-1", size=None, note=lambda _: None, ctx=SERVICE) as write:
        while data := source.read(BUFFER):
            piece = buffers.take(len(data))
            piece.view[:] = data
            write.put(piece)
        url = write.commit().url
    measured.tell()
    store.delete(url, ctx=SERVICE)


def s3transfer(server: list[str], size: int) -> None:
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    keys = {"aws_access_key_id": server[1], "aws_secret_access_key": server[2]}
    client = boto3.client("s3", endpoint_url=server[0], region_name="us-east-1", config=config, **keys)
    client.head_bucket(Bucket=BUCKET)
    measured = Measured()
    client.upload_fileobj(Pieces(size), BUCKET, KEY)
    measured.tell()
    client.delete_object(Bucket=BUCKET, Key=KEY)


class Measured:
    """Time and memory since it was made."""

    def __init__(self) -> None:
        self._peak = _peak()
        self._begun, self._cpu = time.monotonic(), time.process_time()

    def tell(self) -> None:
        seconds, cpu = time.monotonic() - self._begun, time.process_time() - self._cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, "grown": _peak() - self._peak, "peak": _peak()}))


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


WAYS = {"calotype": ours, "s3transfer": s3transfer}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure uploads to S3.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the image, default 1024")
    parser.add_argument("--times", type=int, default=5, help="uploads of each, default 5")
    parser.add_argument("--server", default="", help="URL, access key and secret key of another server")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink:
        http = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
        print(http.server_address[1], flush=True)
        http.serve_forever()
    if options.way:
        WAYS[options.way](options.server.split(), options.mib << 20)
        return
    again = [sys.executable, "-m", "bench.s3", "--mib", str(options.mib)]
    sink = None
    if not options.server:
        sink = subprocess.Popen([*again, "--sink"], stdout=subprocess.PIPE, text=True)
        assert sink.stdout is not None
        options.server = f"http://127.0.0.1:{sink.stdout.readline().strip()} access secret"
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    try:
        _make_bucket(options.server.split())
        for _ in range(options.times):
            for way, results in found.items():
                command = [*again, "--server", options.server, "--way", way]
                results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    finally:
        if sink is not None:
            sink.terminate()
            sink.wait()
    for way, results in found.items():
        figures = {name: statistics.median(one[name] for one in results) for name in results[0]}
        rate = options.mib / figures["seconds"]
        memory = f"memory + {figures['grown']:.0f} MiB, peak {figures['peak']:.0f} MiB"
        print(f"{way:10}  {figures['seconds']:.2f} s  {rate:.0f} MiB/s  CPU {figures['cpu']:.2f} s  {memory}")
    seconds = {way: statistics.median(one["seconds"] for one in results) for way, results in found.items()}
    print(f"calotype has {seconds['s3transfer'] / seconds['calotype']:.2f} of the speed of s3transfer")


def _make_bucket(server: list[str]) -> None:
    from botocore.session import Session

    keys = {"aws_access_key_id": server[1], "aws_secret_access_key": server[2]}
    Session().create_client("s3", endpoint_url=server[0], region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
    main()
