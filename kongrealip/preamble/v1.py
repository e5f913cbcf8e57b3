"""Version 1: a line of text (reference, section 7.2)."""

from __future__ import annotations

import re
from functools import cache

from kongrealip.address import bounded_decimal
from kongrealip.errors import PreambleError
from kongrealip.preamble.model import Preamble

_UNKNOWN = b"PROXY UNKNOWN"
# Possessive, because what has no end yet is looked at with each piece that comes.
_ADDRESS = rb"[0-9A-Fa-f:.]*+"
_LINE = re.compile(rb"PROXY TCP[46] (%b) (%b) ([0-9]++) ([0-9]++)\r\n" % (_ADDRESS, _ADDRESS))
# What is shorter than the shortest that can be told apart.
_OPENINGS = frozenset(
    [opening[:end] for opening in (_UNKNOWN, b"PROXY TCP4 ", b"PROXY TCP6 ") for end in range(len(opening))]
)
_HTTP = rb"[A-Z]+ (?:/|\*|https?:)"
_LAST_PORT, _PORT_DIGITS = 65535, 5


def parse(data: bytes) -> tuple[Preamble, int] | None:
    """Read a version 1 line; see :func:`kongrealip.preamble.header.parse`."""
    line = _LINE.match(data)
    if line is not None:
        return _addresses(line), line.end()
    if _beginning().fullmatch(data) or data in _OPENINGS:
        return None
    if data.startswith(_UNKNOWN):
        # nginx looks for the first CR LF and for nothing else: no blank is needed behind the
        # word, and a bare LF does not end the line.
        end = data.find(b"\r\n", len(_UNKNOWN))
        return None if end < 0 else (Preamble(1, "PROXY"), end + 2)
    raise PreambleError(*_reason(data))


@cache
def _beginning() -> re.Pattern[bytes]:
    """Any beginning of such a line.

    With it a plain HTTP request or a TLS ClientHello is refused at its first wrong byte, and does not
    sit there until the deadline. Compiled when it is first needed, because the middleware imports this
    module and never does.
    """
    ports = rb"[0-9]*+(?:(?<=[0-9]) [0-9]*+(?:(?<=[0-9])\r)?)?"
    return re.compile(rb"PROXY TCP[46] %b(?: %b(?: %b)?)?" % (_ADDRESS, _ADDRESS, ports))


def _addresses(line: re.Match[bytes]) -> Preamble:
    source, destination, source_port_text, destination_port_text = line.groups()
    source_port, destination_port = _port(source_port_text), _port(destination_port_text)
    if source_port is None or destination_port is None:
        raise PreambleError("version 1 preamble with a port above 65535", "port")
    # tuple.__new__ takes half the time of Preamble(), which is Python code.
    fields = (1, "PROXY", source.decode(), source_port, destination.decode(), destination_port, b"")
    return tuple.__new__(Preamble, fields)


def _port(digits: bytes) -> int | None:
    # As everybody writes it: nothing to strip, and not too long for int().
    port = int(digits) if len(digits) <= _PORT_DIGITS else bounded_decimal(digits.decode(), _LAST_PORT)
    return None if port is None or port > _LAST_PORT else port


def _reason(data: bytes) -> tuple[str, str]:
    if data.startswith(b"PROXY "):
        return "malformed version 1 preamble", "malformed"
    if re.match(_HTTP, data):
        return "plain HTTP reached a proxy_protocol port", "http"
    if data[:2] == b"\x16\x03":
        return "TLS without a preamble reached a proxy_protocol port", "tls"
    return "no PROXY preamble", "not_proxy"
