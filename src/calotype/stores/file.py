"""Images as files in one directory, each named by its image id, as Glance lays them out.

A write goes to `<id>.<attempt>.part` beside its final name, is synced, and becomes final by a hard link, which
never overwrites; then the directory is synced. The temporary name carries the attempt: once a cleaner has
removed it, a writer that slept through its lease has nothing left to link. All names are opened relative to
the directory's descriptor and symbolic links in it are not followed.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from oslo_config import cfg

from calotype import errors
from calotype.context import Context
from calotype.durable import make_directory, sync_directory
from calotype.stores.base import Body, Chunk, Entry, Feature, Health, Note, Quarantined, Stored

OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt("filesystem_store_datadir", help="Directory that holds the images. Created when missing."),
    cfg.IntOpt(
        "filesystem_store_file_perm",
        default=0,
        min=0,
        help="Permissions of image files as octal digits, for example 640; 0 leaves 600 masked by the umask.",
    ),
    cfg.IntOpt(
        "filesystem_store_chunk_size", default=1 << 20, min=4096, help="Bytes read at a time where no sendfile is."
    ),
    cfg.BoolOpt("filesystem_thin_provisioning", default=False, help="Leave holes for blocks of zeros."),
    cfg.IntOpt(
        "filesystem_store_reserve",
        default=64,
        min=0,
        help="Free space that uploads leave in the file system, MiB: a full disk hurts more than a refused image.",
    ),
]

_HOLE = 64 * 1024  #: Granularity of holes: what qemu-img uses for its clusters.
_ZEROS = bytes(1 << 20)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPACE_CHECK = 64 << 20  #: Bytes written between two looks at the free space.
_PART = re.compile(r"^[0-9a-fA-F-]{36}\.([0-9a-f]+-[0-9]+)\.part$")
_PLAIN = re.compile(r"[0-9a-zA-Z-]+")  #: Names that mean themselves in a URL; ids are such.
_QUARANTINE = ".quarantine"  #: A directory in the store: on the same file system, where a rename moves things.
_NOT_OURS = frozenset({_QUARANTINE, "lost+found"})
_SWEEP_AGE = 60.0  #: Seconds; twice a lease, so that no upload that is just beginning is taken for debris.


class FileStore:
    """A directory. Thread-safe: it has no state but an open directory."""

    kind = "file"

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        self.directory = Path(options["filesystem_store_datadir"]).absolute()
        self._prefix = f"file://{quote(str(self.directory))}/"
        self._chunk: int = options["filesystem_store_chunk_size"]
        self._thin: bool = options["filesystem_thin_provisioning"]
        self._reserve: int = options["filesystem_store_reserve"] << 20
        self._mode: int | None = _mode(options["filesystem_store_file_perm"], name)
        features = {Feature.READ, Feature.WRITE, Feature.DELETE, Feature.RANGE, Feature.SENDFILE}
        self.features = frozenset(features | ({Feature.SPARSE} if self._thin else set()))
        try:
            make_directory(self.directory, 0o750)
            self._dir = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise errors.ConfigError(f"Store {name}: {self.directory} cannot be used: {exc.strerror}") from exc

    # --- facts -------------------------------------------------------------------------------------------

    def check(self) -> Health:
        try:
            room = os.fstatvfs(self._dir)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                return Health(ok=False, error="the directory cannot be written to")
        except OSError as exc:
            return Health(ok=False, error=exc.strerror)
        return Health(ok=True, free=room.f_bavail * room.f_frsize, total=room.f_blocks * room.f_frsize)

    def details(self) -> Mapping[str, Any]:
        return {"data_dir": str(self.directory), "chunk_size": self._chunk, "thin_provisioning": self._thin}

    def identity(self) -> object:
        """What two stores on one directory have in common, whatever they call it."""
        found = os.fstat(self._dir)
        return (found.st_dev, found.st_ino)

    def owns(self, url: str) -> bool:
        return self._name_in(url) is not None

    # --- writing -----------------------------------------------------------------------------------------

    def write(
        self,
        image_id: str,
        chunks: Iterable[Chunk],
        *,
        attempt: str,
        size: int | None,
        note: Callable[[Note], None],
        ctx: Context,
    ) -> Stored:
        part = f"{image_id}.{attempt}.part"
        with self._translated():
            if _exists(self._dir, image_id):
                raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
            self._want_room(size or 0)
            file = os.open(
                part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._dir
            )
        try:
            with self._translated():
                written = self._copy(file, chunks)
                if self._mode is not None:
                    os.fchmod(file, self._mode)
                os.fsync(file)
                # What a cleaner knows the object by once it is final. An inode number alone is not enough: it is used
                # again as soon as the file is gone.
                note(_identity(file))
                # The link is what makes the object: atomic, and it fails where the name is taken. Should this
                # process have slept until a cleaner removed the temporary name, it fails here as well.
                try:
                    os.link(part, image_id, src_dir_fd=self._dir, dst_dir_fd=self._dir, follow_symlinks=False)
                except FileExistsError as exc:
                    raise errors.AlreadyStored("The store already holds an object of this name.", self.name) from exc
                except FileNotFoundError as exc:
                    raise errors.Gone("The upload was given up while data was arriving.") from exc
                try:
                    os.unlink(part, dir_fd=self._dir)
                    os.fsync(self._dir)
                except OSError as exc:
                    self._unlink_if(image_id, _identity(file))
                    if isinstance(exc, FileNotFoundError):  # A cleaner came between the link and here.
                        raise errors.Gone("The upload was given up while data was arriving.") from exc
                    raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=self._dir)
            raise
        finally:
            os.close(file)
        return Stored(f"file://{quote(str(self.directory / image_id))}", written)

    def _copy(self, file: int, chunks: Iterable[Chunk]) -> int:
        written = looked = 0
        for chunk in chunks:
            if written - looked >= _SPACE_CHECK:
                self._want_room(0)
                looked = written
            if self._thin:
                _write_thin(file, chunk, written)
            else:
                _write_all(file, chunk)
            written += len(chunk)
        if self._thin:
            os.ftruncate(file, written)  # A hole at the end has no byte that made the file so long.
        return written

    def _want_room(self, size: int) -> None:
        room = os.fstatvfs(self._dir)
        if room.f_bavail * room.f_frsize < size + self._reserve:
            raise errors.StoreFull("The store has no room for this image.", self.name)

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        file = self._open(url)
        try:
            size = os.fstat(file.fileno()).st_size
            length = max(size - offset, 0) if length is None else length
            if offset + length > size:
                raise errors.StoreError("The object is shorter than its record says.", self.name)
            file.seek(offset)
        except BaseException:
            file.close()
            raise
        return _FileBody(_Slice(file, offset, length, self.name), length, self._chunk)

    def size(self, url: str, *, ctx: Context) -> int:
        with self._open(url) as file:
            return os.fstat(file.fileno()).st_size

    def _open(self, url: str) -> IO[bytes]:
        name = self._name_in(url)
        if name is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        with self._translated():
            try:
                number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._dir)
            except FileNotFoundError as exc:
                raise errors.Missing("The image's data is not in the store.", self.name) from exc
            except OSError as exc:
                if exc.errno == errno.ELOOP:
                    raise errors.Missing("The image's data is not in the store.", self.name) from exc
                raise
            if not stat.S_ISREG(os.fstat(number).st_mode):
                os.close(number)
                raise errors.Missing("The image's data is not in the store.", self.name)
        return os.fdopen(number, "rb", buffering=0)

    # --- removing ----------------------------------------------------------------------------------------

    def delete(self, url: str, *, ctx: Context) -> None:
        name = self._name_in(url)
        if name is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        with self._translated():
            try:
                os.unlink(name, dir_fd=self._dir)
            except FileNotFoundError as exc:
                # Whoever removed it may have been killed before the next line: gone is only what is durably so.
                os.fsync(self._dir)
                raise errors.Missing("The image's data is not in the store.", self.name) from exc
            os.fsync(self._dir)

    def clean(self, image_id: str, attempt: str, notes: Iterable[Note]) -> None:
        with self._translated():
            part = f"{image_id}.{attempt}.part"
            # Where nothing may be changed, removing what is not there fails all the same; so look first.
            if _exists(self._dir, part):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=self._dir)
            for note in notes:
                self._unlink_if(image_id, note)
            os.fsync(self._dir)

    def sweep(self, lives: Callable[[str], bool]) -> int:
        swept = 0
        with self._translated():
            for name in os.listdir(self._dir):
                part = _PART.match(name)
                with contextlib.suppress(FileNotFoundError):
                    if part and self._age(name) > _SWEEP_AGE and not lives(part[1]):
                        os.unlink(name, dir_fd=self._dir)
                        swept += 1
        return swept

    def _age(self, name: str) -> float:
        return time.time() - os.stat(name, dir_fd=self._dir, follow_symlinks=False).st_mtime

    def _unlink_if(self, name: str, identity: Note) -> None:
        """Remove a name, if it is still the file that was meant."""
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=self._dir, follow_symlinks=False)
            if (found.st_ino, found.st_mtime_ns) == (identity["inode"], identity["mtime"]):
                os.unlink(name, dir_fd=self._dir)

    # --- looking, and putting aside ----------------------------------------------------------------------

    def name_of(self, url: str) -> str | None:
        return self._name_in(url)

    def entries(self) -> Iterator[Entry]:
        with self._translated(), os.scandir(self.directory) as found:
            for one in found:
                if one.name not in _NOT_OURS and (entry := self.entry(one.name)) is not None:
                    yield entry

    def entry(self, name: str) -> Entry | None:
        try:
            with self._translated():
                found = os.stat(name, dir_fd=self._dir, follow_symlinks=False)
        except errors.StoreUnavailable as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return None
            raise
        part = _PART.match(name)
        # The time of the inode as well: a file that was just put there may bring an old time of its data.
        age = time.time() - max(found.st_mtime, found.st_ctime)
        identity = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
        return Entry(name, found.st_size, age, identity, part[1] if part else None)

    def quarantine(self, entry: Entry, facts: Mapping[str, Any]) -> str | None:
        aside = self.directory / _QUARANTINE
        key = f"{entry.name[:180]}.{secrets.token_hex(4)}"
        with self._translated():
            make_directory(aside)
            record = aside / f"{key}.json"
            # The record first: whatever is in quarantine can be told where it came from. One without data says nothing.
            with record.open("x") as file:
                json.dump({"name": entry.name, "facts": dict(facts)}, file)
                file.flush()
                os.fsync(file.fileno())
            sync_directory(aside)
            now = self.entry(entry.name)
            try:
                if now is None or now.identity != entry.identity:
                    raise FileNotFoundError
                os.rename(entry.name, aside / f"{key}.data", src_dir_fd=self._dir)
            except FileNotFoundError:
                record.unlink()
                return None
            sync_directory(aside)
        return key

    def quarantined(self) -> Iterator[Quarantined]:
        with self._translated():
            for data in sorted((self.directory / _QUARANTINE).glob("*.data")):
                key = data.name.removesuffix(".data")
                with contextlib.suppress(FileNotFoundError):
                    record = json.loads(data.with_name(f"{key}.json").read_text())
                    yield Quarantined(key, record["name"], data.lstat().st_size, record["facts"])

    def restore(self, key: str) -> Quarantined:
        found = next((one for one in self.quarantined() if one.key == key), None)
        if found is None:
            raise errors.Missing(f"There is nothing named {key} in quarantine.", self.name)
        aside = self.directory / _QUARANTINE
        data = aside / f"{key}.data"
        with self._translated():
            if _exists(self._dir, found.name):
                there, here = os.stat(found.name, dir_fd=self._dir, follow_symlinks=False), data.lstat()
                if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):  # else: killed after the link
                    raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
            elif stat.S_ISDIR(data.lstat().st_mode):
                os.rename(data, found.name, dst_dir_fd=self._dir)
            else:
                os.link(data, found.name, dst_dir_fd=self._dir, follow_symlinks=False)
            os.fsync(self._dir)
            data.unlink(missing_ok=True)
            (aside / f"{key}.json").unlink(missing_ok=True)
        return found

    # --- the rest ----------------------------------------------------------------------------------------

    def _name_in(self, url: str) -> str | None:
        """The name in our directory that a URL means, None when it lies elsewhere."""
        if url.startswith(self._prefix) and _PLAIN.fullmatch(url, len(self._prefix)):
            return url[len(self._prefix) :]
        parts = urlsplit(url)
        if parts.scheme not in ("file", "filesystem") or parts.netloc or parts.query or parts.fragment:
            return None
        directory, name = os.path.split(unquote(parts.path))
        if not name or name in (".", "..") or "\0" in name or directory != str(self.directory):
            return None
        return name

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The operating system's errors in our words."""
        try:
            yield
        except OSError as exc:
            if exc.errno in _FULL:
                raise errors.StoreFull("The store has no room for this image.", self.name) from exc
            raise errors.StoreUnavailable(f"The store failed: {exc.strerror}.", self.name) from exc


