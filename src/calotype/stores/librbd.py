"""Ceph's libraries, called by ctypes: a cluster, its pools, and RBD images in them. `rbd.py` is the driver.

Ceph's own Python modules are built for the Python of the distribution alone. The C interface is stable, so this works
in any Python. Failed calls raise `OSError` with the number that the library gave. All calls block; the libraries end
most of them by the time-outs that `Cluster` is given, and `patience.py` ends the waiting for the others.

No thread of the libraries ever runs Python: a completion is announced by an eventfd, not by a callback. A callback
could come while the interpreter ends.
"""

import contextlib
import ctypes
import json
import os
import select
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from errno import ECANCELED, ENODATA, ENOENT, ERANGE, ETIMEDOUT
from typing import Any, Final

_Out = POINTER(c_void_p)
_Text = POINTER(c_void_p)
_Size = POINTER(c_size_t)


class _Snapshot(ctypes.Structure):
    _fields_ = (("id", c_uint64), ("size", c_uint64), ("name", c_char_p))


class _Watcher(ctypes.Structure):
    _fields_ = (("address", c_char_p), ("id", c_int64), ("cookie", c_uint64))


class _Trashed(ctypes.Structure):
    _fields_ = (
        ("id", c_char_p),
        ("name", c_char_p),
        ("source", c_int),
        ("deleted", ctypes.c_long),
        ("deferred", ctypes.c_long),
    )


class _Spec(ctypes.Structure):
    _fields_ = (("id", c_char_p), ("name", c_char_p))


class _Part(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("size", c_size_t))


