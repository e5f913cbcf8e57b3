"""The decision: rules + peer + preamble + header lines -> Resolution.

This is nginx's realip module (``ngx_http_realip_handler`` and
``ngx_http_get_forwarded_addr_internal``; reference, section 6), and the only place of this
package where a client's address is decided. Nothing that arrives from the network can make it
raise: whatever is not an address ends the walk.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kongrealip.address import Address, parse_hop, plain_ipv4
from kongrealip.preamble import Preamble
from kongrealip.realip.networks import UNIX, TrustedNetworks

PROXY_PROTOCOL = "proxy_protocol"
#: The source of an address that nobody named: the connection's own.
PEER = "peer"
_ALL_LINES = "X-Forwarded-For"
_REMEMBERED_RESTS = 4096
_LONGEST_REST = 256
_REMEMBERED_PEERS = 1024

# Takes half the time of Address() and Resolution(), which are Python code.
_new = tuple.__new__
# Printed address, its number, its port or 0.
_Hop = tuple[str, int, int]


class Resolution(NamedTuple):
    """Who the client is, and why.

    ``client`` is the decided address (nginx ``$remote_addr``), ``peer`` the other end of the
    connection (``$realip_remote_addr``). ``source`` says where the client came from: ``peer``,
    ``proxy_protocol``, or the header's name as it was configured. ``preamble`` is what came, from
    whomever: nothing of it is to be believed unless ``peer_trusted``.
    """

    client: Address
    peer: Address
    peer_trusted: bool
    source: str
    preamble: Preamble | None


class Rules:
    """What the operator decided: whom to trust, which header to read, how far to walk."""

    __slots__ = ("_judged", "_trusted_rests", "all_lines", "header", "header_name", "networks", "recursive")

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
        self._trusted_rests: set[str] = set()
        self._judged: dict[str, tuple[str, bool]] = {}

    def judge(self, peer: Address) -> tuple[Address, bool]:
        """The peer as nginx prints it, and whether it is trusted.

        Remembered by its address: each connection has a port of its own, and balancers are few.
        """
        ip, port = peer
        if ip == UNIX:
            return judge_peer(self.networks, peer)
        judged = self._judged.get(ip)
        if judged is None:
            if len(self._judged) >= _REMEMBERED_PEERS:
                self._judged.clear()
            (printed, _), trusted = judge_peer(self.networks, peer)
            judged = self._judged[ip] = printed, trusted
        printed, trusted = judged
        return peer if printed == ip else Address(printed, port), trusted

    def walk(self, lines: Sequence[bytes]) -> _Hop | None:
        """The hop that a trusted peer's header lines lead to, or None to keep the peer."""
        if not self.all_lines:
            return self.walk_line(lines[0])[0]
        reached = None
        for line in reversed(lines):
            hop, whole_line = self.walk_line(line)
            reached = hop or reached
            if not (whole_line and self.recursive and hop and self.networks.covers(hop[1])):
                break
        return reached

    def reached(self, line: bytes) -> tuple[str, int] | None:
        """Where a single line leads: address and port, or 0, or None to keep the peer."""
        ip = plain_ipv4(line)
        if ip is not None:
            return ip, 0
        hop = self.walk_line(line)[0]
        return None if hop is None else (hop[0], hop[2])

    def walk_line(self, line: bytes) -> tuple[_Hop | None, bool]:
        """Walk one line from its right end, on behalf of a trusted hop.

        Returns the last hop that was reached, or None, and whether the line ended there
        (nginx's OK). Separators are blanks and commas in any mixture.
        """
        text = line.decode("latin-1").strip(" ")
        comma = text.find(",")
        if comma < 0 and " " not in text:
            hop = parse_hop(text)
            return hop, hop is not None
        if comma > 0:
            if len(text) - comma <= _LONGEST_REST and text[comma + 1 :] in self._trusted_rests:
                hop = parse_hop(text[:comma].rstrip(" "))
                if hop is not None:
                    return hop, True
            hop = parse_hop(text[text.rfind(",") + 1 :].lstrip(" "))
            if hop is not None and not (self.recursive and self.networks.covers(hop[1])):
                # What stands in front of it, be it long, is not even taken apart.
                return hop, not self.recursive
        return self._walk_entries(text)

    def _walk_entries(self, text: str) -> tuple[_Hop | None, bool]:
        """The same, entry by entry, of a line without blanks at its ends."""
        hop = None
        for token in reversed(split_line(text)):
            if not token:
                continue
            if hop is not None and not self.networks.covers(hop[1]):
                return hop, False
            next_hop = parse_hop(token)
            if next_hop is None:
                return hop, False
            hop = next_hop
            if not self.recursive:
                return hop, True
        _, comma, rest = text.partition(",")
        if comma:
            self._remember(rest)
        return hop, hop is not None

    def _remember(self, rest: str) -> None:
        """Keep what stood behind a client and was all trusted: the same proxies come again."""
        if len(rest) < _LONGEST_REST:
            if len(self._trusted_rests) >= _REMEMBERED_RESTS:
                self._trusted_rests.clear()
            self._trusted_rests.add(rest)


