"""The client of the differential test: sends a case's bytes and takes the answers down."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from functools import cache
from typing import cast

from tests.differential_cases import Case
from tests.differential_peers import Target, View
from tests.lab import client_tls

# When nothing comes for so long, the server waits for more.
_SILENT_SECONDS = 2.8
_PATIENCE_SECONDS = 20.0
_BETWEEN_SEGMENTS = 0.004
# Linux: choose the port at connect(), when it need be unique for this target only.
_IP_BIND_ADDRESS_NO_PORT = 24

CLOSED = "closed"
WAITING = "waiting for more"
HANGING = "no end"
ERROR = "HTTP error"

#: What came back: a View for each request that was served, ERROR, and how the connection ended.
Answers = list[View | str]


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(CLOSED)

    def give_up(self) -> None:
        if not self.ended.done():
            self.ended.set_result(WAITING)


async def ask(target: Target, case: Case) -> Answers:
    """Send the segments of the case and read until the server closes."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await _ask(target, case)
    except TimeoutError:
        return [HANGING]


async def _ask(target: Target, case: Case) -> Answers:
    sock = await _connected(target, case)
    port = "" if sock.family == socket.AF_UNIX else str(sock.getsockname()[1])
    try:
        transport, connection = await _open(sock, case)
    except (ssl.SSLError, ConnectionError):
        # How a preamble in front of TLS is refused. The socket belongs to the loop since
        # _open: closing it here as well could hit the next one with the same number.
        return [CLOSED]
    await _send(transport, case.tls_segments if case.config.ssl else case.segments)
    end = await _end_of(transport, connection)
    return [*_answers(bytes(connection.received), port), end]


async def _connected(target: Target, case: Case) -> socket.socket:
    """A socket on which everything has been sent that comes before TLS."""
    loop = asyncio.get_running_loop()
    sock = _socket(case)
    try:
        await loop.sock_connect(sock, _address(target, case))
        for segment in case.segments if case.config.ssl else ():
            await loop.sock_sendall(sock, segment)
    except OSError:
        sock.close()
        raise
    return sock


def _socket(case: Case) -> socket.socket:
    host = case.config.host
    family = {"unix:": socket.AF_UNIX, "[::1]": socket.AF_INET6}.get(host, socket.AF_INET)
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((case.source, 0))
    return sock


def _address(target: Target, case: Case) -> str | tuple[str, int]:
    if isinstance(target, str):
        return target
    return "::1" if case.config.host == "[::1]" else "127.0.0.1", target


async def _open(sock: socket.socket, case: Case) -> tuple[asyncio.Transport, _Connection]:
    """Make a transport of a connected socket, with TLS where the case has TLS."""
    loop = asyncio.get_running_loop()
    tls, name = (_tls(), "localhost") if case.config.ssl else (None, None)
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_connection(_Connection, sock=sock, ssl=tls, server_hostname=name)
    return await loop.create_connection(_Connection, sock=sock, ssl=tls, server_hostname=name)


@cache
def _tls() -> ssl.SSLContext:
    return client_tls()


async def _send(transport: asyncio.Transport, segments: tuple[bytes, ...]) -> None:
    for position, segment in enumerate(segments):
        if position:
            await asyncio.sleep(_BETWEEN_SEGMENTS)
        if transport.is_closing():
            return
        transport.write(segment)


async def _end_of(transport: asyncio.Transport, connection: _Connection) -> str:
    timer = asyncio.get_running_loop().call_later(_SILENT_SECONDS, connection.give_up)
    try:
        return cast(str, await connection.ended)
    finally:
        timer.cancel()
        transport.abort()


def _answers(data: bytes, port: str) -> Iterator[View | str]:
    """The responses in ``data``. An error is the last one: both servers close behind it."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status_line, *lines = head.lower().split(b"\r\n")
        status = status_line[9:12].decode("latin-1")
        if status != "200":
            yield ERROR if status.startswith("4") else f"status {status}"
            return
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        yield _without_port(json.loads(data[:length]), port)
        data = data[length:]


def _without_port(view: View, port: str) -> View:
    """The client's own port differs from connection to connection."""
    for name in ("remote_port", "realip_remote_port"):
        if view[name] == port != "":
            view[name] = "$peer_port"
    return view
