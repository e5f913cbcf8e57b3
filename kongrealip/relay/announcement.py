"""What the upstream is told about the client: one preamble, in front of everything."""

from __future__ import annotations

from collections.abc import Collection

from kongrealip.address import Address, parse_hop
from kongrealip.preamble import Preamble, writing
from kongrealip.realip import Resolution
from kongrealip.realip.resolve import PROXY_PROTOCOL


def announcement(
    form: str, resolution: Resolution, local: tuple[str, int | None], own: Collection[tuple[int, bytes]] = ()
) -> bytes:
    """The bytes of a preamble in a form: ``v1``, ``v2``, or none for ``off``.

    ``local`` is this end of the client's connection, ``own`` the TLVs that this relay adds. What
    a peer says is repeated only where that peer is trusted: anybody could claim to be a health
    check (LOCAL), or to have shown a certificate (a TLV).
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
    if said is not None and said.tlvs:
        # Where there are two of a kind, a reader may take either: only ours is true of this hop.
        tlvs += writing.kept_tlvs(said.tlvs, {kind for kind, _ in own})
    return writing.v2(resolution.client, destination, tlvs)


def _destination(said: Preamble | None, resolution: Resolution) -> Address | None:
    """Where the client connected to in front of the balancer, if it says so."""
    if said is None or resolution.source != PROXY_PROTOCOL or parse_hop(said.destination_ip or "") is None:
        return None
    return Address(said.destination_ip or "", said.destination_port)
