"""Servers and a relay under mixed traffic for half an hour: right to the end, and no larger than before.

    python -m benchmarks.soak [--minutes 30] [--rate 300] [--loop uvloop|asyncio] [--samples FILE]

Good, bad, slow and aborted clients, with preambles of either version and with X-Forwarded-For, in
clear text and through TLS, with HTTP/1.1, HTTP/2 and WebSocket. Each answer, and each line of the
access logs, is held against the client that was put into the request when it was composed.

It begins with a warm-up, a tenth of the time at twice the rate. Memory keeps the mark of the
highest load, and what comes later by chance is to stay below it. The memories that are bounded (of
headers, hops and peers, all of them offered new values without end) are full in it, too, and from
then on are emptied and filled again.

Memory is judged by the slope of a line through the samples of the last 20 minutes, or the last two
thirds of a shorter run, where it is shown and has no bar.

Descriptors are counted where no client is there: six times in a run the load waits until all of
them are gone. Pipes that the relay keeps for the next connection are counted apart.

Each sample is a line of JSON in FILE. The exit code is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import uvloop

from benchmarks.soak_load import Load, Tally
from benchmarks.soak_servers import Soaked, Taken, soaked, taken
from benchmarks.soak_talks import deck
from tests.lab import LOOPS
from tests.running import LOOPBACK, fetch

_SAMPLE_SECONDS = 5.0
_QUIET_POINTS = 6
_WARM_UP = 0.1
# For what the ends do after the last byte: TLS waits two seconds for the other's goodbye.
_SETTLING_SECONDS = 3.0
_JUDGED_SECONDS = 20 * 60.0
_MOST_MB_AN_HOUR = 1.0
# In percent. What the machine keeps the clients from sending at its time is left out.
_LEAST_SHARE = 98
# Both ends of each pipe that the relay keeps.
_MOST_PIPE_ENDS = 16


class Sample(NamedTuple):
    """A program at one moment, and how many clients were there."""

    seconds: float
    program: str
    is_quiet: bool
    clients: int
    taken: Taken


class Watch:
    """Looks at the programs now and then, and writes down what there is."""

    def __init__(self, soaked: Soaked, load: Load, file: IO[str]) -> None:
        self.samples: list[Sample] = []
        #: Of connections that a server still has where no client is there.
        self.left_open = 0
        self._soaked = soaked
        self._load = load
        self._file = file
        self._began = time.monotonic()

    async def run(self) -> None:
        while True:
            self._look(is_quiet=False)
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def look_in_quiet(self) -> None:
        """When all clients are gone."""
        await self._load.end()
        await asyncio.sleep(_SETTLING_SECONDS)
        self._look(is_quiet=True)
        for port in self._soaked.status_ports.values():
            told = await asyncio.to_thread(fetch, port, source_ip=LOOPBACK, path="/status")
            # The one that asks is there itself.
            self.left_open += told["server"]["connections_active"] - 1

    def _look(self, is_quiet: bool) -> None:
        seconds = time.monotonic() - self._began
        for name, pids in self._soaked.processes().items():
            sample = Sample(seconds, name, is_quiet, len(self._load.playing), taken(pids))
            self.samples.append(sample)
            line = {**sample._asdict(), "taken": sample.taken._asdict()}
            print(json.dumps(line), file=self._file, flush=True)
        for log in self._soaked.logs:
            log.read()


class Result(NamedTuple):
    tally: Tally
    samples: Sequence[Sample]
    #: What must not be, by name.
    faults: Mapping[str, int]


def soak(loop: str, seconds: float, rate: float, quiet_points: int, file: IO[str]) -> Result:
    """The load waits so many times until all clients are gone, the last time at its end."""
    with soaked(loop) as running, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        known = running.processes()
        load = Load(running.ports, deck())
        watch = Watch(running, load, file)
        runner.run(_loaded(load, watch, seconds / quiet_points, rate, quiet_points))
        return Result(load.tally, watch.samples, _faults(running, load.tally, watch, known))


async def _loaded(load: Load, watch: Watch, seconds: float, rate: float, times: int) -> None:
    await watch.look_in_quiet()
    watching = asyncio.create_task(watch.run())
    await load.run(seconds * times * _WARM_UP, 2 * rate)
    for _ in range(times):
        await load.run(seconds, rate)
        await watch.look_in_quiet()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


def _faults(soaked: Soaked, tally: Tally, watch: Watch, known: Mapping[str, set[int]]) -> dict[str, int]:
    processes = soaked.processes()
    return {
        "wrong clients": tally.wrong,
        "wrong clients in an access log": sum(log.wrong for log in soaked.logs),
        "answers without a line in an access log": max(
            0, tally.answered - sum(log.answered for log in soaked.logs)
        ),
        "connections that came to no end": tally.unanswered,
        "connections with an answer too many": tally.wrongly_answered,
        "connections left open": watch.left_open,
        "descriptors, the least to the most in quiet": _spread_in_quiet(watch.samples, "descriptors"),
        "pipe ends more than may be kept": max(
            0, _spread_in_quiet(watch.samples, "pipe_ends") - _MOST_PIPE_ENDS
        ),
        "processes that ended": sum(len(known[name] - processes[name]) for name in known),
        "tracebacks": soaked.tracebacks(),
        "programs that SIGTERM did not end": sum(one.stop() != 0 for one in soaked.programs.values()),
    }


def _spread_in_quiet(samples: Sequence[Sample], field: str) -> int:
    """Of the program that varies most. The first quiet point is before all clients, the last behind them."""
    of_program: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        if sample.is_quiet:
            of_program[sample.program].append(getattr(sample.taken, field))
    return max(max(counts) - min(counts) for counts in of_program.values())


def _judged(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the last 20 minutes, or of the last two thirds."""
    end = samples[-1].seconds
    start = end - min(_JUDGED_SECONDS, end * 2 / 3)
    return [sample for sample in samples if sample.seconds >= start]


