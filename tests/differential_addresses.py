"""Addresses for the differential test, in every spelling that somebody might send."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

_BITS = {4: 32, 6: 128}
_MAPPED = 0xFFFF << 32
_BROADCAST = 0xFFFFFFFF
# Groups at which nginx's way of printing IPv6 changes its mind (reference, section 5).
_TELLING_GROUPS = (0, 0, 0, 0, 0, 1, 0x101, 0x100, 0x102, 0xFF, 0xFFFF, 0xDB8)
_POPULAR = (
    (4, 0x0A000001), (4, 0x0A000002), (4, 0x7F000001), (4, 0xC0A80001), (4, 0xCB007107), (4, 0x08080808),
    (4, 0), (4, 1), (4, 0xFFFFFFFE), (4, _BROADCAST),
    (6, 0), (6, 1), (6, 0x20010DB8 << 96 | 1), (6, 0xFE80 << 112 | 1), (6, _MAPPED | 0x0A000001),
)  # fmt: skip
# Linux takes the ports of outgoing connections from 32768 to 60999. None of those is here: where
# it happened to be the client's own, one side alone would show a placeholder.
_PORTS = ("1", "80", "443", "8080", "31337", "65535", "00080", "0" * 40 + "443")
_BAD_PORTS = ("", "0", "000", "65536", "99999", "1" * 30, "+80", "-1", "8_0", "0x50", "80x", "8.0", "\xb2")
_DECORATIONS = (
    "{}%eth0", "{}%25eth0", '"{}"', "for={}", 'for="[{}]"', "{};", "{}/24", "[{}", "{}]", "[{}]x", "[{}]:",
    "[[{}]]", "[{}]]", "[]{}", "+{}", "-{}", "{}.", ".{}", "{}:", ":{}", "{}::", "\xa0{}", "{}\xe9", "{}\t",
    "{}\t{}", "0x{}", "::ffff:{}", "::{}", "64:ff9b::{}", "unix:{}", "http://{}", "{}\\", "{}%",
)  # fmt: skip
_JUNK = (
    "unknown", "unix:", "-", "_", "localhost", "example.test", "...", "....", "..", ":::", "::", ":", "[]",
    "[]:80", "[::]", "[...]:80", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.1000", "1..3.4", "1.2.3.",
    ".1.2.3", "0x7f.0.0.1", "2130706433", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:", ":1:2:3:4:5:6:7:8", "::1:",
    ":1::2", "1::2::3", "1:2:3:4::5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "12345::1", "::12345",
    "1:2:3:4:5:6:7:1.2.3.4", "1:2:3:4:5:1.2.3.4", "::1.2.3.4:5", "::1.2.3", "1.2.3.4::", "::ffff:1.2.3.256",
    "::.1.2.3", "::1...", "::ffff:255.255.255.255", "1.2.3.4:80:80", "\xff\xfe", "null", "\xd9\xa4",
)  # fmt: skip
SOUP = "0123456789abcdefABCDEF::::...."


class Network(NamedTuple):
    """A range of addresses; ``first`` has no bit behind the prefix."""

    version: int
    first: int
    prefix: int

    @property
    def host_bits(self) -> int:
        return _BITS[self.version] - self.prefix


class Ip(NamedTuple):
    version: int
    number: int


def random_network(rng: random.Random) -> Network:
    """Of any size, but mostly of one that neither covers everything nor nothing."""
    version, number = _random_ip(rng)
    bits = _BITS[version]
    prefix = rng.choice(
        (0, bits, rng.randint(0, bits), rng.randint(bits // 4, bits), bits // 4 * rng.randint(1, 3))
    )
    return Network(version, number >> bits - prefix << bits - prefix, prefix)


def neighbour(rng: random.Random, network: Network) -> Network:
    """One address just behind a network, or with one address between them."""
    bits = _BITS[network.version]
    last = network.first | (1 << network.host_bits) - 1
    return Network(network.version, (last + rng.choice((1, 2))) % (1 << bits), bits)


def network_text(rng: random.Random, network: Network) -> str:
    """One entry of a trusted list, in a form that both Kong and nginx accept."""
    # Bits behind the prefix are allowed. nginx refuses 255.255.255.255 with a prefix.
    number = (
        network.first | rng.choice((0, rng.getrandbits(network.host_bits)))
        if network.host_bits
        else network.first
    )
    if number & _BROADCAST == _BROADCAST:
        number = network.first if network.host_bits else number ^ 1
    text = _plain_ipv4(number) if network.version == 4 else _strict_ipv6(rng, number)
    return text if network.host_bits == 0 and rng.random() < 0.5 else f"{text}/{network.prefix}"


def _strict_ipv6(rng: random.Random, number: int) -> str:
    groups = [f"{group:x}" for group in _groups(number)]
    # nginx refuses "1:2:3:4:5:6:7::", which Kong takes: a gap for the last group alone.
    text = rng.choice((_with_gap(rng, groups, least=2), ":".join(group.zfill(4) for group in groups)))
    if rng.random() < 0.2:
        text = f"{':'.join(groups[:6])}:{_plain_ipv4(number & _BROADCAST)}"
    return rng.choice((text, text.upper()))


def pick(rng: random.Random, networks: Sequence[Network]) -> Ip:
    """An address inside the networks, at the edge of one, or anywhere."""
    roll = rng.random()
    if networks and roll < 0.6:
        version, first, _ = network = rng.choice(networks)
        return Ip(version, first | rng.getrandbits(network.host_bits) if network.host_bits else first)
    if networks and roll < 0.7:
        version, first, _ = network = rng.choice(networks)
        last = first | (1 << network.host_bits) - 1
        return Ip(version, rng.choice((first, last, first - 1, last + 1)) % (1 << _BITS[version]))
    return _random_ip(rng)


def _random_ip(rng: random.Random) -> Ip:
    roll = rng.random()
    if roll < 0.3:
        return Ip(*rng.choice(_POPULAR))
    if roll < 0.6:
        return Ip(4, rng.getrandbits(32))
    if roll < 0.7:
        return Ip(6, rng.choice((_MAPPED, 0, 1 << 32)) | rng.getrandbits(32))
    if roll < 0.76:
        return Ip(6, rng.choice(_TELLING_GROUPS) | rng.choice((0, 0, rng.getrandbits(16))))
    number = 0
    for _ in range(8):
        number = number << 16 | (rng.choice(_TELLING_GROUPS) if rng.random() < 0.8 else rng.getrandbits(16))
    return Ip(6, number)


def spell(rng: random.Random, ip: Ip) -> str:
    """The address as nginx reads it: mostly proper, at times in a way that only nginx would take."""
    return _ipv4(rng, ip.number) if ip.version == 4 else _ipv6(rng, ip.number)


def token(rng: random.Random, ip: Ip) -> str:
    """One entry of a forwarding header: an address, with a port or some decoration."""
    text, roll = spell(rng, ip), rng.random()
    if roll < 0.62:
        return text
    port = rng.choice(_PORTS if rng.random() < 0.85 else _BAD_PORTS)
    if roll < 0.78:
        return f"{text}:{port}" if ip.version == 4 else f"[{text}]:{port}"
    if roll < 0.9:
        return rng.choice((f"[{text}]", f"[{text}]:{port}", f"{text}:{port}"))
    if roll < 0.96:
        return rng.choice(_DECORATIONS).replace("{}", text)
    return mutate_text(rng, text)


def junk(rng: random.Random) -> str:
    """Something that is mostly no address. No separators in it, and nothing that ends a header."""
    if rng.random() < 0.6:
        return rng.choice(_JUNK)
    return "".join(rng.choices(SOUP, k=rng.randint(1, 24)))


def mutate_text(rng: random.Random, text: str) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 2)):
        at = rng.randint(0, len(characters))
        characters[at : at + rng.randint(0, 2)] = rng.choices(SOUP + "[]%/g", k=rng.randint(0, 2))
    return "".join(characters)


def _plain_ipv4(number: int) -> str:
    return ".".join(map(str, number.to_bytes(4, "big")))


def _ipv4(rng: random.Random, number: int) -> str:
    if rng.random() < 0.8:
        return _plain_ipv4(number)
    return ".".join(_octet(rng, octet) for octet in number.to_bytes(4, "big"))


def _octet(rng: random.Random, octet: int) -> str:
    if octet == 0 and rng.random() < 0.5:
        return ""
    return "0" * rng.choice((0, 0, 1, 2, 20)) + str(octet)


def _groups(number: int) -> list[int]:
    return [number >> shift & 0xFFFF for shift in range(112, -1, -16)]


def _ipv6(rng: random.Random, number: int) -> str:
    width = rng.choice((1, 1, 1, 4, 2))
    groups = [f"{group:0{width}x}" for group in _groups(number)]
    if rng.random() < 0.2:
        groups[6:] = [_ipv4(rng, number & _BROADCAST)]
    if rng.random() < 0.04:  # one group too many, or too few
        at = rng.randrange(len(groups))
        groups[at : at + rng.choice((0, 1))] = rng.choice(([], ["1"], [groups[at]] * 2))
    text = _with_gap(rng, groups, least=1)
    if text.endswith(":0") and rng.random() < 0.2:
        text = text[:-1]
    if rng.random() < 0.04:
        text = f":{text}"
    return rng.choice((text, text, text.upper(), text.swapcase()))


def _with_gap(rng: random.Random, groups: list[str], *, least: int) -> str:
    """The groups with ``::`` for a run of zeros: mostly the widest, or any part of one, or none."""
    runs = [
        (end - start, start, end)
        for start in range(len(groups))
        for end in range(start + least, len(groups) + 1)
        if not any(group.strip("0") for group in groups[start:end])
    ]
    if not runs or rng.random() < 0.1:
        return ":".join(groups)
    _, start, end = max(runs) if rng.random() < 0.7 else rng.choice(runs)
    return f"{':'.join(groups[:start])}::{':'.join(groups[end:])}"
