"""What it costs to read the whole forwarded view: scheme, host, port, path, prefix, upstream headers.

First of a request to ``kongrealip serve``, of two servers whose applications read it and do not;
then of the middleware alone, in nanoseconds.

    python -m benchmarks.view [--effort 1.0]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.app import read_all
from benchmarks.comparison import OURS
from benchmarks.contest import Contest, Extent, Row, parser_of, run
from benchmarks.cost import LOAD_CORE, SERVER_CORE, on_core, tree
from benchmarks.load import PREAMBLE_V2, REQUEST, Side, keep_alive
from benchmarks.middleware import BALANCER, Scope, nanoseconds, request
from benchmarks.servers import BALANCERS, Job, kongrealip
from kongrealip import RealIPMiddleware
from tests.running import free_port

WHOLE = Extent(starts=5, rounds=15)
WITHOUT = "view not read"
APPLICATIONS = {OURS: "benchmarks.app:reading", WITHOUT: "benchmarks.app:app"}
_BARS = {WITHOUT: 1.5}
_REQUESTS = 960
_FORWARDED = REQUEST.replace(
    b"\r\n\r\n",
    b"\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n"
    b"X-Forwarded-Port: 443\r\n\r\n",
)


@contextmanager
def started(by_preamble: bool, names: Sequence[str]) -> Iterator[Mapping[str, Side]]:
    networks = [] if by_preamble else [BALANCERS]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {}
        for name in names:
            job = Job(folder, free_port(), networks=networks)
            with on_core(SERVER_CORE):
                program = stack.enter_context(kongrealip(job, APPLICATIONS[name]))
            sides[name] = Side(job.port, tree(program.pid), by_preamble)
        yield sides


def contests() -> list[Contest]:
    by_preamble = partial(keep_alive, PREAMBLE_V2)
    by_header = partial(keep_alive, b"", requests=repeat(_FORWARDED))
    preamble = Row("request, preamble", by_preamble, _REQUESTS, "request", bars=_BARS)
    header = Row("request, four forwarded headers", by_header, _REQUESTS, "request", bars=_BARS)
    return [
        Contest([preamble], list(APPLICATIONS), partial(started, True)),
        Contest([header], list(APPLICATIONS), partial(started, False)),
    ]


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


if __name__ == "__main__":
    run("view", contests(), WHOLE, parser_of(__doc__).parse_args())
    with on_core(LOAD_CORE):
        of_the_middleware(WHOLE.rounds)
