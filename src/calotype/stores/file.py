"""Images as files in one directory, each named by its image id, as Glance lays them out.

A write goes to `<id>.<attempt>.part` in the same directory and is synced. A hard link to the final name, which never
overwrites, makes it final; then the directory is synced. The attempt is part of the temporary name: if a writer loses
its lease and a cleaner removes this file, the writer has nothing left to link.

A file in the directory has the store's identity. Each change opens the directory, compares the identity, and then uses
paths relative to that descriptor; symbolic links in it are not followed. So nothing is changed in another directory,
such as the mount point of a file system that is not mounted.

`file_objects.py` identifies files, so that none is removed in place of another.
"""

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

from oslo_config import cfg

from calotype import config, errors
from calotype.buffers import Piece
from calotype.context import Context
from calotype.durable import make_directory, replace_file, sync_directory
from calotype.stores import file_objects
from calotype.stores.base import Body, Entry, Feature, Health, Identified, Note, Quarantined, Stored, Write

LOG = logging.getLogger(__name__)

OPTIONS: list[cfg.Opt] = [
    cfg.Opt(
        "filesystem_store_datadir",
        type=config.DirectoryPath(),
        help="Directory that holds the images. Created when missing.",
    ),
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

_HOLE = 64 * 1024  #: Granularity of holes, bytes: the cluster size of qemu-img.
_ZEROS = bytes(1 << 20)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPACE_CHECK = 64 << 20  #: Bytes written between two checks of the free space.
_PART = re.compile(r"^[0-9a-fA-F-]{36}\.([0-9a-f]+-[0-9]+)\.part$")
_PLAIN = re.compile(r"[0-9a-zA-Z-]+")  #: Names that need no escapes in a URL, such as ids.
_QUARANTINE = ".quarantine"  #: A directory in the store, so on the same file system: a rename moves files into it.
_MARKER = ".calotype-store"  #: The file that holds the identity.
_SWEEP_AGE = 60.0  #: Seconds, twice a lease: an upload that just began must not be swept.


class FileStore:
    """Images in a directory. Thread-safe."""

    kind = "file"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ()
    features = frozenset({Feature.READ, Feature.WRITE})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        if not options["filesystem_store_datadir"]:
            raise errors.ConfigError(f"Store {name}: set filesystem_store_datadir in section [{name}].")
        self.directory = Path(options["filesystem_store_datadir"]).absolute()
        self.identity: str | None = None
        self._directories = [str(self.directory)]  # the present one first, then former ones
        self._prefix = f"file://{quote(str(self.directory))}/"
        self._chunk: int = options["filesystem_store_chunk_size"]
        self._thin: bool = options["filesystem_thin_provisioning"]
        self._reserve: int = options["filesystem_store_reserve"] << 20
        self._mode: int | None = _mode(options["filesystem_store_file_perm"], name)

    # --- facts -------------------------------------------------------------------------------------------

    def check(self) -> Health:
        try:
            with self._opened() as directory, self._translated():
                room = os.fstatvfs(directory)
                if not os.access(self.directory, os.W_OK | os.X_OK):
                    return Health(ok=False, error="The directory cannot be written to.")
        except errors.StoreError as exc:
            return Health(ok=False, error=str(exc))
        return Health(ok=True, free=room.f_bavail * room.f_frsize, total=room.f_blocks * room.f_frsize)

    def details(self) -> Mapping[str, Any]:
        return {"data_dir": str(self.directory), "chunk_size": self._chunk, "thin_provisioning": self._thin}

    def owns(self, url: str) -> bool:
        return self._name_in(url) is not None

    def url_of(self, name: str) -> str:
        """The URL of the object of this name."""
        return f"{self._prefix}{quote(name)}"

    def prefixes(self) -> Sequence[str]:
        paths = dict.fromkeys(path for one in self._directories for path in (quote(one), one))  # Glance does not quote.
        return [f"{scheme}://{path}/" for path in paths for scheme in ("file", "filesystem")]

    # --- identity ----------------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        return str(self.directory)

    def overlap(self, other: Identified) -> str | None:
        if not isinstance(other, FileStore):
            return None
        here, there = self.directory.resolve(), other.directory.resolve()
        if here == there or _is_same(here, there):
            return "are on the same directory; give each its own"
        if here in there.parents or there in here.parents:
            return "have directories of which one is within the other; part them"
        return None

    def found_identity(self) -> str | None:
        with self._translated():
            try:
                directory = _open_directory(self.directory)
            except FileNotFoundError:
                return None
            try:
                return _read_identity(directory)
            finally:
                os.close(directory)

    def establish(self, identity: str) -> None:
        with self._translated():
            make_directory(self.directory)
            about = "Which store of Calotype this directory is. Keep this file: without it nothing is stored here."
            text = json.dumps({"identity": identity, "about": about})
            # Readable for those who may read the directory: the service's user need not be its owner.
            mode = 0o600 | (self.directory.stat().st_mode & 0o044)
            replace_file(self.directory / _MARKER, f"{text}\n", mode, name=f"{_MARKER}.part")

    def is_empty(self) -> bool:
        with self._translated():
            try:
                return all(_is_foreign_name(name) for name in os.listdir(self.directory))
            except FileNotFoundError:
                return True

    def confirm(self) -> None:
        with self._opened():
            pass

    def add_former(self, places: Iterable[str]) -> None:
        self._directories += [place for place in places if place not in self._directories]

    def current_url(self, url: str) -> str:
        return f"{self._prefix}{quote(self._name_in(url) or '')}"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory. Raises `StoreUnavailable` unless it has the store's identity."""
        with self._translated():
            try:
                directory = _open_directory(self.directory)
            except FileNotFoundError as exc:
                raise errors.StoreUnavailable(self._why_not_ours(None), self.name) from exc
        try:
            with self._translated():
                found = _read_identity(directory)
            if found is None or found != self.identity:
                raise errors.StoreUnavailable(self._why_not_ours(found), self.name)
            yield directory
        finally:
            os.close(directory)

    def _why_not_ours(self, found: str | None) -> str:
        if self.identity is None:
            return f"Store {self.name} was not taken into use: the operator decides, by calotype store list."
        if found is None:
            return f"The directory of store {self.name} has lost its identity: is its file system mounted?"
        return f"The directory of store {self.name} carries the identity of another store."

    def _check_not_replaced(self, directory: int) -> None:
        """Raise `StoreUnavailable` if the path leads to another directory now, as after an unmount."""
        opened, current = os.fstat(directory), os.stat(self.directory)
        if (opened.st_dev, opened.st_ino) != (current.st_dev, current.st_ino):
            raise errors.StoreUnavailable(f"The directory of store {self.name} was replaced meanwhile.", self.name)

    # --- writing -----------------------------------------------------------------------------------------

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        with contextlib.ExitStack() as ending:
            directory = ending.enter_context(self._opened())
            part = f"{image_id}.{attempt}.part"
            with self._translated():
                if _exists(directory, image_id):
                    raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
                self._check_room(directory, size or 0)
                file = os.open(
                    part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
                )
            ending.callback(os.close, file)
            return _FileWrite(self, directory, file, part, image_id, note, ending.pop_all())

    def _check_room(self, directory: int, size: int) -> None:
        room = os.fstatvfs(directory)
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
        return _FileBody(self, _FileSlice(file, offset, length, self.name), length)

    def size(self, url: str, *, ctx: Context) -> int:
        with self._open(url) as file:
            return os.fstat(file.fileno()).st_size

    def _open(self, url: str) -> IO[bytes]:
        name = self._name_in(url)
        if name is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        with self._translated():
            try:
                # By its path: a descriptor of the directory may be stale after a remount.
                number = os.open(self.directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> None:
        name = self._name_in(url)
        if name is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        with self._opened() as directory, self._translated():
            removed = file_objects.remove(directory, name, object_id)
            # Even if it was removed before: that process may have been killed before its sync.
            os.fsync(directory)
            if not removed and _exists(directory, name):
                raise errors.Replaced("Another object has the name of the image's data.", self.name)
            if not removed:
                raise errors.Missing("The image's data is not in the store.", self.name)

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        with self._opened() as directory, self._translated():
            part = f"{image_id}.{attempt}.part"
            # On a read-only file system removing a missing file is an error, too, so check first.
            if _exists(directory, part):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=directory)
            if note is not None:
                file_objects.remove(directory, image_id, note)
            os.fsync(directory)

    def sweep(self, lives: Callable[[str], bool]) -> int:
        swept = 0
        with self._opened() as directory, self._translated():
            for name in os.listdir(directory):
                part, aside = _PART.match(name), file_objects.ASIDE.match(name)
                with contextlib.suppress(FileNotFoundError):
                    if not (part or aside) or _age(directory, name) <= _SWEEP_AGE:
                        continue
                    if part and not lives(part[1]):
                        os.unlink(name, dir_fd=directory)
                        swept += 1
                    elif aside:
                        file_objects.settle_aside(directory, name, aside[1], aside[2])
        return swept

    # --- looking, and putting aside ----------------------------------------------------------------------

    def name_of(self, url: str) -> str | None:
        return self._name_in(url)

    def entries(self) -> Iterator[Entry]:
        with self._opened() as directory, self._translated(), os.scandir(directory) as found:
            for one in found:
                if not _is_foreign_name(one.name) and (entry := self._entry(directory, one.name)) is not None:
                    yield entry

    def entry(self, name: str) -> Entry | None:
        with self._opened() as directory, self._translated():
            return self._entry(directory, name)

    def _entry(self, directory: int, name: str) -> Entry | None:
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        part = _PART.match(name)
        # The change time of the inode as well: a file that was just moved here may have an old modification time.
        age = time.time() - max(found.st_mtime, found.st_ctime)
        return Entry(name, found.st_size, age, file_objects.id_of(found), part[1] if part else None)

    def quarantine(self, entry: Entry, facts: Mapping[str, Any]) -> str | None:
        key = f"{entry.name[:180]}.{secrets.token_hex(4)}"
        with self._opened() as directory, self._translated():
            aside = self.directory / _QUARANTINE
            make_directory(aside)
            record, data = aside / f"{key}.json", aside / f"{key}.data"
            # The record first: all data in quarantine must have one. A record without data is ignored.
            replace_file(record, json.dumps({"name": entry.name, "facts": dict(facts)}))
            now = self._entry(directory, entry.name)
            try:
                if now is None or now.identity != entry.identity:
                    raise FileNotFoundError
                os.rename(entry.name, data, src_dir_fd=directory)
                if file_objects.id_of(data.lstat()) != entry.identity:
                    # It was replaced after the check and before the rename.
                    file_objects.put_back(data, entry.name, directory)
                    raise FileNotFoundError
            except FileNotFoundError:
                record.unlink()
                return None
            sync_directory(aside)
        return key

    def quarantined(self) -> Iterator[Quarantined]:
        with self._opened(), self._translated():
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
        with self._opened() as directory, self._translated():
            if _exists(directory, found.name):
                there, here = os.stat(found.name, dir_fd=directory, follow_symlinks=False), data.lstat()
                if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):  # else: killed after the link
                    raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
            elif stat.S_ISDIR(data.lstat().st_mode):
                os.rename(data, found.name, dst_dir_fd=directory)
            else:
                os.link(data, found.name, dst_dir_fd=directory, follow_symlinks=False)
            os.fsync(directory)
            data.unlink(missing_ok=True)
            (aside / f"{key}.json").unlink(missing_ok=True)
        return found

    # --- the rest ----------------------------------------------------------------------------------------

    def _name_in(self, url: str) -> str | None:
        """The name that a URL refers to in the store's present or former directories; None if it is elsewhere."""
        if url.startswith(self._prefix) and _PLAIN.fullmatch(url, len(self._prefix)):
            return url[len(self._prefix) :]
        try:
            parts = urlsplit(url)
        except ValueError:  # raised for brackets without an address
            return None
        if parts.scheme not in ("file", "filesystem") or parts.netloc or parts.query or parts.fragment:
            return None
        directory, name = os.path.split(unquote(parts.path))
        if directory not in self._directories:
            directory, name = os.path.split(parts.path)  # as Glance writes it
            name = unquote(name)
        if not name or name in (".", "..") or "\0" in name or "/" in name or directory not in self._directories:
            return None
        return name

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of the operating system into ours."""
        try:
            yield
        except OSError as exc:
            if exc.errno in _FULL:
                raise errors.StoreFull("The store has no room for this image.", self.name) from exc
            raise errors.StoreUnavailable(f"The store failed: {exc.strerror}.", self.name) from exc


class _FileWrite:
    """`Write` of one file."""

    window = 0

    def __init__(
        self,
        store: FileStore,
        directory: int,
        file: int,
        part: str,
        image_id: str,
        note: Note,
        ending: contextlib.ExitStack,
    ) -> None:
        """`ending` closes the descriptors of the directory and of the file."""
        self._store = store
        self._directory = directory
        self._file = file
        self._part = part
        self._image_id = image_id
        self._note = note
        self._ending = ending
        self._open = True
        self._written = self._looked = 0

    def put(self, piece: Piece) -> None:
        with self._store._translated():
            if self._written - self._looked >= _SPACE_CHECK:
                self._store._check_room(self._directory, 0)
                self._looked = self._written
            if self._store._thin:
                _write_thin(self._file, piece.view, self._written)
            else:
                _write_all(self._file, piece.view)
            self._written += len(piece.view)

    def commit(self) -> Stored:
        store, directory, file, image_id = self._store, self._directory, self._file, self._image_id
        with store._translated():
            if store._thin:
                os.ftruncate(file, self._written)  # A hole at the end was not written, so the file is too short.
            if store._mode is not None:
                os.fchmod(file, store._mode)
            file_objects.make_unique(file)
            os.fsync(file)
            object_id = file_objects.id_of(os.fstat(file))
            self._note(object_id)  # By this a cleaner identifies the object once it is final.
            # The link makes the object final. It is atomic, and fails if the name is taken. It also fails if a cleaner
            # removed the temporary name because this process was too slow.
            try:
                os.link(self._part, image_id, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError as exc:
                raise errors.AlreadyStored("The store already holds an object of this name.", store.name) from exc
            except FileNotFoundError as exc:
                raise errors.Gone("The upload was given up while data was arriving.") from exc
            try:
                os.unlink(self._part, dir_fd=directory)
                os.fsync(directory)
                store._check_not_replaced(directory)
            except BaseException as exc:
                file_objects.remove(directory, image_id, object_id)
                if isinstance(exc, FileNotFoundError):  # A cleaner removed it after the link.
                    raise errors.Gone("The upload was given up while data was arriving.") from exc
                raise
        self._close()
        return Stored(f"{store._prefix}{quote(image_id)}", self._written, object_id=object_id)

    def abort(self) -> None:
        if not self._open:
            return
        try:
            with self._store._translated(), contextlib.suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._directory)
        finally:
            self._close()

    def _close(self) -> None:
        self._open = False
        self._ending.close()


class _FileSlice:
    """A part of a file for WSGI's file wrapper: the descriptor is positioned at its first byte."""

    def __init__(self, file: IO[bytes], offset: int, length: int, store: str) -> None:
        self._file = file
        self._end = offset + length
        self._remaining = length
        self._store = store

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int = -1) -> bytes:
        if self._remaining <= 0:
            return b""
        data = self._file.read(self._remaining if size < 0 else min(size, self._remaining))
        if not data:
            raise errors.StoreError("The object ended before its recorded size.", self._store)
        self._remaining -= len(data)
        return data

    def close(self) -> None:
        """Raise if the file shrank meanwhile. So the server breaks the connection, and the client notices."""
        try:
            if not self._file.closed and os.fstat(self._file.fileno()).st_size < self._end:
                raise errors.StoreError("The object became shorter while it was being sent.", self._store)
        finally:
            self._file.close()


