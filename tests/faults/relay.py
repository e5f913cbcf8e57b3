"""A relay under what lasts and what comes in masses, over real sockets.

Each scenario starts a relay of its own and returns what it measured, by name. test_relay.py plays
a little of each, benchmarks/faults_relay.py all of it, with bars.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.faults.hostile import Figures, resident_bytes
from tests.running import LOOPBACK, Program, clean_environ, free_port, running, wait_until

_PIECE = 1 << 18
_PREAMBLE_BYTES = 28
_PATIENCE_SECONDS = 60.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# What a connection carries before it rests: enough to be spliced.
_WARM = 1 << 20


class Both(NamedTuple):
    """A client's socket and the upstream's, at either end of one relayed connection."""

    client: socket.socket
    upstream: socket.socket

    def close(self) -> None:
        self.client.close()
        self.upstream.close()


class Relaying:
    """A relay that sends version 2, and the upstream's listening socket."""

    def __init__(self, program: Program, upstream: socket.socket) -> None:
        self.program = program
        self._upstream = upstream

    def open(self) -> Both:
        """A connection from end to end, the preamble read."""
        client = socket.create_connection((LOOPBACK, self.program.port), _PATIENCE_SECONDS)
        upstream, _ = self._upstream.accept()
        upstream.settimeout(_PATIENCE_SECONDS)
        _read(upstream, _PREAMBLE_BYTES)
        return Both(client, upstream)

    @property
    def descriptors(self) -> int:
        return sum(not target.startswith("pipe:") for target in self._targets())

    @property
    def pipes(self) -> int:
        """Both ends of those that are kept for the next."""
        return sum(target.startswith("pipe:") for target in self._targets())

    def _targets(self) -> Iterator[str]:
        for descriptor in Path(f"/proc/{self.program.pid}/fd").iterdir():
            # It may be closed by now.
            with suppress(OSError):
                yield os.readlink(descriptor)


def _read(sock: socket.socket, size: int) -> None:
    while size:
        data = sock.recv(size)
        assert data, "the other end has closed"
        size -= len(data)


@contextmanager
def relaying(loop: str, *args: str) -> Iterator[Relaying]:
    with socket.create_server((LOOPBACK, 0), backlog=4096) as upstream:
        upstream.settimeout(_PATIENCE_SECONDS)
        port = free_port()
        command = [sys.executable, "-m", "kongrealip", "relay", "--listen", f"{LOOPBACK}:{port}"]
        command += ["--upstream", f"{LOOPBACK}:{upstream.getsockname()[1]}", "--send-proxy", "v2"]
        with running([*command, "--loop", loop, *args], clean_environ(), [port]) as program:
            # That was only somebody looking whether the port is open.
            with suppress(TimeoutError):
                upstream.settimeout(1)
                upstream.accept()[0].close()
            upstream.settimeout(_PATIENCE_SECONDS)
            yield Relaying(program, upstream)


def stopped(loop: str, size: int = 1 << 30, pause: float = 30.0) -> Figures:
    """As much in each direction at once, with both readers stopped in the middle."""
    with relaying(loop) as relay, ExitStack() as stack:
        _exchange(relay, _WARM, 0)
        start = resident_bytes(relay.program)
        watch = stack.enter_context(_watching(lambda: resident_bytes(relay.program)))
        digests = _exchange(relay, size, pause)
    return {
        "directions with other bytes": sum(sent != got for sent, got in digests),
        "memory at the most, MB more": (max(watch) - start) / (1 << 20),
    }


def _exchange(relay: Relaying, size: int, pause: float) -> list[tuple[str, str]]:
    """The digests of what was sent and of what was received, in each direction."""
    both = relay.open()
    with ThreadPoolExecutor(4) as threads:
        sent = [threads.submit(_send, sock, size) for sock in (both.client, both.upstream)]
        got = [threads.submit(_receive, sock, size, pause) for sock in (both.upstream, both.client)]
        digests = [(one.result(), other.result()) for one, other in zip(sent, got, strict=True)]
    both.close()
    return digests


def _send(sock: socket.socket, size: int) -> str:
    """Send, say that this is all, and return the digest."""
    digest = hashlib.sha256()
    # Not always the same: a piece that comes twice or not at all must show.
    block = random.randbytes(_PIECE + 4096)
    for start in range(0, size, _PIECE):
        shift = start // _PIECE % 4096
        piece = block[shift : shift + min(_PIECE, size - start)]
        digest.update(piece)
        _send_all(sock, piece)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def _send_all(sock: socket.socket, data: bytes) -> None:
    """sendall() has its timeout for the whole, and the reader may be stopped for long."""
    while data:
        with suppress(TimeoutError):
            data = data[sock.send(data) :]


def _receive(sock: socket.socket, size: int, pause: float) -> str:
    digest, left = hashlib.sha256(), size // 2
    while data := sock.recv(_PIECE):
        digest.update(data)
        if 0 < left <= len(data):
            time.sleep(pause)
        left -= len(data)
    return digest.hexdigest()


@contextmanager
def _watching(value: Callable[[], int], every: float = 0.05) -> Iterator[list[int]]:
    """Look at something again and again meanwhile."""
    seen, is_over = [value()], threading.Event()

    def look() -> None:
        while not is_over.wait(every):
            seen.append(value())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def opened_and_closed(loop: str, count: int = 10_000, at_once: int = 50) -> Figures:
    """Connections that end in every way, a third of them by a reset from one of the ends."""
    with relaying(loop) as relay:
        _end_some(relay, at_once * 2)
        before = _settled(lambda: relay.descriptors)
        for _ in range(count // at_once):
            _end_some(relay, at_once)
        _settled(lambda: relay.descriptors)
        return {"descriptors left": relay.descriptors - before, "pipe ends kept": relay.pipes}


def _settled(value: Callable[[], int]) -> int:
    """The value, when it has been the same for a second."""
    seen = [value()]
    wait_until(lambda: _is_settled(seen, value()), "numbers that stay")
    return seen[-1]


def _is_settled(seen: list[int], value: int) -> bool:
    seen.append(value)
    return len(seen) > 50 and len(set(seen[-50:])) == 1


def _end_some(relay: Relaying, count: int) -> None:
    for number, both in enumerate([relay.open() for _ in range(count)]):
        first, second = both if number % 2 else reversed(both)
        if number % 3 == 0:
            # With something on its way, so that the reset meets a connection at work.
            second.sendall(b"x" * 100_000)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        first.close()
        second.close()


def idle(loop: str, count: int = 4000) -> Figures:
    """What a connection costs that has carried a megabyte and now rests."""
    with relaying(loop) as relay, ExitStack() as stack:
        # What runs for the first time brings memory of its own, which no connection costs.
        _rest(relay, stack, 20)
        start, files = resident_bytes(relay.program), relay.descriptors
        _rest(relay, stack, count)
        held = resident_bytes(relay.program)
        return {
            "KB each": (held - start) / count / 1024,
            "descriptors each": (relay.descriptors - files) / count,
        }


def _rest(relay: Relaying, stack: ExitStack, count: int) -> None:
    piece = bytes(_WARM)
    for _ in range(count):
        both = relay.open()
        stack.callback(both.close)
        sender = threading.Thread(target=both.client.sendall, args=(piece,))
        sender.start()
        _read(both.upstream, _WARM)
        sender.join()
