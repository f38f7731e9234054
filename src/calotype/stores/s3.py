"""Images in a bucket of an S3 server, each under its image id, as Glance lays them out.

Every image is a multipart upload, a small one too: an upload has an id, and once it is aborted nobody can complete it.
So the upload is the fence of an attempt. `begin` creates it and notes its id, `clean` aborts it, and a writer that was
taken for dead gets `Gone` when it commits. S3 takes no part without bytes, so an empty image is put by one request;
then its upload is aborted, and if that is gone already, the object is removed again.

S3 has no names that show whose an upload is. Between `begin`'s request for an upload and its note there is another
note, with the server's time: `clean` then aborts the uploads of this key that were created since. An earlier attempt
has ended by then, and no later one begins before `clean` has returned.

Nothing is overwritten. Where the server keeps conditions of writes (`s3_probe.py`) it decides. Otherwise two writers
of one key see each other's uploads: each lists the uploads of its key before it completes its own, the one that was
created first goes on, and the other one is refused. After that it looks whether there is an object. An upload that
began after this look was created later, so its writer sees the first one's upload, or its object. This holds if the
server lists what it has, and for writers that do the same; a Glance does not. The metadata of each object has its
attempt, and `commit` reads it: what another writer has replaced at once is not reported as stored.

`s3_client.py` makes requests, `s3_body.py` reads, `parts.py` cuts data into parts and sends them.
"""

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from oslo_config import cfg

