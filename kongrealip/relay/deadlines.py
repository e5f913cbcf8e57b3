"""Many that have the same time each, and one timer for all of them."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    deadline: float

    def time_out(self) -> None:
        """Its time is over; it has left."""


_Timed = TypeVar("_Timed", bound=Timed)


class Deadlines(Generic[_Timed]):
    """What comes first is due first, so only the first is looked at."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: dict[_Timed, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, one: _Timed) -> None:
        one.deadline = self._loop.time() + self._seconds
        self._waiting[one] = None
        if self._timer is None:
            self._timer = self._loop.call_at(one.deadline, self._expire)

    def leave(self, one: _Timed) -> None:
        self._waiting.pop(one, None)

    def drain(self) -> list[_Timed]:
        """At the end: all that still wait, who have left now."""
        waiting, self._waiting = list(self._waiting), {}
        if self._timer is not None:
            self._timer.cancel()
        return waiting

    def _expire(self) -> None:
        now = self._loop.time()
        # Until this is over there is a timer, so that who enters anew starts none.
        try:
            for one in list(self._waiting):
                if one.deadline > now:
                    break
                self.leave(one)
                one.time_out()
        finally:
            first = next(iter(self._waiting), None)
            self._timer = None if first is None else self._loop.call_at(first.deadline, self._expire)
