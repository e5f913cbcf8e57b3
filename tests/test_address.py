"""How addresses are read and printed, against the standard library where nginx agrees with it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kongrealip.address import bounded_decimal, ipv4_text, ipv6_text, parse_hop, plain_ipv4

MAPPED = 0xFFFF_0000_0000
#: What nginx takes for no address at all, where it is written with dots.
NONE = MAPPED | 0xFFFF_FFFF
#: Mostly zeros, so that runs of them meet in every way.
GROUPS = st.lists(
    st.sampled_from([0, 0, 0, 1, 0xFF, 0x100, 0x101, 0xFFFF]) | st.integers(0, 0xFFFF), min_size=8, max_size=8
)


def number_of(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return int(ip) if ip.version == 6 else MAPPED | int(ip)


@given(st.ip_addresses().filter(lambda ip: number_of(ip) != NONE), st.integers(1, 65535))
def test_a_usual_address_is_read_with_and_without_port(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    hop = parse_hop(str(ip))
    assert hop is not None
    assert hop[1:] == (number_of(ip), 0)
    text = f"[{ip}]" if ip.version == 6 else str(ip)
    assert parse_hop(f"{text}:{port}") == (*hop[:2], port)
    assert parse_hop(f"[{ip}]:0{port}") == (*hop[:2], port)
    assert parse_hop(f"[{ip}]") == hop
    assert ipaddress.ip_address(hop[0]) == ip


@given(st.ip_addresses(v=4).map(str) | st.text("0123456789.: ", max_size=16) | st.ip_addresses(v=6).map(str))
def test_a_plain_address_is_what_is_read_otherwise(text: str) -> None:
    plain, hop = plain_ipv4(text.encode()), parse_hop(text)
    assert plain is None or hop == (plain, hop and hop[1], 0)
    if hop is not None and hop[0] == text and ":" not in text:
        assert plain == text


@pytest.mark.parametrize("place", range(4))
def test_what_is_no_plain_address(place: int) -> None:
    for octet in ("", "256", "01", "1 ", "x", "1.1"):
        octets = ["1", "2", "3", "4"]
        octets[place] = octet
        assert plain_ipv4(".".join(octets).encode()) is None
    assert plain_ipv4(b"255.255.255.254") == "255.255.255.254"
    for text in (b"255.255.255.255", b"1.2.3", b"1.2.3.4:80", b"1.2.3.4,5.6.7.8", b""):
        assert plain_ipv4(text) is None


@given(GROUPS)
def test_what_is_printed_is_the_address(groups: list[int]) -> None:
    """In nginx's spelling, which the standard library reads, and which comes back as it is."""
    number = int.from_bytes(b"".join(group.to_bytes(2, "big") for group in groups), "big")
    text = ipv6_text(groups)
    assert int(ipaddress.IPv6Address(text)) == number
    assert ipv6_text(tuple(groups)) == text
    assume(number != NONE)
    exploded = ipaddress.IPv6Address(number).exploded
    for spelt in (text, exploded, exploded.upper()):
        assert parse_hop(spelt) == (text, number, 0)


@given(
    st.lists(st.integers(0, 255), min_size=4, max_size=4), st.lists(st.integers(0, 5), min_size=4, max_size=4)
)
def test_octets_with_zeros_in_front_are_decimal(octets: list[int], zeros: list[int]) -> None:
    plain = ".".join(map(str, octets))
    padded = ".".join("0" * count + str(octet) for octet, count in zip(octets, zeros, strict=True))
    assert parse_hop(padded) == parse_hop(plain)
    assert ipv4_text(*octets) == plain


@pytest.mark.parametrize("place", range(4))
def test_each_octet_has_its_limit(place: int) -> None:
    for octet, is_one in (
        ("255", True),
        ("0255", True),
        ("256", False),
        ("0256", False),
        ("1000", False),
        ("", True),
    ):
        octets = ["1", "2", "3", "4"]
        octets[place] = octet
        assert (parse_hop(".".join(octets)) is not None) == is_one


@pytest.mark.parametrize(
    "text", ["255.255.255.255", "0255.255.255.255", "::ffff:255.255.255.255", "::ffff:ffff:ffff"]
)
def test_the_one_address_that_is_none(text: str) -> None:
    """nginx means "no address" by its value, and finds it in dotted text only."""
    for spelt in (text, f"[{text}]:80"):
        assert (parse_hop(spelt) is None) == ("." in text)
    assert parse_hop("255.255.255.254") is not None
    assert parse_hop("0255.255.255.254") is not None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1:2:3:4:5:6:1.2.3.4", 0x0001_0002_0003_0004_0005_0006_0102_0304),
        ("::1.2.3.4", 0x0102_0304),
        ("1::1.2.3.4", 1 << 112 | 0x0102_0304),
        ("1:2:3:4:5::1.2.3.4", 0x0001_0002_0003_0004_0005_0000_0102_0304),
        ("::255.255.255.254", 0xFFFF_FFFE),
        ("::1.2..4", 0x0102_0004),
        ("::2:3:4:5:6:7:8", 0x0002_0003_0004_0005_0006_0007_0008),
        ("1::", 1 << 112),
        (":1:2:3:4:5:6:7:8", 0x0001_0002_0003_0004_0005_0006_0007_0008),
    ],
)
def test_ipv6_that_is_read(text: str, number: int) -> None:
    hop = parse_hop(text)
    assert hop is not None
    assert hop[1:] == (number, 0)


@pytest.mark.parametrize(
    "text",
    [
        "1:2:3:4:5:6:7:1.2.3.4", "1:2:3:4:5:1.2.3.4", "1:2:3:4:5:6::1.2.3.4", "::.1.2.3", "1.2.3.4::", "::1.2.3",
        "::1.2.3.256", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::", "::1:2:3:4:5:6:7:8:9", "::1:2:3:4:5:6:7:1.2.3.4", "::1::2", "1:::2", "g::", "::g", "::12345", "1", "12", "1:",
        "::1.2.3.4:5", "::255.255.255.255",
    ],
)  # fmt: skip
def test_ipv6_that_is_not_read(text: str) -> None:
    assert parse_hop(f"[{text}]:80") is None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 50))
def test_a_number_up_to_a_limit(value: int, limit: int, zeros: int) -> None:
    text = "0" * zeros + str(value)
    assert bounded_decimal(text, limit) == (value if value <= limit else None)
    for other in ("", "-" + text, "+" + text, text + " ", " " + text, text + ".", "\u0663"):
        assert bounded_decimal(other, limit) is None
