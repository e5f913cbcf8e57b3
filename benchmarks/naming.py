"""The smallest application, which names the client at /client: who is to be timed is asked first."""

from __future__ import annotations

from typing import Any

from benchmarks.app import app as answer

PATH = "/client"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == PATH:
        client = scope["client"][0].encode()
        headers = [(b"content-length", b"%d" % len(client))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": client})
    else:
        await answer(scope, receive, send)
