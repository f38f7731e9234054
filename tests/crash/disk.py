"""A file system in memory that remembers in which order it was changed, and what of it is left when power is lost.

`Mounted` serves one over FUSE, in a process of its own: what the service, SQLite and the journal do to their files
comes there through the kernel, one request after the other, and is recorded as it is done. `Disk.survivors` is the model.

What a disk may do when power is lost, as far as POSIX promises anything:

- Data of a file counts from the next fsync or fdatasync of it on. Of what was written since, each sector has what was
  there at some time since; so has the size. The time of the last change counts from the next fsync on.
- A name counts from the next fsync of its directory on. Of what was done to names since, anything may be missing, in any
  order; that a file was synced says nothing of its names. One link, unlink or rename is done in full or not at all.
- What was mapped into memory is written whenever the kernel likes, as here.
"""

import ctypes
import errno
import json
import os
import pickle
import random
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = 1
SECTOR = 512
#: A file of this name is outside of the machine, and loses nothing.
OUTSIDE = "journal.jsonl"


@dataclass(slots=True)
class Inode:
    """A file with `data` or a directory with `names`."""

    mode: int
    mtime: int  #: ns
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)
    links: int = 0

    def copy(self) -> "Inode":
        return replace(self, data=bytearray(self.data), names=dict(self.names))


Tree = dict[int, Inode]


# --- changes: the only way in which a tree becomes another ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Make:
    """An inode, without a name yet."""

    inode: int
    mode: int
    mtime: int

    def apply(self, tree: Tree) -> None:
        tree[self.inode] = Inode(self.mode, self.mtime)


@dataclass(frozen=True, slots=True)
class Name:
    """Names that come to mean another inode, or none (0), all at once: create, link, unlink, rename."""

    slots: tuple[tuple[int, str, int], ...]  #: directory, name, inode

    def apply(self, tree: Tree) -> None:
        for directory, name, inode in self.slots:
            names = tree[directory].names
            if (before := names.pop(name, 0)) in tree:
                tree[before].links -= 1
            if inode:
                names[name] = inode
                tree[inode].links += 1


@dataclass(frozen=True, slots=True)
class Write:
    inode: int
    offset: int
    data: bytes
    mtime: int

    def apply(self, tree: Tree) -> None:
        file = tree[self.inode]
        _write(file.data, self.offset, self.data)
        file.mtime = self.mtime


@dataclass(frozen=True, slots=True)
class Resize:
    inode: int
    size: int
    mtime: int

    def apply(self, tree: Tree) -> None:
        file = tree[self.inode]
        _resize(file.data, self.size)
        file.mtime = self.mtime