#: The arguments of each function that is used. All return an int, negative for an error, but for those in `_RETURNS`.
_FUNCTIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    "rados_create": (_Out, c_char_p),
    "rados_conf_read_file": (c_void_p, c_char_p),
    "rados_conf_set": (c_void_p, c_char_p, c_char_p),
    "rados_conf_get": (c_void_p, c_char_p, c_char_p, c_size_t),
    "rados_connect": (c_void_p,),
    "rados_shutdown": (c_void_p,),
    "rados_cluster_fsid": (c_void_p, c_char_p, c_size_t),
    "rados_get_instance_id": (c_void_p,),
    "rados_blocklist_add": (c_void_p, c_char_p, c_uint32),
    "rados_mon_command": (
        c_void_p, POINTER(c_char_p), c_size_t, c_char_p, c_size_t, _Text, _Size, _Text, _Size,
    ),
    "rados_buffer_free": (c_void_p,),
    "rados_ioctx_create": (c_void_p, c_char_p, _Out),
    "rados_ioctx_destroy": (c_void_p,),
    "rados_ioctx_get_id": (c_void_p,),
    "rados_set_pool_full_try": (c_void_p,),
    "rados_stat": (c_void_p, c_char_p, POINTER(c_uint64), POINTER(ctypes.c_long)),
    "rados_read": (c_void_p, c_char_p, c_char_p, c_size_t, c_uint64),
    "rados_remove": (c_void_p, c_char_p),
    "rados_write_full": (c_void_p, c_char_p, c_char_p, c_size_t),
    "rados_getxattr": (c_void_p, c_char_p, c_char_p, c_char_p, c_size_t),
    "rados_exec": (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, c_size_t, c_char_p, c_size_t),
    "rados_notify2": (c_void_p, c_char_p, c_char_p, c_int, c_uint64, _Text, _Size),
    "rados_create_write_op": (),
    "rados_release_write_op": (c_void_p,),
    "rados_write_op_create": (c_void_p, c_int, c_char_p),
    "rados_write_op_write_full": (c_void_p, c_char_p, c_size_t),
    "rados_write_op_cmpext": (c_void_p, c_char_p, c_size_t, c_uint64, POINTER(c_int)),
    "rados_write_op_remove": (c_void_p,),
    "rados_write_op_assert_exists": (c_void_p,),
    "rados_write_op_setxattr": (c_void_p, c_char_p, c_char_p, c_size_t),
    "rados_write_op_operate": (c_void_p, c_void_p, c_char_p, c_void_p, c_int),
    "rbd_image_options_create": (_Out,),
    "rbd_image_options_destroy": (c_void_p,),
    "rbd_image_options_set_uint64": (c_void_p, c_int, c_uint64),
    "rbd_image_options_set_string": (c_void_p, c_int, c_char_p),
    "rbd_create4": (c_void_p, c_char_p, c_uint64, c_void_p),
    "rbd_list2": (c_void_p, POINTER(_Spec), _Size),
    "rbd_image_spec_list_cleanup": (POINTER(_Spec), c_size_t),
    "rbd_trash_move": (c_void_p, c_char_p, c_uint64),
    "rbd_trash_list": (c_void_p, POINTER(_Trashed), _Size),
    "rbd_trash_list_cleanup": (POINTER(_Trashed), c_size_t),
    "rbd_trash_remove": (c_void_p, c_char_p, c_bool),
    "rbd_open": (c_void_p, c_char_p, _Out, c_char_p),
    "rbd_open_by_id": (c_void_p, c_char_p, _Out, c_char_p),
    "rbd_open_by_id_read_only": (c_void_p, c_char_p, _Out, c_char_p),
    "rbd_close": (c_void_p,),
    "rbd_get_size": (c_void_p, POINTER(c_uint64)),
    "rbd_resize": (c_void_p, c_uint64),
    "rbd_flush": (c_void_p,),
    "rbd_snap_create": (c_void_p, c_char_p),
    "rbd_snap_protect": (c_void_p, c_char_p),
    "rbd_snap_is_protected": (c_void_p, c_char_p, POINTER(c_int)),
    "rbd_snap_unprotect": (c_void_p, c_char_p),
    "rbd_snap_remove": (c_void_p, c_char_p),
    "rbd_snap_remove_by_id": (c_void_p, c_uint64),
    "rbd_snap_get_id": (c_void_p, c_char_p, POINTER(c_uint64)),
    "rbd_snap_get_namespace_type": (c_void_p, c_uint64, POINTER(c_int)),
    "rbd_snap_list": (c_void_p, POINTER(_Snapshot), POINTER(c_int)),
    "rbd_snap_list_end": (POINTER(_Snapshot),),
    "rbd_watchers_list": (c_void_p, POINTER(_Watcher), _Size),
    "rbd_watchers_list_cleanup": (POINTER(_Watcher), c_size_t),
    "rbd_set_image_notification": (c_void_p, c_int, c_int),
    "rbd_poll_io_events": (c_void_p, _Out, c_int),
    "rbd_aio_create_completion": (c_void_p, c_void_p, _Out),
    "rbd_aio_release": (c_void_p,),
    "rbd_aio_get_return_value": (c_void_p,),
    "rbd_aio_writev": (c_void_p, POINTER(_Part), c_int, c_uint64, c_void_p),
    "rbd_aio_read": (c_void_p, c_uint64, c_size_t, c_void_p, c_void_p),
}  # fmt: skip
_RETURNS: Final[Mapping[str, Any]] = {
    "rados_shutdown": None,
    "rados_buffer_free": None,
    "rados_ioctx_destroy": None,
    "rados_ioctx_get_id": c_int64,
    "rados_get_instance_id": c_uint64,
    "rados_set_pool_full_try": None,
    "rados_create_write_op": c_void_p,
    "rados_release_write_op": None,
    "rados_write_op_create": None,
    "rados_write_op_write_full": None,
    "rados_write_op_cmpext": None,
    "rados_write_op_remove": None,
    "rados_write_op_assert_exists": None,
    "rados_write_op_setxattr": None,
    "rbd_image_options_create": None,
    "rbd_image_options_destroy": None,
    "rbd_image_spec_list_cleanup": None,
    "rbd_trash_list_cleanup": None,
    "rbd_snap_list_end": None,
    "rbd_watchers_list_cleanup": None,
    "rbd_aio_release": None,
    "rbd_aio_get_return_value": ctypes.c_ssize_t,
}

