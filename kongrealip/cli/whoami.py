"""The built-in application: answers with what the server knows of the request."""

from __future__ import annotations

from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from kongrealip.middleware.asgi import resolution_of
from kongrealip.preamble import Preamble

# What TLVs say in a word or a number.
_SAID = ("alpn", "authority", "netns", "aws_vpc_endpoint_id", "google_psc_connection_id", "azure_link_id")


def describe(request: HTTPConnection) -> dict[str, Any]:
    """The request as one flat JSON object."""
    resolution = resolution_of(request)
    forwarded = resolution.forwarded
    own = forwarded.request
    return {
        "client_ip": resolution.client.ip,
        "client_port": resolution.client.port,
        "peer_ip": resolution.peer.ip,
        "peer_port": resolution.peer.port,
        "peer_trusted": resolution.peer_trusted,
        "source": resolution.source,
        "scheme": request.scope["scheme"],
        "host": request.headers.get("host"),
        "method": request.scope.get("method", "GET"),
        "path": request.scope["path"],
        "http_version": request.scope["http_version"],
        "tls": own.scheme == "https",
        "forwarded": {
            "scheme": forwarded.scheme,
            "host": forwarded.host,
            "port": forwarded.port,
            "path": forwarded.path,
            "prefix": forwarded.prefix,
        },
        "upstream_headers": forwarded.upstream_headers,
        "preamble": None if resolution.preamble is None else describe_preamble(resolution.preamble),
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")] for name, value in request.scope["headers"]
        ],
    }


def describe_preamble(preamble: Preamble) -> dict[str, Any]:
    """A preamble as JSON: its TLVs from hexadecimal type to hexadecimal value, and those that are known."""
    fields = preamble._asdict()
    del fields["tlv_area"]
    tlvs = preamble.tlvs
    fields["tlvs"] = {f"{kind:02x}": value.hex() for kind, value in tlvs.items()}
    said = {name: value for name in _SAID if (value := getattr(tlvs, name)) is not None}
    if tlvs.unique_id is not None:
        said["unique_id"] = tlvs.unique_id.hex()
    if tlvs.ssl is not None:
        ssl = tlvs.ssl
        said["ssl"] = {**ssl._asdict(), "over_tls": ssl.over_tls, "client_verified": ssl.client_verified}
    fields["said"] = said
    return fields


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_json(describe(websocket))
        await websocket.close()
    else:
        await JSONResponse(describe(HTTPConnection(scope)))(scope, receive, send)


# For whatever path, and with whatever prefix: no route redirects.
app = Router(default=_answer, redirect_slashes=False)
