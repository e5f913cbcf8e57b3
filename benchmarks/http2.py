"""CPU time and rate of HTTP/2 behind TLS with a preamble, to the same without one.

Both are listeners of one process, so neither can be the one that had a bad start. Server and load
have a core each, rounds are short and alternate, and what counts is the median of the ratios of
neighbouring rounds. The last column is the same load on uvicorn bare, another process.

    python -m benchmarks.http2 [--starts 5] [--rounds 15] [--requests 2400]
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.server import HOST, PREAMBLE, Running, cpu_seconds, free_port, open_connection, process
from kongrealip.server.tls import self_signed

CONNECTIONS = 8
# CPU may cost 1/0.95 of what it costs without.
BAR = 1 / 0.95
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


def opened(server: Running, context: ssl.SSLContext) -> Connection:
    return Connection(open_connection(server, context, BEGIN))


def connections(server: Running, context: ssl.SSLContext, count: int) -> None:
    """Connections with one request each, a few at a time."""
    for _ in range(count // CONNECTIONS):
        batch = [opened(server, context) for _ in range(CONNECTIONS)]
        for connection in batch:
            connection.ask(1)
        for connection in batch:
            connection.wait_for(1)
            connection.sock.close()


def requests(streams: int, server: Running, context: ssl.SSLContext, count: int) -> None:
    """Requests on a few connections that stay open, some at a time on each."""
    batch = [opened(server, context) for _ in range(CONNECTIONS)]
    for _ in range(count // CONNECTIONS // streams):
        for connection in batch:
            connection.ask(streams)
        for connection in batch:
            connection.wait_for(streams)
    for connection in batch:
        connection.sock.close()


Load = Callable[[Running, ssl.SSLContext, int], None]


class Row(NamedTuple):
    name: str
    load: Load
    share: float


ROWS = [
    Row("connection, one request", connections, 0.04),
    Row("request, one stream", partial(requests, 1), 1),
    Row("request, 32 streams at once", partial(requests, 32), 3.2),
]


class Cost(NamedTuple):
    """Of one unit, in microseconds."""

    cpu: float
    wall: float


def ours(stack: ExitStack, pair: tuple[str, str]) -> tuple[Running, Running]:
    """The two listeners of one process: without and with a preamble."""
    without, with_ = free_port(), free_port()
    environ = {
        "KONG_TRUSTED_IPS": "127.0.0.0/8",
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        "KONG_PROXY_LISTEN": f"{HOST}:{without} ssl http2, {HOST}:{with_} ssl http2 proxy_protocol",
        "KONG_SSL_CERT": pair[0],
        "KONG_SSL_CERT_KEY": pair[1],
    }
    command = ["kongrealip", "serve", "benchmarks.app:app", "--no-access-log"]
    pid = stack.enter_context(process(command, with_, environ))
    return Running(pid, without, b"", True), Running(pid, with_, PREAMBLE, True)


def uvicorn(stack: ExitStack, pair: tuple[str, str]) -> Running:
    port = free_port()
    command = ["uvicorn", "benchmarks.app:app", "--port", str(port), "--no-access-log", "--no-proxy-headers"]
    command += ["--http", "zttp", "--http2", "--ssl-certfile", pair[0], "--ssl-keyfile", pair[1]]
    return Running(stack.enter_context(process(command, port, {})), port, b"", True)


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def cost_of(load: Load, server: Running, context: ssl.SSLContext, count: int) -> Cost:
    cpu, wall = cpu_seconds(server.pid), time.perf_counter()
    load(server, context, count)
    wall = time.perf_counter() - wall
    return Cost((cpu_seconds(server.pid) - cpu) / count * 1e6, wall / count * 1e6)


def measure(row: Row, pair: tuple[str, str], options: argparse.Namespace) -> list[tuple[Cost, ...]]:
    """Costs without preamble, with one, and of uvicorn bare, round by round."""
    context, count = client_context(), int(options.requests * row.share)
    measured = []
    for _ in range(options.starts):
        with ExitStack() as stack:
            servers = (*ours(stack, pair), uvicorn(stack, pair))
            for number in range(options.rounds + 1):
                # Each order as often as the other, so that a machine that gets slower favours none.
                order = servers if number % 2 else servers[::-1]
                cost = {server: cost_of(row.load, server, context, count) for server in order}
                if number:  # the first round warms up
                    measured.append(tuple(cost[server] for server in servers))
    return measured


def show(row: Row, measured: list[tuple[Cost, ...]]) -> None:
    def median(ratio: Callable[[Cost, Cost, Cost], float]) -> float:
        return statistics.median(ratio(*costs) for costs in measured)

    cpu = median(lambda without, with_, bare: with_.cpu / without.cpu)
    rate = median(lambda without, with_, bare: without.wall / with_.wall)
    to_uvicorn = median(lambda without, with_, bare: with_.cpu / bare.cpu)
    without_us, with_us, bare_us = (
        statistics.median(cost.cpu for cost in column) for column in zip(*measured, strict=True)
    )
    print(
        f"{row.name:28} cpu {cpu:.3f} (bar {BAR:.2f})  rate {rate:.3f}  cpu to uvicorn {to_uvicorn:.3f}"
        f"   without {without_us:7.1f} us, with {with_us:7.1f} us, uvicorn {bare_us:7.1f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="of the servers")
    parser.add_argument("--rounds", type=int, default=15, help="for each start")
    parser.add_argument("--requests", type=int, default=2400, help="in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print(f"HTTP/2 behind TLS, with a preamble to without, {options.starts} x {options.rounds} paired rounds")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("certificate", "key")]
        for file, text in zip(files, self_signed(), strict=True):
            file.write_text(text)
        for row in ROWS:
            show(row, measure(row, (str(files[0]), str(files[1])), options))


if __name__ == "__main__":
    main()
