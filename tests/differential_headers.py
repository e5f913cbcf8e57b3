"""Requests for the differential test: well-formed HTTP around header values that are not.

What the two HTTP parsers see differently stays out (design, deliberate differences): odd header
names, TAB at either end of a value, bare LF, folding, control characters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from tests.differential_addresses import Network, junk, mutate_text, pick, spell, token

#: nginx holds one line in a buffer of 8 KiB unless told otherwise.
_LONGEST_VALUE = 7000
_SEPARATORS = (", ",) * 6 + (",", ",", " ", "  ", " , ", ",,", ", ,", " ,", ",  ,,  ", "\t", ",\t", ";", "; ")
_DECOYS = (
    "X-Real-IP", "X-Forwarded-For", "X_Real_IP", "X_Forwarded_For", "X-Forwarded-Fo", "X-Forwarded-For2",
    "Forwarded", "X-Client-IP", "User-Agent", "Accept", "X",
)  # fmt: skip


def request(rng: random.Random, header: str, networks: Sequence[Network], *, last: bool) -> bytes:
    """One request with any number of lines of ``header``, and decoys around them."""
    lines = [_line(rng, header, value(rng, networks)) for _ in range(_line_count(rng))]
    # Duplicates of Host are an error of HTTP, and so is nearly everything but a plain address in it.
    if header.lower() == "host":
        lines = []
    decoys = rng.choices(_DECOYS, k=rng.choice((0, 0, 1, 2)))
    lines += [_line(rng, name, value(rng, networks)) for name in decoys if name.lower() != header.lower()]
    lines.append(b"Host: " + _host(rng, networks))
    if last:
        lines.append(b"Connection: close")
    _shuffle(rng, lines)
    return b"\r\n".join((b"GET / HTTP/1.1", *lines, b"", b""))


def _shuffle(rng: random.Random, lines: list[bytes]) -> None:
    if len(lines) < 8:
        rng.shuffle(lines)
    else:  # nobody needs a new place for each of a hundred lines
        lines.insert(rng.randint(0, len(lines)), lines.pop())


def _line_count(rng: random.Random) -> int:
    roll = rng.random()
    if roll < 0.65:
        return 1
    return rng.choice((0, 2, 2, 2, 3, 3, 5)) if roll < 0.995 else rng.randint(10, 80)


def _host(rng: random.Random, networks: Sequence[Network]) -> bytes:
    ip = pick(rng, networks)
    text = str(IPv4Address(ip.number)) if ip.version == 4 else f"[{IPv6Address(ip.number)}]"
    return (text + rng.choice(("", ":80", ":65535"))).encode("ascii")


def _line(rng: random.Random, name: str, content: bytes) -> bytes:
    spelling = rng.choice((name, name, name.lower(), name.upper(), name.swapcase()))
    before, after = (b" " * rng.choice((1, 1, 1, 0, 3)), b" " * rng.choice((0, 0, 0, 1, 2)))
    return spelling.encode("ascii") + b":" + before + content + after


def value(rng: random.Random, networks: Sequence[Network]) -> bytes:
    """One value: an address, a list, rubbish, nothing, or a list of hundreds."""
    roll = rng.random()
    if roll < 0.4:
        text = token(rng, pick(rng, networks))
    elif roll < 0.88:
        junk_rate = rng.choice((0, 0, 0, 0.1, 0.4))
        text = _listed(rng, networks, rng.randint(2, 6), junk_rate)
    elif roll < 0.94:
        text = rng.choice((junk, _mutated_list))(rng)
    elif roll < 0.99:
        text = rng.choice(("", " ", ",", ", ", " ,", ",,,", ", , ", ","))
    else:
        text = _long_list(rng, networks)
    return _without_outer_tabs(text.encode("latin-1"))


def _listed(rng: random.Random, networks: Sequence[Network], count: int, junk_rate: float) -> str:
    separator = rng.choice(_SEPARATORS)
    text = rng.choice(("", "", "", "", ",", ", ", " ,"))
    for _ in range(count):
        text += junk(rng) if rng.random() < junk_rate else token(rng, pick(rng, networks))
        text += separator if rng.random() < 0.8 else rng.choice(_SEPARATORS)
    # Separators at the right end do not count, and most lists have none.
    return text if rng.random() < 0.15 else text.rstrip(" ,\t;")


def _mutated_list(rng: random.Random) -> str:
    return mutate_text(rng, _listed(rng, (), rng.randint(1, 4), 0.2))


def _long_list(rng: random.Random, networks: Sequence[Network]) -> str:
    """Mostly trusted hops, so that a walk goes on for long."""
    entries = [spell(rng, pick(rng, networks)) for _ in range(8)]
    size = rng.randint(100, _LONGEST_VALUE)
    separator = rng.choice((", ", ",", " "))
    hops: list[str] = []
    while size > 0:
        hops.append(rng.choice(entries) if rng.random() < 0.97 else token(rng, pick(rng, networks)))
        size -= len(hops[-1]) + len(separator)
    return separator.join(hops[1:])


def _without_outer_tabs(data: bytes) -> bytes:
    """nginx trims blanks alone, uvicorn's parser TABs too."""
    trimmed = data.strip(b" ")
    return data if trimmed == trimmed.strip(b"\t") else data.strip(b" \t")
