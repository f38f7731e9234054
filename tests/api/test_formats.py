"""Good and hostile image files (`tests/images/samples.py`) over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.samples import GOOD, HOSTILE, Sample
from tests.support import Service, running

CONF = """\
[DEFAULT]
enabled_backends = fast:file
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("formats")
    with running(state, CONF.format(state=state)) as started:
        yield started


def some(samples: list[Sample], every: int) -> list[Sample]:
    """Spread over all of them."""
    return [sample for sample in samples if sample.declared != "luks"][::every]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("sample", some(HOSTILE, 16), ids=str)
def test_a_hostile_file_is_415_and_leaves_nothing(own: Service, sample: Sample, chunked: bool) -> None:
    alice, content = own.client(), sample.make()
    image_id = alice.queued(disk_format=sample.declared, container_format="bare")
    # An empty chunked body has no pieces to send.
    body = iter([content[:1000], content[1000:]]) if chunked and len(content) > 1000 else content
    answer = alice.put(image_id, body)
    assert answer.status_code == 415
    assert "convert" in answer.text or "upload" in answer.text or "repair" in answer.text
    shown = alice.show(image_id)
    assert (shown["status"], shown["size"], shown["virtual_size"]) == ("queued", None, None)
    assert not list((Path(own.state) / "fast").rglob(f"*{image_id}*"))
    assert alice.put(image_id, good_for(sample.declared)).status_code == 204  # the image waits for better data


def good_for(declared: str) -> bytes:
    return next(one.make() for one in GOOD if one.declared == declared and one.container_format == "bare")


@pytest.mark.parametrize("sample", some(GOOD, 4), ids=str)
def test_a_good_file_is_204_with_its_virtual_size(own: Service, sample: Sample) -> None:
    alice, content = own.client(), sample.make()
    image_id = alice.queued(disk_format=sample.declared, container_format=sample.container_format)
    assert alice.put(image_id, content).status_code == 204
    shown = alice.show(image_id)
    assert (shown["status"], shown["virtual_size"]) == ("active", sample.virtual_size)
    assert alice.file(image_id).content == content
