"""Findings about listeners, their flags, and what depends on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kongrealip.config.findings_model import (
    BALANCER,
    CLIENT,
    FORGED,
    Door,
    Example,
    Finding,
    ask,
    believes_somebody,
    peer_of,
    preamble_text,
    variable,
)
from kongrealip.config.settings import Settings
from kongrealip.realip.belief import TRUSTED
from kongrealip.realip.networks import KongTrust
from kongrealip.realip.resolve import PROXY_PROTOCOL

# nginx's first read: client_header_buffer_size before plain HTTP, and this before TLS.
_NGINX_PLAIN, _NGINX_TLS = 1024, 4096
_FOR_PREAMBLES = (
    "proxy_protocol_optional_from", "proxy_protocol_strict", "preamble_max_bytes", "scheme_from_preamble",
)  # fmt: skip


def listen_findings(door: Door) -> Iterator[Finding]:
    """What is wrong with the listeners of one way in."""
    if door.is_http and door.listens:
        yield from _source_without_flag(door)
        yield from _flag_without_source(door)
        yield from _all_flagged(door)
    if door.is_http:
        yield from _believed(door)
    yield from _longer_than_nginx(door)


def shared_findings(settings: Settings, doors: list[Door]) -> Iterator[Finding]:
    """What no single way in is to blame for."""
    if not any(door.reads_preambles for door in doors):
        yield from _no_effect(settings)
    yield from _port_maps_twice(settings)
    if all(door.listens for door in doors):
        yield from _port_maps_of_nobody(settings)


def _source_without_flag(door: Door) -> Iterator[Finding]:
    if door.header != PROXY_PROTOCOL or door.flagged:
        return
    listens = variable(door.settings, "proxy_listen")
    example = Example("gets 400, for a preamble is no request", BALANCER, preamble_text(CLIENT, door))
    yield Finding(
        "source-without-flag", variable(door.settings, "real_ip_header"),
        f"the address is to come from the preamble, and no listener of {listens} reads one",
        example,
        f'add the flag, as in KONG_PROXY_LISTEN="{door.listens[0].address} proxy_protocol"; where another'
        " server listens and reads preambles, as gunicorn does, KONG_PROXY_LISTEN=off",
    )  # fmt: skip


def _flag_without_source(door: Door) -> Iterator[Finding]:
    if door.means_preamble or not door.flagged or not believes_somebody(door):
        return
    header = f"{door.header}: {FORGED}"
    yield Finding(
        "flag-without-source", variable(door.settings, "proxy_listen"),
        f"{door.flagged[0].address} demands a preamble, and the address is taken from {door.header}, which a"
        " balancer that writes preambles mostly lets pass as the client wrote it",
        ask(door, peer_of(door), header, right=CLIENT, said=CLIENT),
        "set KONG_REAL_IP_HEADER=proxy_protocol",
    )  # fmt: skip


def _all_flagged(door: Door) -> Iterator[Finding]:
    settings = door.settings
    given_way = settings.proxy_protocol_optional_from or settings.status_listen
    if given_way or len(door.flagged) < len(door.listens):
        return
    yield Finding(
        "all-listeners-flagged", variable(settings, "proxy_listen"),
        "every listener demands a preamble, which health checks of clusters and of some balancers do not"
        " send",
        Example("the connection is closed without an answer", BALANCER, "", ("GET /health HTTP/1.1",)),
        "let them ask KONG_STATUS_LISTEN, or list where they come from in"
        " KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM",
    )  # fmt: skip


def _believed(door: Door) -> Iterator[Finding]:
    settings = door.settings
    decided = settings.forwarded_headers != TRUSTED or "forwarded_headers" in settings.given
    # Another server may believe by rules of its own, and says so in its documents.
    if decided or door.header != PROXY_PROTOCOL or not door.flagged:
        return
    peer = peer_of(door)
    if not settings.trusted_ips or not KongTrust(settings.trusted_ips).trusts(peer):
        return
    example = Example(
        "the scheme is https, for the client said so",
        peer, preamble_text(CLIENT, door), ("X-Forwarded-Proto: https",),
    )  # fmt: skip
    yield Finding(
        "believed-forwarded-proto", variable(settings, "forwarded_headers"),
        "a balancer below HTTP passes X-Forwarded-Proto and -Host on as the client wrote them, and they are"
        " believed, because it is trusted",
        example,
        "set KONGREALIP_FORWARDED_HEADERS=auto, or to trusted where the balancer itself sets them",
    )  # fmt: skip


def _longer_than_nginx(door: Door) -> Iterator[Finding]:
    settings = door.settings
    limit = settings.preamble_max_bytes
    if "preamble_max_bytes" not in settings.given or limit <= _NGINX_TLS or not door.flagged:
        return
    yield Finding(
        "preamble-longer-than-nginx", variable(settings, "preamble_max_bytes"),
        f"preambles of up to {limit} bytes are read, and nginx takes {_NGINX_TLS} before TLS and"
        f" {_NGINX_PLAIN} before plain HTTP, so that what works here is closed by Kong",
        Example(f"a preamble of {limit} bytes is read here, and closed without an answer by nginx"),
        f"set it to at most {_NGINX_TLS}, unless the balancer is known to send more and Kong is not to take"
        " over",
    )  # fmt: skip


def _no_effect(settings: Settings) -> Iterator[Finding]:
    for key in _FOR_PREAMBLES:
        # The value that is in force anyway was not set in vain.
        if key in settings.given and getattr(settings, key) != Settings._field_defaults[key]:
            yield Finding(
                "no-effect", variable(settings, key),
                "has no effect: no listener has the flag proxy_protocol",
                Example("every request is decided as if it were not there"),
                'add the flag, as in KONG_PROXY_LISTEN="0.0.0.0:8000 proxy_protocol", or leave it out',
            )  # fmt: skip


def _port_maps_of_nobody(settings: Settings) -> Iterator[Finding]:
    listens = settings.proxy_listen + settings.stream_listen
    ports = {str(listen.port) for listen in listens if not listen.is_unix}
    for entry in settings.port_maps:
        if entry.kong_port_text in ports:
            continue
        is_odd = f"{entry.kong_port:g}" in ports
        reason = "is compared as text, and is spelt otherwise" if is_odd else "is no listener's"
        yield Finding(
            "port-map-without-listener", variable(settings, "port_maps"),
            f"{entry}: the port {entry.kong_port_text!r} {reason}, so the entry has no effect",
            Example(f"nobody is told of port {entry.host_port:g}"),
            f"write the port of a listener, of {', '.join(sorted(ports))}, as a plain number without blanks",
        )  # fmt: skip


def _port_maps_twice(settings: Settings) -> Iterator[Finding]:
    for text, count in Counter(entry.kong_port_text for entry in settings.port_maps).items():
        if count > 1:
            entries = [entry for entry in settings.port_maps if entry.kong_port_text == text]
            yield Finding(
                "port-map-twice", variable(settings, "port_maps"),
                f"{' and '.join(map(str, entries))} are for the same listener, and the last one counts",
                Example(f"behind port {entries[0].host_port:g} it is said to be {entries[-1].host_port:g}"),
                "keep one of them, or open a listener for each",
            )  # fmt: skip
