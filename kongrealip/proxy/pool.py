"""Connections to the upstreams, kept for the next request as Kong keeps them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from kongrealip.proxy.connection import UpstreamConnection
from kongrealip.proxy.failures import RefusalError, UpstreamError
from kongrealip.relay.upstreams import Target, Upstreams

if TYPE_CHECKING:
    from kongrealip.config.proxy import ProxySettings
    from kongrealip.server.counters import Row

_LOOK_SECONDS = 1.0
# In how many looks a timeout is up: it may take a tenth longer than it should.
_LOOKS = 10
# Of this process, and not the upstream's fault.
_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@cache
def own_host(target: Target) -> bytes:
    """The header Host for an upstream, as Kong writes it: without the port where that is 80."""
    host = "localhost" if target.family == socket.AF_UNIX else target.name.removesuffix(":80")
    return host.encode()


class Pool:
    """All connections of one process. ``open`` counts them, ``busy`` are those with a request."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, proxy: ProxySettings, targets: Sequence[Target], row: Row) -> None:
        self._proxy = proxy
        self._targets = targets
        self._upstreams = Upstreams(targets)
        self._idle: dict[Target, deque[UpstreamConnection]] = {target: deque() for target in targets}
        self._row = row
        self.open = 0
        self.busy: dict[UpstreamConnection, None] = {}
        self._next_look: asyncio.TimerHandle | None = None
        self._is_closed = False

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._look_seconds = min(_LOOK_SECONDS, self._proxy.read_timeout / _LOOKS)
        self._look()

    def idle_connection(self) -> UpstreamConnection | None:
        """One that waits at the only upstream. With several it may be another's turn."""
        if len(self._targets) > 1:
            return None
        return self._idle_at(self._targets[0])

    def _idle_at(self, target: Target) -> UpstreamConnection | None:
        idle = self._idle[target]
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connection(self, fresh: bool = False) -> UpstreamConnection:
        """One that is idle, or a new one, which ``fresh`` insists on. Raises UpstreamError."""
        targets = self._targets
        if len(targets) > 1:
            targets = self._upstreams.turn(self.loop.time())
        failure = None
        for target in targets:
            if not fresh and (connection := self._idle_at(target)) is not None:
                return connection
            try:
                return await self._connect(target)
            except TimeoutError:
                failure = self._note(target, "no connection in time", is_timeout=True)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                if error.errno in _OUR_OWN:
                    raise UpstreamError(reason, upstream=target.name) from error
                failure = self._note(target, reason)
        raise failure or UpstreamError("there is none")

    def give_back(self, connection: UpstreamConnection) -> None:
        """The exchange is over. Keep the connection if it may serve another one."""
        connection.exchange = None
        self.busy.pop(connection, None)
        proxy, idle = self._proxy, self._idle[connection.target]
        is_used_up = 0 < proxy.upstream_keepalive_max_requests <= connection.requests
        if not connection.is_reusable or is_used_up or self._is_closed or connection.transport.is_closing():
            connection.transport.abort()
            return
        idle.append(connection)
        if len(idle) > proxy.upstream_keepalive_pool_size:
            idle.popleft().transport.close()

    def forget(self, connection: UpstreamConnection) -> None:
        """It is closed."""
        self.open -= 1
        self.busy.pop(connection, None)
        if connection.exchange is None and connection in (idle := self._idle[connection.target]):
            idle.remove(connection)

    def close(self) -> None:
        """At the end: close what is idle, and whatever becomes so."""
        self._is_closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        for idle in self._idle.values():
            for connection in list(idle):
                connection.transport.close()

    async def _connect(self, target: Target) -> UpstreamConnection:
        sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        make = partial(UpstreamConnection, self, target)
        try:
            async with asyncio.timeout(self._proxy.connect_timeout):
                await self.loop.sock_connect(sock, target.address)
            if target.family == socket.AF_UNIX:
                _, connection = await self.loop.create_unix_connection(make, sock=sock)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _, connection = await self.loop.create_connection(make, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._row.add("upstream_connections", target.name)
        self._upstreams.recover(target)
        return connection

    def _note(self, target: Target, reason: str, is_timeout: bool = False) -> UpstreamError:
        self._row.add("upstream_failures", target.name)
        if len(self._targets) > 1:
            self._upstreams.rest(target, self.loop.time(), reason)
        return UpstreamError(reason, is_timeout, target.name)

    def _look(self) -> None:
        """End what has waited for too long. One timer serves all: one each would cost every request."""
        now = self.loop.time()
        timeout, idle_timeout = self._proxy.read_timeout, self._proxy.upstream_keepalive_idle_timeout
        for connection in list(self.busy):
            if now - connection.since > timeout and connection.waits_on_upstream():
                connection.fail(UpstreamError(f"nothing moved for {timeout:g} s", is_timeout=True))
            elif now - connection.since > timeout and connection.exchange and connection.exchange.is_sending:
                connection.fail(RefusalError(408, "the request took too long"))
            elif connection.exchange is not None:
                connection.exchange.watch_client()
        for idle in self._idle.values():
            while idle and 0 < idle_timeout < now - idle[0].since:
                idle.popleft().transport.close()
        self._next_look = self.loop.call_later(self._look_seconds, self._look)
