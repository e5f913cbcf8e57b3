"""The built-in application: answers with what the server knows of the request, as JSON or as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from kongrealip.cli import page
from kongrealip.cli.explain import describe_explanation
from kongrealip.cli.page_accept import prefers_html
from kongrealip.cli.page_trial import Explaining, Trial, is_trial, try_form
from kongrealip.config import Settings
from kongrealip.middleware.asgi import resolution_of
from kongrealip.preamble.description import describe_preamble
from kongrealip.realip.explanation import Explanation

# A shared cache is not to give one form for the other.
_VARY = {"Vary": "Accept"}


class _JSON(JSONResponse):
    def render(self, content: Any) -> bytes:
        # Names in the settings may hold bytes of no encoding, and the escape for those is JSON's own.
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


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
        "headers": _texts(request.scope["headers"]),
    }


def _texts(headers: Sequence[tuple[bytes, bytes]]) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def application(settings: Settings) -> ASGIApp:
    """The application of a server that runs with these settings: with the page, and with its box.

    For whatever path, and with whatever prefix: no route redirects.
    """
    whoami = _Whoami(settings)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _answer(scope, receive, send)
        else:
            await (await whoami.response(Request(scope, receive)))(scope, receive, send)

    return Router(default=answer, redirect_slashes=False)


class _Whoami:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._explaining = Explaining(settings)

    async def response(self, request: Request) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        wants_page = prefers_html(accept) and self._explaining.can(request.scope["headers"])
        if is_trial(request):
            own = resolution_of(request).forwarded.request
            trial = await try_form(request, own, self._explaining)
            return self._page(request, trial) if wants_page else self._json(trial)
        return self._page(request, None) if wants_page else _JSON(describe(request), headers=_VARY)

    def _json(self, trial: Trial) -> Response:
        if trial.found is None:
            return _JSON({"error": trial.problem}, trial.status, _VARY)
        return _JSON(describe_explanation(trial.found, self._settings), headers=_VARY)

    def _page(self, request: Request, trial: Trial | None) -> Response:
        if trial is None or trial.found is None:
            data, found = describe(request), self._explained(request)
        else:
            found = trial.found
            data = {**describe_explanation(found, self._settings), "headers": _texts(trial.headers)}
        shown = page.Shown(data, found, self._settings, _service(request.scope), trial)
        status = 200 if trial is None else trial.status
        return HTMLResponse(page.render(shown), status, {**page.headers(), **_VARY})

    def _explained(self, request: Request) -> Explanation:
        resolution = resolution_of(request)
        return self._explaining.explain(resolution.peer, resolution.preamble, resolution.forwarded.request)


def _service(scope: Scope) -> str:
    """This end of the connection."""
    host, port = scope["server"]
    if port is None:
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_json(describe(websocket))
        await websocket.close()
    else:
        await _JSON(describe(HTTPConnection(scope)))(scope, receive, send)


#: The same without settings to explain by, for servers that are not ours: JSON alone.
app = Router(default=_answer, redirect_slashes=False)
