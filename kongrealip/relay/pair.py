"""A client's connection, and the one to the upstream that is its own."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from kongrealip.relay.flow import End, Flow
from kongrealip.relay.readiness import CAN_READ

if TYPE_CHECKING:
    from kongrealip.relay.relay import Relay

# SO_LINGER with no time at all: close() then sends a reset.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Pair:
    """Two connections that are one to those at their ends.

    What one end does, the other sees: that it has said all (and still listens), that it has gone
    for good, that it does not read for a while.
    """

    __slots__ = (
        "client", "from_client", "from_upstream", "is_active", "is_closed", "listener", "quiet", "relay",
        "upstream",
    )  # fmt: skip

    def __init__(self, relay: Relay, listener: str, client: End, upstream: End) -> None:
        self.relay = relay
        self.listener = listener
        self.client = client
        self.upstream = upstream
        self.from_client = Flow(self, client, upstream, relay.to_upstream)
        self.from_upstream = Flow(self, upstream, client, relay.to_client)
        self.from_client.reverse = self.from_upstream
        self.from_upstream.reverse = self.from_client
        self.is_active = True
        self.is_closed = False
        #: For how many looks in a row nothing has moved.
        self.quiet = 0

    def start(self, preamble: bytes, client_events: int, upstream_events: int) -> None:
        """Begin, with what has happened to both until now."""
        self.relay.pairs.add(self)
        for flow in (self.from_client, self.from_upstream):
            self.relay.readiness.watch(flow.source.fileno(), flow.on_events)
        try:
            self.from_client.begin(preamble, client_events)
            if (upstream_events & CAN_READ or self.from_upstream.reads_on) and not self.is_closed:
                self.from_upstream.begin(b"", upstream_events)
        except OSError:
            self.abort()

    def end(self, flow: Flow) -> None:
        """All of one direction has been passed on, and so is its end. Raises BlockingIOError as a send."""
        is_over = flow.reverse.has_ended
        if not is_over:
            flow.sink.shutdown(socket.SHUT_WR)
        elif not isinstance(flow.sink, socket.socket):
            _say_goodbye(flow.sink)
        flow.has_ended = True
        if is_over:
            self.close()

    def abort(self) -> None:
        """One end was reset, so the other is reset too."""
        if not self.is_closed:
            for end in (self.client, self.upstream):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        self.is_closed = True
        self.relay.pairs.discard(self)
        forget = self.relay.readiness.forget
        for flow in (self.from_client, self.from_upstream):
            if flow.pipe is not None:
                flow.release()
            forget(flow.source.fileno())
            flow.source.close()
            # The two hold each other, and the garbage collector comes seldom.
            del flow.reverse
        del self.from_client, self.from_upstream


def _say_goodbye(end: End) -> None:
    """TLS has to, or the end could be an attacker's (RFC 8446, 6.1); the other may be gone by now."""
    try:
        end.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        raise
    except OSError:
        pass
