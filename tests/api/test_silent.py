"""What a process holds for uploads is bounded, whatever their number, and nobody waits for those who are silent."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.api import silent
from tests.api.silent import DATA, HASH, Upload
from tests.support import running, until

pytestmark = pytest.mark.slow

UPLOADS = 80
#: More memory for so many, MiB: some 60 were seen, and 430 when each upload had buffers of its own.
MEMORY = 120
#: Threads beside one for each request: those that hash, the runner, the leases, healthy requests.
OTHERS = 12


@pytest.mark.alone
def test_uploads_that_fall_silent_hold_little_and_go_on_when_they_like(state: Path) -> None:
    with running(state, silent.CONF, plain=True) as service:
        alice = service.client()
        large = DATA * 4
        alone = min(_seconds(service.client().active, large) for _ in range(2))
        idle = silent.held(service)
        with silent.peak(service) as most, silent.silent(service, UPLOADS) as uploads:
            until(lambda: silent.held(service).threads <= UPLOADS + OTHERS)
            assert silent.held(service).memory - idle.memory <= MEMORY
            among = min(_seconds(service.client().active, large) for _ in range(2))
            assert among <= 3 * alone + 0.5
            with ThreadPoolExecutor(8) as pool:
                assert all(b" 204 " in answer for answer in pool.map(Upload.end, uploads))
        assert most[0].threads <= UPLOADS + OTHERS + 8
        assert most[0].memory - idle.memory <= MEMORY + 64  # the budget
        for one in uploads:
            shown = alice.show(one.image_id)
            assert (shown["status"], shown["size"], shown["os_hash_value"]) == ("active", len(DATA), HASH)
        assert "Traceback" not in service.log


def _seconds(work: object, *arguments: object) -> float:
    begun = time.monotonic()
    work(*arguments)  # type: ignore[operator]
    return time.monotonic() - begun


def test_uploads_beyond_the_places_wait_with_nothing_read_and_others_do_not_notice(state: Path) -> None:
    with running(state, silent.CONF + "transfers = 4\n", plain=True) as service:
        alice = service.client()
        with silent.silent(service, 4) as uploads:
            waiting = Upload(service, alice.queued(), chunked=False)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(waiting.begin)  # more than fits between it and us
                for _ in range(10):
                    assert alice.show(waiting.image_id)["status"] == "queued"
                    assert alice.get("/v2/images").status_code == 200
                assert not sending.done()
                assert b" 204 " in uploads[0].end()
                sending.result(30)
            assert alice.show(waiting.image_id)["status"] == "saving"
            assert b" 204 " in waiting.end()
            assert alice.show(waiting.image_id)["os_hash_value"] == HASH
            for one in uploads[1:]:
                assert b" 204 " in one.end()
