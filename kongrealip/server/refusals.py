"""One line for a refused connection, and not one for each of a thousand."""

from __future__ import annotations

import logging
import time
from collections import deque

logger = logging.getLogger("kongrealip.server")

# Enough to see what is going on, few enough to keep the disk: a scanner or a probe that speaks
# the wrong protocol comes back hundreds of times a second.
_LINES_A_SECOND = 5
# A server that has run out of something stays so for a while, and has many listeners.
_SECONDS_BETWEEN_PAUSES = 5


class RefusalLog:
    """Writes warnings up to a rate, and counts the ones it leaves out."""

    def __init__(self) -> None:
        # Of the lines of the last second. A count that begins anew with each second of the clock
        # would let twice as many through from the end of one to the beginning of the next.
        self._written: deque[float] = deque()
        self._left_out = 0
        self._next_pause = 0.0

    def write(self, peer: str, listener: str, reason: str) -> None:
        """Say that a connection was closed in front of its first request."""
        now = time.monotonic()
        while self._written and now - self._written[0] >= 1:
            self._written.popleft()
        if len(self._written) >= _LINES_A_SECOND:
            self._left_out += 1
            return
        self._written.append(now)
        more = f" ({self._left_out} more refusals since the last such line)" if self._left_out else ""
        self._left_out = 0
        logger.warning("refused %s on %s: %s%s", peer, listener, reason, more)

    def write_pause(self, listener: str, reason: str) -> None:
        """Say that no connections are accepted for a moment."""
        now = time.monotonic()
        if now >= self._next_pause:
            self._next_pause = now + _SECONDS_BETWEEN_PAUSES
            logger.error("%s accepts no connections for a moment: %s", listener, reason)
