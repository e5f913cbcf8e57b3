"""OpenTelemetry's server spans: ``client.address`` is the client, ``network.peer.address`` the peer.

Its own middleware knows ``scope["client"]`` and nothing else, as it is when the request comes by.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kongrealip.realip import EXTENSION_KEY, TELL_KEY, Resolution

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["server_request_hook"]


def server_request_hook(span: Span, scope: MutableMapping[str, Any]) -> None:
    """Describe client and peer on a server span.

    For the parameter of the same name of ``FastAPIInstrumentor`` and ``OpenTelemetryMiddleware``,
    wherever RealIPMiddleware stands. ``client.port`` is 0 where the span had the peer's before the
    client was decided, and the client's is not known: attributes cannot be taken away.
    Where a span has ``net.peer.ip``, the name before 2023, the old names are put right as well.
    """
    extensions = scope.get("extensions") or {}
    if EXTENSION_KEY in extensions:
        _describe(span, extensions[EXTENSION_KEY])
    # Ours may be further in, or a second one of ours, which decides anew.
    scope["extensions"] = {**extensions, TELL_KEY: partial(_describe, span)}


def _describe(span: Span, resolution: Resolution) -> None:
    if not span.is_recording():
        return
    # The interface of a span can only be written to. That of the SDK can be read.
    written = getattr(span, "attributes", None) or {}
    client, peer = resolution.client, resolution.peer
    for prefix, (ip, port) in (("client", client), ("network.peer", peer)):
        if ip:
            span.set_attribute(f"{prefix}.address", ip)
        if port is not None or f"{prefix}.port" in written:
            span.set_attribute(f"{prefix}.port", port or 0)
    if "net.peer.ip" in written:
        span.set_attributes(
            {"http.client_ip": client.ip, "net.peer.ip": peer.ip, "net.peer.port": peer.port or 0}
        )
