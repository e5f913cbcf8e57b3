"""Properties of the decision, and the things that are easily missed (reference, section 12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongrealip.address import Address, ipv6_text, parse_hop
from kongrealip.preamble import Preamble
from kongrealip.realip import KongTrust, PeerResolver, Rules, TrustedNetworks, resolve

BALANCER = Address("10.0.0.1", 1234)
TRUSTED = ["10.0.0.0/8", "2001:db8:1::/48"]
HEADERS = st.sampled_from(
    ["X-Forwarded-For", "X-Real-IP", "x-forwarded-for", "proxy_protocol", "CF-Connecting-IP"]
)
PIECES = st.sampled_from(
    ["10.0.0.2", "203.0.113.7", "203.0.113.7:80", "[2001:db8::1]:443", "::1", "::ffff:10.0.0.3",
     ",", " ", ", ", "junk", "1..3.4", "2001:db8:1::9", "\t", ":", "255.255.255.255", "0" * 5000]
)  # fmt: skip
LINES = st.lists(
    st.lists(PIECES, max_size=8).map(lambda pieces: "".join(pieces).encode()) | st.binary(max_size=40),
    max_size=4,
)
PREAMBLES = st.none() | st.builds(
    Preamble,
    st.just(1),
    st.just("PROXY"),
    st.none() | st.text(".:0123456789af", max_size=20),
    st.integers(0, 65535),
)


def rules(header: str = "X-Forwarded-For", recursive: bool = True) -> Rules:
    return Rules(TrustedNetworks(TRUSTED), header, recursive)


@given(
    st.ip_addresses().filter(lambda ip: str(ip) not in ("10.0.0.1",)).map(str)
    | st.sampled_from(["", "unix:", "testclient", "fe80::1%eth0"]),
    HEADERS,
    st.booleans(),
    PREAMBLES,
    LINES,
)
def test_an_untrusted_peer_never_changes_the_client(
    ip: str, header: str, recursive: bool, preamble: Preamble | None, lines: list[bytes]
) -> None:
    resolution = resolve(rules(header, recursive), Address(ip, 5), preamble, lines)
    if not resolution.peer_trusted:
        assert resolution.client == resolution.peer
        assert resolution.source == "peer"


@given(HEADERS, st.booleans(), PREAMBLES, LINES)
def test_the_client_is_an_address_that_reads_back(
    header: str, recursive: bool, preamble: Preamble | None, lines: list[bytes]
) -> None:
    """Nothing from the network raises, and nothing but an address comes out."""
    client = resolve(rules(header, recursive), BALANCER, preamble, lines).client
    again = parse_hop(client.ip)
    assert again is not None
    assert again[0] == client.ip
    assert client.port is None or 0 < client.port <= 65535


@given(LINES, st.booleans())
def test_a_single_line_leads_where_the_walk_leads(lines: list[bytes], recursive: bool) -> None:
    for line in (*lines, b"203.0.113.7", b"203.0.113.7:80", b"255.255.255.255"):
        hop = rules(recursive=recursive).walk([line])
        assert rules(recursive=recursive).reached(line) == (hop and (hop[0], hop[2]))


@given(LINES, LINES)
def test_what_is_remembered_changes_nothing(first: list[bytes], second: list[bytes]) -> None:
    """Proxies are remembered from walk to walk; a fresh start must say the same."""
    shared = PeerResolver(rules(), BALANCER, None)
    shared.resolve(first)
    assert shared.resolve(second) == resolve(rules(), BALANCER, None, second)


@given(st.lists(st.ip_addresses(), min_size=1, max_size=30), st.data())
def test_trust_is_membership(addresses: list[object], data: st.DataObject) -> None:
    """Against the standard library, for lists of networks that overlap in every way."""
    import ipaddress

    networks = []
    for address in addresses:
        ip = ipaddress.ip_address(str(address))
        prefix = data.draw(st.integers(0, ip.max_prefixlen))
        networks.append(ipaddress.ip_network(f"{ip}/{prefix}", strict=False))
    entries = [str(network) for network in networks if "255.255.255.255" not in str(network)]
    trusted = TrustedNetworks(entries)
    probe = ipaddress.ip_address(str(data.draw(st.sampled_from(addresses) | st.ip_addresses())))
    mapped = getattr(probe, "ipv4_mapped", None)
    number = (0xFFFF << 32 | int(mapped or probe)) if mapped or probe.version == 4 else int(probe)
    expected = any(
        (mapped or probe) in ipaddress.ip_network(entry)
        for entry in entries
        if ipaddress.ip_network(entry).version == (mapped or probe).version
    )
    assert trusted.covers(number) == expected


@pytest.mark.parametrize(
    ("text", "shown", "port"),
    [
        ("010.1.1.1", "10.1.1.1", 0),
        ("...", "0.0.0.0", 0),
        ("1..3.4", "1.0.3.4", 0),
        ("0000000001.2.3.4", "1.2.3.4", 0),
        ("::1:", "::0.1.0.0", 0),
        (":1::2", "1::2", 0),
        ("2001:db8::1:80", "2001:db8::1:80", 0),
        ("[2001:DB8::1]", "2001:db8::1", 0),
        ("[1.2.3.4]:080", "1.2.3.4", 80),
        ("1.2.3.4:" + "0" * 6000 + "1", "1.2.3.4", 1),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4", 0),
    ],
)
def test_addresses_that_nginx_takes(text: str, shown: str, port: int) -> None:
    hop = parse_hop(text)
    assert hop is not None
    assert (hop[0], hop[2]) == (shown, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":::", "255.255.255.255", "::ffff:255.255.255.255", "1.2.3", "1.2.3.4.5", "1.2.3.4:",
        "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:+80", "1.2.3.4:\uff18\uff10", "[::1", "[::1]80",
        "[1.2.3.4:80]", "[1.2.3.4:80]:90", "[[::1]]:80", "fe80::1%eth0", "1:2:3:4:5:6:7:",
        "1:2:3:4::5:6:7:8", "12345::", "\t1.2.3.4", "\xb203.0.113.7", "unix:", "unknown",
        "1.2.3.4:" + "9" * 6000,
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert parse_hop(text) is None


@pytest.mark.parametrize(
    ("groups", "shown"),
    [
        ((0, 0, 0, 0, 0, 0, 0, 0x100), "::0.0.1.0"),
        ((0, 0, 0, 0, 0, 0, 0, 0x101), "::101"),
        ((0, 0, 0, 0, 0, 0, 0, 0xFF), "::ff"),
        ((0, 0, 0, 0, 0, 0, 1, 2), "::0.1.0.2"),
        ((1, 0, 0, 2, 0, 0, 3, 4), "1::2:0:0:3:4"),
        ((1, 0, 2, 3, 4, 5, 6, 7), "1:0:2:3:4:5:6:7"),
        ((0, 0, 0, 0, 0, 0, 0, 0), "::"),
        ((1, 2, 3, 4, 5, 6, 0, 0), "1:2:3:4:5:6::"),
    ],
)
def test_how_ipv6_is_printed(groups: tuple[int, ...], shown: str) -> None:
    assert ipv6_text(groups) == shown


@pytest.mark.parametrize("recursive", [True, False])
def test_nothing_but_blanks_and_commas_is_taken_off_an_entry(recursive: bool) -> None:
    """In whichever place of a line, and whether it is taken apart or not."""
    entry = b"203.0.113.7"
    for byte in range(256):
        other, is_blank = bytes((byte,)), byte == ord(" ")
        if other.isdigit():
            continue
        for line, is_address in (
            (other + entry, is_blank),
            (entry + other, is_blank or other == b","),
            (b"6.6.6.6," + other + entry, is_blank or other == b","),
            (b"6.6.6.6 " + entry + other, is_blank or other == b","),
        ):
            client = resolve(rules(recursive=recursive), BALANCER, None, [line]).client
            assert (client.ip == "203.0.113.7") == is_address, line
            assert client.ip in ("203.0.113.7", BALANCER.ip)


def test_a_header_of_any_bytes() -> None:
    """As the environment gives them: what is no UTF-8 is compared byte by byte."""
    assert rules("X-\udcff\xe9").header_name == b"x-\xff\xc3\xa9"


def test_mapped_peer_is_judged_as_ipv4_for_replacement_and_as_ipv6_by_kong() -> None:
    peer = Address("::ffff:10.0.0.1", 1)
    assert resolve(rules(), peer, None, [b"203.0.113.7"]).client.ip == "203.0.113.7"
    assert not KongTrust(["10.0.0.0/8"]).trusts("::ffff:10.0.0.1")
    everything = Rules(TrustedNetworks(["::/0"]), "X-Forwarded-For", True)
    assert resolve(everything, peer, None, [b"203.0.113.7"]).client == peer


def test_a_long_list_is_walked_once() -> None:
    """100 kB of trusted proxies, and a client that stands first."""
    line = b"203.0.113.7, " + b", ".join(b"10.%d.%d.1" % divmod(i, 256) for i in range(8000))
    assert resolve(rules(), BALANCER, None, [line]).client.ip == "203.0.113.7"


def test_no_more_proxies_are_remembered_than_there_is_room_for() -> None:
    shared = rules()
    for first in range(3):
        for second in range(3000):
            proxy = b"10.%d.%d.%d" % (first, second >> 8, second & 255)
            assert resolve(shared, BALANCER, None, [b"203.0.113.7," + proxy]).client.ip == "203.0.113.7"
    assert 0 < len(shared._trusted_rests) <= 4096
