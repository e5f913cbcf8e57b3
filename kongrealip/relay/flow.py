"""One direction of a relayed connection: from a source to a sink.

Small pieces are copied: a read and a write. From a certain size on it is cheaper to leave the
bytes in the kernel and pass references to them through a pipe (``splice``); the line is drawn in
``benchmarks/relay.py --line``. What flows decides.
"""

from __future__ import annotations

import socket
import sys
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK, splice
from typing import TYPE_CHECKING, Protocol

from kongrealip.relay.pipes import Pipe
from kongrealip.relay.readiness import CAN_READ, CAN_WRITE, HAS_ENDED, IS_RESET, IS_URGENT

if TYPE_CHECKING:
    from kongrealip.relay.pair import Pair

# A read that fills this is the beginning of more.
_CHUNK = 32768
_SPLICE_CHUNK = 1 << 21
# Splices that bring less than this are small pieces again.
_SMALL = 16384
# How often to go on before others have their turn.
_TURNS = 8
_ODD = IS_RESET | IS_URGENT
_ON = (1).to_bytes(4, sys.byteorder)
_FLAGS = SPLICE_F_NONBLOCK | SPLICE_F_MOVE


class End(Protocol):
    """What a flow needs of a socket; also of one with TLS."""

    def fileno(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def setsockopt(self, level: int, option: int, value: bytes, /) -> None: ...
    def close(self) -> None: ...


class Flow:
    """Reads from ``source`` as long as there is something and ``sink`` takes it.

    ``is_blocked`` while something is held that the sink has refused: then nothing is read, and so
    the sender is slowed down by TCP itself. ``has_ended`` when all has been passed on, the end
    included.
    """

    __slots__ = (
        "_cell", "_held", "_is_ending", "_is_muted", "_piped", "_receive", "_send", "can_splice", "has_ended",
        "is_blocked", "is_bulk", "pair", "pipe", "reads_on", "reverse", "sink", "source",
    )  # fmt: skip

    reverse: Flow

    def __init__(self, pair: Pair, source: End, sink: End, cell: int) -> None:
        self.pair = pair
        self.source = source
        self.sink = sink
        self._receive = source.recv
        self._send = sink.send
        self._cell = cell
        self._held = b""
        self.pipe: Pipe | None = None
        self._piped = 0
        self._is_ending = False
        self._is_muted = False
        self.is_blocked = False
        self.is_bulk = False
        self.has_ended = False
        # Of TLS a read brings a record at most, and tells nothing about what is behind it.
        self.reads_on = not isinstance(source, socket.socket)
        self.can_splice = not self.reads_on and isinstance(sink, socket.socket)

    def on_events(self, events: int) -> None:
        """The source has changed. It is also the sink of the other direction."""
        try:
            if events & _ODD:
                if events & IS_URGENT:
                    self._come_past_urgent()
                if events & IS_RESET:
                    self._pass_on_reset()
                    return
            if events & CAN_WRITE and self.reverse.is_blocked:
                self.reverse.pump(True)
            if not events & CAN_READ or self.has_ended:
                return
            if not self.is_blocked:
                self.pair.is_active = True
                if self.is_bulk or self._copy(events & HAS_ENDED or self.reads_on):
                    self._splice()
            elif not self._is_muted:
                self._mute()
        except OSError:
            self.pair.abort()
        except Exception:
            self.pair.abort()
            raise

    def _pass_on_reset(self) -> None:
        """The source is gone. What it had said before goes first, as far as the sink takes it."""
        if not (self.is_blocked or self.has_ended):
            # Where it had ended as well, a read tells of the end alone.
            self.pump(True)
        self.pair.abort()

    def _come_past_urgent(self) -> None:
        """Read on where a read ends, and do not splice.

        A read ends in front of an urgent byte (telnet, FTP and Oracle send some), though there is
        more, and a splice does not come past it at all. TLS has none.
        """
        if not self.reads_on:
            self.source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, _ON)
            self.can_splice = self.is_bulk = False
            self.reads_on = True

    def _mute(self) -> None:
        """What sends much goes on, and would be told of with each segment."""
        self._is_muted = True
        self.pair.relay.readiness.mute(self.source.fileno())

    def begin(self, preamble: bytes, events: int) -> None:
        """Write a preamble, if there is one, and in the same write what the source has sent by now.

        ``events`` are those of the source until now.
        """
        data = preamble
        if events & IS_URGENT:
            self._come_past_urgent()
        if events & CAN_READ or self.reads_on:
            try:
                received = self._receive(_CHUNK)
            except BlockingIOError:
                received = b""
            data += received
        sent = self._try(data) if data else 0
        # The preamble was not relayed.
        self.pair.relay.cells[self._cell] += max(0, sent - len(preamble))
        if sent < len(data):
            self._hold(data[sent:])
            return
        if events & HAS_ENDED or len(data) >= _CHUNK or self.reads_on:
            self.pump(True)

    def pump(self, to_the_end: int | bool) -> None:
        """Pass on what there is. With ``to_the_end`` until the source says that this is all.

        Without it a read that is not filled is taken for the last: what comes later will be told.
        """
        self.pair.is_active = True
        if self.is_blocked:
            if not self._flush():
                return
            to_the_end = True
        if self.is_bulk or self._copy(to_the_end):
            self._splice()

    def release(self) -> None:
        """Return the pipe. At the end there may be something in it, which has nowhere to go."""
        if self.pipe is not None:
            pipes = self.pair.relay.pipes
            pipes.drop(self.pipe) if self._piped else pipes.give_back(self.pipe)
            self.pipe = None

    def _go_on(self) -> None:
        # In the meantime an event may have brought it further, to the end even.
        if not (self.pair.is_closed or self.is_blocked or self.has_ended):
            try:
                self.pump(True)
            except OSError:
                self.pair.abort()
            except Exception:
                self.pair.abort()
                raise

    def _end(self) -> None:
        """The source has said all, and the sink is told so."""
        try:
            self.pair.end(self)
        except BlockingIOError:
            # TLS has a last word, for which there may be no room.
            self.is_blocked = self._is_ending = True

    def _copy(self, to_the_end: int | bool) -> bool:
        """Pass on small pieces, and say whether larger ones are coming."""
        receive, send = self._receive, self._send
        cells, cell = self.pair.relay.cells, self._cell
        for _ in range(_TURNS):
            try:
                data = receive(_CHUNK)
            except BlockingIOError:
                return False
            size = len(data)
            if not size:
                self._end()
                return False
            # Not by _write(): that call would be three per cent of a small message.
            try:
                sent = send(data)
            except BlockingIOError:
                sent = 0
            cells[cell] += sent
            if sent < size:
                self._hold(data[sent:])
                return False
            if size == _CHUNK:
                if self.can_splice:
                    self.is_bulk = True
                    return True
            elif not to_the_end:
                return False
        self.pair.relay.readiness.again(self._go_on)
        return False

    def _write(self, data: bytes) -> bool:
        """Say whether all of it is gone. What is not is held."""
        sent = self._try(data)
        self.pair.relay.cells[self._cell] += sent
        if sent < len(data):
            self._hold(data[sent:])
        return not self.is_blocked

    def _try(self, data: bytes) -> int:
        """How many bytes the sink takes now."""
        try:
            return self._send(data)
        except BlockingIOError:
            return 0

    def _hold(self, data: bytes) -> None:
        self._held = data
        self.is_blocked = True

    def _flush(self) -> bool:
        self.is_blocked = False
        if self._is_ending:
            self._end()
            return False
        if self.pipe is not None:
            is_flushed = self._empty(self.pipe)
            if is_flushed:
                self.release()
        else:
            data, self._held = self._held, b""
            is_flushed = self._write(data)
        if is_flushed and self._is_muted:
            self._is_muted = False
            self.pair.relay.readiness.unmute(self.source.fileno())
        return is_flushed

    def _splice(self) -> None:
        """Pass on large pieces, until there is nothing more, the sink is full, or they are small again."""
        pipes = self.pair.relay.pipes
        pipe = self.pipe = pipes.take()
        if pipe is None:
            self.is_bulk = False
            self.pair.relay.readiness.again(self._go_on)
            return
        if self._fill_and_empty(pipe):
            self.release()

    def _fill_and_empty(self, pipe: Pipe) -> bool:
        """Say whether the pipe is empty in the end."""
        source, writer = self.source.fileno(), pipe.writer
        for _ in range(_TURNS):
            try:
                size = self._piped = splice(source, writer, _SPLICE_CHUNK, None, None, _FLAGS)
            except BlockingIOError:
                return True
            if not self._empty(pipe):
                return False
            if size < _SMALL:
                # Also where there is nothing: that is the end, or an urgent byte. A read will tell.
                self.is_bulk = False
                break
        self.pair.relay.readiness.again(self._go_on)
        return True

    def _empty(self, pipe: Pipe) -> bool:
        """Say whether the sink took all that was in the pipe."""
        sink, before = self.sink.fileno(), self._piped
        try:
            while self._piped:
                self._piped -= splice(pipe.reader, sink, self._piped, None, None, _FLAGS)
        except BlockingIOError:
            self.is_blocked = True
            if not self._is_muted:
                self._mute()
        self.pair.relay.cells[self._cell] += before - self._piped
        return not self.is_blocked
