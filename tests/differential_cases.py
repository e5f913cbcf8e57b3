"""Which configurations and connections the differential test tries: all of it follows from the seed.

A case has a number of its own and can be made without making those before it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from tests.differential_addresses import Network, neighbour, network_text, random_network
from tests.differential_headers import request
from tests.differential_preambles import Made, preamble, stray, tls_preamble

CASES_PER_CONFIG = 50

#: Where a listener stands. ``[::]`` serves IPv4 as well, and sees ``::ffff:127.x.y.z``.
HOSTS = ("127.0.0.1", "127.0.0.1", "127.0.0.1", "[::1]", "[::]", "unix:")
_HEADERS = (
    ("X-Forwarded-For",) * 10
    + ("X-Real-IP",) * 5
    + ("proxy_protocol",) * 4
    + ("X-Client-IP", "x-forwarded-for", "X-Forwarded-for", "X-FORWARDED-FOR", "CF-Connecting-IP")
    + ("x-real-ip", "X-Real-Ip", "X_Forwarded_For", "X_Real_IP", "Proxy_Protocol", "Forwarded")
    + ("User-Agent", "Host", "Via")
)
_COVERING = {
    "127.0.0.1": ("127.0.0.0/8", "127.0.0.1", "127.0.0.1/32", "126.0.0.0/7", "127.0.0.0/9", "0.0.0.0/0"),
    "[::1]": ("::1", "::1/128", "::/0", "::/96", "0:0:0:0:0:0:0:0/64"),
    "unix:": ("unix:",),
}
_COVERING["[::]"] = _COVERING["127.0.0.1"]
_EVERYTHING = ("0.0.0.0/0", "::/0", "unix:")
# What looks as if it covered an IPv4-mapped address, and more of the kind.
_TRAPS = (
    "::ffff:0:0/96",
    "::ffff:127.0.0.1",
    "::ffff:0:0/95",
    "::/0",
    "0.0.0.0/0",
    "::/96",
    "255.255.255.255",
    "unix:",
)

_ODD_METHOD = re.compile(rb"[\r\n]*(?!GET )[A-Z_-]+ /")


class Config(NamedTuple):
    """One server block, one listener. ``networks`` are the trusted ones, to aim addresses at."""

    number: int
    trusted_ips: tuple[str, ...]
    networks: tuple[Network, ...]
    header: str
    recursive: bool
    host: str
    proxy_protocol: bool
    ssl: bool

    @property
    def plain_uvicorn(self) -> bool:
        """Whether ours is to be the middleware alone, which then knows what uvicorn tells it."""
        return self.number % 2 == 0 and not self.proxy_protocol

    @property
    def flags(self) -> tuple[str, ...]:
        given = {"ssl": self.ssl, "proxy_protocol": self.proxy_protocol, "ipv6only=off": self.host == "[::]"}
        return tuple(flag for flag, wanted in given.items() if wanted)


class Case(NamedTuple):
    """One connection. ``tls_segments`` go inside of TLS, behind the raw ones."""

    number: int
    config: Config
    source: str
    segments: tuple[bytes, ...]
    tls_segments: tuple[bytes, ...] = ()


def make_config(seed: int, number: int) -> Config:
    rng = random.Random(f"{seed} config {number}")
    host = rng.choice(HOSTS)
    header = rng.choice(_HEADERS)
    texts, networks = _trusted(rng, host)
    return Config(
        number,
        texts,
        networks,
        header,
        recursive=rng.random() < 0.65,
        host=host,
        proxy_protocol=rng.random() < (0.85 if header == "proxy_protocol" else 0.4),
        ssl=rng.random() < 0.06,
    )


def _trusted(rng: random.Random, host: str) -> tuple[tuple[str, ...], tuple[Network, ...]]:
    if rng.random() < 0.04:
        return (), (random_network(rng),)
    networks = [
        random_network(rng) for _ in range(rng.choice((0, 1, 2, 2, 3, 4, 6, 60 if rng.random() < 0.2 else 5)))
    ]
    if networks and rng.random() < 0.2:
        networks.append(neighbour(rng, rng.choice(networks)))
    texts = [network_text(rng, network) for network in networks]
    if rng.random() < 0.9:
        texts.append(rng.choice(_COVERING[host]))
    if rng.random() < 0.15:
        texts += rng.choices(_TRAPS, k=2)
    if rng.random() < 0.06:
        texts += _EVERYTHING
    rng.shuffle(texts)
    return tuple(texts), tuple(networks)


def make_case(seed: int, number: int, config: Config | None = None) -> Case:
    config = config or make_config(seed, number // CASES_PER_CONFIG)
    rng = random.Random(f"{seed} case {number}")
    while True:
        case = _case(rng, number, config)
        if not leaves_odd_method(b"".join(case.segments)):
            return case


def leaves_odd_method(data: bytes) -> bool:
    """Whether a preamble that is a byte too long or too short makes ET or XGET of the word GET.

    Such cases are left out: nginx serves any method of capital letters, uvicorn knows a list.
    """
    if data.startswith(b"\r\n\r\n\x00\r\nQUIT\n"):
        rest = data[16 + int.from_bytes(data[14:16], "big") :]
    else:
        rest = data.partition(b"\r\n")[2]
    return _ODD_METHOD.match(rest) is not None


def _case(rng: random.Random, number: int, config: Config) -> Case:
    made, alone = _preamble(rng, config)
    requests = _requests(rng, config)
    source = _source(rng, config)
    if alone:
        return Case(number, config, source, (made.data,))
    if config.ssl:
        raw = (made.data,) if made.data else ()
        return Case(number, config, source, raw, _segments(rng, b"", requests))
    if made.sound:
        return Case(number, config, source, _segments(rng, made.data, requests))
    return Case(number, config, source, (made.data + b"".join(requests),))


def _requests(rng: random.Random, config: Config) -> list[bytes]:
    """Those of one connection, at times the same one again."""
    made: list[bytes] = []
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 2, 3))):
        again = made and rng.random() < 0.3
        made.append(rng.choice(made) if again else request(rng, config.header, config.networks, last=False))
    return [*made, request(rng, config.header, config.networks, last=True)]


def _preamble(rng: random.Random, config: Config) -> tuple[Made, bool]:
    """What comes before HTTP, and whether nothing follows: only its beginning is sent, or it alone."""
    networks = config.networks
    if not config.proxy_protocol:
        # Not in front of TLS: there nginx answers in plain text, and we by ending the handshake.
        unexpected = rng.random() < 0.03 and not config.ssl
        return stray(rng, networks) if unexpected else Made(b"", sound=True), False
    # Rare, because this takes seconds: our server waits for the rest, and both for a request.
    if rng.random() < 0.003:
        data = stray(rng, networks).data
        return Made(data[: rng.choice((rng.randint(1, len(data) - 1), len(data)))]), True
    return (tls_preamble if config.ssl else preamble)(rng, networks), False


def _segments(rng: random.Random, head: bytes, requests: Sequence[bytes]) -> tuple[bytes, ...]:
    """The same bytes in one piece, a request at a time, or cut anywhere behind ``head``."""
    roll = rng.random()
    body = b"".join(requests)
    if roll < (0.85 if len(requests) == 1 else 0.75):
        return (head + body,)
    if roll < 0.85:
        return (head + requests[0], *requests[1:])
    if roll < 0.92 and head:
        return (head, body)
    cuts = sorted(rng.sample(range(1, len(body)), rng.randint(1, 3)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    return (head + pieces[0], *pieces[1:])


def _source(rng: random.Random, config: Config) -> str:
    """The address that the client connects from."""
    if config.host in ("[::1]", "unix:"):
        return "::1" if config.host == "[::1]" else ""
    if rng.random() < 0.6:
        return "127.0.0.1"
    return f"127.{rng.randint(1, 254)}.{rng.randint(1, 254)}.{rng.randint(1, 254)}"
