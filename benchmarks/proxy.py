"""CPU time of the sidecar for a request, to nginx's proxy_pass and to a Python application served directly.

Each of them has one core to itself in its turn; the load and the upstream share the other. The
upstream is an nginx that answers two bytes, so that it does not count. What a core can serve
in a second is the inverse of the CPU time of a request, so that the bars are ratios of that:

* at least 0.2 of the requests a second of nginx, with keep-alive on both sides;
* at least 0.6 of those of an application served by ``kongrealip serve``. There are two: the one of
  FastAPI in ``examples``, and the smallest that can be, which only gives two bytes. An ASGI
  application that asks an upstream, and does nothing about headers, reaches 0.55 of the latter.

The elapsed time is shown beside it and judged by nothing: on a machine with two cores the load
is what limits nginx. Rounds are short and alternate, and the median of the ratios within a round
counts. At last a gigabyte is streamed through, each way, and the sidecar's memory must stay flat.

    python -m benchmarks.proxy [--starts 5] [--rounds 11] [--requests 4000] [--megabytes 1024]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.server import HOST, REQUEST, Running, cpu_seconds
from tests.nginx import binary
from tests.running import clean_environ, free_port, running

OURS, NGINX, FASTAPI, SMALLEST = "sidecar", "nginx", "FastAPI", "smallest"
PROXY_CORE, LOAD_CORE = 0, 1
#: Ours to theirs, in requests a second.
BARS = {NGINX: 0.2, FASTAPI: 0.6, SMALLEST: 0.6}
OPEN = 32
# What memory may grow by while a gigabyte passes.
FLAT_MEGABYTES = 8
_PIECE = bytes(1 << 16)
_WASTE = bytearray(1 << 18)

UPSTREAM = """
server {{
    listen {host}:{port};
    keepalive_requests 1000000;
    default_type text/plain;
    location / {{ return 200 ok; }}
}}
"""
# With the lines of Kong's own template, as far as a plain nginx has them.
PROXY = """
upstream behind {{ server {host}:{upstream}; keepalive 512; keepalive_requests 10000; }}
set_real_ip_from 127.0.0.0/8;
real_ip_header X-Real-IP;
server {{
    listen {host}:{port};
    keepalive_requests 1000000;
    location / {{
        proxy_http_version 1.1;
        proxy_set_header Connection keep-alive;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $host;
        proxy_set_header X-Forwarded-Port $server_port;
        proxy_set_header X-Forwarded-Path $request_uri;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_pass_header Server;
        proxy_pass_header Date;
        proxy_pass http://behind;
    }}
}}
"""


class Cost(NamedTuple):
    """Microseconds of a request."""

    cpu: float
    wall: float


def start(
    stack: ExitStack, core: int, command: Sequence[str | Path], environ: Mapping[str, str], port: int
) -> Running:
    """Start a server on a core; whatever is started stays where its parent was."""
    os.sched_setaffinity(0, {core})
    program = stack.enter_context(running(command, {**clean_environ(), **environ}, [port]))
    os.sched_setaffinity(0, {LOAD_CORE})
    return Running(program.pid, port, b"", False)


def nginx(stack: ExitStack, core: int, port: int, server: str) -> Running:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    conf = Path(folder, "nginx.conf")
    conf.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}} http {{ access_log off; {temporary} {server} }}\n"
    )
    return start(stack, core, [binary(), "-p", folder, "-c", str(conf), "-e", "stderr"], {}, port)


def ours(stack: ExitStack, port: int, *command: str) -> Running:
    environ = {"KONG_TRUSTED_IPS": "127.0.0.0/8", "KONG_PROXY_LISTEN": f"{HOST}:{port}"}
    arguments = [sys.executable, "-m", "kongrealip", *command, "--no-access-log"]
    return start(stack, PROXY_CORE, arguments, environ, port)


def servers(stack: ExitStack) -> dict[str, Running]:
    upstream, ports = free_port(), [free_port() for _ in range(4)]
    nginx(stack, LOAD_CORE, upstream, UPSTREAM.format(host=HOST, port=upstream))
    return {
        OURS: ours(stack, ports[0], "proxy", "--upstream", f"http://{HOST}:{upstream}"),
        NGINX: nginx(stack, PROXY_CORE, ports[1], PROXY.format(host=HOST, port=ports[1], upstream=upstream)),
        FASTAPI: ours(stack, ports[2], "serve", "examples.fastapi_app:app"),
        SMALLEST: ours(stack, ports[3], "serve", "benchmarks.app:app"),
    }


def keep_alive(port: int, count: int) -> None:
    """Requests on connections that stay open. All answers are of one size."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((HOST, port))) for _ in range(OPEN)]
        socks[0].sendall(REQUEST)
        time.sleep(0.05)
        size = len(socks[0].recv(65536))
        for _ in range(count // OPEN):
            for sock in socks:
                sock.sendall(REQUEST)
            for sock in socks:
                receive_all(sock, size)


def cost_of(server: Running, requests: int) -> Cost:
    cpu, begin = cpu_seconds(server.pid), time.perf_counter()
    keep_alive(server.port, requests)
    wall = time.perf_counter() - begin
    return Cost((cpu_seconds(server.pid) - cpu) / requests * 1e6, wall / requests * 1e6)


def rounds_of(running: Mapping[str, Running], rounds: int, requests: int) -> list[dict[str, Cost]]:
    measured, names = [], list(running)
    for number in range(rounds + 1):
        names = [*names[1:], names[0]]
        costs = {name: cost_of(running[name], requests) for name in names}
        if number:  # the first round warms up
            measured.append({name: costs[name] for name in running})
    return measured


def show(measured: Sequence[Mapping[str, Cost]]) -> None:
    for name in measured[0]:
        cpu, wall = (
            statistics.median(column) for column in zip(*[one[name] for one in measured], strict=True)
        )
        text = f"{name:10} {cpu:7.1f} us of CPU a request, elapsed {wall:7.1f} us"
        if name in BARS:
            ratios = [one[name].cpu / one[OURS].cpu for one in measured]
            lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
            verdict = "met" if median >= BARS[name] else "MISSED"
            text += f"   ours to it {median:.3f} (half of the rounds {lower:.3f} to {upper:.3f})"
            text += f", bar {BARS[name]:.2f} at least: {verdict}"
        print(text, flush=True)


class BulkUpstream:
    """Swallows a body or sends one, in a thread: the first letter of the path tells."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += sock.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    receive_all(sock, self._size - len(body))
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                else:
                    sock.sendall(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % self._size
                    )
                    send_all(sock, self._size)


def receive_all(sock: socket.socket, size: int) -> None:
    while size > 0:
        received = sock.recv_into(_WASTE)
        if not received:
            raise SystemExit("an answer broke off")
        size -= received


def send_all(sock: socket.socket, size: int) -> None:
    for _ in range(size // len(_PIECE)):
        sock.sendall(_PIECE)


def memory(pid: int) -> tuple[float, float]:
    """Megabytes: now, and the most that there ever were."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def download(port: int, size: int) -> None:
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        receive_all(sock, size)


def upload(port: int, size: int) -> None:
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        send_all(sock, size)
        if b" 200 " not in sock.recv(65536):
            raise SystemExit("the upload failed")


def stream(size: int) -> None:
    """A gigabyte each way. A small part first: what it takes to begin is no growth."""
    upstream = BulkUpstream(size)
    small = BulkUpstream(size >> 6)
    for name, load in (("to the client", download), ("to the upstream", upload)):
        with ExitStack() as stack:
            urls = [f"http://{HOST}:{one.port}" for one in (small, upstream)]
            proxies = [ours(stack, free_port(), "proxy", "--upstream", url) for url in urls]
            load(proxies[0].port, size >> 6)
            before = memory(proxies[0].pid)[1]
            cpu, begin = cpu_seconds(proxies[1].pid), time.perf_counter()
            load(proxies[1].port, size)
            wall = time.perf_counter() - begin
            cpu = cpu_seconds(proxies[1].pid) - cpu
            after, most = memory(proxies[1].pid)
        verdict = "met" if most - before <= FLAT_MEGABYTES else "MISSED"
        print(
            f"{size >> 20} MB {name}: memory at most {before:.1f} MB for {size >> 26} MB,"
            f" {most:.1f} MB for all"
            f" ({after:.1f} at the end), bar {FLAT_MEGABYTES} MB more: {verdict};"
            f" {cpu:.2f} s of CPU, {size / wall / 1e6:.0f} MB/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="of all servers")
    parser.add_argument("--rounds", type=int, default=11, help="for each start")
    parser.add_argument("--requests", type=int, default=4000, help="in each round")
    parser.add_argument("--megabytes", type=int, default=1024, help="to stream each way")
    options = parser.parse_args()
    measured = []
    for _ in range(options.starts):
        with ExitStack() as stack:
            measured += rounds_of(servers(stack), options.rounds, options.requests)
    print(f"median of {options.starts} x {options.rounds} rounds of {options.requests} requests")
    show(measured)
    stream(options.megabytes << 20)


if __name__ == "__main__":
    main()