from calotype import errors
from calotype.buffers import Piece
from calotype.context import Context
from calotype.stores.base import Body, Feature, Health, Note, Stored, Write
from calotype.stores.parts import HEAD, Parts
from calotype.stores.s3_body import Opened, S3Body
from calotype.stores.s3_client import Client, Part, code_of, date_of
from calotype.stores.s3_probe import KEY, Probe, crc32
from calotype.threads import ThreadPool

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 60.0
_MIB: Final = 1 << 20
#: Limits of S3: parts of an object, bytes of a part and of an object.
MOST_PARTS: Final = 10_000
MOST_PART: Final = 5 << 30
MOST_SIZE: Final = 5 << 40
#: The metadata of an object that has the attempt which wrote it: `x-amz-meta-calotype-attempt`.
_ATTEMPT: Final = "calotype-attempt"
#: When the size is not known, parts grow by so many times the first size after each thousand of them. If the first has
#: 10 MiB, the last has 1 GiB, and all together have 5 TiB.
_STEP: Final = 1000
_GROWTH: Final = 11.5
#: How long `check` may take, seconds.
_CHECK: Final = 1.8
#: How long a commit waits to know what the server can do, seconds.
_PROBE: Final = 5.0
_THREADS: Final = 64
_AWS: Final = re.compile(r"s3(?:[.-]([a-z]{2}(?:-[a-z]+)+-\d+))?\.amazonaws\.com(?:\.cn)?")
#: What servers answer for an upload that was aborted or completed; the second is Swift's.
_NO_UPLOAD: Final = ("NoSuchUpload", "NoSuchKey", "404")
_SCHEMES: Final = ("s3", "s3+https", "s3+http")
_IMAGE: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt("s3_store_host", help="The server, as https://host:port; without a scheme it is http."),
    cfg.StrOpt("s3_store_access_key", secret=True, help="Access key of the account that has the bucket."),
    cfg.StrOpt("s3_store_secret_key", secret=True, help="Secret key of this account."),
    cfg.StrOpt("s3_store_bucket", help="Bucket that holds the images, and nothing else."),
    cfg.StrOpt(
        "s3_store_region_name",
        default="",
        help="Region that requests are signed for; default: that in the name of a host of AWS, else us-east-1.",
    ),
    cfg.StrOpt(
        "s3_store_bucket_url_format",
        default="auto",
        choices=["auto", "virtual", "path"],
        help="Where the bucket stands in URLs: in the host (virtual) or in the path. auto: in the host at AWS if the "
        "bucket's name has no dots, else in the path.",
    ),
    cfg.BoolOpt("s3_store_create_bucket_on_put", default=False, help="Make the bucket at an upload if it is missing."),
    cfg.IntOpt(
        "s3_store_large_object_size",
        default=100,
        min=0,
        help="Read for Glance's sake, and shown, MiB. Smaller images are uploaded in parts as well.",
    ),
    cfg.IntOpt(
        "s3_store_large_object_chunk_size",
        default=10,
        min=5,
        help="Size of the parts of an upload, MiB. An image has 10,000 at most, so those of large ones are larger.",
    ),
    cfg.IntOpt(
        "s3_store_thread_pools",
        default=8,
        min=1,
        max=_THREADS,
        help="Parts of one upload that are sent at once. They are kept in memory: see [server] part_memory.",
    ),
    cfg.BoolOpt(
        "s3_store_equal_parts",
        default=False,
        help="Do not let parts grow when the size of an image is not known, for servers that want parts of one size. "
        "Such an image can then have 10,000 times s3_store_large_object_chunk_size at most.",
    ),
    cfg.StrOpt(
        "s3_store_cacert",
        default="",
        help="PEM file with the certificates that the server is verified with; default: those of the system.",
    ),
    cfg.IntOpt(
        "s3_store_leftover_age",
        default=24,
        min=1,
        help="Hours after its last part at which an unfinished upload in the bucket is aborted, whoever began it.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Object:
    """What is under a key. `attempt` is None if none of ours wrote it."""

    attempt: str | None
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Upload:
    """A multipart upload that has not ended. `created` is a time of the server."""

    key: str
    id: str
    created: datetime

    @property
    def place(self) -> tuple[datetime, str]:
        """The order in which uploads of one key were created; one order for all who list them."""
        return self.created, self.id


class S3Store:
    """A bucket. Thread-safe."""

    kind = "s3"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ("connect_timeout", "read_timeout")
    features = frozenset({Feature.READ, Feature.WRITE})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        for wanted in ("host", "access_key", "secret_key", "bucket"):
            if not options[f"s3_store_{wanted}"]:
                raise errors.ConfigError(f"Store {name}: set s3_store_{wanted} in section [{name}].")
        secure, self._host = _server(options["s3_store_host"], name)
        bucket: str = options["s3_store_bucket"]
        if not re.fullmatch(r"[A-Za-z0-9._-]{3,63}", bucket):
            raise errors.ConfigError(f"Store {name}: s3_store_bucket is no name of a bucket.")
        ca_file: str = options["s3_store_cacert"]
        try:
            ssl.create_default_context(cafile=ca_file or None)
        except OSError as exc:
            raise errors.ConfigError(f"Store {name}: s3_store_cacert cannot be read, or holds no certificate.") from exc
        amazon = _AWS.fullmatch(self._host)
        style = options["s3_store_bucket_url_format"]
        if style == "auto":
            style = "virtual" if amazon and "." not in bucket else "path"
        self._region: str = options["s3_store_region_name"] or (amazon and amazon[1]) or "us-east-1"
        self._is_amazon = bool(amazon)
        self._create_bucket: bool = options["s3_store_create_bucket_on_put"]
        self._large_size: int = options["s3_store_large_object_size"] * _MIB
        self._part_size: int = options["s3_store_large_object_chunk_size"] * _MIB
        self._at_once: int = options["s3_store_thread_pools"]
        self._grows = not options["s3_store_equal_parts"]
        self._leftover_age: float = options["s3_store_leftover_age"] * 3600.0
        self._memory = options["part_memory"]
        if self._part_size > self._memory.total:
            raise errors.ConfigError(
                f"Store {name}: s3_store_large_object_chunk_size is more than [server] part_memory."
            )
        connecting: dict[str, Any] = {
            "endpoint": f"{'https' if secure else 'http'}://{self._host}",
            "bucket": bucket,
            "region": self._region,
            "credentials": (options["s3_store_access_key"], options["s3_store_secret_key"]),
            "style": style,
            "ca_file": ca_file or None,
        }
        connect_timeout = options.get("connect_timeout") or CONNECT_TIMEOUT
        read_timeout = options.get("read_timeout") or READ_TIMEOUT
        self.client = Client(name, **connecting, connect_timeout=connect_timeout, read_timeout=read_timeout)
        at_most: dict[str, Any] = {
            "connect_timeout": min(connect_timeout, _CHECK),
            "read_timeout": min(read_timeout, _CHECK),
        }
        self._checks = _Checks(Client(name, **connecting, **at_most, tries=1), self._create_bucket)
        self._probe = Probe(self.client)
        self._threads = ThreadPool(_THREADS, name="s3 part")
        self._prefix = f"{'s3+https' if secure else 's3'}://{self._host}/{bucket}/"
        self._owned = re.compile(
            rf"(?:{'|'.join(map(re.escape, _SCHEMES))})://(?:[^@\s]*@)?{re.escape(self._host)}/{re.escape(bucket)}/"
            r"([0-9a-zA-Z-]+)"
        )

    # --- facts -------------------------------------------------------------------------------------------

    def check(self) -> Health:
        return self._checks.health()

    def details(self) -> Mapping[str, Any]:
        return {
            "s3_store_large_object_size": self._large_size,
            "s3_store_large_object_chunk_size": self._part_size,
            "s3_store_thread_pools": self._at_once,
        }

    def owns(self, url: str) -> bool:
        return self._owned.fullmatch(url) is not None

    def prefixes(self) -> Sequence[str]:
        return [f"{scheme}://{self._prefix.partition('://')[2]}" for scheme in _SCHEMES]

    def _key(self, url: str) -> str:
        found = self._owned.fullmatch(url)
        if found is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        return found[1]

    # --- writing -----------------------------------------------------------------------------------------

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        part_size = self._sizes(size)
        since = self._time_without(image_id)
        note(f"since {since.isoformat()}")
        checksums = self._probe.abilities().checksums
        try:
            upload = self._create_upload(image_id, attempt, checksums)
        except errors.StoreError:
            with contextlib.suppress(errors.StoreError):  # its answer may have been lost
                self._abort_created_since(image_id, since)
            raise
        write = _S3Write(self, image_id, attempt, upload, part_size, checksums)
        try:
            note(f"upload {upload}")
        except BaseException:
            with contextlib.suppress(errors.StoreError):
                write.abort()
            raise
        return write

    def _sizes(self, size: int | None) -> Callable[[int], int]:
        """The size of each part, by its number, for an object of this size. Raises `StoreFull` if it is too large."""
        if size is None:
            most = min(MOST_PART, self._memory.total)
            return lambda number: _growing(self._part_size, number, most) if self._grows else self._part_size
        fixed = max(self._part_size, -(-size // MOST_PARTS // _MIB) * _MIB)
        if size > MOST_SIZE or fixed > min(MOST_PART, self._memory.total):
            raise errors.StoreFull("The store takes no image of this size.", self.name)
        fixed = min(fixed, max(size, HEAD))  # a small image needs no memory for a whole part
        return lambda _: fixed

    def _time_without(self, key: str) -> datetime:
        """The time of the server, if it has no object of this name. Raises `AlreadyStored`."""
        try:
            self.client.ask("head_object", Key=key)
        except errors.Missing as exc:
            date = date_of(exc)
            return parsedate_to_datetime(date) if date else datetime.now(UTC)
        raise errors.AlreadyStored("The store already holds an object of this name.", self.name)

    def _create_upload(self, key: str, attempt: str, checksums: bool) -> str:
        wanted: dict[str, Any] = {"Key": key, "Metadata": {_ATTEMPT: attempt}}
        if checksums:
            wanted["ChecksumAlgorithm"] = "CRC32"
        try:
            return str(self.client.ask("create_multipart_upload", **wanted)["UploadId"])
        except errors.StoreError as exc:
            if code_of(exc) != "NoSuchBucket" or not self._create_bucket:
                raise
        place: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            self.client.ask("create_bucket", **(place if self._is_amazon and self._region != "us-east-1" else {}))
        except errors.StoreError as exc:
            if code_of(exc) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        return str(self.client.ask("create_multipart_upload", **wanted)["UploadId"])

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        key = self._key(url)
        if length != 0:
            try:
                return S3Body(self.client, key, offset, Opened(self.client, key, offset, length))
            except errors.StoreError as exc:
                if code_of(exc) not in ("InvalidRange", "416"):
                    raise
        if offset + (length or 0) > self.size(url, ctx=ctx):  # S3 has no name for a range without bytes
            raise errors.StoreError("The object is shorter than its record says.", self.name)
        return S3Body(self.client, key, offset, None)

    def size(self, url: str, *, ctx: Context) -> int:
        return self._found(self._key(url)).size

    def _found(self, key: str) -> _Object:
        """What is under a key. Raises `Missing`, and `StoreUnavailable` if there is no bucket."""
        try:
            answer = self.client.ask("head_object", Key=key)
        except errors.Missing as exc:
            self._require_bucket(exc)
            raise
        metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
        return _Object(metadata.get(_ATTEMPT), answer["ContentLength"], answer["ETag"])

    def _require_bucket(self, cause: errors.StoreError) -> None:
        try:
            self.client.ask("head_bucket")
        except errors.Missing:
            raise errors.StoreUnavailable("The store's bucket does not exist.", self.name) from cause

    # --- removing ----------------------------------------------------------------------------------------

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> None:
        key = self._key(url)
        found = self._found(key)
        if object_id not in (None, found.attempt):
            raise errors.Replaced("Another object has the name of the image's data.", self.name)
        self._remove(key, found)

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        what, _, which = (note or "").partition(" ")
        if what == "upload":
            self.abort_upload(image_id, which)
        elif what == "since":
            self._abort_created_since(image_id, datetime.fromisoformat(which))
        else:
            self._abort_idle(image_id)
        if note is not None:
            self.remove_own(image_id, attempt)

    def sweep(self, lives: Callable[[str], bool]) -> int:
        """Abort unfinished uploads to which nothing was added for long: `lives` cannot tell whose they are."""
        return self._abort_idle("") if self.check().ok else 0

    def remove_own(self, key: str, attempt: str) -> None:
        """Remove what this attempt stored, if it is there."""
        with contextlib.suppress(errors.Missing):
            found = self._found(key)
            if found.attempt == attempt:
                self._remove(key, found)

    def _remove(self, key: str, found: _Object) -> None:
        """Remove this object, and no other where the server keeps conditions of deletes. Raises `Replaced`."""
        try:
            self.client.ask("delete_object", Key=key, IfMatch=found.etag)
            return
        except errors.StoreError as exc:
            if code_of(exc) in ("PreconditionFailed", "412"):
                if self._found(key) != found:
                    raise errors.Replaced("Another object has the name of the image's data.", self.name) from exc
                # Swift compares with another ETag than it shows.
            elif code_of(exc) not in ("NotImplemented", "InvalidArgument", "InvalidRequest", "501"):
                raise
        self.client.ask("delete_object", Key=key)

    def abort_upload(self, key: str, upload: str) -> bool:
        """Abort a multipart upload. False if it had ended before."""
        try:
            self.client.ask("abort_multipart_upload", Key=key, UploadId=upload)
        except errors.StoreError as exc:
            if code_of(exc) in _NO_UPLOAD:
                return False
            raise
        return True

    def _abort_created_since(self, key: str, since: datetime) -> None:
        for one in self.uploads(key):
            if one.key == key and one.created.timestamp() > since.timestamp() - 2:  # its times may be whole seconds
                self.abort_upload(key, one.id)

    def _abort_idle(self, prefix: str) -> int:
        """Abort the uploads of images, and of our own tries, that were idle for long; returns how many."""
        now = parsedate_to_datetime(date) if (date := date_of(self.client.ask("head_bucket"))) else datetime.now(UTC)
        aborted = 0
        for one in self.uploads(prefix):
            if (_IMAGE.fullmatch(one.key) or one.key == KEY) and self.is_idle(one, now):
                aborted += self.abort_upload(one.key, one.id)
        return aborted

    def is_idle(self, upload: _Upload, now: datetime) -> bool:
        """Whether nothing was added to an upload for so long that it counts as left over."""
        if (now - upload.created).total_seconds() < self._leftover_age:
            return False
        last = upload.created
        try:
            for page in self._pages("list_parts", "PartNumberMarker", Key=upload.key, UploadId=upload.id):
                last = max([last, *(part["LastModified"] for part in page.get("Parts", ()))])
        except errors.StoreError as exc:
            if code_of(exc) in _NO_UPLOAD:  # it ended meanwhile
                return False
            raise
        return (now - last).total_seconds() >= self._leftover_age

    def uploads(self, prefix: str) -> Iterator[_Upload]:
        """The multipart uploads that have not ended."""
        for page in self._pages("list_multipart_uploads", "KeyMarker", "UploadIdMarker", Prefix=prefix):
            for one in page.get("Uploads", ()):
                yield _Upload(one["Key"], one["UploadId"], one["Initiated"])

    def _pages(self, operation: str, *markers: str, **wanted: Any) -> Iterator[Any]:
        while True:
            page = self.client.ask(operation, **wanted)
            yield page
            if not page.get("IsTruncated"):
                return
            wanted |= {marker: page[f"Next{marker}"] for marker in markers if page.get(f"Next{marker}")}


class _S3Write:
    """`Write` of one object: a multipart upload."""

    window = Parts.window

    def __init__(
        self, store: S3Store, key: str, attempt: str, upload: str, part_size: Callable[[int], int], checksums: bool
    ) -> None:
        self._store = store
        self._key = key
        self._attempt = attempt
        self._upload = upload
        self._checksums = checksums
        self._committing = self._ended = False
        self._parts: Parts[Mapping[str, Any]] = Parts(
            self._send,
            size=part_size,
            at_once=store._at_once,
            memory=store._memory,
            threads=store._threads,
            store=store.name,
        )

    def put(self, piece: Piece) -> None:
        self._parts.put(piece)

    def _send(self, number: int, data: memoryview) -> Mapping[str, Any]:
        if number > MOST_PARTS:
            raise errors.StoreFull("The store takes no image of this size.", self._store.name)
        checksum = {"ChecksumCRC32": crc32(data)} if self._checksums else {}
        try:
            answer = self._store.client.ask(
                "upload_part",
                given_up=self._parts.cancelled,
                Key=self._key,
                UploadId=self._upload,
                PartNumber=number,
                Body=Part(data),
                **checksum,
            )
        except errors.StoreError as exc:
            raise self._translated(exc)  # noqa: B904  # mostly it is the same one
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    def commit(self) -> Stored:
        parts = self._parts.finish() if self._parts.total else []
        self._committing = True
        failure = None
        try:
            if parts:
                self._complete(parts)
            else:
                self._put_nothing()
        except errors.StoreError as exc:  # its answer may have been lost
            failure = exc
        self._require_own(failure)
        if not parts and not self._store.abort_upload(self._key, self._upload):
            raise errors.Gone("The upload was given up while data was arriving.")
        self._ended = True
        self._parts.close()
        return Stored(f"{self._store._prefix}{self._key}", self._parts.total, object_id=self._attempt)

    def _complete(self, parts: Sequence[Mapping[str, Any]]) -> None:
        guard = self._guard(self._store._probe.abilities(_PROBE).guarded_complete)
        made: dict[str, Any] = {"MultipartUpload": {"Parts": parts}}
        self._store.client.ask("complete_multipart_upload", Key=self._key, UploadId=self._upload, **made, **guard)

    def _put_nothing(self) -> None:
        guard = self._guard(self._store._probe.abilities(_PROBE).guarded_put)
        nothing = Part(memoryview(b""))
        self._store.client.ask("put_object", Key=self._key, Body=nothing, Metadata={_ATTEMPT: self._attempt}, **guard)

    def _guard(self, kept: bool) -> Mapping[str, Any]:
        """The condition that the server keeps. If it keeps none, make sure of it here as well as that can be done."""
        if kept:
            return {"IfNoneMatch": "*"}
        store = self._store
        uploads = sorted((one for one in store.uploads(self._key) if one.key == self._key), key=lambda one: one.place)
        for one in uploads:
            if one.id == self._upload:
                break
            if not store.is_idle(one, datetime.now(UTC)):
                raise errors.AlreadyStored("Another upload of this object is under way.", store.name)
        store._time_without(self._key)
        return {}

    def _require_own(self, failure: errors.StoreError | None) -> None:
        """Raise what the commit raises, unless the object is there, and is ours."""
        name = self._store.name
        found = None
        with contextlib.suppress(errors.Missing):
            found = self._store._found(self._key)
        if found is not None and found.attempt == self._attempt:
            if found.size != self._parts.total:
                raise errors.StoreUnavailable("The store has stored another size than was sent.", name) from failure
        elif failure is not None and code_of(failure) not in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise self._translated(failure)
        elif found is not None:
            raise errors.AlreadyStored("The store already holds an object of this name.", name) from failure
        else:
            raise errors.StoreUnavailable("The store does not show what it has stored.", name) from failure

    def _translated(self, failure: errors.StoreError) -> Exception:
        """`Gone` if an upload was aborted by `clean`; else the same failure."""
        if code_of(failure) != "NoSuchUpload":
            return failure
        gone = errors.Gone("The upload was given up while data was arriving.")
        gone.__cause__ = failure
        return gone

    def abort(self) -> None:
        if self._ended:
            return
        self._parts.close()
        self._store.abort_upload(self._key, self._upload)
        if self._committing:
            self._store.remove_own(self._key, self._attempt)
        self._ended = True


class _Checks:
    """The health of a bucket, within two seconds, whatever hangs. One check runs at a time."""

    def __init__(self, client: Client, creates_bucket: bool) -> None:
        self._client = client
        self._creates_bucket = creates_bucket
        self._lock = threading.Lock()
        self._running: tuple[threading.Event, list[Health]] | None = None

    def health(self) -> Health:
        with self._lock:
            if self._running is None:
                self._running = threading.Event(), []
                try:
                    threading.Thread(target=self._run, args=self._running, name="s3 check", daemon=True).start()
                except RuntimeError:
                    self._running = None
                    return Health(ok=False, error="The system gives no thread to check the store.")
            done, found = self._running
        done.wait(_CHECK)
        return found[0] if found else Health(ok=False, error="The store does not answer.")

    def _run(self, done: threading.Event, found: list[Health]) -> None:
        try:
            self._client.ask("head_bucket")
            found.append(Health(ok=True))
        except errors.Missing:
            fine = self._creates_bucket
            found.append(Health(ok=fine, error=None if fine else "The store's bucket does not exist."))
        except errors.StoreError as exc:
            found.append(Health(ok=False, error=str(exc)))
        finally:
            with self._lock:
                self._running = None
            done.set()


def _growing(first: int, number: int, most: int) -> int:
    """The size of this part of an object of unknown size, in whole MiB."""
    grown = first * (1 + (number - 1) // _STEP * _GROWTH)
    return min(int(grown) // _MIB * _MIB, most)


def _server(host: str, store: str) -> tuple[bool, str]:
    """Whether the server of `s3_store_host` speaks TLS, and its host and port as in URLs."""
    scheme, slashes, rest = host.rpartition("://")
    try:
        place = urlsplit(f"//{rest}")
        port = place.port
    except ValueError:
        place = None
    if place is None or (slashes and scheme not in ("http", "https")) or not place.hostname:
        raise errors.ConfigError(f"Store {store}: s3_store_host must be like https://host:port.")
    if place.username is not None or place.path.strip("/") or place.query or place.fragment:
        raise errors.ConfigError(f"Store {store}: s3_store_host has more than a scheme, a host and a port.")
    name = f"[{place.hostname}]" if ":" in place.hostname else place.hostname
    return scheme == "https", f"{name}:{port}" if port else name
