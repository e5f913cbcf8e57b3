"""CPU time and throughput of the relay, beside those of HAProxy, nginx, Envoy and the proxy-protocol package.

The relays have one core; client and upstream share the other, do little, and are yet what limits
the throughput of who splices.

    python -m benchmarks.relay [--effort 1.0] [--only bulk,chain] [--beside HAProxy,Envoy]
    python -m benchmarks.relay --line     what a gigabyte costs in messages of 1 KB to 1 MB
    python -m benchmarks.relay --noise    with another HAProxy in our place: what equals come to
"""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.comparison import OURS, Case
from benchmarks.contest import Contest, Extent, Row, cases_of, parser_of, run
from benchmarks.cost import SERVER_CORE, on_core, tree
from benchmarks.load import CLIENT, CLIENT_PORT, HOST, IN_FLIGHT, PREAMBLE_V2, Side
from benchmarks.relay_load import (
    connections,
    downward,
    messages,
    names_client,
    round_trips,
    shown_preamble,
    sockets_lack_memory,
    upward,
)
from benchmarks.relay_mode import MODES
from benchmarks.servers import BALANCERS, HAPROXY, NGINX
from tests.balancers import programs, test_envoy
from tests.balancers.test_envoy import typed
from tests.running import Program, clean_environ, free_port, running

AREA = "relay"
WHOLE = Extent(starts=4, rounds=10)
SPLICING, ENVOY, PACKAGE = "HAProxy splicing", "Envoy", "proxyprotocol-server"
OPEN = 32
BULK_BYTES, CONNECTIONS, ROUND_TRIPS = 256 << 20, 800, 6400
LINE_KILOBYTES = (1, 4, 16, 64, 256, 1024)
LINE_BYTES, LINE_MESSAGES = 64 << 20, 4000
GIGABYTE = 1e9
_ONLY_VERSION_1 = "sends version 1, and has no other"


class Job(NamedTuple):
    """What a relay is to do, and a folder for its files."""

    folder: Path
    port: int
    upstream: Program
    accepts: bool
    sends: bool


Start = Callable[[Job], AbstractContextManager[Program]]


def ours(job: Job) -> AbstractContextManager[Program]:
    return relay_of_ours(job, "kongrealip")


def relay_of_ours(job: Job, *command: str) -> AbstractContextManager[Program]:
    listen = f"{HOST}:{job.port}" + " proxy_protocol" * job.accepts
    options = ["--listen", listen, "--upstream", f"{HOST}:{job.upstream.port}"]
    options += ["--send-proxy", "v2" if job.sends else "off"]
    environ = clean_environ() | {"KONG_TRUSTED_IPS": BALANCERS}
    start = [sys.executable, "-m", *command, "relay", *options]
    return running(start, environ, [job.port])


def in_mode(mode: str, job: Job) -> AbstractContextManager[Program]:
    return relay_of_ours(job, "benchmarks.relay_mode", mode)


def haproxy(job: Job, more: str = "") -> AbstractContextManager[Program]:
    config = f"""
listen relay
    bind {HOST}:{job.port} {"accept-proxy" * job.accepts}
    server upstream {HOST}:{job.upstream.port} {"send-proxy-v2" * job.sends}
"""
    return programs.haproxy(job.folder, config + more, job.port)


# The end of the listener's section, and another one. With splice-auto it would hardly ever splice.
_SPLICE = """
    option splice-request
    option splice-response
global
    tune.pipesize 1048576
    stats socket unix@stats
"""


def haproxy_splicing(job: Job) -> AbstractContextManager[Program]:
    return haproxy(job, _SPLICE)


@contextmanager
def haproxy_in_bulk(job: Job) -> Iterator[Program]:
    """Splices, and is asked in the end whether it did; of small messages it may not splice all."""
    with haproxy_splicing(job) as program:
        yield program
        if (share := spliced_share(job.folder)) < 0.95:
            raise SystemExit(f"{SPLICING} spliced {share:.0%} only: are pipes allowed?")


def spliced_share(folder: Path) -> float:
    """Of all bytes, those that went through HAProxy's pipes: nothing else tells that it has any."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "stats"))
        sock.sendall(b"show info\n")
        lines = sock.makefile().read().splitlines()
    counters = dict(line.split(": ", 1) for line in lines if ": " in line)
    return int(counters["TotalSplicedBytesOut"]) / int(counters["TotalBytesOut"])


def nginx(job: Job) -> AbstractContextManager[Program]:
    config = f"""
