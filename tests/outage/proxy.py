"""A proxy in front of a database server that loses the answer to a COMMIT when it is told to.

It understands nothing but the two messages that it has to find: a COMMIT, as PyMySQL and psycopg send it, and that a
transaction wrote something. A chosen one of the transactions that write is cut off from its client:

- `before` the COMMIT reached the server, which undoes the transaction,
- `after` the server carried it out,
- `late`: the client is cut off, and only after a while does the server get to see the COMMIT.
"""

import contextlib
import re
import socket
import threading
import time

HOW = ("before", "after", "late")
#: How much later a late COMMIT comes.
LATE = 0.15

_COMMIT = re.compile(rb"\x07\x00\x00\x00\x03COMMIT$|Q\x00\x00\x00\x0bCOMMIT\x00$")
_WRITE = re.compile(rb"(INSERT INTO|UPDATE|DELETE FROM) [a-z_]+ ")


class Proxy:
    """Listens on `port` from the beginning; `close` ends it."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._armed = ""
        self._skip = 0
        self._lock = threading.Lock()
        self.cuts = 0
        self.messages = 0  #: from clients to the server
        self.cut: list[bytes] = []  #: what the transaction wrote to that was cut off
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, how: str, skip: int = 0) -> None:
        """Cut the next transaction that writes, or one after some others, off from its client."""
        with self._lock:
            self._armed, self._skip, self.cuts = how, skip, 0

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                deaf = threading.Event()
                threading.Thread(target=self._back, args=(client, server, deaf), daemon=True).start()
                threading.Thread(target=self._forth, args=(client, server, deaf), daemon=True).start()

    def _back(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (piece := server.recv(1 << 16)) and not deaf.is_set():
                client.sendall(piece)
        _close(client)

    def _forth(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        wrote: list[bytes] = []
        with contextlib.suppress(OSError):
            while piece := client.recv(1 << 16):
                self.messages += 1
                wrote += [found.group() for found in _WRITE.finditer(piece)]
                if _COMMIT.search(piece):
                    how = self._decide(wrote)
                    wrote = []
                    if how:
                        deaf.set()
                        self._cut(how, piece, client, server)
                        break
                server.sendall(piece)
        _close(server)

    def _decide(self, wrote: list[bytes]) -> str:
        with self._lock:
            if not wrote:
                return ""
            self._skip -= 1
            if not self._armed or self._skip >= 0:
                return ""
            how, self._armed = self._armed, ""
            self.cuts += 1
            self.cut = wrote
            return how

    def _cut(self, how: str, commit: bytes, client: socket.socket, server: socket.socket) -> None:
        if how != "after":
            _close(client)
        if how == "late":
            time.sleep(LATE)
        if how != "before":
            server.sendall(commit)
            time.sleep(0.05)  # whoever takes its answer closes the client


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
