"""Settings -> findings: what is legal, and probably not what the operator wants."""

from __future__ import annotations

from collections.abc import Iterator

from kongrealip.config.proxy import ProxySettings
from kongrealip.config.relay import RelaySettings
from kongrealip.config.settings import Settings
from kongrealip.realip.networks import TrustedNetworks
from kongrealip.realip.resolve import PROXY_PROTOCOL

_THIS_HOST = ("127.0.0.1", "::1", "localhost")


def trust_warnings(settings: Settings) -> list[str]:
    """What an attacker could make of the trusted set."""
    networks = TrustedNetworks(settings.trusted_ips)
    if not (networks.covers_all_ipv4() or networks.covers_all_ipv6()):
        return []
    name = settings.given.get("trusted_ips", "trusted_ips")
    warning = f"{name} trusts everybody: whoever reaches this port chooses the client address"
    if settings.real_ip_header == PROXY_PROTOCOL:
        return [f"{warning} with a preamble of his own; list the balancer's networks only"]
    if settings.real_ip_recursive:
        return [
            f"{warning} with {settings.real_ip_header}, and behind any balancer the walk ends at what"
            " the attacker wrote first; list the balancer's networks only"
        ]
    return [f"{warning} with {settings.real_ip_header}; list the balancer's networks only"]


def serve_warnings(settings: Settings) -> list[str]:
    """What ``kongrealip serve`` should say at start, one line each."""
    warnings = [*settings.warnings, *trust_warnings(settings)]
    if settings.real_ip_header == PROXY_PROTOCOL:
        if not any(listen.proxy_protocol for listen in settings.proxy_listen):
            warnings.append(
                "real_ip_header is proxy_protocol and no listener has that flag, so no address is ever"
                ' replaced; write for instance KONG_PROXY_LISTEN="0.0.0.0:8000 proxy_protocol"'
            )
        elif settings.trusted_ips and "forwarded_headers" not in settings.given:
            warnings.append(
                "behind a balancer below HTTP X-Forwarded-Proto is the client's own and believed, as in Kong;"
                " set KONGREALIP_FORWARDED_HEADERS=auto (or trusted, where an HTTP balancer sets it)"
            )
    elif settings.proxy_listen and all(listen.proxy_protocol for listen in settings.proxy_listen):
        warnings.append(
            f"every listener demands a preamble and real_ip_header is {settings.real_ip_header}, so"
            " the preamble is read and not used; for its address set KONG_REAL_IP_HEADER=proxy_protocol"
        )
    if settings.proxy_protocol_optional_from and not any(
        listen.proxy_protocol for listen in settings.proxy_listen
    ):
        name = settings.given["proxy_protocol_optional_from"]
        warnings.append(f"{name} has no effect: no listener has the flag proxy_protocol")
    if settings.stream_listen:
        warnings.append(f"{settings.given['stream_listen']} has no effect here: serve opens proxy_listen")
    return warnings


def proxy_warnings(settings: Settings, proxy: ProxySettings) -> list[str]:
    """What ``kongrealip proxy`` should say at start beside what ``serve`` does, one line each."""
    own = {listen.port for listen in settings.proxy_listen if not listen.is_unix}
    name = proxy.given.get("upstreams", "")
    return [
        f"{name}: {upstream} may be this proxy itself, which listens on that port"
        for upstream in proxy.upstreams
        if upstream.port in own and upstream.host in _THIS_HOST
    ]


def relay_warnings(settings: Settings, relay: RelaySettings) -> list[str]:
    """What ``kongrealip relay`` should say at start, one line each."""
    warnings = list(settings.warnings)
    if any(listen.proxy_protocol for listen in settings.stream_listen):
        # Whatever the header is for serve: a relay has preambles and nothing else.
        warnings += trust_warnings(settings._replace(real_ip_header=PROXY_PROTOCOL))
        if not settings.trusted_ips:
            warnings.append(
                "nobody is trusted, so the preamble is read and not used; list the balancer's networks in"
                " KONG_TRUSTED_IPS"
            )
    warnings += [
        f"{settings.given.get(key, key)} has no effect{reason}"
        for key, reason in _without_effect(settings, relay)
    ]
    return warnings


def _without_effect(settings: Settings, relay: RelaySettings) -> Iterator[tuple[str, str]]:
    """Keys that were given in vain, and why."""
    if settings.proxy_protocol_optional_from and not any(
        listen.proxy_protocol for listen in settings.stream_listen
    ):
        yield "proxy_protocol_optional_from", ": no listener has the flag proxy_protocol"
    if not any(listen.ssl for listen in settings.stream_listen):
        for key in ("alpn", "client_ca"):
            if getattr(relay, key):
                yield key, ": no listener has the flag ssl"
    elif relay.client_ca is not None and relay.client_verify == "off":
        yield "client_ca", ": set KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT to on or optional"
    if relay.upstream_tls_ca is not None:
        if not relay.upstream_tls:
            yield "upstream_tls_ca", ": set KONGREALIP_UPSTREAM_TLS=on"
        elif not relay.upstream_tls_verify:
            yield "upstream_tls_ca", ": KONGREALIP_UPSTREAM_TLS_VERIFY is off"
    if settings.proxy_listen and "proxy_listen" in settings.given:
        yield "proxy_listen", " here: relay opens stream_listen"
