"""Findings about a Kubernetes Service: its annotations against the settings of what is behind it."""

from __future__ import annotations

from collections.abc import Iterator

from kongrealip.config.findings_model import (
    ATTACKER,
    BALANCER,
    CLIENT,
    FORGED,
    Door,
    Example,
    Finding,
    ask,
    claim,
    doors,
    peer_of,
    preamble_text,
    variable,
)
from kongrealip.config.findings_trust import PRIVATE, networks_of, overlap
from kongrealip.config.listen import Listen
from kongrealip.config.manifest_model import Plain, Service, Workload, number_of
from kongrealip.config.settings import Settings
from kongrealip.realip.resolve import PROXY_PROTOCOL

_BETA = "service.beta.kubernetes.io/"
_AWS = f"{_BETA}aws-load-balancer-"
_AWS_PROXY, _AWS_ATTRIBUTES = f"{_AWS}proxy-protocol", f"{_AWS}target-group-attributes"
# By what a provider's annotations begin with, those that ask for preambles.
_PROXY = {
    _AWS: (_AWS_PROXY,),
    f"{_BETA}do-loadbalancer-": (f"{_BETA}do-loadbalancer-enable-proxy-protocol",),
    f"{_BETA}scw-loadbalancer-": (
        f"{_BETA}scw-loadbalancer-proxy-protocol-v1",
        f"{_BETA}scw-loadbalancer-proxy-protocol-v2",
    ),
    "loadbalancer.openstack.org/": ("loadbalancer.openstack.org/proxy-protocol",),
    "load-balancer.hetzner.cloud/": ("load-balancer.hetzner.cloud/uses-proxyprotocol",),
    f"{_BETA}linode-loadbalancer-": (f"{_BETA}linode-loadbalancer-default-proxy-protocol",),
    f"{_BETA}azure-pls-": (f"{_BETA}azure-pls-proxy-protocol",),
}
_NO = ("", "false", "none", "no", "off")
_NETWORK_TYPES = ("external", "nlb", "nlb-ip")


def service_findings(service: Service, workload: Workload, settings: Settings) -> Iterator[Finding]:
    """What is wrong between a Service and one container that it selects."""
    yield from _value(service)
    asking = _asking(service)
    for door in doors(settings):
        listens = _listens_of(service, workload, door)
        if asking and listens:
            yield from _without_flag(service, asking, door, listens)
            yield from _aws_range(service, door)
        elif listens:
            yield from _without_annotation(service, door, listens)
        if door.is_http and not asking:
            yield from _lost_source(service, door)


def _asking(service: Service) -> str:
    """The annotation that has the balancer write preambles, or ""."""
    for names in _PROXY.values():
        for name in names:
            value = service.text(name).lower()
            if value not in _NO and (name != _AWS_PROXY or value == "*"):
                return name
    is_attribute = "proxy_protocol_v2.enabled=true" in service.text(_AWS_ATTRIBUTES).replace(" ", "")
    return _AWS_ATTRIBUTES if is_attribute else ""


def _listens_of(service: Service, workload: Workload, door: Door) -> list[Listen]:
    """The listeners that the Service leads to. Where that is not said, it is clear if they are all alike."""
    ports = {number_of(target) or workload.ports.get(target) for target in service.targets}
    if ports and None not in ports:
        return [listen for listen in door.listens if listen.port in ports]
    return list(door.listens) if len({listen.proxy_protocol for listen in door.listens}) == 1 else []


def _value(service: Service) -> Iterator[Finding]:
    for names in _PROXY.values():
        for name in names:
            value = service.annotations.get(name)
            variable_name = f"{name} in {service.where}"
            if isinstance(value, Plain | bool):
                yield Finding(
                    "annotation-value", variable_name,
                    f"{value} without quotes is no text, and Kubernetes refuses the Service",
                    Example("no request arrives"), f'write "{value}"',
                )  # fmt: skip
            elif name == _AWS_PROXY and value is not None and value != "*":
                yield Finding(
                    "annotation-value", variable_name,
                    f"{value!r} is not \"*\", the only value there is, so that no preamble is sent",
                    Example(f"the client is {BALANCER}, the balancer", BALANCER), 'write "*"',
                )  # fmt: skip


def _without_flag(service: Service, asking: str, door: Door, listens: list[Listen]) -> Iterator[Finding]:
    for listen in listens:
        if listen.proxy_protocol:
            continue
        yield Finding(
            "annotation-without-flag", f"{asking} in {service.where}",
            f"the balancer writes a preamble to {listen.address}, which has no flag proxy_protocol, so that"
            " every request fails",
            Example("gets 400, for a preamble is no request", BALANCER, preamble_text(CLIENT, door)),
            f'write "{listen.address} proxy_protocol" in {variable(door.settings, door.key)}, and'
            " KONG_REAL_IP_HEADER=proxy_protocol",
        )  # fmt: skip


