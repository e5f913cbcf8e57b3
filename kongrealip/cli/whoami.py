"""The built-in application: answers with what the server knows of the request."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from kongrealip.middleware.asgi import resolution_of
from kongrealip.preamble import Preamble, first_tlvs
from kongrealip.realip import CONNECTION_KEY, Connection


def describe(request: HTTPConnection) -> dict[str, Any]:
    """The request as one flat JSON object."""
    resolution = resolution_of(request)
    connection: Connection | None = request.scope.get("state", {}).get(CONNECTION_KEY)
    scheme = request.scope["scheme"]
    return {
        "client_ip": resolution.client.ip,
        "client_port": resolution.client.port,
        "peer_ip": resolution.peer.ip,
        "peer_port": resolution.peer.port,
        "peer_trusted": resolution.peer_trusted,
        "source": resolution.source,
        "scheme": scheme,
        "host": request.headers.get("host"),
        "method": request.scope.get("method", "GET"),
        "path": request.scope["path"],
        "http_version": request.scope["http_version"],
        "tls": connection.tls if connection else scheme in ("https", "wss"),
        "preamble": None if resolution.preamble is None else describe_preamble(resolution.preamble),
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")] for name, value in request.scope["headers"]
        ],
    }


def describe_preamble(preamble: Preamble) -> dict[str, Any]:
    """A preamble as JSON, its TLVs as a map from hexadecimal type to hexadecimal value."""
    fields = preamble._asdict()
    fields["tlvs"] = {f"{kind:02x}": value.hex() for kind, value in first_tlvs(preamble.tlvs).items()}
    return fields


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_json(describe(websocket))
        await websocket.close()
    else:
        await JSONResponse(describe(HTTPConnection(scope)))(scope, receive, send)


app = Starlette(routes=[Mount("/", app=_answer)])
