"""What the upstream is told: every preamble in, from friend and stranger, in every form out, byte for byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from kongrealip.preamble import parse
from kongrealip.preamble.tlv import CRC32C, NOOP, crc32c
from kongrealip.preamble.writing import tlv
from tests.lab import LOOPS
from tests.relay_lab import RelayLab, exactly, segments_in, to_the_end
from tests.running import LOOPBACK, wait_until

FORMS = ("off", "v1", "v2")
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FRIEND, STRANGER = LOOPBACK, "127.0.0.9"
FRIEND_6 = "::1"
LONGEST = 65551
TRUST = {"KONG_TRUSTED_IPS": f"{FRIEND}/32, {FRIEND_6}/128", "KONGREALIP_PREAMBLE_MAX_BYTES": str(LONGEST)}
DATA = b"PROXY is what the client says, too\r\n"


class Told(NamedTuple):
    """Two addresses as they are to be told, and what stands behind them in version 2."""

    source: tuple[str, int]
    destination: tuple[str, int]
    tlvs: bytes = b""


#: That there is nothing to tell.
NOTHING = None
CLIENT, SERVICE = ("203.0.113.7", 51000), ("198.51.100.9", 443)
CLIENT_6, SERVICE_6 = ("2001:db8::7", 51000), ("2001:db8::9", 443)
# Stands for the end of the connection itself: only the test that connects knows it.
ITSELF = ("", 0)
PEER = Told(ITSELF, ITSELF)
AS_SENT = Told(CLIENT, SERVICE)


ALPN, NAME, ID, OURS = tlv(1, b"h2"), tlv(2, b"example.test"), tlv(5, b"id"), tlv(0xEA, b"\x01vpce-1")
SSL = tlv(0x20, b"\x01\x00\x00\x00\x00" + tlv(0x21, b"TLSv1.2") + tlv(0x22, b"somebody"))
SUM, PADDING = tlv(CRC32C, bytes(4)), tlv(NOOP, b"\x00" * 9)
WRONG_SUM = tlv(CRC32C, b"\xde\xad\xbe\xef")


def form_v1(told: Told | None) -> bytes:
    """As section 2.1 has it."""
    if told is None:
        return b"PROXY UNKNOWN\r\n"
    (source, source_port), (destination, port), _ = told
    if (":" in source) != (":" in destination):
        return b"PROXY UNKNOWN\r\n"
    family = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {family} {source} {destination} {source_port} {port}\r\n".encode()


def form_v2(told: Told | None, kind: int = 0x11, command: int = 0x21) -> bytes:
    """As section 2.2 has it."""
    if told is None:
        return SIGNATURE + b"\x20\x00\x00\x00"
    (source, source_port), (destination, port), tlvs = told
    texts = [source, destination]
    if ":" in source + destination:
        texts = [text if ":" in text else f"::ffff:{text}" for text in texts]
        kind = kind & 0x0F | 0x20
    body = b"".join(ip_address(text).packed for text in texts) + struct.pack("!HH", source_port, port) + tlvs
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def with_checksum(header: bytes) -> bytes:
    """A header with the right checksum where it has zeros yet."""
    place = header.index(SUM) + 3
    return header[:place] + crc32c(header).to_bytes(4, "big") + header[place + 4 :]


def out(form: str, told: Told | None) -> bytes:
    if form == "off":
        return b""
    made = form_v1(told) if form == "v1" else form_v2(told)
    return with_checksum(made) if SUM in made else made


def v1(line: str) -> bytes:
    return f"PROXY {line}\r\n".encode()


def v2(*tlvs: bytes) -> bytes:
    return form_v2(Told(CLIENT, SERVICE, b"".join(tlvs)))


def kept(*tlvs: bytes) -> Told:
    return Told(CLIENT, SERVICE, b"".join(tlvs))


#: What a peer sends, and what is told where it is trusted. "" stands for the peer's own end.
CASES: dict[str, tuple[bytes, Told | None]] = {
    "v1 TCP4": (v1("TCP4 203.0.113.7 198.51.100.9 51000 443"), AS_SENT),
    "v1 TCP6": (v1("TCP6 2001:db8::7 2001:db8::9 51000 443"), Told(CLIENT_6, SERVICE_6)),
    "v1 TCP6 in another spelling": (v1("TCP6 2001:DB8:0:0::7 2001:db8::9 51000 443"), Told(CLIENT_6, SERVICE_6)),
    "v1 UNKNOWN": (v1("UNKNOWN"), NOTHING),
    "v1 UNKNOWN with addresses": (v1("UNKNOWN 203.0.113.7 198.51.100.9 51000 443"), NOTHING),
    "v1 ports 0": (v1("TCP4 203.0.113.7 198.51.100.9 0 0"), Told((CLIENT[0], 0), (SERVICE[0], 0))),
    "v1 families differ": (v1("TCP4 203.0.113.7 2001:db8::9 51000 443"), Told(CLIENT, SERVICE_6)),
    "v1 families differ otherwise": (v1("TCP6 2001:db8::7 198.51.100.9 51000 443"), Told(CLIENT_6, SERVICE)),
    "v1 the wrong family's word": (v1("TCP6 203.0.113.7 198.51.100.9 51000 443"), AS_SENT),
    "v1 source is no address": (v1("TCP4 203.0.113 198.51.100.9 51000 443"), PEER),
    "v1 source is empty": (v1("TCP4  198.51.100.9 51000 443"), PEER),
    "v1 source is everybody": (v1("TCP4 255.255.255.255 198.51.100.9 51000 443"), PEER),
    "v1 destination is no address": (v1("TCP4 203.0.113.7 198.51.100 51000 443"), Told(CLIENT, ITSELF)),
    "v1 destination with a port": (v1("TCP4 203.0.113.7 198.51.100.9:80 51000 443"), AS_SENT),
    "v1 source with a port": (v1("TCP4 203.0.113.7:80 198.51.100.9 51000 443"), AS_SENT),
    "v2 IPv4": (v2(), AS_SENT),
    "v2 IPv6": (form_v2(Told(CLIENT_6, SERVICE_6, OURS)), Told(CLIENT_6, SERVICE_6, OURS)),
    "v2 mapped": (
        form_v2(Told(("::ffff:203.0.113.7", 1), ("::ffff:198.51.100.9", 2))),
        Told(("::ffff:203.0.113.7", 1), ("::ffff:198.51.100.9", 2)),
    ),
    "v2 families differ": (
        form_v2(Told(("::ffff:203.0.113.7", 1), SERVICE_6)), Told(("::ffff:203.0.113.7", 1), SERVICE_6)),
    "v2 LOCAL": (SIGNATURE + b"\x20\x00\x00\x00", NOTHING),
    "v2 LOCAL with addresses": (form_v2(kept(NAME), command=0x20), NOTHING),
    "v2 UNSPEC": (SIGNATURE + b"\x21\x00\x00\x00", NOTHING),
    "v2 UNSPEC with a tail": (SIGNATURE + b"\x21\x00\x00\x0f" + NAME, NOTHING),
    "v2 UNIX": (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), NOTHING),
    "v2 DGRAM": (form_v2(AS_SENT, kind=0x12), NOTHING),
    "v2 undefined command": (form_v2(AS_SENT, command=0x27), NOTHING),
    "v2 TLVs": (v2(ALPN, NAME, ID, OURS), kept(ALPN, NAME, ID, OURS)),
    "v2 a type twice": (v2(OURS, NAME, OURS, tlv(0xEA, b"")), kept(OURS, NAME, OURS, tlv(0xEA, b""))),
    "v2 of SSL": (v2(SSL, tlv(0x30, b"ns")), kept(SSL, tlv(0x30, b"ns"))),
    "v2 padding": (v2(PADDING, NAME, PADDING, tlv(NOOP, b"")), kept(NAME)),
    "v2 padding alone": (v2(PADDING), AS_SENT),
    "v2 checksum": (with_checksum(v2(NAME, SUM, OURS)), kept(NAME, SUM, OURS)),
    "v2 checksum, padded": (with_checksum(v2(PADDING, SUM, OURS)), kept(SUM, OURS)),
    "v2 wrong checksum": (v2(NAME, WRONG_SUM, OURS), kept(NAME, SUM, OURS)),
    "v2 two checksums": (v2(WRONG_SUM, NAME, WRONG_SUM), kept(SUM, NAME)),
    "v2 checksum of another size": (v2(tlv(CRC32C, b"abc"), NAME), kept(NAME)),
    "v2 checksum within another TLV": (v2(tlv(0xEA, WRONG_SUM)), kept(tlv(0xEA, WRONG_SUM))),
    "v2 damaged tail": (v2(NAME, b"\xea\x00\x09short"), kept(NAME)),
    "v2 damaged from the beginning": (v2(b"\x02\xff"), AS_SENT),
}  # fmt: skip


class Line:
    """A relay that sends one form on, and its listeners."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.lab = RelayLab({**TRUST, "KONGREALIP_SEND_PROXY": form})
        self.lab.add_upstream()
        self.plain = self.lab.listen()
        self.preamble = self.lab.listen("proxy_protocol")
        self.plain_6 = self.lab.listen(host="[::1]")
        self.preamble_6 = self.lab.listen("proxy_protocol", host="[::1]")
        self.anywhere = self.lab.listen(host="0.0.0.0")
        self.both = self.lab.listen("ipv6only=off", host="[::]")

    def received(
        self, port: int, peer: str, *pieces: bytes, to: str | None = None
    ) -> tuple[bytes, socket.socket]:
        """All that comes to the upstream of what one client sends, and the client."""
        client = self.lab.connect(port, peer, to)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return to_the_end(self.lab.upstream.accept()), client


