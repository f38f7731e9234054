"""Tells the service manager how the service is: the datagrams of sd_notify(3), which need no library of systemd's."""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping


class Manager:
    """Whoever started this process and said where to report; every call does nothing where nobody did.

    What it said is taken out of the environment: the socket is nobody else's, and no child reports in our place.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        pid, interval = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        watches = interval.isdigit() and pid in ("", str(os.getpid()))
        self._pause = int(interval) / 2e6 if watches else 0.0  # seconds; twice as often as it asks for
        self._next = 0.0 if watches else float("inf")

    def ready(self) -> None:
        """It serves, or serves with what was read again."""
        self._tell("READY=1")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def beat(self) -> None:
        """It is alive. To be called often; says so as often as is wanted."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._pause
            self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