@dataclass(frozen=True, slots=True)
class Touch:
    """Permissions and time."""

    inode: int
    mode: int
    mtime: int

    def apply(self, tree: Tree) -> None:
        tree[self.inode].mode, tree[self.inode].mtime = self.mode, self.mtime


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync of a file or a directory, or fdatasync, which leaves out the time."""

    inode: int
    whole: bool

    def apply(self, tree: Tree) -> None: ...


Change = Make | Name | Write | Resize | Touch | Sync
Content = Write | Resize | Touch


def _write(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset:
        _resize(data, offset)
    data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


# --- the model -------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """What is on the disk for certain, and all that was done since, in its order."""

    base: Tree
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def empty(cls) -> "Disk":
        """Nothing but the file that is outside."""
        root = Inode(stat.S_IFDIR | 0o755, time.time_ns(), names={OUTSIDE: ROOT + 1})
        return cls({ROOT: root, ROOT + 1: Inode(stat.S_IFREG | 0o600, time.time_ns(), links=1)})

    @property
    def outside(self) -> int:
        """The inode of the file that loses nothing."""
        return self.base[ROOT].names[OUTSIDE]

    def until(self, moment: int) -> "Disk":
        """The same disk when only so many changes had been made: what kill -9 leaves, with nothing lost."""
        return Disk(self.base, self.changes[:moment])

    def now(self) -> Tree:
        """What processes see."""
        tree = {number: inode.copy() for number, inode in self.base.items()}
        for change in self.changes:
            change.apply(tree)
        return tree

    def survivors(self, rng: random.Random) -> "Disk":
        """What is left if power is lost now; chosen at random from what may be left."""
        tree = {number: inode.copy() for number, inode in self.base.items()}
        names: list[Name] = []
        contents: dict[int, list[Content]] = defaultdict(list)
        outside = self.outside
        for change in self.changes:
            match change:
                case Make():
                    change.apply(tree)
                case Name():
                    names.append(change)
                case Sync(inode, whole):
                    names = _settle_names(tree, inode, names)
                    _settle_content(tree, inode, contents, whole=whole)
                case _ if change.inode == outside:
                    change.apply(tree)
                case _:
                    contents[change.inode].append(change)
        for name in _some_of(names, rng):
            name.apply(tree)
        for inode, changes in contents.items():
            _tear(tree[inode], changes, rng)
        return Disk(_reachable(tree))


def _settle_names(tree: Tree, directory: int, names: list[Name]) -> list[Name]:
    """Apply what was done to a directory; with a rename to another one, what was done there before. The rest."""
    synced, settled, left = {directory}, [], []
    for name in reversed(names):
        if synced.isdisjoint(slot[0] for slot in name.slots):
            left.append(name)
        else:
            synced |= {slot[0] for slot in name.slots}
            settled.append(name)
    for name in reversed(settled):
        name.apply(tree)
    return left[::-1]


def _settle_content(tree: Tree, inode: int, contents: dict[int, list[Content]], *, whole: bool) -> None:
    changes = contents.pop(inode, [])
    before = tree[inode].mtime
    for change in changes:
        change.apply(tree)
    if changes and not whole:
        contents[inode] = [Touch(inode, tree[inode].mode, tree[inode].mtime)]
        tree[inode].mtime = before


def _some_of(names: list[Name], rng: random.Random) -> list[Name]:
    """A journalled file system keeps an order; POSIX asks for none."""
    match rng.choice(("none", "some", "some", "first", "all")):
        case "none":
            return []
        case "first":
            return names[: rng.randrange(len(names) + 1)]
        case "some":
            return [name for name in names if rng.random() < 0.5]
    return names


def _tear(file: Inode, changes: list[Content], rng: random.Random) -> None:
    """Apply to each sector the changes up to some time of its own, or up to one time for all of the file."""
    count = len(changes)
    when = rng.choice((0, count, rng.randrange(count + 1), None))
    times: dict[int, int] = defaultdict(lambda: rng.randrange(count + 1) if when is None else when)
    size, sized = len(file.data), rng.randrange(count + 1) if when is None else when
    longest = size
    for number, change in enumerate(changes):
        match change:
            case Write(_, offset, data, mtime):
                end = offset + len(data)
                for at in _sectors(offset, end):
                    if number < times[at // SECTOR]:
                        first, last = max(at, offset), min(at + SECTOR, end)
                        _write(file.data, first, data[first - offset : last - offset])
                longest = max(longest, end)
                if number < sized:
                    size, file.mtime = max(size, end), mtime
            case Resize(_, cut, mtime):
                for at in _sectors(cut, longest):
                    if number < times[at // SECTOR] and (first := max(at, cut)) < len(file.data):
                        last = min(at + SECTOR, len(file.data))
                        file.data[first:last] = bytes(last - first)
                if number < sized:
                    size, file.mtime = cut, mtime
            case Touch(_, mode, mtime):
                if number < sized:
                    file.mode, file.mtime = mode, mtime
    _resize(file.data, size)


def _sectors(start: int, end: int) -> range:
    return range(start - start % SECTOR, end, SECTOR)


def _reachable(tree: Tree) -> Tree:
    """Only what has a name is there after a reboot."""
    found: Tree = {}
    ways = [ROOT]
    while ways:
        number = ways.pop()
        if number not in found:
            found[number] = tree[number]
            found[number].links = 0
            ways += tree[number].names.values()
    for inode in found.values():
        for number in inode.names.values():
            found[number].links += 1
    return found


# --- mounting --------------------------------------------------------------------------------------------

_LIBC = ctypes.CDLL(None, use_errno=True)
_NOSUID_NODEV = 2 | 4
_DETACH = 2


class Mounted:
    """A disk as a file system at `place`, from one start of the machine to the next loss of power."""

    def __init__(self, disk: Disk, place: Path) -> None:
        self._disk, self._place = disk, place
        place.mkdir(parents=True, exist_ok=True)
        self._file = place.with_name(f"{place.name}.record")
        self._file.write_bytes(pickle.dumps(disk))
        # By the module's own name, so that what the server pickles is of the classes that are known here.
        serve = "import sys; from tests.crash import disk; sys.exit(disk.main())"
        command = [sys.executable, "-c", serve, str(place), str(self._file)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"mounted\n", "the file system could not be mounted; are you root?"

    def fail(self, *faults: "Fault") -> None:
        """From now on, answer these calls with errors, and no others; nothing given, the disk is sound again."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([asdict(fault) for fault in faults]).encode() + b"\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == b"noted\n"

    def end(self) -> Disk:
        """Unmount, when nobody uses it any more. The disk with all that was done to it."""
        end = time.monotonic() + 10
        while _LIBC.umount2(bytes(self._place), 0) < 0:
            assert time.monotonic() < end, f"{self._place} is still in use: {os.strerror(ctypes.get_errno())}"
            time.sleep(0.01)
        assert self._server.wait(30) == 0
        changes = list(self._disk.changes)
        with self._file.open("rb") as record:
            while record.peek(1):  # type: ignore[attr-defined]
                changes.append(pickle.load(record))  # our own
        return Disk(self._disk.base, changes)

    def close(self) -> None:
        """Whatever happens, nothing stays mounted."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


# --- FUSE ------------------------------------------------------------------------------------------------
# The kernel's side of it: linux/fuse.h. Each request has a header and a body; names end with a NUL.

_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LARGEST = 1 << 20
_FOR_EVER = 1 << 30  #: Seconds; nobody changes anything but through this kernel.
_KEEP_CACHE = 2


#: What the kernel asks for, by the names of `Fault`.
_CALLS = {
    "setattr": (4,),
    "mkdir": (9,),
    "unlink": (10, 11),
    "rename": (12, 45),
    "link": (13,),
    "open": (14,),
    "read": (15,),
    "write": (16,),
    "fsync": (20,),
    "fsyncdir": (30,),
    "create": (8, 35),
}
#: Calls that change something, all of which a file system that is read-only refuses.
CHANGES = ("setattr", "mkdir", "unlink", "rename", "link", "write", "create")


@dataclass(slots=True)
class Fault:
    """Calls of one kind that go wrong, and do nothing."""

    call: str
    number: int  #: errno
    after: int = 0  #: so many still go well
    times: int = 1 << 30  #: and after so many it is over

    def strikes(self, code: int) -> bool:
        if code not in _CALLS[self.call]:
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True


class Server:
    """Answers the kernel. Single-threaded, so that there is one order."""

    def __init__(self, disk: Disk, record: Any) -> None:
        self.tree = disk.now()
        self.faults: list[Fault] = []
        self._record = record
        self._next = max(*self.tree, *(c.inode for c in disk.changes if isinstance(c, Make)), ROOT) + 1
        self._listings: dict[int, list[tuple[int, str]]] = {}
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: lambda number, _: self._attributes(number),
            4: self._setattr,
            8: self._mknod,
            9: self._mkdir,
            11: self._unlink,
            10: self._unlink,
            12: lambda number, body: self._rename(number, body, 8),
            13: self._link,
            14: lambda *_: struct.pack("<QII", 0, _KEEP_CACHE, 0),
            15: self._read,
            16: self._write,
            17: lambda *_: struct.pack("<5Q10I", *[1 << 30] * 3, *[1 << 20] * 2, 4096, 255, 4096, *[0] * 7),
            18: lambda *_: b"",
            20: self._fsync,
            26: self._init,
            27: self._opendir,
            28: self._readdir,
            29: lambda *_: b"",
            30: self._fsync,
            35: self._create,
            45: lambda number, body: self._rename(number, body, 16),
        }

    def answer(self, request: bytes) -> bytes | None:
        _, code, unique, number, *_ = _IN.unpack_from(request)
        if code in (2, 36, 42):  # forget, interrupt: no answer is wanted
            return None
        try:
            # What is not known is none of this file system's: the kernel finds another way.
            if code not in self._answers:
                raise OSError(errno.ENOSYS, "")
            for fault in self.faults:
                if fault.strikes(code):
                    raise OSError(fault.number, "")
            body = self._answers[code](number, request[_IN.size :])
        except OSError as exc:
            return _OUT.pack(_OUT.size, -(exc.errno or errno.EIO), unique)
        return _OUT.pack(_OUT.size + len(body), 0, unique) + body

    def _do(self, change: Change) -> None:
        change.apply(self.tree)
        pickle.dump(change, self._record)

    def _init(self, _number: int, body: bytes) -> bytes:
        major, minor, ahead, offered = struct.unpack_from("<4I", body)
        assert major == 7
        wanted = 1 | 1 << 5 | 1 << 22  # reads at once, large writes, many pages
        pages = _LARGEST // 4096
        sizes = (12, 9, _LARGEST, 1, pages, 0, *[0] * 8)
        return struct.pack("<4I2H2I2H8I", 7, min(minor, 31), ahead, offered & wanted, *sizes)

    def _lookup(self, number: int, body: bytes) -> bytes:
        return self._entry(self._named(number, _text(body)))

    def _named(self, directory: int, name: str) -> int:
        if name not in self.tree[directory].names:
            raise OSError(errno.ENOENT, name)
        return self.tree[directory].names[name]

    def _entry(self, number: int) -> bytes:
        return struct.pack("<4QII", number, 0, _FOR_EVER, 0, 0, 0) + self._attr(number)

    def _attributes(self, number: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attr(number)

    def _attr(self, number: int) -> bytes:
        inode, size = self.tree[number], len(self.tree[number].data)
        seconds, rest = divmod(inode.mtime, 10**9)
        owner = (os.getuid(), os.getgid())
        times = (seconds,) * 3 + (rest,) * 3
        return _ATTR.pack(number, size, -(-size // 512), *times, inode.mode, max(inode.links, 0), *owner, 0, 4096, 0)

    def _setattr(self, number: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, seconds, _, _, rest, _, mode = struct.unpack_from("<IIQQQQQQIIII", body)
        inode, now = self.tree[number], time.time_ns()
        if valid & 8:
            self._do(Resize(number, size, now))
        if valid & (1 | 32 | 256):
            mtime = seconds * 10**9 + rest if valid & 32 and not valid & 256 else now if valid & 256 else inode.mtime
            self._do(Touch(number, stat.S_IFMT(inode.mode) | mode & 0o7777 if valid & 1 else inode.mode, mtime))
        return self._attributes(number)

    def _make(self, directory: int, name: str, mode: int) -> int:
        if name in self.tree[directory].names:
            raise OSError(errno.EEXIST, name)
        number, self._next = self._next, self._next + 1
        self._do(Make(number, mode, time.time_ns()))
        self._do(Name(((directory, name, number),)))
        return number

    def _mknod(self, number: int, body: bytes) -> bytes:
        return self._entry(self._make(number, _text(body[16:]), struct.unpack_from("<I", body)[0]))

    def _mkdir(self, number: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self._entry(self._make(number, _text(body[8:]), stat.S_IFDIR | mode))

    def _create(self, number: int, body: bytes) -> bytes:
        made = self._make(number, _text(body[16:]), struct.unpack_from("<4I", body)[1])
        return self._entry(made) + struct.pack("<QII", 0, _KEEP_CACHE, 0)

    def _unlink(self, number: int, body: bytes) -> bytes:
        name = _text(body)
        if self.tree[self._named(number, name)].names:
            raise OSError(errno.ENOTEMPTY, name)
        self._do(Name(((number, name, 0),)))
        return b""

    def _link(self, number: int, body: bytes) -> bytes:
        linked, name = struct.unpack_from("<Q", body)[0], _text(body[8:])
        if name in self.tree[number].names:
            raise OSError(errno.EEXIST, name)
        self._do(Name(((number, name, linked),)))
        return self._entry(linked)

    def _rename(self, number: int, body: bytes, skip: int) -> bytes:
        target, flags = struct.unpack_from("<QI", body) if skip == 16 else (*struct.unpack_from("<Q", body), 0)
        if flags:
            raise OSError(errno.EINVAL, "")
        before, after = (part.decode() for part in body[skip:].split(b"\0")[:2])
        self._do(Name(((target, after, self._named(number, before)), (number, before, 0))))
        return b""

    def _read(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self.tree[number].data[offset : offset + size])

    def _write(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        self._do(Write(number, offset, body[40 : 40 + size], time.time_ns()))
        return struct.pack("<II", size, 0)

    def _fsync(self, number: int, body: bytes) -> bytes:
        self._do(Sync(number, not struct.unpack_from("<QI", body)[1] & 1))
        return b""

    def _opendir(self, number: int, _body: bytes) -> bytes:
        self._next += 1  # as a handle
        self._listings[self._next] = [(inode, name) for name, inode in self.tree[number].names.items()]
        return struct.pack("<QII", self._next, 0, 0)

    def _readdir(self, number: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for place, (inode, name) in enumerate(self._listings[handle][offset:], offset + 1):
            text = name.encode()
            kind = stat.S_IFMT(self.tree[inode].mode) >> 12
            entry = struct.pack("<QQII", inode, place, len(text), kind) + text
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer


def _text(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()


def _requests(device: int, server: Server) -> Iterator[bytes]:
    """Until it is unmounted; or, if whoever started this is gone, until now. Faults come by standard input."""
    while True:
        ready, _, _ = select.select([device, sys.stdin], [], [])
        if sys.stdin in ready:
            if not (line := sys.stdin.readline()):
                return
            server.faults = [Fault(**fault) for fault in json.loads(line)]
            print("noted", flush=True)
            continue
        try:
            yield os.read(device, _LARGEST + 4096)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                return
            if exc.errno not in (errno.ENOENT, errno.EINTR):  # given up before it was read
                raise


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):  # The end of standard input says when.
        signal.signal(number, signal.SIG_IGN)
    place, file = sys.argv[1:]
    disk = pickle.loads(Path(file).read_bytes())  # our own
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
    if _LIBC.mount(b"calotype-test", os.fsencode(place), b"fuse.calotype", _NOSUID_NODEV, options) < 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        return 1
    print("mounted", flush=True)
    try:
        with Path(file).open("wb") as record:
            server = Server(disk, record)
            for request in _requests(device, server):
                if (answer := server.answer(request)) is not None:
                    try:
                        os.write(device, answer)
                    except OSError as exc:
                        if exc.errno != errno.ENOENT:  # whoever asked was killed
                            raise
    finally:
        os.close(device)
        _LIBC.umount2(os.fsencode(place), _DETACH)
    return 0