_COMPARE_FAILED: Final = (
    -4095
)  #: The highest result of a comparison that failed; lower ones name the first differing byte.
_EVENTFD: Final = 2
_FORMAT, _FEATURES, _ORDER, _DATA_POOL = 0, 1, 2, 10
_TRASH: Final = 2  #: The namespace of snapshots that were removed, and are kept because clones need them.


class _Libraries:
    """Both libraries, loaded. `libraries.call(name, …)` calls a function and raises `OSError` for a negative result."""

    def __init__(self) -> None:
        # Both names are those of the stable interface, since 2010.
        rados, rbd = ctypes.CDLL("librados.so.2"), ctypes.CDLL("librbd.so.1")
        self._functions = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(rbd if name.startswith("rbd_") else rados, name)
            function.argtypes = arguments
            function.restype = _RETURNS.get(name, c_int)
            self._functions[name] = function

    def call(self, name: str, *arguments: Any) -> Any:
        result = self._functions[name](*arguments)
        if isinstance(result, int) and result < 0:
            raise failure(result, name)
        return result

    def result(self, name: str, *arguments: Any) -> Any:
        """Call a function whose negative results the caller looks at."""
        return self._functions[name](*arguments)


_loaded: list[_Libraries] = []


def load() -> _Libraries:
    """The libraries. Raises `OSError` or `AttributeError` if they are missing, or too old."""
    if not _loaded:
        _loaded.append(_Libraries())
    return _loaded[0]


def failure(result: int, name: str) -> OSError:
    """The exception for a negative result."""
    return OSError(-result, f"{os.strerror(-result)} ({name})")


class Cluster:
    """A connection to a cluster. Thread-safe after `connect`; not usable in a forked child."""

    def __init__(self, user: str | None, conf: str | None, settings: Mapping[str, str]) -> None:
        """Read the configuration file, or those at the usual places. `settings` take precedence. Raises `OSError`."""
        self._lib = load()
        handle = c_void_p()
        self._lib.call("rados_create", byref(handle), user.encode() if user else None)
        self._handle: c_void_p | None = handle
        try:
            self._lib.call("rados_conf_read_file", handle, conf.encode() if conf else None)
            for name, value in settings.items():
                self._lib.call("rados_conf_set", handle, name.encode(), value.encode())
        except BaseException:
            self.shutdown()
            raise

    def connect(self) -> None:
        self._lib.call("rados_connect", self._handle)

    def shutdown(self) -> None:
        """End the connection. Everything that was opened by it must have been closed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.call("rados_shutdown", handle)

    def setting(self, name: str) -> str:
        """A value of the configuration."""
        text = ctypes.create_string_buffer(4096)
        self._lib.call("rados_conf_get", self._handle, name.encode(), text, len(text))
        return text.value.decode()

    def fsid(self) -> str:
        text = ctypes.create_string_buffer(64)
        self._lib.call("rados_cluster_fsid", self._handle, text, len(text))
        return text.value.decode()

    def instance(self) -> int:
        """The number by which the cluster knows this connection, such as among the watchers of an image."""
        return int(self._lib.result("rados_get_instance_id", self._handle))

    def blocklist(self, address: str, seconds: int) -> None:
        """Have the cluster refuse whatever this client has sent, or sends, and forget its watches."""
        self._lib.call("rados_blocklist_add", self._handle, address.encode(), seconds)

    def ask(self, **command: Any) -> Any:
        """The answer of the monitors to a command, from JSON."""
        given = (c_char_p * 1)(json.dumps(command | {"format": "json"}).encode())
        answer, answer_size, words, words_size = c_void_p(), c_size_t(), c_void_p(), c_size_t()
        try:
            self._lib.call(
                "rados_mon_command", self._handle, given, 1, None, 0,
                byref(answer), byref(answer_size), byref(words), byref(words_size),
            )  # fmt: skip
            return json.loads(ctypes.string_at(answer, answer_size.value) if answer else b"null")
        finally:
            for text in (answer, words):
                if text:
                    self._lib.call("rados_buffer_free", text)

    def pool(self, name: str) -> "Pool":
        """Open a pool by its name. Raises `FileNotFoundError`."""
        handle = c_void_p()
        self._lib.call("rados_ioctx_create", self._handle, name.encode(), byref(handle))
        # Else writes to a full pool wait until there is room, instead of failing.
        self._lib.call("rados_set_pool_full_try", handle)
        return Pool(self._lib, handle)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of an image. `size` is in bytes; `removed` if it is only kept because clones need it."""

    id: int
    size: int
    name: str
    removed: bool


