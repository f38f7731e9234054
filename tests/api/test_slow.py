"""A thousand slow clients cost little, and nobody else."""

import re
import time
from pathlib import Path

import pytest

from tests.api import slow
from tests.support import running

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SOCKETS = 1000
#: Seconds that one of a hundred requests may take whatever it takes without the crowd.
BUSY = 0.05


def test_a_thousand_slow_clients_hurt_nobody(state: Path) -> None:
    unit = (Path(__file__).parents[2] / "etc/systemd/calotype.service").read_text()
    environment = dict(line.split("=", 1) for line in re.findall("^Environment=(.*)", unit, re.MULTILINE))
    with running(state, environment=environment, plain=True) as service:
        images = slow.wanted(service, SOCKETS)
        slow.figures(service)  # caches are filled
        idle = slow.figures(service)
        with slow.crowd(service, images):
            time.sleep(4)
            crowded = slow.figures(service)
            for _ in range(3):
                if crowded.p99 <= max(3 * idle.p99, BUSY):
                    break
                # The machine may have had something else to do, at either time.
                crowded = slow.figures(service)
            assert crowded.p99 <= max(3 * idle.p99, BUSY)
            assert crowded.memory - idle.memory <= 64
        end = time.monotonic() + 30
        while (
            after := slow.figures(service, 30)
        ).threads > idle.threads + 8 or after.descriptors > idle.descriptors + 8:
            assert time.monotonic() < end, after
            time.sleep(1)
        assert "Traceback" not in service.log
        # Each image whose upload broke off waits for data again.
        alice = service.client()
        assert {alice.show(image)["status"] for image in images[1:12:6]} == {"queued"}
        assert alice.put(images[1], b"whole").status_code == 204
