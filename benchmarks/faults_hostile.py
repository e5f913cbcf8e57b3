"""Hostile clients in full numbers, against bars.

    python -m benchmarks.faults_hostile [--runs 5] [--only NAME] [--loop asyncio|uvloop]

Each figure is shown with all its runs, their median, and whether that meets the bar; without a
bar it is there to be known. Half-open connections are held for a minute and memory is given ten
seconds to return, so five runs of everything take over an hour. Clients and servers share the
machine, which should have nothing else to do, and open 10,000 files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from tests.faults import hostile, test_hostile
from tests.faults.hostile import Figures
from tests.lab import LOOPS


class Bar(NamedTuple):
    """What the median must not exceed, or not fall below."""

    most: float = float("inf")
    least: float = float("-inf")

    def __str__(self) -> str:
        words = ((self.least, "at least"), (self.most, "at most"))
        return ", ".join(f"{word} {value:g}" for value, word in words if abs(value) != float("inf"))

    def verdict(self, value: float) -> str:
        return "met" if self.least <= value <= self.most else "missed"


class Scenario(NamedTuple):
    """``play`` takes the name of the loop."""

    name: str
    play: Callable[[str], Figures]
    bars: Mapping[str, Bar]


NONE = Bar(most=0)
_DRIP = {
    # Clocks are read once for each turn of the loop.
    "first close after the deadline, s": Bar(least=-0.01),
    "last close after the deadline, s": Bar(most=0.5),
    "bytes that came back": NONE,
    "share of a core, %": Bar(most=15),
}
#: Kilobytes for each held connection.
_KB_EACH = {"plain, half a preamble": 6, "ssl, half a preamble": 8, "ssl, a preamble and silence": 8}


def scenarios() -> Iterator[Scenario]:
    yield Scenario(
        "beside: 5000 half-open, 400 good a second",
        hostile.beside_good,
        {
            "good requests that failed": NONE,
            "held connections that were closed": NONE,
            "p99 to what it may be": Bar(most=1),
        },
    )
    for kind in hostile.HELD_KINDS:
        yield Scenario(f"memory: 5000 of {kind}", partial(hostile.memory, kind=kind), _memory_bars(kind))
    yield Scenario("drip: 1000 preambles byte by byte", hostile.drip, _DRIP)
    yield Scenario("drip: 1000 that perhaps begin a preamble", hostile.perhaps_drip, _DRIP)
    yield Scenario(
        "broken: 500 broken preambles a second",
        hostile.broken,
        {
            "p99 to the close, ms": Bar(most=50),
            "bytes that came back": NONE,
            "log lines in the fullest second": Bar(most=10),
        },
    )
    yield Scenario(
        "longest: 500 preambles of 65551 bytes",
        hostile.longest,
        {"memory at the most, MB more": Bar(most=64), "not answered": NONE},
    )
    yield from _forwarded()
    yield from _right_or_wrong()


def _memory_bars(kind: str) -> dict[str, Bar]:
    if kind not in _KB_EACH:
        return {}
    return {
        "KB each": Bar(most=_KB_EACH[kind]),
        "left after the first, %": Bar(most=5),
        "the second adds, %": Bar(most=2),
    }


def _forwarded() -> Iterator[Scenario]:
    bars = {
        "time for 100 KB, ms, 0 where refused": Bar(most=5),
        "not answered up to that": NONE,
        "grows with the size to the power of": Bar(most=1.2),
    }
    for recursive in ("on", "off"):
        for kind in hostile.FORWARDED:
            name = f"forwarded: 100 KB, {kind}, recursive {recursive}"
            yield Scenario(name, partial(hostile.forwarded, kind=kind, recursive=recursive), bars)


def _right_or_wrong() -> Iterator[Scenario]:
    yield Scenario(
        "splits: 1000 handshakes cut at random",
        test_hostile.failed_handshakes,
        {"handshakes that failed": NONE},
    )
    yield Scenario(
        "caps: 101 half-open where 100 may be",
        test_hostile.half_open_cap,
        dict.fromkeys(
            ("closed below the cap", "closed beside the oldest", "good requests that failed"), NONE
        ),
    )
    yield Scenario(
        "caps: 51 connections where 50 may be",
        test_hostile.connection_cap,
        {"answers that failed": NONE, "served beyond the cap": NONE, "log lines": Bar(most=1, least=1)},
    )
    for strict in (False, True):
        name = f"optional: {len(test_hostile.CASES)} cases{', strictly' * strict}"
        yield Scenario(name, partial(_wrong_answers, strict=strict), {"wrong answers": NONE})


def _wrong_answers(loop: str, strict: bool) -> Figures:
    wrong = test_hostile.wrong_answers(loop, strict)
    for line in wrong:
        print(f"  wrong: {line}")
    return {"wrong answers": len(wrong)}


def measure(scenario: Scenario, loop: str, runs: int) -> int:
    """Play it, print its figures, and return how many bars were missed."""
    print(f"{scenario.name}, {loop}", flush=True)
    played = [scenario.play(loop) for _ in range(runs)]
    missed = 0
    for name in played[0]:
        values = [figures[name] for figures in played]
        median, bar = statistics.median(values), scenario.bars.get(name)
        verdict = bar.verdict(median) if bar else ""
        missed += verdict == "missed"
        shown = "  ".join(f"{value:.4g}" for value in values)
        print(f"  {name:42} {median:10.4g}   {f'{bar}: {verdict}' if bar else '':20} ({shown})", flush=True)
    return missed


def play(scenarios: Iterator[Scenario], description: str | None, runs: int) -> int:
    """What the command line asks for of these, and whether a bar was missed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--only", default="", metavar="NAME", help="scenarios with this in their name")
    parser.add_argument("--loop", choices=LOOPS, help="one event loop instead of both")
    options = parser.parse_args()
    missed = 0
    for scenario in scenarios:
        if options.only in scenario.name:
            for loop in (options.loop,) if options.loop else LOOPS:
                missed += measure(scenario, loop, options.runs)
    print(f"{missed} bars missed")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(play(scenarios(), __doc__, runs=5))
