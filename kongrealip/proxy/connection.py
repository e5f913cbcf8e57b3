"""A connection to an upstream, and the answer that is being read from it.

On httptools' parser, which the server has as well. aiohttp's client took 62 us of CPU for a small
request and this 11, where uvicorn takes 30 to serve it; and aiohttp drops trailers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httptools

from kongrealip.proxy.failures import UpstreamError

if TYPE_CHECKING:
    from kongrealip.proxy.exchange import Exchange
    from kongrealip.proxy.pool import Pool
    from kongrealip.relay.upstreams import Target

_HIGH_WATER = 65536
_LONGEST_HEAD = 65536
_INTERIM = range(100, 200)
_SWITCHING = 101
# What a status line may hold, and the server can repeat.
_STATUSES = range(100, 600)


class UpstreamConnection(asyncio.Protocol):
    """``exchange`` is who uses it now, None while it is idle. ``since`` is when something last moved."""

    __slots__ = (
        "_chunks", "_drain", "_head_bytes", "_held", "_is_head", "_is_paused", "_is_raw", "_lines",
        "_parser", "_pool", "_waiter", "exchange", "failure", "has_answered", "headers", "is_complete",
        "is_reusable", "is_write_paused", "loop", "requests", "since", "status", "target", "trailers",
        "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, pool: Pool, target: Target) -> None:
        self._pool = pool
        self.loop = pool.loop
        self.target = target
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self.exchange: Exchange | None = None
        self.failure: Exception | None = None
        self.requests = 0
        self.since = self.loop.time()
        self.is_write_paused = False
        self._is_paused = False

    def begin(self, exchange: Exchange, is_head: bool) -> None:
        """Get ready for an answer; ``is_head`` where it will have no body whatever it says."""
        self.exchange = exchange
        self.requests += 1
        self._is_head = is_head
        self._is_raw = self.is_complete = self.is_reusable = self.has_answered = False
        self.status = self._held = self._head_bytes = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self._lines: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)

    def write(self, data: bytes) -> None:
        self.since = self.loop.time()
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the upstream has taken some of what was written."""
        if self.is_write_paused and self.failure is None:
            self._drain = self.loop.create_future()
            await self._drain
        if self.failure is not None:
            raise self.failure

    async def wait(self) -> None:
        """Until there is a head, a part of a body, the end, or a failure."""
        self._waiter = self.loop.create_future()
        await self._waiter

    async def wait_for_head(self) -> None:
        """Raises what has gone wrong until then."""
        while not self.status:
            if self.failure is not None:
                raise self.failure
            self._waiter = self.loop.create_future()
            await self._waiter

    def take_body(self) -> bytes:
        """What has come of the body by now."""
        chunks = self._chunks
        if not chunks:
            return b""
        self._chunks, self._held = [], 0
        if self._is_paused:
            self._is_paused = False
            self.since = self.loop.time()
            if not self.transport.is_closing():
                self.transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def fail(self, failure: Exception) -> None:
        """End the exchange, and with it the connection."""
        if self.failure is None and not self.is_complete:
            self.failure = failure
        self.transport.abort()
        self._wake()
        self._wake_writer()

    def waits_on_upstream(self) -> bool:
        """Whether it is the upstream's turn, and not the client's."""
        return self.is_write_paused or not (
            self._is_paused or self.exchange is None or self.exchange.is_sending
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_writer(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._pool.open += 1

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self.since = self.loop.time()
        self._wake_writer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._parser = None
        if self.exchange is not None and not self.is_complete and self.failure is None:
            if exc is None and (self._is_raw or self._ends_with_connection()):
                self.is_complete = True
            else:
                where = "in the middle of its answer" if self.has_answered else "without an answer"
                self.failure = UpstreamError(f"closed {where}")
        self._wake()
        self._wake_writer()

    def _ends_with_connection(self) -> bool:
        framing = (b"content-length", b"transfer-encoding")
        return self.status != 0 and not any(name in framing for name, _ in self.headers)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None or self._parser is None:
            # Nobody has asked it anything.
            self.transport.abort()
            return
        self.since = self.loop.time()
        self.has_answered = True
        if self._is_raw:
            self.on_body(data)
            return
        parts = len(self._chunks)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._is_raw = True
            if rest := data[upgrade.args[0] :]:
                self.on_body(rest)
        except httptools.HttpParserError as error:
            self.is_reusable = False
            self.fail(UpstreamError(f"not an HTTP answer: {error}"))
        else:
            # What is no body belongs to a head, or to the trailers.
            self._head_bytes = 0 if len(self._chunks) > parts else self._head_bytes + len(data)
            if self._head_bytes > _LONGEST_HEAD and not self.is_complete:
                self.fail(UpstreamError("the head or the trailers of the answer are too long"))

    def on_message_begin(self) -> None:
        if self.is_complete:
            # A second answer to one request: whatever it is, it must not become the next one's.
            self.is_reusable = False
            self.transport.abort()
        self._lines = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self.status:
            return
        status = parser.get_status_code()
        if status in _INTERIM and status != _SWITCHING:
            self._lines = []
            return
        if status not in _STATUSES:
            self.fail(UpstreamError(f"status {status}"))
            return
        self.status = status
        # What follows the body are trailers.
        self.headers, self._lines = self._lines, self.trailers
        if self._is_head and status != _SWITCHING:
            self.is_reusable = parser.should_keep_alive()
            self.is_complete = True
            # It waits for a body that will not come.
            self._parser = None
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self.is_complete:
            self.is_reusable = False
            return
        if not self.status:
            self.fail(UpstreamError("a body in front of the answer"))
            return
        self._chunks.append(body)
        self._held += len(body)
        if self._held > _HIGH_WATER and not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.status in (0, _SWITCHING) or self.is_complete or self._parser is None:
            return
        self.is_complete = True
        self.is_reusable = self._parser.should_keep_alive()
        self._wake()
