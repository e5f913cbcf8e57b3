"""Both ends of what benchmarks.relay has relayed. They share a core, so both do as little as they can.

That is plain send() and recv(). A higher SO_RCVLOWAT would wake the receiver less often, but was
seen to stall for seconds; sendfile() from memory made splicing half as dear again.

The upstream is a process of its own:

    python -m benchmarks.relay_load PORT [--preamble]
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

from benchmarks.load import HOST, Side, connected

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
# What a message asks for, by its first byte. SWALLOW and GIVE are followed by a number of bytes.
SWALLOW, GIVE, ANSWER, ECHO, SHOW = b"SGAEP"
_BULK = struct.Struct("!BQ")
DONE = b"."
REQUEST = bytes([ANSWER]) + bytes(99)
_ANSWER = bytes(100)
_MESSAGE = bytes([ECHO]) + bytes(63)
# Neither is ever written to, so both are but the system's one page of zeros, which stays cached.
_BLOCK = memoryview(bytes(1 << 20))
_WASTE = bytearray(1 << 20)


class Upstream:
    """Does what the first byte of a message says; bulk to its end, with nothing beside it."""

    def __init__(self, port: int, has_preamble: bool) -> None:
        self._has_preamble = has_preamble
        self._poll = select.epoll()
        self._connections: dict[int, socket.socket] = {}
        # Empty until it comes, which need not be together with the request.
        self._preambles: dict[int, bytes] = {}
        self._listener = socket.create_server((HOST, port), backlog=512)
        self._poll.register(self._listener, select.EPOLLIN)

    def run(self) -> None:
        listening = self._listener.fileno()
        while True:
            for fd, _ in self._poll.poll():
                if fd == listening:
                    self._accept()
                else:
                    self._serve(fd)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        fd = sock.fileno()
        self._connections[fd] = sock
        self._preambles[fd] = b""
        self._poll.register(fd, select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        sock = self._connections[fd]
        try:
            data = sock.recv(4096)
            stays_open = bool(data) and self._do(fd, sock, data)
        except OSError:
            stays_open = False
        if not stays_open:
            del self._connections[fd], self._preambles[fd]
            sock.close()

    def _do(self, fd: int, sock: socket.socket, data: bytes) -> bool:
        """Whether the connection is to stay open."""
        if self._has_preamble and not self._preambles[fd]:
            self._preambles[fd], data = _split(data)
            if not data:
                return True
        kind = data[0]
        if kind == ECHO:
            sock.send(data)
        elif kind == SHOW:
            sock.send(self._preambles[fd])
        elif kind == ANSWER:
            sock.send(_ANSWER)
            return False
        else:
            _serve_bulk(sock, data)
        return True


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The preamble, and what came with it."""
    if data.startswith(SIGNATURE):
        end = 16 + int.from_bytes(data[14:16])
    elif data.startswith(b"PROXY "):
        end = data.index(b"\r\n") + 2
    else:
        raise ConnectionAbortedError("no preamble")
    return data[:end], data[end:]


def _serve_bulk(sock: socket.socket, data: bytes) -> None:
    kind, count = _BULK.unpack_from(data)
    if kind == GIVE:
        _give(sock, count)
    else:
        _swallow(sock, count - (len(data) - _BULK.size))
        sock.send(DONE)


def _give(sock: socket.socket, count: int) -> None:
    while count:
        piece = min(count, len(_BLOCK))
        sock.sendall(_BLOCK[:piece])
        count -= piece


def _swallow(sock: socket.socket, count: int) -> None:
    """Take so many bytes, of which the kernel copies none."""
    while count:
        got = sock.recv_into(_WASTE, min(count, len(_WASTE)), socket.MSG_TRUNC)
        if not got:
            raise ConnectionResetError(f"{count} bytes are missing")
        count -= got


def upward(relay: Side, count: int) -> None:
    """Bytes from the client to the upstream, on one connection."""
    with connected(relay.port) as sock:
        sock.sendall(_BULK.pack(SWALLOW, count))
        _give(sock, count)
        _expect(sock, DONE)


def downward(relay: Side, count: int) -> None:
    """Bytes from the upstream to the client, on one connection."""
    with connected(relay.port) as sock:
        sock.sendall(_BULK.pack(GIVE, count))
        _swallow(sock, count)


def messages(size: int, relay: Side, count: int) -> None:
    """So many bytes to the upstream, in messages each of which waits for the answer to the last."""
    message = _BULK.pack(SWALLOW, size - _BULK.size) + bytes(size - _BULK.size)
    with connected(relay.port) as sock:
        for _ in range(count // size):
            sock.sendall(message)
            _expect(sock, DONE)


def _expect(sock: socket.socket, answer: bytes) -> None:
    if sock.recv(4096) != answer:
        raise ConnectionResetError("not the answer of the upstream")


def connections(in_flight: int, preamble: bytes, relay: Side, count: int) -> None:
    """Connections with one small request, a few at a time; the upstream answers and closes."""
    first = preamble + REQUEST
    for _ in range(count // in_flight):
        batch = [connected(relay.port) for _ in range(in_flight)]
        for sock in batch:
            sock.send(first)
        for sock in batch:
            _expect(sock, _ANSWER)
            while sock.recv(4096):
                pass
            sock.close()


def round_trips(open_ones: int, relay: Side, count: int) -> None:
    """Small messages there and back, one under way on each of these connections."""
    with ExitStack() as stack:
        batch = [stack.enter_context(connected(relay.port)) for _ in range(open_ones)]
        for sock in batch:
            sock.send(_MESSAGE)
        for _ in range(count // open_ones - 1):
            for sock in batch:
                _expect(sock, _MESSAGE)
                sock.send(_MESSAGE)
        for sock in batch:
            _expect(sock, _MESSAGE)


def shown_preamble(port: int, first: bytes) -> tuple[bytes, tuple[str, int]]:
    """What came before a message of a client that began with ``first``, and that client's address."""
    with connected(port) as sock:
        sock.settimeout(5)
        sock.sendall(first + bytes([SHOW]))
        ip, own_port = sock.getsockname()
        return sock.recv(4096), (ip, own_port)


def names_client(preamble: bytes, ip: str, port: int) -> bool:
    """Whether it says PROXY, TCP over IPv4, and has this source."""
    if preamble.startswith(b"PROXY TCP4 "):
        _, _, source, _, source_port, _ = preamble.split()
        return (source, source_port) == (ip.encode(), b"%d" % port)
    ends = socket.inet_aton(ip), port.to_bytes(2)
    return preamble.startswith(SIGNATURE + b"\x21\x11") and (preamble[16:20], preamble[24:26]) == ends


def sockets_lack_memory() -> bool:
    """Whether other programs hold so much of it that windows shrink, and bulk becomes slow for all."""
    least, *_ = Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()
    words = Path("/proc/net/sockstat").read_text().split("TCP:")[1].split()
    return int(words[words.index("mem") + 1]) > int(least)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--preamble", action="store_true")
    options = parser.parse_args()
    Upstream(options.port, options.preamble).run()
