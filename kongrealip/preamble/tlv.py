"""The type-length-value area of a version 2 preamble."""

from __future__ import annotations


def first_tlvs(area: bytes) -> dict[int, bytes]:
    """The first value of each type, in the order of arrival.

    As in nginx's ``proxy_protocol_tlv_*`` variables the walk ends without complaint at an
    entry that does not fit, and what stands before the damage is found (reference, section 8).
    """
    found: dict[int, bytes] = {}
    position = 0
    while position + 3 <= len(area):
        value = position + 3
        end = value + int.from_bytes(area[position + 1 : value], "big")
        if end > len(area):
            break
        found.setdefault(area[position], area[value:end])
        position = end
    return found
