"""An ASGI scope, and what was decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kongrealip.address import bounded_decimal
from kongrealip.config import Settings
from kongrealip.errors import ResolutionMissingError
from kongrealip.realip import (
    CONNECTION_KEY,
    EXTENSION_KEY,
    OWN_SCHEME_KEY,
    RECEIVED_KEY,
    Connection,
    Forwarded,
    ForwardedRules,
    Request,
    RequestResolution,
    Resolution,
    with_request,
)

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import Scope

_HIGHEST_PORT = 65535
_OVER_TLS = ("https", "wss")


def resolution_of(source: Mapping[str, Any] | HTTPConnection) -> RequestResolution:
    """The Resolution of a request, a WebSocket, or an ASGI scope.

    Its ``forwarded`` and ``upstream_headers`` are what Kong calls forwarded values. Raises
    ResolutionMissingError where no RealIPMiddleware has seen it.
    """
    extensions = source.get("extensions") or {}
    try:
        found = extensions[EXTENSION_KEY]
    except KeyError:
        raise ResolutionMissingError(
            "no RealIPMiddleware has seen this request: app.add_middleware(RealIPMiddleware)"
        ) from None
    if not isinstance(found, RequestResolution):
        # Made for who asks first, and kept for who asks again.
        found = extensions[EXTENSION_KEY] = with_scope(found, found.rules, source)
    return found


def with_scope(
    resolution: Resolution, rules: ForwardedRules, scope: Mapping[str, Any] | HTTPConnection
) -> RequestResolution:
    """Join a Resolution with the request of a scope."""
    return with_request(resolution, rules, _request_of(scope))


def _request_of(scope: Mapping[str, Any] | HTTPConnection) -> Request:
    extensions = scope.get("extensions") or {}
    received: Request | None = extensions.get(RECEIVED_KEY)
    if received is not None:
        return received
    state = scope.get("state")
    connection: Connection | None = state.get(CONNECTION_KEY) if state else None
    if connection is None:
        tls = extensions.get(OWN_SCHEME_KEY, scope.get("scheme")) in _OVER_TLS
        port = None if on_unix_socket(scope) else port_number(scope["server"][1])
    else:
        # Whatever the scheme has become since.
        tls, port = connection.tls, connection.local[1]
    # Starlette's Mount adds to root_path, and keeps what it was.
    prefix = scope.get("app_root_path", scope.get("root_path"))
    path = scope.get("raw_path") or scope.get("path", "").encode("utf-8", "surrogateescape")
    return Request(scope["headers"], "https" if tls else "http", path, port, prefix or None)


def on_unix_socket(scope: Mapping[str, Any] | HTTPConnection) -> bool:
    """Whether this end of the connection is a path.

    granian has port 0 behind it, and gunicorn's ASGI worker takes its first two letters for host and port.
    """
    host, port = scope.get("server") or ("", None)
    return port is None or host[:1] == "/"


def port_number(port: object) -> int | None:
    """A port, which granian has as text."""
    return port if isinstance(port, int) else bounded_decimal(str(port), _HIGHEST_PORT)


def tell_scheme(scope: Scope, scheme: str) -> None:
    """Put a scheme into the scope, which has extensions by now, and keep the connection's own there."""
    own = scope.get("scheme")
    if own != scheme:
        scope["extensions"].setdefault(OWN_SCHEME_KEY, own)
        scope["scheme"] = scheme


def replace_in(scope: Scope, forwarded: Forwarded, settings: Settings) -> None:
    """Make a scope what it would be had the client come here directly, as far as it is asked for."""
    host = forwarded.host_header if settings.replace_host else None
    if host is not None:
        others = [line for line in scope["headers"] if line[0] != b"host"]
        scope["headers"] = [(b"host", host), *others]
    prefix = forwarded.root_path if settings.replace_root_path else None
    if prefix is not None:
        # ASGI has the prefix in all three; the peer has taken it off.
        text = prefix.decode("ascii")
        scope["root_path"] = text + scope.get("root_path", "")
        scope["path"] = text + scope["path"]
        if scope.get("raw_path") is not None:
            scope["raw_path"] = prefix + scope["raw_path"]
