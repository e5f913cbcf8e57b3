"""The tables of a run as Markdown, for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.comparison import KINDS, Case, headings, row


def markdown(header: Mapping[str, object], areas: Mapping[str, Sequence[Case]]) -> str:
    lines = [*(f"- {name}: {value}" for name, value in header.items()), *_bars(areas)]
    for area, cases in areas.items():
        lines += [f"\n### {area.capitalize()}", *(line for case in cases for line in _case(case))]
    return "\n".join(lines) + "\n"


def _bars(areas: Mapping[str, Sequence[Case]]) -> Iterator[str]:
    """Everything that has a bar, in one table."""
    yield from ("", *_table_head("area", "case", "ours", "median", "bar", ""))
    for area, cases in areas.items():
        for case in cases:
            for what, found, bar, is_met in case.verdicts():
                yield _cells(area, case.name, what, found, bar, "met" if is_met else "missed")


def _case(case: Case) -> Iterator[str]:
    yield f"\n**{case.name}** ({case.basis})\n"
    yield from _table_head(*headings(KINDS[case.kind]))
    for side in case.sides:
        yield _cells(*row(case, side))


def _table_head(*names: str) -> list[str]:
    return [_cells(*names), "|---" * len(names) + "|"]


def _cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
