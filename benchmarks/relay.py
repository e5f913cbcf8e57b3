"""CPU time and throughput of the relay to HAProxy's, Envoy's and the proxy-protocol package's.

The relays have one core; client and upstream share the other, do little, and are yet what limits
the throughput of who splices. Rounds are short and alternate, and what counts is the median of the
ratios within a round: the machine's speed drifts, but not much in that time.

    python -m benchmarks.relay [--only bulk,connection,chain,roundtrip] [--starts 7] [--rounds 13]
    python -m benchmarks.relay --line     what a gigabyte costs in messages of 1 KB to 1 MB
    python -m benchmarks.relay --noise    with another HAProxy in our place: what equals come to
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from benchmarks.server import HOST, PREAMBLE, cpu_seconds
from tests.balancers import programs, test_envoy
from tests.balancers.test_envoy import typed
from tests.running import Program, clean_environ, free_port, running

OURS, HAPROXY, BEST, ENVOY, PACKAGE = "ours", "HAProxy", "HAProxy best", "Envoy", "package"
RELAY_CORE, LOAD_CORE = 0, 1
PREAMBLE_CLIENT = ("203.0.113.7", 40001)
IN_FLIGHT, OPEN = 8, 32
BULK_BYTES, CONNECTIONS, ROUND_TRIPS = 256 << 20, 800, 6400
LINE_KILOBYTES = (1, 4, 16, 64, 256, 1024)
LINE_BYTES, LINE_MESSAGES = 64 << 20, 4000
# When the client has all answers, a relay is still closing the last connections.
SETTLE_SECONDS = 0.005
PATIENCE_SECONDS = 60


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
    environ = clean_environ() | {"KONG_TRUSTED_IPS": "127.0.0.0/8"}
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


def haproxy_best(job: Job) -> AbstractContextManager[Program]:
    return haproxy(job, _SPLICE)


def spliced_share(folder: Path) -> float:
    """Of all bytes, those that went through HAProxy's pipes: nothing else tells that it has any."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "stats"))
        sock.sendall(b"show info\n")
        lines = sock.makefile().read().splitlines()
    counters = dict(line.split(": ", 1) for line in lines if ": " in line)
    return int(counters["TotalSplicedBytesOut"]) / int(counters["TotalBytesOut"])


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


class Row(NamedTuple):
    """A load, and what the relay's CPU time may be at most in terms of another one's."""

    name: str
    load: Callable[[int, int], None]
    amount: int
    unit: str
    bars: Mapping[str, float]
    # In terms of what BEST passes on in the same time.
    least_throughput: float | None = None


class Contest(NamedTuple):
    """Relays that do the same job, each in a process of its own, and the loads that they are put to."""

    name: str
    rows: Sequence[Row]
    relays: Mapping[str, Start]
    accepts: bool = False
    sends: bool = False


PER_GB, MICROSECONDS = "s/GB", "us"
PER_UNIT = {PER_GB: 1e9, MICROSECONDS: 1e6}
ALL = {OURS: ours, HAPROXY: haproxy, ENVOY: envoy, PACKAGE: package}


def bulk() -> Contest:
    bars = {HAPROXY: 0.3, BEST: 1.05, ENVOY: 0.45}
    loads = {"bulk, client to upstream": upward, "bulk, upstream to client": downward}
    rows = [Row(name, load, BULK_BYTES, PER_GB, bars, 1.0) for name, load in loads.items()]
    return Contest("bulk", rows, {OURS: ours, HAPROXY: haproxy, BEST: haproxy_best, ENVOY: envoy})


def connection() -> Contest:
    bars = {HAPROXY: 1.4, ENVOY: 0.85, PACKAGE: 0.37}
    load = partial(connections, IN_FLIGHT, b"")
    row = Row("connection, one small request, v2 out", load, CONNECTIONS, MICROSECONDS, bars)
    return Contest("connection", [row], ALL, sends=True)


def chain() -> Contest:
    load = partial(connections, IN_FLIGHT, PREAMBLE)
    row = Row("connection, one small request, v2 in and out", load, CONNECTIONS, MICROSECONDS, {})
    # The package accepts no preamble.
    relays = {name: start for name, start in ALL.items() if name != PACKAGE}
    return Contest("chain", [row], relays, accepts=True, sends=True)


def roundtrip() -> Contest:
    name, load = f"64 bytes there and back, {OPEN} connections", partial(round_trips, OPEN)
    row = Row(name, load, ROUND_TRIPS, MICROSECONDS, {HAPROXY: 1.2, PACKAGE: 0.75})
    return Contest("roundtrip", [row], ALL)


def line() -> Contest:
    """From which size splicing pays, in messages each of which waits for an answer to the last."""
    rows = [
        Row(f"messages of {size} KB", partial(messages, size << 10), amount, PER_GB, {})
        for size in LINE_KILOBYTES
        for amount in [min(LINE_BYTES, LINE_MESSAGES * size << 10)]
    ]
    modes: dict[str, Start] = {mode: partial(in_mode, mode) for mode in MODES}
    return Contest("line", rows, {OURS: ours, **modes, HAPROXY: haproxy, BEST: haproxy_best})


CONTESTS = {contest.name: contest for contest in (bulk(), connection(), chain(), roundtrip())}


class Cost(NamedTuple):
    """Of one unit."""

    cpu: float
    wall: float


class Relay(NamedTuple):
    name: str
    program: Program
    folder: Path


Round = Mapping[str, Cost]


