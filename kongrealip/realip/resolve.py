"""The decision: rules + peer + preamble + header lines -> Resolution.

This is nginx's realip module (``ngx_http_realip_handler`` and
``ngx_http_get_forwarded_addr_internal``; reference, section 6), and the only place of this
package where a client's address is decided. Nothing that arrives from the network can make it
raise: whatever is not an address ends the walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kongrealip.address import Address, parse_address, parse_with_port
from kongrealip.preamble import Preamble
from kongrealip.realip.networks import UNIX, TrustedNetworks

PROXY_PROTOCOL = "proxy_protocol"
_ALL_LINES = "X-Forwarded-For"
_REMEMBERED_HOPS = 4096

# An address and whether it is trusted.
_Hop = tuple[Address, bool]


class Resolution(NamedTuple):
    """Who the client is, and why.

    ``client`` is the decided address (nginx ``$remote_addr``), ``peer`` the other end of the
    connection (``$realip_remote_addr``). ``source`` says where the client came from: ``peer``,
    ``proxy_protocol``, or the header's name as it was configured.
    """

    client: Address
    peer: Address
    peer_trusted: bool
    source: str
    preamble: Preamble | None


class Rules:
    """What the operator decided: whom to trust, which header to read, how far to walk."""

    __slots__ = ("_trusted_hops", "all_lines", "header", "header_name", "networks", "recursive")

    def __init__(self, networks: TrustedNetworks, header: str, recursive: bool) -> None:
        self.networks = networks
        self.header = header
        self.recursive = recursive
        # nginx tells the modes apart with the letter case, and compares header names without:
        # "x-forwarded-for" is a header of its own, of which only the first line is read.
        self.all_lines = header == _ALL_LINES
        # The name as ASGI servers give it, or None where the preamble is the source.
        self.header_name = (
            None if header == PROXY_PROTOCOL else header.encode("utf-8", "surrogateescape").lower()
        )
        self._trusted_hops: dict[str, _Hop] = {}

    def walk(self, lines: Sequence[bytes]) -> Address | None:
        """The client that a trusted peer's header lines lead to, or None to keep the peer."""
        if not self.all_lines:
            hop = self.walk_line(lines[0])[0]
            return hop and hop[0]
        client = None
        for line in reversed(lines):
            hop, whole_line = self.walk_line(line)
            client = hop or client
            if not (whole_line and self.recursive and hop and hop[1]):
                break
        return client and client[0]

    def read_hop(self, token: str) -> _Hop | None:
        """An address and whether it is trusted, or None where the token is not an address."""
        hop = self._trusted_hops.get(token)
        if hop is not None:
            return hop
        parsed = parse_address(token)
        port = None
        if parsed is None:
            with_port = parse_with_port(token)
            if with_port is None:
                return None
            parsed, port = with_port[:2], with_port[2] or None
        trusted = self.networks.covers(parsed[1])
        # tuple.__new__ takes half the time of Address(), which is Python code.
        hop = tuple.__new__(Address, (parsed[0], port)), trusted
        if trusted:
            if len(self._trusted_hops) >= _REMEMBERED_HOPS:
                self._trusted_hops.clear()
            self._trusted_hops[token] = hop
        return hop

    def walk_line(self, line: bytes) -> tuple[_Hop | None, bool]:
        """Walk one line from its right end, on behalf of a trusted hop.

        Returns the last address that was reached, or None, and whether the line ended there
        (nginx's OK). Separators are blanks and commas in any mixture.
        """
        text = line.decode("latin-1").strip(" ")
        if "," in text:
            # The line's first byte is never taken for a separator: ",1.2.3.4" is no address.
            text = text[0] + text[1:].replace(",", " ")
        elif " " not in text:
            hop = self.read_hop(text)
            return hop, hop is not None
        hop = None
        for token in reversed(text.split(" ")):
            if not token:
                continue
            if hop is not None and not hop[1]:
                return hop, False
            next_hop = self.read_hop(token)
            if next_hop is None:
                return hop, False
            hop = next_hop
            if not self.recursive:
                break
        return hop, hop is not None


class PeerResolver:
    """The rules applied to one peer: all that does not change from request to request.

    ``fixed`` is the answer where no header can change it: the peer is not trusted, or the
    preamble is the source. Where it is None, ``resolve`` takes the header's lines.
    """

    __slots__ = ("fixed", "last_client", "last_line", "last_resolution", "rules", "silent", "unchanged")

    def __init__(self, rules: Rules, peer: Address, preamble: Preamble | None) -> None:
        self.rules = rules
        shown, trusted = _judge_peer(rules.networks, peer)
        self.unchanged = Resolution(shown, shown, trusted, "peer", preamble)
        self.fixed: Resolution | None = None
        if not trusted:
            # The attack that this stops: anybody may connect and send the header.
            self.fixed = self.unchanged
        elif rules.header_name is None:
            self.fixed = self._replaced(_from_preamble(rules, preamble))
        self.silent = False
        self.last_line: bytes | None = None
        self.last_resolution = self.unchanged
        self.last_client = ("", 0)

    def resolve(self, lines: Sequence[bytes]) -> Resolution:
        """Decide from the header's lines in order of arrival, as raw bytes."""
        if self.fixed is not None or not lines:
            return self.fixed or self.unchanged
        return self._replaced(self.rules.walk(lines))

    def remember(self, line: bytes) -> None:
        hop = self.rules.walk_line(line)[0]
        ip, port = client = self.unchanged.peer if hop is None else hop[0]
        self.last_client = (ip, port or 0)
        self.last_resolution = self.unchanged if hop is None else self._replaced(client)
        self.last_line = line

    def _replaced(self, client: Address | None) -> Resolution:
        if client is None:
            return self.unchanged
        _, peer, trusted, _, preamble = self.unchanged
        return tuple.__new__(Resolution, (client, peer, trusted, self.rules.header, preamble))


def resolve(rules: Rules, peer: Address, preamble: Preamble | None, lines: Sequence[bytes]) -> Resolution:
    """Decide once: :class:`PeerResolver` for callers with a single question."""
    return PeerResolver(rules, peer, preamble).resolve(lines)


def _from_preamble(rules: Rules, preamble: Preamble | None) -> Address | None:
    if preamble is None or preamble.source_ip is None:
        return None
    hop = rules.read_hop(preamble.source_ip)
    # The port is the preamble's own, whatever a version 1 address text carried.
    return hop and Address(hop[0].ip, preamble.source_port or None)


def _judge_peer(networks: TrustedNetworks, peer: Address) -> tuple[Address, bool]:
    """The peer as nginx prints it, and whether it is trusted."""
    if peer.ip == UNIX:
        return Address(UNIX, None), networks.unix
    # getpeername() adds the zone of a link-local address, which nginx leaves out.
    address = parse_address(peer.ip.partition("%")[0])
    if address is None:
        return peer, False
    return Address(address[0], peer.port), networks.covers(address[1])
