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
        (header(7, 0x47, b""), "version, command", "2, 7, undefined"),
        (header(7, 0x47, b""), "family, transport", "4, undefined, 7, undefined"),
        (header(0, 0x11, b"abc"), "not read", "616263"),
        (header(1, 0x00, b"abc"), "not read", "616263"),
        (header(1, 0x11, b"abc"), "too short for addresses", "616263"),
        (header(1, 0x11, bytes(12))[:20], "part of addresses", "00000000"),
        (header(1, 0x11, bytes(12))[:14], "missing", "2 bytes are still to come"),
        (v2(CLIENT, HERE, tlv(1, b"h2"))[:-1], "part of a TLV", "01000268"),
        (v2(CLIENT, HERE, tlv(0x20, b"\1")), "TLV 0x20 SSL", "too short: 01"),
        (v2(CLIENT, HERE, tlv(0x20, bytes(5))), "TLV 0x20 SSL", "0x00 not over TLS; verify 0, none verified"),
        (v2(CLIENT, HERE, tlv(2, b"a" * 60)), "TLV 0x02 authority", "a" * 48 + "... (60 bytes)"),
        (v2(CLIENT, HERE) + b"\x16\x03\x01", "behind it", "TLS: \\x16\\x03\\x01"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "no preamble", "GET / HTTP/1.1\\r\\n"),
        (b"PROXY TC", "beginning", "PROXY TC"),
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
    assert "in front of plain HTTP it closes" in verdicts(v2(CLIENT, HERE, tlv(4, bytes(2000))))[0]
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


@given(st.binary(max_size=300) | MUTATED | st.binary(max_size=80).map(lambda tail: SIGNATURE + tail))
@example(b"PROXY TCP4 " + b"1" * 100_000)
@example(v2(CLIENT, HERE, tlv(4, b"") * 20_000))
def test_it_never_raises_and_the_fields_lie_end_to_end(data: bytes) -> None:
    found = dissect(data)
    place = 0
    for field in found.fields:
        if field.depth or field.length == 0:
            continue
        # In version 1 a blank stands between.
        assert field.offset in (place, place + 1)
        place = field.offset + field.length
    missing = sum(field.length for field in found.fields if field.name == "missing")
    assert place - missing == len(data) or found.fields[0].name in ("no preamble", "beginning")
    for field in found.fields:
        assert field.value.isprintable()
        assert len(field.value) < 400
    assert dict(found.verdicts)["server"].startswith(outcome(data))


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
    "raw": (101, lambda ip: ip),
    "ip": (228, lambda ip: ip),
}
FROM4, TO4 = bytes([10, 0, 0, 5]), bytes([10, 0, 0, 9])
FROM6, TO6 = bytes(15) + b"\5", bytes(15) + b"\x09"


def kind(ip: bytes) -> bytes:
    return b"\x08\0" if ip[0] >> 4 == 4 else b"\x86\xdd"


def tcp(data: bytes, flags: int = 0x18, source: int = 40112, destination: int = 8443) -> bytes:
    # With an option of four bytes.
    return struct.pack("!HHIIBBHHH4x", source, destination, 1, 1, 0x60, flags, 1024, 0, 0) + data


def ipv4(segment: bytes, fragment: int = 0, protocol: int = 6, length: int | None = None) -> bytes:
    total = 20 + len(segment) if length is None else length
    return struct.pack("!BBHHHBBH", 0x45, 0, total, 1, fragment, 64, protocol, 0) + FROM4 + TO4 + segment


def ipv6(segment: bytes, *extensions: tuple[int, bytes]) -> bytes:
    kinds = [number for number, _ in extensions] + [6]
    chain = b"".join(bytes([kinds[place + 1]]) + body for place, (_, body) in enumerate(extensions))
    head = struct.pack("!IHBB", 0x60000000, len(chain + segment), kinds[0], 64)
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
        (2, "[::5]:40112", "[::9]:8443", preamble),
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
        ipv4(tcp(b"", 2)), ipv4(tcp(preamble)), ipv4(tcp(preamble)), ipv4(tcp(preamble, source=1)),
        # The same ports once more.
        ipv4(tcp(b"", 2)), ipv4(tcp(preamble + request)),
    )  # fmt: skip
    assert [one.number for one in found] == [2, 4, 6]


@pytest.mark.parametrize(
    ("packet", "is_found"),
    [
        (ipv4(tcp(WHOLE[0]), fragment=0x2000), True),
        (ipv4(tcp(WHOLE[0]), fragment=1), False),
        (ipv4(tcp(WHOLE[0]), fragment=0x0100), False),
        (ipv4(tcp(WHOLE[0]), protocol=17), False),
        # What the network card was to cut up has no length; what fills a frame up is no data.
        (ipv4(tcp(WHOLE[0]), length=0), True),
        (ipv4(tcp(b"")) + WHOLE[0], True),
        (ipv6(tcp(WHOLE[0]), (0, bytes(7)), (60, b"\1" + bytes(14)), (43, bytes(7))), True),
        (ipv6(tcp(WHOLE[0]), (44, bytes(7))), True),
        (ipv6(tcp(WHOLE[0]), (44, b"\0\0\x08" + bytes(4))), False),
        (ipv6(tcp(WHOLE[0]), (50, bytes(7))), False),
        (b"", False),
        (ipv4(b""), False),
        (ipv4(bytes(30)), False),
    ],
)
def test_packets(packet: bytes, is_found: bool) -> None:
    found = of_packets(packet)
    assert bool(found) == (is_found and packet != ipv4(tcp(b"")) + WHOLE[0])


def test_what_else_is_on_a_link() -> None:
    with pytest.raises(ValueError, match="link type 147"):
        network_of(147, WHOLE[0])
    assert network_of(1, ETHERNET + b"\x08\x06" + ipv4(tcp(WHOLE[0]))) == b""
    assert network_of(113, bytes(16) + b"x") == network_of(276, bytes(20) + b"x") == b""


def test_how_many_connections_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kongrealip.preamble.segments._MOST_CONNECTIONS", 2)
    packets = [ipv4(tcp(b"x", source=number)) for number in range(1, 5)]
    assert len(of_packets(*packets, ipv4(tcp(WHOLE[0], source=4)), ipv4(tcp(WHOLE[0], source=1)))) == 1


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


def test_a_lying_length_takes_no_memory() -> None:
    huge = pcap(101) + struct.pack("<IIII", 1, 2, 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(ValueError, match="4294967295 bytes, which cannot be"):
        segments(huge)
    with pytest.raises(ValueError, match="a block of 4294967292 bytes"):
        segments(pcapng(101) + struct.pack("<II", 6, 0xFFFFFFFC))


# -- the command -------------------------------------------------------------------------------


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
    assert "\n\npacket 3: [::5]:40112 -> [::9]:8443\n" in shown
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
