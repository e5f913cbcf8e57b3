"""What the clients of the soak say: the kinds of talk, and how often there is each."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from benchmarks.soak_clients import PEER, Due, Lines, chain, nobody, odd_chain, preamble, stranger, unnamed
from tests.faults.hostile import BROKEN, REQUEST
from tests.running import LOOPBACK

#: Two listeners that read preambles, a relay in front of the first, and two that read X-Forwarded-For.
PLAIN, TLS, RELAY, HEADERS, HEADERS_TLS = "plain", "tls", "relay", "headers", "headers tls"
_BY_PREAMBLE, _BY_HEADER = (PLAIN, TLS, RELAY), (HEADERS, HEADERS_TLS)
#: How a talk is held.
ASKS, PIPELINE, HTTP2, WEBSOCKET = "asks", "pipeline", "http2", "websocket"
REFUSED, ABORTED = "refused", "aborted"
# Far below the servers' deadline of ten seconds: the clients may have to wait for the processor.
_SLOW_SECONDS = 3.0
_UPGRADE = (
    ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "c29hay1zb2FrLXNvYWshIQ=="),
)  # fmt: skip


class Ask(NamedTuple):
    """One request. ``path`` begins with the due client, so that the access log can be held against it."""

    due: Due
    path: str
    lines: Lines
    body: bytes = b""

    def written(self) -> bytes:
        """As HTTP/1.1."""
        method = "POST" if self.body else "GET"
        lines = [*self.lines, *([("Content-Length", str(len(self.body)))] if self.body else [])]
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"{method} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


class Talk(NamedTuple):
    """One connection: ``opening`` comes before TLS, then the asks, or ``said`` where no answer is due.

    With ``seconds`` what is sent first is sent in pieces that take so long.
    """

    kind: str
    way: str
    listener: str
    source: str = LOOPBACK
    opening: bytes = b""
    asks: Sequence[Ask] = ()
    said: bytes = b""
    seconds: float = 0.0

    @property
    def is_tls(self) -> bool:
        return self.listener in (TLS, HEADERS_TLS)

    @property
    def requests(self) -> int:
        return max(1, len(self.asks))


def deck() -> Iterator[Talk]:
    """Talks without end: each kind as often as it weighs, in another order each time."""
    cards = [kind for kind, weight in _KINDS.items() for _ in range(weight)]
    while True:
        random.shuffle(cards)
        for kind in cards:
            yield kind()


def _ask(due: Due, *lines: tuple[str, str], body: bytes = b"") -> Ask:
    number = random.randrange(1 << 30)
    host = ("Host", f"host-{number % 5000}.example")
    return Ask(due, f"/{due.ip}/{number}", [host, *lines], body)


def _last(asks: list[Ask]) -> list[Ask]:
    """After the last of them the server is to close, in half of the talks."""
    if random.random() < 0.5:
        asks[-1].lines.append(("Connection", "close"))
    return asks


def _told() -> Lines:
    """Of the values that are believed or not, beside the client's address."""
    lines = [
        ("X-Forwarded-Proto", random.choice(("http", "https", "ftp"))),
        ("X-Forwarded-Host", f"outside-{random.randrange(5000)}.example"),
        ("X-Forwarded-Port", str(random.randrange(1 << 16))),
        ("X-Forwarded-Prefix", "/api"),
        ("X-Real-IP", "6.6.6.6"),
    ]
    return random.sample(lines, random.randrange(len(lines)))


def _forged() -> Lines:
    """For where no header is read."""
    return random.choice(([], [("X-Forwarded-For", "6.6.6.6"), ("X-Real-IP", "6.6.6.6")]))


def _behind_preamble(way: str, kind: str, listeners: Sequence[str], most: int) -> Talk:
    opening, due = preamble()
    asks = _last([_ask(due, *_forged()) for _ in range(random.randint(1, most))])
    return Talk(kind, way, random.choice(listeners), opening=opening, asks=asks)


def _behind_headers(way: str, kind: str, most: int, make: Callable[[], tuple[Lines, Due]]) -> Talk:
    made = [make() for _ in range(random.randint(1, most))]
    asks = _last([_ask(due, *lines, *_told()) for lines, due in made])
    return Talk(kind, way, random.choice(_BY_HEADER), asks=asks)


def _one_shot() -> Talk:
    return _behind_preamble(ASKS, "preamble, one request", _BY_PREAMBLE, 1)


def _kept() -> Talk:
    return _behind_preamble(ASKS, "preamble, keep-alive", _BY_PREAMBLE, 6)


def _pipeline() -> Talk:
    return _behind_preamble(PIPELINE, "preamble, pipeline", _BY_PREAMBLE, 8)


def _local() -> Talk:
    opening, due = unnamed(LOOPBACK)
    return Talk(
        "preamble that names nobody", ASKS, random.choice((PLAIN, TLS)), LOOPBACK, opening, [_ask(due)]
    )


def _preamble_of_a_stranger() -> Talk:
    source = stranger()
    ask = _ask(Due(source, None, PEER), *_forged())
    return Talk("preamble, peer not trusted", ASKS, random.choice((PLAIN, TLS)), source, preamble()[0], [ask])


def _header_chain() -> Talk:
    return _behind_headers(ASKS, "header, chain", 4, chain)


def _header_pipeline() -> Talk:
    return _behind_headers(PIPELINE, "header, pipeline", 8, chain)


def _header_odd() -> Talk:
    return _behind_headers(ASKS, "header, no client in it", 2, random.choice((odd_chain, nobody)))


