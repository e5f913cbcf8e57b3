"""The preamble reader: however the bytes arrive, and against an independent packer."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocol
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultLocal
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from kongrealip.errors import PreambleError
from kongrealip.preamble import DEFAULT_LIMIT, REASONS, Preamble, first_tlvs, parse
from tests import golden
from tests.faults.fuzz_preambles import Batch, run

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
WIRE = {
    vector["id"]: b"".join(golden.segments(vector))
    for vector in golden.load("realip")
    if vector["config"]["proxy_protocol"]
}
Outcome = tuple[Preamble, int] | str | None


def outcome(data: bytes, limit: int = DEFAULT_LIMIT) -> Outcome:
    try:
        return parse(data, limit)
    except PreambleError:
        return "refused"


def in_pieces(data: bytes) -> Outcome:
    """The first answer other than "more" when the bytes come one at a time."""
    for end in range(1, len(data) + 1):
        answer = outcome(data[:end])
        if answer is not None:
            return answer
    return None


@pytest.mark.parametrize("data", WIRE.values(), ids=WIRE)
def test_whole_byte_by_byte_and_with_a_tail(data: bytes) -> None:
    whole = outcome(data)
    assert in_pieces(data) == whole
    if isinstance(whole, tuple):
        end = whole[1]
        assert outcome(data[:end]) == whole, "what stands behind it is not looked at"
        assert outcome(data[:end] + b"\x16\x03\x01 or GET / HTTP/1.1\r\n\r\n") == whole
        assert outcome(data[: end - 1]) is None, "not one byte less is enough"


@given(st.binary(max_size=300) | st.builds(lambda tail: b"PROXY " + tail, st.binary(max_size=100)))
def test_only_the_documented_error(data: bytes) -> None:
    answer = outcome(data)
    if isinstance(answer, tuple):
        assert 0 < answer[1] <= len(data)


@given(st.binary(max_size=80), st.binary(max_size=80), st.integers(0, 255), st.integers(0, 255))
def test_version_2_is_consumed_exactly(body: bytes, tail: bytes, command: int, family: int) -> None:
    head = SIGNATURE + bytes((0x20 | command & 15, family)) + len(body).to_bytes(2, "big")
    answer = outcome(head + body + tail)
    if isinstance(answer, tuple):
        assert answer[1] == len(head) + len(body)
        assert answer[0].tlv_area == b"" or body.endswith(answer[0].tlv_area)
    else:
        assert answer == "refused", "nothing is missing, so nothing is waited for"


ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
PORTS = st.integers(0, 65535)


@pytest.mark.parametrize("protocol", [ProxyProtocolV1(), ProxyProtocolV2()], ids=["v1", "v2"])
@given(addresses=ADDRESSES, source_port=PORTS, destination_port=PORTS, tail=st.binary(max_size=20))
def test_second_opinion(
    protocol: ProxyProtocol,
    addresses: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    source_port: int,
    destination_port: int,
    tail: bytes,
) -> None:
    """The proxy-protocol package packs it, and the same values come out."""
    source, destination = addresses
    kind: Any = ProxyResultIPv4 if source.version == 4 else ProxyResultIPv6
    packed = protocol.pack(
        kind((source, source_port), (destination, destination_port), protocol=socket.SOCK_STREAM)
    )
    answer = parse(packed + tail)
    assert answer is not None
    preamble, end = answer
    assert end == len(packed)
    assert preamble.source_ip is not None
    assert preamble.destination_ip is not None
    assert type(source)(preamble.source_ip) == source
    assert type(destination)(preamble.destination_ip) == destination
    assert (preamble.source_port, preamble.destination_port) == (source_port, destination_port)


@given(st.dictionaries(st.integers(0xE0, 0xEF), st.binary(max_size=50), max_size=5))
def test_second_opinion_on_tlvs(values: dict[int, bytes]) -> None:
    ends = (IPv4Address("203.0.113.7"), 1), (IPv4Address("198.51.100.9"), 2)
    tlv = ProxyProtocolTLV(init=values)
    packed = ProxyProtocolV2().pack(ProxyResultIPv4(*ends, protocol=socket.SOCK_STREAM, tlv=tlv))
    answer = parse(packed)
    assert answer is not None
    assert first_tlvs(answer[0].tlv_area) == values


ENDS = bytes.fromhex("cb007107 c6336409 c350 01bb")
READ = {
    "version 1": (
        b"PROXY TCP4 203.0.113.7 198.51.100.9 50000 443\r\n",
        Preamble(1, "PROXY", "203.0.113.7", 50000, "198.51.100.9", 443),
    ),
    "UNKNOWN": (b"PROXY UNKNOWN 203.0.113.7\r\n", Preamble(1, "PROXY")),
    "version 2": (
        SIGNATURE + b"\x21\x11\x00\x11" + ENDS + b"\x01\x00\x02h2",
        Preamble(2, "PROXY", "203.0.113.7", 50000, "198.51.100.9", 443, b"\x01\x00\x02h2"),
    ),
    "version 2, IPv6": (
        SIGNATURE + b"\x21\x21\x00\x24" + IPv6Address("2001:db8::7").packed + bytes(15) + b"\1" + ENDS[8:],
        Preamble(2, "PROXY", "2001:db8::7", 50000, "::1", 443),
    ),
    # No address of TCP: nginx takes neither from them.
    "version 2, Unix": (SIGNATURE + b"\x21\x31\x00\x0c" + ENDS, Preamble(2, "PROXY")),
    "version 2, datagram": (SIGNATURE + b"\x21\x12\x00\x0c" + ENDS, Preamble(2, "PROXY")),
    "version 2, LOCAL": (SIGNATURE + b"\x20\x11\x00\x0c" + ENDS, Preamble(2, "LOCAL")),
}  # fmt: skip


@pytest.mark.parametrize(("data", "preamble"), READ.values(), ids=READ)
def test_every_field(data: bytes, preamble: Preamble) -> None:
    assert parse(data) == (preamble, len(data))


# Python's int() takes no more than 4300 digits.
@pytest.mark.parametrize("zeros", [0, 1, 5, 5000])
def test_a_port_is_a_number_however_long(zeros: int) -> None:
    def read(port: str) -> Outcome:
        line = f"PROXY TCP4 203.0.113.7 198.51.100.9 {'0' * zeros}{port} 443\r\n"
        return outcome(line.encode(), limit=65551)

    for port in 0, 80, 10000, 65535:
        found = read(str(port))
        assert isinstance(found, tuple)
        assert found[0].source_port == port
    for port in 65536, 99999, 100000:
        assert read(str(port)) == "refused"


def test_local() -> None:
    assert parse(ProxyProtocolV2().pack(ProxyResultLocal()))[0] == Preamble(2, "LOCAL")  # type: ignore[index]


def test_aws_health_check() -> None:
    """LOCAL with family 0x11, no address block, a CRC32C and a NOOP: the body is skipped whole."""
    data = SIGNATURE + b"\x20\x11\x00\x54" + b"\x03\x00\x04abcd" + b"\x04\x00\x4a" + bytes(74)
    assert parse(data + b"GET") == (Preamble(2, "LOCAL"), 100)


@pytest.mark.parametrize("limit", [107, 4096, 65551])
def test_the_limit_is_the_last_length_that_passes(limit: int) -> None:
    body = limit - 16
    head = SIGNATURE + b"\x21\x11"
    assert outcome(head + body.to_bytes(2, "big") + bytes(body), limit) != "refused"
    if body < 65535:
        # Refused as soon as the length is known, before it is held.
        assert outcome(head + (body + 1).to_bytes(2, "big"), limit) == "refused"
    line = b"PROXY UNKNOWN".ljust(limit - 2, b"x")
    assert outcome(line + b"\r\n", limit) == (Preamble(1, "PROXY"), limit)
    assert outcome(line + b"x", limit) is None
    assert outcome(line + b"xx", limit) == "refused"


REFUSED = [
    (b"GET / HTTP/1.1\r\n", "plain HTTP reached a proxy_protocol port", "http"),
    # As it is written to a proxy, and of a server as a whole.
    (b"GET http://a/ HTTP/1.1\r\n", "plain HTTP reached a proxy_protocol port", "http"),
    (b"GET https://a/ HTTP/1.1\r\n", "plain HTTP reached a proxy_protocol port", "http"),
    (b"OPTIONS * HTTP/1.1\r\n", "plain HTTP reached a proxy_protocol port", "http"),
    (b"\x16\x03\x01\x02\x00", "TLS without a preamble reached a proxy_protocol port", "tls"),
    (b"PROXY TCP5 ", "malformed version 1 preamble", "malformed"),
    # Not HTTP: what comes byte by byte is malformed before the slash.
    (b"PROXY https://x HTTP/1.1\r\n", "malformed version 1 preamble", "malformed"),
    (b"PROXY TCP4 1.1.1.1 2.2.2.2 70000 1\r\n", "version 1 preamble with a port above 65535", "port"),
    (b"SSH-2.0-x\r\n", "no PROXY preamble", "not_proxy"),
    (b" / HTTP/1.1\r\n", "no PROXY preamble", "not_proxy"),
    (SIGNATURE + b"\x11\x11\x00\x00", "PROXY version 1 is not known", "version"),
    (
        SIGNATURE + b"\x21\x11\x00\x02ab",
        "version 2 preamble of 18 bytes, too short for its addresses",
        "length",
    ),
    (
        SIGNATURE + b"\x21\x21\x00\x02ab",
        "version 2 preamble of 18 bytes, too short for its addresses",
        "length",
    ),
    (SIGNATURE + b"\x21\x11\xff\xff", "preamble of 65551 bytes, the limit is 4096", "too_long"),
    (b"PROXY UNKNOWN".ljust(4096), "preamble of more than 4096 bytes", "too_long"),
]


@pytest.mark.parametrize(("data", "text", "reason"), REFUSED)
def test_the_text_for_the_log_and_the_reason_for_metrics(data: bytes, text: str, reason: str) -> None:
    with pytest.raises(PreambleError, match=f"^{text}$") as caught:
        parse(data)
    assert caught.value.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    "data",
    [
        b"G", b"\x16", b"\r\n\r\n\x00\r\nQUIT\r", b"PROXY UNKNOWx", b"PROXY TCP5", b"PROXY TCP4 g",
        b"PROXY TCP4 1.1.1.1 2.2.2.2  ", b"PROXY TCP4 1.1.1.1 2.2.2.2 x", b"PROXY TCP4 1.1.1.1 2.2.2.2 1  ",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2x", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r",
    ],
)  # fmt: skip
def test_refused_with_the_first_byte_that_cannot_be(data: bytes) -> None:
    """Who is no balancer does not hold a connection until the deadline."""
    assert outcome(data[:-1]) is None
    assert outcome(data) == "refused"


def test_the_error_is_for_others_too() -> None:
    error = PreambleError("closed in the middle of its preamble", "cut_off")
    assert str(error) == "closed in the middle of its preamble"
    assert error.reason == "cut_off"


def test_a_short_run_of_the_fuzzer() -> None:
    counts = run(Batch(seed=2, numbers=range(6000), limit=None))
    assert not isinstance(counts, str), counts
    given = {(parser, word) for parser, word in counts}
    assert ("lenient", "accepted") in given
    assert {word for parser, word in given if parser == "strict"} == {"accepted", "incomplete", *REASONS}


def test_broken_tlvs_keep_what_stands_before_the_damage() -> None:
    assert first_tlvs(b"\x01\x00\x02h2" + b"\x01\x00\x02xx" + b"\x05\x00\x09short") == {1: b"h2"}
    assert first_tlvs(b"\x01\x00") == {}


def test_undefined_command() -> None:
    assert parse(SIGNATURE + b"\x27\x11\x00\x00") == (Preamble(2, "0x7"), 16)