@dataclass(frozen=True, slots=True)
class Watcher:
    """A client that has an image open for writing."""

    address: str
    instance: int


@dataclass(frozen=True, slots=True)
class Trashed:
    """An image in the trash."""

    id: str
    name: str


class Pool:
    """An open pool: its objects, and the RBD images in it. Thread-safe."""

    def __init__(self, lib: _Libraries, handle: c_void_p) -> None:
        self._lib = lib
        self._handle = handle
        self.id = int(lib.result("rados_ioctx_get_id", handle))

    def close(self) -> None:
        self._lib.call("rados_ioctx_destroy", self._handle)

    # --- objects -----------------------------------------------------------------------------------------

    def changed(self, name: str) -> float | None:
        """When an object was last written, in seconds since 1970; None if there is no such object."""
        size, time = c_uint64(), ctypes.c_long()
        try:
            self._lib.call("rados_stat", self._handle, name.encode(), byref(size), byref(time))
        except FileNotFoundError:
            return None
        return time.value

    def read(self, name: str) -> bytes | None:
        """The first 4 KiB of an object; None if there is no such object."""
        data = ctypes.create_string_buffer(4096)
        try:
            size = self._lib.call("rados_read", self._handle, name.encode(), data, len(data), 0)
        except FileNotFoundError:
            return None
        return data.raw[:size]

    def write(self, name: str, data: bytes) -> None:
        """Replace an object, durably."""
        self._lib.call("rados_write_full", self._handle, name.encode(), data, len(data))

    def make(self, name: str, data: bytes) -> None:
        """Make an object, durably. Raises `FileExistsError`."""
        with self._operation() as operation:
            self._lib.call("rados_write_op_create", operation, 1, None)
            self._lib.call("rados_write_op_write_full", operation, data, len(data))
            self._operate(operation, name)

    def remove(self, name: str, data: bytes | None = None) -> bool:
        """Remove an object, durably; with `data`, only if it begins so. Returns whether it did."""
        with self._operation() as operation:
            if data is not None:
                self._lib.call("rados_write_op_cmpext", operation, data, len(data), 0, None)
            self._lib.call("rados_write_op_remove", operation)
            try:
                self._operate(operation, name)
            except OSError as exc:
                if exc.errno in (ENOENT, ECANCELED):
                    return False
                raise
        return True

    @contextlib.contextmanager
    def _operation(self) -> Iterator[Any]:
        operation = self._lib.call("rados_create_write_op")
        try:
            yield operation
        finally:
            self._lib.call("rados_release_write_op", operation)

    def _operate(self, operation: Any, name: str) -> None:
        result = self._lib.result("rados_write_op_operate", operation, self._handle, name.encode(), None, 0)
        if result <= _COMPARE_FAILED:
            raise OSError(ECANCELED, "the object has other data")
        if result < 0:
            raise failure(result, "rados_write_op_operate")

    def mark(self, name: str, attribute: str) -> bytes | None:
        """The value of an attribute of an object; None without one. At most 4 KiB."""
        value = ctypes.create_string_buffer(4096)
        try:
            size = self._lib.call("rados_getxattr", self._handle, name.encode(), attribute.encode(), value, len(value))
        except OSError as exc:
            if exc.errno in (ENODATA, ENOENT):
                return None
            raise
        return value.raw[:size]

    def set_mark(self, name: str, attribute: str, value: bytes) -> None:
        """Give an object an attribute. Raises `FileNotFoundError`."""
        with self._operation() as operation:
            self._lib.call("rados_write_op_assert_exists", operation)
            self._lib.call("rados_write_op_setxattr", operation, attribute.encode(), value, len(value))
            self._operate(operation, name)

    def execute(self, name: str, method: str, given: bytes) -> bytes:
        """Have the cluster run a method of its class `rbd` on an object; at most 64 KiB come back."""
        answer = ctypes.create_string_buffer(65536)
        size = self._lib.call(
            "rados_exec", self._handle, name.encode(), b"rbd", method.encode(), given, len(given), answer, len(answer)
        )
        return answer.raw[:size]

    def silent(self, name: str, seconds: int) -> set[int]:
        """Ask all watchers of an object for a sign of life; return the instances of those that give none in this time.

        To a client that has an image open it means that its header was written, which does no harm.
        """
        answer, size = c_void_p(), c_size_t()
        try:
            result = self._lib.result(
                "rados_notify2", self._handle, name.encode(), None, 0, seconds * 1000, byref(answer), byref(size)
            )
            if result < 0 and result not in (-ENOENT, -ETIMEDOUT):
                raise failure(result, "rados_notify2")
            return _silent(ctypes.string_at(answer, size.value)) if answer else set()
        finally:
            if answer:
                self._lib.call("rados_buffer_free", answer)

    # --- images ------------------------------------------------------------------------------------------

    def create(self, name: str, size: int, *, features: int, order: int, data_pool: str | None) -> None:
        """Make an image whose objects have 2 ** `order` bytes. Raises `FileExistsError`."""
        options = c_void_p()
        self._lib.call("rbd_image_options_create", byref(options))
        try:
            for option, value in ((_FORMAT, 2), (_FEATURES, features), (_ORDER, order)):
                self._lib.call("rbd_image_options_set_uint64", options, option, value)
            if data_pool:
                self._lib.call("rbd_image_options_set_string", options, _DATA_POOL, data_pool.encode())
            self._lib.call("rbd_create4", self._handle, name.encode(), size, options)
        finally:
            self._lib.call("rbd_image_options_destroy", options)

    def images(self) -> list[tuple[str, str]]:
        """The name and the id of each image."""
        return [
            (_text(one.name), _text(one.id)) for one in self._listed("rbd_list2", _Spec, "rbd_image_spec_list_cleanup")
        ]

    def trash(self, name: str) -> None:
        """Move an image to the trash. Raises `OSError` with EBUSY if it is open elsewhere."""
        self._lib.call("rbd_trash_move", self._handle, name.encode(), 0)

    def trashed(self) -> list[Trashed]:
        """What is in the trash."""
        found = self._listed("rbd_trash_list", _Trashed, "rbd_trash_list_cleanup")
        return [Trashed(_text(one.id), _text(one.name)) for one in found]

    def purge(self, image_id: str) -> None:
        """Remove an image that is in the trash. Raises `OSError` with EBUSY or ENOTEMPTY if it is in use."""
        self._lib.call("rbd_trash_remove", self._handle, image_id.encode(), True)

    def open(self, name: str) -> "Image":
        """Open an image for writing. Raises `FileNotFoundError`."""
        return self._open("rbd_open", name, None)

    def open_id(self, image_id: str) -> "Image":
        """Open an image by its id for writing. Raises `FileNotFoundError`."""
        return self._open("rbd_open_by_id", image_id, None)

    def open_reading(self, image_id: str, snapshot: str | None = None) -> "Image":
        """Open an image by its id, at a snapshot or as it is now, for reading. Raises `FileNotFoundError`."""
        return self._open("rbd_open_by_id_read_only", image_id, snapshot)

    def _open(self, function: str, which: str, snapshot: str | None) -> "Image":
        handle = c_void_p()
        self._lib.call(function, self._handle, which.encode(), byref(handle), snapshot and snapshot.encode())
        return Image(self._lib, handle)

    def _listed(self, function: str, kind: Any, cleanup: str) -> Any:
        return _listed(self._lib, function, self._handle, kind, cleanup)


