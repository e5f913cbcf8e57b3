"""PROXY preambles for the differential test, from proper to absurd."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tests.differential_addresses import SOUP, Network, pick, spell

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PORTS = (b"0", b"1", b"80", b"443", b"8080", b"65535", b"00080", b"0000000", b"0" * 30 + b"7")
_PORT_NUMBERS = (0, 1, 80, 443, 8080, 31337, 65535)
_MALFORMED = (
    b"proxy TCP4 %s %s %s %s\r\n", b"PROXY tcp4 %s %s %s %s\r\n", b"PROXY  TCP4 %s %s %s %s\r\n",
    b"PROXY\tTCP4 %s %s %s %s\r\n", b" PROXY TCP4 %s %s %s %s\r\n", b"\r\nPROXY TCP4 %s %s %s %s\r\n",
    b"PROXY TCP4 %s  %s %s %s\r\n", b"PROXY TCP4 %s %s  %s %s\r\n", b"PROXY TCP4 %s %s %s  %s\r\n",
    b"PROXY TCP4\t%s %s %s %s\r\n", b"PROXY TCP4 %s,%s %s %s\r\n", b"PROXY TCP4 %s%%eth0 %s %s %s\r\n",
    b"PROXY TCP4 %s %s %s %s \r\n", b"PROXY TCP4 %s %s %s %s 1\r\n", b"PROXY TCP4 %s %s %s %s\n",
    b"PROXY TCP4 %s %s %s %s\r", b"PROXY TCP4 %s %s %s %s", b"PROXY TCP4 %s %s %s %s\n\r",
    b"PROXY UDP4 %s %s %s %s\r\n", b"PROXY TCP5 %s %s %s %s\r\n", b"PROXY TCP %s %s %s %s\r\n",
    b"PROXY TCP4%s %s %s %s\r\n", b"PROXY %s %s %s %s\r\n", b"PROXY TCP6 %s %s 8%s%s\r\n",
    b"PROXY TCP4 %s %s +%s %s\r\n", b"PROXY TCP4 %s %s %s -%s\r\n", b"PROXY TCP4 %s %s 65536%s %s\r\n",
    b"PROXY TCP4 %s %s %s 70000%s\r\n", b"PROXY TCP4 %s %s %s_0 %s\r\n", b"PROXY TCP4 %s %s 0x%s %s\r\n",
    b"PROXY TCP4 [%s]:1 %s %s %s\r\n", b"PROX TCP4 %s %s %s %s\r\n", b"PROXYTCP4 %s %s %s %s\r\n",
)  # fmt: skip
_MALFORMED_WITHOUT_FIELDS = (
    b"PROXY\r\n", b"PROXY \r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 \r\n", b"PROXY TCP6 ::1 ::1\r\n",
    b"PROXY TCP6 ::1 ::1 1\r\n", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n", b"PROXY UNKNOW\r\n",
    b"PROXY unknown\r\n", b"PROXY Unknown\r\n", b"QUIT\r\n", b"\r\n", b"\n", b"\x00",
)  # fmt: skip
# Of a preamble, here and, as it is set up for these tests, in nginx.
_LIMIT = 4096
_TLV_TYPES = (1, 2, 3, 4, 5, 0x20, 0x20, 0x30, 0xE0, 0xEA, 0xEE, 0, 0xFF)
_SSL_TYPES = (0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0, 0xFF)
_BROKEN_TLVS = (
    b"\x01",
    b"\x02\x00",
    b"\x05\xff\xffabc",
    b"\x20\x00\x09abc",
    b"\x20\x00\x03abc",
    b"\xea\x01\x00",
)


class Made(NamedTuple):
    """``sound``: it is accepted and ends with its last byte, whatever follows.

    Nothing but a sound one may be followed by TLS or by further segments. Of anything else the
    two servers see more or less, depending on what has arrived when they look, and nginx answers
    what is left over in front of TLS in plain text.
    """

    data: bytes
    sound: bool = False


def preamble(rng: random.Random, networks: Sequence[Network]) -> Made:
    """For a listener that expects one."""
    if rng.random() < 0.7:
        return Made(_sound(rng, networks), sound=True)
    return Made(rng.choice(_DAMAGES)(rng, networks))


def tls_preamble(rng: random.Random, networks: Sequence[Network]) -> Made:
    """In front of TLS: a sound one, or one that is refused whatever follows."""
    if rng.random() < 0.8:
        return Made(_sound(rng, networks), sound=True)
    return Made(rng.choice((_malformed, _missing, _wrong_version))(rng, networks))


def stray(rng: random.Random, networks: Sequence[Network]) -> Made:
    """For a plain listener that expects none."""
    return Made(_sound(rng, networks))


def _sound(rng: random.Random, networks: Sequence[Network]) -> bytes:
    roll = rng.random()
    if roll < 0.01:
        return _of_length(rng, rng.choice((4000, 4095, _LIMIT)))
    if roll < 0.4:
        return _v1(rng, networks)
    if roll < 0.5:
        return _unknown(rng)
    body, family = _body(rng, networks, rng.choice((1, 2)))
    if roll < 0.9:
        return _v2(0x21, family << 4 | 1, body)
    return _without_information(rng, body)


def _v1(rng: random.Random, networks: Sequence[Network]) -> bytes:
    family = rng.choice((b"TCP4", b"TCP6"))
    addresses = [_v1_address(rng, networks) for _ in range(2)]
    return b" ".join((b"PROXY", family, *addresses, rng.choice(_PORTS), rng.choice(_PORTS))) + b"\r\n"


def _v1_address(rng: random.Random, networks: Sequence[Network]) -> bytes:
    """Anything of hexadecimal digits, dots and colons passes."""
    roll = rng.random()
    text = spell(rng, pick(rng, networks))
    if roll > 0.97:
        text = "".join(rng.choices(SOUP, k=rng.choice((0, 1, 45, 300, 900))))
    elif roll > 0.9:
        text = "".join(rng.choices(SOUP, k=rng.randint(0, 40)))
    elif roll > 0.84:
        text += f":{rng.choice(_PORT_NUMBERS)}"
    return text.encode("ascii")


def _unknown(rng: random.Random) -> bytes:
    tails = (
        b"",
        b" ",
        b"foo",
        b" ::1 ::1 1 2",
        b"\r",
        b"\n",
        b"\t\x00",
        rng.randbytes(rng.randint(1, 90)),
        b"x" * 700,
    )
    return b"PROXY UNKNOWN" + rng.choice(tails).replace(b"\r\n", b"") + b"\r\n"


def _of_length(rng: random.Random, length: int) -> bytes:
    filler = b"7" * length
    if rng.random() < 0.5:
        return b"PROXY UNKNOWN" + filler[: length - 15] + b"\r\n"
    return _v2(0x21, 0x11, filler[: length - 16])


def _too_long(rng: random.Random, networks: Sequence[Network]) -> bytes:
    return _of_length(rng, rng.choice((_LIMIT + 1, _LIMIT + 2, 5000)))


def _v2(version_command: int, family_transport: int, body: bytes, length: int | None = None) -> bytes:
    declared = len(body) if length is None else min(max(length, 0), 0xFFFF)
    return _SIGNATURE + bytes((version_command, family_transport)) + declared.to_bytes(2, "big") + body


def _body(rng: random.Random, networks: Sequence[Network], family: int) -> tuple[bytes, int]:
    size, version = (4, 4) if family == 1 else (16, 6)
    body = b""
    for _ in range(2):
        ip = pick(rng, networks)
        number = ip.number if ip.version == version else rng.getrandbits(size * 8)
        body += number.to_bytes(size, "big")
    body += b"".join(rng.choice(_PORT_NUMBERS).to_bytes(2, "big") for _ in range(2))
    return body + (_tlvs(rng) if rng.random() < 0.5 else b""), family


def _tlvs(rng: random.Random) -> bytes:
    area = b"".join(_tlv(rng, rng.choice(_TLV_TYPES)) for _ in range(rng.randint(1, 5)))
    roll = rng.random()
    if roll < 0.2:
        area += rng.choice(_BROKEN_TLVS) + _tlv(rng, 0xEE)
    elif roll < 0.3:
        area = _damaged(rng, area)
    return area


def _tlv(rng: random.Random, kind: int) -> bytes:
    content = rng.randbytes(rng.choice((0, 1, 4, 4, 16, 128, 600 if rng.random() < 0.1 else 5)))
    if kind == 0x20 and rng.random() < 0.85:
        content = _ssl(rng)
    return bytes((kind,)) + len(content).to_bytes(2, "big") + content


def _ssl(rng: random.Random) -> bytes:
    inner = (rng.choice(_SSL_TYPES) for _ in range(rng.randint(0, 4)))
    nested = b"".join(_tlv(rng, kind) for kind in inner)
    if rng.random() < 0.15:
        nested = _damaged(rng, nested)
    whole = b"\x07" + rng.choice((bytes(4), rng.randbytes(4))) + nested
    return whole if rng.random() < 0.85 else whole[: rng.choice((4, 5, 7))]


def _without_information(rng: random.Random, body: bytes) -> bytes:
    """LOCAL, an undefined command, a datagram, or a family without addresses that are read."""
    command, family, transport = rng.choice(
        (
            (0, rng.getrandbits(4), rng.getrandbits(4)),
            (rng.randint(2, 15), rng.choice((1, 2)), rng.choice((1, 1, 2))),
            (1, rng.choice((1, 2)), rng.choice((0, *range(2, 16)))),
            (1, rng.choice((0, *range(3, 16))), rng.getrandbits(4)),
        )
    )
    content = rng.choice((b"", body, rng.randbytes(rng.randint(1, 60)), rng.randbytes(216)))
    return _v2(0x20 | command, family << 4 | transport, content)


def _malformed(rng: random.Random, networks: Sequence[Network]) -> bytes:
    if rng.random() < 0.2:
        return rng.choice(_MALFORMED_WITHOUT_FIELDS)
    fields = [_v1_address(rng, networks), _v1_address(rng, networks), rng.choice(_PORTS), rng.choice(_PORTS)]
    return rng.choice(_MALFORMED) % tuple(fields)


def _mutated(rng: random.Random, networks: Sequence[Network]) -> bytes:
    return _damaged(rng, _sound(rng, networks))


def _mutated_head(rng: random.Random, networks: Sequence[Network]) -> bytes:
    data = _sound(rng, networks)
    return _damaged(rng, data[:16]) + data[16:]


def _missing(rng: random.Random, networks: Sequence[Network]) -> bytes:
    return b""


def _double(rng: random.Random, networks: Sequence[Network]) -> bytes:
    return _sound(rng, networks) + _sound(rng, networks)


def _unknown_without_end(rng: random.Random, networks: Sequence[Network]) -> bytes:
    """nginx takes the first CR LF for the end, even that of the request's first line."""
    return _unknown(rng)[:-2] + rng.choice((b"", b"\n", b"\r", b" "))


