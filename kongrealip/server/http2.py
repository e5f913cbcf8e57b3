"""HTTP/2 by uvicorn's own protocol, and the choice between it and HTTP/1.1.

Imported only where a listener has the flag ``http2``, because it needs the package zttp. uvicorn
calls its HTTP/2 experimental, so both versions are pinned. What is done here beyond choosing makes
up for what this pair of versions lacks; each of it has a test that fails without it, so that it can
go when the next pair does not need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zttp
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

from kongrealip.realip import Connection
from kongrealip.server.protocols import HTTP1Protocol

# How long a client may be quiet after GOAWAY, and how long it may go on, before it is closed.
_QUIET_SECONDS = 2.0
_LINGER_SECONDS = 30.0
# Head, body and end are three, so that a short answer is gathered whole.
_GATHERED_WRITES = 4
# SETTINGS_ENABLE_CONNECT_PROTOCOL, on and off.
_WEBSOCKET = zttp.H2Settings.ENABLE_CONNECT_PROTOCOL.to_bytes(2) + (1).to_bytes(4)
_NO_WEBSOCKET = zttp.H2Settings.ENABLE_CONNECT_PROTOCOL.to_bytes(2) + (0).to_bytes(4)


class AutoProtocol(AutoZttpProtocol):
    """HTTP/2 where ALPN or the first bytes of clear text say so, else ``http1``.

    The attributes are set by whoever makes it.
    """

    connection: Connection
    refuse_stray: Callable[[Connection], None]
    http1: type[HTTP1Protocol]

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        """Hand the transport over for good."""
        made: HTTP1Protocol | HTTP2Protocol
        if http2:
            made = HTTP2Protocol(self.config, self.server_state, self.app_state, self.loop)
        else:
            made = self.http1(self.config, self.server_state, self.app_state, self.loop)
            made.refuse_stray = self.refuse_stray
        made.connection = self.connection
        self.transport.set_protocol(made)
        made.connection_made(self.transport)
        if initial_data:
            made.data_received(initial_data)


class HTTP2Protocol(ZttpH2Protocol):
    """uvicorn's, with what the listener knows: ``connection`` is set by whoever makes it."""

    connection: Connection
    _idle_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Do as uvicorn does, but for asking the transport. See HTTP1Protocol."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = self.connection.local
        self.client = None
        self.scheme = "https" if self.connection.tls else "http"
        #: Set for a moment when streams may be able to go on that had to wait.
        self.credit = asyncio.Event()
        self.is_over = False
        self._will_flush = False
        self.conn.initiate_connection()
        # zttp offers WebSocket over HTTP/2, which uvicorn does not have: browsers would take the
        # offer, instead of opening a connection for HTTP/1.1.
        transport.write(self.conn.data_to_send().replace(_WEBSOCKET, _NO_WEBSOCKET))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self.cycles.values():
            # Forgets what the client will not take any more.
            cycle.stream.reset()
        self._give_credit()

    def data_received(self, data: bytes) -> None:
        if self.is_over:
            # Credit, or a stream behind the last one that GOAWAY names, to be asked elsewhere.
            self._linger()
            return
        super().data_received(data)
        self._give_credit()
        if self.shutdown_requested and not self.cycles:
            self._close_connection()

    def handle_request(self, event: zttp.Request) -> None:
        if event.protocol or not event.target.isascii() or event.target[:1] not in (b"/", b"*"):
            # uvicorn would fail at what is not ASCII, and take the connection's other streams along; and
            # give a whole URL to the application for a path.
            self.conn.stream(event.stream_id).reset(zttp.H2ErrorCode.PROTOCOL_ERROR)
            return
        super().handle_request(event)
        cycle: Any = self.cycles[event.stream_id]
        cycle.flow = cycle.conn = _Outlet(self, cycle.stream)
        if event.end_stream:
            # No EndOfMessage will come, and uvicorn waits for one.
            cycle.more_body = False
            cycle.message_event.set()
        _join_cookies(cycle.scope["headers"])

    def close_if_slow(self, now: float, timeout: float) -> None:
        """Close what has no stream for too long, whatever else it sends.

        uvicorn waits without end for the first byte, and begins anew with each further one.
        """
        if self.cycles:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > timeout:
            self.shutdown()

    def make_answer_the_last(self) -> None:
        """Say GOAWAY where nothing is being answered: it names the last stream that was taken."""
        if not self.cycles:
            self.shutdown()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._give_credit()

    def _give_credit(self) -> None:
        self.credit.set()
        self.credit.clear()

    def flush_soon(self) -> None:
        """Flush when the tasks have had their turn that are ready now."""
        if not self._will_flush:
            self._will_flush = True
            self.loop.call_soon(self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._will_flush = False
        if not self.transport.is_closing():
            self.flush()

    def _close_connection(self) -> None:
        """Say GOAWAY, unless the client has still to take a part of an answer, and close later."""
        if self.is_over or self.conn.has_pending_send() or self.transport.is_closing():
            return
        self.is_over = True
        self._last_moment = self.loop.time() + _LINGER_SECONDS
        self.conn.close()
        self.flush()
        self._linger()

    def _linger(self) -> None:
        """Leave it to the client to close, which it does when it has read everything.

        A socket that is closed while credit for the last answer is on its way resets the
        connection, and the client loses what it has not read yet.
        """
        self._unset_keepalive_if_required()
        moment = min(self.loop.time() + _QUIET_SECONDS, self._last_moment)
        self.timeout_keep_alive_task = self.loop.call_at(moment, self.transport.close)


class _Outlet:
    """What a stream asks before it sends, and what its frames pass.

    It stands in for two things. As FlowControl it makes the application wait while the client
    does not take what was sent before. Otherwise zttp keeps all of it, and whoever reads slowly
    decides how much memory that is. As H2Connection it gathers what short answers send, so that
    those of one turn of the loop leave in one piece: three writes for each cost as much as all the
    rest of a request.
    """

    __slots__ = ("_connection", "_stream", "_writes")

    def __init__(self, connection: HTTP2Protocol, stream: zttp.Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._writes = 0

    @property
    def write_paused(self) -> bool:
        return self._connection.flow.write_paused or (self._stream.pending_bytes or 0) > HIGH_WATER_LIMIT

    async def drain(self) -> None:
        while self.write_paused:
            await self._connection.credit.wait()

    def data_to_send(self) -> bytes:
        """What is to be written at once."""
        self._writes += 1
        if self._writes > _GATHERED_WRITES:
            return self._connection.conn.data_to_send()
        self._connection.flush_soon()
        return b""


def _join_cookies(headers: list[tuple[bytes, bytes]]) -> None:
    """HTTP/2 lets clients split the header Cookie, and RFC 9113 has servers join it (8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) > 1:
        headers[:] = [header for header in headers if header[0] != b"cookie"]
        headers.append((b"cookie", b"; ".join(cookies)))
