"""The server with another door: behind the listeners of KONG_STREAM_LISTEN is an upstream.

Listeners, preambles, workers, drain and the status listener are those of ``kongrealip.server``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from kongrealip.config import Settings
from kongrealip.realip.resolve import PEER, PROXY_PROTOCOL
from kongrealip.relay.pipes import MOST_PIPES
from kongrealip.relay.relay import TO_CLIENT, TO_UPSTREAM, Behind, Relay
from kongrealip.server.asgi import Server
from kongrealip.server.counters import Key, keys_of_listeners
from kongrealip.server.reception import Arrival, most_connections

#: Why a connection was not relayed, beside what is found at the door.
REFUSALS = ("not_allowed", "no_upstream")
_LOOK_SECONDS = 0.02
# Descriptors of a process that are pipes, or its own, or will be upstreams of what is being accepted:
# who finds none for its upstream would be closed, and can wait in the queue instead.
_NOT_FOR_SOCKETS = 2 * MOST_PIPES + 64 + 32
_FEWEST = 8


def keys_of(settings: Settings, behind: Behind) -> list[Key]:
    """Everything that a relay can count under these settings."""
    names = [target.name for target in behind.targets]
    return [
        *keys_of_listeners((*settings.stream_listen, *settings.status_listen)),
        *(("refused", reason) for reason in REFUSALS),
        *(("decisions", source) for source in (PEER, PROXY_PROTOCOL)),
        *(("relayed_bytes", direction) for direction in (TO_UPSTREAM, TO_CLIENT)),
        *(("upstream_connections", name) for name in names),
        *(("upstream_failures", name) for name in names),
        ("idle_closed",),
    ]


class RelayServer(Server):
    """Takes what arrives at the listeners of ``settings.stream_listen`` to an upstream."""

    def __init__(
        self, settings: Settings, behind: Behind, contexts: Mapping[bool, ssl.SSLContext], **more: Any
    ) -> None:
        most = settings.nginx_events_worker_connections or max(_FEWEST, most_connections() - _NOT_FOR_SOCKETS)
        settings = settings._replace(proxy_listen=(), nginx_events_worker_connections=most)
        super().__init__(_nothing, settings, contexts=contexts, lifespan="off", **more)
        self._behind = behind
        self._relayed = {listen.address for listen in settings.stream_listen}

    def _open_doors(self) -> None:
        super()._open_doors()
        for one in self._opened:
            if one.listen.address in self._relayed and not one.listen.is_unix:
                # Inherited by what is accepted: who writes small pieces has decided on it already.
                one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._relay = Relay(self._settings, self._behind, self._reception)

    def _hand_over(self, arrival: Arrival) -> None:
        if arrival.listener in self._relayed:
            self._relay.take(arrival)
        else:
            super()._hand_over(arrival)

    def _shake_hands(self, arrival: Arrival) -> None:
        if arrival.listener in self._relayed:
            self._relay.shake_hands(arrival)
        else:
            super()._shake_hands(arrival)

    def _count_served(self) -> int:
        return super()._count_served() + self._relay.open

    def _write_gauges(self) -> None:
        super()._write_gauges()
        counts = Counter(pair.listener for pair in self._relay.pairs)
        for listener in self._relayed:
            self._row.set("connections", listener, "open", value=counts[listener])

    async def _wait_for_requests(self) -> None:
        """Let connections come to their own end, until the limit is reached."""
        deadline = self._loop.time() + self._behind.relay.drain_timeout
        while not self.force_exit and self._loop.time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._reception.half_open and not self._relay.open:
                break
        self._relay.end_all()


async def _nothing(scope: Any, receive: Any, send: Any) -> NoReturn:
    raise AssertionError("no listener leads to an application")
