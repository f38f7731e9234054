"""CRC-32C, Castagnoli's, which VHDX has over its headers and tables; Python brings only the other CRC-32."""

_POLYNOMIAL = 0x82F63B78


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_row(value) for value in range(256)]


def _times(left: int, right: int) -> int:
    """The product of two polynomials modulo the CRC's; the top bit is x^0."""
    product = 0
    while left:
        if left & 0x80000000:
            product ^= right
        left = (left << 1) & 0xFFFFFFFF
        right = (right >> 1) ^ (_POLYNOMIAL if right & 1 else 0)
    return product


def crc32c(data: bytes) -> int:
    """Of all of `data`. The zeros that it ends with cost nothing: tables are 64 KiB, and few bytes of them are used."""
    used = data.rstrip(b"\0")
    crc = 0xFFFFFFFF
    for byte in used:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    zeros, power = len(data) - len(used), 0x00800000  # x^8: one byte
    while zeros:
        if zeros & 1:
            crc = _times(power, crc)
        power = _times(power, power)
        zeros >>= 1
    return crc ^ 0xFFFFFFFF
