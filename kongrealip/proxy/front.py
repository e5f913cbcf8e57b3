"""The client's side over HTTP/1.1: uvicorn's protocol, with what ASGI has no words for.

That are the target as it was written, trailers of a request, an upgrade that becomes a tunnel, and an
answer that breaks off. Answers are written here and not by uvicorn: head and body leave in one
write, which is a fifth of what a small request costs; a client of HTTP/1.0 gets no chunks; and an
answer may have trailers. What this uses of uvicorn's cycle of request and response is tested by name.
"""

from __future__ import annotations

import http
import socket
import struct
from typing import Any

from kongrealip.server.protocols import HTTP1Protocol, HTTP1ProtocolOfPlainPort

#: Where a request's :class:`Front` lies in ``scope["extensions"]``. HTTP/2 has none.
FRONT_KEY = "kongrealip.front"
# SO_LINGER with no time at all.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HIGH_WATER = 65536
# Longer parts of a body are not copied, only to leave together with what is written round them.
_LONGEST_COPIED = 16384
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}".encode() for status in range(100, 600)
}
_SWITCHING = 101
_WITHOUT_BODY = (204, 304)
# How the body of an answer is framed. AS_IS: by a length that is in the head, or by the connection's end.
_NONE, _AS_IS, _CHUNKED = range(3)


class Front:
    """One request on the client's connection, and where its answer is written.

    ``target`` is as the client wrote it, ``trailers`` are those of the request, once it is whole.
    ``asks_upgrade`` where it asks for another protocol: then the parser takes no body off, and what
    follows is nothing. ``may_tunnel`` where that protocol is WebSocket.
    """

    __slots__ = (
        "_cycle", "_ends_connection", "_framing", "_has_trailers", "_head", "asks_upgrade", "is_tunnel",
        "may_tunnel", "target", "trailers",
    )  # fmt: skip

    def __init__(self, cycle: Any, target: bytes) -> None:
        self._cycle = cycle
        self.target = target
        self.trailers: list[tuple[bytes, bytes]] = []
        self.asks_upgrade = self.may_tunnel = self.is_tunnel = self._ends_connection = False

    @property
    def has_whole_body(self) -> bool:
        return not self._cycle.more_body

    async def send(self, message: Any) -> None:
        """In place of the cycle's own. Nothing is written before there is a part of the body, be it empty."""
        cycle = self._cycle
        if cycle is None:
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body":
            self._write_body(message.get("body", b""), not message.get("more_body", False))
        elif kind == "http.response.start":
            self._begin(message)
        elif kind == "http.response.trailers":
            lines = [b"0", *map(b": ".join, message["headers"]), b"", b""]
            cycle.transport.write(b"\r\n".join(lines))
            self._complete()

    def _begin(self, message: Any) -> None:
        cycle = self._cycle
        cycle.response_started = True
        status, headers = message["status"], message["headers"]
        if cycle.waiting_for_100_continue or cycle.default_headers:
            # Who waits for 100 and is told something else may send the body or not: nobody can tell what
            # the next byte is. And the server has headers of its own once it is about to end.
            cycle.keep_alive = cycle.waiting_for_100_continue = False
        lines = [_STATUS_LINES[status], *map(b": ".join, headers)]
        self._has_trailers = message.get("trailers", False)
        self._framing = self._framing_of(status, headers)
        if self._framing == _CHUNKED:
            lines.append(b"transfer-encoding: chunked")
        if not cycle.keep_alive:
            lines.append(b"connection: close")
        self._head = b"\r\n".join([*lines, b"", b""])

    def _framing_of(self, status: int, headers: list[tuple[bytes, bytes]]) -> int:
        cycle = self._cycle
        self._ends_connection = False
        if status == _SWITCHING:
            self.is_tunnel = self._ends_connection = cycle.keep_alive = cycle.more_body = True
            return _AS_IS
        if cycle.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
            return _NONE
        for name, _ in headers:
            if name == b"content-length":
                return _AS_IS
        if cycle.scope["http_version"] == "1.0":
            self._ends_connection = True
            return _AS_IS
        return _CHUNKED

    def _write_body(self, body: bytes, is_last: bool) -> None:
        pieces = [self._head] if self._head else []
        self._head = b""
        framing = self._framing
        if framing == _CHUNKED:
            if body:
                pieces += (b"%x\r\n" % len(body), body, b"\r\n")
            if is_last and not self._has_trailers:
                pieces.append(b"0\r\n\r\n")
        elif framing == _AS_IS and body:
            pieces.append(body)
        write = self._cycle.transport.write
        if len(body) <= _LONGEST_COPIED:
            write(b"".join(pieces))
        else:
            for piece in pieces:
                write(piece)
        if is_last and not (framing == _CHUNKED and self._has_trailers):
            self._complete()

    def _complete(self) -> None:
        cycle = self._cycle
        # The scope holds this, and the cycle the scope: together they would be left to the garbage collector.
        del cycle.send
        self._cycle = None
        cycle.response_complete = True
        cycle.message_event.set()
        if self._ends_connection or not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def break_off(self) -> None:
        """Let the client see that this is not the whole answer."""
        transport = self._cycle.transport
        if self._ends_connection:
            # Only a reset is not the end.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            transport.close()


