"""Servers that are ended, renewed, killed, crowded and out of files, each against its bar.

Where nothing may be lost every run counts; times and shares are judged by their median.

    python -m benchmarks.faults_processes [--runs 5] [--only end,renew,kill,burst,shortage,scaling]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import processes as faults
from tests.faults.processes import APP, LOST, PREAMBLE, REFUSED, RESET, Load, children, cpu_seconds, served
from tests.running import LOOPBACK, clean_environ, free_port, running

LOOPS = ("asyncio", "uvloop")
WORKERS = ("--workers", "2")
RENEWALS, KILLS, SECONDS_BETWEEN_KILLS = 10, 5, 2.0
CONNECTS = 2000
FILES, HELD, HOLD_SECONDS, ASKED = 128, 300, 10.0, 50
IN_FLIGHT, CONNECTIONS_A_ROUND, ROUNDS = 64, 6000, 15

Figures = Mapping[str, float]


class Bar(NamedTuple):
    """``least`` to ``most``: of each run, or of their median."""

    least: float
    most: float
    each: bool = True

    def verdict(self, values: Sequence[float]) -> str:
        judged = values if self.each else [statistics.median(values)]
        is_met = all(self.least <= value <= self.most for value in judged)
        return f"bar {self.least:g} to {self.most:g}: {'met' if is_met else 'MISSED'}"


NONE = Bar(0, 0)
BARS = {
    "reset": NONE,
    "cut, closed or unanswered": NONE,
    "exit code": NONE,
    "seconds to the end": Bar(0, 5, each=False),
    "refused": NONE,
    "processes that answered": Bar(2 + 2 * RENEWALS, 2 + 2 * RENEWALS),
    "answered by old processes": NONE,
    "lost by workers not killed": NONE,
    "seconds to a successor, longest": Bar(0, 1, each=False),
    "refused or reset while connecting": NONE,
    "answered": Bar(CONNECTS, CONNECTS),
    "busy to the end": Bar(1, 1),
    "share of a core": Bar(0, 0.1, each=False),
    "log lines": Bar(1, 20),
    "answered on open ones": Bar(ASKED, ASKED),
    "seconds to an answer after release": Bar(0, 1, each=False),
    "attainable, two workers to one": Bar(1.7, 2.1, each=False),
}


class Case(NamedTuple):
    name: str
    run: Callable[[], Figures]
    has_bars: bool = True


def show(case: Case, runs: int) -> None:
    """Run it, and print a line for each figure."""
    print(case.name, flush=True)
    measured = [case.run() for _ in range(runs)]
    for name in measured[0]:
        values = [figures[name] for figures in measured]
        printed = " ".join(f"{value:.4g}" for value in values)
        verdict = BARS[name].verdict(values) if case.has_bars and name in BARS else ""
        print(
            f"  {name:34} {printed:34} median {statistics.median(values):<8.4g} {verdict}".rstrip(),
            flush=True,
        )


CLIENTS: dict[str, dict[str, Any]] = {
    "a connection for each request": {},
    "connections that stay open": {"keep_alive": True},
    "with preambles": {"preamble": PREAMBLE},
}
WITHOUT_PREAMBLES = {name: how for name, how in CLIENTS.items() if "preamble" not in how}


def lost(load: Load) -> Figures:
    reset = load.count(RESET)
    return {"reset": reset, "cut, closed or unanswered": load.count(*LOST) - reset}


def ends() -> Iterator[Case]:
    """SIGTERM at 200 requests a second of 200 ms each, and the same with uvicorn."""
    for loop in LOOPS:
        for flags, args in (("", WORKERS), ("reuseport", WORKERS), ("", ())):
            for client, how in CLIENTS.items():
                words = f"{flags} proxy_protocol" if "preamble" in how else flags
                name = ", ".join(["SIGTERM", loop, " ".join(args) or "alone", *words.split(), client])
                yield Case(name, partial(ended, words, [*args, "--loop", loop], how))
    for client, how in WITHOUT_PREAMBLES.items():
        yield Case(f"SIGTERM, uvicorn --workers 2, {client}", partial(ended_uvicorn, how), has_bars=False)


def ended(flags: str, args: Sequence[str], how: dict[str, Any]) -> Figures:
    with served(flags, *args) as server:
        load = Load(server.port, **how)
        code, seconds = asyncio.run(faults.end(server, load))
    return {**lost(load), "exit code": code, "seconds to the end": seconds}


def ended_uvicorn(how: dict[str, Any]) -> Figures:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", APP, "--port", str(port), *WORKERS, "--no-access-log"]
    with running(command, clean_environ(), [port]) as server:
        server.wait_for_stderr("Application startup complete")
        load = Load(port, **how)
        _, seconds = asyncio.run(faults.end(server, load))
    return {**lost(load), "seconds to the end": seconds}


def renewals() -> Iterator[Case]:
    """SIGHUP, ten times, a second apart or as long as the last request of the old workers takes."""
    for loop in LOOPS:
        for flags in ("", "reuseport"):
            for client, how in WITHOUT_PREAMBLES.items():
                name = ", ".join([f"SIGHUP x {RENEWALS}", loop, *flags.split(), client])
                yield Case(name, partial(renewed, flags, loop, how))


def renewed(flags: str, loop: str, how: dict[str, Any]) -> Figures:
    with served(flags, *WORKERS, "--loop", loop) as server:
        load = Load(server.port, **how)
        answering, by_old = asyncio.run(faults.renew(server, load, 2, RENEWALS, 1.0))
    return {
        **lost(load),
        "refused": load.count(REFUSED),
        "processes that answered": answering,
        "answered by old processes": by_old,
    }


def kills() -> Iterator[Case]:
    """SIGKILL for a worker, five times in ten seconds."""
    for loop in LOOPS:
        for flags in ("", "reuseport"):
            name = ", ".join([f"SIGKILL of a worker x {KILLS}", loop, *flags.split()])
            yield Case(name, partial(killed, flags, loop))


def killed(flags: str, loop: str) -> Figures:
    with served(flags, *WORKERS, "--loop", loop) as server:
        load = Load(server.port, "/named")
        done = asyncio.run(faults.kill(server, load, KILLS, SECONDS_BETWEEN_KILLS))
        by_others = faults.lost_by_others(load, done)
        code = server.stop()
    return {
        "lost by workers not killed": by_others,
        "lost by those killed": load.count(*LOST) - by_others,
        "refused": load.count(REFUSED),
        "seconds to a successor, longest": max(one.seconds for one in done),
        "exit code": code,
    }


def bursts() -> Iterator[Case]:
    """2,000 connects while the loop is blocked for a second."""
    for loop in LOOPS:
        yield Case(f"{CONNECTS} connects, {loop}, backlog=4096", partial(crowded, loop))


def crowded(loop: str) -> Figures:
    with served("backlog=4096", "--workers", "1", "--loop", loop) as server:
        return faults.burst(server.port, CONNECTS)


def shortages() -> Iterator[Case]:
    """300 connections with 128 files, for ten seconds."""
    for loop in LOOPS:
        for flags, preamble in (("", b""), ("proxy_protocol", PREAMBLE)):
            name = ", ".join([f"{FILES} files, {HELD} connections", loop, *flags.split()])
            yield Case(name, partial(run_short, flags, preamble, loop))


def run_short(flags: str, preamble: bytes, loop: str) -> Figures:
    with served(flags, "--loop", loop, files=FILES) as server:
        # Accepting pauses and goes on. Each phase of that is to have its turn.
        seconds = HOLD_SECONDS + random.random()
        return faults.run_short(server, preamble, HELD, seconds, ASKED)


CLIENT = r"""
#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char request[] = "GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n";

