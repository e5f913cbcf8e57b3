"""CPU time of the sidecar for a request, to nginx's proxy_pass and to a Python application served directly.

Each of them has one core to itself in its turn; the load and the upstream share the other. The
upstream is an nginx that answers two bytes, so that it does not count. What a core can serve
in a second is the inverse of the CPU time of a request, so that the bars are ratios of that:

* at least 0.2 of the requests a second of nginx, with keep-alive on both sides;
* at least 0.6 of those of an application served by ``kongrealip serve``. There are two: the one of
  FastAPI in ``examples``, and the smallest that can be, which only gives two bytes. An ASGI
  application that asks an upstream, and does nothing about headers, reaches 0.55 of the latter.

The table tells the CPU time of ours to theirs, the inverse of these. The elapsed time is shown
beside it and judged by nothing: on a machine with two cores the load is what limits nginx. At last
a gigabyte is streamed through, each way, and the sidecar's memory must stay flat.

    python -m benchmarks.proxy [--effort 1.0] [--megabytes 1024]
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.comparison import OURS
from benchmarks.contest import Contest, Extent, Row, parser_of, run
from benchmarks.cost import LOAD_CORE, SERVER_CORE, cpu_seconds, on_core, tree
from benchmarks.load import HOST, REQUEST, Side
from benchmarks.servers import BALANCERS, NGINX, python
from tests.balancers import programs
from tests.running import free_port

WHOLE = Extent(starts=5, rounds=11)
FASTAPI, SMALLEST = "FastAPI", "smallest"
#: CPU time of ours to theirs: the inverse of requests a second.
BARS = {NGINX: 1 / 0.2, FASTAPI: 1 / 0.6, SMALLEST: 1 / 0.6}
OPEN = 32
# What memory may grow by while a gigabyte passes.
FLAT_MEGABYTES = 8
_PIECE = bytes(1 << 16)
_WASTE = bytearray(1 << 18)

UPSTREAM = """
server {
    listen 127.0.0.1:PORT;
    keepalive_requests 1000000;
    default_type text/plain;
    location / { return 200 ok; }
}
"""
# With the lines of Kong's own template, as far as a plain nginx has them.
PROXY = """
upstream behind { server UPSTREAM; keepalive 512; keepalive_requests 10000; }
set_real_ip_from 127.0.0.0/8;
real_ip_header X-Real-IP;
server {
    listen 127.0.0.1:PORT;
    keepalive_requests 1000000;
    location / {
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
    }
}
"""


def nginx(stack: ExitStack, core: int, server: str) -> Side:
    port = free_port()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = f"http {{ access_log off; {server.replace('PORT', str(port))} }}"
    with on_core(core):
        program = stack.enter_context(programs.nginx(folder, config, port))
    return Side(port, tree(program.pid))


def ours(stack: ExitStack, *command: str) -> Side:
    port = free_port()
    environ = {"KONG_TRUSTED_IPS": BALANCERS, "KONG_PROXY_LISTEN": f"{HOST}:{port}"}
    with on_core(SERVER_CORE):
        arguments = ["kongrealip", *command, "--no-access-log"]
        program = stack.enter_context(python([port], *arguments, environ=environ))
    return Side(port, tree(program.pid))


@contextmanager
def started(names: Sequence[str]) -> Iterator[Mapping[str, Side]]:
    with ExitStack() as stack:
        upstream = f"{HOST}:{nginx(stack, LOAD_CORE, UPSTREAM).port}"
        sides = {
            OURS: ours(stack, "proxy", "--upstream", f"http://{upstream}"),
            NGINX: nginx(stack, SERVER_CORE, PROXY.replace("UPSTREAM", upstream)),
            FASTAPI: ours(stack, "serve", "examples.fastapi_app:app"),
            SMALLEST: ours(stack, "serve", "benchmarks.app:app"),
        }
        yield {name: sides[name] for name in names}


def keep_alive(side: Side, count: int) -> None:
    """Requests on connections that stay open. All answers are of one size."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((HOST, side.port))) for _ in range(OPEN)]
        socks[0].sendall(REQUEST)
        time.sleep(0.05)
        size = len(socks[0].recv(65536))
        for _ in range(count // OPEN):
            for sock in socks:
                sock.sendall(REQUEST)
            for sock in socks:
                receive_all(sock, size)


def contest() -> Contest:
    row = Row("request passed on, keep-alive", keep_alive, 4000, "request", bars=BARS)
    return Contest([row], [OURS, *BARS], started)


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
            proxies = [ours(stack, "proxy", "--upstream", url) for url in urls]
            load(proxies[0].port, size >> 6)
            before = memory(proxies[0].pids[0])[1]
            cpu, begin = cpu_seconds(proxies[1].pids), time.perf_counter()
            load(proxies[1].port, size)
            wall = time.perf_counter() - begin
            cpu = cpu_seconds(proxies[1].pids) - cpu
            after, most = memory(proxies[1].pids[0])
        verdict = "met" if most - before <= FLAT_MEGABYTES else "MISSED"
        print(
            f"{size >> 20} MB {name}: memory at most {before:.1f} MB for {size >> 26} MB,"
            f" {most:.1f} MB for all"
            f" ({after:.1f} at the end), bar {FLAT_MEGABYTES} MB more: {verdict};"
            f" {cpu:.2f} s of CPU, {size / wall / 1e6:.0f} MB/s",
            flush=True,
        )


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=int, default=1024, help="to stream each way")
    options = parser.parse_args()
    run("proxy", [contest()], WHOLE, options)
    with on_core(LOAD_CORE):
        stream(options.megabytes << 20)