stream {{
    server {{
        listen {HOST}:{job.port} {"proxy_protocol" * job.accepts};
        set_real_ip_from {BALANCERS};
        proxy_pass {HOST}:{job.upstream.port};
        {"proxy_protocol on;" * job.sends}
    }}
}}
"""
    return programs.nginx(job.folder, config, job.port)


def envoy(job: Job) -> AbstractContextManager[Program]:
    accept = typed(
        "envoy.filters.listener.proxy_protocol", "filters.listener.proxy_protocol.v3.ProxyProtocol"
    )
    filters = [accept] * job.accepts
    if job.sends:
        config = test_envoy.tcp(job.port, job.upstream, {"version": "V2"}, filters)
    else:
        settings = {"stat_prefix": "tcp", "cluster": "upstream"}
        proxy = typed("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", **settings)
        config = test_envoy.config(job.port, job.upstream, proxy, filters, test_envoy.RAW)
    return programs.envoy(job.folder, config, job.port)


def package(job: Job) -> AbstractContextManager[Program]:
    destination = f"{HOST}:{job.upstream.port}?pp=" + ("v2" if job.sends else "noop")
    service = ["--service", f"{HOST}:{job.port}", destination]
    command = [sys.executable, "-m", "proxyprotocol.server.main", "--quiet", *service]
    return running(command, clean_environ(), [job.port])


STARTS: Mapping[str, Start] = {
    OURS: ours,
    HAPROXY: haproxy,
    SPLICING: haproxy_splicing,
    NGINX: nginx,
    ENVOY: envoy,
    PACKAGE: package,
}


def bulk(starts: Mapping[str, Start]) -> Contest:
    bars, wall_bars = {HAPROXY: 0.3, SPLICING: 1.05, ENVOY: 0.45}, {SPLICING: 1.0}
    rows = [
        Row(f"bulk, {name}", load, BULK_BYTES, "GB", GIGABYTE, bars, wall_bars)
        for name, load in {"client to upstream": upward, "upstream to client": downward}.items()
    ]
    return Contest(rows, list(starts), partial(started, {**starts, SPLICING: haproxy_in_bulk}))


def connection(starts: Mapping[str, Start]) -> Contest:
    bars = {HAPROXY: 1.4, ENVOY: 0.85, PACKAGE: 0.37}
    load = partial(connections, IN_FLIGHT, b"")
    row = Row("connection, one small request, v2 out", load, CONNECTIONS, "connection", bars=bars)
    return Contest([row], list(starts), partial(started, starts, sends=True), {NGINX: _ONLY_VERSION_1})


def chain(starts: Mapping[str, Start]) -> Contest:
    load = partial(connections, IN_FLIGHT, PREAMBLE_V2)
    row = Row("chain, a connection with v2 in and v2 out", load, CONNECTIONS, "connection")
    # The package accepts no preamble.
    names = [name for name in starts if name != PACKAGE]
    start = partial(started, starts, accepts=True, sends=True)
    return Contest([row], names, start, {NGINX: _ONLY_VERSION_1})


def roundtrip(starts: Mapping[str, Start]) -> Contest:
    name, load = f"roundtrip of 64 bytes, {OPEN} connections", partial(round_trips, OPEN)
    row = Row(name, load, ROUND_TRIPS, "round trip", bars={HAPROXY: 1.2, PACKAGE: 0.75})
    return Contest([row], list(starts), partial(started, starts))


def line(starts: Mapping[str, Start]) -> Contest:
    """From which size splicing pays, in messages each of which waits for an answer to the last."""
    rows = [
        Row(f"messages of {size} KB", partial(messages, size << 10), amount, "GB", GIGABYTE)
        for size in LINE_KILOBYTES
        for amount in [min(LINE_BYTES, LINE_MESSAGES * size << 10)]
    ]
    modes: dict[str, Start] = {mode: partial(in_mode, mode) for mode in MODES}
    starts = {OURS: starts[OURS], **modes, HAPROXY: haproxy, SPLICING: haproxy_splicing}
    return Contest(rows, list(starts), partial(started, starts))


def contests(starts: Mapping[str, Start]) -> list[Contest]:
    return [make(starts) for make in (bulk, connection, chain, roundtrip)]


def cases(effort: float) -> Iterator[Case]:
    return cases_of(AREA, contests(STARTS), WHOLE.scaled(effort))


def start_upstream(stack: ExitStack, has_preamble: bool) -> Program:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.relay_load", str(port), *["--preamble"] * has_preamble]
    return stack.enter_context(running(command, clean_environ(), [port]))


@contextmanager
def started(
    starts: Mapping[str, Start], names: Sequence[str], *, accepts: bool = False, sends: bool = False
) -> Iterator[Mapping[str, Side]]:
    with ExitStack() as stack:
        upstream = start_upstream(stack, sends)
        sides = {}
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            job = Job(folder, free_port(), upstream, accepts, sends)
            with on_core(SERVER_CORE):
                program = stack.enter_context(starts[name](job))
            if sends:
                check_preamble(name, job)
            sides[name] = Side(job.port, tree(program.pid), accepts)
        yield sides


def check_preamble(name: str, job: Job) -> None:
    """The upstream is to learn of the client, or of who the client says it relays."""
    preamble, client = shown_preamble(job.port, PREAMBLE_V2 if job.accepts else b"")
    if job.accepts:
        client = CLIENT, CLIENT_PORT
    if not names_client(preamble, *client):
        raise SystemExit(f"{name} sends {preamble.hex()!r} for {client}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--line", action="store_true", help="cost of a gigabyte by the size of messages")
    parser.add_argument("--noise", action="store_true", help="another HAProxy in our place")
    options = parser.parse_args()
    starts = {**STARTS, OURS: haproxy_splicing} if options.noise else STARTS
    run(AREA, [line(starts)] if options.line else contests(starts), WHOLE, options)
    if sockets_lack_memory():
        print("Other programs hold so much memory of sockets that these figures say little.")


if __name__ == "__main__":
    main()
