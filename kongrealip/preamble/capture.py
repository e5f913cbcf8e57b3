"""Frames of a capture file: pcap in both byte orders and both resolutions, and pcapng.

A frame is its place in the file counted from 1, its link type, and its bytes. Files come from anywhere:
whatever is wrong with one is a ValueError, and no more than one block is held at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

Frame = tuple[int, int, bytes]

#: How a capture file begins, and the byte order of its numbers.
PCAP_ORDERS = {
    b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\x3c\x4d": ">",
}  # fmt: skip
PCAPNG = b"\n\r\r\n"
_PCAPNG_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE, _SIMPLE, _ENHANCED = 1, 3, 6
# tcpdump takes no more of a packet than this; blocks may have options beside it.
_LONGEST_FRAME, _LONGEST_BLOCK = 1 << 18, 1 << 20
_MOST_INTERFACES = 4096
_LINK_TYPE = 0x0FFF_FFFF


def is_capture(beginning: bytes) -> bool:
    """Whether a file that begins so is a capture."""
    return beginning[:4] in PCAP_ORDERS or beginning[:4] == PCAPNG


def frames(file: BinaryIO, beginning: bytes) -> Iterator[Frame]:
    """Every frame; ``beginning`` are the first four bytes, which have been read from the file."""
    if beginning == PCAPNG:
        yield from _pcapng(file)
    else:
        yield from _pcap(file, PCAP_ORDERS[beginning])


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("the capture ends in the middle of a packet")
    return data


def _pcap(file: BinaryIO, order: str) -> Iterator[Frame]:
    (network,) = struct.unpack(f"{order}16xI", _exactly(file, 20))
    packet = struct.Struct(f"{order}8xI4x")
    number = 0
    while head := file.read(packet.size):
        (length,) = packet.unpack(head + _exactly(file, packet.size - len(head)))
        if length > _LONGEST_FRAME:
            raise ValueError(f"packet {number + 1} of the capture has {length} bytes, which cannot be")
        number += 1
        yield number, network & _LINK_TYPE, _exactly(file, length)


def _pcapng(file: BinaryIO) -> Iterator[Frame]:
    links: list[int] = []
    order, number = _section_order(file), 0
    while head := file.read(4):
        head += _exactly(file, 4 - len(head))
        if head == PCAPNG:
            links, order = [], _section_order(file)
            continue
        (kind,) = struct.unpack(f"{order}I", head)
        # Its length stands at both ends of a block.
        body = _exactly(file, _rest_of_block(order, _exactly(file, 4)))[:-4]
        if kind == _INTERFACE and len(links) < _MOST_INTERFACES and len(body) >= 8:
            links.append(struct.unpack_from(f"{order}H", body)[0])
        elif kind in (_SIMPLE, _ENHANCED):
            number += 1
            yield _frame_of(order, number, kind, body, links)


def _section_order(file: BinaryIO) -> str:
    """Read the rest of a section's header, of which the first word has been read."""
    head = _exactly(file, 8)
    order = _PCAPNG_ORDERS.get(head[4:])
    if order is None:
        raise ValueError("the capture begins like pcapng, and is none")
    _exactly(file, _rest_of_block(order, head[:4]) - 4)
    return order


def _rest_of_block(order: str, length: bytes) -> int:
    """How many bytes follow on type and length."""
    (total,) = struct.unpack(f"{order}I", length)
    if not 12 <= total <= _LONGEST_BLOCK:
        raise ValueError(f"the capture has a block of {total} bytes, which cannot be")
    return int(total) - 8


def _frame_of(order: str, number: int, kind: int, body: bytes, links: list[int]) -> Frame:
    start = 20 if kind == _ENHANCED else 4
    if len(body) < start:
        raise ValueError(f"packet {number} of the capture is too short")
    interface = 0
    if kind == _ENHANCED:
        interface, length = struct.unpack_from(f"{order}I8xI", body)
    else:
        (length,) = struct.unpack_from(f"{order}I", body)
    if interface >= len(links):
        raise ValueError(f"packet {number} of the capture is of an interface that it does not have")
    return number, links[interface], body[start : start + length]
