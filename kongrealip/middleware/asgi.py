"""The door for ASGI applications: Starlette, FastAPI and whatever else speaks ASGI 3."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from kongrealip.address import Address
from kongrealip.config import Settings
from kongrealip.middleware.peers import KnownPeer, is_quiet
from kongrealip.middleware.scope import (
    on_unix_socket,
    port_number,
    replace_in,
    resolution_of,
    tell_scheme,
    with_scope,
)
from kongrealip.realip import (
    CONNECTION_KEY,
    EXTENSION_KEY,
    OWN_SCHEME_KEY,
    RECEIVED_KEY,
    TELL_KEY,
    Connection,
    ForwardedRules,
    Resolution,
    Rules,
)
from kongrealip.realip.networks import UNIX

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["RealIPMiddleware", "resolution_of"]

# How many peers of foreign servers are remembered. Then all are forgotten, which costs each of
# them about two microseconds once; peers come and go, so there is nothing worth keeping longer.
_KNOWN_PEERS = 1024
#: Told of each decision by the door for WSGI, in a context of the request's own; and what calls an ASGI
#: application in this one's place. Set by kongrealip.middleware.current, so that only who imports that pays.
on_resolution: Callable[[Resolution], object] | None = None
around: Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]] | None = None


def RealIPMiddleware(  # noqa: N802 - stands where a class is expected: add_middleware(RealIPMiddleware)
    app: ASGIApp,
    settings: Settings | None = None,
    *,
    trusted_ips: str | Iterable[str] | None = None,
    real_ip_header: str | None = None,
    real_ip_recursive: bool | str | None = None,
    forwarded_headers: str | None = None,
    scheme_from_preamble: bool | str | None = None,
    replace_host: bool | str | None = None,
    replace_root_path: bool | str | None = None,
) -> ASGIApp:
    """Wrap an ASGI application so that it sees the client that Kong would have seen.

    Without ``settings`` the process environment is read, as ``KONG_TRUSTED_IPS``,
    ``KONG_REAL_IP_HEADER``, ``KONG_REAL_IP_RECURSIVE`` and the rest; keyword arguments win over
    both, and mean what the variable of their name does. Raises SettingsError where any of it
    cannot be used.

    For http and websocket scopes ``scope["client"]`` becomes the decided address, with port 0
    where none is known, or None for a Unix socket, and ``scope["scheme"]`` what a believed peer
    says of it. :func:`resolution_of` gives the whole :class:`Resolution` and what Kong calls
    forwarded values. Where two of these middlewares meet, the inner one decides anew from the
    same peer.
    """
    arguments = {
        "trusted_ips": trusted_ips,
        "real_ip_header": real_ip_header,
        "real_ip_recursive": real_ip_recursive,
        "forwarded_headers": forwarded_headers,
        "scheme_from_preamble": scheme_from_preamble,
        "replace_host": replace_host,
        "replace_root_path": replace_root_path,
    }
    if settings is None:
        settings = environment_settings(arguments)
    return _bind(app, settings.replaced(**arguments))


def environment_settings(arguments: dict[str, Any]) -> Settings:
    """What the environment says of everything that no argument overrules."""
    overruled = {
        prefix + key.upper()
        for key, value in arguments.items()
        if value is not None
        for prefix in ("KONG_", "KONG_NGINX_PROXY_", "KONGREALIP_")
    }
    settings = Settings.load({name: os.environ[name] for name in os.environ if name not in overruled})
    if settings.warnings:
        # Imported when there is something to say: it is a good part of what an import costs.
        import logging

        for warning in settings.warnings:
            logging.getLogger("kongrealip").warning(warning)
    return settings


def _bind(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The middleware itself: a closure that decides, and gives back the application's own coroutine.

    Nothing of it waits, so it needs no coroutine of its own, which would be a fifth of what a call
    costs, and one more frame each time that the application waits. Calling a closure costs 90 ns less
    than calling an instance (benchmarks/middleware.py).
    """
    rules, forwarded = settings.rules(), settings.forwarded_rules()
    replaces = settings.replace_host or settings.replace_root_path
    known: dict[Any, KnownPeer] = {}
    find = known.get

    def decide(scope: Scope) -> None:
        """The general case: any scope, any peer."""
        state = scope.get("state")
        connection: Connection | None = state.get(CONNECTION_KEY) if state else None
        if connection is None:
            if scope["type"] not in ("http", "websocket"):
                return
            peer = _foreign_peer(scope, rules, forwarded, None if replaces else known)
        else:
            # Our own server's. The peer is the one that was accepted, whatever others did to the
            # scope since.
            peer = connection.memo
            if peer is None or peer.rules is not rules:
                peer = KnownPeer(rules, forwarded, connection.peer, connection.preamble)
                connection.memo = peer
        if peer.wanted and not (peer.silent and is_quiet(peer.wanted, scope["headers"])):
            peer.read(scope["headers"])
        if "extensions" in scope:
            extensions = {**(scope["extensions"] or {}), EXTENSION_KEY: peer.resolution}
            scope["extensions"] = extensions
            if TELL_KEY in extensions:
                extensions[TELL_KEY](peer.resolution)
        else:
            scope["extensions"] = {EXTENSION_KEY: peer.resolution}
        scope["client"] = peer.client
        if replaces:
            # Made now, for it is to show what was received.
            seen = scope["extensions"][EXTENSION_KEY] = with_scope(peer.resolution, forwarded, scope)
            if RECEIVED_KEY not in scope["extensions"]:
                # Not by the inner of two: the prefix would be there twice.
                scope["extensions"][RECEIVED_KEY] = seen.forwarded.request
                replace_in(scope, seen.forwarded, settings)
        if peer.scheme is not None:
            tell_scheme(scope, peer.scheme[scope["type"] == "websocket"])
        elif OWN_SCHEME_KEY in scope["extensions"]:
            # An outer one of us believed somebody whom this one does not.
            scope["scheme"] = scope["extensions"][OWN_SCHEME_KEY]

    def real_ip(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            peer = find(scope["client"])
        except (KeyError, TypeError):
            peer = None
        if peer is None or "extensions" in scope:
            decide(scope)
        elif not peer.wanted:
            scope["extensions"] = {EXTENSION_KEY: peer.quiet}
        else:
            headers = scope["headers"]
            if peer.silent:
                # is_quiet without the call: a tenth of what such a request costs.
                wanted = peer.wanted
                for key, _ in headers:
                    if key in wanted:
                        break
                else:
                    scope["extensions"] = {EXTENSION_KEY: peer.quiet}
                    return app(scope, receive, send) if around is None else around(app, scope, receive, send)
            peer.read(headers)
            scope["extensions"] = {EXTENSION_KEY: peer.resolution}
            scope["client"] = peer.client
            if peer.scheme is not None:
                tell_scheme(scope, peer.scheme[scope["type"] == "websocket"])
        return app(scope, receive, send) if around is None else around(app, scope, receive, send)

    return _as_coroutine_function(real_ip)


def _as_coroutine_function(function: Callable[..., Awaitable[None]]) -> ASGIApp:
    """Mark what returns a coroutine as what is one: by that servers tell ASGI 3 from 2."""
    import inspect

    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    # Nothing but inspect reads this flag: what a call does is in the code.
    code = function.__code__
    function.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
    return function


def _foreign_peer(
    scope: Scope, rules: Rules, forwarded: ForwardedRules, known: dict[Any, KnownPeer] | None
) -> KnownPeer:
    """Another server's, of which the scope is all we know."""
    outer = (scope.get("extensions") or {}).get(EXTENSION_KEY)
    if isinstance(outer, Resolution):
        return KnownPeer(rules, forwarded, outer.peer, outer.preamble)
    client = scope.get("client")
    # granian has an empty address for a Unix socket.
    if not client or not client[0]:
        return KnownPeer(rules, forwarded, _portless_peer(scope), None)
    ip, port = client[0], port_number(client[1])
    peer = KnownPeer(rules, forwarded, Address(ip, port or None), None)
    if not port:
        _warn_of_another_middleware()
    # Only where the scope's own client can stay as it is while nothing is replaced.
    if peer.unchanged.peer == client and known is not None:
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
    return Address(UNIX if on_unix_socket(scope) else "", None)
