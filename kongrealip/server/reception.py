"""What the listeners of one process share: the rules at the door, and who is half-open."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kongrealip.address import Address
from kongrealip.config import Settings
from kongrealip.preamble import Preamble
from kongrealip.realip import Connection, TrustedNetworks
from kongrealip.realip.resolve import judge_peer
from kongrealip.server.counters import Row
from kongrealip.server.refusals import RefusalLog

if TYPE_CHECKING:
    from kongrealip.server.listener import Listener

# Enough to take a burst off the queue, few enough to let the connections at hand have a turn.
_ACCEPTS_A_WAKE_UP = 64
# Kong's bound for ``auto``.
_AUTO_CONNECTIONS = 16384


class Handshake(Protocol):
    """What does TLS for an arrival, or what it waits for: something that can be told to stop."""

    def cancel(self) -> object: ...


class Arrival(Connection):
    """An accepted connection whose socket stands behind its preamble, at its first byte of TLS or data.

    ``handshake`` does TLS, ``deadline`` is when it has to be done.
    """

    __slots__ = ("deadline", "handshake", "sock")

    def __init__(
        self,
        sock: socket.socket,
        peer: Address,
        local: tuple[str, int | None],
        preamble: Preamble | None,
        tls: bool,
        listener: str,
    ) -> None:
        super().__init__(peer, local, preamble, tls, listener)
        self.sock = sock
        self.deadline = 0.0
        self.handshake: Handshake | None = None


class Reception:
    """The rules, the limits, and who is still on the way in.

    ``hand_over`` takes an arrival to HTTP, ``shake_hands`` to TLS first; ``count_served`` tells
    how many connections are past that.
    """

    def __init__(
        self,
        settings: Settings,
        row: Row,
        hand_over: Callable[[Arrival], None],
        shake_hands: Callable[[Arrival], None],
        count_served: Callable[[], int],
    ) -> None:
        self.limit = settings.preamble_max_bytes
        self.strict = settings.proxy_protocol_strict
        self.timeout = settings.client_header_timeout
        self.row = row
        self.refusals = RefusalLog()
        self.hand_over = hand_over
        self.shake_hands = shake_hands
        self.loop = asyncio.get_running_loop()
        self.listeners: list[Listener] = []
        #: Those in their TLS handshake, the oldest first.
        self.handshakes: dict[Arrival, None] = {}
        self._optional = TrustedNetworks(settings.proxy_protocol_optional_from)
        self._has_optional = bool(settings.proxy_protocol_optional_from)
        self._count_served = count_served
        self._most = settings.nginx_events_worker_connections or most_connections()
        self._most_half_open = settings.half_open_connections or max(1, self._most // 2)

    @property
    def half_open(self) -> int:
        """How many are in their preamble or their TLS handshake."""
        return len(self.handshakes) + sum(len(listener.waiting.deadlines) for listener in self.listeners)

    def may_omit(self, peer: Address) -> bool:
        """Whether this peer may come to a ``proxy_protocol`` listener without a preamble."""
        return self._has_optional and judge_peer(self._optional, peer)[1]

    def room(self) -> int:
        """How many connections may be accepted now."""
        half_open = self.half_open
        room = self._most - half_open - self._count_served()
        if room <= 0 and half_open:
            self._crowd_out()
            room = 1
        return min(room, _ACCEPTS_A_WAKE_UP)

    def make_room(self) -> None:
        """Before another becomes half-open: the oldest goes where there are too many."""
        if self.half_open >= self._most_half_open:
            self._crowd_out()

    def tell(self, connection: Connection, text: str) -> None:
        """Write a line about a connection."""
        self.refusals.write(printed(connection.peer), connection.listener, text)

    def write_gauges(self, names: Sequence[str]) -> None:
        """Tell the counters how many there are of each kind."""
        preambles = dict.fromkeys(names, 0)
        handshakes = dict.fromkeys(names, 0)
        for listener in self.listeners:
            preambles[listener.name] += len(listener.waiting.deadlines)
        for arrival in self.handshakes:
            handshakes[arrival.listener] += 1
        for name in names:
            self.row.set("connections", name, "preamble", value=preambles[name])
            self.row.set("connections", name, "handshake", value=handshakes[name])

    def refuse(self, arrival: Arrival, text: str, reason: str) -> None:
        """Say and count that an arrival goes no further; it is not closed here."""
        self.tell(arrival, text)
        self.row.add("refused", reason)

    def time_out_handshake(self, arrival: Arrival) -> None:
        self.refuse(arrival, "no whole TLS handshake before the deadline", "timeout")

    def fail_handshake(self, arrival: Arrival, error: OSError) -> None:
        """Say and count why TLS came to nothing."""
        if isinstance(error, ConnectionResetError):
            # One that hung up, as health checks and port scanners do: nothing to tell.
            return
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            reason += "; plain HTTP, or a preamble, reached an ssl port without proxy_protocol"
        self.row.add("tls_failures", arrival.listener)
        self.tell(arrival, f"TLS handshake failed: {reason}")

    def close(self) -> None:
        """At the end: nobody is waited for any more."""
        for listener in self.listeners:
            listener.close_waiting()
        for arrival in list(self.handshakes):
            if arrival.handshake is not None:
                arrival.handshake.cancel()

    def _crowd_out(self) -> None:
        """The oldest goes first, as nginx drains its connections: an attacker's are the ones that last."""
        firsts = [(next(iter(one.waiting.deadlines.values()), float("inf")), one) for one in self.listeners]
        deadline, listener = min(firsts, key=lambda first: first[0])
        oldest = next(iter(self.handshakes), None)
        if oldest is not None and oldest.deadline <= deadline:
            del self.handshakes[oldest]
            self.refuse(oldest, "too many connections are in their handshake", "crowded_out")
            if oldest.handshake is not None:
                oldest.handshake.cancel()
        else:
            listener.crowd_out(next(iter(listener.waiting.deadlines)))


def printed(peer: Address) -> str:
    """As it stands in a log line."""
    ip, port = peer
    return ip if port is None else f"{ip}:{port}"


def most_connections() -> int:
    """What the descriptors of this process allow, and no more than Kong would take."""
    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _AUTO_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft, _AUTO_CONNECTIONS)
