"""Each program under examples/ does what it says, as an operator starts it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect as connect_websocket

from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    TRUST_THE_BALANCER,
    Program,
    clean_environ,
    connect,
    exchange,
    fetch,
    free_port,
    running,
    serving,
    wait_until,
)

ROOT = Path(__file__).parent.parent
BEHIND_A_BALANCER = {
    **TRUST_THE_BALANCER, "KONG_REAL_IP_HEADER": "X-Forwarded-For", "KONG_REAL_IP_RECURSIVE": "on",
}  # fmt: skip
TOLD = [("X-Forwarded-For", "6.6.6.6, 203.0.113.7:51000")]
EVERY_SERVER = pytest.mark.parametrize("server", ["kongrealip", "uvicorn"])


@contextmanager
def example(name: str, server: str, **environ: str) -> Iterator[Program]:
    """An example behind a balancer at 127.0.0.1."""
    port, app = free_port(), f"examples.{name}:app"
    environ = {**BEHIND_A_BALANCER, **environ}
    if server == "kongrealip":
        listen = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
        with serving({**environ, **listen}, app, "--app-dir", ROOT) as program:
            yield program
    else:
        command = [sys.executable, "-m", "uvicorn", "--no-proxy-headers", "--port", str(port), app]
        with running(command, {**clean_environ(), **environ}, [port], ROOT) as program:
            yield program


def test_every_program_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    for path in (ROOT / "examples").glob("*.py"):
        assert re.search(rf"\b{path.stem}\b", tests), path.name


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*_*.py")), ids=lambda path: path.stem)
def test_a_program_tells_how_it_is_started(path: Path) -> None:
    assert f"examples.{path.stem}:" in path.read_text().split('"""')[1]


@EVERY_SERVER
def test_fastapi_client(server: str) -> None:
    with example("fastapi_client", server) as program:
        assert fetch(program.port, source_ip=LOOPBACK, headers=TOLD) == {"ip": "203.0.113.7", "port": 51000}
        assert fetch(program.port, source_ip=CLIENT_IP, headers=TOLD)["ip"] == CLIENT_IP
        sock = connect(program.port, LOOPBACK)
        with connect_websocket("ws://a.test/ws", sock=sock, additional_headers=TOLD, proxy=None) as websocket:
            assert json.loads(websocket.recv(timeout=10)) == {"ip": "203.0.113.7", "port": 51000}


@EVERY_SERVER
def test_logging_app(server: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.7\r\nConnection: close\r\n\r\n"
    with example("logging_app", server) as program:
        answer, peer = exchange(program.port, request, LOOPBACK)
        assert answer.startswith(b"HTTP/1.1 200")
        told = f"shop client=203.0.113.7 peer={peer}"
        program.wait_for_stderr(f"{told} its receipt\n")
        lines = [line for line in program.stderr.splitlines() if line.startswith("shop")]
    assert lines == ["shop client=- peer=- started", f"{told} an order", f"{told} its receipt"]


@EVERY_SERVER
@pytest.mark.parametrize("conventions", ["", "http"])
def test_opentelemetry_app(server: str, conventions: str) -> None:
    with example("opentelemetry_app", server, OTEL_SEMCONV_STABILITY_OPT_IN=conventions) as program:
        request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.7:51000\r\nConnection: close\r\n\r\n"
        _, peer = exchange(program.port, request, LOOPBACK)
        wait_until(lambda: '"context"' in program.stdout, "a span")
        line = next(line for line in program.stdout.splitlines() if '"context"' in line)
    found = json.loads(line)["attributes"]
    names = ("client.address", "client.port", "network.peer.address", "network.peer.port")
    assert [found[name] for name in names] == ["203.0.113.7", 51000, LOOPBACK, int(peer.split(":")[1])]


@EVERY_SERVER
def test_slowapi_app(server: str) -> None:
    with example("slowapi_app", server) as program:
        for client in ("203.0.113.7", "203.0.113.8"):
            told = [("X-Forwarded-For", client)]
            for _ in range(2):
                assert fetch(program.port, source_ip=LOOPBACK, headers=told) == {"client": client}
            with pytest.raises(AssertionError, match="Rate limit exceeded"):
                fetch(program.port, source_ip=LOOPBACK, headers=told)


@EVERY_SERVER
def test_starlette_app(server: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.7\r\nConnection: close\r\n\r\n"
    with example("starlette_app", server) as program:
        answer, _ = exchange(program.port, request, LOOPBACK)
    assert answer.endswith(b"203.0.113.7, from X-Forwarded-For, through 127.0.0.1\n")


def test_fastapi_app() -> None:
    """Behind a balancer that sends the PROXY protocol."""
    port = free_port()
    environ = {
        **TRUST_THE_BALANCER,
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} proxy_protocol",
    }
    with serving(environ, "examples.fastapi_app:app", "--app-dir", ROOT) as program:
        request = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
        preamble = b"PROXY TCP4 203.0.113.7 127.0.0.1 51000 80\r\n"
        answer, _ = exchange(program.port, preamble + request, LOOPBACK)
    assert answer.endswith(b'{"client":"203.0.113.7"}')
