"""What a finding is, and the request that shows it.

An example is not prose: it is put to :func:`kongrealip.realip.resolve.resolve` under the settings in
question, and what it tells is what came out.
"""

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from kongrealip.address import Address
from kongrealip.config.listen import Listen
from kongrealip.config.names import READ_OF_OURS
from kongrealip.config.settings import Settings
from kongrealip.preamble import Preamble
from kongrealip.realip.networks import UNIX, TrustedNetworks, parse_network
from kongrealip.realip.resolve import PROXY_PROTOCOL, Resolution, Rules, resolve

#: It does not work, or anybody can forge; it is wrong unless something outside makes it right; worth a look.
ERROR, WARNING, HINT = "error", "warning", "hint"
#: Every code there is. A code is never given another meaning.
SEVERITIES: Mapping[str, str] = {
    "invalid": ERROR,
    "misspelt-name": WARNING,
    "not-read-here": WARNING,
    "trust-everybody": WARNING,
    "trust-everybody-recursive": ERROR,
    "trust-public-range": WARNING,
    "trust-without-effect": WARNING,
    "nobody-trusted": WARNING,
    "preamble-unused": WARNING,
    "unix-alone": WARNING,
    "no-private-range": HINT,
    "mapped-peers": WARNING,
    "header-letter-case": WARNING,
    "header-for-preamble": ERROR,
    "header-rfc7239": ERROR,
    "header-unknown": WARNING,
    "source-without-flag": ERROR,
    "flag-without-source": WARNING,
    "believed-forwarded-proto": WARNING,
    "all-listeners-flagged": HINT,
    "no-effect": WARNING,
    "preamble-longer-than-nginx": WARNING,
    "port-map-without-listener": WARNING,
    "port-map-twice": WARNING,
    "annotation-without-flag": ERROR,
    "flag-without-annotation": ERROR,
    "annotation-value": ERROR,
    "cluster-policy": WARNING,
    "ip-target-without-preservation": ERROR,
    "header-behind-l4": WARNING,
    "header-not-sent": ERROR,
    "header-not-appended": ERROR,
    "balancer-range-missing": WARNING,
    "google-without-recursive": ERROR,
    "probe-without-preamble": ERROR,
    "unknown-value": HINT,
}

#: Who plays in the examples. The forged address belongs to nobody who is asked.
BALANCER, CLIENT, ATTACKER, FORGED = "10.0.0.5", "203.0.113.7", "203.0.113.66", "6.6.6.6"
_BALANCERS = (BALANCER, "172.16.0.5", "192.168.0.5", "127.0.0.1", "fd00::5")
_BALANCERS_PORT, _CLIENTS_PORT = 40000, 51000
# Where an entry is a network, the balancer is not its first address.
_PLACE_IN_NETWORK = 5


class Example(NamedTuple):
    """A request and what becomes of it.

    ``client`` is who the settings say it is from, ``right`` who it is from; both are None where the
    request gets no answer, or where the fault is not in the address. ``peer`` is empty where any
    request will do. ``headers`` are lines, ``preamble`` is that of version 1 without its end.
    """

    outcome: str
    peer: str = ""
    preamble: str = ""
    headers: tuple[str, ...] = ()
    client: str | None = None
    right: str | None = None

    def __str__(self) -> str:
        if not self.peer:
            return self.outcome
        sent = " and ".join(part for part in (self.preamble, *self.headers) if part)
        return f"{self.peer} sends {sent or 'a plain request'}: {self.outcome}"


class Finding(NamedTuple):
    """Something that is probably not what the operator wants.

    ``variable`` is the name it was set by, with its file where that was one. Severity is the code's.
    """

    code: str
    variable: str
    problem: str
    example: Example
    fix: str

    @property
    def severity(self) -> str:
        return SEVERITIES[self.code]


