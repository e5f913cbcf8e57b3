"""TLS on both sides of a relay."""

from __future__ import annotations

import ssl

from kongrealip.config import Settings
from kongrealip.config.relay import RelaySettings
from kongrealip.errors import StartError
from kongrealip.relay.secured import ServerSide, note_server_name
from kongrealip.server import tls

_GIVE_AUTHORITIES = "give the path of a PEM file with the certificates of the authorities"


def for_clients(settings: Settings, relay: RelaySettings) -> dict[str, ssl.SSLContext]:
    """The context of each ``ssl`` listener, by its address. Raises StartError."""
    secured = [listen.address for listen in settings.stream_listen if listen.ssl]
    return dict.fromkeys(secured, _for_clients(settings, relay)) if secured else {}


def _for_clients(settings: Settings, relay: RelaySettings) -> ssl.SSLContext:
    context = tls.base(settings)
    context.sslobject_class = ServerSide
    context.sni_callback = note_server_name
    if relay.alpn:
        context.set_alpn_protocols(list(relay.alpn))
    if relay.client_ca is not None and relay.client_verify != "off":
        # A certificate that was not asked for is not shown, and one that is shown is always verified.
        is_optional = relay.client_verify == "optional"
        context.verify_mode = ssl.CERT_OPTIONAL if is_optional else ssl.CERT_REQUIRED
        _load_authorities(context, relay.client_ca, relay.given["client_ca"])
    return context


def for_upstreams(relay: RelaySettings) -> ssl.SSLContext | None:
    """The context for connections to upstreams, where they have TLS. Raises StartError."""
    if not relay.upstream_tls:
        return None
    context = ssl.create_default_context()
    if not relay.upstream_tls_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if relay.upstream_tls_ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if relay.upstream_tls_verify else context
        _load_authorities(context, relay.upstream_tls_ca, relay.given["upstream_tls_ca"])
    return context


def _load_authorities(context: ssl.SSLContext, entry: str, name: str) -> None:
    try:
        if "-----BEGIN" in entry:
            context.load_verify_locations(cadata=entry)
        else:
            context.load_verify_locations(entry)
    except (OSError, ValueError) as error:
        # Text is not shown: it may be a key, put in the wrong place.
        shown = "the text" if "-----BEGIN" in entry else repr(entry)
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise StartError(f"{name}: no certificates in {shown}: {reason}; {_GIVE_AUTHORITIES}") from error
