"""The server with upstreams behind it instead of an application.

Listeners, preambles, TLS, HTTP/2, workers, drain and the status listener are those of
``kongrealip.server``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kongrealip.config import Settings
from kongrealip.proxy.front import FrontProtocol, FrontProtocolOfPlainPort
from kongrealip.proxy.proxy import Proxy
from kongrealip.server.asgi import Server
from kongrealip.server.counters import Key
from kongrealip.server.counters import keys_of as keys_of_server
from kongrealip.server.protocols import HTTP1ProtocolOfPlainPort

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from kongrealip.relay.upstreams import Target


def keys_of(settings: Settings, targets: Sequence[Target]) -> list[Key]:
    """Everything that a proxy can count under these settings."""
    names = [target.name for target in targets]
    return [
        *keys_of_server(settings),
        *(("upstream_connections", name) for name in names),
        *(("upstream_failures", name) for name in names),
    ]


class ProxyServer(Server):
    """Serves ``app``, which is ``proxy.app`` behind whatever looks at each request."""

    def __init__(self, app: ASGIApp, proxy: Proxy, settings: Settings, **more: Any) -> None:
        super().__init__(app, settings, lifespan="off", **more)
        self._proxy = proxy
        # The upstream's own are passed on, and there should not be two.
        self.config.date_header = self.config.server_header = False

    def _open_doors(self) -> None:
        super()._open_doors()
        for listen in self._settings.proxy_listen:
            door = self._doors[listen.address]
            self._doors[listen.address] = door._replace(protocol=_front_of(door.protocol))
        self._proxy.begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._proxy.end()

    def _count_served(self) -> int:
        # Each client may need a connection to an upstream, and over HTTP/2 more than one: who would find
        # no descriptor for it waits in the queue instead.
        clients = super()._count_served()
        return clients + max(clients, self._proxy.pool.open)


def _front_of(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes the same protocols, with ours for HTTP/1.1."""
    if isinstance(make, partial):
        # Of an http2 listener, behind which either may come.
        return partial(_make_with, make, _http1_front(make.args[-1]))
    return _http1_front(make)


def _http1_front(http1: Callable[..., Any]) -> type[FrontProtocol]:
    return FrontProtocolOfPlainPort if http1 is HTTP1ProtocolOfPlainPort else FrontProtocol


def _make_with(make: Callable[..., Any], http1: type[FrontProtocol], *arguments: Any) -> Any:
    made = make(*arguments)
    made.http1 = http1
    return made
