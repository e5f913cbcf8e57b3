"""What the listeners of one process share: the rules at the door, and the half-open connections."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any

from kongrealip.address import Address
from kongrealip.config import Settings
from kongrealip.realip import Connection, TrustedNetworks
from kongrealip.realip.resolve import judge_peer
from kongrealip.server.counters import Row
from kongrealip.server.refusals import RefusalLog

# Enough to take a burst off the queue, few enough to let the connections at hand have a turn.
_ACCEPTS_A_WAKE_UP = 64
# Kong's bound for ``auto``.
_AUTO_CONNECTIONS = 16384
_UNDONE = {"preamble": "no whole preamble", "handshake": "no whole TLS handshake"}


class Arrival(Connection):
    """An accepted connection on its way to a protocol.

    ``stage`` is one of the first two of ``counters.STATES``. ``held`` is what has been taken of
    an unfinished preamble, ``handshake`` the task that does TLS.
    """

    __slots__ = ("handshake", "held", "sock", "stage")

    def __init__(
        self, sock: socket.socket, peer: Address, local: tuple[str, int | None], tls: bool, listener: str
    ) -> None:
        super().__init__(peer, local, None, tls, listener)
        self.sock = sock
        self.held = b""
        self.stage = "preamble"
        self.handshake: asyncio.Task[None] | None = None


class Reception:
    """The rules, the limits, and who is still on the way in.

    ``hand_over`` and ``shake_hands`` take an arrival whose socket stands at its first byte of
    HTTP or TLS; ``count_served`` tells how many connections are past that.
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
        self.row = row
        self.refusals = RefusalLog()
        self.hand_over = hand_over
        self.shake_hands = shake_hands
        self.loop = asyncio.get_running_loop()
        self._optional = TrustedNetworks(settings.proxy_protocol_optional_from)
        self._has_optional = bool(settings.proxy_protocol_optional_from)
        self._count_served = count_served
        self._timeout = settings.client_header_timeout
        self._most = settings.nginx_events_worker_connections or _most_connections()
        self._most_half_open = settings.half_open_connections or max(1, self._most // 2)
        # In the order of arrival, which is that of their deadlines: all have the same time.
        self._half_open: dict[Arrival, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def may_omit(self, peer: Address) -> bool:
        """Whether this peer may come to a ``proxy_protocol`` listener without a preamble."""
        return self._has_optional and judge_peer(self._optional, peer)[1]

    def room(self) -> int:
        """How many connections may be accepted now."""
        room = self._most - len(self._half_open) - self._count_served()
        if room <= 0 and self._half_open:
            self._crowd_out()
            room = 1
        return min(room, _ACCEPTS_A_WAKE_UP)

    def enter(self, arrival: Arrival) -> None:
        """Note a connection that has to wait. One deadline counts for preamble and handshake.

        A byte now and then does not extend it.
        """
        if arrival in self._half_open:
            return
        if len(self._half_open) >= self._most_half_open:
            self._crowd_out()
        self._half_open[arrival] = self.loop.time() + self._timeout
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout, self._expire)

    def leave(self, arrival: Arrival) -> None:
        """Forget a connection that need not wait any more."""
        if self._half_open.pop(arrival, None) is not None and arrival.handshake is None:
            self.loop.remove_reader(arrival.sock)

    def close(self, arrival: Arrival) -> None:
        """End a connection without a byte, and without a line."""
        self.leave(arrival)
        if arrival.handshake is None:
            arrival.sock.close()
        else:
            arrival.handshake.cancel()

    def tell(self, connection: Connection, text: str) -> None:
        """Write a line about a connection."""
        self.refusals.write(printed(connection.peer), connection.listener, text)

    def refuse(self, arrival: Arrival, text: str, reason: str) -> None:
        """End a connection without a byte; ``reason`` is one of ``counters.REFUSALS``."""
        self.tell(arrival, text)
        self.row.add("refused", reason)
        self.close(arrival)

    @property
    def half_open(self) -> list[Arrival]:
        return list(self._half_open)

    def close_all(self) -> None:
        """At the end: nobody is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
        for arrival in self.half_open:
            self.close(arrival)

    def write_gauges(self, listeners: list[str]) -> None:
        """Tell the counters how many there are of each kind."""
        counts: dict[tuple[str, str], int] = {}
        for arrival in self._half_open:
            key = (arrival.listener, arrival.stage)
            counts[key] = counts.get(key, 0) + 1
        for listener in listeners:
            for stage in _UNDONE:
                self.row.set("connections", listener, stage, value=counts.get((listener, stage), 0))

    def _crowd_out(self) -> None:
        """The oldest goes first, as nginx drains its connections: an attacker's are the ones that last."""
        oldest = next(iter(self._half_open))
        text = f"{_UNDONE[oldest.stage]}, and too many connections are waiting"
        self.refuse(oldest, text, "crowded_out")

    def _expire(self) -> None:
        """Refuse those whose time is over. One timer serves all of them, because one is enough."""
        self._timer = None
        now = self.loop.time()
        for arrival, deadline in list(self._half_open.items()):
            if deadline > now:
                self._timer = self.loop.call_at(deadline, self._expire)
                break
            self.refuse(arrival, f"{_UNDONE[arrival.stage]} before the deadline", "timeout")


def printed(peer: Address) -> str:
    """As it stands in a log line."""
    ip, port = peer
    return ip if port is None else f"{ip}:{port}"


def _most_connections() -> Any:
    """What the descriptors of this process allow, and no more than Kong would take."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _AUTO_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft, _AUTO_CONNECTIONS)