@pytest.fixture(scope="module", params=[(loop, form) for loop in LOOPS for form in FORMS], ids="-".join)
def running(request: pytest.FixtureRequest) -> Iterator[Line]:
    loop, form = request.param
    line = Line(form)
    with line.lab.running(loop):
        yield line


@pytest.fixture
def line(running: Line) -> Iterator[Line]:
    yield running
    running.lab.clean()


def filled_in(told: Told | None, client: socket.socket) -> Told | None:
    """With the ends of the connection where they are told."""
    if told is None:
        return None
    ends = client.getsockname()[:2], client.getpeername()[:2]
    source, destination = (
        known if known != ITSELF else end for known, end in zip(told[:2], ends, strict=True)
    )
    return Told(source, destination, told.tlvs)


def check_strictly(data: bytes, behind: bytes = DATA) -> None:
    """What is sent has to please every reader."""
    if data != behind:
        found = parse(data, LONGEST, strict=True)
        assert found is not None
        assert data[found[1] :] == behind


@pytest.mark.parametrize("case", CASES)
def test_a_friend_is_believed(line: Line, case: str) -> None:
    sent, told = CASES[case]
    received, client = line.received(line.preamble, FRIEND, sent, DATA)
    assert received == out(line.form, filled_in(told, client)) + DATA
    check_strictly(received)


