"""The middleware's own cost for each call, to that of uvicorn's ProxyHeadersMiddleware.

"Own" is the time of the whole call less that of the application alone. Rounds are short and
alternate, and what counts is the median of the ratios of neighbouring rounds.

    python -m benchmarks.middleware [--rounds 25]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from kongrealip import RealIPMiddleware

Scope = dict[str, Any]
BALANCER = ("10.0.0.1", 1234)
THREE = ["127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16"]
HEADERS = [
    (b"host", b"example.com"),
    (b"user-agent", b"curl/8"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"connection", b"keep-alive"),
    (b"x-request-id", b"abc"),
    (b"cookie", b"a=b"),
]


async def app(scope: Any, receive: Any, send: Any) -> None:
    pass


def request(client: tuple[str, int], forwarded: str | None = None) -> Scope:
    """A scope as uvicorn makes it."""
    headers = HEADERS if forwarded is None else [*HEADERS, (b"x-forwarded-for", forwarded.encode())]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": client,
        "scheme": "http",
        "root_path": "",
        "headers": headers,
        "state": {},
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
    }


def new_clients(hops: int) -> Iterator[str]:
    """Forwarding headers, each with a client that was not there before."""
    numbers = random.Random(1)
    for number in range(1 << 30):
        client = ".".join(str(numbers.randrange(1, 255)) for _ in range(3))
        proxies = ["", f", 10.1.2.{number % 255}, 192.168.3.4"][hops > 1]
        yield f"203.{client}{proxies}"


def nanoseconds(middleware: Any, scopes: list[Scope]) -> float:
    """CPU time of a call. The scope is copied for each, because the middleware changes it."""
    start = time.process_time_ns()
    for scope in scopes:
        call = middleware(scope.copy(), None, None)
        try:  # noqa: SIM105 - suppress() would cost as much as what is measured
            call.send(None)
        except StopIteration:
            pass
    return (time.process_time_ns() - start) / len(scopes)


def compare(
    networks: list[str], make: Callable[[int], list[Scope]], rounds: int, count: int
) -> tuple[float, float, float]:
    """The median ratio, and the medians of both own costs."""
    theirs = ProxyHeadersMiddleware(app, networks)
    ours = RealIPMiddleware(
        app, trusted_ips=networks, real_ip_header="X-Forwarded-For", real_ip_recursive=True
    )
    measured = []
    for number in range(rounds + 1):
        scopes = make(count)
        alone, one, other = (nanoseconds(middleware, scopes) for middleware in (app, theirs, ours))
        if number:
            measured.append((one - alone, other - alone))
    ratio = statistics.median(b / a for a, b in measured)
    return ratio, statistics.median(a for a, _ in measured), statistics.median(b for _, b in measured)


def many_networks(count: int) -> list[str]:
    """Networks that cannot be merged, and the balancer's among them."""
    others = [f"{11 + (i >> 16)}.{i >> 8 & 255}.{i & 255}.0/24" for i in range(0, 2 * count, 2)]
    return [*others[: count - 1], "10.0.0.0/8"]


def growth(rounds: int) -> float:
    """Own cost with 100,000 networks to that with 10."""
    few, many = (
        RealIPMiddleware(app, trusted_ips=many_networks(count), real_ip_header="X-Forwarded-For")
        for count in (10, 100_000)
    )
    clients = new_clients(1)
    ratios = []
    for _ in range(rounds):
        scopes = [request(BALANCER, next(clients)) for _ in range(2000)]
        alone, one, other = (nanoseconds(middleware, scopes) for middleware in (app, few, many))
        ratios.append((other - alone) / (one - alone))
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    one, three = new_clients(1), new_clients(3)
    silent = request(BALANCER)
    untrusted = request(("8.8.8.8", 1), "1.2.3.4")
    same = request(BALANCER, "203.0.113.7")

    def fresh(clients: Iterator[str]) -> Callable[[int], list[Scope]]:
        return lambda count: [request(BALANCER, next(clients)) for _ in range(count)]

    rows: list[tuple[str, float, list[str], Callable[[int], list[Scope]], int]] = [
        ("no header", 0.6, THREE, lambda count: [silent] * count, 2000),
        ("untrusted peer", 0.7, THREE, lambda count: [untrusted] * count, 2000),
        ("one hop, the same client", 0.4, THREE, lambda count: [same] * count, 2000),
        ("one hop, new clients", 0.45, THREE, fresh(one), 2000),
        ("three hops, new clients", 0.45, THREE, fresh(three), 2000),
        ("1,000 networks, new clients", 0.02, many_networks(1000), fresh(one), 200),
    ]
    print(f"own cost to uvicorn's ProxyHeadersMiddleware, median of {rounds} paired rounds")
    for name, bar, networks, make, count in rows:
        ratio, theirs, ours = compare(networks, make, rounds, count)
        print(f"{name:28} {ratio:.3f} (bar {bar:.2f})   uvicorn {theirs:8.0f} ns, ours {ours:6.0f} ns")
    print(f"{'100,000 networks to 10':28} {growth(rounds):.3f} (bar 2.00)")


if __name__ == "__main__":
    main()
