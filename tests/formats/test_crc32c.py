"""The checksum of VHDX, beside a plain one that goes from byte to byte."""

import random

import pytest

from calotype.images.formats.crc32c import crc32c
from tests.images import samples


def test_the_check_value_of_the_catalogue() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("zeros", [0, 1, 2, 7, 255, 4016, 65456])
def test_zeros_at_the_end_count(zeros: int) -> None:
    data = random.Random(zeros).randbytes(80) + b"\1" + bytes(zeros)
    assert crc32c(data) == samples.crc32c(data)


def test_nothing_and_zeros_alone() -> None:
    assert [crc32c(bytes(n)) for n in (0, 1, 4096)] == [samples.crc32c(bytes(n)) for n in (0, 1, 4096)]
