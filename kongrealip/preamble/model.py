"""The value that both wire forms are read into."""

from __future__ import annotations

from typing import NamedTuple


class Preamble(NamedTuple):
    """What a load balancer said about a connection.

    ``command`` is ``PROXY``, ``LOCAL``, or the undefined nibble in hexadecimal (``0x7``). The
    four address fields are None where the preamble carries no information (LOCAL, UNKNOWN, a
    family other than TCP over IPv4 or IPv6). In version 1 the addresses are the text as sent,
    valid or not; in version 2 they are printed as nginx prints them. A port may be 0. ``tlvs``
    is the raw area behind the addresses, in which nothing has been checked.
    """

    version: int
    command: str
    source_ip: str | None = None
    source_port: int | None = None
    destination_ip: str | None = None
    destination_port: int | None = None
    tlvs: bytes = b""
