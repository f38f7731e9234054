"""A real Ceph of the test run's own, and the kit of the rbd driver.

One monitor, one manager and three OSDs on small sparse files listen on loopback, and are stopped by their own pids.
There is one cluster for a run, begun by whoever first asks for it; a kit has pools of its own in it.
"""

import atexit
import base64
import contextlib
import ctypes
import functools
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calotype import errors
from calotype.stores.base import Store
from calotype.stores.librbd import Cluster, Pool
from calotype.stores.rbd import RbdStore
from calotype.stores.rbd_names import id_of
from tests.stores.suite import Configured, Kit, Thing
from tests.support import free_port, tool, until

#: What the tests need, by the names in `tests/needs`.
PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "monmaptool", "rbd")
OSDS = 3
USER = "glance"
CAPS = {"mon": "profile rbd", "osd": "profile rbd"}

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
ms async op threads = 1
keyring = {root}/$name.keyring
log file = {root}/$name.log
err to stderr = false
admin socket =
run dir = {root}
crash dir = {root}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 2000
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 0
rbd default features = 61
paxos propose interval = 0.02
paxos min wait = 0.01
[mon]
keyring = {root}/$name/keyring
mon tick interval = 1
mon data = {root}/$name
[mgr]
mgr data = {root}/$name
mgr initial modules =
mgr disabled modules = {modules}
mgr tick period = 1
mgr stats period = 1
[osd]
osd data = {root}/$name
osd objectstore = bluestore
bluestore block size = 8589934592
bluestore cache autotune = false
bluestore cache size = 67108864
bluestore fsck on mount = false
osd memory target = 939524096
osd op num shards = 1
osd op num threads per shard = 1
osd class update on start = false
osd max object name len = 2048
osd heartbeat grace = 120
osd mon report interval = 1
"""


class Ceph:
    """A running cluster. `ask` puts a question, or gives an order, to its monitor."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="calotype-ceph-"))
        self.conf = self.root / "ceph.conf"
        self.fsid = str(uuid.uuid4())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pools: set[str] = set()
        atexit.register(self.remove)
        port = free_port()
        modules = " ".join(os.listdir("/usr/share/ceph/mgr"))  # it takes many seconds to load them
        self.conf.write_text(_CONF.format(root=self.root, fsid=self.fsid, mon_port=port, modules=modules))
        self.admin = Cluster("admin", str(self.conf), {"rados_mon_op_timeout": "60", "client_mount_timeout": "60"})
        self._make_monitor(port)
        self.admin.connect()
        self._make_manager()
        self._make_osds()
        self.allow(USER, CAPS)

    # --- life --------------------------------------------------------------------------------------------

    def _make_monitor(self, port: int) -> None:
        admin = self._keyring("client.admin", {"mon": "allow *", "osd": "allow *", "mgr": "allow *"})
        ring, map_ = self.root / "ring", self.root / "monmap"
        ring.write_text(self._keyring("mon.", {"mon": "allow *"}) + admin)
        address = f"[v2:127.0.0.1:{port}]"
        for command in (
            ("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", address, map_),
            ("ceph-mon", "-c", self.conf, "-i", "a", "--mkfs", "--monmap", map_, "--keyring", ring),
        ):
            subprocess.run([tool(command[0]), *map(str, command[1:])], check=True, capture_output=True, timeout=60)
        self._start("ceph-mon", "a")

    def _make_manager(self) -> None:
        (self.root / "mgr.x").mkdir()
        self.allow("x", {"mon": "allow profile mgr", "osd": "allow *"}, kind="mgr")
        self._start("ceph-mgr", "x")

    def _make_osds(self) -> None:
        made = []
        for number in range(OSDS):
            (self.root / f"osd.{number}").mkdir()
            own = str(uuid.uuid4())
            self.admin.ask(prefix="osd new", uuid=own, id=number)
            self.allow(
                str(number), {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"}, kind="osd"
            )
            command = ["ceph-osd", "-c", self.conf, "-i", str(number), "--mkfs", "--osd-uuid", own]
            made.append(subprocess.Popen([tool(str(command[0])), *map(str, command[1:])], stderr=subprocess.DEVNULL))
        assert [one.wait(60) for one in made] == [0] * OSDS
        for number in range(OSDS):
            self._start("ceph-osd", str(number))
        until(lambda: self.admin.ask(prefix="osd stat")["num_up_osds"] == OSDS)

    def _start(self, program: str, name: str) -> None:
        with (self.root / "output").open("ab") as output:
            self._processes[f"{program.removeprefix('ceph-')}.{name}"] = subprocess.Popen(
                [tool(program), "-c", str(self.conf), "-i", name, "-f"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=_end_with_parent,
            )  # fmt: skip

    def pause(self, *kinds: str) -> None:
        """Have the servers of these kinds (mon, mgr, osd) answer nothing, until `resume`."""
        for name, process in self._processes.items():
            if name.partition(".")[0] in kinds:
                process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)

    def stop_osd(self, number: int) -> None:
        """End one OSD, and tell the cluster, which would take a while to notice."""
        process = self._processes.pop(f"osd.{number}")
        process.terminate()
        process.wait(30)
        self.admin.ask(prefix="osd down", ids=[str(number)])

    def start_osd(self, number: int) -> None:
        self._start("ceph-osd", str(number))
        until(lambda: self.admin.ask(prefix="osd stat")["num_up_osds"] == OSDS)

    def remove(self) -> None:
        """End it, and remove what it kept."""
        if self._processes:
            self.admin.shutdown()
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait(30)
        self._processes.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    # --- users and pools ---------------------------------------------------------------------------------

    def allow(self, user: str, caps: Mapping[str, str], kind: str = "client") -> None:
        """Give a user these rights, and write its keyring."""
        given = [part for pair in caps.items() for part in pair]
        name = f"{kind}.{user}"
        if (self.root / f"{name}.keyring").exists():
            self.admin.ask(prefix="auth caps", entity=name, caps=given)
            return
        found = self.admin.ask(prefix="auth get-or-create", entity=name, caps=given)[0]
        self._keyring(name, caps, found["key"])

    def _keyring(self, name: str, caps: Mapping[str, str], key: str = "") -> str:
        lines = [f"[{name}]", f"key = {key or _key()}", *(f'caps {server} = "{what}"' for server, what in caps.items())]
        text = "\n".join(lines) + "\n"
        (self.root / f"{name}.keyring").write_text(text)
        return text

    def pool(self, name: str, *, erasure: bool = False, overwrites: bool = True, copies: int = 1) -> None:
        """Make a pool for images; an erasure-coded one has the profile 2+1."""
        if erasure:
            profile = ["k=2", "m=1", "crush-failure-domain=osd"]
            self.admin.ask(prefix="osd erasure-code-profile set", name="tests", profile=profile)
            self.admin.ask(prefix="osd pool create", pool=name, pool_type="erasure", erasure_code_profile="tests")
            self.admin.ask(prefix="osd pool set", pool=name, var="min_size", val="2")
            if overwrites:
                self.admin.ask(prefix="osd pool set", pool=name, var="allow_ec_overwrites", val="true")
        else:
            self.admin.ask(prefix="osd pool create", pool=name)
            self.admin.ask(prefix="osd pool set", pool=name, var="size", val=str(copies), yes_i_really_mean_it=True)
        self.admin.ask(prefix="osd pool application enable", pool=name, app="rbd")

    def ensure_pool(self, name: str) -> bool:
        """Make a pool unless it exists; whether it did."""
        if name in self._pools:
            return False
        self._pools.add(name)
        self.pool(name)
        until(lambda: any(one["name"] == name for one in self.admin.ask(prefix="df")["pools"]))
        return True

    def quota(self, pool: str, most: int) -> None:
        """Limit the bytes in a pool, and return when the cluster knows whether it is full; 0 ends the limit."""
        self.admin.ask(prefix="osd pool set-quota", pool=pool, field="max_bytes", val=str(most))

        def flags() -> str:
            found = self.admin.ask(prefix="osd dump")["pools"]
            return str(next(one["flags_names"] for one in found if one["pool_name"] == pool))

        until(lambda: ("full_quota" in flags()) == bool(most))

    def drop_pool(self, name: str) -> None:
        self.admin.ask(prefix="osd pool rm", pool=name, pool2=name, yes_i_really_really_mean_it=True)

    def stats(self, pool: str) -> Mapping[str, Any]:
        found = self.admin.ask(prefix="df", detail="detail")["pools"]
        return next(one["stats"] for one in found if one["name"] == pool)

    def rbd(self, *arguments: str | Path, given: bytes | None = None, check: bool = True) -> str:
        """What the command `rbd` prints, as an administrator."""
        command = [tool("rbd"), "-c", str(self.conf), *map(str, arguments)]
        done = subprocess.run(command, input=given, capture_output=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


@functools.cache
def ceph() -> Ceph:
    """The cluster of this run."""
    return Ceph()


def _end_with_parent() -> None:
    """Have the kernel end a server when this run ends, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _key() -> str:
    """A new key, in the form that Ceph gives keys: kind, time, length, and so many random bytes."""
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)).decode()


def objects(pool: Pool) -> list[str]:
    """The names of all objects in a pool."""
    rados, cursor, found = ctypes.CDLL("librados.so.2"), ctypes.c_void_p(), []
    assert rados.rados_nobjects_list_open(pool._handle, ctypes.byref(cursor)) == 0
    name = ctypes.c_char_p()
    while rados.rados_nobjects_list_next(cursor, ctypes.byref(name), None, None) == 0:
        found.append((name.value or b"").decode())
    rados.rados_nobjects_list_close(cursor)
    return found


def address(store: RbdStore) -> str:
    """What the cluster knows the store's connection by, in the form of a list to refuse."""
    rados, text = ctypes.CDLL("librados.so.2"), ctypes.c_char_p()
    link = store._take()
    assert rados.rados_getaddrs(link.cluster._handle, ctypes.byref(text)) == 0
    store._give_back(link)
    return (text.value or b"").decode()


def rbd_store(name: str = "one", **given: Any) -> RbdStore:
    """One whose pool is known as its own."""
    defaults = {option.dest: option.default for option in RbdStore.options}
    own = {"rbd_store_user": USER, "rbd_store_ceph_conf": str(ceph().conf), "rbd_store_chunk_size": 4}
    store = RbdStore(name, defaults | own | {"connect_timeout": 1.0, "read_timeout": 1.0} | given)
    store.identity = f"identity-of-{name}"
    if store.found_identity() is None:
        store.establish(store.identity)
    return store


#: What a pool has whatever is in it.
_FURNITURE = ("rbd_directory", "rbd_info", "rbd_trash", "rbd_children", "rbd_header", "calotype_store")


class Cephs(Kit):
    """Pools of the run's cluster."""

    patience = 6.0
    recovery = 20.0  # to remove one image takes several commits of the monitor, and of the disks
    reads_outlive_deletes = False

    def __init__(self, _: Path | None = None, **options: Any) -> None:
        self._options = options
        self._ceph = ceph()
        for name in ("one", "two", "one-more"):
            if self._ceph.ensure_pool(name):
                continue
            with self._pool(name) as pool:
                for one in objects(pool):
                    pool.remove(one)

    def store(self, name: str = "one") -> RbdStore:
        return rbd_store(name, rbd_store_pool=name, **self._options)

    @contextlib.contextmanager
    def _pool(self, name: str = "one") -> Iterator[Pool]:
        with contextlib.closing(self._ceph.admin.pool(name)) as pool:
            yield pool

    def things(self) -> list[Thing]:
        with self._pool() as pool:
            there = set(objects(pool))
            headers = {name.removeprefix("rbd_header.") for name in there if name.startswith("rbd_header.")}
            found, known = [], set()
            for name in there - set(_FURNITURE):
                kind, _, rest = name.partition(".")
                internal = id_of(pool, rest) if kind == "rbd_id" else rest.partition(".")[0]
                if kind == "rbd_id" and internal in headers:
                    known.add(internal)
                    final = re.fullmatch(r"[0-9a-f-]{36}", rest)
                    url = f"rbd://{self._ceph.fsid}/one/{rest}/snap" if final else None
                    found.append(Thing(rest, url, _size(pool, internal) if final else 0))
                elif internal not in headers:
                    found.append(Thing(name))
            trashed = {one.id: one.name for one in pool.trashed()}
            found += [Thing(f"{trashed.get(one, one)} without a name") for one in headers - known]
            named = {one.name for one in found}
            return found + [Thing(name) for name, _ in pool.images() if name not in named]

    def configured(self) -> Configured:
        return Configured(
            "rbd", {"rbd_store_pool": "one", "rbd_store_user": USER, "rbd_store_ceph_conf": str(self._ceph.conf)}
        )

    @contextlib.contextmanager
    def full(self, store: Store) -> Iterator[None]:
        self._ceph.quota("one", 1)
        try:
            yield
        finally:
            self._ceph.quota("one", 0)

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        assert isinstance(store, RbdStore)
        self._ceph.allow(USER, {"mon": "allow r"})
        try:
            self._ceph.admin.blocklist(address(store), 60)
            until(lambda: _fails(store))  # each disk learns of it by itself
            yield
        finally:
            self._ceph.allow(USER, CAPS)

    @contextlib.contextmanager
    def hanging(self, store: Store) -> Iterator[None]:
        self._ceph.pause("mon", "osd")
        try:
            yield
        finally:
            self._ceph.resume()

    def truncate(self, store: Store, url: str) -> None:
        with self._pool() as pool:
            image = pool.open_id(id_of(pool, url.split("/")[-2]) or "")
            with contextlib.closing(image):
                image.unprotect("snap")
                image.remove_snapshot(image.snapshots()[0])
                image.resize(image.size() - 1)
                image.take_snapshot("snap")


def _fails(store: RbdStore) -> bool:
    """Whether the store has a new connection, which may not even read."""
    link = store._current
    try:
        store.found_identity()
    except (errors.StoreError, OSError):  # the latter if a fault is planted
        return store._current is not link
    return False


def _size(pool: Pool, internal: str | None) -> int:
    try:
        with contextlib.closing(pool.open_reading(internal or "", "snap")) as image:
            return image.size()
    except FileNotFoundError:  # a service may be at work
        return 0
