"""The pipes through which bytes are spliced."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import NamedTuple

# What Linux lets an ordinary user ask for, /proc/sys/fs/pipe-max-size.
_PIPE_BYTES = 1 << 20
# As much again for a user in all, /proc/sys/fs/pipe-user-pages-soft. A pipe is held while what
# is in it cannot go on, so this bounds what slow readers can pin.
MOST_PIPES = 64
_KEPT = 8


class Pipe(NamedTuple):
    reader: int
    writer: int


class Pipes:
    """Empty pipes to borrow. A connection has one only while there is something in it."""

    def __init__(self, most: int = MOST_PIPES) -> None:
        self._free: list[Pipe] = []
        self._lent = 0
        self._most = most

    def take(self) -> Pipe | None:
        """An empty pipe, or None where there are too many already: then bytes are copied."""
        if self._free:
            self._lent += 1
            return self._free.pop()
        if self._lent >= self._most:
            return None
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None
        # It may be more than this user is allowed; the size that it has will do.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """It must be empty."""
        self._lent -= 1
        if len(self._free) < _KEPT:
            self._free.append(pipe)
        else:
            _close(pipe)

    def drop(self, pipe: Pipe) -> None:
        """One in which something is left."""
        self._lent -= 1
        _close(pipe)

    def close(self) -> None:
        while self._free:
            _close(self._free.pop())


def _close(pipe: Pipe) -> None:
    os.close(pipe.reader)
    os.close(pipe.writer)
