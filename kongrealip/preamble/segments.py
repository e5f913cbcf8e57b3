"""Frames -> the first data of each TCP connection, where that begins with a preamble.

Of each direction of a connection, for a preamble comes from the side that connects and the other
side's first data is no preamble. Fragments of IP and what is no TCP are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kongrealip.address import ipv4_text, ipv6_text
from kongrealip.preamble.capture import Frame
from kongrealip.preamble.v2 import SIGNATURE

_V1_BEGINNING = b"PROXY "
_NULL, _ETHERNET, _LOOP, _SLL, _SLL2 = 0, 1, 108, 113, 276
_RAW_TYPES = (12, 14, 101, 228, 229)
_IP = {b"\x08\x00", b"\x86\xdd"}
_VLAN = {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}
_TCP = 6
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_SYN = 0x02
# Connections whose first data has been seen; then those that came first are forgotten.
_MOST_CONNECTIONS = 100_000

# The packed addresses and ports of both ends, by which a direction is known.
_Direction = tuple[bytes, bytes]


class Segment(NamedTuple):
    """``source`` and ``destination`` are printed with their ports; ``data`` is what TCP carries."""

    number: int
    source: str
    destination: str
    data: bytes


def preamble_segments(frames: Iterable[Frame]) -> Iterator[Segment]:
    """Those first segments that begin with a preamble, in the order of the capture."""
    seen: dict[_Direction, None] = {}
    for number, link, frame in frames:
        found = _tcp(network_of(link, frame))
        if found is None:
            continue
        direction, flags, data = found
        if flags & _SYN:
            # The same ports once more.
            seen.pop(direction, None)
        if not data or direction in seen:
            continue
        if len(seen) >= _MOST_CONNECTIONS:
            del seen[next(iter(seen))]
        seen[direction] = None
        if data.startswith((SIGNATURE, _V1_BEGINNING)):
            yield Segment(number, _printed(direction[0]), _printed(direction[1]), data)


def data_of_packet(packet: bytes) -> bytes:
    """What TCP carries in one IP packet, or nothing where it is none."""
    found = _tcp(packet)
    return b"" if found is None else found[2]


def network_of(link: int, frame: bytes) -> bytes:
    """The IP packet in a frame, or nothing. Raises ValueError for a link type that is not read here."""
    if link in _RAW_TYPES:
        return frame
    if link in (_NULL, _LOOP):
        return frame[4:]
    if link == _SLL:
        return frame[16:] if frame[14:16] in _IP else b""
    if link == _SLL2:
        return frame[20:] if frame[:2] in _IP else b""
    if link == _ETHERNET:
        return _of_ethernet(frame)
    raise ValueError(f"the capture has link type {link}; capture on Ethernet, any, lo or a raw interface")


def _of_ethernet(frame: bytes) -> bytes:
    place = 12
    while frame[place : place + 2] in _VLAN:
        place += 4
    return frame[place + 2 :] if frame[place : place + 2] in _IP else b""


def _tcp(packet: bytes) -> tuple[_Direction, int, bytes] | None:
    """Both ends, flags and data."""
    found = _of_ipv4(packet) if packet and packet[0] >> 4 == 4 else _of_ipv6(packet)
    if found is None:
        return None
    source, destination, segment = found
    if len(segment) < 20:
        return None
    start = (segment[12] >> 4) * 4
    if start < 20:
        return None
    return (source + segment[:2], destination + segment[2:4]), segment[13], segment[start:]


def _of_ipv4(packet: bytes) -> tuple[bytes, bytes, bytes] | None:
    start = (packet[0] & 15) * 4
    if start < 20 or len(packet) < start or packet[9] != _TCP or packet[6] & 0x1F or packet[7]:
        return None
    # 0 where the network card was to cut it up; what Ethernet padded it with is no data.
    end = int.from_bytes(packet[2:4], "big") or len(packet)
    return packet[12:16], packet[16:20], packet[start:end]


def _of_ipv6(packet: bytes) -> tuple[bytes, bytes, bytes] | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    length = int.from_bytes(packet[4:6], "big")
    end = 40 + length if length else len(packet)
    kind, place = packet[6], 40
    while kind in (_HOP_BY_HOP, _ROUTING, _DESTINATION, _FRAGMENT) and place + 8 <= len(packet):
        if kind == _FRAGMENT and (packet[place + 2] or packet[place + 3] & 0xF8):
            return None
        size = 8 if kind == _FRAGMENT else (packet[place + 1] + 1) * 8
        kind, place = packet[place], place + size
    return (packet[8:24], packet[24:40], packet[place:end]) if kind == _TCP else None


def _printed(end: bytes) -> str:
    packed, port = end[:-2], int.from_bytes(end[-2:], "big")
    if len(packed) == 4:
        return f"{ipv4_text(*packed)}:{port}"
    groups = [int.from_bytes(packed[place : place + 2], "big") for place in range(0, 16, 2)]
    return f"[{ipv6_text(groups)}]:{port}"
