"""The door for ASGI applications: Starlette, FastAPI and whatever else speaks ASGI 3."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from kongrealip.address import Address
from kongrealip.config import Settings
from kongrealip.errors import ResolutionMissingError
from kongrealip.preamble import Preamble
from kongrealip.realip import (
    CONNECTION_KEY,
    EXTENSION_KEY,
    Connection,
    PeerResolver,
    Resolution,
    Rules,
)
from kongrealip.realip.networks import UNIX

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Receive, Scope, Send

# How many peers of foreign servers are remembered. Then all are forgotten, which costs each of
# them about two microseconds once; peers come and go, so there is nothing worth keeping longer.
_KNOWN_PEERS = 1024
# And of each its last line, if that is not longer: how long lines may be is up to the server.
_LONGEST_LINE = 1024
# What Address.ip is where ASGI has no client.
_NO_ADDRESS = (UNIX, "")


class _KnownPeer(PeerResolver):
    """A peer for as long as it is remembered, with the last answer it got.

    ``resolution`` and ``client`` (as ``scope["client"]`` has it) are that answer; ``line`` is the
    single header line that it came from, or None where it was not one, or a long one. ``silent``
    says that the last request was without the header: then it pays to look whether it is there at
    all, in C, before reading the headers one by one.
    """

    __slots__ = ("client", "line", "resolution", "silent")

    client: tuple[str, int] | None
    line: bytes | None
    resolution: Resolution

    def __init__(self, rules: Rules, peer: Address, preamble: Preamble | None) -> None:
        super().__init__(rules, peer, preamble)
        self.silent = False
        self._answer(None, self.fixed or self.unchanged)

    def read(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Decide from a request's headers, where ``fixed`` is None."""
        self.silent = False
        name = self.rules.header_name
        line = None
        for key, value in headers:
            if key == name:
                if line is not None:
                    lines = [value for key, value in headers if key == name]
                    self._answer(None, self.resolve(lines))
                    return
                line = value
        if line is None:
            self.silent = all(type(entry) is tuple for entry in headers)
            self._answer(None, self.unchanged)
        elif line != self.line:
            remembered = line if len(line) <= _LONGEST_LINE else None
            self._answer(remembered, self._replaced(self.rules.walk_line(line)[0]))

    def _answer(self, line: bytes | None, resolution: Resolution) -> None:
        self.line = line
        self.resolution = resolution
        ip, port = resolution[0]
        self.client = None if ip in _NO_ADDRESS else (ip, port or 0)


class _AnyValue:
    """Equal to everything, so that ``(name, _AnyValue()) in headers`` looks for a name.

    It finds tuples only, and ASGI allows other pairs: hence the look at their type.
    """

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
    settings = Settings.load({name: os.environ[name] for name in os.environ if name not in overruled})
    if settings.warnings:
        # Imported when there is something to say: it is a good part of what an import costs.
        import logging

        for warning in settings.warnings:
            logging.getLogger("kongrealip").warning(warning)
    return settings


def _bind(app: ASGIApp, rules: Rules) -> ASGIApp:
    """The middleware itself: a closure, of a coroutine function that is as small as can be.

    Calling a closure costs 90 ns less than calling an instance with an asynchronous
    ``__call__``, and each local and free variable of a coroutine counts as well, of 300 ns in all
    (benchmarks/middleware.py). A coroutine function, because by that servers tell ASGI 3 from 2.
    """
    known: dict[Any, _KnownPeer] = {}
    find = known.get
    has_header = (rules.header_name, _AnyValue())

    def decide(scope: Scope) -> None:
        """The general case: any scope, any peer."""
        state = scope.get("state")
        connection: Connection | None = state.get(CONNECTION_KEY) if state else None
        if connection is None:
            if scope["type"] not in ("http", "websocket"):
                return
            peer = _foreign_peer(scope, rules, known)
        else:
            # Our own server's. The peer is the one that was accepted, whatever others did to the
            # scope since.
            peer = connection.memo
            if peer is None or peer.rules is not rules:
                peer = connection.memo = _KnownPeer(rules, connection.peer, connection.preamble)
        if peer.fixed is None:
            peer.read(scope["headers"])
        if "extensions" in scope:
            scope["extensions"] = {**(scope["extensions"] or {}), EXTENSION_KEY: peer.resolution}
        else:
            scope["extensions"] = {EXTENSION_KEY: peer.resolution}
        scope["client"] = peer.client

    async def real_ip(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            peer = find(scope["client"])
        except (KeyError, TypeError):
            peer = None
        if peer is None or "extensions" in scope:
            decide(scope)
        elif peer.fixed is not None:
            scope["extensions"] = {EXTENSION_KEY: peer.fixed}
        elif peer.silent and has_header not in scope["headers"]:
            scope["extensions"] = {EXTENSION_KEY: peer.unchanged}
        else:
            peer.read(scope["headers"])
            scope["extensions"] = {EXTENSION_KEY: peer.resolution}
            scope["client"] = peer.client
        await app(scope, receive, send)

    return real_ip


def _foreign_peer(scope: Scope, rules: Rules, known: dict[Any, _KnownPeer]) -> _KnownPeer:
    """Another server's, of which the scope is all we know."""
    outer = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    if isinstance(outer, Resolution):
        return _KnownPeer(rules, outer.peer, outer.preamble)
    client = scope.get("client")
    if not client:
        return _KnownPeer(rules, _portless_peer(scope), None)
    ip, port = client
    peer = _KnownPeer(rules, Address(ip, port or None), None)
    if not port:
        _warn_of_another_middleware()
    # Only where the scope's own client can stay as it is while nothing is replaced.
    if peer.unchanged.peer == client:
        if len(known) >= _KNOWN_PEERS:
            known.clear()
        known[client] = peer
    return peer


@cache
def _warn_of_another_middleware() -> None:
    """No TCP peer has port 0. uvicorn's own proxy headers leave it, and trust loopback by default."""
    import logging

    logging.getLogger("kongrealip").warning(
        "a client with port 0 reached RealIPMiddleware, so something replaced the peer before it;"
        " start uvicorn with --no-proxy-headers"
    )


def _portless_peer(scope: Scope) -> Address:
    """A scope without client: a Unix socket, or a TCP peer that is gone already.

    A server that asks the socket for its peer finds nothing once the peer has reset the
    connection. Taking that for a Unix socket would let anybody be trusted who hangs up at once.
    """
    server = scope.get("server")
    return Address("", None) if server and server[1] is not None else Address(UNIX, None)
