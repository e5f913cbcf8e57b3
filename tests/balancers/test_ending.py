"""SIGTERM: what is in flight is finished, what has not begun is not waited for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.balancers.conftest import Certificates
from tests.balancers.programs import haproxy
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    TRUST_THE_BALANCER,
    Program,
    accepts,
    client,
    connect,
    fetch,
    free_port,
    received,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HALF_A_PREAMBLE = b"PROXY TCP4 203.0.113.7 "

# Answers as whoami does, once the test lets it: a file instead of a length of time.
WAITS = """
import asyncio
import sys
from pathlib import Path

from kongrealip.cli import whoami

RELEASE = Path(__file__).with_name("release")

async def app(scope, receive, send):
    if scope["type"] == "http":
        print("request in flight", file=sys.stderr, flush=True)
        while not RELEASE.exists():
            await asyncio.sleep(0.01)
    await whoami.app(scope, receive, send)
"""


@pytest.fixture
def waiting_server(loop: str, tmp_path: Path, certificates: Certificates) -> Iterator[Program]:
    (tmp_path / "waits.py").write_text(WAITS)
    environ = {
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{free_port()} proxy_protocol, {LOOPBACK}:{free_port()} ssl",
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        **TRUST_THE_BALANCER,
        **certificates.environ(),
    }
    with serving(environ, "--loop", loop, "--app-dir", tmp_path, "waits:app") as server:
        yield server


def test_request_in_flight_is_finished_and_nothing_else_is_waited_for(
    waiting_server: Program, tmp_path: Path
) -> None:
    server, port = waiting_server, free_port()
    config = f"""
listen balancer
    bind {LOOPBACK}:{port}
    server upstream {LOOPBACK}:{server.port} send-proxy-v2
"""
    with (
        haproxy(tmp_path, config, port),
        connect(server.port) as half_read,
        connect(server.ports[1]) as silent_tls,
        ThreadPoolExecutor(1) as thread,
    ):
        half_read.sendall(HALF_A_PREAMBLE)
        request = thread.submit(fetch, port)
        try:
            server.wait_for_stderr("request in flight")
            server.terminate()
            # Closed at once: all of this happens while the request is still held up.
            assert list(received(half_read)) == []
            assert list(received(silent_tls)) == []
            wait_until(lambda: not accepts(server.port), "the closed listener")
            assert not request.done()
        finally:
            (tmp_path / "release").touch()
        assert request.result()["client_ip"] == CLIENT_IP
    assert server.wait() == 0


def test_silent_or_half_read_preamble_does_not_hold_up_the_end(preamble_server: Program) -> None:
    port = preamble_server.port
    with connect(port) as silent, connect(port) as half_read:
        half_read.sendall(HALF_A_PREAMBLE)
        # Once this is answered, the server has seen what came before it.
        with client(port, preamble=b"PROXY UNKNOWN\r\n") as asking:
            asking.get()
        preamble_server.terminate()
        assert list(received(silent)) == []
        assert list(received(half_read)) == []
    assert preamble_server.wait() == 0


def test_idle_connection_does_not_hold_up_the_end(preamble_server: Program) -> None:
    with client(preamble_server.port, preamble=b"PROXY UNKNOWN\r\n") as asking:
        asking.get()
        preamble_server.terminate()
        assert preamble_server.wait() == 0
