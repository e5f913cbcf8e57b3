"""A sidecar in a thread of its own, and upstreams that answer what a test tells them to, byte for byte."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kongrealip import RealIPMiddleware, Settings
from kongrealip.config.listen import HTTP_FLAGS, Listen, flags_of
from kongrealip.config.proxy import ProxySettings, parse_url
from kongrealip.proxy.proxy import Proxy
from kongrealip.proxy.server import ProxyServer, keys_of
from kongrealip.relay.upstreams import resolve_targets
from kongrealip.server import tls
from kongrealip.server.counters import Counters
from kongrealip.server.sockets import Opened, bind
from tests.running import LOOPBACK, connect

PATIENCE = 8.0
TRUSTING = {"KONG_TRUSTED_IPS": "127.0.0.1/32"}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Sidecar(NamedTuple):
    port: int
    proxy: Proxy
    server: ProxyServer
    counters: Counters


@contextmanager
def sidecar(
    *urls: str,
    environ: Mapping[str, str] = TRUSTING,
    flags: str = "",
    loop: str = "auto",
    layers: Callable[[object], object] = lambda app: app,
    **more: object,
) -> Iterator[Sidecar]:
    """A sidecar on a port of the system's choice; ``more`` are fields of ProxySettings."""
    settings = Settings.load(environ)
    found, rest = flags_of(flags, HTTP_FLAGS)
    assert not rest
    listen = Listen(LOOPBACK, 0, found)
    (sock,) = bind(listen)
    listen = listen._replace(port=sock.getsockname()[1])
    settings = settings._replace(proxy_listen=(listen,))
    targets = resolve_targets(map(parse_url, urls), "KONGREALIP_UPSTREAM")
    counters = Counters(keys_of(settings, targets), 1)
    proxy = Proxy(ProxySettings()._replace(**more), targets, counters.row(0))  # type: ignore[arg-type]
    app = RealIPMiddleware(layers(proxy.app), settings)  # type: ignore[arg-type]
    contexts = {http2: tls.context(settings, http2) for http2 in (False, True)} if listen.ssl else {}
    server = ProxyServer(
        app, proxy, settings, opened=[Opened(sock, listen)], contexts=contexts, loop=loop, counters=counters
    )
    with running_server(server):
        yield Sidecar(int(listen.port), proxy, server, counters)


@contextmanager
def running_server(server: ProxyServer) -> Iterator[None]:
    thread = threading.Thread(target=server.run, name="sidecar")
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.005)
    assert server.started
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


class Peer:
    """One connection that an upstream has accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._held = b""

    def read_head(self) -> bytes:
        """A request's head with its empty line, or nothing where there is none to come."""
        while b"\r\n\r\n" not in self._held:
            try:
                data = self.sock.recv(65536)
            except OSError:
                return b""
            if not data:
                return b""
            self._held += data
        head, end, self._held = self._held.partition(b"\r\n\r\n")
        return head + end

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer where the other side has closed."""
        while len(self._held) < count and (data := self._receive()):
            self._held += data
        body, self._held = self._held[:count], self._held[count:]
        return body

    def skip(self, count: int) -> int:
        """Read so many bytes and keep none; returns how many there were."""
        skipped = len(self.read(min(count, len(self._held))))
        while skipped < count and (data := self._receive()):
            skipped += len(data)
        return skipped

    def read_until(self, end: bytes) -> bytes:
        while end not in self._held and (data := self._receive()):
            self._held += data
        body, found, self._held = self._held.partition(end)
        return body + found

    def read_to_end(self) -> bytes:
        while data := self._receive():
            self._held += data
        return self._held

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except OSError:
            return b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


class Upstream:
    """``heads`` are those of all requests, ``connections`` how many there were."""

    def __init__(self, listener: socket.socket) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.url = (
            f"http://{LOOPBACK}:{listener.getsockname()[1]}" if listener.family == socket.AF_INET else ""
        )
        self.peers: list[Peer] = []


Handler = Callable[[Upstream, Peer], None]


@contextmanager
def upstream(handler: Handler, listener: socket.socket | None = None) -> Iterator[Upstream]:
    """Accept connections and leave each to ``handler``, in a thread of its own; closed when it returns."""
    listener = listener or socket.create_server((LOOPBACK, 0))
    made = Upstream(listener)
    threads: list[threading.Thread] = []

    def serve(peer: Peer) -> None:
        with peer.sock:
            try:
                handler(made, peer)
            except OSError:
                # The sidecar has left, which is for the test to find right or wrong.
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            made.connections += 1
            peer = Peer(sock)
            made.peers.append(peer)
            threads.append(threading.Thread(target=serve, args=(peer,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield made
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(PATIENCE)
        for peer in made.peers:
            with suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def answering(*answers: bytes) -> Handler:
    """One answer after the other to requests without a body, the last one for all that follow."""

    def handle(made: Upstream, peer: Peer) -> None:
        while head := peer.read_head():
            made.heads.append(head)
            peer.send(answers[min(len(made.heads), len(answers)) - 1])

    return handle


def once(answer: bytes) -> Handler:
    """An answer, and the connection's end."""

    def handle(made: Upstream, peer: Peer) -> None:
        made.heads.append(peer.read_head())
        peer.send(answer)

    return handle


def echoing_heads(made: Upstream, peer: Peer) -> None:
    """Answers with the request's head."""
    while head := peer.read_head():
        made.heads.append(head)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


def lines_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """Names in lower case, and values as they are."""
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:-2]]
    return [(name.lower(), value) for name, _, value in lines]


def ask(port: int, request: bytes, source_ip: str = LOOPBACK) -> bytes:
    """Send bytes, and read all until the sidecar closes."""
    with connect(port, source_ip) as sock:
        sock.sendall(request)
        peer = Peer(sock)
        return peer.read_to_end()


def get(port: int, *lines: str, method: str = "GET", target: str = "/", version: str = "1.1") -> bytes:
    """All bytes of the answer to a request without body, the last of its connection."""
    return ask(port, request(*lines, "Connection: close", method=method, target=target, version=version))


def request(*lines: str, method: str = "GET", target: str = "/", version: str = "1.1") -> bytes:
    text = "\r\n".join([f"{method} {target} HTTP/{version}", "Host: example.test", *lines, "", ""])
    return text.encode("latin-1")


def split(answer: bytes) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes]:
    """Status, lines, and the rest as it came."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), lines_of(head + b"\r\n\r\n"), body


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
