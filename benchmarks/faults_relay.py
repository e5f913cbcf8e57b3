"""The relay under what lasts and what comes in masses, against bars.

    python -m benchmarks.faults_relay [--runs 3] [--only NAME] [--loop asyncio|uvloop]

Each figure is shown with all its runs, their median, and whether that meets the bar. The relay,
its clients and its upstream share the machine, and open 20,000 files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.faults_hostile import NONE, Bar, Scenario, play
from tests.faults import relay


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


if __name__ == "__main__":
    sys.exit(play(scenarios(), __doc__, runs=3))
