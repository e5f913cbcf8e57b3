"""What the page is made of. Every value passes ``text`` on its way into HTML."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any


def text(value: object) -> str:
    """Any value as HTML: nothing in it is markup, and what cannot be seen is shown in escapes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    letters = "none" if value is None else str(value)
    return escape("".join(letter if letter.isprintable() else _escaped(letter) for letter in letters))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page with its heading. All of them are HTML already."""
    body = "\n".join(parts)
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}\n</section>\n'


def named(caption: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values."""
    return table(caption, ("Name", "Value"), rows)


def table(caption: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A table whose rows are headed by their first cells. The cells alone are text."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(_row(*cells) for cells in rows)
    head = f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>"
    return f"<table>{head}\n<tbody>\n{body}</tbody></table>"


def _row(name: object, *cells: object) -> str:
    # Long names of settings are to break between their words.
    head = text(name).replace("_", "_<wbr>")
    others = "".join(f"<td>{text(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{head}</th>{others}</tr>\n'
