"""Which addresses the trusted entries cover, to the single address, and by which of the two tests."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kongrealip.address import parse_hop
from kongrealip.realip import KongTrust, TrustedNetworks
from kongrealip.realip.networks import parse_network


def everything_but(version: str, missing: str) -> list[str]:
    whole = ipaddress.ip_network("0.0.0.0/0" if version == "ipv4" else "::/0")
    return [str(part) for part in whole.address_exclude(ipaddress.ip_network(missing))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "missing",
    [
        "::",
        "::fffe:ffff:ffff",
        "::1:0:0:0",
        "2001:db8::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "::/1",
        "8000::/1",
    ],
)
def test_one_address_less_is_not_all_of_ipv6(missing: str) -> None:
    assert not TrustedNetworks(everything_but("ipv6", missing)).covers_all_ipv6()
    assert TrustedNetworks([*everything_but("ipv6", missing), missing]).covers_all_ipv6()


@pytest.mark.parametrize(
    ("one", "between", "other"), [("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("::1", "::2", "::3")]
)
def test_a_gap_of_one_address(one: str, between: str, other: str) -> None:
    """Neighbours are joined, and what lies between two that are none is a stranger."""
    for entries in ([one, other], [other, one], [one, other, one]):
        assert not TrustedNetworks(entries).covers(number(between))
        assert not KongTrust(entries).trusts(between)
        assert TrustedNetworks([*entries, between]).covers(number(between))
        assert KongTrust([*entries, between]).trusts(between)


@pytest.mark.parametrize("missing", ["0.0.0.0", "255.255.255.254", "10.0.0.0/8"])
def test_one_address_less_is_not_all_of_ipv4(missing: str) -> None:
    rest = [entry for entry in everything_but("ipv4", missing) if entry != "255.255.255.255/32"]
    assert not TrustedNetworks(rest).covers_all_ipv4()


def test_all_of_one_is_not_all_of_the_other() -> None:
    """The IPv4-mapped addresses are IPv4, whatever the entries of IPv6 say."""
    ipv4, ipv6 = TrustedNetworks(["::1", "0.0.0.0/0"]), TrustedNetworks(["::/0"])
    assert (ipv4.covers_all_ipv4(), ipv4.covers_all_ipv6()) == (True, False)
    assert (ipv6.covers_all_ipv4(), ipv6.covers_all_ipv6()) == (False, True)
    assert TrustedNetworks(everything_but("ipv6", "::ffff:0:0/96")).covers_all_ipv6()
    for entry in ("::ffff:0:0/96", "::ffff:10.0.0.0/104", "::ffff:255.255.255.254"):
        assert parse_network(entry) == []


def number(text: str) -> int:
    hop = parse_hop(text)
    assert hop is not None
    return hop[1]


@given(st.ip_addresses(), st.data())
def test_an_entry_covers_its_network_and_not_its_neighbours(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject
) -> None:
    network = ipaddress.ip_network((ip, data.draw(st.integers(1, ip.max_prefixlen))), strict=False)
    # No address for nginx, as an entry neither.
    assume(str(network[0]) not in ("255.255.255.255", "::ffff:255.255.255.255"))
    trusted, kong = TrustedNetworks([str(network)]), KongTrust([str(network)])
    first, last = int(network[0]), int(network[-1])
    for value, covered in ((first, True), (last, True), (first - 1, False), (last + 1, False)):
        if not 0 <= value < 1 << ip.max_prefixlen:
            continue
        probe = str(type(ip)(value))
        assert kong.trusts(probe) == covered
        # And those that are IPv4 for nginx.
        if probe != "255.255.255.255" and not probe.startswith("::ffff:"):
            assert trusted.covers(number(probe)) == covered


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("2001:db8::1", True), ("[2001:db8::1]", True), ("[2001:db8::1", False), ("2001:db8::1]", False),
        ("[[2001:db8::1]]", False), ("10.0.0.1", True), ("[10.0.0.1]", False), ("[]", False), ("", False),
    ],
)  # fmt: skip
def test_kong_takes_brackets_about_ipv6(peer: str, trusted: bool) -> None:
    """In entries and in addresses: where nginx is asked as well, it refuses them."""
    assert KongTrust(["[2001:db8::]/32", "10.0.0.0/8"]).trusts(peer) == trusted
    with pytest.raises(ValueError, match="brackets"):
        TrustedNetworks(["[2001:db8::]/32"])