def _header_of_a_stranger() -> Talk:
    source = stranger()
    ask = _ask(Due(source, None, PEER), *chain()[0], *_told())
    return Talk("header, peer not trusted", ASKS, random.choice(_BY_HEADER), source, asks=[ask])


def _http2() -> Talk:
    if random.random() < 0.5:
        opening, due = preamble()
        asks = [_ask(due, *_forged()) for _ in range(random.randint(1, 8))]
        return Talk("HTTP/2, preamble", HTTP2, TLS, opening=opening, asks=asks)
    chains = [chain() for _ in range(random.randint(1, 8))]
    asks = [_ask(due, *lines, *_told()) for lines, due in chains]
    return Talk("HTTP/2, headers", HTTP2, HEADERS_TLS, asks=asks)


def _websocket() -> Talk:
    if random.random() < 0.5:
        opening, due = preamble()
        asks = [_ask(due, *_UPGRADE, *_forged())]
        return Talk("WebSocket, preamble", WEBSOCKET, random.choice(_BY_PREAMBLE), opening=opening, asks=asks)
    lines, due = chain()
    return Talk(
        "WebSocket, header", WEBSOCKET, random.choice(_BY_HEADER), asks=[_ask(due, *_UPGRADE, *lines)]
    )


def _large() -> Talk:
    opening, due = preamble()
    asks = [_ask(due, body=bytes(random.randrange(1 << 14, 1 << 20))), _ask(due)]
    return Talk("large body", ASKS, random.choice(_BY_PREAMBLE), opening=opening, asks=asks)


def _slow_preamble() -> Talk:
    talk = _behind_preamble(ASKS, "slow preamble", _BY_PREAMBLE, 1)
    return talk._replace(seconds=_SLOW_SECONDS)


def _slow_head() -> Talk:
    return _behind_headers(ASKS, "slow head", 1, chain)._replace(listener=HEADERS, seconds=_SLOW_SECONDS)


def _too_slow() -> Talk:
    """Half of something, and the deadline comes."""
    opening, _ = preamble()
    said, listener = random.choice(
        (
            (b"", PLAIN),
            (_cut(opening), random.choice(_BY_PREAMBLE)),
            (opening + _cut(_client_hello()), TLS),
            (_cut(_client_hello()), HEADERS_TLS),
            (_cut(_header_chain().asks[0].written()), HEADERS),
        )
    )
    return Talk("half, and silence", REFUSED, listener, opening=said)


def _cut(data: bytes) -> bytes:
    return data[: random.randrange(1, len(data))]


@cache
def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="service.test")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def _broken_preamble() -> Talk:
    """With a request behind it, which would be answered if the preamble were let through."""
    opening = random.choice(BROKEN) + REQUEST
    return Talk("broken preamble", REFUSED, random.choice(_BY_PREAMBLE), opening=opening)


def _no_tls() -> Talk:
    garbage = random.choice(
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" * 9, b"\xff" * 40, b"\x15\x03\x01")
    )
    return random.choice(
        (
            Talk("garbage for TLS", REFUSED, TLS, opening=preamble()[0] + garbage + bytes(600)),
            Talk("garbage for TLS", REFUSED, HEADERS_TLS, opening=garbage + bytes(600)),
        )
    )


def _no_http() -> Talk:
    """What is no request, in clear text, behind a preamble or through TLS."""
    said = random.choice(
        (
            b"\xff" * 40 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
    )
    listener = random.choice((*_BY_PREAMBLE, *_BY_HEADER))
    opening = preamble()[0] if listener in _BY_PREAMBLE else b""
    return Talk("no HTTP", REFUSED, listener, opening=opening, said=said)


def _stray() -> Talk:
    """A preamble or TLS for a listener that takes neither."""
    return Talk(
        "stray", REFUSED, HEADERS, opening=random.choice((preamble()[0], _client_hello())) + b"\r\n\r\n"
    )


def _aborted() -> Talk:
    """The client goes away at one of the stages, before anything has been answered."""
    opening, due = preamble()
    whole = _ask(due, body=bytes(100_000)).written()
    head = whole.index(b"\r\n\r\n")
    plain, any_of_them = random.choice((PLAIN, RELAY)), random.choice(_BY_PREAMBLE)
    kind, listener, before, said = random.choice(
        (
            ("after connect", any_of_them, b"", b""),
            ("inside the preamble", any_of_them, _cut(opening), b""),
            ("behind the preamble", plain, opening, b""),
            ("inside ClientHello", TLS, opening + _cut(_client_hello()), b""),
            ("behind ClientHello", TLS, opening + _client_hello(), b""),
            ("inside the head", any_of_them, opening, whole[: random.randrange(1, head)]),
            ("inside the body", any_of_them, opening, whole[: random.randrange(head + 4, len(whole))]),
            ("before the answer", any_of_them, opening, whole),
        )
    )
    return Talk(f"aborted {kind}", ABORTED, listener, opening=before, said=said)


_KINDS: dict[Callable[[], Talk], int] = {
    _one_shot: 14, _kept: 8, _pipeline: 3, _local: 4, _preamble_of_a_stranger: 4,
    _header_chain: 14, _header_pipeline: 3, _header_odd: 6, _header_of_a_stranger: 5,
    _http2: 5, _websocket: 4, _large: 2, _slow_preamble: 2, _slow_head: 2, _too_slow: 2,
    _broken_preamble: 6, _no_tls: 3, _no_http: 4, _stray: 1, _aborted: 12,
}  # fmt: skip
