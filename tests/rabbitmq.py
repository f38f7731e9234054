"""A RabbitMQ server of the test's own, from Debian's package, on loopback; stopped by its own pid.

It keeps what is durable over `kill` and `start`. Only its client port listens, and that of Erlang's own distribution,
without which a node has no name; epmd, which would tell others of it, is not started.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import free_port

_BIN = Path("/usr/lib/rabbitmq/bin")


class Broker:
    """Empty and not yet started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="calotype-rabbitmq-"))
        (self.directory / "plugins").write_text("[].")
        (self.directory / "env.conf").touch()
        (self.directory / "rabbitmq.conf").write_text(
            "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 50MB\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @property
    def url(self) -> str:
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> "Broker":
        """Return when it accepts clients."""
        epmd, distribution = free_port(), free_port()
        place = str(self.directory)
        environment = {
            **os.environ,
            "HOME": place,
            "ERL_CRASH_DUMP": f"{place}/crash",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_CONFIG_FILE": f"{place}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": f"{place}/env.conf",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{place}/plugins",
            "RABBITMQ_LOG_BASE": f"{place}/log",
            "RABBITMQ_MNESIA_BASE": f"{place}/mnesia",
            "RABBITMQ_NODENAME": "calotype@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": f"{place}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        }
        with (self.directory / "out").open("ab") as out:
            # Started here, so that Erlang starts none in the background, which nobody would end.
            names = ["epmd", "-port", str(epmd), "-address", "127.0.0.1", "-relaxed_command_check"]
            self._names = subprocess.Popen(names, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            self._process = subprocess.Popen(
                [str(_BIN / "rabbitmq-server")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                cwd=place,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                said = (self.directory / "out").read_text(errors="replace")
                self.kill()
                raise RuntimeError(said)
            time.sleep(0.1)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            probe.settimeout(5)
            return bool(probe.recv(1))
        return False

    def kill(self) -> None:
        """kill -9, as when the host lost power for a moment."""
        if self._process is not None:
            for process, end in ((self._process, os.killpg), (self._names, os.kill)):
                with contextlib.suppress(ProcessLookupError):
                    end(process.pid, signal.SIGKILL)
                process.wait(timeout=20)
            self._process = None

    def remove(self) -> None:
        """Stop, and leave nothing."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def received(self, queue: str) -> list[dict[str, Any]]:
        """Take everything that is in a queue: the notifications, without their envelopes."""
        import amqp

        found = []
        with amqp.Connection(f"127.0.0.1:{self.port}") as connection:
            channel = connection.channel()
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(json.loads(json.loads(message.body)["oslo.message"]))
        return found
