"""uvicorn's HTTP/1.1 protocol, with what the listener knows of the connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sized
from functools import partial
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from kongrealip.preamble.v2 import SIGNATURE
from kongrealip.realip import Connection
from kongrealip.server.gathering import GatheringTransport

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# As much as nginx takes with its large_client_header_buffers of 4 8k. uvicorn has no limit, and
# what a head costs in time and memory would be up to whoever sends it.
_LONGEST_HEAD = 32768
_PIECE, _BODY_PIECE = 4096, _LONGEST_HEAD
_MOST_UNREAD = 65536
# What websockets takes of lines and bytes in one. To what is more uvicorn gives no answer at all.
_MOST_LINES_OF_WEBSOCKET, _LONGEST_LINE_OF_WEBSOCKET = 128, 8190
# A path begins, or nothing has come yet.
_NOT_ABSOLUTE = (b"/", b"")
# Called for each read, and super() would cost a third of what is done here.
_receive = HttpToolsProtocol.data_received


class HTTP1Protocol(HttpToolsProtocol):
    """``connection`` and ``refuse_stray`` are set by whoever makes it."""

    # Slots, because an instance's dictionary gets slow with more than the thirty names that uvicorn
    # nearly has.
    __slots__ = (
        "_answering",
        "_has_body",
        "_head_bytes",
        "_head_since",
        "_idle_since",
        "_is_over",
        "_out",
        "connection",
        "refuse_stray",
        "unread",
    )
    connection: Connection
    refuse_stray: Callable[[Connection], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Do as uvicorn does, but for asking the transport, which costs five system calls."""
        self.connections.add(self)
        self.transport = self._out = GatheringTransport(transport, self.loop)  # type: ignore[assignment]
        self._answering: RequestResponseCycle | None = None
        self._head_since: float | None = None
        self._idle_since: float | None = None
        self._head_bytes = 0
        self._has_body = False
        self._is_over = False
        #: What has been read while requests wait for their turn.
        self.unread = bytearray()
        self.flow = _PipelinedFlow(transport, self.unread)
        self.server = self.connection.local
        # The middleware takes the peer from the connection. An address here could be that of a
        # peer which it remembers from another server of the same application.
        self.client = None
        self.scheme = "https" if self.connection.tls else "http"

    def connection_lost(self, exc: Exception | None) -> None:
        """Do as uvicorn does, and tell the request that is being answered.

        uvicorn tells the newest alone, which may be one that waits behind it in a pipeline.
        """
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Do as uvicorn does, and remember which request it is."""
        self._answering = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def data_received(self, data: bytes) -> None:
        """Do as uvicorn does, up to the end of a head that is too long."""
        if self.pipeline:
            # A request that waits takes a hundred times the memory of its bytes.
            self._leave_unread(data)
            return
        if len(data) > _PIECE:
            data = self._read_in_pieces(data)
        if not data or self._is_over:
            return
        scope = self.scope
        self._idle_since = None
        self._has_body = False
        _receive(self, data)
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and not cycle.more_body:
            # A whole request, the usual case.
            return
        # What is no body belongs to a head, or to the trailers, which are as long as a client likes.
        count = 0 if self._has_body else len(data) + (self._head_bytes if self.scope is scope else 0)
        self._head_bytes = count
        if count > _LONGEST_HEAD and not self.transport.is_closing():
            self.send_400_response("Request header too large.")

    def _read_in_pieces(self, data: bytes) -> bytes:
        """Read all but the last piece, which is returned, or nothing where there is no more to read.

        So that the end comes before a head has been read that is too long, behind a body as well.
        """
        start = 0
        while len(data) - start > (size := _BODY_PIECE if self._is_in_body() else _PIECE):
            HTTP1Protocol.data_received(self, data[start : start + size])
            start += size
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return b""
            if self.pipeline:
                self._leave_unread(data[start:])
                return b""
        return data[start:]

    def on_response_complete(self) -> None:
        """Do as uvicorn does, without a timer, and go on with what has been read.

        The timer would be set and stopped with each request, which is a tenth of what one costs.
        """
        self.server_state.total_requests += 1
        self._out.send_gathered()
        if self.transport.is_closing():
            return
        self._idle_since = self.loop.time()
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        if self.unread and not self.pipeline:
            data = bytes(self.unread)
            self.unread.clear()
            self.flow.resume_reading()
            self.data_received(data)

    def _leave_unread(self, data: bytes) -> None:
        self.unread += data
        if len(self.unread) > _MOST_UNREAD:
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is being read, without writing into the answer to another request."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            super().send_400_response(msg)
        elif cycle.scope is not self.scope or not cycle.more_body:
            # What is refused follows a whole request, which is answered first, as by nginx.
            self._is_over = True
            cycle.on_response = partial(self._refuse_at_last, msg)
        elif cycle.response_started:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _refuse_at_last(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def on_body(self, body: bytes) -> None:
        self._has_body = True
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """What comes behind a chunk and is a header is a trailer.

        uvicorn would add it to the request's headers, also while the application reads these, and
        balancers pass on what clients put there.
        """
        self.headers = []

    def _should_upgrade(self) -> bool:
        """Whether the request is none for the application over HTTP. Asked only where it asks for an upgrade.

        Of such a request the parser takes no body off, whatever its length says: uvicorn would serve
        it without one, and read the body as the next request. nginx serves it with its body;
        here it is refused.
        """
        return super()._should_upgrade() or self._announces_body()

    def _announces_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.scope["headers"]
        )

    def handle_websocket_upgrade(self) -> None:
        lines = list(self.scope["headers"])
        if self._announces_body():
            self.send_400_response("A request for an upgrade cannot have a body.")
        elif len(lines) > _MOST_LINES_OF_WEBSOCKET or any(
            len(name) + len(value) + 2 > _LONGEST_LINE_OF_WEBSOCKET for name, value in lines
        ):
            self.send_400_response("Request header too large.")
        else:
            self._out.send_gathered()
            self.transport = self._out.transport
            super().handle_websocket_upgrade()

    def on_url(self, url: bytes) -> None:
        """Do as uvicorn does, and take care of an absolute target."""
        if not self.url and url[:1] not in _NOT_ABSOLUTE:
            self.headers = self.scope["headers"] = _HeadersBehindATarget(self)
        self.url += url

    def _is_in_body(self) -> bool:
        """Whether what comes next belongs to a request whose head has been read."""
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return False
        # Behind an early answer uvicorn takes no note of the body's end.
        return cycle.more_body and not cycle.response_complete

    def close_if_slow(self, now: float, timeout: float) -> None:
        """Close what takes too long for the head of a request, for which uvicorn has no limit, or has none.

        Called now and then: a timer for each connection would cost more than it is worth.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_since = None
        elif self._idle_since is not None:
            self._head_since = None
            if now - self._idle_since > self.timeout_keep_alive:
                self.transport.close()
        elif self._head_since is None:
            self._head_since = now
        elif now - self._head_since > timeout:
            self.transport.close()

    def make_answer_the_last(self) -> None:
        """Close behind the answer that is being given. One that is idle stays open for now."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.shutdown()


class _PipelinedFlow(FlowControl):
    """Does not read on, as uvicorn does with each answer, while too much waits that has been read.

    Up to that it does: who reads nothing does not notice when the client leaves.
    """

    def __init__(self, transport: asyncio.Transport, unread: Sized) -> None:
        super().__init__(transport)
        self._unread = unread

    def resume_reading(self) -> None:
        if self.read_paused and len(self._unread) <= _MOST_UNREAD:
            super().resume_reading()


class _HeadersBehindATarget(list[tuple[bytes, bytes]]):
    """``GET http://host/path``: such a host wins over the header's (RFC 9112, 3.2.2), as in nginx."""

    def __init__(self, protocol: HTTP1Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def append(self, line: tuple[bytes, bytes]) -> None:
        _, is_absolute, rest = self._protocol.url.partition(b"://")
        if is_absolute and line[0] == b"host":
            line = (b"host", re.split(b"[/?#]", rest, maxsplit=1)[0].rpartition(b"@")[2])
        super().append(line)


class HTTP1ProtocolOfPlainPort(HTTP1Protocol):
    """Notices a preamble where HTTP was expected."""

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and data.startswith((b"PROXY ", SIGNATURE)):
            self.refuse_stray(self.connection)
        super().data_received(data)