def start_upstream(stack: ExitStack, has_preamble: bool) -> Program:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.relay_load", str(port), *["--preamble"] * has_preamble]
    return stack.enter_context(running(command, clean_environ(), [port]))


def start_relays(stack: ExitStack, contest: Contest) -> Mapping[str, Relay]:
    upstream = start_upstream(stack, contest.sends)
    relays = {}
    # Whatever is started stays on the core of who starts it.
    os.sched_setaffinity(0, {RELAY_CORE})
    for name, start in contest.relays.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job = Job(folder, free_port(), upstream, contest.accepts, contest.sends)
        relays[name] = Relay(name, stack.enter_context(start(job)), folder)
    os.sched_setaffinity(0, {LOAD_CORE})
    return relays


def check_preamble(relay: Relay, accepts: bool) -> None:
    """The upstream is to learn of the client, or of who the client says it relays."""
    preamble, client = shown_preamble(relay.program.port, PREAMBLE if accepts else b"")
    if accepts:
        client = PREAMBLE_CLIENT
    if not names_client(preamble, *client):
        raise SystemExit(f"{relay.name} sends {preamble.hex()!r} for {client}")


def give_up(name: str, *_: object) -> None:
    raise TimeoutError(f"{name} does not come to the end of a round")


def cost_of(row: Row, relay: Relay) -> Cost:
    pid, port = relay.program.pid, relay.program.port
    signal.signal(signal.SIGALRM, partial(give_up, relay.name))
    cpu, begin = cpu_seconds(pid), time.perf_counter()
    signal.alarm(PATIENCE_SECONDS)
    row.load(port, row.amount)
    signal.alarm(0)
    wall = time.perf_counter() - begin
    time.sleep(SETTLE_SECONDS)
    scale = PER_UNIT[row.unit] / row.amount
    return Cost((cpu_seconds(pid) - cpu) * scale, wall * scale)


def rounds_of(row: Row, relays: Mapping[str, Relay], rounds: int) -> list[Round]:
    measured: list[Round] = []
    names = list(relays)
    for number in range(rounds + 1):
        # Each is now first and now last, so that a machine that gets slower favours none.
        names = [*names[1:], names[0]]
        order = names if number % 2 else names[::-1]
        costs = {name: cost_of(row, relays[name]) for name in order}
        if number:  # the first round warms up
            measured.append({name: costs[name] for name in relays})
    return measured


def measure(contest: Contest, starts: int, rounds: int) -> list[list[Round]]:
    """All rounds of each row, over several starts: a process is fast or slow for as long as it lives."""
    measured: list[list[Round]] = [[] for _ in contest.rows]
    for _ in range(starts):
        with ExitStack() as stack:
            relays = start_relays(stack, contest)
            if contest.sends:
                for relay in relays.values():
                    check_preamble(relay, contest.accepts)
            for row, rows in zip(contest.rows, measured, strict=True):
                rows += rounds_of(row, relays, rounds)
            check_splicing(contest, relays)
    return measured


def check_splicing(contest: Contest, relays: Mapping[str, Relay]) -> None:
    # Small messages it does not splice.
    if contest.name == "bulk" and (share := spliced_share(relays[BEST].folder)) < 0.95:
        raise SystemExit(f"{BEST} spliced {share:.0%} only: are pipes allowed?")


def show(row: Row, measured: Sequence[Round]) -> None:
    print(row.name)
    for name in measured[0]:
        costs = [one[name] for one in measured]
        cpu, wall = (statistics.median(column) for column in zip(*costs, strict=True))
        text = f"  {name:13} {cpu:8.3f} {row.unit}, elapsed {wall:8.3f}"
        if name != OURS:
            ratios = [one[OURS].cpu / one[name].cpu for one in measured]
            text += f"   ours to it {judged(ratios, most=row.bars.get(name))}"
        print(text)
    if row.least_throughput:
        ratios = [one[BEST].wall / one[OURS].wall for one in measured]
        print(f"  throughput to that of {BEST} {judged(ratios, least=row.least_throughput)}")
    sys.stdout.flush()


def judged(ratios: Sequence[float], most: float | None = None, least: float | None = None) -> str:
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    text = f"{median:.3f} (half of the rounds {lower:.3f} to {upper:.3f})"
    if most is not None:
        text += f", bar {most:.2f} at most: {'met' if median <= most else 'MISSED'}"
    if least is not None:
        text += f", bar {least:.2f} at least: {'met' if median >= least else 'MISSED'}"
    return text


def with_stand_in(contest: Contest) -> Contest:
    stand_in = haproxy_best if BEST in contest.relays else haproxy
    return contest._replace(relays={**contest.relays, OURS: stand_in})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--starts", type=int, default=7, help="of all relays")
    parser.add_argument("--rounds", type=int, default=13, help="for each start")
    parser.add_argument("--only", default="", help="names of contests, with commas between")
    parser.add_argument("--line", action="store_true", help="cost of a gigabyte by the size of messages")
    parser.add_argument("--noise", action="store_true", help="another HAProxy in our place")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    names = options.only.split(",") if options.only else list(CONTESTS)
    contests = [line()] if options.line else [CONTESTS[name] for name in names]
    print(f"median of {options.starts} x {options.rounds} rounds, each of which tries all relays")
    for contest in map(with_stand_in, contests) if options.noise else contests:
        measured = measure(contest, options.starts, options.rounds)
        for row, rounds in zip(contest.rows, measured, strict=True):
            show(row, rounds)
        if sockets_lack_memory():
            print("  Other programs hold so much memory of sockets that these figures say little.")


if __name__ == "__main__":
    main()
