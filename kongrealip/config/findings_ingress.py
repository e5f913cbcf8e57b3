"""Findings about a Kubernetes Ingress that a cloud's HTTP balancer serves."""

from __future__ import annotations

from collections.abc import Iterator

from kongrealip.config.findings_model import CLIENT, FORGED, Door, Finding, ask, doors, peer_of, variable
from kongrealip.config.findings_trust import GOOGLE, PRIVATE, is_within, networks_of
from kongrealip.config.manifest_model import Ingress
from kongrealip.config.settings import Settings
from kongrealip.realip.resolve import PROXY_PROTOCOL

_ALB = "alb.ingress.kubernetes.io/"
_ALB_ATTRIBUTES = f"{_ALB}load-balancer-attributes"
_MODE = "routing.http.xff_header_processing.mode="
_GOOGLE_CLASSES = ("gce", "gce-internal")
_FOR = "X-Forwarded-For"
# Its own address stands last in the header, behind the client's.
_GOOGLES_OWN = "198.51.100.10"


def ingress_findings(ingress: Ingress, settings: Settings) -> Iterator[Finding]:
    """What is wrong between a balancer of AWS or of Google and the settings behind it."""
    is_alb = ingress.kind == "alb" or any(name.startswith(_ALB) for name in ingress.annotations)
    is_google = ingress.kind in _GOOGLE_CLASSES
    door = doors(settings)[0]
    if not settings.trusted_ips or not door.is_http or not (is_alb or is_google):
        return
    if door.header == PROXY_PROTOCOL or door.header.lower() == "x-real-ip":
        yield _not_sent(ingress, door)
    elif door.header.lower() != _FOR.lower():
        # A content network's, in front of the balancer, which lets it pass.
        return
    elif is_alb:
        yield from _not_appended(ingress, door)
    else:
        yield from _google(ingress, door)


def _not_sent(ingress: Ingress, door: Door) -> Finding:
    own = (f"{door.header}: {FORGED}",) if door.header != PROXY_PROTOCOL else ()
    return Finding(
        "header-not-sent", f"{variable(door.settings, 'real_ip_header')} behind {ingress.where}",
        f"this balancer tells of the client in {_FOR} alone, and lets other headers pass as the client wrote"
        " them",
        ask(door, peer_of(door), *own, f"{_FOR}: {CLIENT}", right=CLIENT), f"set KONG_REAL_IP_HEADER={_FOR}",
    )  # fmt: skip


def _not_appended(ingress: Ingress, door: Door) -> Iterator[Finding]:
    attributes = str(ingress.annotations.get(_ALB_ATTRIBUTES, "")).replace(" ", "").split(",")
    for mode in ("preserve", "remove"):
        if f"{_MODE}{mode}" in attributes:
            lines = (f"{_FOR}: {FORGED}",) if mode == "preserve" else ()
            yield Finding(
                "header-not-appended", f"{_ALB_ATTRIBUTES} in {ingress.where}",
                f"in mode {mode} the balancer does not write the client into {_FOR}, from which it is read",
                ask(door, peer_of(door), *lines, right=CLIENT), f"set {_MODE}append, or leave it out",
            )  # fmt: skip


def _google(ingress: Ingress, door: Door) -> Iterator[Finding]:
    settings = door.settings
    trusted = tuple(networks_of(settings.trusted_ips))
    missing = [network for network in GOOGLE[:2] if not is_within(network, trusted)]
    line = f"{_FOR}: {CLIENT}, {_GOOGLES_OWN}"
    if missing and ingress.kind == "gce":
        yield Finding(
            "balancer-range-missing", f"{variable(settings, 'trusted_ips')} behind {ingress.where}",
            f"Google's front ends connect from {' and '.join(map(str, missing))} too, and are not trusted",
            ask(door, str(missing[0][5]), line, right=CLIENT),
            f"add {', '.join(map(str, missing))} and the balancer's own address to KONG_TRUSTED_IPS",
        )  # fmt: skip
    own = [network for network in trusted if not is_within(network, PRIVATE + GOOGLE)]
    if settings.real_ip_recursive and not own and ingress.kind == "gce":
        yield Finding(
            "balancer-range-missing", f"{variable(settings, 'trusted_ips')} behind {ingress.where}",
            f"the last address of Google's {_FOR} is the balancer's own public one, and it is not trusted",
            ask(door, peer_of(door), line, right=CLIENT),
            "add the balancer's own address to KONG_TRUSTED_IPS",
        )  # fmt: skip
    if not settings.real_ip_recursive:
        yield Finding(
            "google-without-recursive", f"{variable(settings, 'real_ip_recursive')} behind {ingress.where}",
            f"the last address of Google's {_FOR} is the balancer's own, and without recursion that is it",
            ask(door, peer_of(door), line, right=CLIENT),
            "set KONG_REAL_IP_RECURSIVE=on, and add the balancer's own address to KONG_TRUSTED_IPS",
        )  # fmt: skip
