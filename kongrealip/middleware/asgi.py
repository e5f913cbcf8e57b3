"""The door for ASGI applications: Starlette, FastAPI and whatever else speaks ASGI 3."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from kongrealip.address import Address
from kongrealip.config import Settings
from kongrealip.errors import ResolutionMissingError
from kongrealip.realip import CONNECTION_KEY, Connection, PeerResolver, Resolution, Rules
from kongrealip.realip.networks import UNIX

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Receive, Scope, Send

#: Where the middleware leaves the :class:`Resolution` in ``scope["extensions"]``.
EXTENSION_KEY = "kongrealip"

# How many peers of foreign servers are remembered. Then all are forgotten, which costs each of
# them about two microseconds once; peers come and go, so there is nothing worth keeping longer.
_KNOWN_PEERS = 1024
_LONGEST_REMEMBERED = 256


class _AnyValue:
    """Equal to everything, so that ``(name, ANY) in headers`` looks for a name."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def RealIPMiddleware(  # noqa: N802 - stands where a class is expected: add_middleware(RealIPMiddleware)
    app: ASGIApp,
    settings: Settings | None = None,
    *,
    trusted_ips: str | Iterable[str] | None = None,
    real_ip_header: str | None = None,
    real_ip_recursive: bool | str | None = None,
) -> ASGIApp:
    """Wrap an ASGI application so that it sees the client that Kong would have seen.

    Without ``settings`` the process environment is read, as ``KONG_TRUSTED_IPS``,
    ``KONG_REAL_IP_HEADER`` and ``KONG_REAL_IP_RECURSIVE``; keyword arguments win over both.
    Raises SettingsError where any of it cannot be used.

    For http and websocket scopes ``scope["client"]`` becomes the decided address, with port 0
    where none is known, or None for a Unix socket. The whole :class:`Resolution` lies in
    ``scope["extensions"]``; :func:`resolution_of` fetches it. Where two of these middlewares
    meet, the inner one decides anew from the same peer.
    """
    arguments = {
        "trusted_ips": trusted_ips,
        "real_ip_header": real_ip_header,
        "real_ip_recursive": real_ip_recursive,
    }
    if settings is None:
        settings = _environment_settings(arguments)
    settings = settings.replaced(trusted_ips, real_ip_header, real_ip_recursive)
    return _bind(app, settings.rules())


def resolution_of(source: Mapping[str, Any] | HTTPConnection) -> Resolution:
    """The Resolution of a request, a WebSocket, or an ASGI scope.

    Raises ResolutionMissingError where no RealIPMiddleware has seen it.
    """
    extensions = source.get("extensions") or {}
    try:
        return cast("Resolution", extensions[EXTENSION_KEY])
    except KeyError:
        raise ResolutionMissingError(
            "no RealIPMiddleware has seen this request: app.add_middleware(RealIPMiddleware)"
        ) from None


def _environment_settings(arguments: Mapping[str, object]) -> Settings:
    """What the environment says of everything that no argument overrules."""
    overruled = {
        f"KONG_{prefix}{key.upper()}"
        for key, value in arguments.items()
        if value is not None
        for prefix in ("", "NGINX_PROXY_")
    }
    return Settings.load({name: os.environ[name] for name in os.environ if name not in overruled})


def _bind(app: ASGIApp, rules: Rules) -> ASGIApp:
    """The middleware itself, as a closure.

    Calling a closure costs about 90 ns less than calling an instance of a class with an
    asynchronous ``__call__``, of 300 ns in all (benchmarks/middleware.py). It is a coroutine
    function, because that is how servers tell ASGI 3 from ASGI 2.
    """
    name = rules.header_name
    has_header = (name, _AnyValue())
    known: dict[tuple[str, int], PeerResolver] = {}

    async def real_ip(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            resolver = known[scope["client"]]
        except (KeyError, TypeError):
            if scope["type"] in ("http", "websocket"):
                _decide(scope, rules, known)
            await app(scope, receive, send)
            return
        if "extensions" in scope:
            _decide(scope, rules, known)
        elif resolver.fixed is not None:
            scope["extensions"] = {EXTENSION_KEY: resolver.fixed}
        elif resolver.silent and has_header not in scope["headers"]:
            scope["extensions"] = {EXTENSION_KEY: resolver.unchanged}
        else:
            line = None
            for key, value in scope["headers"]:
                if key == name:
                    if line is not None:
                        _decide(scope, rules, known)
                        break
                    line = value
            else:
                if line is None:
                    scope["extensions"] = {EXTENSION_KEY: resolver.unchanged}
                    resolver.silent = all(type(pair) is tuple for pair in scope["headers"])
                else:
                    if line != resolver.last_line:
                        resolver.remember(line)
                    scope["extensions"] = {EXTENSION_KEY: resolver.last_resolution}
                    scope["client"] = resolver.last_client
        await app(scope, receive, send)

    return real_ip


def _decide(scope: Scope, rules: Rules, known: dict[tuple[str, int], PeerResolver]) -> None:
    resolver = _resolver(scope, rules, known)
    lines = [value for key, value in scope["headers"] if key == rules.header_name]
    resolution = resolver.resolve(lines)
    scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION_KEY: resolution}
    scope["client"] = _scope_client(resolution.client)


def _scope_client(client: Address) -> tuple[str, int] | None:
    return None if client.ip in (UNIX, "") else (client.ip, client.port or 0)


def _resolver(scope: Scope, rules: Rules, known: dict[tuple[str, int], PeerResolver]) -> PeerResolver:
    connection: Connection | None = (scope.get("state") or {}).get(CONNECTION_KEY)
    if connection is not None:
        # Our own server. The peer is the one that was accepted, whatever others did to the scope.
        if connection.resolver is None or connection.resolver.rules is not rules:
            connection.resolver = PeerResolver(rules, connection.peer, connection.preamble)
        return connection.resolver
    outer = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    if isinstance(outer, Resolution):
        return PeerResolver(rules, outer.peer, outer.preamble)
    client = scope.get("client")
    if not client:
        return PeerResolver(rules, _portless_peer(scope), None)
    key = client[0], client[1]
    resolver = known.get(key)
    if resolver is None:
        resolver = PeerResolver(rules, Address(key[0], key[1] or None), None)
        if len(known) >= _KNOWN_PEERS:
            known.clear()
        if resolver.unchanged.peer == key:
            known[key] = resolver
    return resolver


def _portless_peer(scope: Scope) -> Address:
    """A scope without client: a Unix socket, or a TCP peer that is gone already.

    A server that asks the socket for its peer finds nothing once the peer has reset the
    connection. Taking that for a Unix socket would let anybody be trusted who hangs up at once.
    """
    server = scope.get("server")
    return Address("", None) if server and server[1] is not None else Address(UNIX, None)
