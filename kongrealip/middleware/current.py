"""The request that is being answered, for code that is not given it: log lines above all.

Importing this module makes RealIPMiddleware keep :data:`current`, for all applications of the process.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from kongrealip.middleware import asgi
from kongrealip.realip import EXTENSION_KEY, Resolution

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from kongrealip.address import Address

__all__ = ["ClientFilter", "current"]

#: The Resolution of the request or WebSocket that this code runs for, or None. Tasks and worker
#: threads that it starts keep it, also when it has been answered.
current: ContextVar[Resolution | None] = ContextVar("kongrealip.current", default=None)


class ClientFilter(logging.Filter):
    """Gives each log record ``client`` and ``peer``, for ``%(client)s`` and ``%(peer)s``. Drops none.

    Texts as in the access log: ``203.0.113.7:51000``, ``[2001:db8::1]:51000``, without the port where
    none is known, ``-`` outside of requests. They replace what ``extra`` has under these names.
    Belongs to a handler: a logger's own filters do not see what the loggers below it write.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        resolution = current.get()
        record.client = "-" if resolution is None else _endpoint(resolution.client)
        record.peer = "-" if resolution is None else _endpoint(resolution.peer)
        return True


def _endpoint(address: Address) -> str:
    ip, port = address
    if port is None:
        return ip or "-"
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


async def _answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application while its request is the current one."""
    resolution = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    if scope["type"] == "http":
        receive, send = _seen_from_outside(receive, send)
    token = current.set(resolution)
    try:
        await app(scope, receive, send)
    finally:
        current.reset(token)


def _seen_from_outside(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Receive and send for which this request is not the current one.

    A server goes on with the connection from in there, with a copy of these variables: uvicorn
    reads on, and begins the next request. Where an answer begins nothing of that happens, and
    uvicorn writes its access log, which shall have the client.
    """
    before = current.get()

    async def receive_outside() -> Message:
        token = current.set(before)
        try:
            return await receive()
        finally:
            current.reset(token)

    async def send_outside(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            return
        token = current.set(before)
        try:
            await send(message)
        finally:
            current.reset(token)

    return receive_outside, send_outside


asgi.on_resolution = current.set
asgi.around = _answer
