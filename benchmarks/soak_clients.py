"""Who is put into the requests of the soak, and how a preamble or a header says so.

What the server must make of it is known when it is written. So nothing is decided here, and the
answers are held against nothing that the package itself has computed.
"""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

from tests.faults.hostile import SIGNATURE, version_1, version_2
from tests.running import LOOPBACK

#: Every peer that the servers trust, and no address that a client gets is in it.
TRUSTED = {
    "preambles": f"{LOOPBACK}/32",
    "headers": f"{LOOPBACK}/32,10.0.0.0/8",
    "relay": f"{LOOPBACK}/32",
}
PEER = "peer"
_MOST_HOPS = 20
_FORGED = ("6.6.6.6", "unknown", "10.6.6.6", LOOPBACK, "::1", "6.6.6.6:66", "_hidden", "<script>")

Lines = list[tuple[str, str]]


class Due(NamedTuple):
    """Whom the application must see. Where ``source`` is the peer, the port is that of the connection."""

    ip: str
    port: int | None
    source: str


def _ipv4() -> str:
    """Not in a network that is trusted."""
    return ".".join(map(str, (random.randrange(11, 127), *random.choices(range(256), k=3))))


def _ipv6() -> str:
    return f"2001:db8::{random.randrange(1, 1 << 16):x}:{random.randrange(1, 1 << 16):x}"


def _client() -> str:
    return random.choice((_ipv4, _ipv6))()


def stranger() -> str:
    return f"127.{random.randrange(1, 256)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def preamble() -> tuple[bytes, Due]:
    """One of either version and family, and the client in it."""
    ip, port = _client(), random.randrange(1, 1 << 16)
    due = Due(ip, port, "proxy_protocol")
    is_text = random.random() < 0.5
    if ":" not in ip:
        return (version_1(ip, port) if is_text else version_2(ip, port, _tlvs())), due
    if is_text:
        # Its spelling is the balancer's, and nginx prints it in its own.
        return f"PROXY TCP6 {random.choice((ip, ip.upper()))} 2001:db8::9 {port} 443\r\n".encode(), due
    high, low = (int(group, 16) for group in ip.rsplit(":", 2)[1:])
    ends = b"".join(struct.pack("!HH8xHH", 0x2001, 0xDB8, *end) for end in ((high, low), (0, 9)))
    area = ends + struct.pack("!HH", port, 443) + _tlvs()
    return SIGNATURE + b"\x21\x21" + struct.pack("!H", len(area)) + area, due


def _tlvs() -> bytes:
    """From none to many, some of which are broken."""
    values = {
        0x02: b"host.example", 0x04: bytes(random.randrange(9)), 0x05: random.randbytes(16),
        0x20: b"\x01\x00\x00\x00\x00\x21\x00\x07TLSv1.3", 0xEA: b"\x01vpce-0123456789",
        0xE0: random.randbytes(random.randrange(2000)),
    }  # fmt: skip
    chosen = random.sample(sorted(values), random.choice((0, 0, 1, 2, 4)))
    area = b"".join(struct.pack("!BH", kind, len(values[kind])) + values[kind] for kind in chosen)
    return area + b"\x05\xff\xff!" * (random.random() < 0.1)


def unnamed(source: str) -> tuple[bytes, Due]:
    """A preamble that names nobody."""
    ends = bytes(12)
    preamble = random.choice(
        (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
            SIGNATURE + b"\x20\x00\x00\x00",
            SIGNATURE + b"\x20\x11\x00\x0c" + ends,
            SIGNATURE + b"\x21\x12\x00\x0c" + ends,
            SIGNATURE + b"\x21\x00\x00\x00",
        )
    )
    return preamble, Due(source, None, PEER)


def _hops(count: int) -> list[str]:
    return [".".join(map(str, (10, *random.choices(range(256), k=3)))) for _ in range(count)]


def chain() -> tuple[Lines, Due]:
    """Forged entries, the client, and trusted hops behind it, on one line or several."""
    ip = _client()
    port = random.choice((None, random.randrange(1, 1 << 16)))
    named = ip if port is None else f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    forged = random.choices(_FORGED, k=random.choice((0, 0, 1, 3)))
    chain = [*forged, named, *_hops(random.randrange(_MOST_HOPS))]
    return _in_lines(chain), Due(ip, port, "X-Forwarded-For")


def _in_lines(chain: list[str]) -> Lines:
    lines = []
    while chain:
        count = random.choice((1, 2, len(chain), len(chain), len(chain)))
        lines.append(("X-Forwarded-For", random.choice((",", ", ", " ,  ")).join(chain[:count])))
        chain = chain[count:]
    return lines


def odd_chain() -> tuple[Lines, Due]:
    """Where the walk ends at what is no client: nothing but hops, or a hop that is no address."""
    hops = _hops(random.randrange(1, _MOST_HOPS))
    if random.random() < 0.5:
        return _in_lines(hops), Due(hops[0], None, "X-Forwarded-For")
    nobody = random.choice(("unknown", "_hidden", "1.2.3", "<>"))
    return [("X-Forwarded-For", ", ".join((_ipv4(), nobody, *hops)))], Due(hops[0], None, "X-Forwarded-For")


def nobody() -> tuple[Lines, Due]:
    """A header without an address at its end, or none at all."""
    line = ("X-Forwarded-For", f"{_ipv4()}, {random.choice(('unknown', '1.2.3', '<>'))}")
    return random.choice(([line], [])), Due(LOOPBACK, None, PEER)
