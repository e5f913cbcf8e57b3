"""``kongrealip relay`` as an operator starts it, and what the tests put behind it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import pytest

from kongrealip.preamble import Preamble, parse
from tests.balancers.conftest import certificates as certificates
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    TRUST_THE_BALANCER,
    Program,
    clean_environ,
    free_port,
    received,
    running,
)

PATIENCE_SECONDS = 8.0


class Listening(Protocol):
    """Somebody to pass connections on to."""

    @property
    def port(self) -> int: ...


@contextmanager
def relaying(
    upstream: Listening, send: str, *options: str, flags: str = "", environ: Mapping[str, str] = {}
) -> Iterator[Program]:
    """A relay at a port of its own, over both families, ended by SIGTERM, which it must obey."""
    port = free_port()
    listen = f"{LOOPBACK}:{port} {flags}, [::1]:{port} {flags}"
    ends = ["--listen", listen, "--upstream", f"{LOOPBACK}:{upstream.port}", "--send-proxy", send]
    command = [sys.executable, "-m", "kongrealip", "relay", *ends, *options]
    with running(command, clean_environ() | TRUST_THE_BALANCER | dict(environ), [port]) as program:
        try:
            yield program
            assert program.stop() == 0, "SIGTERM is the ordinary end"
        finally:
            print(program.stderr, file=sys.stderr)


class Taken(NamedTuple):
    """A connection at the end, its preamble, and what came with it."""

    sock: socket.socket
    preamble: Preamble
    head: bytes
    rest: bytes

    def read(self) -> bytes:
        """Everything else, until the other side has said all."""
        return self.rest + b"".join(received(self.sock))


class RawUpstream:
    """Takes connections and reads their preambles, as strictly as we can."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.port: int = listening.getsockname()[1]

    @contextmanager
    def take(self, client_ip: str = CLIENT_IP) -> Iterator[Taken]:
        """The next connection of this client.

        Not those that came before: each program that was started was asked whether it listens.
        """
        while True:
            sock, _ = self._listening.accept()
            with sock:
                sock.settimeout(PATIENCE_SECONDS)
                taken = _read_preamble(sock)
                if taken is not None and taken.preamble.source_ip == client_ip:
                    yield taken
                    return


def _read_preamble(sock: socket.socket) -> Taken | None:
    data = b""
    for piece in received(sock):
        data += piece
        parsed = parse(data, strict=True)
        if parsed is not None:
            preamble, size = parsed
            return Taken(sock, preamble, data[:size], data[size:])
    return None


@pytest.fixture(scope="module")
def raw_upstream() -> Iterator[RawUpstream]:
    with socket.create_server((LOOPBACK, free_port())) as listening:
        listening.settimeout(PATIENCE_SECONDS)
        yield RawUpstream(listening)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """For what is most likely to depend on it."""
    name = str(request.param)
    if name == "uvloop":
        pytest.importorskip("uvloop")
    return name
