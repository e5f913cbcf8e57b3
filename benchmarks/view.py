"""What it costs to read the whole forwarded view: scheme, host, port, path, prefix, upstream headers.

First of a request to ``kongrealip serve``, CPU time of two servers whose applications read it and
do not, paired as in ``benchmarks.server``; then of the middleware alone, in nanoseconds.

    python -m benchmarks.view [--starts 5] [--rounds 15] [--requests 960]
"""

from __future__ import annotations

import argparse
import os
import statistics
from contextlib import ExitStack
from typing import Any

from benchmarks import server
from benchmarks.app import read_all
from benchmarks.middleware import BALANCER, Scope, nanoseconds, request
from kongrealip import RealIPMiddleware

BAR = 1.5
ENVIRON = {
    "KONG_TRUSTED_IPS": "127.0.0.0/8",
    "KONG_REAL_IP_HEADER": "X-Forwarded-For",
    "KONG_REAL_IP_RECURSIVE": "on",
}
FORWARDED = (
    b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n"
    b"X-Forwarded-Port: 443\r\n"
)


def serving(stack: ExitStack, application: str, preamble: bool) -> server.Running:
    port = server.free_port()
    environ = {**ENVIRON, "KONG_PROXY_LISTEN": f"{server.HOST}:{port} {'proxy_protocol' * preamble}"}
    if preamble:
        environ["KONG_REAL_IP_HEADER"] = "proxy_protocol"
    command = ["kongrealip", "serve", f"benchmarks.app:{application}", "--no-access-log"]
    pid = stack.enter_context(server.process(command, port, environ))
    return server.Running(pid, port, server.PREAMBLE if preamble else b"", False)


def of_requests(name: str, preamble: bool, headers: bytes, options: argparse.Namespace) -> None:
    server.REQUEST = server.REQUEST.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n")
    measured = []
    for _ in range(options.starts):
        with ExitStack() as stack:
            pair = serving(stack, "app", preamble), serving(stack, "reading", preamble)
            measured += server.rounds_of(server.keep_alive, *pair, options.rounds, options.requests)
    ratio = statistics.median(b / a for a, b in measured)
    without, reads = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"{name:34} {ratio:.3f} (bar {BAR})   {without:6.1f} us without, {reads:6.1f} us with")


def of_the_middleware(rounds: int) -> None:
    arguments: dict[str, Any] = {
        "trusted_ips": ["127.0.0.0/8", "10.0.0.0/8"],
        "real_ip_header": "X-Forwarded-For",
        "real_ip_recursive": True,
    }
    told = [
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"shop.example"),
        (b"x-forwarded-port", b"443"),
    ]
    full: Scope = request(BALANCER, "203.0.113.7")
    full["headers"] = [*full["headers"], *told]

    async def reader(scope: Any, receive: Any, send: Any) -> None:
        read_all(scope)

    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    plain, reads = RealIPMiddleware(nothing, **arguments), RealIPMiddleware(reader, **arguments)
    for name, scope in (("no header", request(BALANCER)), ("four headers", full)):
        costs = []
        for _ in range(rounds):
            alone, without, with_it = (nanoseconds(one, [scope] * 1000) for one in (nothing, plain, reads))
            costs.append((without - alone, with_it - alone))
        without, with_it = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"the middleware alone, {name:12} {without:6.0f} ns without, {with_it:6.0f} ns with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="of both servers")
    parser.add_argument("--rounds", type=int, default=15, help="for each start")
    parser.add_argument("--requests", type=int, default=960, help="in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print(f"a request with the whole view read, median of {options.starts} x {options.rounds} paired rounds")
    of_requests("request, preamble", True, b"", options)
    of_requests("request, four forwarded headers", False, FORWARDED, options)
    of_the_middleware(options.rounds)


if __name__ == "__main__":
    main()
