"""What is asked of an HTTP server: connections with one request each, or requests on open ones.

The load has a core to itself and is never what is judged, so it does as little as it can.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import NamedTuple

from kongrealip.address import Address
from kongrealip.preamble import writing

HOST = "127.0.0.1"
#: Whom the preambles name.
CLIENT, CLIENT_PORT = "203.0.113.7", 40001
_ENDS = Address(CLIENT, CLIENT_PORT), Address("198.51.100.9", 443)
PREAMBLE_V1, PREAMBLE_V2 = writing.v1(*_ENDS), writing.v2(*_ENDS)
REQUEST = b"GET / HTTP/1.1\r\nHost: example.test\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"
LAST_REQUEST = REQUEST.replace(b"Accept", b"Connection: close\r\nAccept")
ANSWER = b"ok"
IN_FLIGHT = 8
_THE_SAME = repeat(REQUEST)


class Side(NamedTuple):
    """A server that is measured: where it listens, the processes it consists of, and what it can."""

    port: int
    pids: list[int]
    reads_preambles: bool = False
    tls: ssl.SSLContext | None = None


Load = Callable[[Side, int], None]


def client_tls() -> ssl.SSLContext:
    """Version 1.3 for all, whatever else a server may choose."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def connected(port: int) -> socket.socket:
    """Without the name look-up of create_connection(), a good part of what that costs."""
    sock = socket.socket()
    sock.connect((HOST, port))
    return sock


def opened(preamble: bytes, side: Side, first: bytes) -> socket.socket:
    """A connection on which ``first`` is sent, behind a preamble to those who read one."""
    sock = connected(side.port)
    preamble = preamble if side.reads_preambles else b""
    if side.tls:
        # Or the first message of TLS would wait until the preamble is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(preamble)
        sock = side.tls.wrap_socket(sock, server_hostname="localhost")
        sock.sendall(first)
    else:
        sock.sendall(preamble + first)
    return sock


def connections(preamble: bytes, side: Side, count: int) -> None:
    """Connections with one request each, a few at a time; the server answers and closes."""
    for _ in range(count // IN_FLIGHT):
        read_to_the_end([opened(preamble, side, LAST_REQUEST) for _ in range(IN_FLIGHT)])


def connections_at_once(preamble: bytes, side: Side, count: int) -> None:
    """The same through TLS, and all of a batch shake hands at once: ``opened`` does that one by one."""
    assert side.tls is not None
    for _ in range(count // IN_FLIGHT):
        batch = []
        for _ in range(IN_FLIGHT):
            sock = connected(side.port)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(preamble if side.reads_preambles else b"")
            secured = side.tls.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
            secured.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                secured.do_handshake()
            batch.append(secured)
        for secured in batch:
            secured.setblocking(True)
            secured.do_handshake()
            secured.sendall(LAST_REQUEST)
        read_to_the_end(batch)


def read_to_the_end(batch: Sequence[socket.socket]) -> None:
    for sock in batch:
        expect_answer(sock)
        while sock.recv(4096):
            pass
        sock.close()


def keep_alive(preamble: bytes, side: Side, count: int, requests: Iterator[bytes] = _THE_SAME) -> None:
    """Requests on a few connections that stay open."""
    batch = [opened(preamble, side, next(requests)) for _ in range(IN_FLIGHT)]
    for _ in range(count // IN_FLIGHT - 1):
        for sock in batch:
            expect_answer(sock)
            sock.sendall(next(requests))
    for sock in batch:
        expect_answer(sock)
        sock.close()


def expect_answer(sock: socket.socket) -> None:
    data = sock.recv(4096)
    while not data.endswith(ANSWER):
        more = sock.recv(4096)
        if not more:
            raise ConnectionResetError(f"not the answer of a server: {data!r}")
        data += more


def named_client(preamble: bytes, side: Side, path: str, forwarded: str) -> str:
    """Whom a server takes for the client."""
    asking = http.client.HTTPConnection(HOST)
    asking.sock = opened(preamble, side, b"")
    asking.request("GET", path, headers={"X-Forwarded-For": forwarded})
    answer = asking.getresponse().read().decode()
    asking.close()
    return answer


def with_header(forwarded: str) -> bytes:
    return REQUEST.replace(b"\r\n\r\n", f"\r\nX-Forwarded-For: {forwarded}\r\n\r\n".encode())


def new_clients() -> Iterator[bytes]:
    """Requests of a client each that was not there before, from the range for benchmarks (RFC 2544)."""
    while True:
        for number in range(1 << 17):
            client = f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            yield with_header(client)