class Door(NamedTuple):
    """One way in: the listeners of serve and proxy, those of the relay, or another server's.

    Another server has no ``listens`` that are known of here.
    """

    settings: Settings
    key: str
    listens: tuple[Listen, ...]
    header: str

    @property
    def is_http(self) -> bool:
        return self.key == "proxy_listen"

    @property
    def is_elsewhere(self) -> bool:
        return not self.listens

    @property
    def flagged(self) -> tuple[Listen, ...]:
        return tuple(listen for listen in self.listens if listen.proxy_protocol)

    @property
    def reads_preambles(self) -> bool:
        return self.is_elsewhere or bool(self.flagged)

    @property
    def means_preamble(self) -> bool:
        """Whether the header is ``proxy_protocol``, rightly spelt or not."""
        return self.header.lower().replace("-", "").replace("_", "") == "proxyprotocol"

    @property
    def reads_its_source(self) -> bool:
        """Whether there is something to forge: where no preamble is read, there is none."""
        return self.header != PROXY_PROTOCOL or self.reads_preambles

    @property
    def networks(self) -> TrustedNetworks:
        return TrustedNetworks(self.settings.trusted_ips)


def doors(settings: Settings) -> list[Door]:
    """The ways in that are used. Where the relay's listeners alone were set, nobody asked for HTTP."""
    relay = Door(settings, "stream_listen", settings.stream_listen, PROXY_PROTOCOL)
    web = Door(settings, "proxy_listen", settings.proxy_listen, settings.real_ip_header)
    if not settings.stream_listen:
        return [web]
    asked = "proxy_listen" in settings.given or "real_ip_header" in settings.given
    return [web, relay] if asked and settings.proxy_listen else [relay]


def variable(settings: Settings, key: str) -> str:
    """The name that a key was set by, or would be."""
    prefix = "KONGREALIP_" if key in READ_OF_OURS else "KONG_"
    return settings.given.get(key, prefix + key.upper())


def trusted_peer(networks: TrustedNetworks, entries: tuple[str, ...]) -> str:
    """An address that is trusted, a balancer's if there is one, or the one that should be."""
    for address in _BALANCERS:
        if networks.covers(parse_network(address)[0][0]):
            return address
    for entry in entries:
        if entry != UNIX and parse_network(entry):
            network = ipaddress.ip_network(entry, strict=False)
            return str(network[_PLACE_IN_NETWORK if network.num_addresses > _PLACE_IN_NETWORK else 0])
    return UNIX if networks.unix else BALANCER


def peer_of(door: Door) -> str:
    """Who sends the examples of a door."""
    return trusted_peer(door.networks, door.settings.trusted_ips)


def believes_somebody(door: Door) -> bool:
    """Whether there is anybody who is trusted: an entry may cover nobody."""
    return answer(door, peer_of(door)).peer_trusted


def ask(door: Door, peer: str, *headers: str, right: str, said: str = "") -> Example:
    """Put a request to the settings. ``said`` is the source of the preamble, if there is one."""
    resolution = answer(door, peer, *headers, said=said)
    text = preamble_text(said, door) if said else ""
    client = resolution.client.ip
    outcome = (
        f"the client is {client}" if client == right else f"the client is {client}, and should be {right}"
    )
    return Example(outcome, peer, text, headers, client, right)


def claim(door: Door, peer: str, address: str, right: str) -> Example:
    """A peer names an address in the way that is read here."""
    if door.header == PROXY_PROTOCOL:
        return ask(door, peer, right=right, said=address if door.reads_preambles else "")
    return ask(door, peer, f"{door.header}: {address}", right=right)


def answer(door: Door, peer: str, *headers: str, said: str = "") -> Resolution:
    """Who the client of that request is."""
    rules = Rules(door.networks, door.header, door.settings.real_ip_recursive)
    pairs = [header.split(": ", 1) for header in headers]
    lines = [value.encode() for name, value in pairs if name.lower() == door.header.lower()]
    # An address is all that counts of it.
    preamble = Preamble(1, "PROXY", said, _CLIENTS_PORT) if said and door.reads_preambles else None
    return resolve(rules, Address(peer, _BALANCERS_PORT), preamble, lines)


def preamble_text(source: str, door: Door) -> str:
    """A preamble of version 1 as it is sent to that door."""
    port = (door.flagged or door.listens or (Listen("", 8000),))[0].port
    family, here = ("6", "fd00::9") if ":" in source else ("4", "10.0.0.9")
    return f"PROXY TCP{family} {source} {here} {_CLIENTS_PORT} {port}"
