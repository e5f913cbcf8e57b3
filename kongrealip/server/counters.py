"""Numbers that all processes of one server see: shared memory with a row for each process.

Every number has one writer, so nothing is locked: whoever wants a sum reads all rows. The
memory is anonymous and handed down by fork, so there is no file to leave behind.
"""

from __future__ import annotations

import mmap
from collections.abc import Awaitable, Iterable, Sequence
from typing import TYPE_CHECKING

from kongrealip.config import Listen, Settings
from kongrealip.preamble import REASONS
from kongrealip.realip import EXTENSION_KEY
from kongrealip.realip.resolve import PEER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

#: Why a connection ended in front of its first request, beside what the parser finds.
REFUSALS = (*REASONS, "timeout", "cut_off", "crowded_out")
#: Where a connection can be.
STATES = ("preamble", "handshake", "open")

#: A name and its labels, such as ``("accepted", "0.0.0.0:8000")``.
Key = tuple[str, ...]


def keys_of(settings: Settings) -> list[Key]:
    """Everything that ``serve`` can count under these settings."""
    return [
        *keys_of_listeners((*settings.proxy_listen, *settings.status_listen)),
        *(("decisions", source) for source in (PEER, settings.real_ip_header)),
        ("header_values_refused",),
        ("requests",),
    ]


def keys_of_listeners(listens: Iterable[Listen]) -> list[Key]:
    """What there is to count at the door, whatever stands behind it."""
    listeners = [listen.address for listen in listens]
    return [
        *(("accepted", listener) for listener in listeners),
        *(("connections", listener, state) for listener in listeners for state in STATES),
        *(("tls_failures", listener) for listener in listeners),
        *(("preambles", version) for version in ("1", "2", "none")),
        *(("refused", reason) for reason in REFUSALS),
        ("worker_restarts",),
    ]


class Counters:
    """``rows`` rows of the same numbers, all 0 at first."""

    def __init__(self, keys: Sequence[Key], rows: int) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        self._memory = mmap.mmap(-1, 8 * len(self.keys) * rows)
        self._cells = memoryview(self._memory).cast("q")
        self.rows = rows
        self._index = {key: number for number, key in enumerate(self.keys)}

    def row(self, number: int) -> Row:
        """The numbers of one process."""
        if not 0 <= number < self.rows:
            # A slice would be silently empty.
            raise IndexError(f"row {number} of {self.rows}")
        width = len(self.keys)
        return Row(self._index, self._cells[number * width : (number + 1) * width])

    def total(self) -> dict[Key, int]:
        """The sum of all rows."""
        width = len(self.keys)
        return {key: sum(self._cells[place::width]) for key, place in self._index.items()}


class Row:
    """The numbers of one process. ``row.cells[row.place(...)] += 1`` counts."""

    __slots__ = ("_index", "cells")

    def __init__(self, index: dict[Key, int], cells: memoryview) -> None:
        self._index = index
        self.cells = cells

    def place(self, *key: str) -> int:
        """Where a number lies: to be looked up once, not each time it changes."""
        return self._index[key]

    def add(self, *key: str, amount: int = 1) -> None:
        """Count what happens seldom."""
        self.cells[self._index[key]] += amount

    def set(self, *key: str, value: int) -> None:
        """Say how many there are now."""
        self.cells[self._index[key]] = value

    def leave_to(self, other: Row) -> None:
        """Add what was counted to another row, because this process has ended.

        How many connections it had at its end is forgotten. The other row may belong to other
        settings, and lack a listener.
        """
        for key, place in self._index.items():
            if key[0] != "connections" and key in other._index:
                other.add(*key, amount=self.cells[place])
            self.cells[place] = 0


def counted(app: ASGIApp, row: Row, header: str) -> ASGIApp:
    """Count an application's requests and WebSocket connections, inside of RealIPMiddleware.

    ``header`` is the configured one, or ``proxy_protocol``. What it returns is no coroutine
    function but hands on the application's own awaitable: this runs for each request, and a
    coroutine in between would cost a third more.
    """
    cells, requests, from_peer = row.cells, row.place("requests"), row.place("decisions", PEER)
    from_header, refused = row.place("decisions", header), row.place("header_values_refused")
    name = Settings(real_ip_header=header).rules().header_name

    def count(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            resolution = scope["extensions"][EXTENSION_KEY]
        except KeyError:
            # The lifespan, for which nothing is decided.
            return app(scope, receive, send)
        cells[requests] += 1
        if resolution[3] == header:
            cells[from_header] += 1
        else:
            cells[from_peer] += 1
            if resolution[2] and name is not None and _has(scope["headers"], name):
                cells[refused] += 1
        return app(scope, receive, send)

    return count


def _has(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bool:
    for key, _ in headers:  # noqa: SIM110 - any() would take twice the time
        if key == name:
            return True
    return False
