"""What stands behind each server: it answers with what our middleware made of the request.

With ``SEEN`` in the environment each answer is written there as well, for clients that do not wait
for it, and ``/hold`` keeps whoever serves it until there is a file of that name with ``.go`` behind.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kongrealip.middleware import asgi as asgi_door
from kongrealip.middleware import wsgi as wsgi_door
from kongrealip.realip import RequestResolution

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_HELD_SECONDS = 15.0


def _answer(path: str, client: str | None, port: int | None, scheme: str, found: RequestResolution) -> bytes:
    preamble = found.preamble
    seen = json.dumps(
        {
            "client": client,
            "port": port,
            "scheme": scheme,
            "peer": found.peer.ip,
            "peer_trusted": found.peer_trusted,
            "source": found.source,
            "preamble": None if preamble is None else [preamble.command, preamble.source_ip],
            "upstream": found.upstream_headers,
        }
    )
    if "SEEN" in os.environ:
        _remember(path, seen)
    return seen.encode()


def _remember(path: str, seen: str) -> None:
    with Path(os.environ["SEEN"]).open("a") as file:
        file.write(seen + "\n")
    if path == "/hold":
        deadline = time.monotonic() + _HELD_SECONDS
        while not Path(os.environ["SEEN"] + ".go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def _wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    body = _answer(
        environ["PATH_INFO"],
        environ["REMOTE_ADDR"],
        int(environ["REMOTE_PORT"]) if "REMOTE_PORT" in environ else None,
        environ["wsgi.url_scheme"],
        wsgi_door.resolution_of(environ),
    )
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    client, port = scope["client"] or ("", None)
    body = _answer(scope["path"], client, port or None, scope["scheme"], asgi_door.resolution_of(scope))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Any, send: Any) -> None:
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


wsgi = wsgi_door.RealIPMiddleware(_wsgi)
asgi = asgi_door.RealIPMiddleware(_asgi)
