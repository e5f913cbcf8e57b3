"""Findings about KONG_TRUSTED_IPS: whom it lets in, and whom it leaves out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from kongrealip.config.findings_model import (
    ATTACKER,
    BALANCER,
    CLIENT,
    FORGED,
    Door,
    Example,
    Finding,
    answer,
    ask,
    claim,
    peer_of,
    variable,
)
from kongrealip.realip.belief import OFF
from kongrealip.realip.networks import UNIX, KongTrust, parse_network
from kongrealip.realip.resolve import PROXY_PROTOCOL

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FIX_TRUST = "list the balancer's own networks in KONG_TRUSTED_IPS, as in 10.0.0.0/8, and nothing else"
_MAPPED = "::ffff:0:0/96"
#: Where balancers of clouds and clusters connect from, and this host itself.
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
         "fc00::/7", "fe80::/10", "::1/128"),
    )
)  # fmt: skip
#: Google's front ends, which also probe.
GOOGLE = tuple(
    map(
        ipaddress.ip_network,
        ("35.191.0.0/16", "130.211.0.0/22", "2600:2d00:1:b029::/64", "2600:2d00:1:1::/64"),
    )
)
# What Cloudflare publishes of the addresses it connects from.
_CLOUDFLARE = tuple(
    map(
        ipaddress.ip_network,
        ("173.245.48.0/20", "103.21.244.0/22", "103.22.200.0/22", "103.31.4.0/22", "141.101.64.0/18",
         "108.162.192.0/18", "190.93.240.0/20", "188.114.96.0/20", "197.234.240.0/22", "198.41.128.0/17",
         "162.158.0.0/15", "104.16.0.0/13", "104.24.0.0/14", "172.64.0.0/13", "131.0.72.0/22",
         "2400:cb00::/32", "2606:4700::/32", "2803:f800::/32", "2405:b500::/32", "2405:8100::/32",
         "2a06:98c0::/29", "2c0f:f248::/32"),
    )
)  # fmt: skip


def trust_findings(door: Door) -> Iterator[Finding]:
    """What an attacker could make of the trusted set, and what the balancer could not."""
    trusts_everybody = door.networks.covers_all_ipv4() or door.networks.covers_all_ipv6()
    if trusts_everybody:
        yield from _everybody(door)
    else:
        yield from _public_ranges(door)
        yield from _no_private_range(door)
    yield from _without_effect(door)
    yield from _nobody(door)
    yield from _unix_alone(door)
    yield from _mapped_peers(door)


def networks_of(entries: tuple[str, ...]) -> list[Network]:
    """The entries but for ``unix:``, as networks."""
    return [ipaddress.ip_network(entry, strict=False) for entry in entries if entry != UNIX]


def is_within(network: Network, others: tuple[Network, ...]) -> bool:
    """Whether one of the others covers the whole of it."""
    return any(
        network.version == other.version
        and int(other.network_address) <= int(network.network_address)
        and int(network.broadcast_address) <= int(other.broadcast_address)
        for other in others
    )


def overlap(networks: list[Network], others: tuple[Network, ...]) -> bool:
    """Whether any of the ones has an address in common with any of the others."""
    return any(one.version == other.version and one.overlaps(other) for one in networks for other in others)


def _everybody(door: Door) -> Iterator[Finding]:
    ipv4 = door.networks.covers_all_ipv4()
    attacker, balancer = (ATTACKER, BALANCER) if ipv4 else ("2001:db8::66", "fd00::5")
    if not door.reads_its_source:
        return
    code, example = "trust-everybody", claim(door, attacker, FORGED, right=attacker)
    problem = "everybody is trusted, so whoever reaches the port beside the balancer names himself"
    if door.settings.real_ip_recursive and door.header.lower() == "x-forwarded-for":
        code, example = (
            "trust-everybody-recursive",
            ask(door, balancer, f"{door.header}: {FORGED}, {attacker}", right=attacker),
        )
        problem = (
            "everybody is trusted and the walk is recursive, so that behind an honest balancer too it ends"
            " at what the client wrote first"
        )
    yield Finding(code, variable(door.settings, "trusted_ips"), problem, example, _FIX_TRUST)


def _public_ranges(door: Door) -> Iterator[Finding]:
    if not door.reads_its_source:
        return
    for network in networks_of(door.settings.trusted_ips):
        is_one = network.prefixlen == network.max_prefixlen
        if is_one or not parse_network(str(network)) or is_within(network, PRIVATE + GOOGLE + _CLOUDFLARE):
            continue
        attacker = str(network[-2])
        yield Finding(
            "trust-public-range", variable(door.settings, "trusted_ips"),
            f"{network} has public addresses, and whoever has one of them chooses the client's address",
            claim(door, attacker, FORGED, right=attacker),
            "list the addresses of the balancer one by one, or the private network it connects from",
        )  # fmt: skip


def _no_private_range(door: Door) -> Iterator[Finding]:
    entries = door.settings.trusted_ips
    networks = networks_of(entries)
    if not networks or UNIX in entries or overlap(networks, PRIVATE + GOOGLE + _CLOUDFLARE):
        return
    yield Finding(
        "no-private-range", variable(door.settings, "trusted_ips"),
        "only public addresses are trusted, and balancers mostly connect from their private one",
        claim(door, BALANCER, CLIENT, right=CLIENT),
        "add the network that the connections come from; the access log shows it as peer",
    )  # fmt: skip


def _without_effect(door: Door) -> Iterator[Finding]:
    for network in networks_of(door.settings.trusted_ips):
        if network.version == 4 or parse_network(str(network)):
            continue
        ipv4 = ipaddress.ip_network((network.network_address.packed[-4:], network.prefixlen - 96))
        if is_within(ipv4, tuple(networks_of(door.settings.trusted_ips))):
            # Kong believes X-Forwarded-Proto of such a peer by this entry alone.
            continue
        yield Finding(
            "trust-without-effect", variable(door.settings, "trusted_ips"),
            f"{network} lies in {_MAPPED}, and nginx looks such addresses up among the IPv4 entries alone",
            claim(door, str(ipv4[min(5, ipv4.num_addresses - 1)]), CLIENT, right=CLIENT), f"write {ipv4}",
        )  # fmt: skip


def _nobody(door: Door) -> Iterator[Finding]:
    settings = door.settings
    given = [
        key
        for key in ("real_ip_header", "real_ip_recursive")
        # To switch off what is off has no effect either, and is no slip.
        if key in settings.given and (key == "real_ip_header" or settings.real_ip_recursive)
    ]
    if settings.trusted_ips or not (door.flagged or (given and door.is_http)):
        return
    code, example = "nobody-trusted", claim(door, BALANCER, CLIENT, right=CLIENT)
    problem = f"nobody is trusted, so {' and '.join(settings.given[key] for key in given)} has no effect"
    if door.flagged:
        code, example = "preamble-unused", ask(door, BALANCER, right=CLIENT, said=CLIENT)
        problem = (
            f"{variable(settings, door.key)} demands preambles and nobody is trusted, so they are not used"
        )
    yield Finding(
        code, variable(settings, "trusted_ips"), problem, example,
        "list the networks that the balancer connects from in KONG_TRUSTED_IPS, as in 10.0.0.0/8",
    )  # fmt: skip


def _unix_alone(door: Door) -> Iterator[Finding]:
    settings = door.settings
    over_tcp = [listen for listen in door.listens if not listen.is_unix]
    if set(settings.trusted_ips) != {UNIX} or not over_tcp or not door.reads_its_source:
        return
    yield Finding(
        "unix-alone", variable(settings, "trusted_ips"),
        f"only Unix sockets are trusted, and {over_tcp[0].address} is none",
        claim(door, BALANCER, CLIENT, right=CLIENT),
        "add the networks that the balancer connects from; where --uds is the only listener,"
        " KONG_PROXY_LISTEN=off",
    )  # fmt: skip


def _mapped_peers(door: Door) -> Iterator[Finding]:
    settings = door.settings
    listen = next((listen for listen in door.listens if "ipv6only=off" in listen.flags), None)
    peer = f"::ffff:{peer_of(door)}"
    if listen is None or door.header == PROXY_PROTOCOL or settings.forwarded_headers == OFF:
        return
    is_ipv4_alone = answer(door, peer).peer_trusted and not KongTrust(settings.trusted_ips).trusts(peer)
    if not is_ipv4_alone:
        return
    example = Example(
        "its header names the client, and the scheme stays http", peer, "", ("X-Forwarded-Proto: https",)
    )
    yield Finding(
        "mapped-peers", variable(settings, "proxy_listen"),
        f"{listen.address} with ipv6only=off has IPv4 peers as {peer}: their {door.header} counts by the"
        " IPv4 entries, and their X-Forwarded-Proto, an IPv6 address to Kong, does not",
        example, f"listen on 0.0.0.0:{listen.port} and, with ipv6only=on, on [::]:{listen.port}",
    )  # fmt: skip