def mb_an_hour(samples: Sequence[Sample], field: str) -> float:
    values = [getattr(sample.taken, field) for sample in samples]
    fit = statistics.linear_regression([sample.seconds for sample in samples], values)
    return fit.slope * 3600 / 2**20


def show(result: Result) -> int:
    """Print all of it, and return how many bars were missed."""
    tally = result.tally
    print(f"{tally.requests} requests in {tally.talks.total()} connections, {tally.answered} were answered")
    share = 100 * tally.requests / tally.due
    is_slow = share < _LEAST_SHARE
    bar = f"at least {_LEAST_SHARE}: {'missed' if is_slow else 'met'}"
    print(f"  {'of the requests that were to be sent, %':44} {share:8.1f}   {bar}")
    print(*(f"  {count:8} {kind}" for kind, count in sorted(tally.talks.items())), sep="\n")
    for text in tally.shown:
        print(f"  {text}")
    missed = is_slow + sum(_show_fault(name, count) for name, count in result.faults.items())
    for program in dict.fromkeys(sample.program for sample in result.samples):
        missed += _show_program([sample for sample in result.samples if sample.program == program])
    print(f"{missed} bars missed")
    return missed


def _show_fault(name: str, count: int) -> bool:
    print(f"  {name:44} {count:8}   at most 0: {'missed' if count else 'met'}")
    return count > 0


def _show_program(samples: Sequence[Sample]) -> int:
    """Of one program; returns how many bars were missed."""
    judged = _judged(samples)
    is_long = judged[-1].seconds - judged[0].seconds > _JUDGED_SECONDS - 2 * _SAMPLE_SECONDS
    minutes = (judged[-1].seconds - judged[0].seconds) / 60
    print(f"  {samples[0].program}, the last {minutes:.1f} of {samples[-1].seconds / 60:.1f} minutes")
    missed = 0
    for field, has_bar in (("rss", True), ("anonymous", True), ("pss", False)):
        slope = mb_an_hour(judged, field)
        is_missed = has_bar and is_long and slope >= _MOST_MB_AN_HOUR
        missed += is_missed
        verdict = f"below {_MOST_MB_AN_HOUR:g}: {'missed' if is_missed else 'met'}"
        first, last = (getattr(one.taken, field) / 2**20 for one in (judged[0], judged[-1]))
        shown = f"{slope:+9.3f} MB an hour   {first:8.2f} to {last:8.2f} MB"
        print(f"    {field:12} {shown}   {verdict * (has_bar and is_long)}")
    for field in ("descriptors", "pipe_ends", "threads"):
        quiet, busy = (
            sorted(getattr(one.taken, field) for one in judged if one.is_quiet is is_quiet)
            for is_quiet in (True, False)
        )
        print(f"    {field:12} in quiet {quiet[0]} to {quiet[-1]}, under load {busy[0]} to {busy[-1]}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=300, help="requests a second")
    parser.add_argument("--loop", choices=LOOPS, default="uvloop", help="of the servers and the relay")
    default = Path(tempfile.gettempdir(), "soak.jsonl")
    parser.add_argument("--samples", type=Path, default=default, metavar="FILE", help=f"[{default}]")
    options = parser.parse_args()
    with options.samples.open("w") as file:
        result = soak(options.loop, options.minutes * 60, options.rate, _QUIET_POINTS, file)
    print(f"{options.loop}, {options.rate:g} requests a second for {options.minutes:g} minutes")
    return min(show(result), 1)


if __name__ == "__main__":
    sys.exit(main())