def _without_annotation(service: Service, door: Door, listens: list[Listen]) -> Iterator[Finding]:
    """Only of providers whose annotation is known: others are told elsewhere."""
    known = [
        (prefix, names[-1])
        for prefix, names in _PROXY.items()
        if any(name.startswith(prefix) for name in service.annotations)
    ]
    flagged = [listen for listen in listens if listen.proxy_protocol]
    if (
        service.kind != "LoadBalancer"
        or not known
        or not flagged
        or door.settings.proxy_protocol_optional_from
    ):
        return
    name = known[0][1]
    value = "*" if name == _AWS_PROXY else "true"
    yield Finding(
        "flag-without-annotation", f"{name} in {service.where}",
        f"{flagged[0].address} demands a preamble, and nothing asks the balancer for one, so that every"
        " connection is closed",
        Example("the connection is closed without an answer", BALANCER, "", ("GET / HTTP/1.1",)),
        f'annotate {name}: "{value}", or take the flag away',
    )  # fmt: skip


def _aws_range(service: Service, door: Door) -> Iterator[Finding]:
    trusted = networks_of(door.settings.trusted_ips)
    is_aws = any(name.startswith(_AWS) for name in service.annotations)
    if is_aws and trusted and door.reads_its_source and not overlap(trusted, PRIVATE):
        yield Finding(
            "balancer-range-missing", f"KONG_TRUSTED_IPS behind {service.where}",
            "the balancer connects from its subnets in the VPC, and no private network is trusted",
            claim(door, BALANCER, CLIENT, right=CLIENT), "list the CIDR blocks of the balancer's subnets",
        )  # fmt: skip


def _lost_source(service: Service, door: Door) -> Iterator[Finding]:
    """The client's address does not survive the way, and no preamble tells of it."""
    is_ip_target = _is_ip_target(service)
    if service.kind not in ("LoadBalancer", "NodePort") or _keeps_source(service, is_ip_target):
        return
    reads_header = bool(door.settings.trusted_ips) and door.header != PROXY_PROTOCOL
    if _is_network_balancer(service) and reads_header:
        yield _header_behind_l4(service, door)
    elif door.settings.trusted_ips or door.flagged:
        # Some balancer in front that is not in these files may name the client.
        return
    elif is_ip_target:
        yield Finding(
            "ip-target-without-preservation", f"{_AWS}nlb-target-type in {service.where}",
            "with ip targets the balancer connects from its own address, unless told to keep the client's",
            Example(f"the client is {BALANCER}, the balancer, and should be {CLIENT}", BALANCER),
            f'annotate {_AWS_ATTRIBUTES}: preserve_client_ip.enabled=true, or {_AWS_PROXY}: "*" with'
            " KONG_REAL_IP_HEADER=proxy_protocol",
        )  # fmt: skip
    else:
        yield Finding(
            "cluster-policy", f"externalTrafficPolicy in {service.where}",
            "with Cluster, the default, connections come from a node's address, and nothing names the client",
            Example(f"the client is {BALANCER}, a node, and should be {CLIENT}", BALANCER),
            "set externalTrafficPolicy: Local, or have the balancer write preambles or a header, and list"
            " whom to believe in KONG_TRUSTED_IPS",
        )  # fmt: skip


def _is_network_balancer(service: Service) -> bool:
    return service.text(f"{_AWS}type") in _NETWORK_TYPES


def _is_ip_target(service: Service) -> bool:
    kind, target = service.text(f"{_AWS}type"), service.text(f"{_AWS}nlb-target-type")
    return kind == "nlb-ip" or (kind == "external" and target == "ip")


def _keeps_source(service: Service, is_ip_target: bool) -> bool:
    if is_ip_target:
        return "preserve_client_ip.enabled=true" in service.text(_AWS_ATTRIBUTES).replace(" ", "")
    return service.policy == "Local"


def _header_behind_l4(service: Service, door: Door) -> Finding:
    header = f"{door.header}: {FORGED}"
    return Finding(
        "header-behind-l4", f"KONG_REAL_IP_HEADER behind {service.where}",
        f"this balancer works below HTTP: {door.header} is what the client wrote, and it is believed of"
        " whoever passes it on",
        ask(door, peer_of(door), header, right=ATTACKER),
        f'annotate {_AWS_PROXY}: "*", with the flag proxy_protocol on the listeners and'
        " KONG_REAL_IP_HEADER=proxy_protocol",
    )  # fmt: skip
