"""A client's end of a connection in the soak, byte by byte, and HTTP/1.1 as far as it is needed."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

_PIECES = 12
# SO_LINGER with no time at all: close() then sends a reset.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Wire:
    """A client's end of a connection, through TLS once hands are shaken."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self._held = b""
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    async def shake_hands(self, context: ssl.SSLContext) -> None:
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="service.test")
        await self._until_done(tls.do_handshake)
        await self._flush()
        self._tls = tls

    async def send(self, data: bytes) -> None:
        if self._tls is None:
            await self._loop.sock_sendall(self.sock, data)
        elif data:
            self._tls.write(data)
            await self._flush()

    async def receive(self) -> bytes:
        """Some bytes, or none where the server has closed."""
        if self._held:
            held, self._held = self._held, b""
            return held
        try:
            if self._tls is None:
                return await self._loop.sock_recv(self.sock, 65536)
            tls = self._tls
            data: bytes = await self._until_done(lambda: tls.read(65536))
            return data
        except (ConnectionError, ssl.SSLError):
            return b""

    def put_back(self, data: bytes) -> None:
        self._held = data

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        data = b""
        while piece := await self.receive():
            data += piece
        return data

    def close(self, with_reset: bool = False) -> None:
        if with_reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    async def _flush(self) -> None:
        await self._loop.sock_sendall(self.sock, self._outgoing.read())

    async def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._loop.sock_recv(self.sock, 65536)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()


async def send_in_pieces(wire: Wire, data: bytes, seconds: float) -> None:
    if not seconds:
        await wire.send(data)
        return
    size = len(data) // _PIECES + 1
    for start in range(0, len(data), size):
        await asyncio.sleep(seconds / _PIECES)
        await wire.send(data[start : start + size])


async def read_head(wire: Wire) -> bytes:
    """Up to the empty line; what is behind it is received next."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := await wire.receive()):
            raise EOFError(data)
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    wire.put_back(rest)
    return head


async def read_answer(wire: Wire) -> bytes:
    """The body of one answer, whose status must be 200."""
    head = await read_head(wire)
    if not head.startswith(b"HTTP/1.1 200 "):
        raise EOFError(head)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        if not (piece := await wire.receive()):
            raise EOFError(body)
        body += piece
    wire.put_back(body[length:])
    return body[:length]


def client_context(http2: bool) -> ssl.SSLContext:
    version = random.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
    return _context_of(version, "h2" if http2 else "http/1.1")


@cache
def _context_of(version: ssl.TLSVersion, protocol: str) -> ssl.SSLContext:
    """A client that takes the server's self-signed certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols([protocol])
    return context
