"""A relay in a thread of its own, between clients and upstreams that the test drives byte by byte.

Every socket here blocks, with patience that ends: what never comes fails by name and not by hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from kongrealip.config import Listen
from kongrealip.config.relay import load_relay
from kongrealip.relay.relay import Behind, Relay
from kongrealip.relay.server import RelayServer, keys_of
from kongrealip.relay.tls import for_clients, for_upstreams
from kongrealip.relay.upstreams import resolve_targets
from kongrealip.server.counters import Counters, Key
from kongrealip.server.sockets import Opened, bind
from tests.running import LOOPBACK, wait_until

PATIENCE_SECONDS = 15.0
# SO_LINGER with no time at all: close() then sends a reset.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Where tcpi_data_segs_in stands in Linux' struct tcp_info.
_DATA_SEGMENTS_IN = 152
_BLOCK = random.Random(5).randbytes((1 << 20) + 4099)
_Answer = TypeVar("_Answer")


class Upstream:
    """Listens, and does nothing by itself. ``name`` is what to write in KONGREALIP_UPSTREAM."""

    def __init__(
        self, host: str = LOOPBACK, path: str | None = None, backlog: int = 512, port: int = 0
    ) -> None:
        if path is None:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.sock = socket.socket(family)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((host, port))
            self.port = int(self.sock.getsockname()[1])
            self.name = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(path)
            self.name = f"unix:{path}"
        self.sock.listen(backlog)
        self.sock.settimeout(PATIENCE_SECONDS)
        self._accepted: list[socket.socket] = []

    @classmethod
    @contextmanager
    def at(cls, name: str) -> Iterator[Upstream]:
        """One on an address that is known already."""
        host, _, port = name.rpartition(":")
        made = cls(host, port=int(port))
        try:
            yield made
        finally:
            made.close()

    def accept(self) -> socket.socket:
        """The relay's next connection."""
        sock, _ = self.sock.accept()
        sock.settimeout(PATIENCE_SECONDS)
        self._accepted.append(sock)
        return sock

    def has_none(self) -> bool:
        """Whether nobody waits to be accepted."""
        try:
            self.sock.settimeout(0)
            self._accepted.append(self.sock.accept()[0])
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(PATIENCE_SECONDS)
        return False

    def forget(self) -> None:
        """Close every connection, those in the queue as well."""
        while not self.has_none():
            pass
        while self._accepted:
            self._accepted.pop().close()

    def close(self) -> None:
        self.forget()
        self.sock.close()