@dataclass(slots=True)
class Transfer:
    """A read or write. `kept` is what must live until it has `ended`; then `result` is its size, or below 0."""

    kept: Any
    result: int = 0
    ended: bool = False


class Image:
    """An open image. One thread at a time may call its methods, but for `write`, `collect` and `wake`."""

    def __init__(self, lib: _Libraries, handle: c_void_p) -> None:
        self._lib = lib
        self._handle = handle
        self._under_way: dict[int, Transfer] = {}
        self._event: int | None = None
        self._waking = threading.Lock()  # held while the descriptor is made, used or closed

    def close(self) -> None:
        """Wait for all that is under way, and close it."""
        watched = select.poll()
        while self._under_way:
            watched.register(self.events(), select.POLLIN)
            watched.poll(1000)
            self.collect()
        with self._waking:
            event, self._event = self._event, None
        try:
            self._lib.call("rbd_close", self._handle)
        finally:
            if event is not None:
                os.close(event)

    # --- facts and snapshots -----------------------------------------------------------------------------

    def size(self) -> int:
        size = c_uint64()
        self._lib.call("rbd_get_size", self._handle, byref(size))
        return size.value

    def resize(self, size: int) -> None:
        self._lib.call("rbd_resize", self._handle, size)

    def flush(self) -> None:
        """Wait until all that was written is durable."""
        self._lib.call("rbd_flush", self._handle)

    def take_snapshot(self, name: str) -> None:
        """Take a snapshot and protect it."""
        self._lib.call("rbd_snap_create", self._handle, name.encode())
        self._lib.call("rbd_snap_protect", self._handle, name.encode())

    def unprotect(self, snapshot: str) -> None:
        """Raises `OSError` with EBUSY if the snapshot has clones that need its protection."""
        protected = c_int()
        self._lib.call("rbd_snap_is_protected", self._handle, snapshot.encode(), byref(protected))
        if protected.value:
            self._lib.call("rbd_snap_unprotect", self._handle, snapshot.encode())

    def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove a snapshot that is not protected. If clones need it, it is kept as a removed one."""
        if snapshot.removed:
            self._lib.call("rbd_snap_remove_by_id", self._handle, snapshot.id)
        else:
            self._lib.call("rbd_snap_remove", self._handle, snapshot.name.encode())

    def snapshot_id(self, name: str) -> int:
        found = c_uint64()
        self._lib.call("rbd_snap_get_id", self._handle, name.encode(), byref(found))
        return found.value

    def snapshots(self) -> list[Snapshot]:
        count, result = c_int(16), -ERANGE
        while result == -ERANGE:
            found = (_Snapshot * count.value)()
            result = self._lib.result("rbd_snap_list", self._handle, found, byref(count))
        if result < 0:
            raise failure(result, "rbd_snap_list")
        try:
            return [Snapshot(one.id, one.size, _text(one.name), self._is_removed(one.id)) for one in found[:result]]
        finally:
            if result:
                self._lib.call("rbd_snap_list_end", found)

    def _is_removed(self, snapshot_id: int) -> bool:
        kind = c_int()
        self._lib.call("rbd_snap_get_namespace_type", self._handle, snapshot_id, byref(kind))
        return kind.value == _TRASH

    def watchers(self) -> list[Watcher]:
        """Who has the image open for writing."""
        found = _listed(self._lib, "rbd_watchers_list", self._handle, _Watcher, "rbd_watchers_list_cleanup")
        return [Watcher(_text(one.address), one.id) for one in found]

    # --- transfers ---------------------------------------------------------------------------------------

    def events(self) -> int:
        """A descriptor that can be read when a transfer has ended; then call `collect`."""
        with self._waking:
            if self._event is None:
                self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._lib.call("rbd_set_image_notification", self._handle, self._event, _EVENTFD)
            return self._event

    def wake(self) -> None:
        """Make the descriptor readable. Any thread may call it, also after `close`."""
        with self._waking:
            if self._event is not None:
                os.eventfd_write(self._event, 1)

    @property
    def under_way(self) -> int:
        """How many transfers have not ended."""
        return len(self._under_way)

    def write(self, offset: int, views: Sequence[memoryview]) -> Transfer:
        """Begin to write these bytes in a row. They are not copied; they must not change until it has ended."""
        lent = [(ctypes.c_char * len(view)).from_buffer(view) for view in views]
        parts = (_Part * len(lent))(*[_Part(ctypes.addressof(one), len(one)) for one in lent])
        return self._begin(lent, "rbd_aio_writev", parts, len(lent), offset)

    def read(self, offset: int, size: int) -> Transfer:
        """Begin to read; `kept` becomes the bytes."""
        data = ctypes.pythonapi.PyBytes_FromStringAndSize(None, size)
        return self._begin(data, "rbd_aio_read", offset, size, ctypes.cast(c_char_p(data), c_void_p))

    def _begin(self, kept: Any, function: str, *arguments: Any) -> Transfer:
        self.events()
        completion = c_void_p()
        self._lib.call("rbd_aio_create_completion", None, None, byref(completion))
        transfer = Transfer(kept)
        key = completion.value or 0
        self._under_way[key] = transfer
        result = self._lib.result(function, self._handle, *arguments, completion)
        if result < 0:
            del self._under_way[key]
            self._lib.call("rbd_aio_release", completion)
            raise failure(result, function)
        return transfer

    def collect(self) -> list[Transfer]:
        """The transfers that have ended since the last call. Never waits."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.events())
        found: list[Transfer] = []
        done = (c_void_p * 64)()
        while count := self._lib.call("rbd_poll_io_events", self._handle, done, len(done)):
            for completion in done[:count]:
                transfer = self._under_way.pop(completion or 0)
                transfer.result = self._lib.result("rbd_aio_get_return_value", completion)
                self._lib.call("rbd_aio_release", completion)
                transfer.ended = True
                found.append(transfer)
        return found


