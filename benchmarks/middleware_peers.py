"""Others that find the client in X-Forwarded-For, each called as its documents say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, NamedTuple

from forwarded import client_from_x_forwarded
from granian.utils.proxies import wrap_asgi_with_proxy_headers
from gunicorn.asgi.protocol import _RequestHeaderPolicy  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from hypercorn.middleware import ProxyFixMiddleware
from python_ipware import IpWare
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class Setting(NamedTuple):
    """Whom to trust: the networks of proxies, or how many entries of the header they wrote."""

    networks: Sequence[str]
    hops: int


class Peer(NamedTuple):
    make: Callable[[Any, Setting], Any]
    note: str = ""
    #: Whether networks are of no use to it, so that many of them cost it nothing.
    counts_hops: bool = False


def uvicorn(app: Any, setting: Setting) -> Any:
    return ProxyHeadersMiddleware(app, list(setting.networks))


def granian(app: Any, setting: Setting) -> Any:
    return wrap_asgi_with_proxy_headers(app, list(setting.networks))


def hypercorn(app: Any, setting: Setting) -> Any:
    return ProxyFixMiddleware(app, mode="legacy", trusted_hops=setting.hops)


def gunicorn(app: Any, setting: Setting) -> Any:
    """What its ASGI worker does for the first request of a connection."""
    config = Config()
    config.set("forwarded_allow_ips", ",".join(setting.networks))

    async def with_policy(scope: Any, receive: Any, send: Any) -> None:
        read = SimpleNamespace(headers_bytes=scope["headers"], scheme=scope["scheme"])
        _RequestHeaderPolicy(config, scope["client"], scope["scheme"], (1, 1)).apply(read)
        scope["scheme"] = read.scheme
        await app(scope, receive, send)

    return with_policy


def ipware(app: Any, setting: Setting) -> Any:
    """Of an environ as WSGI has it. Its list of proxies has an entry for each hop before the last one."""
    found = IpWare(
        precedence=("HTTP_X_FORWARDED_FOR", "REMOTE_ADDR"),
        proxy_count=setting.hops - 1,
        proxy_list=["10.0.0.0/8"] * (setting.hops - 1),
    )

    async def with_ipware(scope: Any, receive: Any, send: Any) -> None:
        environ = {"REMOTE_ADDR": scope["client"][0]}
        lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if lines:
            environ["HTTP_X_FORWARDED_FOR"] = b",".join(lines).decode("latin-1")
        client, _ = found.get_client_ip(environ)
        if client is not None:
            scope["client"] = (str(client), 0)
        await app(scope, receive, send)

    return with_ipware


def forwarded(app: Any, setting: Setting) -> Any:
    networks = [ip_network(network) for network in setting.networks]

    async def with_forwarded(scope: Any, receive: Any, send: Any) -> None:
        lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        client = client_from_x_forwarded(lines, scope["client"][0], trusted=networks)
        if client is not None and lines:
            scope["client"] = (str(client.node.ip), client.node.port or 0)
        await app(scope, receive, send)

    return with_forwarded


PEERS = {
    "uvicorn ProxyHeaders": Peer(uvicorn),
    "granian proxy headers": Peer(granian, "no ports in entries"),
    "hypercorn ProxyFix": Peer(hypercorn, "counts hops, and copies the whole scope", True),
    "gunicorn policy": Peer(gunicorn, "trust and scheme alone: no client of a header"),
    "python-ipware": Peer(ipware, "counts hops; no scheme", True),
    "forwarded": Peer(forwarded, "a function without a memory; no scheme asked"),
}