class _Slice:
    """A part of a file, as WSGI's file wrapper wants it: `fileno` stands on its first byte."""

    def __init__(self, file: IO[bytes], offset: int, length: int, store: str) -> None:
        self._file = file
        self._end = offset + length
        self._left = length
        self._store = store

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int = -1) -> bytes:
        if self._left <= 0:
            return b""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        if not data:
            raise errors.StoreError("The object ended before its recorded size.", self._store)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Raises when the file shrank meanwhile, so that the server drops the connection, not just the end."""
        try:
            if not self._file.closed and os.fstat(self._file.fileno()).st_size < self._end:
                raise errors.StoreError("The object became shorter while it was being sent.", self._store)
        finally:
            self._file.close()


class _FileBody:
    """`Body` of a slice of a file."""

    def __init__(self, part: _Slice, size: int, chunk: int) -> None:
        self.size = size
        self._part = part
        self._chunk = chunk

    def __iter__(self) -> Iterator[bytes]:
        while data := self._part.read(self._chunk):
            yield data

    def file(self) -> IO[bytes] | None:
        return self._part  # type: ignore[return-value]  # the three methods that a WSGI server calls

    def close(self) -> None:
        self._part.close()


def _identity(file: int) -> Note:
    """What no other file under the same name has in common with this one, once it is written."""
    found = os.fstat(file)
    return {"inode": found.st_ino, "mtime": found.st_mtime_ns}


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_all(file: int, chunk: Chunk) -> None:
    done = os.write(file, chunk)
    while done < len(chunk):
        done += os.write(file, memoryview(chunk)[done:])


def _write_thin(file: int, chunk: Chunk, offset: int) -> None:
    """Write at `offset` what is not zero; blocks of zeros stay holes."""
    view = memoryview(chunk)
    start = 0
    while start < len(view):
        # Blocks are counted from the start of the file, so that holes meet the file system's own blocks.
        end = min(start + _HOLE - (offset + start) % _HOLE, len(view))
        hole = view[start:end] == _ZEROS[: end - start]
        while end < len(view) and (view[end : end + _HOLE] == _ZEROS[: len(view[end : end + _HOLE])]) == hole:
            end = min(end + _HOLE, len(view))
        if not hole:
            place = start
            while place < end:
                place += os.pwrite(file, view[place:end], offset + place)
        start = end


def _mode(digits: int, name: str) -> int | None:
    if not digits:
        return None
    try:
        mode = int(str(digits), 8)
    except ValueError as exc:
        raise errors.ConfigError(f"Store {name}: filesystem_store_file_perm must be octal digits, as 640.") from exc
    if mode & ~0o777 or not mode & 0o400:
        raise errors.ConfigError(f"Store {name}: filesystem_store_file_perm {digits} lets nobody read the images.")
    return mode