class _FileBody:
    """`Body` of a slice of a file."""

    def __init__(self, store: FileStore, part: _FileSlice, size: int) -> None:
        self.size = size
        self._store = store
        self._part = part
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        while not self._cancelled:
            with self._store._translated():
                data = self._part.read(self._store._chunk)
            if not data:
                return
            yield data
        raise errors.Cancelled("The read was cancelled.", self._store.name)

    def cancel(self) -> None:
        self._cancelled = True

    def file(self) -> IO[bytes] | None:
        return self._part  # type: ignore[return-value]  # the three methods that a WSGI server calls

    def close(self) -> None:
        self._part.close()


# --- without a section of its own ------------------------------------------------------------------------


def unconfigured(conf: cfg.ConfigOpts, name: str) -> FileStore:
    """The only store of a configuration that names none: in a single-store Glance's directory or the state directory.

    Raises `ConfigError` if that Glance stored data elsewhere than in files.
    """
    old = conf.glance_store
    if old.default_store not in (None, "file", "filesystem"):
        raise errors.ConfigError(
            f"[glance_store] default_store = {old.default_store}: this release takes over single-store "
            "configurations of file stores only. Name the store in enabled_backends and default_backend."
        )
    if old.filesystem_store_datadir:
        LOG.warning(
            "[glance_store] filesystem_store_datadir is a single-store setting: it is served as the store %r. "
            "Name the store in enabled_backends, with a section of its own, to silence this.",
            name,
        )
    # If Glance was configured for a file store without a directory, it used its own default.
    glances = "/var/lib/glance/images" if old.default_store else None
    directory = old.filesystem_store_datadir or glances or str(Path(conf.state_dir) / "images")
    conf.register_opts([option for option in OPTIONS if option.dest not in old], group="glance_store")
    options = {option.dest: getattr(old, option.dest) for option in OPTIONS}
    return FileStore(name, {**options, "filesystem_store_datadir": directory})


