"""What the upstream is told about the client: one preamble, in front of everything."""

from __future__ import annotations

from collections.abc import Collection

from kongrealip.address import Address, parse_hop
from kongrealip.preamble import Preamble, writing
from kongrealip.realip import Resolution
from kongrealip.realip.resolve import PROXY_PROTOCOL

#: ALPN, AUTHORITY and SSL: what is said of a TLS handshake.
OF_A_HANDSHAKE = (0x01, 0x02, 0x20)


def announcement(
    form: str,
    resolution: Resolution,
    local: tuple[str, int | None],
    own: Collection[tuple[int, bytes]] | None = None,
) -> bytes:
    """The bytes of a preamble in a form: ``v1``, ``v2``, or none for ``off``.

    ``local`` is this end of the client's connection; ``own`` the TLVs of this relay's handshake with
    the client, None where there was none. What a peer says is repeated only where that peer is
    trusted: anybody could claim to be a health check (LOCAL), or to have shown a certificate (a TLV).
    """
    if form == "off":
        return b""
    said = resolution.preamble if resolution.peer_trusted else None
    if said is not None and said.source_ip is None:
        return writing.LOCAL_V2 if form == "v2" else writing.UNKNOWN_V1
    destination = _destination(said, resolution) or Address(*local)
    if form == "v1":
        return writing.v1(resolution.client, destination)
    tlvs = b"".join([writing.tlv(kind, value) for kind, value in own]) if own else b""
    if said is not None and said.tlv_area:
        # Where there are two handshakes, only ours is true of the bytes that follow.
        tlvs += writing.kept_tlvs(said.tlv_area, () if own is None else OF_A_HANDSHAKE)
    return writing.v2(resolution.client, destination, tlvs)


def _destination(said: Preamble | None, resolution: Resolution) -> Address | None:
    """Where the client connected to in front of the balancer, if it says so."""
    if said is None or resolution.source != PROXY_PROTOCOL:
        return None
    hop = parse_hop(said.destination_ip or "")
    # The port is the preamble's own, whatever a version 1 address text carried.
    return None if hop is None else Address(hop[0], said.destination_port)