@pytest.mark.parametrize("case", CASES)
def test_a_stranger_changes_nothing(line: Line, case: str) -> None:
    sent, _ = CASES[case]
    received, client = line.received(line.preamble, STRANGER, sent, DATA)
    assert received == out(line.form, filled_in(PEER, client)) + DATA


@pytest.mark.parametrize("peer", [FRIEND, STRANGER])
def test_without_a_preamble_the_peer_is_told(line: Line, peer: str) -> None:
    """And what looks like one, where none is read, is the client's own."""
    for data in (DATA, v1("UNKNOWN"), v2(OURS)):
        received, client = line.received(line.plain, peer, data)
        assert received == out(line.form, filled_in(PEER, client)) + data


def test_over_ipv6(line: Line) -> None:
    received, client = line.received(line.plain_6, FRIEND_6, DATA)
    assert received == out(line.form, filled_in(PEER, client)) + DATA
    check_strictly(received)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (v1("TCP4 203.0.113.7 198.51.100.9 51000 443"), AS_SENT),
        (v1("TCP4 203.0.113.7 198.51.100 51000 443"), Told(CLIENT, ITSELF)),
        (v1("TCP4 203.0.113 198.51.100.9 51000 443"), PEER),
        (v2(OURS), kept(OURS)),
        (v1("UNKNOWN"), NOTHING),
    ],
)
def test_a_preamble_over_ipv6(line: Line, sent: bytes, told: Told | None) -> None:
    """An IPv4 client with this IPv6 listener for a destination is of two families."""
    received, client = line.received(line.preamble_6, FRIEND_6, sent, DATA)
    assert received == out(line.form, filled_in(told, client)) + DATA
    check_strictly(received)


