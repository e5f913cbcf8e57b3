"""What the commands that explain have to show, as plain text, or as a tree where rich is installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from rich.tree import Tree

_WIDEST = 40


class Row(NamedTuple):
    """Cells that stand below each other, and how the row is meant: a key of ``STYLES``."""

    cells: tuple[str, ...]
    meaning: str = ""


class Section(NamedTuple):
    title: str
    rows: list[Row]


#: Colours in rich's words.
STYLES = {"good": "green", "chosen": "bold cyan", "bad": "bold red", "unread": "dim", "": ""}


def echo(text: str) -> None:
    """Print a line; what the terminal has no letters for is shown in escapes."""
    click.echo(_in_its_letters(text))


def _in_its_letters(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def show(title: str, sections: list[Section]) -> None:
    """A tree on a terminal where rich is installed, plain text otherwise."""
    if not (sys.stdout.isatty() and _show_tree(title, sections)):
        _show_plain(title, sections)


def _show_plain(title: str, sections: list[Section]) -> None:
    echo(title)
    for section in sections:
        echo(f"\n{section.title}")
        widths = _widths(section.rows)
        for row in section.rows:
            echo("  " + _line(row, widths))


def _widths(rows: list[Row]) -> list[int]:
    """Of each column the widest cell, within reason."""
    columns = max((len(row.cells) for row in rows), default=0)
    return [
        max(min(len(row.cells[column]), _WIDEST) for row in rows if column < len(row.cells))
        for column in range(columns)
    ]


def _line(row: Row, widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row.cells, widths, strict=False)).rstrip()


def _show_tree(title: str, sections: list[Section]) -> bool:
    try:
        from rich.console import Console
        from rich.text import Text
        from rich.tree import Tree
    except ImportError:
        return False
    # Texts are made one by one: what was received may look like markup.
    tree = Tree(Text(_in_its_letters(title), STYLES["chosen"]))
    for section in sections:
        _add_section(tree, section)
    Console(highlight=False).print(tree, soft_wrap=False)
    return True


def _add_section(tree: Tree, section: Section) -> None:
    from rich.table import Table
    from rich.text import Text

    branch = tree.add(Text(section.title, "bold"))
    widths = _widths(section.rows)
    for row in section.rows:
        # Of each row a grid, so that a long sentence stays in its column.
        grid = Table.grid(padding=(0, 2, 0, 0))
        for width in widths[: len(row.cells) - 1]:
            grid.add_column(min_width=width, overflow="fold")
        grid.add_column(overflow="fold")
        grid.add_row(*(Text(_in_its_letters(cell), STYLES[row.meaning]) for cell in row.cells))
        branch.add(grid)
