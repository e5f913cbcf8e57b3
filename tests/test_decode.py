"""``kongrealip decode``: every field in its place, out of whatever holds a preamble; nothing raises."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from kongrealip.address import Address
from kongrealip.cli.decode import decode
from kongrealip.cli.pasted import MOST_BYTES, read_hexadecimal
from kongrealip.errors import PreambleError
from kongrealip.preamble import capture, parse
from kongrealip.preamble.dissect import Dissection, dissect
from kongrealip.preamble.segments import Segment, network_of, preamble_segments
from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.preamble.writing import LOCAL_V2, tlv, v1, v2
from tests import golden

CLIENT, HERE = Address("203.0.113.7", 51000), Address("10.0.0.9", 443)
CLIENT6, HERE6 = Address("2001:db8::7", 51000), Address("2001:db8::9", 443)
SSL = tlv(
    0x20, b"\x05\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x22, "Jörg\x1b".encode()) + tlv(0x99, b"\0") + b"\1"
)
TLVS = b"".join(
    (
        tlv(1, b"h2"), tlv(2, b"shop.example"), tlv(3, bytes(4)), tlv(4, bytes(9)), tlv(5, b"\0\xff"), SSL, tlv(0x30, b"blue"),
        tlv(0xEA, b"\1vpce-08d2"), tlv(0xE0, (5).to_bytes(8)), tlv(0xEE, b"\1\2\0\0\0"), tlv(0xEF, b"text"), tlv(0xF0, b""),
    )
)  # fmt: skip
WHOLE = [v1(CLIENT, HERE), v1(CLIENT6, HERE6), v2(CLIENT, HERE, TLVS), v2(CLIENT6, HERE6, TLVS), LOCAL_V2]


def header(command: int, kind: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, kind]) + len(body).to_bytes(2) + body


def values(found: Dissection) -> dict[str, str]:
    return {field.name: field.value for field in found.fields}


def invoke(*args: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(decode, args, input=stdin)


# -- fields ------------------------------------------------------------------------------------


def test_version_1() -> None:
    assert [field[:4] for field in dissect(v1(CLIENT, HERE) + b"GET / HTTP/1.1\r\n").fields] == [
        (0, 5, "protocol", "PROXY"),
        (6, 4, "family", "TCP4"),
        (11, 11, "source", "203.0.113.7"),
        (23, 8, "destination", "10.0.0.9"),
        (32, 5, "source port", "51000"),
        (38, 3, "destination port", "443"),
        (41, 2, "line end", "CR LF"),
        (43, 16, "behind it", "GET / HTTP/1.1\\r\\n"),
    ]
    assert values(dissect(b"PROXY UNKNOWN x\x1b\r\n"))["family"] == "UNKNOWN x\\x1b"


def test_version_2_with_every_tlv() -> None:
    found = dissect(v2(CLIENT, HERE, TLVS))
    assert [(field.offset, field.length, field.name) for field in found.fields[:8]] == [
        (0, 12, "signature"), (12, 1, "version, command"), (13, 1, "family, transport"), (14, 2, "length"),
        (16, 4, "source"), (20, 4, "destination"), (24, 2, "source port"), (26, 2, "destination port"),
    ]  # fmt: skip
    shown = values(found)
    assert shown.pop("TLV 0x03 CRC32C").endswith(", right")
    assert list(shown.items())[4:] == [
        ("source", "203.0.113.7"),
        ("destination", "10.0.0.9"),
        ("source port", "51000"),
        ("destination port", "443"),
        ("TLV 0x01 ALPN", "h2"),
        ("TLV 0x02 authority", "shop.example"),
        ("TLV 0x04 padding", "9 bytes"),
        ("TLV 0x05 unique id", "00ff"),
        ("TLV 0x20 SSL", "0x05 over TLS, certificate in this session; verify 0, and verified"),
        ("TLV 0x21 version", "TLSv1.3"),
        ("TLV 0x22 common name", "Jörg\\x1b"),
        ("TLV 0x99", "00"),
        ("broken TLV", "01"),
        ("TLV 0x30 netns", "blue"),
        ("TLV 0xea AWS", "VPC endpoint vpce-08d2"),
        ("TLV 0xe0 Google", "PSC connection 5"),
        ("TLV 0xee Azure", "link 2"),
        ("TLV 0xef", "74657874 'text'"),
        ("TLV 0xf0", ""),
    ]
    assert values(dissect(v2(CLIENT6, HERE6)))["source"] == "2001:db8::7"


def test_what_an_ssl_tlv_has_inside() -> None:
    inner = b"".join(tlv(number, bytes([0x61 + number % 16])) for number in range(0x21, 0x26))
    assert list(values(dissect(v2(CLIENT, HERE, tlv(0x20, b"\7\0\0\0\0" + inner)))).items())[8:14] == [
        ("TLV 0x20 SSL", "0x07 over TLS, certificate in this connection, certificate in this session; verify 0, and verified"),
        ("TLV 0x21 version", "b"),
        ("TLV 0x22 common name", "c"),
        ("TLV 0x23 cipher", "d"),
        ("TLV 0x24 signature", "e"),
        ("TLV 0x25 key", "f"),
    ]  # fmt: skip


def test_checksums() -> None:
    right = v2(CLIENT, HERE, tlv(3, bytes(4)) + tlv(0xF0, b"x"))
    assert ", right" in values(dissect(right))["TLV 0x03 CRC32C"]
    assert ", wrong: 0x" in values(dissect(right[:-1] + b"y"))["TLV 0x03 CRC32C"]
    assert "cannot be checked" in values(dissect(right[:-1]))["TLV 0x03 CRC32C"]
    assert "wrong: 3 bytes" in values(dissect(v2(CLIENT, HERE, tlv(3, bytes(3)))))["TLV 0x03 CRC32C"]
    twice = dissect(v2(CLIENT, HERE, tlv(3, bytes(4)) * 2)).fields[-1].value
    assert twice == "a second one, not checked"


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        (header(1, 0x31, b"/run/a".ljust(108, b"\0") + bytes(108)), "source", "/run/a"),
        (header(1, 0x31, bytes(216)), "destination", "none"),
        (header(1, 0x12, bytes(12)), "family, transport", "IPv4, datagram"),
        (header(1, 0x22, bytes(36)), "family, transport", "IPv6, datagram"),
        (header(1, 0x31, bytes(216)), "family, transport", "Unix, stream"),
        (LOCAL_V2, "family, transport", "unspecified, unspecified"),
        (LOCAL_V2, "version, command", "2, LOCAL"),
        (header(7, 0x47, b""), "version, command", "2, 7, undefined"),
        (header(7, 0x47, b""), "family, transport", "4, undefined, 7, undefined"),
        (header(0, 0x11, b"abc"), "not read", "616263"),
        (header(1, 0x00, b"abc"), "not read", "616263"),
        (header(1, 0x11, b"abc"), "too short for addresses", "616263"),
        (header(1, 0x11, bytes(12))[:20], "part of addresses", "00000000"),
        (header(1, 0x11, bytes(12))[:20], "missing", "8 bytes are still to come"),
        (header(1, 0x11, bytes(12))[:14], "missing", "2 bytes are still to come"),
        (header(1, 0x11, bytes(12))[:13], "part of the head", "21"),
        (header(1, 0x11, bytes(12))[:15], "part of the head", "211100"),
        (v2(CLIENT, HERE, tlv(1, b"h2"))[:-1], "part of a TLV", "01000268"),
        (v2(CLIENT, HERE, b"\1\0"), "broken TLV", "0100"),
        (v2(CLIENT, HERE, tlv(0xEA, b"\2ab")), "TLV 0xea AWS", "026162"),
        (v2(CLIENT, HERE, tlv(0xEA, b"\1" + b"a" * 60)), "TLV 0xea AWS", "VPC endpoint " + "a" * 48 + "... (60 bytes)"),
        # From three letters on it is hardly chance that they are letters.
        (v2(CLIENT, HERE, tlv(0xEF, b"ab")), "TLV 0xef", "6162"),
        (v2(CLIENT, HERE, tlv(0xEF, b"abc")), "TLV 0xef", "616263 'abc'"),
        (v2(CLIENT, HERE, tlv(0xEF, b"\0" * 48)), "TLV 0xef", "00" * 48),
        (v2(CLIENT, HERE, tlv(0xEF, b"\0" * 49)), "TLV 0xef", "00" * 48 + "... (49 bytes)"),
        (v2(CLIENT, HERE, tlv(2, b"a" * 48)), "TLV 0x02 authority", "a" * 48),
        (v2(CLIENT, HERE, tlv(0x20, b"\1")), "TLV 0x20 SSL", "too short: 01"),
        (v2(CLIENT, HERE, tlv(0x20, bytes(5))), "TLV 0x20 SSL", "0x00 not over TLS; verify 0, none verified"),
        (v2(CLIENT, HERE, tlv(2, b"a" * 60)), "TLV 0x02 authority", "a" * 48 + "... (60 bytes)"),
        (v2(CLIENT, HERE) + b"\x16\x03\x01", "behind it", "TLS: \\x16\\x03\\x01"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "no preamble", "GET / HTTP/1.1\\r\\n"),
        (b"\nGET\n", "no preamble", "\\n"),
        (b"PROXY TC", "beginning", "PROXY TC"),
        (b"PROXY TCP4  10.0.0.9 1 2\r\n", "source", ""),
        (b"PROXY TCP4  10.0.0.9 1 2\r\n", "destination", "10.0.0.9"),
        (b"PROXY UNKNOWN\r\n", "protocol", "PROXY"),
    ],
)  # fmt: skip
def test_odd_ones(data: bytes, name: str, value: str) -> None:
    assert values(dissect(data))[name] == value


def test_what_would_be_done_with_it() -> None:
    def verdicts(data: bytes) -> list[str]:
        found = dissect(data).verdicts
        assert [who for who, _ in found] == ["nginx", "server", "strict server"]
        return [verdict for _, verdict in found]

    accepted = "accepts 28 bytes, which name 203.0.113.7 port 51000"
    assert verdicts(v2(CLIENT, HERE)) == [accepted] * 3
    assert verdicts(LOCAL_V2) == ["accepts 16 bytes, which name nobody"] * 3
    waits = "waits for the rest, until the deadline"
    assert verdicts(v2(CLIENT, HERE)[:-1]) == [
        "closes the connection: not whole in the first read",
        waits,
        waits,
    ]
    http = "plain HTTP reached a proxy_protocol port"
    refused = f"refuses it (http): {http}"
    assert verdicts(b"GET / HTTP/1.1") == [f"closes the connection: {http}", refused, refused]
    wrong = v2(CLIENT, HERE, tlv(3, bytes(4)))[:-1] + b"\0"
    assert verdicts(wrong)[2] == "refuses it (checksum): version 2 preamble with a wrong checksum"
    assert "no address, so nobody" in verdicts(b"PROXY TCP4 a.b 1.1.1.1 1 2\r\n")[0]
    assert verdicts(v2(CLIENT, HERE, tlv(4, bytes(2000))))[0] == (
        "accepts 2031 bytes, which name 203.0.113.7 port 51000; in front of plain HTTP it closes: "
        "more than client_header_buffer_size, by default 1024 bytes"
    )
    long = verdicts(v2(CLIENT, HERE, tlv(4, bytes(5000))))
    assert (long[0], long[1].split(":")[0]) == (
        "closes the connection: more than 4097 bytes", "refuses it (too_long)",
    )  # fmt: skip


WITH_PREAMBLES = [
    vector for vector in golden.load("realip")
    if vector["config"]["proxy_protocol"] and len(vector["segments"]) == 1
    and "client_header_buffer_size" not in vector["config"]
]  # fmt: skip


@pytest.mark.parametrize("vector", WITH_PREAMBLES, ids=lambda vector: str(vector["id"]))
def test_nginx_did_what_is_said_of_it(vector: golden.Vector) -> None:
    (data,) = golden.segments(vector)
    verdict = dict(dissect(data).verdicts)["nginx"]
    closes = verdict.startswith("closes")
    if "tls_segments" not in vector:
        closes = closes or "in front of plain HTTP it closes" in verdict
    assert closes == (vector["expect"]["outcome"] == "closed"), verdict


MUTATED = st.sampled_from(WHOLE).flatmap(
    lambda data: st.builds(
        lambda place, new, end: (data[:place] + new + data[place + len(new) :])[:end],
        st.integers(0, len(data)), st.binary(max_size=4), st.integers(0, len(data) + 4),
    )
)  # fmt: skip


# Without a deadline: the examples are the longest that there are.
@given(st.binary(max_size=300) | MUTATED | st.binary(max_size=80).map(lambda tail: SIGNATURE + tail))
@example(b"PROXY TCP4 " + b"1" * 100_000)
@example(v2(CLIENT, HERE, tlv(4, b"") * 20_000))
def test_it_never_raises_and_the_fields_lie_end_to_end(data: bytes) -> None:
    found = dissect(data)
    place = 0
    for field in found.fields:
        if field.depth:
            continue
        # In version 1 a blank stands between.
        has_blank = field.name in ("family", "source", "destination", "source port", "destination port")
        assert field.offset == place + (has_blank and not data.startswith(SIGNATURE))
        place = field.offset + field.length
    missing = sum(field.length for field in found.fields if field.name == "missing")
    assert place - missing == len(data) or found.fields[0].name in ("no preamble", "beginning")
    for field in found.fields:
        assert field.name != "missing" or field.value == f"{field.length} bytes are still to come"
        assert field.value.isprintable()
        assert len(field.value) < 400
    assert dict(found.verdicts)["server"].startswith(outcome(data))


SMALL = st.binary(max_size=12)
TLVS_OF_SSL = st.lists(st.builds(tlv, st.sampled_from([0x21, 0x22, 0x99]), SMALL), max_size=3).map(b"".join)
AREA = st.lists(
    st.builds(tlv, st.sampled_from([1, 0x20, 0xEA, 0xEF]), SMALL)
    | st.builds(lambda inner, rest: tlv(0x20, bytes(5) + inner + rest), TLVS_OF_SSL, SMALL),
    max_size=4,
).map(b"".join)


@given(AREA)
def test_a_tlv_is_at_the_place_that_is_shown(area: bytes) -> None:
    data = v2(CLIENT, HERE, area)
    end_of_ssl, place = 0, 0
    for field in dissect(data).fields[8:]:
        if field.name.startswith("TLV"):
            assert field.name.startswith(f"TLV 0x{data[field.offset]:02x}")
            assert field.length == 3 + int.from_bytes(data[field.offset + 1 : field.offset + 3], "big")
        if field.depth:
            assert (field.depth, field.offset) == (1, place), "inside of an SSL TLV, and end to end"
            place += field.length
        else:
            assert place == end_of_ssl
            has_inner = data[field.offset] == 0x20 and field.length >= 8
            end_of_ssl = field.offset + field.length if has_inner else 0
            place = field.offset + 8 if has_inner else 0
    assert place == end_of_ssl


def test_of_a_stream_that_is_none_no_more_is_shown_than_a_preamble_can_have() -> None:
    (field,) = dissect(b"x" * 70_000 + b"\n").fields
    assert (field.length, field.value) == (16 + 0xFFFF, "x" * 48 + "... (65551 bytes)")


def outcome(data: bytes) -> str:
    try:
        return "accepts" if parse(data) else "waits"
    except PreambleError as error:
        return f"refuses it ({error.reason}): {error}"


# -- hexadecimal -------------------------------------------------------------------------------

DATA = v2(CLIENT, HERE, TLVS)


def dump_of(program: str, *args: str) -> str:
    return subprocess.run(
        [program, *args], input=DATA, capture_output=True, check=True, timeout=30
    ).stdout.decode()


@pytest.mark.parametrize(
    "text",
    [
        DATA.hex(), DATA.hex().upper(), f"0x{DATA.hex()}", DATA.hex(" "), DATA.hex(":"), DATA.hex("\n"),
        ", ".join(f"0x{byte:02x}" for byte in DATA), f"  {DATA.hex(' ', 2)}\r\n",
        "".join(
            f"\t0x{place:04x}:  {DATA[place : place + 16].hex(' ', 2):39}  ....\n" for place in range(0, len(DATA), 16)
        ),
        "".join(
            f"{place:08x}  {DATA[place : place + 8].hex(' '):23}  {DATA[place + 8 : place + 16].hex(' '):23}  |..|\n"
            for place in range(0, len(DATA), 16)
        ) + f"{len(DATA):08x}\n",
    ],
    ids=["plain", "upper", "0x", "blanks", "colons", "lines", "C", "words", "tcpdump", "hexdump"],
)  # fmt: skip
def test_hexadecimal(text: str) -> None:
    assert read_hexadecimal(text) == DATA


@pytest.mark.parametrize(
    "program", [("xxd",), ("xxd", "-g1"), ("xxd", "-p"), ("hexdump", "-C")], ids=" ".join
)
def test_hexadecimal_as_real_programs_print_it(program: tuple[str, ...]) -> None:
    try:
        shown = dump_of(*program)
    except FileNotFoundError:
        pytest.skip(f"{program[0]} is not installed")
    assert read_hexadecimal(shown) == DATA


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    found = read_hexadecimal(text)
    assert found is None or found


# -- captures ----------------------------------------------------------------------------------

ETHERNET = bytes(12)
LINKS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "ethernet": (1, lambda ip: ETHERNET + kind(ip) + ip),
    "vlan": (1, lambda ip: ETHERNET + b"\x88\xa8\0\1\x81\0\0\2" + kind(ip) + ip),
    "sll": (113, lambda ip: bytes(14) + kind(ip) + ip),
    "sll2": (276, lambda ip: kind(ip) + bytes(18) + ip),
    "null": (0, lambda ip: b"\2\0\0\0" + ip),
    "loop": (108, lambda ip: b"\0\0\0\2" + ip),
    "vlan of old": (1, lambda ip: ETHERNET + b"\x91\0\0\1" + kind(ip) + ip),
    # Of the packets alone there are as many link types as systems.
    **{f"raw {number}": (number, lambda ip: ip) for number in (12, 14, 101, 228, 229)},
}
FROM4, TO4 = bytes([10, 0, 0, 5]), bytes([10, 0, 0, 9])
# No byte of them is zero, so that none can be left out or read twice.
FROM6 = bytes.fromhex("20110db8 01020304 05060708 090a0b0c")
TO6 = bytes.fromhex("fd010203 04050607 08090a0b 0c0d0e0f")
FROM6_TEXT = "[2011:db8:102:304:506:708:90a:b0c]:40112"
TO6_TEXT = "[fd01:203:405:607:809:a0b:c0d:e0f]:8443"


def kind(ip: bytes) -> bytes:
    return b"\x08\0" if ip[0] >> 4 == 4 else b"\x86\xdd"


def tcp(
    data: bytes, flags: int = 0x18, source: int = 40112, destination: int = 8443, options: bytes = bytes(4)
) -> bytes:
    start = 0x50 + (len(options) // 4 << 4)
    head = struct.pack("!HHIIBBHHH", source, destination, 1, 1, start, flags, 1024, 0, 0)
    return head + options + data


def ipv4(segment: bytes, fragment: int = 0, protocol: int = 6, length: int | None = None) -> bytes:
    total = 20 + len(segment) if length is None else length
    return struct.pack("!BBHHHBBH", 0x45, 0, total, 1, fragment, 64, protocol, 0) + FROM4 + TO4 + segment


def ipv6(
    segment: bytes, *extensions: tuple[int, bytes], protocol: int = 6, length: int | None = None
) -> bytes:
    kinds = [number for number, _ in extensions] + [protocol]
    chain = b"".join(bytes([kinds[place + 1]]) + body for place, (_, body) in enumerate(extensions))
    total = len(chain + segment) if length is None else length
    head = struct.pack("!IHBB", 0x60000000, total, kinds[0], 64)
    return head + FROM6 + TO6 + chain + segment


def pcap(link: int, *frames: bytes, order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262144, link)
    return head + b"".join(struct.pack(f"{order}IIII", 1, 2, len(one), len(one)) + one for one in frames)


def block(number: int, body: bytes, order: str) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", number) + length + body + length


def pcapng(link: int, *frames: bytes, order: str = "<", simple: bool = False) -> bytes:
    parts = [block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)]
    parts.append(block(1, struct.pack(f"{order}HHI", link, 0, 0), order))
    parts.append(block(5, bytes(12), order))
    for one in frames:
        if simple:
            parts.append(block(3, struct.pack(f"{order}I", len(one)) + one, order))
        else:
            parts.append(block(6, struct.pack(f"{order}IIIII", 0, 1, 2, len(one), len(one)) + one, order))
    return b"".join(parts)


def segments(data: bytes) -> list[Segment]:
    file = io.BytesIO(data)
    return list(preamble_segments(capture.frames(file, file.read(4))))


def of_packets(*packets: bytes) -> list[Segment]:
    return segments(pcap(101, *packets))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("preamble", [WHOLE[0], WHOLE[3]], ids=["v1", "v2"])
def test_links_and_addresses(link: str, preamble: bytes) -> None:
    number, wrap = LINKS[link]
    found = segments(pcap(number, wrap(ipv4(tcp(preamble))), wrap(ipv6(tcp(preamble)))))
    assert found == [
        (1, "10.0.0.5:40112", "10.0.0.9:8443", preamble),
        (2, FROM6_TEXT, TO6_TEXT, preamble),
    ]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", ["pcap", "nanoseconds", "pcapng", "simple"])
def test_forms_and_byte_orders(order: str, form: str) -> None:
    frames = [ipv4(tcp(b"", 2)), ipv4(tcp(WHOLE[2]))]
    forms: dict[str, Callable[[], bytes]] = {
        "pcap": lambda: pcap(101, *frames, order=order),
        "nanoseconds": lambda: pcap(101, *frames, order=order, magic=0xA1B23C4D),
        "pcapng": lambda: pcapng(101, *frames, order=order),
        "simple": lambda: pcapng(101, *frames, order=order, simple=True),
    }
    data = forms[form]()
    assert [(one.number, one.data) for one in segments(data)] == [(2, WHOLE[2])]


def test_two_sections_of_pcapng() -> None:
    other = pcapng(1, ETHERNET + b"\x08\0" + ipv4(tcp(WHOLE[1], source=7)), order=">")
    assert [one.number for one in segments(pcapng(101, ipv4(tcp(WHOLE[0]))) + other)] == [1, 2]


def test_only_the_first_data_of_each_connection() -> None:
    preamble, request = v1(CLIENT, HERE), b"GET / HTTP/1.1\r\n\r\n"
    assert of_packets(ipv4(tcp(request)), ipv4(tcp(preamble))) == []
    found = of_packets(
        ipv4(tcp(b"", 2)), ipv4(tcp(preamble)), ipv4(tcp(preamble, flags=0x19)), ipv4(tcp(preamble, source=1)),
        # The same ports once more, and what is no TCP in between.
        ipv4(tcp(b"", 2)), ipv4(b"", protocol=17), ipv4(tcp(preamble + request)),
        # A header without options.
        ipv4(tcp(b"", 2, options=b"")), ipv4(tcp(preamble, options=b"")),
        ipv6(tcp(request)), ipv6(tcp(preamble), (60, FILLED)),
    )  # fmt: skip
    assert [one.number for one in found] == [2, 4, 7, 9]


# The rest of an extension of 8 bytes: its length, and what is not read.
FILLED = b"\0" + b"\xff" * 6
LONG = v2(CLIENT, HERE, tlv(0xEF, bytes(300)))


@pytest.mark.parametrize(
    ("packet", "is_found"),
    [
        (ipv4(tcp(WHOLE[0]), fragment=0x2000), True),
        (ipv4(tcp(WHOLE[0]), fragment=1), False),
        (ipv4(tcp(WHOLE[0]), fragment=0x0100), False),
        (ipv4(tcp(WHOLE[0]), protocol=17), False),
        # What the network card was to cut up has no length.
        (ipv4(tcp(WHOLE[0]), length=0), True),
        (ipv6(tcp(WHOLE[0]), length=0), True),
        (ipv4(tcp(WHOLE[0], options=b"")), True),
        (ipv6(tcp(WHOLE[0]), (0, FILLED), (60, b"\1" + b"\xff" * 14), (43, FILLED)), True),
        (ipv6(tcp(WHOLE[0]), (50, FILLED)), False),
        (ipv6(tcp(WHOLE[0]), protocol=17), False),
        (ipv6(b"", (0, b"")), False),
        # Of a fragment the second byte is reserved, and the last bit of the fourth: "more are to come".
        (ipv6(tcp(WHOLE[0]), (44, b"\xff\0\1" + b"\xff" * 4)), True),
        (ipv6(tcp(WHOLE[0]), (44, b"\0\0\x08" + bytes(4))), False),
        (ipv6(tcp(WHOLE[0]), (44, b"\0\1\0" + bytes(4))), False),
        (b"", False),
        (ipv4(b""), False),
        (ipv4(bytes(30)), False),
        (ipv6(b""), False),
    ],
)
def test_packets(packet: bytes, is_found: bool) -> None:
    assert [one.data for one in of_packets(packet)] == ([WHOLE[0]] if is_found else [])


def test_what_fills_a_frame_up_is_no_data() -> None:
    for packet in ipv4(tcp(LONG)), ipv6(tcp(LONG)), ipv6(tcp(LONG), (0, FILLED)):
        assert [one.data for one in of_packets(packet + bytes(6))] == [LONG]
    for empty in ipv4(tcp(b"")), ipv6(tcp(b"")):
        assert of_packets(empty + WHOLE[0]) == []


def test_what_else_is_on_a_link() -> None:
    with pytest.raises(ValueError, match="link type 147"):
        network_of(147, WHOLE[0])
    assert network_of(1, ETHERNET + b"\x08\x06" + ipv4(tcp(WHOLE[0]))) == b""
    # The highest bits of a link type are no part of it.
    assert len(segments(pcap(0xF000_0000 + 101, ipv4(tcp(WHOLE[0]))))) == 1
    assert network_of(113, bytes(16) + b"x") == network_of(276, bytes(20) + b"x") == b""


def test_how_many_connections_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kongrealip.preamble.segments._MOST_CONNECTIONS", 2)
    packets = [ipv4(tcp(b"x", source=number)) for number in range(1, 5)]
    again = [ipv4(tcp(WHOLE[0], source=number)) for number in (4, 3, 2)]
    assert [one.number for one in of_packets(*packets, *again)] == [7], "the third from the end is forgotten"


CAPTURES = [
    pcap(101, *[ipv4(tcp(one)) for one in WHOLE]),
    pcapng(1, *[ETHERNET + b"\x86\xdd" + ipv6(tcp(one)) for one in WHOLE]),
]
SPOILT = st.sampled_from(CAPTURES).flatmap(
    lambda data: st.builds(
        lambda place, new, end: (data[:place] + new + data[place + len(new) :])[:end],
        st.integers(4, len(data)), st.binary(max_size=6), st.integers(4, len(data)),
    )
)  # fmt: skip


@given(
    SPOILT
    | st.tuples(st.sampled_from([*capture.PCAP_ORDERS, capture.PCAPNG]), st.binary(max_size=200)).map(
        b"".join
    )
)
def test_any_capture_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for one in segments(data):
            dissect(one.data)


@given(st.sampled_from([number for number, _ in LINKS.values()]), st.binary(max_size=120))
def test_any_frame_is_read(link: int, frame: bytes) -> None:
    list(preamble_segments([(1, link, frame)]))


LONGEST_FRAME, LONGEST_BLOCK = 262144, 1 << 20
WRONG = {
    "cut off": (pcap(101, b"x")[:-1], "the capture ends in the middle of a packet"),
    "cut off in a block": (pcapng(101, b"x")[:-1], "the capture ends in the middle of a packet"),
    "no pcapng": (capture.PCAPNG + bytes(8), "the capture begins like pcapng, and is none"),
    # A lying length takes no memory.
    "huge": (pcap(101) + struct.pack("<8xI4x", 0xFFFFFFFF), "packet 1 of the capture has 4294967295 bytes, which cannot be"),
    "too long": (pcap(101, b"", bytes(LONGEST_FRAME + 1)), "packet 2 of the capture has 262145 bytes, which cannot be"),
    "huge block": (pcapng(101) + struct.pack("<II", 6, 0xFFFFFFFC), "the capture has a block of 4294967292 bytes, which cannot be"),
    "block too long": (pcapng(101) + block(9, bytes(LONGEST_BLOCK - 8), "<"), "the capture has a block of 1048580 bytes, which cannot be"),
    "block too short": (pcapng(101) + struct.pack("<II", 9, 11), "the capture has a block of 11 bytes, which cannot be"),
    "no room for a head": (pcapng(101) + block(6, bytes(16), "<"), "packet 1 of the capture is too short"),
    "no room for a length": (pcapng(101) + block(3, b"", "<"), "packet 1 of the capture is too short"),
    "no such interface": (
        pcapng(101, b"") + block(6, b"\1" + bytes(19), "<"),
        "packet 2 of the capture is of an interface that it does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_capture(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        segments(data)


def test_the_longest_and_the_shortest() -> None:
    longest, packet = bytes(LONGEST_FRAME), ipv4(tcp(WHOLE[0]))
    assert [one.number for one in segments(pcap(101, longest, packet))] == [2]
    for body in b"", bytes(LONGEST_BLOCK - 12):
        data = pcapng(101) + block(9, body, "<") + pcapng(101, packet)
        assert [one.number for one in segments(data)] == [1]


def test_interfaces_beyond_reason_are_not_held() -> None:
    interfaces = pcapng(101) + block(1, struct.pack("<HHI", 101, 0, 0), "<") * 4096
    packet = ipv4(tcp(WHOLE[0]))

    def of_interface(number: int) -> bytes:
        return block(6, struct.pack("<IIIII", number, 1, 2, len(packet), len(packet)) + packet, "<")

    assert [one.data for one in segments(interfaces + of_interface(4095))] == [WHOLE[0]]
    with pytest.raises(ValueError, match="of an interface that it does not have"):
        segments(interfaces + of_interface(4096))


@pytest.mark.parametrize("order", "<>")
def test_a_capture_is_known_by_its_beginning(order: str) -> None:
    for data in pcap(1, order=order), pcap(1, order=order, magic=0xA1B23C4D), pcapng(1, order=order):
        assert capture.is_capture(data)
        assert capture.is_capture(data[:4])
        assert not capture.is_capture(data[:3])


# -- the command -------------------------------------------------------------------------------


def test_everything_that_is_printed() -> None:
    ssl = tlv(0x20, b"\1\0\0\0\1" + tlv(0x21, b"TLSv1.3"))
    data = v2(CLIENT, HERE, tlv(1, b"h2") + ssl + tlv(0xEF, bytes(300))) + b"\x16\x03\x01"
    assert invoke(data.hex()).stdout.splitlines() == [
        "     0    12  signature               version 2",
        "    12     1  version, command        2, PROXY",
        "    13     1  family, transport       IPv4, stream",
        "    14     2  length                  338, so 354 bytes in all",
        "    16     4  source                  203.0.113.7",
        "    20     4  destination             10.0.0.9",
        "    24     2  source port             51000",
        "    26     2  destination port        443",
        "    28     5  TLV 0x01 ALPN           h2",
        "    33    18  TLV 0x20 SSL            0x01 over TLS; verify 1, none verified",
        "    41    10    TLV 0x21 version      TLSv1.3",
        "    51   303  TLV 0xef                " + "00" * 48 + "... (300 bytes)",
        "   354     3  behind it               TLS: \\x16\\x03\\x01",
        "nginx:         accepts 354 bytes, which name 203.0.113.7 port 51000",
        "server:        accepts 354 bytes, which name 203.0.113.7 port 51000",
        "strict server: accepts 354 bytes, which name 203.0.113.7 port 51000",
    ]


def test_hexadecimal_a_file_and_standard_input(tmp_path: Path) -> None:
    file, dump = tmp_path / "bytes", tmp_path / "dump"
    file.write_bytes(DATA)
    dump.write_text(DATA.hex(" "))
    shown = invoke(DATA.hex()).stdout
    assert "    16     4  source                  203.0.113.7\n" in shown
    assert "    10    TLV 0x21 version      TLSv1.3\n" in shown
    assert shown.endswith("TLV that reaches over its end\n")
    assert {invoke(str(file)).stdout, invoke(str(dump)).stdout, invoke("-", stdin=DATA).stdout} == {shown}


def test_a_packet_of_tcpdump(tmp_path: Path) -> None:
    packet = ipv4(tcp(v2(CLIENT, HERE)))
    lines = [
        f"\t0x{place:04x}:  {packet[place : place + 16].hex(' ', 2)}" for place in range(0, len(packet), 16)
    ]
    shown = invoke("-", stdin="\n".join(lines).encode()).stdout
    assert shown == invoke(v2(CLIENT, HERE).hex()).stdout


def test_a_capture(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(pcap(101, ipv4(tcp(b"", 2)), ipv4(tcp(WHOLE[0])), ipv6(tcp(WHOLE[2]))))
    shown = invoke(str(file)).stdout
    assert "packet 2: 10.0.0.5:40112 -> 10.0.0.9:8443\n" in shown
    assert f"\n\npacket 3: {FROM6_TEXT} -> {TO6_TEXT}\n" in shown
    assert shown == invoke("-", stdin=file.read_bytes()).stdout


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (("xyz",), None, "'xyz': no such file, and not two hexadecimal digits"),
        (("",), None, "''"),
        (("0d0",), None, "'0d0': no such file"),
        (("0" * 9999,), None, f"'{'0' * 57}...'"),
        (("/",), None, "'/': cannot be read: Is a directory"),
        (("-",), b"", "'-': empty"),
        (("-",), b"a" * (MOST_BYTES + 5), f"longer than {MOST_BYTES} bytes"),
        (("-",), pcap(101, ipv4(tcp(b"GET /"))), "'-': no TCP connection in it begins with a preamble"),
        (("-",), pcap(101, ipv4(tcp(b"GET /")))[:-1], "ends in the middle of a packet"),
        (("-",), capture.PCAPNG + bytes(8), "begins like pcapng, and is none"),
        (("-",), pcapng(101) + block(6, bytes(4), "<"), "packet 1 of the capture is too short"),
        (("-",), pcapng(101) + block(6, b"\1" + bytes(19), "<"), "of an interface that it does not have"),
        ((), None, "Missing argument"),
    ],
)
def test_wrong_usage_is_2(args: tuple[str, ...], stdin: bytes | None, message: str) -> None:
    result = invoke(*args, stdin=stdin)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]


def test_fuzz_through_the_command() -> None:
    choose = random.Random(5)
    for _ in range(300):
        data = bytearray(choose.choice([*WHOLE, *CAPTURES]))
        for _ in range(choose.randrange(4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        result = invoke("-", stdin=bytes(data[: choose.randrange(1, len(data) + 1)]))
        assert result.exit_code in (0, 2), result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit)
