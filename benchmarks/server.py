"""CPU time of the server to that of uvicorn bare, in one run.

Server and load have a core each. Rounds are short and alternate, and what counts is the median
of the ratios of neighbouring rounds: the machine's speed drifts, but not within a pair.

    python -m benchmarks.server [--starts 7] [--rounds 15] [--connections 240]
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from kongrealip.server.tls import self_signed

HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: example.test\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"
LAST_REQUEST = REQUEST.replace(b"Accept", b"Connection: close\r\nAccept")
# Version 2, TCP over IPv4, 203.0.113.7:40001 to 198.51.100.9:443.
PREAMBLE = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes.fromhex("cb007107c63364099c4101bb")
IN_FLIGHT = 8


class Running(NamedTuple):
    pid: int
    port: int
    preamble: bytes
    tls: bool


def cpu_seconds(pid: int) -> float:
    """Time on the processor of all threads, in nanosecond steps."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def process(command: list[str], port: int, environ: dict[str, str]) -> Iterator[int]:
    """Start a server on the first core and wait for its port."""
    running = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={"PATH": os.environ["PATH"], **environ},
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            if socket.socket().connect_ex((HOST, port)) == 0:
                break
            time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        running.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def uvicorn(stack: ExitStack, pair: tuple[str, str] | None) -> Running:
    port = free_port()
    command = ["uvicorn", "benchmarks.app:app", "--port", str(port), "--no-access-log", "--no-proxy-headers"]
    if pair:
        command += ["--ssl-certfile", pair[0], "--ssl-keyfile", pair[1]]
    return Running(stack.enter_context(process(command, port, {})), port, b"", pair is not None)


def ours(stack: ExitStack, pair: tuple[str, str] | None, flags: str = "") -> Running:
    port = free_port()
    environ = {
        "KONG_TRUSTED_IPS": "127.0.0.0/8",
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        "KONG_PROXY_LISTEN": f"{HOST}:{port} proxy_protocol {'ssl' if pair else ''} {flags}",
    }
    if pair:
        environ |= {"KONG_SSL_CERT": pair[0], "KONG_SSL_CERT_KEY": pair[1]}
    command = ["kongrealip", "serve", "benchmarks.app:app", "--no-access-log"]
    return Running(stack.enter_context(process(command, port, environ)), port, PREAMBLE, pair is not None)


def open_connection(server: Running, context: ssl.SSLContext, first: bytes) -> socket.socket:
    sock = socket.create_connection((HOST, server.port))
    if server.tls:
        if server.preamble:
            sock.sendall(server.preamble)
        sock = context.wrap_socket(sock)
        sock.sendall(first)
    else:
        sock.sendall(server.preamble + first)
    return sock


def connections(server: Running, context: ssl.SSLContext, count: int) -> None:
    """Connections with one request each, a few at a time."""
    for _ in range(count // IN_FLIGHT):
        batch = [open_connection(server, context, LAST_REQUEST) for _ in range(IN_FLIGHT)]
        for sock in batch:
            while sock.recv(4096):
                pass
            sock.close()


def keep_alive(server: Running, context: ssl.SSLContext, count: int) -> None:
    """Requests on connections that stay open."""
    batch = [open_connection(server, context, REQUEST) for _ in range(IN_FLIGHT)]
    for _ in range(count // IN_FLIGHT):
        for sock in batch:
            while not sock.recv(4096).endswith(b"ok"):
                pass
            sock.sendall(REQUEST)
    for sock in batch:
        sock.close()


Load = Callable[[Running, ssl.SSLContext, int], None]


Pair = tuple[float, float]


def rounds_of(load: Load, base: Running, other: Running, rounds: int, count: int) -> list[Pair]:
    """Microseconds of CPU a unit, of both, round by round."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    measured: list[Pair] = []
    for number in range(rounds + 1):
        cost = {}
        # In turn first and second, so that a machine that gets slower favours neither.
        for server in (base, other) if number % 2 else (other, base):
            before = cpu_seconds(server.pid)
            load(server, context, count)
            cost[server] = (cpu_seconds(server.pid) - before) / count * 1e6
        if number:  # the first round warms up
            measured.append((cost[base], cost[other]))
    return measured


class Row(NamedTuple):
    name: str
    load: Load
    tls: bool
    flags: str
    share: float
    bar: float


ROWS = [
    Row("connection, one request", connections, False, "", 1, 1.05),
    Row("the same, deferred", connections, False, "deferred", 1, 1.05),
    Row("keep-alive request", keep_alive, False, "", 4, 1.05),
    Row("connection behind TLS", connections, True, "", 0.25, 1.10),
]


def measure(row: Row, pair: tuple[str, str] | None, options: argparse.Namespace) -> list[Pair]:
    """All rounds of a row, over several starts: a process is fast or slow for as long as it lives."""
    measured: list[Pair] = []
    for _ in range(options.starts):
        with ExitStack() as stack:
            servers = uvicorn(stack, pair), ours(stack, pair, row.flags)
            count = int(options.connections * row.share)
            measured += rounds_of(row.load, *servers, options.rounds, count)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=7, help="of both servers")
    parser.add_argument("--rounds", type=int, default=15, help="for each start")
    parser.add_argument("--connections", type=int, default=240, help="in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print(f"CPU time to uvicorn bare, median of {options.starts} x {options.rounds} paired rounds")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("certificate", "key")]
        for file, text in zip(files, self_signed(), strict=True):
            file.write_text(text)
        for row in ROWS:
            pair = (str(files[0]), str(files[1])) if row.tls else None
            measured = measure(row, pair, options)
            ratio = statistics.median(b / a for a, b in measured)
            base, other = (statistics.median(column) for column in zip(*measured, strict=True))
            bar = f"(bar {row.bar:.2f})"
            print(f"{row.name:28} {ratio:.3f} {bar}   uvicorn {base:7.1f} us, ours {other:7.1f} us")


if __name__ == "__main__":
    main()
