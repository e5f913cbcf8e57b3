"""One picture for each area: what every side costs in every case, with the quartiles as whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.comparison import KINDS, OURS, Case

_OURS, _OTHERS, _INK, _FAINT = "#c2410c", "#94a3b8", "#1e293b", "#64748b"
_COLUMNS, _WIDTH, _BAR_HEIGHT, _ROOM = 2, 11.0, 0.27, 0.95
# Text stays text: small files, and words that can be searched and read aloud. A fixed salt and no
# date, so that the same figures make the same file.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kongrealip",
    "font.family": "sans-serif",
    "font.size": 9,
}


def draw(path: Path, area: str, cases: Sequence[Case], caption: str) -> None:
    lines = ceil(len(cases) / _COLUMNS)
    most = max(len(case.sides) for case in cases)
    height = lines * (most * _BAR_HEIGHT + _ROOM) + 0.9
    with mpl.rc_context(_STYLE):
        # A card of its own, so that it can be read on a dark page as well.
        figure = Figure(figsize=(_WIDTH, height), facecolor="white", layout="constrained")
        grid = figure.subplots(lines, _COLUMNS, squeeze=False).flat
        for axes, case in zip(grid, cases, strict=False):
            _panel(axes, case)
            # As thick as in the others, however few they are; the first one on top.
            axes.set_ylim(most - 0.4, -0.6)
        for axes in grid[len(cases) :]:
            axes.set_axis_off()
        figure.suptitle(f"{area}: less is better", color=_INK, fontweight="bold")
        figure.supxlabel(caption, color=_FAINT, fontsize=8)
        figure.savefig(path, metadata={"Date": None, "Title": f"Benchmarks: {area}"})


def _panel(axes: Any, case: Case) -> None:
    kind, names = KINDS[case.kind], list(case.sides)
    spreads = [case.spread(name) for name in names]
    medians = [one.median for one in spreads]
    whiskers = [
        [max(0.0, one.median - one.lower) for one in spreads],
        [one.upper - one.median for one in spreads],
    ]
    colours = [_OURS if name == OURS else _OTHERS for name in names]
    axes.barh(names, medians, xerr=whiskers, color=colours, ecolor=_INK, capsize=2, height=0.7)
    reach = max(one.upper for one in spreads)
    for place, one in enumerate(spreads):
        axes.text(one.upper + reach * 0.015, place, kind.text(one.median), va="center", color=_INK)
    # Room for the longest of these texts.
    axes.set_xlim(0, reach * 1.2)
    axes.set_title(f"{case.name}\n{kind.first} of one {case.unit}", color=_INK, fontsize=9, loc="left")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: kind.text(value) if value else "0"))
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(colors=_FAINT, labelcolor=_INK, length=0)
    axes.tick_params(axis="x", labelcolor=_FAINT, labelsize=7)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