ctypes.pythonapi.PyBytes_FromStringAndSize.restype = ctypes.py_object
ctypes.pythonapi.PyBytes_FromStringAndSize.argtypes = (c_void_p, ctypes.c_ssize_t)


def _listed(lib: _Libraries, function: str, handle: Any, kind: Any, cleanup: str) -> Any:
    """What a function lists into an array, which it frees by `cleanup` when the caller has seen all of it."""
    count, result = c_size_t(64), -ERANGE
    while result == -ERANGE:
        found = (kind * count.value)()
        result = lib.result(function, handle, found, byref(count))
    if result < 0:
        raise failure(result, function)
    try:
        yield from found[: count.value]
    finally:
        lib.call(cleanup, found, count.value)


def _text(given: bytes | None) -> str:
    return (given or b"").decode(errors="replace")


def _silent(answer: bytes) -> set[int]:
    """The instances that have not answered, from the answers to a notification."""
    (count,) = struct.unpack_from("<I", answer)
    place = 4
    for _ in range(count):  # client, cookie, and what it said
        (size,) = struct.unpack_from("<I", answer, place + 16)
        place += 20 + size
    (count,) = struct.unpack_from("<I", answer, place)
    return {struct.unpack_from("<Q", answer, place + 4 + 16 * number)[0] for number in range(count)}


def encoded(*texts: str) -> bytes:
    """Strings as Ceph encodes them: each with its length before it."""
    return b"".join(struct.pack("<I", len(data)) + data for data in (text.encode() for text in texts))


def decoded(data: bytes) -> str:
    """The string at the beginning."""
    (size,) = struct.unpack_from("<I", data)
    return data[4 : 4 + size].decode()
