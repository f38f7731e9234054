"""As much of `systemctl` as the guides use, where there is no systemd: it starts and stops what the unit says.

Run as a program: `enable --now`, `start`, `restart`, `stop`, `disable --now`, `is-active`, `daemon-reload`.
"""

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNIT = Path("/etc/systemd/system/calotype.service")
PID = Path("/var/calotype.pid")
_SECONDS = 30


def start() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read([UNIT, *sorted(UNIT.with_suffix(".service.d").glob("*.conf"))])
    service = unit["Service"]
    state = Path("/var/lib") / service["StateDirectory"]
    state.mkdir(exist_ok=True)
    state.chmod(int(service["StateDirectoryMode"], 8))
    shutil.chown(state, service["User"], service["Group"])
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(f"{directory}/notify")
        os.chmod(directory, 0o711)
        os.chmod(f"{directory}/notify", 0o666)
        ready.settimeout(_SECONDS)
        with open("/var/log/journal.log", "ab") as log:
            process = subprocess.Popen(
                service["ExecStart"].split(),
                user=service["User"],
                group=service["Group"],
                extra_groups=[],
                env={"PATH": os.defpath, "NOTIFY_SOCKET": f"{directory}/notify", "LANG": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        PID.write_text(str(process.pid))
        try:
            while b"READY=1" not in ready.recv(4096):
                pass
        except TimeoutError:
            sys.exit(Path("/var/log/journal.log").read_text())


def stop() -> None:
    if not PID.exists():
        return
    pid = int(PID.read_text())
    PID.unlink()
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    sys.exit("the service does not end")


def main(verb: str, *arguments: str) -> None:
    match verb:
        case "daemon-reload":
            pass
        case "enable" | "disable":
            assert UNIT.exists()
            if "--now" in arguments:
                start() if verb == "enable" else stop()
        case "start":
            start()
        case "stop":
            stop()
        case "restart":
            stop()
            start()
        case "is-active":
            print("active" if PID.exists() and Path(f"/proc/{PID.read_text()}").exists() else "inactive")
        case _:
            sys.exit(f"what is systemctl {verb}?")


if __name__ == "__main__":
    main(*sys.argv[1:])
