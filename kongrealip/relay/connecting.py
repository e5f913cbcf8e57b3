"""A client that waits until an upstream has taken the connection."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from kongrealip.relay.flow import End
from kongrealip.relay.pair import Pair
from kongrealip.relay.readiness import IS_RESET
from kongrealip.relay.secured import Secured
from kongrealip.relay.upstreams import Target

if TYPE_CHECKING:
    from kongrealip.relay.relay import Relay
    from kongrealip.server.reception import Arrival

# Of this process, and not the upstream's fault: the next one would fail as well.
_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connecting:
    """Tries one target after the other. Nothing has been read from the client until one is there,
    so nothing is lost with those that fail."""

    __slots__ = (
        "_arrival", "_client", "_events", "_preamble", "_relay", "_secured", "_target", "_targets",
        "_upstream", "deadline",
    )  # fmt: skip

    def __init__(self, relay: Relay, arrival: Arrival, client: End, preamble: bytes) -> None:
        self._relay = relay
        self._arrival = arrival
        self._client = client
        self._preamble = preamble
        self._events = 0
        self._upstream: socket.socket | None = None
        self._secured: Secured | None = None
        self._targets = iter(relay.upstreams.turn(relay.loop.time()))
        self.deadline = 0.0

    def begin(self) -> None:
        self._relay.readiness.watch(self._client.fileno(), self._on_client)
        self._try_next("there is none")

    def time_out(self) -> None:
        self._fail("no connection in time")

    def give_up(self) -> None:
        """Close the client, which waits in vain."""
        self._leave_upstream()
        self._relay.connecting.leave(self)
        self._relay.readiness.forget(self._client.fileno())
        self._client.close()

    def _try_next(self, reason: str) -> None:
        for target in self._targets:
            number = self._connect(target)
            if number in (0, errno.EINPROGRESS):
                return
            reason = os.strerror(number)
            if number in _OUR_OWN:
                break
            self._relay.note_failure(target, reason)
        self._relay.refuse_unconnected(self._arrival, reason)
        self.give_up()

    def _connect(self, target: Target) -> int:
        """Begin to connect, and return the error number."""
        relay = self._relay
        try:
            sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return error.errno or errno.EMFILE
        number = sock.connect_ex(target.address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            return number
        if target.family != socket.AF_UNIX:
            # Whoever writes small pieces has decided on it already.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._target, self._upstream, self._secured = target, sock, None
        relay.connecting.enter(self)
        relay.readiness.watch(sock.fileno(), partial(self._on_upstream, sock))
        return number

    def _on_client(self, events: int) -> None:
        self._events |= events
        if events & IS_RESET:
            self.give_up()

    def _on_upstream(self, sock: socket.socket, events: int) -> None:
        if events & IS_RESET and self._secured is None:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(os.strerror(number) if number else "closed at once")
        else:
            self._go_on(sock, events)

    def _go_on(self, upstream: socket.socket, events: int) -> None:
        """The connection is there; TLS may be next."""
        context = self._relay.upstream_tls
        if context is None:
            self._hand_over(upstream, self._preamble, events)
            return
        if self._secured is None:
            self._secured = Secured(upstream, context, self._target.host, self._preamble)
        try:
            is_done = self._secured.shake_hands()
        except OSError as error:
            self._fail(_reason(error))
            return
        if is_done:
            self._hand_over(self._secured, b"", events)

    def _hand_over(self, upstream: End, preamble: bytes, events: int) -> None:
        relay = self._relay
        relay.connecting.leave(self)
        relay.note_success(self._target)
        pair = Pair(relay, self._arrival.listener, self._client, upstream)
        pair.start(preamble, self._events, events)

    def _fail(self, reason: str) -> None:
        self._leave_upstream()
        self._relay.note_failure(self._target, reason)
        self._try_next(reason)

    def _leave_upstream(self) -> None:
        if self._upstream is not None:
            self._relay.connecting.leave(self)
            self._relay.readiness.forget(self._upstream.fileno())
            self._upstream.close()
            self._upstream = None


def _reason(error: OSError) -> str:
    """Why TLS failed."""
    for attribute in ("verify_message", "reason", "strerror"):
        if text := getattr(error, attribute, None):
            return f"TLS failed: {text}"
    return f"TLS failed: {error}"
