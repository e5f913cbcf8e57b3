"""Findings about KONG_REAL_IP_HEADER: names that are read otherwise than they look."""

from __future__ import annotations

from collections.abc import Iterator

from kongrealip.config.findings_model import (
    CLIENT,
    FORGED,
    Door,
    Finding,
    ask,
    believes_somebody,
    peer_of,
    variable,
)
from kongrealip.realip.resolve import PROXY_PROTOCOL

#: Headers with a bare address that balancers and content networks set, in lower case.
_SENT = (
    "x-forwarded-for", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-forwarded-for",
    "x-envoy-external-address", "true-client-ip", "cf-connecting-ip", "cf-connecting-ipv6",
    "fastly-client-ip", "fly-client-ip", "x-azure-clientip", "x-azure-socketip", "x-appengine-user-ip",
    "do-connecting-ip", "incap-client-ip", "x-sucuri-clientip", "x-vercel-forwarded-for",
    "x-nf-client-connection-ip", "ali-cdn-real-ip", "cdn-src-ip",
)  # fmt: skip
_USUAL = {"x-forwarded-for": "X-Forwarded-For", "x-real-ip": "X-Real-IP"}
_ALIKE = 0.8


def header_findings(door: Door) -> Iterator[Finding]:
    """What is wrong with the header's name. Without somebody who is trusted it is not read at all."""
    if not door.is_http or door.header in ("X-Forwarded-For", PROXY_PROTOCOL) or not believes_somebody(door):
        return
    lower = door.header.lower()
    if lower == "x-forwarded-for":
        yield _letter_case(door)
    elif door.means_preamble:
        yield _for_preamble(door)
    elif lower == "forwarded":
        yield _rfc7239(door)
    elif lower not in _SENT:
        yield _unknown(door)


def _letter_case(door: Door) -> Finding:
    lines = (f"X-Forwarded-For: {FORGED}", f"X-Forwarded-For: {CLIENT}")
    return Finding(
        "header-letter-case", variable(door.settings, "real_ip_header"),
        f"nginx compares the letter case here: {door.header} is not X-Forwarded-For, of which it reads all"
        " lines, but some header of which it reads the first, and that one is the client's own",
        ask(door, peer_of(door), *lines, right=CLIENT), "write X-Forwarded-For, exactly so",
    )  # fmt: skip


def _for_preamble(door: Door) -> Finding:
    example = ask(
        door,
        peer_of(door),
        f"{door.header}: {FORGED}",
        right=CLIENT,
        said=CLIENT if door.reads_preambles else "",
    )
    return Finding(
        "header-for-preamble", variable(door.settings, "real_ip_header"),
        f"{door.header} is an HTTP header of that name, which a balancer below HTTP lets pass as the client"
        " wrote it",
        example, "write proxy_protocol, exactly so",
    )  # fmt: skip


def _rfc7239(door: Door) -> Finding:
    return Finding(
        "header-rfc7239", variable(door.settings, "real_ip_header"),
        "nginx reads bare addresses, and for=… of RFC 7239 is none, so nothing is ever replaced",
        ask(door, peer_of(door), f"{door.header}: for={CLIENT}", right=CLIENT),
        "have the balancer send X-Forwarded-For as well, and write X-Forwarded-For",
    )  # fmt: skip


def _unknown(door: Door) -> Finding:
    from difflib import get_close_matches

    lower = door.header.lower()
    near = get_close_matches(lower.replace("_", "-"), _SENT, n=1, cutoff=_ALIKE)
    meant = f"write {_USUAL.get(near[0], near[0])}" if near else "write X-Forwarded-For or X-Real-IP"
    lines = (f"{door.header}: {FORGED}", f"X-Forwarded-For: {CLIENT}")
    return Finding(
        "header-unknown", variable(door.settings, "real_ip_header"),
        f"no balancer that is known here sets {door.header}; one that does not lets the client's own line"
        " pass",
        ask(door, peer_of(door), *lines, right=CLIENT),
        f"{meant}, or have the balancer overwrite {door.header} in each request",
    )  # fmt: skip
