"""What nginx lets pass although the specification forbids it, refused where that is asked for.

Sections are those of the PROXY protocol's specification (proxy-protocol.txt of HAProxy). Where
it says nothing, or leaves the choice to the receiver, nothing is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kongrealip.address import bounded_decimal
from kongrealip.errors import PreambleError
from kongrealip.preamble.tlv import CRC32C, crc32c, entries
from kongrealip.preamble.v2 import too_short

# Section 2.1, with CR LF: the CR LF must be among the first 107 bytes.
LONGEST_LINE = 107

_HEAD = struct.Struct("!BBH")
_SIGNATURE = 12
_BODY = 16
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED = 0
# By family: AF_INET, AF_INET6, AF_UNIX. Stream and datagram have the same.
_ADDRESSES = {1: 12, 2: 36, 3: 216}
_LAST_TRANSPORT = 2
_UNIQUE_ID, _SSL = 0x05, 0x20
_LONGEST_UNIQUE_ID = 128
_SSL_FIXED = 5


def check_v1(line: bytes) -> None:
    """Refuse a line, given whole but without its CR LF, that section 2.1 forbids."""
    fields = line.split(b" ")
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        return  # UNKNOWN: the receiver must ignore anything up to the CR LF.
    family, source, destination, *ports = (field.decode("ascii") for field in fields[1:])
    for address in (source, destination):
        _check_address(address, family)
    for port in ports:
        _check_leading_zero(port)


def _check_address(text: str, family: str) -> None:
    found = "TCP4" if _is_ipv4(text) else "TCP6" if _is_ipv6(text) else None
    if found is None:
        raise PreambleError(f"version 1 preamble with {text!r}, which is no address", "address")
    if found != family:
        raise PreambleError(f"version 1 preamble with {text!r} as {family} address", "family")
    dotted = text.rpartition(":")[2]
    for octet in dotted.split(".") if "." in dotted else ():
        _check_leading_zero(octet)


def _check_leading_zero(number: str) -> None:
    """``010`` is ten to nginx and eight to others: who is meant must not depend on the reader."""
    if number.startswith("0") and number != "0":
        raise PreambleError(f"version 1 preamble with a leading zero in {number!r}", "leading_zero")


def _is_ipv4(text: str) -> bool:
    """Four numbers, whether with leading zeros or not. Not nginx's reader: "1..3.4" is none."""
    octets = text.split(".")
    return len(octets) == 4 and all(bounded_decimal(octet, 255) is not None for octet in octets)


def _is_ipv6(text: str) -> bool:
    """As inet_pton reads it, of hexadecimal digits, colons and dots, for v1 lets nothing else through.

    Not nginx's reader: "::1:" and ":1::2" are none. The specification does not mention a dotted
    end, but inet_ntop writes ``::ffff:192.0.2.1`` so, and with it the proxies that send version 1.
    """
    head, _, last = text.rpartition(":")
    if "." in last:
        text = f"{head}:0:0" if _is_ipv4(last) else ""
    left, gap, right = text.partition("::")
    groups = [group for part in (left, right) if part for group in part.split(":")]
    fits = len(groups) < 8 if gap else len(groups) == 8
    return fits and all(0 < len(group) <= 4 and "." not in group for group in groups)


def check_v2(data: bytes) -> None:
    """Refuse a header, whole or not, that section 2.2 forbids.

    It has been read by ``v2.parse`` before. What the first 16 bytes give away is refused with
    them, so that nothing is waited for or held in vain.
    """
    if len(data) < _BODY:
        return
    version_command, family_transport, length = _HEAD.unpack_from(data, _SIGNATURE)
    family, transport = divmod(family_transport, 16)
    if version_command & 15 == _LOCAL:
        # The block is discarded, "including the family which is ignored": AWS checks the health
        # with family 0x11 and no addresses.
        return
    _check_kind(version_command & 15, family, transport)
    if _UNSPECIFIED in (family, transport):
        # Whether there are addresses, and so where TLVs would begin, is up to the sender.
        return
    end, tlvs = _BODY + length, _BODY + _ADDRESSES[family]
    if end < tlvs:
        raise too_short(end)
    if len(data) >= end:
        _check_tlvs(data[:end], tlvs)


def _check_kind(command: int, family: int, transport: int) -> None:
    if command != _PROXY:
        raise PreambleError(f"version 2 preamble with the undefined command {command}", "command")
    if family != _UNSPECIFIED and family not in _ADDRESSES:
        raise PreambleError(f"version 2 preamble with the undefined family {family}", "family")
    if transport > _LAST_TRANSPORT:
        raise PreambleError(f"version 2 preamble with the undefined transport {transport}", "transport")


def _check_tlvs(header: bytes, start: int) -> None:
    """The form of all, and of those whose form is defined; what the values say is not judged."""
    checksum: tuple[int, bytes] | None = None
    for kind, position, value in _tlvs(header, start):
        if kind == CRC32C:
            if checksum is not None:
                # Each would count with the other in it. To verify all of them would also give a
                # sender a way to make one preamble cost the work of thousands.
                raise PreambleError("version 2 preamble with two checksums", "checksum")
            checksum = position, value
        elif kind == _UNIQUE_ID and len(value) > _LONGEST_UNIQUE_ID:
            raise PreambleError(f"version 2 preamble with a unique id of {len(value)} bytes", "tlv")
        elif kind == _SSL:
            _check_ssl(value)
    if checksum is not None:
        _check_checksum(header, *checksum)


def _check_ssl(value: bytes) -> None:
    if len(value) < _SSL_FIXED:
        raise PreambleError(f"version 2 preamble with an SSL TLV of {len(value)} bytes", "tlv")
    for _ in _tlvs(value, _SSL_FIXED):
        pass


def _tlvs(area: bytes, position: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, place and value of each; PreambleError where they do not end with the area."""
    for kind, start, value in entries(area, position):
        yield kind, start, value
        position = start + len(value)
    if position < len(area):
        raise PreambleError("version 2 preamble with a TLV that reaches over its end", "tlv")


def _check_checksum(header: bytes, position: int, value: bytes) -> None:
    """Section 2.2.3: over the whole header, with zeros in the place of the checksum."""
    if len(value) != 4:
        raise PreambleError(f"version 2 preamble with a checksum of {len(value)} bytes", "checksum")
    if crc32c(header[:position] + bytes(4) + header[position + 4 :]) != int.from_bytes(value, "big"):
        raise PreambleError("version 2 preamble with a wrong checksum", "checksum")
