"""Sides that are started together a few times, and the loads that all of them are put to.

A process is fast or slow for as long as it lives, so the rounds of several starts count as one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.comparison import OURS, Case, Sample, measure, show, write
from benchmarks.cost import LOAD_CORE, cost_of, on_core
from benchmarks.load import Load, Side

# Amounts are multiples of it, and so of all numbers of connections that are open at a time.
_STEP = 32


class Row(NamedTuple):
    """A load. ``amount`` is put on a side in a round, and ``per_unit`` of it make a unit of the case."""

    name: str
    load: Load
    amount: int
    unit: str
    per_unit: float = 1
    bars: Mapping[str, float] = {}
    wall_bars: Mapping[str, float] = {}


class Contest(NamedTuple):
    """Sides with the same job, each in a process of its own, and the loads that they are put to."""

    rows: Sequence[Row]
    names: Sequence[str]
    start: Callable[[Sequence[str]], AbstractContextManager[Mapping[str, Side]]]
    notes: Mapping[str, str] = {}

    def only(self, words: Sequence[str]) -> Contest:
        """With the rows that have one of these words in their names."""
        return self._replace(rows=[row for row in self.rows if any(word in row.name for word in words)])

    def beside(self, names: Sequence[str]) -> Contest:
        wanted = {OURS.lower(), *(name.lower() for name in names)}
        return self._replace(names=[name for name in self.names if name.lower() in wanted])


class Extent(NamedTuple):
    """How much is measured: starts of all sides, rounds for each, and a share of every row's amount."""

    starts: int
    rounds: int
    share: float = 1

    def scaled(self, effort: float) -> Extent:
        """With less effort fewer starts, below one start fewer rounds, and at last shorter ones."""
        starts = self.starts * effort
        rounds = max(2, round(self.rounds * min(1, starts)))
        return Extent(max(1, round(starts)), rounds, min(1, 10 * effort))


def cases_of(area: str, contests: Iterable[Contest], extent: Extent) -> Iterator[Case]:
    for contest in contests:
        # Without a row that is asked for nothing needs to be started.
        if contest.rows:
            yield from _measured(area, contest, extent)


def _measured(area: str, contest: Contest, extent: Extent) -> list[Case]:
    cases = [_empty(area, contest, row) for row in contest.rows]
    for _ in range(extent.starts):
        with on_core(LOAD_CORE), contest.start(contest.names) as sides:
            for row, case in zip(contest.rows, cases, strict=True):
                for name, samples in rounds_of(row, sides, extent).items():
                    case.sides[name] += samples
    return cases


def _empty(area: str, contest: Contest, row: Row) -> Case:
    names = contest.names
    return Case(
        area,
        row.name,
        row.unit,
        {name: [] for name in names},
        bars={name: bar for name, bar in row.bars.items() if name in names},
        wall_bars={name: bar for name, bar in row.wall_bars.items() if name in names},
        notes={name: note for name, note in contest.notes.items() if name in names},
    )


def rounds_of(row: Row, sides: Mapping[str, Side], extent: Extent) -> dict[str, list[Sample]]:
    amount = _STEP * max(1, round(row.amount * extent.share / _STEP))

    def sample(side: Side) -> Sample:
        return cost_of(side.pids, lambda: row.load(side, amount), amount / row.per_unit)

    return measure({name: partial(sample, side) for name, side in sides.items()}, extent.rounds)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--effort", type=float, default=1.0, help="1.0 is the whole, 0.1 for a look")
    parser.add_argument("--json", type=Path, help="write the samples to this file")
    parser.add_argument("--starts", type=int, help="of all sides")
    parser.add_argument("--rounds", type=int, help="for each start")
    parser.add_argument("--only", type=_list, help="words in the names of cases, with commas between")
    parser.add_argument("--beside", type=_list, help="names of sides, with commas between")
    return parser


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def run(area: str, contests: Iterable[Contest], whole: Extent, options: argparse.Namespace) -> None:
    """Measure and show what the command line asks for."""
    extent = whole.scaled(options.effort)
    extent = Extent(options.starts or extent.starts, options.rounds or extent.rounds, extent.share)
    if options.only:
        contests = [contest.only(options.only) for contest in contests]
    if options.beside:
        contests = [contest.beside(options.beside) for contest in contests]
    measured = []
    for case in cases_of(area, contests, extent):
        show(case)
        measured.append(case)
    if options.json:
        write(options.json, measured)