@pytest.mark.parametrize("to", ["127.0.0.1", "127.0.0.5"])
def test_a_wildcard_is_no_destination(line: Line, to: str) -> None:
    received, client = line.received(line.anywhere, STRANGER, DATA, to=to)
    assert client.getpeername()[0] == to
    assert received == out(line.form, filled_in(PEER, client)) + DATA


def test_ipv4_at_a_listener_for_both(line: Line) -> None:
    received, client = line.received(line.both, STRANGER, DATA, to="127.0.0.5")
    source, destination = (
        (f"::ffff:{ip}", port) for ip, port in (client.getsockname(), client.getpeername())
    )
    assert received == out(line.form, Told(source, destination)) + DATA
    check_strictly(received)


@pytest.mark.parametrize("case", ["v1 TCP4", "v2 TLVs"])
def test_cut_anywhere(line: Line, case: str) -> None:
    """Also within what the client says behind it."""
    sent, told = CASES[case]
    whole, cuts = sent + DATA, range(1, len(sent) + 2)
    clients = {cut: line.lab.connect(line.preamble, FRIEND) for cut in cuts}
    for cut, client in clients.items():
        client.sendall(whole[:cut])
    wait_until(lambda: line.lab.half_open == len(sent) - 1, "all that are not whole to wait")
    for cut, client in clients.items():
        client.sendall(whole[cut:])
        client.shutdown(socket.SHUT_WR)
    received = {to_the_end(line.lab.upstream.accept()) for _ in cuts}
    assert received == {out(line.form, told) + DATA}


@pytest.mark.parametrize("case", ["v1 TCP4", "v2 of SSL"])
def test_byte_by_byte(line: Line, case: str) -> None:
    sent, told = CASES[case]
    whole = sent + DATA
    received, _ = line.received(line.preamble, FRIEND, *(whole[i : i + 1] for i in range(len(whole))))
    assert received == out(line.form, told) + DATA


@pytest.mark.parametrize(("source", "destination"), [(CLIENT, SERVICE), (CLIENT_6, SERVICE_6)])
def test_the_longest(line: Line, source: tuple[str, int], destination: tuple[str, int]) -> None:
    """TLVs up to the last byte that a preamble has room for."""
    room = LONGEST - len(form_v2(Told(source, destination)))
    tlvs = NAME + tlv(0xE1, bytes(30000)) + OURS
    tlvs += tlv(0xE2, b"\xff" * (room - len(tlvs) - 3))
    told = Told(source, destination, tlvs)
    sent = form_v2(told)
    assert len(sent) == LONGEST
    for pieces in ((sent + DATA,), (sent[:5000], sent[5000:], DATA)):
        received, _ = line.received(line.preamble, FRIEND, *pieces)
        assert received == out(line.form, told) + DATA
        check_strictly(received)


