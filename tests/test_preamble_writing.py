"""The preambles that are sent on: exact bytes, a second opinion, and the way back through the reader."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocol
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultLocal
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from kongrealip.address import Address, ipv4_text, ipv6_text
from kongrealip.preamble import Preamble, first_tlvs, parse
from kongrealip.preamble.tlv import CRC32C, NOOP, crc32c, entries
from kongrealip.preamble.writing import LOCAL_V2, UNKNOWN_V1, kept_tlvs, tlv, v1, v2
from tests.test_preamble import SIGNATURE
from tests.test_preamble_strict import HAPROXY

CLIENT, LISTENER = Address("203.0.113.7", 50000), Address("198.51.100.9", 443)
CLIENT_6, LISTENER_6 = Address("2001:db8::7", 50000), Address("::1", 443)
LONGEST = 65551


def printed(address: IPv4Address | IPv6Address) -> str:
    """As nginx prints it, which is how addresses arrive here."""
    if isinstance(address, IPv4Address):
        return ipv4_text(*address.packed)
    packed = address.packed
    return ipv6_text([packed[i] << 8 | packed[i + 1] for i in range(0, 16, 2)])


def mapped(text: str) -> str:
    return text if ":" in text else f"::ffff:{text}"


def read(data: bytes) -> Preamble:
    """What the strict reader makes of all of it."""
    answer = parse(data, limit=LONGEST, strict=True)
    assert answer is not None
    assert answer[1] == len(data)
    return answer[0]


PORTS = st.none() | st.integers(0, 65535)
IPV4 = st.builds(Address, st.ip_addresses(v=4).map(printed), PORTS)
IPV6 = st.builds(Address, st.ip_addresses(v=6).map(printed), PORTS)
ENDS = IPV4 | IPV6
NO_ADDRESS = st.builds(
    Address, st.sampled_from(["", "unix:", "x", "1.2.3.4:5", "[::1]:5", "1.2.3.4%eth0"]), PORTS
)
SMALL = st.binary(max_size=40)
# Types with a form of their own are left to cases of their own.
TLV = st.builds(tlv, st.sampled_from([1, 2, NOOP, 0x30, 0xE0, 0xEA]), SMALL)
CHECKSUM = st.builds(tlv, st.just(CRC32C), st.binary(min_size=4, max_size=4))
AREA = st.lists(TLV | CHECKSUM | st.builds(tlv, st.just(CRC32C), SMALL), max_size=8).map(b"".join)


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (CLIENT, LISTENER, b"PROXY TCP4 203.0.113.7 198.51.100.9 50000 443\r\n"),
        (CLIENT_6, LISTENER_6, b"PROXY TCP6 2001:db8::7 ::1 50000 443\r\n"),
        (Address("10.0.0.1", None), Address("10.0.0.2", None), b"PROXY TCP4 10.0.0.1 10.0.0.2 0 0\r\n"),
        (Address("fe80::1%eth0", 1), Address("fe80::2%3", 2), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        (
            Address("::0.0.1.0", 1),
            Address("::ffff:1.2.3.4", 2),
            b"PROXY TCP6 ::0.0.1.0 ::ffff:1.2.3.4 1 2\r\n",
        ),
        (CLIENT, Address("255.255.255.255", 9), b"PROXY TCP4 203.0.113.7 255.255.255.255 50000 9\r\n"),
        (Address("1..3.4", 1), Address("010.0.0.1", 2), b"PROXY TCP4 1.0.3.4 10.0.0.1 1 2\r\n"),
        (CLIENT, LISTENER_6, UNKNOWN_V1),
        (CLIENT_6, LISTENER, UNKNOWN_V1),
        (CLIENT, Address("::ffff:198.51.100.9", 443), UNKNOWN_V1),
        (CLIENT, Address("unix:", None), UNKNOWN_V1),
        (Address("unix:", None), LISTENER, UNKNOWN_V1),
        (Address("", None), Address("", None), UNKNOWN_V1),
    ],
)
def test_the_line_of_version_1(source: Address, destination: Address, line: bytes) -> None:
    assert v1(source, destination) == line
    assert UNKNOWN_V1 == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    ("source", "destination", "behind_signature"),
    [
        (CLIENT, LISTENER, "2111000c cb007107 c6336409 c350 01bb"),
        (Address("10.0.0.1", None), Address("255.255.255.255", 9), "2111000c 0a000001 ffffffff 0000 0009"),
        (Address("fe80::1%eth0", 1), LISTENER_6, f"21210024 fe80{'00' * 13}01 {'00' * 15}01 0001 01bb"),
        (CLIENT, LISTENER_6, f"21210024 {'00' * 10}ffffcb007107 {'00' * 15}01 c350 01bb"),
        (LISTENER_6, CLIENT, f"21210024 {'00' * 15}01 {'00' * 10}ffffcb007107 01bb c350"),
        (Address("::ffff:203.0.113.7", 50000), LISTENER,
         f"21210024 {'00' * 10}ffffcb007107 {'00' * 10}ffffc6336409 c350 01bb"),
        (CLIENT, Address("unix:", None), "20000000"),
        (Address("", None), LISTENER, "20000000"),
    ],
)  # fmt: skip
def test_the_header_of_version_2(source: Address, destination: Address, behind_signature: str) -> None:
    assert v2(source, destination) == SIGNATURE + bytes.fromhex(behind_signature)
    assert SIGNATURE + bytes.fromhex("20000000") == LOCAL_V2


@pytest.mark.parametrize("protocol", [ProxyProtocolV1(), ProxyProtocolV2()], ids=["v1", "v2"])
@given(ends=st.tuples(IPV4, IPV4) | st.tuples(IPV6, IPV6))
def test_second_opinion(protocol: ProxyProtocol, ends: tuple[Address, Address]) -> None:
    """The proxy-protocol package reads the same, and packs the same bytes."""
    source, destination = ((ip_address(end.ip), end.port or 0) for end in ends)
    written = (v1 if isinstance(protocol, ProxyProtocolV1) else v2)(*ends)
    result = protocol.unpack(written)
    assert (result.source, result.dest) == (source, destination)
    kind: Any = ProxyResultIPv4 if source[0].version == 4 else ProxyResultIPv6
    packed = protocol.pack(kind(source, destination, protocol=socket.SOCK_STREAM))
    if isinstance(protocol, ProxyProtocolV2) or source[0].version == 4:
        assert written == packed
    else:
        # Of version 1 the spelling differs: the package has Python's.
        assert [str(ip_address(text)) for text in written.decode().split(" ")[2:4]] == packed.decode().split(
            " "
        )[2:4]


def test_second_opinion_on_local() -> None:
    assert ProxyProtocolV2().pack(ProxyResultLocal()) == LOCAL_V2


@given(st.dictionaries(st.integers(0xE0, 0xEF), SMALL, max_size=5))
def test_second_opinion_on_tlvs(values: dict[int, bytes]) -> None:
    ends = (IPv4Address(CLIENT.ip), CLIENT.port), (IPv4Address(LISTENER.ip), LISTENER.port)
    kind: Any = ProxyResultIPv4
    result = kind(*ends, protocol=socket.SOCK_STREAM, tlv=ProxyProtocolTLV(init=values))
    area = b"".join(tlv(number, value) for number, value in sorted(values.items()))
    written = v2(CLIENT, LISTENER, area)
    assert written == ProxyProtocolV2().pack(result)
    assert dict(ProxyProtocolV2().unpack(written).tlv) == values


@given(IPV4 | IPV6 | NO_ADDRESS, IPV4 | IPV6 | NO_ADDRESS)
def test_version_1_comes_back(source: Address, destination: Address) -> None:
    written = v1(source, destination)
    assert len(written) <= 107
    preamble = read(written)
    if written == UNKNOWN_V1:
        known = is_address(source.ip) and is_address(destination.ip)
        assert not known or (":" in source.ip) != (":" in destination.ip)
    else:
        assert preamble[2:6] == (source.ip, source.port or 0, destination.ip, destination.port or 0)
        # Never a mixed line: the strict reader has compared both addresses with the word.
        assert written.startswith(b"PROXY TCP6 " if ":" in source.ip else b"PROXY TCP4 ")


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@given(ENDS, ENDS, AREA)
def test_version_2_comes_back(source: Address, destination: Address, area: bytes) -> None:
    kept = kept_tlvs(area)
    preamble = read(v2(source, destination, kept))
    one, other = source.ip, destination.ip
    if ":" in one + other:
        one, other = mapped(one), mapped(other)
    assert preamble[:6] == (2, "PROXY", one, source.port or 0, other, destination.port or 0)
    assert without_checksums(preamble.tlv_area) == without_checksums(kept)
    assert [start for _, start, _ in entries(preamble.tlv_area)] == [start for _, start, _ in entries(kept)]


def without_checksums(area: bytes) -> list[tuple[int, bytes]]:
    return [(kind, b"" if kind == CRC32C else value) for kind, _, value in entries(area)]


@given(NO_ADDRESS, ENDS | NO_ADDRESS, AREA)
def test_no_address_is_local(one: Address, other: Address, area: bytes) -> None:
    assert v2(one, other, area) == v2(other, one, area) == LOCAL_V2
    assert v1(one, other) == v1(other, one) == UNKNOWN_V1


@given(ENDS, ENDS, AREA, AREA)
def test_the_checksum_is_right(source: Address, destination: Address, before: bytes, behind: bytes) -> None:
    kept = kept_tlvs(before + tlv(CRC32C, b"old!") + behind)
    written = v2(source, destination, kept)
    (value,) = (value for kind, _, value in entries(read(written).tlv_area) if kind == CRC32C)
    place = written.index(tlv(CRC32C, value)) + 3
    assert crc32c(written[:place] + bytes(4) + written[place + 4 :]).to_bytes(4, "big") == value


def test_the_checksum_of_haproxy_is_written_again() -> None:
    """Sent by HAProxy with a checksum: the same addresses and TLVs make the same bytes."""
    preamble = read(HAPROXY)
    assert preamble.source_ip is not None
    assert preamble.destination_ip is not None
    source = Address(preamble.source_ip, preamble.source_port)
    destination = Address(preamble.destination_ip, preamble.destination_port)
    spoilt = preamble.tlv_area.replace(first_tlvs(preamble.tlv_area)[CRC32C], b"\0\1\2\3")
    assert v2(source, destination, kept_tlvs(spoilt)) == HAPROXY


def test_what_looks_like_a_checksum_inside_a_value_is_left_alone() -> None:
    area = tlv(0xEA, b"\x03\x00\x04abcd")
    assert v2(CLIENT, LISTENER, area).endswith(area)


@pytest.mark.parametrize(("listener", "room"), [(LISTENER, 65523), (LISTENER_6, 65499)])
def test_what_has_no_room_is_dropped_from_the_end(listener: Address, room: int) -> None:
    first, second = tlv(1, b"h2"), tlv(0xEA, bytes(room - 5 - 3))
    assert read(v2(CLIENT, listener, first + second)).tlv_area == first + second, "the last length that fits"
    assert read(v2(CLIENT, listener, first + second + tlv(2, b""))).tlv_area == first + second
    assert read(v2(CLIENT, listener, first + tlv(0xEA, bytes(room - 5 - 2)))).tlv_area == first
    assert read(v2(CLIENT, listener, tlv(0xEA, bytes(room - 2)) + first)).tlv_area == b""


def test_a_checksum_is_of_what_is_left() -> None:
    area = tlv(CRC32C, bytes(4)) + tlv(1, b"h2") + tlv(0xEA, bytes(65520))
    assert first_tlvs(read(v2(CLIENT, LISTENER_6, area)).tlv_area).keys() == {CRC32C, 1}


def test_what_is_kept() -> None:
    checksum = tlv(CRC32C, b"abcd")
    area = b"".join(
        (tlv(1, b"h2"), tlv(CRC32C, b""), tlv(NOOP, bytes(9)), checksum, tlv(0xEA, b"a"), checksum,
         tlv(0xEA, b"b"), tlv(CRC32C, bytes(5)), tlv(2, b""))
    )  # fmt: skip
    kept = tlv(1, b"h2"), checksum, tlv(0xEA, b"a"), tlv(0xEA, b"b"), tlv(2, b"")
    assert kept_tlvs(area) == b"".join(kept)
    assert kept_tlvs(area, replaced={1, 0xEA}) == checksum + tlv(2, b"")
    assert kept_tlvs(area, replaced=(CRC32C,)) == b"".join(kept[:1] + kept[2:])
    assert kept_tlvs(tlv(1, b"h2") + b"\x01\x00\x09short") == tlv(1, b"h2"), "up to the damage"
    assert kept_tlvs(b"") == b""


@given(AREA | st.binary(max_size=60), st.sets(st.integers(0, 255)))
def test_keeping_twice_is_keeping_once(area: bytes, replaced: set[int]) -> None:
    kept = kept_tlvs(area, replaced)
    assert kept_tlvs(kept, replaced) == kept
    assert sum(3 + len(value) for _, _, value in entries(kept)) == len(kept), "whole entries only"
    assert not {kind for kind, _, _ in entries(kept)} & replaced


@given(st.integers(0, 255), st.binary(max_size=300))
def test_one_entry(kind: int, value: bytes) -> None:
    assert list(entries(tlv(kind, value))) == [(kind, 3, value)]
