"""When sockets can be read and written: one epoll for all that is relayed, within the loop's own."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable

logger = logging.getLogger("kongrealip.relay")

CAN_WRITE = select.EPOLLOUT
#: The peer has closed its half or all of it, or the connection is lost.
HAS_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
IS_RESET = select.EPOLLERR
IS_URGENT = select.EPOLLPRI
CAN_READ = select.EPOLLIN | HAS_ENDED
# Linux wakes those who wait for urgent bytes with every other as well.
_WITHOUT_BYTES = HAS_ENDED | CAN_WRITE | select.EPOLLET
_ALL = CAN_READ | CAN_WRITE | IS_URGENT | select.EPOLLET
_EVENTS_A_LOOK = 256
# What happens in the meantime is taken along: a turn of the loop costs more than a look.
_LOOKS_A_TURN = 4


class Readiness:
    """Descriptors and what to call when one of them becomes ready, with epoll's events.

    Not the loop's own readers and writers: those are told again and again as long as a socket is
    ready, and so have to be taken away and put back whenever the other side cannot follow. Here
    a descriptor is registered once, for everything, and told of changes (EPOLLET): who is told
    has to read or write until the socket refuses.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        # A dictionary, so that nobody goes on twice.
        self._again: dict[Callable[[], None], None] = {}
        self._forgotten: set[int] = set()
        loop.add_reader(self._epoll.fileno(), self._wake)

    def watch(self, descriptor: int, handler: Callable[[int], None]) -> None:
        """Tell this handler from now on. At first, a socket that is ready counts as becoming ready."""
        is_new = descriptor not in self._handlers
        self._handlers[descriptor] = handler
        if is_new:
            self._epoll.register(descriptor, _ALL)

    def mute(self, descriptor: int) -> None:
        """Tell no more of bytes that come, for they cannot be taken: each segment would be told."""
        self._epoll.modify(descriptor, _WITHOUT_BYTES)

    def unmute(self, descriptor: int) -> None:
        """Tell of everything again, and of what has come in the meantime."""
        self._epoll.modify(descriptor, _ALL)

    def forget(self, descriptor: int) -> None:
        """Before it is closed, which takes it out of the epoll."""
        self._handlers.pop(descriptor, None)
        self._forgotten.add(descriptor)

    def again(self, go_on: Callable[[], None]) -> None:
        """Call this in the next turn: there is more, and others have waited long enough."""
        if not self._again:
            self._loop.call_soon(self._wake)
        self._again[go_on] = None

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _wake(self) -> None:
        if self._epoll.closed:
            return
        again, self._again = self._again, {}
        handlers, forgotten = self._handlers, self._forgotten
        for _ in range(_LOOKS_A_TURN):
            told = self._epoll.poll(0, _EVENTS_A_LOOK)
            if not told:
                break
            forgotten.clear()
            for descriptor, events in told:
                # One that came before may have closed it, and the number be another's by now.
                if descriptor in forgotten:
                    continue
                try:
                    handlers[descriptor](events)
                except Exception:
                    # The others will not be told again, so they have their turn whatever this is.
                    logger.exception("an error of this program's own, for one connection")
        for go_on in again:
            try:
                go_on()
            except Exception:
                logger.exception("an error of this program's own, for one connection")
