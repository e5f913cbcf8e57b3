"""The preambles that are sent on, as the specification has them (sections 2.1 and 2.2).

The proxy-protocol package packs them too, and is not used for it: it takes 23 µs for version 2 and
9 µs for version 1, each time a connection is passed on, and writes ``PROXY UNKNOWN`` with four
empty fields behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from functools import lru_cache

from kongrealip.address import IPV4_FIRST, Address, parse_hop
from kongrealip.preamble.tlv import CRC32C, NOOP, crc32c, entries
from kongrealip.preamble.v2 import SIGNATURE

UNKNOWN_V1 = b"PROXY UNKNOWN\r\n"
LOCAL_V2 = SIGNATURE + b"\x20\x00\x00\x00"

_IPV4 = struct.Struct("!12sBBHIIHH")
_IPV6 = struct.Struct("!12sBBH16s16sHH")
_PROXY, _TCP4, _TCP6 = 0x21, 0x11, 0x21
_HEAD = 16
_LONGEST = 0xFFFF
_CHECKSUM = b"\x03\x00\x04"


def v1(source: Address, destination: Address) -> bytes:
    """A line of text; ``UNKNOWN_V1`` where the two are not addresses of one family."""
    left, right = _read(source.ip), _read(destination.ip)
    if left is None or right is None or (":" in left[0]) != (":" in right[0]):
        return UNKNOWN_V1
    # nginx's spelling of IPv6 (::0.0.1.0 for ::100) is one of RFC 4291's: inet_pton takes it.
    family = "TCP6" if ":" in left[0] else "TCP4"
    ports = f"{source.port or 0} {destination.port or 0}"
    return f"PROXY {family} {left[0]} {right[0]} {ports}\r\n".encode("ascii")


def v2(source: Address, destination: Address, tlvs: bytes = b"") -> bytes:
    """A header with ``tlvs`` behind its addresses; ``LOCAL_V2`` where one is no address.

    Where the families differ the IPv4 address is written as IPv6 (``::ffff:a.b.c.d``). A CRC32C
    TLV in ``tlvs`` gets the value that the header as a whole has.
    """
    left, right = _read(source.ip), _read(destination.ip)
    if left is None or right is None:
        return LOCAL_V2
    ports = source.port or 0, destination.port or 0
    if ":" in left[0] or ":" in right[0]:
        tlvs = _fitting(tlvs, _IPV6.size)
        ends = left[1].to_bytes(16, "big"), right[1].to_bytes(16, "big")
        length = _IPV6.size - _HEAD + len(tlvs)
        header = _IPV6.pack(SIGNATURE, _PROXY, _TCP6, length, *ends, *ports)
    else:
        tlvs = tlvs and _fitting(tlvs, _IPV4.size)
        numbers = left[1] - IPV4_FIRST, right[1] - IPV4_FIRST
        length = _IPV4.size - _HEAD + len(tlvs)
        header = _IPV4.pack(SIGNATURE, _PROXY, _TCP4, length, *numbers, *ports)
    return _with_checksum(header + tlvs, len(header)) if _CHECKSUM in tlvs else header + tlvs


# A destination is one of few addresses, and clients come back.
@lru_cache(1024)
def _read(ip: str) -> tuple[str, int] | None:
    """An address as any reader takes it, and its number; None where it is none."""
    hop = parse_hop(ip)
    if hop is not None and not hop[2]:
        return hop[0], hop[1]
    # Imported when it is needed: what comes here is rare.
    import ipaddress

    # What parse_hop does not take: the zone of fe80::1%eth0, which means nothing to another
    # machine, and 255.255.255.255, which nginx does not read and a preamble may well name.
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    return ip.partition("%")[0], int(address) | (IPV4_FIRST if address.version == 4 else 0)


def _fitting(tlvs: bytes, before: int) -> bytes:
    """Without those at the end that the 16-bit length has no room for.

    Addresses grow where a family changes, so what was received whole may not fit any more. The
    client's address must get through, and a peer's TLVs must not be a way to prevent it.
    """
    room = _LONGEST - (before - _HEAD)
    if len(tlvs) <= room:
        return tlvs
    ends = (start + len(value) for _, start, value in entries(tlvs))
    return tlvs[: max((end for end in ends if end <= room), default=0)]


def _with_checksum(header: bytes, tlvs: int) -> bytes:
    """The header with its first checksum recomputed (section 2.2.3); it may have none after all."""
    for kind, start, value in entries(header, tlvs):
        if kind == CRC32C and len(value) == 4:
            before, behind = header[:start], header[start + 4 :]
            checksum = crc32c(before + bytes(4) + behind)
            return before + checksum.to_bytes(4, "big") + behind
    return header


def kept_tlvs(area: bytes, replaced: Container[int] = ()) -> bytes:
    """What of a received TLV area is passed on: all but padding and the types in ``replaced``.

    Of the checksums the first one keeps its place, for :func:`v2` to write the value: a second
    one could not be right, nor could one that is not of 4 bytes.
    """
    kept = []
    checksums = 0
    for kind, start, value in entries(area):
        if kind == NOOP or kind in replaced:
            continue
        if kind == CRC32C:
            checksums += len(value) == 4
            if len(value) != 4 or checksums > 1:
                continue
        kept.append(area[start - 3 : start + len(value)])
    return b"".join(kept)


def tlv(kind: int, value: bytes) -> bytes:
    """One entry of the area."""
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value
