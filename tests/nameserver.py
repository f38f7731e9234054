"""A name server for tests, and a resolver that asks it."""

import contextlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_TYPES = {4: 1, 6: 28}  # A and AAAA, by the version of the address


@dataclass
class NameServer:
    """Answers with `names`: for each one a list of answers, which are lists of addresses. The last one remains."""

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  #: the names of all questions for A records
    address: tuple[str, int] = ("", 0)

    def resolve(self, host: str, _port: int) -> list[str]:
        """A `Resolver` for `net.py`: asks for A and for AAAA records. Raises `OSError` if there are none."""
        found = [one for kind in _TYPES.values() for one in self._ask(host, kind)]
        if not found:
            raise OSError(f"no such name: {host}")
        return found

    def _ask(self, host: str, kind: int) -> Iterator[str]:
        labels = b"".join(bytes([len(one)]) + one.encode() for one in host.split(".")) + b"\0"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(20)
            asking.connect(self.address)
            asking.send(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!2H", kind, 1))
            answer = asking.recv(4096)
        (count,) = struct.unpack_from("!H", answer, 6)
        place = 12 + len(labels) + 4
        for _ in range(count):
            _, of, _, _, size = struct.unpack_from("!3HIH", answer, place)
            place += 12
            if of == kind:
                yield str(ipaddress.ip_address(answer[place : place + size]))
            place += size

    def _answer(self, question: bytes) -> bytes:
        labels, place = [], 12
        while question[place]:
            labels.append(question[place + 1 : place + 1 + question[place]].decode())
            place += 1 + question[place]
        (kind,) = struct.unpack_from("!H", question, place + 1)
        name = ".".join(labels)
        answers = self.names.get(name, [[]])
        if kind == 1:
            self.asked.append(name)
        found = [ipaddress.ip_address(one) for one in answers[0]]
        if kind == max(_TYPES.values()) and len(answers) > 1:  # the last question of a resolution
            answers.pop(0)
        records = [
            struct.pack("!3HIH", 0xC00C, kind, 1, 0, len(one.packed)) + one.packed
            for one in found
            if _TYPES[one.version] == kind
        ]
        head = question[:2] + struct.pack("!5H", 0x8180, 1, len(records), 0, 0)
        return head + question[12 : place + 5] + b"".join(records)


@contextlib.contextmanager
def name_server() -> Iterator[NameServer]:
    """A `NameServer` on this host for the length of a block."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.05)
        server = NameServer(address=listening.getsockname())
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    question, client = listening.recvfrom(4096)
                    listening.sendto(server._answer(question), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            done.set()
            thread.join()