# --- the directory ---------------------------------------------------------------------------------------


def _is_same(here: Path, there: Path) -> bool:
    """Whether both paths lead to the same directory, for example by a bind mount."""
    try:
        return here.samefile(there)
    except OSError:
        return False  # one of them does not exist


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _read_identity(directory: int) -> str | None:
    """The identity in a directory; None without one. Raises `OSError` if it cannot be read."""
    try:
        number = os.open(_MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(number, "rb") as file:
        try:
            return str(json.loads(file.read(4096))["identity"])
        except (ValueError, KeyError, TypeError) as exc:
            raise OSError(errno.EINVAL, f"{_MARKER} cannot be read as what it should be") from exc


def _is_foreign_name(name: str) -> bool:
    """Whether a name begins with a dot, such as `.nfs…` and our own. Names of images do not."""
    return (name.startswith(".") and not file_objects.ASIDE.match(name)) or name == "lost+found"


def _age(directory: int, name: str) -> float:
    return time.time() - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_all(file: int, view: memoryview) -> None:
    done = os.write(file, view)
    while done < len(view):
        done += os.write(file, view[done:])


def _write_thin(file: int, view: memoryview, offset: int) -> None:
    """Write at `offset`, but leave holes in place of blocks of zeros."""
    start = 0
    while start < len(view):
        # Blocks are counted from the start of the file, so that holes match the blocks of the file system.
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
