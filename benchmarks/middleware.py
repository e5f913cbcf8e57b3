"""What a middleware costs a call, beside others that find the client in X-Forwarded-For.

"Own" is the cost of the whole call less that of the application alone, measured in the same round.
Every side gets requests of the same kind, made just before the clock starts, and is asked once
beforehand whether it knows the client: who does not has a note.

    python -m benchmarks.middleware [--effort 0.2]
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

from benchmarks.comparison import OURS, Case, Sample, less, main, measure, timed
from benchmarks.middleware_peers import PEERS, Setting
from kongrealip import RealIPMiddleware

Scope = dict[str, Any]
#: A client, and the forwarding header that its request comes with.
Line = tuple[str, str | None]

BALANCER = ("10.0.0.1", 1234)
STRANGER = ("8.8.8.8", 1)
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
ALONE, TEN = "application alone", "kongrealip, 10 networks"
ROUNDS = 31
# Of who takes a microsecond; fewer could not be told from the clock's own steps.
LEAST_CALLS = 200


#: Whom the application saw last.
seen: list[Any] = [None]


async def app(scope: Any, receive: Any, send: Any) -> None:
    seen[0] = scope["client"]


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


def new_clients(hops: int = 1, forged: int = 0, new_proxies: bool = False) -> Iterator[Line]:
    """Each with a client that was not there before. Behind it stand ``hops`` less one proxies, before
    it what it has made up itself.

    As in a real installation the first proxy is one of a fleet, and then come the same ones again and
    again, unless all are to be new.
    """
    numbers = random.Random(1)
    lies = [f"198.18.0.{number}" for number in range(forged)]
    steady = [f"10.2.0.{number}" for number in range(hops - 2)]
    for number in range(1 << 30):
        client = f"203.{numbers.randrange(1, 255)}.{numbers.randrange(1, 255)}.{numbers.randrange(1, 255)}"
        proxies = [f"10.1.2.{number % 255}", *steady] if hops > 1 else []
        if new_proxies:
            first = number * hops
            proxies = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(first, first + hops - 1)]
        yield client, ", ".join([*lies, client, *proxies])


def same_client(hops: int) -> Iterator[Line]:
    return repeat(next(new_clients(hops)))


def many_networks(count: int) -> list[str]:
    """Networks that cannot be merged, and the balancer's among them."""
    others = [f"{11 + (i >> 16)}.{i >> 8 & 255}.{i & 255}.0/24" for i in range(0, 2 * count, 2)]
    return [*others[: count - 1], "10.0.0.0/8"]


def ours(application: Any, setting: Setting) -> Any:
    return RealIPMiddleware(
        application,
        trusted_ips=setting.networks,
        real_ip_header="X-Forwarded-For",
        real_ip_recursive=True,
    )


def cost(middleware: Any, scopes: Sequence[Scope]) -> Sample:
    """Of a call. The scope is copied for each, because the middleware changes it."""

    def call_all() -> None:
        for scope in scopes:
            call = middleware(scope.copy(), None, None)
            try:  # noqa: SIM105 - suppress() would cost as much as what is measured
                call.send(None)
            except StopIteration:
                pass

    return timed(call_all, len(scopes))


def nanoseconds(middleware: Any, scopes: Sequence[Scope]) -> float:
    return cost(middleware, scopes).cpu * 1e9


class Row(NamedTuple):
    name: str
    bar: float | None
    lines: Iterator[Line]
    hops: int = 1
    networks: Sequence[str] = THREE
    peer: tuple[str, int] = BALANCER
    calls: int = 1000

    def middlewares(self) -> dict[str, Any]:
        """Ours and all that can do this row's work."""
        setting = Setting(self.networks, self.hops)
        by_networks = len(self.networks) > len(THREE)
        peers = {name: peer for name, peer in PEERS.items() if not (by_networks and peer.counts_hops)}
        return {OURS: ours(app, setting)} | {name: peer.make(app, setting) for name, peer in peers.items()}

    def scopes(self, calls: int) -> list[Scope]:
        return [request(self.peer, line) for _, line in islice(self.lines, calls)]


def rows() -> Iterator[Row]:
    yield Row("no header", 0.5, repeat((BALANCER[0], None)))
    yield Row("untrusted peer", 0.6, repeat((STRANGER[0], "1.2.3.4")), peer=STRANGER)
    for hops in (1, 3, 20):
        yield Row(f"{counted(hops)}, the same client", 0.35, same_client(hops), hops)
    for hops, bar in ((1, 0.4), (3, 0.4), (20, 0.55)):
        yield Row(f"{counted(hops)}, new clients", bar, new_clients(hops), hops)
    yield Row("20 hops, all of them new", 0.55, new_clients(20, new_proxies=True), 20)
    yield Row("19 forged entries and a real one, new clients", 0.35, new_clients(forged=19))
    for count, least, calls in ((1000, 0.015, 100), (100_000, None, 3)):
        networks = many_networks(count)
        yield Row(f"{count:,} networks, new clients", least, new_clients(), networks=networks, calls=calls)


def counted(hops: int) -> str:
    return f"{hops} hop{'s' * (hops > 1)}"


def own_costs(row: Row, middlewares: dict[str, Any], effort: float) -> dict[str, list[Sample]]:
    """Of each, round by round."""
    calls = max(2, round(row.calls * min(1, effort * 10)))

    def sample(middleware: Any, count: int) -> Sample:
        return cost(middleware, row.scopes(count))

    quick = {ALONE: app, OURS: middlewares[OURS]}
    work = {name: partial(sample, middleware, calls) for name, middleware in middlewares.items()}
    work |= {name: partial(sample, one, max(calls, LEAST_CALLS)) for name, one in quick.items()}
    measured = measure(work, max(2, round(ROUNDS * effort)))
    alone = measured.pop(ALONE)
    return {name: less(samples, alone) for name, samples in measured.items()}


def remarks(row: Row, middlewares: dict[str, Any]) -> dict[str, str]:
    """What each does not do, and whom it took for the client if not the client."""
    told = {}
    for name, middleware in middlewares.items():
        client, line = next(row.lines)
        cost(middleware, [request(row.peer, line)])
        remark = PEERS[name].note if name in PEERS else ""
        wrong = "" if seen[0][0] == client else f"answers {seen[0][0]} for {client}"
        told[name] = "; ".join(filter(None, (remark, wrong)))
    return {name: text for name, text in told.items() if text}


def compare(row: Row, effort: float) -> Case:
    middlewares = row.middlewares()
    notes = remarks(row, middlewares)
    bars = {} if row.bar is None else {"uvicorn ProxyHeaders": row.bar}
    return Case("middleware", row.name, "call", own_costs(row, middlewares, effort), bars, notes=notes)


def growth(effort: float) -> Case:
    """What 100,000 networks cost beside 10."""
    few, many = (Setting(many_networks(count), 1) for count in (10, 100_000))
    row = Row("100,000 networks beside 10, new clients", None, new_clients())
    sides = own_costs(row, {OURS: ours(app, many), TEN: ours(app, few)}, effort)
    return Case("middleware", row.name, "call", sides, {TEN: 1.6})


def cases(effort: float) -> Iterator[Case]:
    for row in rows():
        yield compare(row, effort)
    yield growth(effort)


if __name__ == "__main__":
    main(__doc__, cases)
