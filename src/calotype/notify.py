"""Reports to the service manager, by the datagrams of sd_notify(3). This needs no library of systemd's."""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping


class Manager:
    """The service manager that started this process. Without one, the methods do nothing.

    Its variables are removed from the environment, so that no child process reports in our place.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        pid, interval = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        watches = interval.isdigit() and pid in ("", str(os.getpid()))
        self._interval = int(interval) / 2e6 if watches else 0.0  # seconds: twice as often as it asks for
        self._next = 0.0 if watches else float("inf")

    def ready(self) -> None:
        """Report that the service is ready, also after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def beat(self) -> None:
        """Send a heartbeat if it is time for one. Call this often."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
