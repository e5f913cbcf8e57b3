"""Four connections that a browser cannot make by itself, made for it.

A browser sends no preamble and chooses no source address, so a balancer of a few lines stands in
front of the server and passes its bytes on.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from tests.running import LOOPBACK, TRUST_THE_BALANCER, free_port, serving

BALANCER, SPOOFER = "127.0.0.1", "127.0.0.66"
CLIENT = "203.0.113.7"
_ENDPOINT = b"\x01vpce-08d2bf15fac5001c9"
_NAME = b"shop.example.com"
_BY_HEADER = {
    "KONG_TRUSTED_IPS": f"{BALANCER}/32, 10.0.0.0/8",
    "KONG_REAL_IP_HEADER": "X-Forwarded-For",
    "KONG_REAL_IP_RECURSIVE": "on",
}
_BY_PREAMBLE = {**TRUST_THE_BALANCER, "KONG_REAL_IP_HEADER": "proxy_protocol"}


class Scene(NamedTuple):
    """``peer`` is None where the browser connects to the server itself; ``client`` is who must come out."""

    environ: dict[str, str]
    client: str
    flags: str = ""
    peer: str | None = BALANCER
    preamble: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def preamble(tlvs: bytes) -> bytes:
    """Version 2, TCP over IPv4, written here from the specification."""
    ends = socket.inet_aton(CLIENT) + socket.inet_aton("198.51.100.9") + struct.pack("!HH", 51000, 443)
    return b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack("!H", len(ends + tlvs)) + ends + tlvs


_NLB = preamble(tlv(0x02, _NAME) + tlv(0xEA, _ENDPOINT))
_CHAIN = "6.6.6.6, 203.0.113.7, 10.0.3.4, 10.0.1.9"
SCENES = {
    "direct": Scene(_BY_HEADER | {"KONG_TRUSTED_IPS": "10.0.0.0/8"}, BALANCER, peer=None),
    "nlb": Scene(_BY_PREAMBLE, CLIENT, "proxy_protocol", preamble=_NLB),
    "alb": Scene(_BY_HEADER, CLIENT, headers={"X-Forwarded-For": _CHAIN, "X-Forwarded-Proto": "https"}),
    "spoofer": Scene(
        _BY_HEADER,
        SPOOFER,
        peer=SPOOFER,
        headers={"X-Forwarded-For": "8.8.8.8, 10.0.0.5", "X-Real-IP": "8.8.8.8"},
    ),
}


@contextmanager
def playing(scene: Scene) -> Iterator[str]:
    """The server, and what stands in front of it. Yields the URL for the browser."""
    port = free_port()
    environ = {**scene.environ, "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} {scene.flags}".strip()}
    with ExitStack() as stack:
        stack.enter_context(serving(environ, "--no-access-log"))
        if scene.peer is not None:
            port = stack.enter_context(_balancing(port, scene.peer, scene.preamble))
        yield f"http://{LOOPBACK}:{port}/"


@contextmanager
def _balancing(port: int, peer: str, preamble: bytes) -> Iterator[int]:
    ends: list[socket.socket] = []

    class Passing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((LOOPBACK, port), 10, (peer, 0)) as upstream:
                ends.extend((self.request, upstream))
                upstream.sendall(preamble)
                back = threading.Thread(target=_pass_on, args=(upstream, self.request))
                back.start()
                _pass_on(self.request, upstream)
                back.join()

    with socketserver.ThreadingTCPServer((LOOPBACK, 0), Passing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            # A browser keeps connections for later, and would keep the threads that serve them.
            for end in ends:
                _end(end)


def _pass_on(source: socket.socket, destination: socket.socket) -> None:
    """Bytes until one side ends, and with it the other."""
    with suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
    for end in (source, destination):
        _end(end)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