class Echo:
    """An upstream that returns what it gets, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, LOOPBACK, 0, backlog=2048)
        )
        self.name = f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._server.wait_closed())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()


class Ends(NamedTuple):
    """Two sockets with the relay in between."""

    client: socket.socket
    upstream: socket.socket


@dataclass
class RelayLab:
    """Listeners and upstreams are added first. ``environ`` is what an operator would set."""

    environ: Mapping[str, str] = field(default_factory=dict)
    #: Those that belong to the lab, and that ``clean`` empties.
    upstreams: list[Upstream] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _opened: list[Opened] = field(default_factory=list)
    _clients: list[socket.socket] = field(default_factory=list)
    _is_ready: threading.Event = field(default_factory=threading.Event)
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @property
    def upstream(self) -> Upstream:
        return self.upstreams[0]

    @property
    def port(self) -> int:
        return self._opened[0].listen.port

    @property
    def relay(self) -> Relay:
        return self._server._relay

    @property
    def half_open(self) -> int:
        """How many are in their preamble or their handshake."""
        return self._server._reception.half_open

    @property
    def in_handshake(self) -> int:
        return len(self._server._reception.handshakes)

    def add_upstream(self, known_as: str = LOOPBACK) -> Upstream:
        made = Upstream()
        made.name = f"{known_as}:{made.port}"
        self.upstreams.append(made)
        self._names.append(made.name)
        return made

    def add_unix_upstream(self, backlog: int = 512) -> Upstream:
        made = Upstream(path=str(Path(self._folder.name, f"{len(self.upstreams)}.sock")), backlog=backlog)
        self.upstreams.append(made)
        self._names.append(made.name)
        return made

    def add_name(self, name: str) -> None:
        """An upstream that is none, or somebody else's."""
        self._names.append(name)

    def listen(self, *flags: str, host: str = LOOPBACK) -> int:
        """Open a listener and return its port."""
        (sock,) = bind(Listen(host, 0, flags))
        port = int(sock.getsockname()[1])
        self._opened.append(Opened(sock, Listen(host, port, flags)))
        return port

    @contextmanager
    def running(self, loop: str) -> Iterator[RelayLab]:
        self._server, self._counters = self._make(loop)
        thread = threading.Thread(target=self._server.run, name=f"relay-{loop}")
        thread.start()
        try:
            wait_until(lambda: self._is_ready.is_set() or not thread.is_alive(), "the relay")
            assert self._is_ready.is_set(), "the relay's thread ended at its start"
            yield self
        finally:
            # In this order: what is still open would be waited for.
            self._close()
            self.stop()
            thread.join(timeout=PATIENCE_SECONDS)
            assert not thread.is_alive()

    def stop(self) -> None:
        """Begin the end, as a signal would."""
        self._server.should_exit = True

    def _make(self, loop: str) -> tuple[RelayServer, Counters]:
        upstream = ",".join(self._names)
        # What a test leaves open is not waited for.
        environ = {"KONGREALIP_DRAIN_TIMEOUT": "100ms", "KONGREALIP_UPSTREAM": upstream, **self.environ}
        settings, relay = load_relay(environ)
        settings = settings._replace(stream_listen=tuple(one.listen for one in self._opened))
        targets = resolve_targets(relay.upstreams, "KONGREALIP_UPSTREAM")
        behind = Behind(relay, targets, for_clients(settings, relay), for_upstreams(relay))
        counters = Counters(keys_of(settings, behind), 1)
        more = {"opened": self._opened, "counters": counters, "on_ready": self._is_ready.set}
        return RelayServer(settings, behind, {}, loop=loop, **more), counters

    def _close(self) -> None:
        for client in self._clients:
            client.close()
        for upstream in self.upstreams:
            upstream.close()
        self._folder.cleanup()

    def small_buffers(self) -> None:
        """The kernel takes little of what is sent to clients."""
        for one in self._opened:
            one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def connect(
        self, port: int | None = None, source: str = LOOPBACK, to: str | None = None, receive_buffer: int = 0
    ) -> socket.socket:
        """A client's connection, to the first listener unless told otherwise."""
        host = to or ("::1" if ":" in source else LOOPBACK)
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        client.settimeout(PATIENCE_SECONDS)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.bind((source, 0))
        client.connect((host, port or self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients.append(client)
        return client

    def ends(self, port: int | None = None, source: str = LOOPBACK, first: bytes = b"") -> Ends:
        """A client that sends something first, and its connection at the first upstream.

        By then the relay knows that it is there.
        """
        connected = self.counted("upstream_connections", self.upstream.name)
        client = self.connect(port, source)
        client.sendall(first)
        ends = Ends(client, self.upstream.accept())
        self.wait_for_count("upstream_connections", self.upstream.name, count=connected + 1)
        return ends

    def clean(self) -> None:
        """Close everything, and wait until the relay has done so too."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        soon(self._is_settled, "the relay to close everything")

    def _is_settled(self) -> bool:
        for upstream in self.upstreams:
            upstream.forget()
        return not self.relay.open and not self.half_open

    def descriptors(self) -> int:
        """Of this process, without pipes that are kept for whoever comes."""
        return descriptors() - 2 * len(self.relay.pipes._free)

    def wait_for_rest(self) -> None:
        """Until the relay has done what there is to do: it has had some turns since."""
        for _ in range(3):
            self.call(lambda: None)

    def call_later(self, function: Callable[[], object]) -> None:
        """In the relay's next turn, in front of whatever it is told by then."""
        self._server._loop.call_soon_threadsafe(function)

    def call(self, function: Callable[[], _Answer]) -> _Answer:
        """Run a function in the relay's thread, between two of its turns."""
        answer: Future[_Answer] = Future()
        self._server._loop.call_soon_threadsafe(lambda: answer.set_result(function()))
        return answer.result(PATIENCE_SECONDS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts the relay does nothing, so that several things befall it at once."""
        entered, release = threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            release.wait(PATIENCE_SECONDS)

        self._server._loop.call_soon_threadsafe(wait)
        assert entered.wait(PATIENCE_SECONDS), "the relay's loop did not come to it"
        try:
            yield
        finally:
            release.set()

    def counted(self, *key: str) -> int:
        return self._counters.total()[key]

    def counts(self) -> dict[Key, int]:
        return self._counters.total()

    def wait_for_count(self, *key: str, count: int = 1) -> None:
        soon(lambda: self.counted(*key) >= count, f"{key} to be {count}, is {self.counted(*key)}")


def soon(condition: Callable[[], bool], what: str) -> None:
    """``wait_until`` for what is mostly a matter of a moment."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.0002)
    wait_until(condition, what)


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the other side ends."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def to_the_end(sock: socket.socket) -> bytes:
    """Everything until the other side has said that this is all. A reset is raised."""
    data = bytearray()
    while more := sock.recv(1 << 16):
        data += more
    return bytes(data)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def is_reset(sock: socket.socket) -> bool:
    """Whether this ends with a reset, whatever comes before it."""
    try:
        to_the_end(sock)
    except ConnectionResetError:
        return True
    return False


def segments_in(sock: socket.socket) -> int:
    """How many segments with data have come."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(struct.unpack_from("I", info, _DATA_SEGMENTS_IN)[0])


def descriptors(pid: int | str = "self") -> int:
    """How many there are, as soon as they do not change any more."""
    counts = [-1]

    def are_settled() -> bool:
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        return counts[-3:] == [counts[-1]] * 3

    wait_until(are_settled, "the descriptors to settle")
    return counts[-1]


class Load:
    """Bytes of a kind: what is sent, in which pieces, and with which pauses, by a seed."""

    def __init__(self, seed: int, size: int, pieces: tuple[int, int] = (1 << 16, 1 << 18), pauses: float = 0):
        self._random = random.Random(seed)
        self._size = size
        self._pieces = pieces
        self._pauses = pauses

    def send(self, sock: socket.socket, half_close: bool = True) -> str:
        """Send all of it, and return its digest."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            sock.sendall(piece)
            digest.update(piece)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(self, sock: socket.socket) -> str:
        """Read to the end, and return the digest of what came."""
        digest = hashlib.sha256()
        while data := sock.recv(self.length()):
            digest.update(data)
            self._pause()
        return digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        """With a pause behind one now and then."""
        left = self._size
        while left:
            start = self._random.randrange(4099)
            piece = _BLOCK[start : start + min(left, self.length())]
            left -= len(piece)
            yield piece
            self._pause()

    def length(self) -> int:
        """Small ones as likely as large ones."""
        smallest, largest = self._pieces
        return int(smallest * (largest / smallest) ** self._random.random())

    def _pause(self) -> None:
        if self._pauses and self._random.random() < 0.05:
            time.sleep(self._random.random() * self._pauses)
