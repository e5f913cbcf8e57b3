"""One request and its answer, from the client to the upstream and back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kongrealip.middleware.scope import resolution_of
from kongrealip.proxy.connection import UpstreamConnection
from kongrealip.proxy.failures import ClientGoneError, RefusalError, UpstreamError
from kongrealip.proxy.front import FRONT_KEY, Front
from kongrealip.proxy.headers import (
    CHUNKED,
    NO_BODY,
    UNTOLD,
    Answer,
    Head,
    answer_head,
    request_head,
    trailers_of,
)
from kongrealip.proxy.pool import own_host

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from kongrealip.proxy.proxy import Proxy

logger = logging.getLogger("kongrealip.proxy")

# May be sent twice (RFC 9110, 9.2.2).
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
_SWITCHING = 101


class Exchange:
    """``is_sending`` while there may be more of the request's body."""

    __slots__ = (
        "_connection", "_first", "_front", "_head", "_is_read", "_proxy", "_receive", "_scope", "_send",
        "_sender",
        "_watcher", "is_sending",
    )  # fmt: skip

    _head: Head

    def __init__(self, proxy: Proxy, scope: Scope, receive: Receive, send: Send) -> None:
        self._proxy = proxy
        self._scope = scope
        self._receive = receive
        self._send = send
        self._front: Front | None = scope["extensions"].get(FRONT_KEY)
        self._connection: UpstreamConnection | None = None
        self._is_read = self.is_sending = False
        self._first: asyncio.Task[Message] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer, in one way or another."""
        has_begun = False
        try:
            self._head = self._request_head()
            connection = await self._ask()
            answer = answer_head(connection.status, connection.headers, self._proxy.date())
            self._check_switching(connection.status)
            has_begun = True
            await self._pass_on(connection, answer)
        except ClientGoneError:
            pass
        except RefusalError as refusal:
            self._log(refusal)
            await (self._break_off() if has_begun else self._refuse(refusal))
        finally:
            self._end()

    def watch_client(self) -> None:
        """Notice when the client leaves, from now on. Most answers are there before it is worth it."""
        # Who has still to read the body would lose what this reads.
        is_reading = self._first is not None or (self._sender is not None and not self._sender.done())
        if self._watcher is None and not is_reading:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def _request_head(self) -> Head:
        scope, front = self._scope, self._front
        if front is not None and front.target[:1] == b"/":
            target = front.target
        else:
            # Absolute, or of HTTP/2.
            query = scope["query_string"]
            target = scope["raw_path"] + (b"?" + query if query else b"") or b"/"
        forwarded = resolution_of(scope).forwarded.upstream_lines
        may_tunnel = front is not None and front.may_tunnel
        head = request_head(scope, target, forwarded, self._proxy.preserves_host, may_tunnel)
        if front is not None and front.asks_upgrade and head.length not in (NO_BODY, 0):
            raise RefusalError(400, "a body and an upgrade at once")
        return head

    async def _ask(self) -> UpstreamConnection:
        """Send the request, and return the connection on which an answer has begun."""
        pool, head, method = self._proxy.pool, self._head, self._scope["method"]
        connection = pool.idle_connection() or await pool.connection()
        while True:
            self._connection = connection
            connection.begin(self, method == "HEAD")
            pool.busy[connection] = None
            try:
                if head.length == NO_BODY:
                    connection.write(head.framed(NO_BODY, own_host(connection.target)))
                else:
                    await self._send_request(connection)
                await connection.wait_for_head()
            except UpstreamError as failure:
                if connection.requests == 1 or failure.is_timeout or not self._may_repeat(connection, method):
                    raise
                logger.debug("asks again: %s", failure.cause)
                self._end()
            else:
                return connection
            # The rest of the pool may be as stale.
            connection = await pool.connection(fresh=True)

    def _may_repeat(self, connection: UpstreamConnection, method: str) -> bool:
        return not (connection.has_answered or self._is_read or self._sender) and method in _IDEMPOTENT

    async def _send_request(self, connection: UpstreamConnection) -> None:
        head, front = self._head, self._front
        length = await self._length_of_untold() if head.length == UNTOLD else head.length
        connection.write(head.framed(length, own_host(connection.target)))
        if length in (NO_BODY, 0):
            return
        if front is not None and front.has_whole_body:
            await self._send_body(connection, length)
        else:
            self.is_sending = True
            self._sender = connection.loop.create_task(self._send_body_aside(connection, length))

    async def _length_of_untold(self) -> int:
        """Whether HTTP/2 has a body for us: the request may have ended with its head."""
        self._first = first = asyncio.get_running_loop().create_task(self._received())
        await asyncio.sleep(0)
        if not first.done() or first.result().get("more_body", False):
            return CHUNKED
        if first.result()["type"] == "http.disconnect":
            # Has left before the end of what it meant to send, which is not the same as no body.
            raise ClientGoneError
        if body := first.result().get("body", b""):
            return len(body)
        self._first, self._is_read = None, False
        self._head = self._head._replace(length=NO_BODY)
        return NO_BODY

    async def _received(self) -> Message:
        self._is_read = True
        return await self._receive()

    async def _send_body_aside(self, connection: UpstreamConnection, length: int) -> None:
        """As a task: the answer may come before the end of this."""
        try:
            await self._send_body(connection, length)
        except (ClientGoneError, RefusalError) as failure:
            connection.fail(failure)
        finally:
            self.is_sending = False
            connection.since = connection.loop.time()

    async def _send_body(self, connection: UpstreamConnection, length: int) -> None:
        left, more = length, True
        while more:
            message = await (self._first or self._received())
            self._first = None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body, more = message.get("body", b""), message.get("more_body", False)
            if length == CHUNKED:
                connection.write(self._chunk(body, more))
            else:
                left -= len(body)
                if left < 0 or (left and not more):
                    # HTTP/2 alone lets a client say one length and send another.
                    raise RefusalError(400, "the body is not as long as it should be")
                connection.write(body)
            await connection.drain()

    def _chunk(self, body: bytes, more: bool) -> bytes:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if more:
            return chunk
        trailers = trailers_of(self._front.trailers) if self._front is not None else []
        return b"".join([chunk, b"0\r\n", *(b"%b: %b\r\n" % line for line in trailers), b"\r\n"])

    def _check_switching(self, status: int) -> None:
        if status == _SWITCHING and (self._front is None or not self._front.may_tunnel):
            raise UpstreamError("status 101, which nobody has asked for")

    async def _pass_on(self, connection: UpstreamConnection, answer: Answer) -> None:
        send, status, headers = self._send, connection.status, answer.headers
        has_trailers = answer.is_chunked and self._head.wants_trailers
        if status == _SWITCHING:
            headers += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": headers,
            "trailers": has_trailers,
        }
        await send(start)
        if status == _SWITCHING:
            self._sender = connection.loop.create_task(self._send_tunnelled(connection))
        body = connection.take_body()
        while not connection.is_complete:
            # Even where nothing has come of it yet, for this is what the head waits for.
            await send({"type": "http.response.body", "body": body, "more_body": True})
            body = await self._next_part(connection)
        trailers = trailers_of(connection.trailers) if has_trailers else []
        # Before the client has taken it all: it may be slow, and others can use the connection.
        self._end()
        await send({"type": "http.response.body", "body": body, "more_body": False})
        if has_trailers:
            await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})

    async def _next_part(self, connection: UpstreamConnection) -> bytes:
        while True:
            body = connection.take_body()
            if body or connection.is_complete:
                return body
            if connection.failure is not None:
                raise connection.failure
            await connection.wait()

    async def _send_tunnelled(self, connection: UpstreamConnection) -> None:
        """What the client sends, as it is, until it leaves."""
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                if body := message.get("body", b""):
                    connection.write(body)
                    await connection.drain()
            connection.fail(ClientGoneError())
        except RefusalError:
            # The other direction knows.
            pass

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._connection is not None:
            self._connection.fail(ClientGoneError())

    def _end(self) -> None:
        """Leave the connection, and everything that was done beside."""
        connection, self._connection = self._connection, None
        if self._sender is not None:
            if not self._sender.done() and connection is not None:
                # An answer that came before the end of the request. What is left of that is not sent.
                connection.is_reusable = False
            self._sender.cancel()
            self._sender = None
        if self._first is not None:
            self._first.cancel()
            self._first = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        if connection is not None:
            self._proxy.pool.give_back(connection)

    def _log(self, refusal: RefusalError) -> None:
        if isinstance(refusal, UpstreamError):
            name = refusal.upstream or (self._connection.target.name if self._connection else "")
            logger.error("upstream %s: %s", name, refusal.cause)

    async def _refuse(self, refusal: RefusalError) -> None:
        body = f"{refusal.text}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"date", self._proxy.date()),
        ]
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _break_off(self) -> None:
        if self._front is not None:
            self._front.break_off()
            while (await self._receive())["type"] != "http.disconnect":
                pass
