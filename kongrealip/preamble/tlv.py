"""The type-length-value area of a version 2 preamble."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

CRC32C, NOOP = 0x03, 0x04


def entries(area: bytes, position: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Type, place of the value, and value of each.

    As in nginx's ``proxy_protocol_tlv_*`` variables the walk ends without complaint at an
    entry that does not fit, and what stands before the damage is found (reference, section 8).
    """
    while position + 3 <= len(area):
        start = position + 3
        end = start + int.from_bytes(area[position + 1 : start], "big")
        if end > len(area):
            return
        yield area[position], start, area[start:end]
        position = end


def first_tlvs(area: bytes) -> dict[int, bytes]:
    """The first value of each type, in the order of arrival."""
    found: dict[int, bytes] = {}
    for kind, _, value in entries(area):
        found.setdefault(kind, value)
    return found


def crc32c(data: bytes) -> int:
    """RFC 4960, appendix B."""
    table = _crc32c_table()
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = remainder >> 8 ^ table[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    """Made when it is needed first: most programs never need it."""
    table = list(range(256))
    for _ in range(8):
        table = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in table]
    return tuple(table)
