"""What every area measures and how it is told: sides that do the same work, round by round.

The contract between the areas and who runs them. An area is a module with

    def cases(effort: float) -> Iterator[Case]

which measures and yields one Case after the other; 1.0 is the whole suite, 0.01 a smoke run. It
ends with ``main(__doc__, cases)``, so that ``python -m benchmarks.<area>`` runs it alone. An area
with options of its own calls ``show()`` for each of its cases instead, and takes ``--effort`` and
``--json`` (``write()``) as well, for by these two the suite runs it.

Every Sample is the cost of one unit of work: CPU seconds of the process tree, and wall clock seconds.
``measure()`` takes one of each side in every round, in an order that changes, so that index i of
every side was measured within the same moment. What counts is the median over the rounds of
ours[i] / theirs[i], not a ratio of medians: the speed of a machine drifts, but not within a round.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
OURS = "kongrealip"


class Sample(NamedTuple):
    """A unit of work. The field's names are those of time; see Case.kind for what else they may hold."""

    cpu: float
    wall: float


class Kind(NamedTuple):
    """What the two numbers of a sample are, and in which units they are printed."""

    first: str
    second: str
    units: tuple[tuple[float, str], ...]

    def text(self, value: float) -> str:
        size, unit = next((one for one in self.units if abs(value) >= one[0]), self.units[-1])
        # Three digits, and no exponent where it takes more.
        return f"{value / size:{'.3g' if abs(value) < 999.5 * size else '.0f'}} {unit}"


KINDS = {
    "time": Kind("CPU", "wall", ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))),
    # Proportional and resident set size, in bytes.
    "memory": Kind("PSS", "RSS", ((1e6, "MB"),)),
}


class Spread(NamedTuple):
    """The median and the quartiles round it."""

    lower: float
    median: float
    upper: float


class Verdict(NamedTuple):
    """What is held against a bar, as texts, and whether it is met."""

    what: str
    found: str
    bar: str
    is_met: bool


@dataclass
class Case:
    """One comparison. ``bars`` say what our ratio to a side may be at most, ``wall_bars`` the same of
    the second number, and ``limit`` what our own first number may be, whatever the others need.

    A note tells of a side what it does not do of the work, or otherwise than the others.
    """

    area: str
    name: str
    unit: str
    sides: dict[str, list[Sample]]
    bars: dict[str, float] = field(default_factory=dict)
    wall_bars: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    kind: str = "time"
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def basis(self) -> str:
        return f"one {self.unit}, {len(self.sides[OURS])} rounds"

    def spread(self, side: str, number: int = 0) -> Spread:
        """Of what a side costs: of CPU, or with 1 of wall clock."""
        return spread(sample[number] for sample in self.sides[side])

    def ratio(self, side: str, number: int = 0) -> Spread:
        """Ours to a side's."""
        pairs = zip(self.sides[OURS], self.sides[side], strict=True)
        return spread(ours[number] / theirs[number] for ours, theirs in pairs)

    def verdicts(self) -> Iterator[Verdict]:
        """What became of each bar."""
        kind = KINDS[self.kind]
        for number, bars in enumerate((self.bars, self.wall_bars)):
            for side, bar in bars.items():
                ratio = self.ratio(side, number).median
                yield Verdict(f"{kind[number]} to {side}", figure(ratio), f"{bar:g}", ratio <= bar)
        if self.limit is not None:
            own = self.spread(OURS).median
            yield Verdict(kind.first, kind.text(own), kind.text(self.limit), own <= self.limit)


def figure(ratio: float) -> str:
    """Three digits behind the point, or two that say something."""
    return f"{ratio:.3f}" if abs(ratio) >= 0.1 else f"{ratio:#.2g}"


def spread(values: Iterable[float]) -> Spread:
    known = list(values)
    # One value has no quartiles; they are all the same.
    return Spread(*statistics.quantiles(known if len(known) > 1 else known * 2, n=4, method="inclusive"))


def measure(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """A sample of each side in each round, or several; a round before them warms up and does not count.

    Who is first moves on with every round, and every second one runs backwards: a machine that gets
    slower favours nobody, and nobody always runs in the cache that the same one leaves.
    """
    names = list(sides)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number // 2 % len(names)
        order = names[first:] + names[:first]
        for name in order[::-1] if number % 2 else order:
            sample = sides[name]()
            if number:
                measured[name].append(sample)
    return measured


def timed(work: Callable[[], object], count: int) -> Sample:
    """What one of ``count`` units costs that are done here, with nobody's garbage collected in between."""
    gc.disable()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    work()
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    gc.enable()
    return Sample(cpu / count / 1e9, wall / count / 1e9)


def less(samples: Iterable[Sample], others: Iterable[Sample]) -> list[Sample]:
    """What of these is left without what the others cost in the same rounds."""
    pairs = zip(samples, others, strict=True)
    return [Sample(whole.cpu - part.cpu, whole.wall - part.wall) for whole, part in pairs]


def row(case: Case, side: str) -> list[str]:
    """What is to be told of a side, as texts: costs, ratios with their bars, and the note."""
    kind = KINDS[case.kind]
    texts = [side, *(kind.text(case.spread(side, number).median) for number in (0, 1))]
    if side == OURS:
        missed = case.limit is not None and case.spread(OURS).median > case.limit
        limit = "" if case.limit is None else f"bar {kind.text(case.limit)}" + " MISSED" * missed
        return [*texts, limit, "", case.notes.get(side, "")]
    for number, bars in enumerate((case.bars, case.wall_bars)):
        lower, median, upper = case.ratio(side, number)
        text = f"{figure(median)} ({figure(lower)}-{figure(upper)})"
        if side in bars:
            text += f", bar {bars[side]:g}" + (" MISSED" if median > bars[side] else "")
        texts.append(text)
    return [*texts, case.notes.get(side, "")]


def headings(kind: Kind) -> list[str]:
    first, second, _ = kind
    return ["", first, second, f"ours to it, {first}", f"ours to it, {second}", "note"]


def show(case: Case) -> None:
    """A table of one case, as soon as it is measured."""
    rows = [headings(KINDS[case.kind]), *(row(case, side) for side in case.sides)]
    widths = [max(len(one[column]) for one in rows) for column in range(5)] + [0]
    print(f"\n{case.area}: {case.name} ({case.basis})")
    for one in rows:
        cells = (text.ljust(width) for text, width in zip(one, widths, strict=True))
        print("  " + "  ".join(cells).rstrip(), flush=True)


def write(path: Path, cases: Iterable[Case]) -> None:
    path.write_text(json.dumps([asdict(case) for case in cases]) + "\n")


def read(path: Path) -> list[Case]:
    cases = [Case(**entry) for entry in json.loads(path.read_text())]
    for case in cases:
        case.sides = {side: [Sample(*one) for one in samples] for side, samples in case.sides.items()}
    return cases


def main(description: str | None, cases: Callable[[float], Iterator[Case]]) -> None:
    """Run an area alone."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--effort", type=float, default=1.0, help="1.0 is the whole, 0.1 for a look")
    parser.add_argument("--json", type=Path, help="write the samples to this file")
    options = parser.parse_args()
    measured = []
    for case in cases(options.effort):
        show(case)
        measured.append(case)
    if options.json:
        write(options.json, measured)
