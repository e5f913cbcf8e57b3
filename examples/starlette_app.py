"""Starlette: the client's address on each request.

    KONG_TRUSTED_IPS=10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on \\
        uvicorn --no-proxy-headers examples.starlette_app:app
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from kongrealip import RealIPMiddleware, resolution_of


def index(request: Request) -> PlainTextResponse:
    resolution = resolution_of(request)
    host = request.client.host if request.client else "a Unix socket"
    return PlainTextResponse(f"{host}, from {resolution.source}, through {resolution.peer.ip}\n")


app = Starlette(routes=[Route("/", index)], middleware=[Middleware(RealIPMiddleware)])