class _Behind:
    """Stands where the parser stood, behind a request that asked for an upgrade: no HTTP follows."""

    def __init__(self, cycle: Any, front: Front) -> None:
        self._cycle = cycle
        self._front = front

    def feed_data(self, data: bytes) -> None:
        cycle = self._cycle
        if not self._front.may_tunnel:
            # Is not to be answered, and not in the way of the answer that is on its way.
            return
        if not self._front.is_tunnel or cycle.response_complete:
            # Before the upstream has agreed: it would be anybody's guess what these bytes are.
            cycle.transport.close()
            return
        cycle.body += data
        if len(cycle.body) > _HIGH_WATER:
            cycle.flow.pause_reading()
        cycle.message_event.set()


class FrontProtocol(HTTP1Protocol):
    """The server's, which makes no WebSocket of its own of an upgrade but leaves it to the upstream."""

    _front: Front | None = None
    _behind: _Behind | None = None

    def _should_upgrade(self) -> bool:
        return False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle = self.cycle
        self._front = front = Front(cycle, self.url)
        self.scope["extensions"] = {FRONT_KEY: front}  # type: ignore[dict-item]
        if b"#" in self.url and self.url[:1] == b"/":
            # For uvicorn a fragment begins there, and for nginx nothing.
            self.scope["raw_path"] = self.url.partition(b"?")[0]
        cycle.send = front.send  # type: ignore[method-assign]
        if self.parser.should_upgrade():
            front.asks_upgrade = True
            front.may_tunnel = self._get_upgrade() == b"websocket"
            # Where it is refused: see _Behind.
            cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        super().on_chunk_header()
        if self._front is not None:
            # Where the parser puts what comes behind the chunks.
            self._front.trailers = self.headers

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the head of such a request has ended."""
        if self._front is not None:
            # Some pieces of what was read may come yet.
            self.parser = self._behind = _Behind(self.cycle, self._front)  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._behind is not None:
            self._behind.feed_data(data)
            return
        super().data_received(data)
        front = self._front
        if self._behind is not None and front is not None and front.may_tunnel and data[-4:] != b"\r\n\r\n":
            # Early bytes, of which uvicorn loses some.
            self.transport.close()

    def shutdown(self) -> None:
        if self._front is not None and self._front.is_tunnel:
            # A tunnel has no end of its own, and who does not read would put it off.
            (self.transport.abort if self.flow.write_paused else self.transport.close)()
        super().shutdown()

    def make_answer_the_last(self) -> None:
        if self._front is None or not self._front.is_tunnel:
            super().make_answer_the_last()


class FrontProtocolOfPlainPort(FrontProtocol, HTTP1ProtocolOfPlainPort):
    """Notices a preamble where HTTP was expected."""
