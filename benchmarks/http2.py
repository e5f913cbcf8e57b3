"""CPU time and rate of HTTP/2 behind TLS with a preamble, to the same without one.

Both are listeners of one process, so neither can be the one that had a bad start. The last side is
the same load on uvicorn bare, another process.

    python -m benchmarks.http2 [--effort 1.0] [--only request]
"""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.comparison import OURS
from benchmarks.contest import Contest, Extent, Row, parser_of, run
from benchmarks.cost import LOAD_CORE, SERVER_CORE, on_core, tree
from benchmarks.load import HOST, PREAMBLE_V2, Side, client_tls, opened
from benchmarks.servers import BALANCERS, UVICORN, Job, Pair, certificate_pair, python, uvicorn
from tests.running import free_port

WHOLE = Extent(starts=5, rounds=15)
WITHOUT = "without a preamble"
CONNECTIONS = 8
# CPU may cost 1/0.95 of what it costs without.
_BARS = {WITHOUT: 1 / 0.95}
_HEADERS, _SETTINGS, _WINDOW_UPDATE = 1, 4, 8
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def field(index: int, value: bytes) -> bytes:
    """A header of HPACK's static table, whose value neither end remembers."""
    name = bytes([index]) if index < 15 else bytes([15, index - 15])
    return name + bytes([len(value)]) + value


# GET, https, /, the authority, accept and user-agent.
HEAD = b"\x82\x87\x84" + field(1, b"example.test") + field(19, b"*/*") + field(58, b"benchmark")
# With room for the answers of a whole round.
BEGIN = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(_SETTINGS, 0, 0)
    + frame(_WINDOW_UPDATE, 0, 0, struct.pack("!I", 1 << 30))
)


class Connection:
    """Sends requests and counts the answers; nothing else is looked at."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._held = b""
        self._next = 1

    def ask(self, count: int) -> None:
        last = self._next + 2 * count
        streams = range(self._next, last, 2)
        self._next = last
        flags = _END_STREAM | _END_HEADERS
        self.sock.sendall(b"".join([frame(_HEADERS, flags, stream, HEAD) for stream in streams]))

    def wait_for(self, count: int) -> None:
        while count:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._held += data
            count -= self._take_ends()

    def _take_ends(self) -> int:
        """Take whole frames; how many of them end a stream."""
        ends = position = 0
        while len(self._held) >= position + 9:
            end = position + 9 + int.from_bytes(self._held[position : position + 3])
            if end > len(self._held):
                break
            kind, flags = self._held[position + 3 : position + 5]
            ends += kind <= _HEADERS and flags & _END_STREAM
            position = end
        self._held = self._held[position:]
        return ends


def begun(side: Side) -> Connection:
    return Connection(opened(PREAMBLE_V2, side, BEGIN))


def connections(side: Side, count: int) -> None:
    """Connections with one request each, a few at a time."""
    for _ in range(count // CONNECTIONS):
        batch = [begun(side) for _ in range(CONNECTIONS)]
        for connection in batch:
            connection.ask(1)
        for connection in batch:
            connection.wait_for(1)
            connection.sock.close()


def requests(streams: int, side: Side, count: int) -> None:
    """Requests on a few connections that stay open, some at a time on each."""
    batch = [begun(side) for _ in range(CONNECTIONS)]
    for _ in range(count // CONNECTIONS // streams):
        for connection in batch:
            connection.ask(streams)
        for connection in batch:
            connection.wait_for(streams)
    for connection in batch:
        connection.sock.close()


@contextmanager
def started(names: Sequence[str]) -> Iterator[Mapping[str, Side]]:
    with ExitStack() as stack, on_core(SERVER_CORE):
        pair = certificate_pair(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        sides = {**ours(stack, pair), UVICORN: bare(stack, pair)}
        with on_core(LOAD_CORE):
            yield {name: sides[name] for name in names}


def ours(stack: ExitStack, pair: Pair) -> dict[str, Side]:
    """The two listeners of one process."""
    without, with_ = free_port(), free_port()
    environ = {
        "KONG_TRUSTED_IPS": BALANCERS,
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        "KONG_PROXY_LISTEN": f"{HOST}:{without} ssl http2, {HOST}:{with_} ssl http2 proxy_protocol",
        "KONG_SSL_CERT": str(pair.certificate),
        "KONG_SSL_CERT_KEY": str(pair.key),
    }
    command = ["kongrealip", "serve", "benchmarks.app:app", "--no-access-log"]
    pids = tree(stack.enter_context(python([without, with_], *command, environ=environ)).pid)
    context = http2_tls()
    return {OURS: Side(with_, pids, True, context), WITHOUT: Side(without, pids, False, context)}


def bare(stack: ExitStack, pair: Pair) -> Side:
    port = free_port()
    program = stack.enter_context(uvicorn(Job(pair.key.parent, port, pair), "--http", "zttp", "--http2"))
    return Side(port, tree(program.pid), False, http2_tls())


def http2_tls() -> ssl.SSLContext:
    context = client_tls()
    context.set_alpn_protocols(["h2"])
    return context


def contest() -> Contest:
    rows = [
        Row("connection, one request", connections, 96, "connection", bars=_BARS),
        Row("request, one stream", partial(requests, 1), 2400, "request", bars=_BARS),
        # A multiple of eight connections' 32 streams.
        Row("request, 32 streams at once", partial(requests, 32), 7680, "request", bars=_BARS),
    ]
    return Contest(rows, [OURS, WITHOUT, UVICORN], started)


if __name__ == "__main__":
    run("http2", [contest()], WHOLE, parser_of(__doc__).parse_args())
