"""A connection with one request, and a request on an open connection, beside those of other servers.

The servers have one core and the load the other. uvicorn and granian cannot read a preamble and are
sent none: ours with one is held against uvicorn without.

    python -m benchmarks.server [--effort 1.0] [--only keep-alive] [--beside uvicorn,gunicorn]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import naming
from benchmarks.comparison import OURS, Case
from benchmarks.contest import Contest, Extent, Row, cases_of, parser_of, run
from benchmarks.cost import SERVER_CORE, on_core, tree
from benchmarks.load import (
    CLIENT,
    HOST,
    PREAMBLE_V1,
    PREAMBLE_V2,
    Side,
    client_tls,
    connections,
    connections_at_once,
    keep_alive,
    named_client,
    new_clients,
)
from benchmarks.servers import (
    BALANCERS,
    CADDY,
    GRANIAN,
    GUNICORN,
    HAPROXY,
    NGINX,
    PROXY_HEADERS,
    STARTS,
    UVICORN,
    Job,
    certificate_pair,
    reads_headers,
    reads_preambles,
)
from tests.running import free_port

AREA = "server"
WHOLE = Extent(starts=8, rounds=12)
ALL = [OURS, UVICORN, GUNICORN, GRANIAN, NGINX, HAPROXY, CADDY]
#: Whom X-Forwarded-For names when a server is asked for the client.
FORWARDED = "198.51.100.23"
_CONNECTIONS, _HANDSHAKES, _REQUESTS = 256, 64, 960
_NO_PREAMBLE = "reads no preamble, and is sent none"
_NO_HEADER = "is sent the header, and does nothing about it"


@contextmanager
def started(kind: str, names: Sequence[str]) -> Iterator[Mapping[str, Side]]:
    """All servers of a kind, each asked whom it takes for the client before it is measured."""
    with ExitStack() as stack:
        pair_folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = certificate_pair(pair_folder) if kind == "tls" else None
        networks = many_networks() if kind == "networks" else ()
        sides = {}
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            job = Job(folder, free_port(), pair, kind == "deferred", networks)
            with on_core(SERVER_CORE):
                program = stack.enter_context(STARTS[name](job))
            sides[name] = checked(name, job, program.pid)
        yield sides


def checked(name: str, job: Job, pid: int) -> Side:
    side = Side(job.port, [], reads_preambles(name, job), client_tls() if job.pair else None)
    expected = HOST
    if side.reads_preambles:
        expected = CLIENT
    elif reads_headers(name, job):
        expected = FORWARDED
    for preamble in (PREAMBLE_V1, PREAMBLE_V2):
        told = named_client(preamble, side, naming.PATH, FORWARDED)
        if told != expected:
            raise SystemExit(f"{name} takes {told!r} for the client, who is {expected}")
    # A server that answers has all its workers.
    return side._replace(pids=tree(pid))


def many_networks() -> list[str]:
    """A thousand that cannot be merged, the balancer's being the first."""
    return [BALANCERS, *(f"10.{number >> 7}.{number % 128 * 2}.0/24" for number in range(999))]


def one_request(name: str, preamble: bytes, amount: int, bars: Mapping[str, float]) -> Row:
    load = partial(connections, preamble)
    return Row(f"connection with one request, {name}", load, amount, "connection", bars=bars)


def plain() -> Contest:
    bars = {UVICORN: 1.0, GUNICORN: 0.5}
    rows = [
        one_request("v1", PREAMBLE_V1, _CONNECTIONS, bars),
        one_request("v2", PREAMBLE_V2, _CONNECTIONS, bars),
        Row("keep-alive, v2", partial(keep_alive, PREAMBLE_V2), _REQUESTS, "request", bars={UVICORN: 1.03}),
    ]
    notes = {UVICORN: _NO_PREAMBLE, GRANIAN: _NO_PREAMBLE}
    return Contest(rows, ALL, partial(started, "plain"), notes)


def deferred() -> Contest:
    """The kernel keeps a connection until there is something to read, where a server can say so."""
    row = one_request("v2, deferred", PREAMBLE_V2, _CONNECTIONS, {UVICORN: 1.0})
    notes = {UVICORN: f"{_NO_PREAMBLE}; cannot defer"}
    return Contest([row], [OURS, UVICORN, NGINX, HAPROXY], partial(started, "deferred"), notes)


def tls() -> Contest:
    bars = {UVICORN: 1.05}
    at_once = partial(connections_at_once, PREAMBLE_V2)
    rows = [
        one_request("v2 before TLS", PREAMBLE_V2, _HANDSHAKES, bars),
        Row("the same, eight handshakes at once", at_once, _HANDSHAKES, "connection", bars=bars),
    ]
    gunicorn = "would look for a preamble inside of TLS, and is sent none"
    notes = {UVICORN: _NO_PREAMBLE, GRANIAN: _NO_PREAMBLE, GUNICORN: gunicorn}
    return Contest(rows, ALL, partial(started, "tls"), notes)


def networks() -> Contest:
    load = partial(keep_alive, b"", requests=new_clients())
    name = "keep-alive, X-Forwarded-For, 1,000 networks, new clients"
    row = Row(name, load, _REQUESTS, "request", bars={UVICORN: 1.12})
    names = [OURS, UVICORN, PROXY_HEADERS, NGINX, HAPROXY, CADDY]
    notes = {UVICORN: _NO_HEADER, HAPROXY: "takes the last address, and walks past no hop"}
    return Contest([row], names, partial(started, "networks"), notes)


def contests() -> list[Contest]:
    return [plain(), deferred(), tls(), networks()]


def cases(effort: float) -> Iterator[Case]:
    return cases_of(AREA, contests(), WHOLE.scaled(effort))


if __name__ == "__main__":
    run(AREA, contests(), WHOLE, parser_of(__doc__).parse_args())
