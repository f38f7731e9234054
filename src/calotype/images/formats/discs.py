"""Optical discs: ISO 9660, UDF, and both at once."""

from oslo_utils.imageutils import format_inspector as oslo

from calotype.images.formats.base import KIB


class ISO(oslo.ISOInspector):
    """oslo's knows discs whose first descriptor is one of ISO 9660.

    Those of UDF alone begin with that of an extended area, and name UDF in one of the next; sectors have 2 or 4 KiB.
    """

    EXTENDED, UDF = b"BEA01", (b"NSR02", b"NSR03")

    def _initialize(self) -> None:
        super()._initialize()
        self.new_region("extended", oslo.CaptureRegion(32 * KIB, 32 * KIB, min_length=2 * KIB))

    @property
    def format_match(self) -> bool:
        return super().format_match or self._udf()

    def _udf(self) -> bool:
        data = self.region("extended").data
        marks = [data[at + 1 : at + 6] for at in range(0, len(data), 2 * KIB)]
        return marks[:1] == [self.EXTENDED] and any(mark in self.UDF for mark in marks)
