"""What it costs to read a PROXY preamble, beside others that read it in Python.

What a connection needs anyway, its stream or its HTTP parser, is made before the clock starts. Each
side is asked once beforehand whom the preamble names.

    python -m benchmarks.preamble [--effort 0.2]
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from aiosmtpd.proxy_protocol import get_proxy
from gunicorn.asgi.parser import PythonProtocol  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.http.unreader import IterUnreader  # type: ignore[import-untyped]
from proxyprotocol.reader import ProxyProtocolReader
from proxyprotocol.version import ProxyProtocolVersion

from benchmarks.comparison import OURS, Case, Sample, main, measure, timed
from kongrealip.preamble import parse

CLIENT = ("203.0.113.7", 40001)
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.9 40001 443\r\n"
ROUNDS, CONNECTIONS = 41, 1000
AIOSMTPD, PACKAGE = "aiosmtpd", "proxy-protocol"
GUNICORN_ASGI, GUNICORN_WSGI = "gunicorn asgi", "gunicorn wsgi"

#: A connection whose bytes come in pieces: read it. What that gives is for the reader's ``client``.
Connection = Callable[[], Any]


def v2(*tlvs: tuple[int, bytes]) -> bytes:
    area = b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    addresses = bytes.fromhex("cb007107c63364099c4101bb")
    head = struct.pack("!BBH", 0x21, 0x11, len(addresses) + len(area))
    return b"\r\n\r\n\x00\r\nQUIT\n" + head + addresses + area


FIVE_TLVS = v2(
    (0x01, b"h2"),
    (0x02, b"shop.example"),
    (0x05, b"4b1f0e0c-6d0b-4d0e-9c55-3b1d7f1f5d11"),
    (0x30, b"blue"),
    (0xEA, b"\x01vpce-08d2bf15fac5001c9"),
)


class Reader(NamedTuple):
    """One side: makes a connection ready to be read, and tells of what was read who the client is.

    ``tlvs`` gives them decoded, or is None where they are dropped.
    """

    ready: Callable[[Sequence[bytes]], Connection]
    client: Callable[[Any], tuple[str, int]]
    tlvs: Callable[[Any], Mapping[Any, bytes]] | None
    note: str = ""


def ours(pieces: Sequence[bytes]) -> Connection:
    def in_pieces() -> Any:
        """As the listener does, which looks again at all that has come."""
        held = b""
        for piece in pieces:
            held += piece
            found = parse(held)
        return found

    return in_pieces if len(pieces) > 1 else partial(parse, pieces[0])


def package(pieces: Sequence[bytes]) -> Connection:
    detect = ProxyProtocolVersion.DETECT.value
    if len(pieces) == 1:
        return partial(detect.unpack, pieces[0])
    # Its own way to read from a connection.
    return from_stream(ProxyProtocolReader(detect).read, pieces)


def aiosmtpd(pieces: Sequence[bytes]) -> Connection:
    return from_stream(get_proxy, pieces)


def from_stream(read: Callable[[Any], Any], pieces: Sequence[bytes]) -> Connection:
    """Without a loop, whose tasks and turns would cost more than the reading."""
    stream = asyncio.StreamReader(loop=_LOOP)

    def in_pieces() -> Any:
        reading = read(stream)
        for piece in pieces:
            stream.feed_data(piece)
            try:
                reading.send(None)
            except StopIteration as done:
                return done.value
        return None

    return in_pieces


def gunicorn_asgi(pieces: Sequence[bytes]) -> Connection:
    parser = PythonProtocol(proxy_protocol="auto")

    def in_pieces() -> Any:
        for piece in pieces:
            parser.feed(piece)
        return parser.proxy_protocol_info

    return in_pieces


def gunicorn_wsgi(pieces: Sequence[bytes]) -> Connection:
    request = Request.__new__(Request)
    request.cfg, request.peer_addr = _CONFIG, ("127.0.0.1", 1234)
    unreader, came = IterUnreader(pieces[1:]), bytearray(pieces[0])

    def in_pieces() -> Any:
        request._handle_proxy_protocol(unreader, came, "auto")
        return request.proxy_protocol_info

    return in_pieces


# Streams want one to make futures of; it never runs.
_LOOP = asyncio.new_event_loop()
_LOOP.close()
_CONFIG = Config()
_FROM_STREAM = "reads from a stream alone"


def said_by_gunicorn(info: Any) -> tuple[str, int]:
    return info["client_addr"], info["client_port"]


READERS = {
    OURS: Reader(ours, lambda found: found[0][2:4], lambda found: found[0].tlvs),
    PACKAGE: Reader(package, lambda result: result.peername[:2], lambda result: result.tlv),
    GUNICORN_ASGI: Reader(gunicorn_asgi, said_by_gunicorn, None, "drops TLVs"),
    GUNICORN_WSGI: Reader(gunicorn_wsgi, said_by_gunicorn, None, "drops TLVs"),
    AIOSMTPD: Reader(
        aiosmtpd, lambda data: (str(data.src_addr), data.src_port), lambda data: data.tlv, _FROM_STREAM
    ),
}


class Row(NamedTuple):
    name: str
    preamble: bytes
    bars: Mapping[str, float]
    piece: int = 4096
    with_tlvs: bool = False

    @property
    def pieces(self) -> list[bytes]:
        return [self.preamble[i : i + self.piece] for i in range(0, len(self.preamble), self.piece)]


ROWS = [
    Row("v1", V1, {GUNICORN_ASGI: 0.7, PACKAGE: 0.25}),
    Row("v2", v2(), {GUNICORN_WSGI: 0.45, PACKAGE: 0.25}),
    Row("v2 with five TLVs", FIVE_TLVS, {GUNICORN_WSGI: 0.45, PACKAGE: 0.25}),
    Row("v2 with five TLVs, and these decoded", FIVE_TLVS, {}, with_tlvs=True),
    Row("v1 in pieces of 8 bytes", V1, {PACKAGE: 0.25}, piece=8),
    Row("v2 with five TLVs in pieces of 8 bytes", FIVE_TLVS, {PACKAGE: 0.25}, piece=8),
]


def sample(row: Row, reader: Reader, connections: int) -> Sample:
    ready = [reader.ready(row.pieces) for _ in range(connections)]
    tlvs = reader.tlvs if row.with_tlvs else None

    def read_all() -> None:
        for read in ready:
            read()

    def decode_all() -> None:
        assert tlvs is not None
        for read in ready:
            tlvs(read())

    return timed(read_all if tlvs is None else decode_all, connections)


def check(row: Row, name: str, reader: Reader) -> None:
    """Whether the work is done that is about to be timed."""
    read = reader.ready(row.pieces)()
    if reader.client(read) != CLIENT:
        raise SystemExit(f"{name} finds {reader.client(read)} in {row.name}")
    if row.with_tlvs and reader.tlvs is not None and len(reader.tlvs(read)) != 5:
        raise SystemExit(f"{name} does not find five TLVs")


def cases(effort: float) -> Iterator[Case]:
    rounds, connections = max(2, round(ROUNDS * effort)), max(50, round(CONNECTIONS * min(1, effort * 10)))
    for row in ROWS:
        readers = {name: one for name, one in READERS.items() if one.tlvs or not row.with_tlvs}
        for name, reader in readers.items():
            check(row, name, reader)
        sides = {name: partial(sample, row, reader, connections) for name, reader in readers.items()}
        notes = {name: reader.note for name, reader in readers.items() if reader.note}
        yield Case("preamble", row.name, "preamble", measure(sides, rounds), dict(row.bars), notes=notes)


if __name__ == "__main__":
    main(__doc__, cases)
