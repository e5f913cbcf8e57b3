"""Version 1: a line of text (reference, section 7.2)."""

from __future__ import annotations

import re

from kongrealip.address import bounded_decimal
from kongrealip.errors import PreambleError
from kongrealip.preamble.model import Preamble

_UNKNOWN = b"PROXY UNKNOWN"
_ADDRESS = rb"([0-9A-Fa-f:.]*)"
_LINE = re.compile(rb"PROXY TCP[46] " + _ADDRESS + rb" " + _ADDRESS + rb" ([0-9]+) ([0-9]+)\r\n")
# Any beginning of such a line. With it a plain HTTP request or a TLS ClientHello is refused at
# its first wrong byte, and does not sit there until the deadline. It and the next are compiled when
# they are first needed: that takes as long as a fiftieth of importing the middleware, which never does.
_BEGINNING = (
    rb"PROXY TCP[46] [0-9A-Fa-f:.]*(?: [0-9A-Fa-f:.]*(?: [0-9]*(?:(?<=[0-9]) [0-9]*(?:(?<=[0-9])\r)?)?)?)?"
)
_OPENINGS = (_UNKNOWN, b"PROXY TCP4 ", b"PROXY TCP6 ")
_HTTP = rb"[A-Z]+ (?:/|\*|https?:)"


def parse(data: bytes) -> tuple[Preamble, int] | None:
    """Read a version 1 line; see :func:`kongrealip.preamble.header.parse`."""
    line = _LINE.match(data)
    if line is not None:
        return _addresses(line), line.end()
    if data.startswith(_UNKNOWN):
        # nginx looks for the first CR LF and for nothing else: no blank is needed behind the
        # word, and a bare LF does not end the line.
        end = data.find(b"\r\n", len(_UNKNOWN))
        return None if end < 0 else (Preamble(1, "PROXY"), end + 2)
    if re.fullmatch(_BEGINNING, data) or any(opening.startswith(data) for opening in _OPENINGS):
        return None
    raise PreambleError(*_reason(data))


def _addresses(line: re.Match[bytes]) -> Preamble:
    source, destination, *ports = (text.decode("ascii") for text in line.groups())
    source_port, destination_port = (bounded_decimal(port, 65535) for port in ports)
    if source_port is None or destination_port is None:
        raise PreambleError("version 1 preamble with a port above 65535", "port")
    return Preamble(1, "PROXY", source, source_port, destination, destination_port)


def _reason(data: bytes) -> tuple[str, str]:
    if data.startswith(b"PROXY "):
        return "malformed version 1 preamble", "malformed"
    if re.match(_HTTP, data):
        return "plain HTTP reached a proxy_protocol port", "http"
    if data[:2] == b"\x16\x03":
        return "TLS without a preamble reached a proxy_protocol port", "tls"
    return "no PROXY preamble", "not_proxy"
