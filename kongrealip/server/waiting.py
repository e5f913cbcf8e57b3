"""Connections of which the first bytes have not come yet."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS_A_TURN = 64


class WaitingRoom:
    """Descriptors that wait for bytes, and the time that each has.

    Not the loop's own readers, for two reasons. Nothing is kept of a connection but two numbers:
    an attacker opens thousands. And events come when bytes come (EPOLLET) and not as long as
    bytes are there, so that an unfinished preamble can stay where it is.

    ``on_bytes`` gets a descriptor, and whether its peer has closed; ``on_timeout`` one whose time
    is over. Both are to make it leave, or to let it wait on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_bytes: Callable[[int, bool], None],
        on_timeout: Callable[[int], None],
    ) -> None:
        # In the order of their deadlines, because all have the same time.
        self.deadlines: dict[int, float] = {}
        self._loop = loop
        self._on_bytes = on_bytes
        self._on_timeout = on_timeout
        self._epoll = select.epoll()
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._epoll.fileno(), self._wake)

    def enter(self, descriptor: int, deadline: float) -> None:
        """Let one wait. What has come in the meantime counts as coming now."""
        self.deadlines[descriptor] = deadline
        self._epoll.register(descriptor, _EVENTS)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def leave(self, descriptor: int) -> float | None:
        """The deadline of one that waits no more, or None where it never did."""
        deadline = self.deadlines.pop(descriptor, None)
        if deadline is not None:
            self._epoll.unregister(descriptor)
            if not self.deadlines:
                # A dictionary keeps the size that it once had.
                self.deadlines = {}
        return deadline

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _wake(self) -> None:
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            # One that came before may have made room for itself, at the cost of this one.
            if descriptor in self.deadlines:
                self._on_bytes(descriptor, bool(events & _ENDED))

    def _expire(self) -> None:
        """One timer serves all of them, because one is enough."""
        self._timer = None
        now = self._loop.time()
        for descriptor, deadline in list(self.deadlines.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                break
            self._on_timeout(descriptor)
