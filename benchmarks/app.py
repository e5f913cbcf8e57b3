"""The smallest application, so that the server is what is measured."""

from __future__ import annotations

from typing import Any

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"2"), (b"content-type", b"text/plain")],
}
_BODY = {"type": "http.response.body", "body": b"ok"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send(_START)
        await send(_BODY)


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """The same, which reads the whole view first."""
    if scope["type"] == "http":
        read_all(scope)
        await app(scope, receive, send)


def read_all(scope: Any) -> None:
    from kongrealip import resolution_of

    view = resolution_of(scope).forwarded
    _ = (view.scheme, view.host, view.port, view.path, view.prefix, view.upstream_headers)