def test_what_grows_with_the_family_loses_its_last_tlv(line: Line) -> None:
    """The client's address gets through, however much a peer has put behind it."""
    tlvs = NAME + tlv(0xE1, bytes(LONGEST - len(form_v2(Told(CLIENT, SERVICE))) - len(NAME) - 3))
    received, client = line.received(line.preamble_6, FRIEND_6, form_v2(Told(CLIENT, SERVICE, tlvs)), DATA)
    assert received == out(line.form, filled_in(Told(CLIENT, SERVICE, tlvs), client)) + DATA
    mapped = form_v2(Told(("::ffff:203.0.113.7", 1), ("::ffff:198.51.100.9", 2), tlvs[: len(NAME)]))
    received, _ = line.received(line.preamble_6, FRIEND_6, mapped, DATA)
    check_strictly(received)


def test_preamble_and_data_come_in_one_segment(line: Line) -> None:
    """Where the client has sent by then. An upstream that reads once sees both."""
    for port, sent in ((line.plain, b""), (line.preamble, CASES["v1 TCP4"][0])):
        with line.lab.held():
            client = line.lab.connect(port, FRIEND)
            client.sendall(sent + DATA)
        upstream = line.lab.upstream.accept()
        expected = out(line.form, filled_in(AS_SENT if sent else PEER, client)) + DATA
        assert exactly(upstream, len(expected)) == expected
        assert segments_in(upstream) == 1


def test_the_preamble_does_not_wait_for_the_client(line: Line) -> None:
    """The upstream may be the one to speak first."""
    for port, sent in ((line.plain, b""), (line.preamble, CASES["v2 TLVs"][0])):
        client, upstream = line.lab.ends(port, FRIEND, sent)
        expected = out(line.form, filled_in(kept(ALPN, NAME, ID, OURS) if sent else PEER, client))
        assert exactly(upstream, len(expected)) == expected
        upstream.sendall(b"220 ready\r\n")
        assert exactly(client, 11) == b"220 ready\r\n"
        client.sendall(DATA)
        assert exactly(upstream, len(DATA)) == DATA


# Who need not send one, and strict reading


@pytest.fixture(scope="module", params=LOOPS)
def choosy(request: pytest.FixtureRequest) -> Iterator[RelayLab]:
    lab = RelayLab(
        {
            **TRUST,
            "KONGREALIP_SEND_PROXY": "v2",
            "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": "127.0.0.8/32",
            "KONGREALIP_PROXY_PROTOCOL_STRICT": "on",
        }
    )
    lab.add_upstream()
    lab.listen("proxy_protocol")
    with lab.running(request.param):
        yield lab


def test_a_preamble_may_be_left_out_by_some(choosy: RelayLab) -> None:
    for data in (b"hello", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello"):
        client = choosy.connect(source="127.0.0.8")
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = to_the_end(choosy.upstream.accept())
        told = Told(client.getsockname(), client.getpeername())
        assert received == form_v2(told) + data
    choosy.clean()


def test_by_others_it_may_not(choosy: RelayLab) -> None:
    before = choosy.counted("refused", "not_proxy")
    client = choosy.connect(source=STRANGER)
    client.sendall(b"\0" + DATA)
    assert to_the_end_or_reset(client) == b""
    choosy.wait_for_count("refused", "not_proxy", count=before + 1)
    assert choosy.upstream.has_none()
    choosy.clean()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("v2 wrong checksum", "checksum"),
        ("v2 two checksums", "checksum"),
        ("v2 damaged tail", "tlv"),
        ("v2 undefined command", "command"),
        ("v1 families differ", "family"),
        ("v1 source is empty", "address"),
    ],
)
@pytest.mark.parametrize("peer", [FRIEND, STRANGER])
def test_strictly_read(choosy: RelayLab, case: str, reason: str, peer: str) -> None:
    """What is wrong is refused of everybody, and never comes to an upstream."""
    before = choosy.counted("refused", reason)
    client = choosy.connect(source=peer)
    client.sendall(CASES[case][0] + DATA)
    assert to_the_end_or_reset(client) == b""
    choosy.wait_for_count("refused", reason, count=before + 1)
    assert choosy.upstream.has_none()
    choosy.clean()


def to_the_end_or_reset(client: socket.socket) -> bytes:
    """What was sent and not read makes the end a reset."""
    try:
        return to_the_end(client)
    except ConnectionResetError:
        return b""
