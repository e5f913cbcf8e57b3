"""Version 2: binary (reference, section 7.3)."""

from __future__ import annotations

import struct

from kongrealip.address import ipv4_text, ipv6_text
from kongrealip.errors import PreambleError
from kongrealip.preamble.model import Preamble

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_HEAD = struct.Struct("!BBH")
_IPV4 = struct.Struct("!4B4BHH")
_IPV6 = struct.Struct("!8H8HHH")
_BODY = 16
_COMMANDS = {0: "LOCAL", 1: "PROXY"}
_STREAM = 1


def parse(data: bytes, limit: int) -> tuple[Preamble, int] | None:
    """Read a version 2 header that starts with the signature; see ``header.parse``."""
    if len(data) < _BODY:
        return None
    version_command, family_transport, length = _HEAD.unpack_from(data, len(SIGNATURE))
    if version_command >> 4 != 2:
        raise PreambleError(f"PROXY version {version_command >> 4} is not known", "version")
    end = _BODY + length
    if end > limit:
        raise PreambleError(f"preamble of {end} bytes, the limit is {limit}", "too_long")
    if len(data) < end:
        return None
    command = version_command & 15
    if command != 1 or family_transport & 15 != _STREAM:
        return Preamble(2, _COMMANDS.get(command) or f"0x{command:x}"), end
    return _addresses(data, family_transport >> 4, end), end


def too_short(end: int) -> PreambleError:
    return PreambleError(f"version 2 preamble of {end} bytes, too short for its addresses", "length")


def _addresses(data: bytes, family: int, end: int) -> Preamble:
    if family == 1:
        tlvs = _BODY + 12
        if end < tlvs:
            raise too_short(end)
        a, b, c, d, e, f, g, h, source_port, destination_port = _IPV4.unpack_from(data, _BODY)
        source, destination = ipv4_text(a, b, c, d), ipv4_text(e, f, g, h)
    elif family == 2:
        tlvs = _BODY + 36
        if end < tlvs:
            raise too_short(end)
        *groups, source_port, destination_port = _IPV6.unpack_from(data, _BODY)
        source, destination = ipv6_text(groups[:8]), ipv6_text(groups[8:])
    else:
        return Preamble(2, "PROXY")
    # tuple.__new__ takes half the time of Preamble(), which is Python code.
    fields = (2, "PROXY", source, source_port, destination, destination_port, data[tlvs:end])
    return tuple.__new__(Preamble, fields)
