"""The relay under what lasts and what comes in masses, against bars.

    python -m benchmarks.faults_relay [--runs 3] [--only NAME] [--loop asyncio|uvloop]

Each figure is shown with all its runs, their median, and whether that meets the bar. The relay,
its clients and its upstream share the machine, and open 20,000 files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from benchmarks.faults_hostile import NONE, Bar, Scenario, measure
from tests.faults import relay
from tests.lab import LOOPS


def scenarios() -> Iterator[Scenario]:
    yield Scenario(
        "stopped: 1 GiB each way, readers stopped for 30 s",
        relay.stopped,
        {"directions with other bytes": NONE, "memory at the most, MB more": Bar(most=4)},
    )
    yield Scenario(
        "leaks: 10000 connections, a third reset",
        relay.opened_and_closed,
        {"descriptors left": NONE, "pipe ends kept": Bar(most=16)},
    )
    yield Scenario(
        "idle: 4000 connections that rest",
        relay.idle,
        {"KB each": Bar(most=8), "descriptors each": Bar(most=2.01)},
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAME", help="scenarios with this in their name")
    parser.add_argument("--loop", choices=LOOPS, help="one event loop instead of both")
    options = parser.parse_args()
    missed = 0
    for scenario in scenarios():
        if options.only in scenario.name:
            for loop in (options.loop,) if options.loop else LOOPS:
                missed += measure(scenario, loop, options.runs)
    print(f"{missed} bars missed")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