def _wrong_version(rng: random.Random, networks: Sequence[Network]) -> bytes:
    body, family = _body(rng, networks, rng.choice((1, 2)))
    return _v2(rng.choice((0x01, 0x11, 0x31, 0xF0)), family << 4 | 1, body)


def _wrong_length(rng: random.Random, networks: Sequence[Network]) -> bytes:
    """Too short for its addresses, reaching into the request, or covering fewer bytes than there are."""
    body, family = _body(rng, networks, rng.choice((1, 2)))
    size = len(body)
    lengths = (
        0,
        1,
        11,
        12,
        13,
        35,
        36,
        37,
        size - 1,
        size - 2,
        size + rng.randint(1, 60),
        size + 5000,
        0xFFFF,
    )
    return _v2(rng.choice((0x21, 0x21, 0x20)), family << 4 | 1, body, rng.choice(lengths))


def _short_body(rng: random.Random, networks: Sequence[Network]) -> bytes:
    body, family = _body(rng, networks, rng.choice((1, 2)))
    return _v2(0x21, family << 4 | 1, body[: rng.randint(0, 40)])


def _damaged(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randint(0, len(damaged))
        change = rng.choice((b"", rng.randbytes(1), rng.choice((b" ", b"\r", b"\n", b"0", b":", b"\x00"))))
        damaged[at : at + rng.choice((0, 1, 1, 1, 3))] = change
    return bytes(damaged)


_DAMAGES = (
    _malformed, _malformed, _mutated, _mutated, _mutated_head, _mutated_head, _missing, _double,
    _unknown_without_end, _wrong_version, _wrong_length, _wrong_length, _short_body, _too_long,
)  # fmt: skip