def split_line(text: str) -> list[str]:
    """The entries of a line, and "" where separators meet.

    The line's first byte is never taken for one: ",1.2.3.4" is no address.
    """
    return (text[:1] + text[1:].replace(",", " ")).split(" ")


class PeerResolver:
    """The rules applied to one peer: all that does not change from request to request.

    ``fixed`` is the answer where no header can change it: the peer is not trusted, or the
    preamble is the source. Where it is None, ``resolve`` takes the header's lines.
    """

    __slots__ = ("_header", "_kind", "_peer", "_preamble", "fixed", "rules", "unchanged")

    def __init__(
        self,
        rules: Rules,
        peer: Address,
        preamble: Preamble | None,
        kind: type[Resolution] = Resolution,
    ) -> None:
        """``kind`` is what the answers are to be: Resolution, or a class of its kind."""
        self.rules = rules
        self._kind = kind
        self._header = rules.header
        self._preamble = preamble
        self._peer, trusted = rules.judge(peer)
        fields = (self._peer, self._peer, trusted, PEER, preamble)
        self.unchanged = _new(kind, fields)
        self.fixed: Resolution | None = None
        if not trusted:
            # The attack that this stops: anybody may connect and send the header.
            self.fixed = self.unchanged
        elif rules.header_name is None:
            self.fixed = self._replaced(_from_preamble(preamble))

    def resolve(self, lines: Sequence[bytes]) -> Resolution:
        """Decide from the header's lines in order of arrival, as raw bytes."""
        if self.fixed is not None or not lines:
            return self.fixed or self.unchanged
        hop = self.rules.walk(lines)
        return self._replaced(None if hop is None else (hop[0], hop[2]))

    def _replaced(self, reached: tuple[str, int] | None) -> Resolution:
        """The peer's port is not kept: it belongs to the balancer's connection."""
        if reached is None:
            return self.unchanged
        client = _new(Address, (reached[0], reached[1] or None))
        return _new(self._kind, (client, self._peer, True, self._header, self._preamble))


def resolve(rules: Rules, peer: Address, preamble: Preamble | None, lines: Sequence[bytes]) -> Resolution:
    """Decide once: :class:`PeerResolver` for callers with a single question."""
    return PeerResolver(rules, peer, preamble).resolve(lines)


def _from_preamble(preamble: Preamble | None) -> tuple[str, int] | None:
    if preamble is None or preamble.source_ip is None:
        return None
    hop = parse_hop(preamble.source_ip)
    # The port is the preamble's own, whatever a version 1 address text carried.
    return None if hop is None else (hop[0], preamble.source_port or 0)


def judge_peer(networks: TrustedNetworks, peer: Address) -> tuple[Address, bool]:
    """The peer as nginx prints it, and whether it is trusted."""
    ip, port = peer
    if ip == UNIX:
        return Address(UNIX, None), networks.unix
    # getpeername() adds the zone of a link-local address, which nginx leaves out.
    hop = parse_hop(ip.partition("%")[0])
    if hop is None or hop[2]:
        return peer, False
    return peer if hop[0] == ip else Address(hop[0], port), networks.covers(hop[1])