static void ask(int loop, const char *port) {
    struct sockaddr_in server = {AF_INET, htons(atoi(port)), {htonl(INADDR_LOOPBACK)}};
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = sock};
    if (connect(sock, (struct sockaddr *)&server, sizeof server)) err(1, "connect");
    if (send(sock, request, sizeof request - 1, MSG_NOSIGNAL) < 0) err(1, "send");
    if (epoll_ctl(loop, EPOLL_CTL_ADD, sock, &event)) err(1, "epoll_ctl");
}

/* client COUNT IN_FLIGHT PORT...: prints seconds, and seconds on a processor. */
int main(int argc, char **argv) {
    int count = atoi(argv[1]), in_flight = atoi(argv[2]), ports = argc - 3, begun = 0;
    int loop = epoll_create1(0);
    struct epoll_event event;
    struct timespec start, end;
    char answer[4096];
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int ended = 0, answered = 0; ended < count;) {
        for (; begun < count && begun < ended + in_flight; begun++) ask(loop, argv[3 + begun % ports]);
        if (epoll_wait(loop, &event, 1, 5000) != 1) err(1, "epoll_wait");
        ssize_t size = recv(event.data.fd, answer, sizeof answer, 0);
        if (size < 0) err(1, "recv");
        if (size > 0) { answered++; continue; }
        close(event.data.fd);
        if (++ended > answered) errx(1, "closed without an answer");
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%f %f\n", end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9,
           (double)clock() / CLOCKS_PER_SEC);
}
"""


class Round(NamedTuple):
    """Connections a second, cores that the clients used, and the servers' microseconds a connection.

    ``balance`` is 1 where all workers have had as much to do, and 1/2 where one of two had it all.
    """

    rate: float
    clients: float
    cost: float
    balance: float


def scalings() -> Iterator[Case]:
    """Two workers to one, in connections a second.

    Clients and workers share the cores, so the ratio of the rates tells little. With cores of
    their own two workers serve 2 x cost with one / cost with two x balance times as many. Two
    servers that share nothing show how much of that the machine takes.
    """
    if shutil.which("cc") is None:
        print("connections a second: left out, there is no C compiler for the client")
        return
    yield Case(f"connections a second, reuseport, medians of {ROUNDS} rounds", scaled)


def scaled() -> Figures:
    with ExitStack() as stack:
        client = str(Path(stack.enter_context(tempfile.TemporaryDirectory()), "client"))
        compiling = ["cc", "-O2", "-x", "c", "-o", client, "-"]
        subprocess.run(compiling, input=CLIENT.encode(), check=True, timeout=60)
        (one, ones), (two, twos), (more, mores) = (stack.enter_context(bare(n)) for n in (1, 2, 1))
        kinds = {"one": ([one], ones), "two": ([two], twos), "apart": ([one, more], ones | mores)}
        rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
        for number in range(ROUNDS + 1):
            for kind in sorted(kinds, reverse=bool(number % 2)):
                result = round_of(client, *kinds[kind])
                if number:  # the first round warms up
                    rounds[kind].append(result)
    alone, both = (Round(*map(statistics.median, zip(*rounds[kind], strict=True))) for kind in ("one", "two"))
    return {
        "attainable, two workers to one": attainable(rounds["one"], rounds["two"]),
        "attainable, two servers apart": attainable(rounds["one"], rounds["apart"]),
        "microseconds, one worker": alone.cost,
        "microseconds, two workers": both.cost,
        "balance of two workers": both.balance,
        "connections a second, one worker": alone.rate,
        "connections a second, two workers": both.rate,
        "cores of the clients, one worker": alone.clients,
        "cores of the clients, two workers": both.clients,
    }


def attainable(one: Iterable[Round], two: Iterable[Round]) -> float:
    return statistics.median(2 * a.cost / b.cost * b.balance for a, b in zip(one, two, strict=True))


@contextmanager
def bare(workers: int) -> Iterator[tuple[int, set[int]]]:
    """The smallest application behind a ``reuseport`` listener: its port and its workers."""
    port = free_port()
    environ = {**clean_environ(), "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} reuseport"}
    command = [sys.executable, "-m", "kongrealip", "serve", "benchmarks.app:app", "--no-access-log"]
    with running([*command, "--workers", str(workers)], environ, [port]) as server:
        server.wait_for_stderr("Application startup complete")
        yield port, children(server.pid)


def round_of(client: str, ports: Sequence[int], workers: Iterable[int]) -> Round:
    before = {pid: cpu_seconds(pid) for pid in workers}
    count = CONNECTIONS_A_ROUND // len(before)
    command = [client, str(count), str(IN_FLIGHT), *map(str, ports)]
    # One for each worker: a single one shares a core with one of them, and the other starves.
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in before]
    written = [list(map(float, one.communicate(timeout=60)[0].split())) for one in clients]
    used = [cpu_seconds(pid) - before[pid] for pid in before]
    seconds, total = max(taken for taken, _ in written), count * len(before)
    client_seconds = sum(taken for _, taken in written)
    balance = sum(used) / len(used) / max(used)
    return Round(total / seconds, client_seconds / seconds, sum(used) / total * 1e6, balance)


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "end": ends, "renew": renewals, "kill": kills,
    "burst": bursts, "shortage": shortages, "scaling": scalings,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(SECTIONS), help="some of them, separated by commas")
    options = parser.parse_args()
    for name in options.only.split(","):
        for case in SECTIONS[name]():
            show(case, options.runs)


if __name__ == "__main__":
    main()
