"""KONG_TRUSTED_IPS: which entries are allowed, and which addresses they cover.

There are two tests, and they differ on purpose (reference, section 3). *nginx trust* decides
whether an address is replaced; *Kong trust* decides whether X-Forwarded-Proto and its kin are
believed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from kongrealip.address import IPV4_FIRST, IPV4_LAST, parse_hop

UNIX = "unix:"
_LAST = (1 << 128) - 1
# To read an address costs three microseconds, and balancers are few.
_KNOWN_PEERS = 1024


class _Ranges:
    """Numbers, as sorted and merged ranges: the question costs one binary search whatever their count."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take ranges in any order, both ends included."""
        firsts: list[int] = []
        lasts: list[int] = []
        for first, last in sorted(ranges):
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        self._firsts, self._lasts = firsts, lasts

    def covers(self, number: int) -> bool:
        """Whether an address, given by its number, is trusted."""
        index = bisect_right(self._firsts, number)
        return index > 0 and number <= self._lasts[index - 1]

    def _covers_range(self, first: int, last: int) -> bool:
        index = bisect_right(self._firsts, first)
        return index > 0 and last <= self._lasts[index - 1]


class TrustedNetworks(_Ranges):
    """The networks whose peers and hops are believed, by nginx's rules.

    All entries lie on one line of 128-bit numbers (see :mod:`kongrealip.address`).
    """

    __slots__ = ("unix",)

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Take entries as Kong and nginx both accept them; ValueError names what is wrong."""
        texts = list(entries)
        self.unix = UNIX in texts
        super().__init__(part for text in texts if text != UNIX for part in parse_network(text))

    def covers_all_ipv4(self) -> bool:
        """Whether every IPv4 address is trusted, by one entry or by several together."""
        return self._covers_range(IPV4_FIRST, IPV4_LAST)

    def covers_all_ipv6(self) -> bool:
        """Whether every IPv6 address is trusted, the IPv4-mapped ones aside."""
        return self._covers_range(0, IPV4_FIRST - 1) and self._covers_range(IPV4_LAST + 1, _LAST)


def parse_network(text: str) -> list[tuple[int, int]]:
    """Read one entry other than ``unix:`` as ranges of address numbers, both ends included.

    Accepts what both Kong and nginx accept; raises ValueError with the reason and the fix. An
    IPv6 entry that reaches over ``::ffff:0:0/96`` has that part cut out: nginx looks IPv4-mapped
    addresses up among the IPv4 entries only, so ``::/0`` does not cover ``::ffff:10.0.0.1``.
    """
    address, slash, prefix_text = text.partition("/")
    if address[:1] == "[":
        raise ValueError("nginx refuses brackets here, write the IPv6 address without them")
    version, value = _strict_address(address)
    bits = 32 if version == 4 else 128
    prefix = _prefix(prefix_text, bits) if slash else bits
    if slash and parse_hop(address) is None:
        # Without a prefix nginx asks the system, which takes more: "1:2:3:4:5:6:7::" for instance.
        raise ValueError("nginx does not read this address where a prefix follows, spell it another way")
    first = value >> (bits - prefix) << (bits - prefix)
    last = first | (1 << (bits - prefix)) - 1
    if version == 4:
        return [(IPV4_FIRST | first, IPV4_FIRST | last)]
    below, above = (first, min(last, IPV4_FIRST - 1)), (max(first, IPV4_LAST + 1), last)
    return [part for part in (below, above) if part[0] <= part[1]]


def _strict_address(text: str) -> tuple[int, int]:
    """``inet_pton`` for one family or the other: its version and its value."""
    # Imported when there is an entry to read, as base64 is: both count in what an import costs.
    import ipaddress

    try:
        if ":" not in text:
            return 4, int(ipaddress.IPv4Address(text))
        # ipaddress takes zones ("fe80::1%eth0"), Kong does not.
        if "%" not in text:
            return 6, int(ipaddress.IPv6Address(text))
    except ipaddress.AddressValueError:
        pass
    raise ValueError("write an IPv4 or IPv6 address, a CIDR block such as 10.0.0.0/8, or unix:")


def _prefix(text: str, bits: int) -> int:
    if text in _PREFIXES and int(text) <= bits:
        return int(text)
    raise ValueError(f"the prefix must be a plain number from 0 to {bits}")


# A table rather than int(), which would take "+8", "08" and " 8".
_PREFIXES = frozenset(str(number) for number in range(129))


class KongTrust:
    """Whether Kong believes X-Forwarded-Proto and its kin from a peer (reference, section 3.3).

    ``unix:`` entries do not count, and an IPv4-mapped address is an IPv6 address here.
    """

    __slots__ = ("_everything", "_known", "_ranges")

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Take entries as Kong accepts them; ValueError names what is wrong."""
        texts = [text for text in entries if text != UNIX]
        self._everything = "0.0.0.0/0" in texts and "::/0" in texts
        networks = [_plain_network(text) for text in texts]
        self._ranges = {
            version: _Ranges(ends for found, ends in networks if found == version) for version in (4, 6)
        }
        self._known: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        """Judge the text of a peer's address; what is not an address is trusted by nobody."""
        if self._everything:
            return True
        trusted = self._known.get(peer)
        if trusted is None:
            if len(self._known) >= _KNOWN_PEERS:
                self._known.clear()
            trusted = self._known[peer] = self._judge(peer)
        return trusted

    def _judge(self, peer: str) -> bool:
        try:
            version, value = _strict_address(_without_brackets(peer))
        except ValueError:
            return False
        return self._ranges[version].covers(value)


def _without_brackets(text: str) -> str:
    return text[1:-1] if text[:1] == "[" and text[-1:] == "]" and ":" in text else text


def _plain_network(text: str) -> tuple[int, tuple[int, int]]:
    address, slash, prefix_text = text.partition("/")
    version, value = _strict_address(_without_brackets(address))
    bits = 32 if version == 4 else 128
    shift = bits - (_prefix(prefix_text, bits) if slash else bits)
    first = value >> shift << shift
    return version, (first, first | (1 << shift) - 1)
