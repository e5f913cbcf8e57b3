"""What the commands say at start of what is legal, and probably not what the operator wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kongrealip.config.findings import HINT, findings_of
from kongrealip.config.settings import Settings

if TYPE_CHECKING:
    from kongrealip.config.proxy import ProxySettings
    from kongrealip.config.relay import RelaySettings

_THIS_HOST = ("127.0.0.1", "::1", "localhost")


def serve_warnings(settings: Settings) -> list[str]:
    """What ``kongrealip serve`` should say at start, one line each."""
    warnings = _lines(settings._replace(stream_listen=()))
    if settings.stream_listen:
        warnings.append(f"{settings.given['stream_listen']} has no effect here: serve opens proxy_listen")
    return warnings


def _lines(settings: Settings) -> list[str]:
    """The findings of ``kongrealip check``, but for what is only worth a look."""
    return [
        f"{finding.variable}: {finding.problem}; {finding.fix}"
        for finding in findings_of(settings)
        if finding.severity != HINT
    ]


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
    warnings = _lines(settings._replace(proxy_listen=()))
    warnings += [
        f"{settings.given.get(key, key)} has no effect{reason}"
        for key, reason in _without_effect(settings, relay)
    ]
    return warnings


def _without_effect(settings: Settings, relay: RelaySettings) -> Iterator[tuple[str, str]]:
    """Keys that were given in vain, and why."""
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
