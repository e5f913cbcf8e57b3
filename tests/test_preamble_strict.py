"""Strict checking: what nginx lets pass and the PROXY protocol's specification forbids."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultUnix
from proxyprotocol.tlv import ProxyProtocolSSLTLV, ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from kongrealip.errors import PreambleError
from kongrealip.preamble import REASONS, Preamble, parse
from kongrealip.preamble.tlv import crc32c
from tests.faults.fuzz_preambles import Case, check
from tests.test_preamble import REFUSED as REFUSED_ANYWAY
from tests.test_preamble import SIGNATURE, WIRE

IPV4 = bytes.fromhex("cb007107 c6336409 c350 01bb")  # 203.0.113.7:50000, 198.51.100.9:443
IPV6 = bytes(15) + b"\1" + bytes(15) + b"\2" + IPV4[8:]
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
SSL = b"\x01" + bytes(4) + b"\x21\x00\x07TLSv1.3"

# Sent by HAProxy 2.8 with the options crc32c and unique-id.
HAPROXY = bytes.fromhex(
    "0d0a0d0a000d0a515549540a211100447f0000017f000001c79c4bbf03000404ac126905002e3746303030303031"
    "3a433739435f37463030303030313a344242465f36423035443337355f303030303a31303931"
)
# Two health checks of AWS, as they were published: kubernetes#57250, and without padding.
AWS_PADDED = SIGNATURE + bytes.fromhex("20110054 030004bce5951f 04004a") + bytes(74)
AWS = SIGNATURE + bytes.fromhex("20000007 030004a9b87e8f")


def v2(body: bytes = b"", command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def line(family: str, source: str, destination: str, ports: str = "50000 443") -> bytes:
    return f"PROXY {family} {source} {destination} {ports}\r\n".encode("ascii")


def refusal(data: bytes) -> PreambleError:
    with pytest.raises(PreambleError) as caught:
        parse(data, strict=True)
    return caught.value


ACCEPTED = {
    "v2 of HAProxy": HAPROXY,
    "health check of AWS": AWS_PADDED,
    "health check of AWS without padding": AWS,
    "LOCAL, all else wrong": v2(b"\x03\x00\x04abcd\x01", command=0x20, family=0xFF),
    "LOCAL without anything": v2(command=0x20, family=0),
    "IPv4 stream": v2(IPV4),
    "IPv4 datagram": v2(IPV4, family=0x12),
    "IPv6 stream": v2(IPV6, family=0x21),
    "Unix stream": v2(UNIX, family=0x31),
    "Unix datagram": v2(UNIX + tlv(4, b""), family=0x32),
    "unspecified": v2(family=0),
    "unspecified, its block is ignored": v2(b"anything", family=0),
    "unspecified family": v2(b"anything", family=0x01),
    "unspecified transport": v2(b"anything", family=0x10),
    "TLVs": v2(IPV4 + tlv(1, b"h2") + tlv(2, b"\xff is no UTF-8") + tlv(4, b"") + tlv(0xEA, b"\1vpce-0")),
    "the same type twice": v2(IPV4 + tlv(0xEA, b"a") + tlv(0xEA, b"b")),
    "longest unique id": v2(IPV4 + tlv(5, bytes(128))),
    "SSL": v2(IPV4 + tlv(0x20, SSL)),
    "SSL with nothing in it": v2(IPV4 + tlv(0x20, bytes(5))),
    "highest IPv4": line("TCP4", "255.255.255.255", "255.255.255.255", "65535 65535"),
    "lowest": line("TCP4", "0.0.0.0", "0.0.0.0", "0 0"),
    "longest IPv6": line("TCP6", "ffff:" * 7 + "ffff", "FFFF:" * 7 + "FFFF", "65535 65535"),
    "short IPv6": line("TCP6", "::", "::1"),
    "IPv6 with leading zeros in a group": line("TCP6", "2001:0db8::0001", "1:2:3:4:5:6:7::"),
    "IPv6 with IPv4 in it, behind a zero": line("TCP6", "0::1.2.3.4", "::1"),
    "IPv6 with IPv4 in it": line("TCP6", "::ffff:192.0.2.1", "1:2:3:4:5:6:1.2.3.4"),
    "UNKNOWN": b"PROXY UNKNOWN\r\n",
    "UNKNOWN with addresses": b"PROXY UNKNOWN 010.0.0.1 x 080 99999\r\n",
    "UNKNOWN with garbage": b"PROXY UNKNOWN\xff\n \r\x00TCP4\r\n",
    "UNKNOWN of 107 bytes": b"PROXY UNKNOWN".ljust(105, b"f") + b"\r\n",
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_with_the_same_value(data: bytes) -> None:
    lenient, strict = check(Case(data, cuts=tuple(range(len(data)))))
    assert strict == lenient
    assert isinstance(strict, tuple)


REFUSED = {
    "undefined command": (v2(IPV4, command=0x22), "command", "version 2 preamble with the undefined command 2"),
    "command before all else": (
        v2(b"", command=0x2F, family=0xFF), "command", "version 2 preamble with the undefined command 15",
    ),
    "undefined family": (v2(UNIX, family=0x41), "family", "version 2 preamble with the undefined family 4"),
    "undefined family, transport unspecified": (
        v2(family=0xF0), "family", "version 2 preamble with the undefined family 15",
    ),
    "undefined transport": (v2(IPV4, family=0x13), "transport", "version 2 preamble with the undefined transport 3"),
    "undefined transport, family unspecified": (
        v2(family=0x0F), "transport", "version 2 preamble with the undefined transport 15",
    ),
    "IPv4 datagram too short": (
        v2(IPV4[:-1], family=0x12), "length", "version 2 preamble of 27 bytes, too short for its addresses",
    ),
    "IPv6 datagram too short": (
        v2(IPV4, family=0x22), "length", "version 2 preamble of 28 bytes, too short for its addresses",
    ),
    "Unix too short": (
        v2(UNIX[:-1], family=0x31), "length", "version 2 preamble of 231 bytes, too short for its addresses",
    ),
    "TLV without a length": (v2(IPV4 + b"\1\0"), "tlv", "version 2 preamble with a TLV that reaches over its end"),
    "TLV too long": (
        v2(IPV4 + tlv(1, b"h2")[:-1]), "tlv", "version 2 preamble with a TLV that reaches over its end",
    ),
    "a byte behind the TLVs": (
        v2(UNIX + tlv(1, b"h2") + b"\4", family=0x31), "tlv",
        "version 2 preamble with a TLV that reaches over its end",
    ),
    "unique id too long": (
        v2(IPV4 + tlv(5, bytes(129))), "tlv", "version 2 preamble with a unique id of 129 bytes",
    ),
    "SSL too short": (v2(IPV4 + tlv(0x20, bytes(4))), "tlv", "version 2 preamble with an SSL TLV of 4 bytes"),
    "SSL with a broken TLV": (
        v2(IPV4 + tlv(0x20, SSL[:-1])), "tlv", "version 2 preamble with a TLV that reaches over its end",
    ),
    "wrong checksum": (HAPROXY[:-1] + b"2", "checksum", "version 2 preamble with a wrong checksum"),
    "checksum too short": (
        v2(IPV4 + tlv(3, bytes(3))), "checksum", "version 2 preamble with a checksum of 3 bytes",
    ),
    "checksum too long": (
        v2(IPV4 + tlv(3, bytes(5))), "checksum", "version 2 preamble with a checksum of 5 bytes",
    ),
    "two checksums": (
        v2(IPV4 + 2 * tlv(3, bytes(4))), "checksum", "version 2 preamble with two checksums",
    ),
    "TCP4 with IPv6": (
        line("TCP4", "::1", "1.2.3.4"), "family", "version 1 preamble with '::1' as TCP4 address",
    ),
    "TCP4 with IPv4 in IPv6": (
        line("TCP4", "1.2.3.4", "::ffff:1.2.3.4"), "family",
        "version 1 preamble with '::ffff:1.2.3.4' as TCP4 address",
    ),
    "TCP6 with IPv4": (
        line("TCP6", "::1", "1.2.3.4"), "family", "version 1 preamble with '1.2.3.4' as TCP6 address",
    ),
    "leading zero in an octet": (
        line("TCP4", "1.2.3.4", "10.0.0.010"), "leading_zero",
        "version 1 preamble with a leading zero in '010'",
    ),
    "leading zero behind an IPv6 address": (
        line("TCP6", "::1.2.3.04", "::1"), "leading_zero", "version 1 preamble with a leading zero in '04'",
    ),
    "leading zero in its first octet": (
        line("TCP6", "::01.2.3.4", "::1"), "leading_zero", "version 1 preamble with a leading zero in '01'",
    ),
    "leading zero in the source port": (
        line("TCP4", "1.2.3.4", "1.2.3.4", "080 1"), "leading_zero",
        "version 1 preamble with a leading zero in '080'",
    ),
    "leading zero in the destination port": (
        line("TCP4", "1.2.3.4", "1.2.3.4", "0 00"), "leading_zero",
        "version 1 preamble with a leading zero in '00'",
    ),
    "no address": (
        line("TCP4", "", "1.2.3.4"), "address", "version 1 preamble with '', which is no address",
    ),
    "no address that nginx takes for one": (
        line("TCP4", "1.2.3.4", "1..3.4"), "address", "version 1 preamble with '1..3.4', which is no address",
    ),
    "line of 108 bytes": (
        b"PROXY UNKNOWN".ljust(106, b"f") + b"\r\n", "too_long", "preamble of more than 107 bytes",
    ),
    "line that ends with the next one": (
        b"PROXY UNKNOWN\nGET /".ljust(200, b"f") + b"\r\n", "too_long", "preamble of more than 107 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason", "text"), REFUSED.values(), ids=REFUSED)
def test_refused_though_nginx_accepts_it(data: bytes, reason: str, text: str) -> None:
    lenient, strict = check(Case(data, cuts=tuple(range(len(data)))))
    assert isinstance(lenient, tuple)
    assert strict == reason
    assert str(refusal(data)) == text


def test_every_reason_is_listed_and_given() -> None:
    anyway = {reason for _, _, reason in REFUSED_ANYWAY}
    assert {*REASONS} == anyway | {reason for _, reason, _ in REFUSED.values()}
    assert len(REASONS) == len(set(REASONS))


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.", ".1.2.3", "a.b.c.d", ":", ":::", "1::2::3", "::1:",
        ":1::2", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:", ":1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "12345::",
        "1:2:3:4::5:6:7:8", "1.2.3.4::", "::1.2.3", "::1.2.3.256", "::1.2.3.4:5", "1:2:3:4:5:6:7:1.2.3.4",
        "1.2::1", "1.2:2:3:4:5:6:7:8",
    ],
)  # fmt: skip
def test_no_address(text: str) -> None:
    for family, other in ("TCP4", "1.2.3.4"), ("TCP6", "::1"):
        assert refusal(line(family, text, other)).reason == "address"
        assert refusal(line(family, other, text)).reason == "address"


@given(
    st.text("0123456789abcdefABCDEF:.", max_size=40)
    | st.lists(st.sampled_from(["", "0", "1", "a", "ffff", "12345", "1.2.3.4", "01.2.3.4"]), max_size=9).map(
        ":".join
    )
    | st.lists(st.integers(0, 260).map(str), min_size=3, max_size=5).map(".".join)
    | st.ip_addresses().map(str)
    | st.ip_addresses(v=6).map(lambda ip: ip.exploded)
)
def test_second_opinion_on_addresses(text: str) -> None:
    """The standard library reads the same addresses; nginx does not."""
    try:
        version: int = ip_address(text).version
    except ValueError:
        version = 0
    for family, other in (4, "1.2.3.4"), (6, "::1"):
        data = line(f"TCP{family}", text, other, "1 1")
        _, strict = check(Case(data))
        assert isinstance(strict, tuple) == (version == family)


@pytest.mark.parametrize("ending", [b"", b"!", b"\r\n", b" 1.2.3.4 1 1\r\n"], ids=repr)
@pytest.mark.parametrize("opening", [b"PROXY UNKNOWN ", b"PROXY TCP4 ", b"PROXY TCP6 "], ids=repr)
def test_a_line_is_refused_with_its_107th_byte(opening: bytes, ending: bytes) -> None:
    data = opening.ljust(107, b"1")
    assert parse(data[:106], strict=True) is None
    assert refusal(data).reason == "too_long"
    # As soon as it is known, and not for another reason when more has come already.
    assert refusal(data + ending).reason == "too_long"


def test_the_limit_still_counts() -> None:
    assert parse(b"PROXY UNKNOWN\r\n", 15, strict=True) == (Preamble(1, "PROXY"), 15)
    with pytest.raises(PreambleError, match=r"^preamble of more than 14 bytes$"):
        parse(b"PROXY UNKNOWN\r\n", 14, strict=True)
    with pytest.raises(PreambleError, match=r"^preamble of 28 bytes, the limit is 27$"):
        parse(v2(IPV4), 27, strict=True)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("22110000", "command"), ("21410100", "family"), ("21130100", "transport"),
        ("2111000b", "length"), ("21220023", "length"), ("213100d7", "length"),
    ],
)  # fmt: skip
def test_version_2_is_refused_with_its_16th_byte(head: str, reason: str) -> None:
    data = SIGNATURE + bytes.fromhex(head)
    assert parse(data[:15], strict=True) is None
    assert refusal(data).reason == reason


def slow_crc32c(data: bytes) -> int:
    """A bit at a time, from the high end, with the polynomial as it is printed."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= int(f"{byte:08b}"[::-1], 2) << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x1EDC6F41 if remainder >> 31 else 0)) & 0xFFFFFFFF
    return int(f"{remainder ^ 0xFFFFFFFF:032b}"[::-1], 2)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # these two of RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (AWS_PADDED[:19] + bytes(4) + AWS_PADDED[23:], 0xBCE5951F),
        (AWS[:19] + bytes(4), 0xA9B87E8F),
        (HAPROXY[:31] + bytes(4) + HAPROXY[35:], 0x04AC1269),
    ],
    ids=["nothing", "check value", "zeros", "ones", "AWS", "AWS without padding", "HAProxy"],
)
def test_known_checksums(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum == slow_crc32c(data)


@given(st.binary(max_size=200))
def test_second_opinion_on_checksums(data: bytes) -> None:
    assert crc32c(data) == slow_crc32c(data)


def test_the_checksum_finds_every_wrong_bit() -> None:
    for bit in range(16 * 8, len(HAPROXY) * 8):
        damaged = bytearray(HAPROXY)
        damaged[bit // 8] ^= 1 << bit % 8
        lenient, strict = check(Case(bytes(damaged)))
        assert isinstance(lenient, tuple)
        # A wrong type or length of a TLV breaks the others, or hides the checksum.
        hidden = bit // 8 == 28 and damaged[28] != 3
        assert strict in ("checksum", "tlv") or hidden


ENDS = (
    st.tuples(st.just(ProxyResultIPv4), st.ip_addresses(v=4), st.ip_addresses(v=4))
    | st.tuples(st.just(ProxyResultIPv6), st.ip_addresses(v=6), st.ip_addresses(v=6))
)  # fmt: skip
PORTS = st.tuples(st.integers(0, 65535), st.integers(0, 65535))
TYPES = st.sampled_from([1, 2, 4, 5, 0x30, 0xE0, 0xEA, 0xF0, 0xFF])


@given(
    ENDS,
    PORTS,
    st.dictionaries(TYPES, st.binary(max_size=128), max_size=5),
    st.booleans(),
    st.binary(max_size=9),
)
def test_second_opinion_on_whole_preambles(
    ends: tuple[
        type[ProxyResultIPv4 | ProxyResultIPv6], IPv4Address | IPv6Address, IPv4Address | IPv6Address
    ],
    ports: tuple[int, int],
    values: dict[int, bytes],
    secure: bool,
    tail: bytes,
) -> None:
    """The proxy-protocol package packs them; the checksum is put in here."""
    kind, source, destination = ends
    ssl = ProxyProtocolSSLTLV(init={0x21: b"TLSv1.3"}) if secure else None
    tlvs = ProxyProtocolTLV(init={**values, 3: bytes(4)}, ssl=ssl)
    result = kind((source, ports[0]), (destination, ports[1]), protocol=socket.SOCK_STREAM, tlv=tlvs)  # type: ignore[arg-type]
    packed = ProxyProtocolV2().pack(result)
    place = packed.index(tlv(3, bytes(4)), 16) + 3
    sealed = packed[:place] + slow_crc32c(packed).to_bytes(4, "big") + packed[place + 4 :]
    for data in sealed, ProxyProtocolV1().pack(result):
        lenient, strict = check(Case(data + tail))
        assert strict == lenient
        assert isinstance(strict, tuple)
        assert strict[1] == len(data)


def test_second_opinion_on_unix() -> None:
    packed = ProxyProtocolV2().pack(ProxyResultUnix("/run/a", "/run/b", protocol=socket.SOCK_STREAM))
    assert packed == v2(UNIX, family=0x31) == ACCEPTED["Unix stream"]


@pytest.mark.parametrize("data", WIRE.values(), ids=WIRE)
def test_strictness_never_accepts_more_nor_anything_else(data: bytes) -> None:
    check(Case(data, cuts=tuple(range(0, len(data), 7))))


@given(
    st.binary(max_size=120),
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 1.2.3.4 ", SIGNATURE, SIGNATURE + b"!"]),
)
def test_whatever_comes(data: bytes, opening: bytes) -> None:
    check(Case(opening + data, cuts=tuple(range(len(opening + data)))))


@given(st.integers(0x20, 0x22), st.integers(0, 0x44), st.binary(max_size=60), st.binary(max_size=20))
def test_whatever_version_2_says(command: int, family: int, body: bytes, tail: bytes) -> None:
    check(Case(v2(body, command, family) + tail, cuts=(14, 16, 20, 40)))
