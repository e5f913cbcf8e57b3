"""An Ingress that a cloud's balancer serves, and a proxy beside a service of a compose file."""

from __future__ import annotations

import pytest

from kongrealip import Settings
from kongrealip.config.findings_manifest import manifest_findings
from tests.test_check import CLIENT
from tests.test_manifest import (
    GOOGLE,
    INSIDE,
    L4,
    L7,
    MODE,
    NLB,
    PEER,
    SUBNET,
    compose,
    deployment,
    ingress,
    manifest,
    service,
)
from tests.test_manifest_balancers import codes, only

FORGED = "6.6.6.6"
NOT_SENT = L7.replace("X-Forwarded-For", "X-Real-IP")


def behind(kind: str, environ: str, *annotations: str) -> str:
    return deployment(environ) + service(spec=INSIDE) + ingress(kind, *annotations)


@pytest.mark.parametrize("kind", ["alb", "gce", "gce-internal"])
@pytest.mark.parametrize("header", ["X-Real-IP", "x-real-ip"])
def test_what_an_http_balancer_does_not_send(header: str, kind: str) -> None:
    environ = L7.replace("X-Forwarded-For", header)
    found = only("header-not-sent", behind(kind, environ))
    assert found.variable == "KONG_REAL_IP_HEADER behind app.yaml, document 3, Ingress web"
    assert found.fix == "set KONG_REAL_IP_HEADER=X-Forwarded-For"
    assert found.example.client == FORGED, "the client's own line"
    assert codes(behind("nginx", environ)) == set()


def test_behind_an_http_balancer_no_preamble_comes() -> None:
    example = only("header-not-sent", behind("alb", L4)).example
    assert example.client == example.peer
    assert example.headers == (f"X-Forwarded-For: {CLIENT}",)


@pytest.mark.parametrize("others", ["", "idle_timeout.timeout_seconds=9, "])
@pytest.mark.parametrize(("mode", "client"), [("preserve", FORGED), ("remove", "10.0.0.5")])
def test_modes_of_a_balancer(mode: str, client: str, others: str) -> None:
    annotation = MODE.replace(": ", f": {others}") + f"={mode}"
    found = only("header-not-appended", behind("alb", L7, annotation))
    assert found.variable == f"{MODE.partition(':')[0]} in app.yaml, document 3, Ingress web"
    assert f"in mode {mode} " in found.problem
    assert found.example.client == client
    assert found.fix.startswith("set routing.http.xff_header_processing.mode=append")
    assert codes(behind("nginx", L7, annotation)) == {"header-not-appended"}, (
        "it is one of AWS by its annotations"
    )


def test_the_letter_case_of_the_header_is_another_matter() -> None:
    environ = L7.replace("X-Forwarded-For", "x-forwarded-for")
    assert "header-not-appended" in codes(behind("alb", environ, f"{MODE}=remove"))
    assert "google-without-recursive" in codes(behind("gce", environ))


def test_the_kind_may_be_an_annotation() -> None:
    text = behind("other", NOT_SENT, "kubernetes.io/ingress.class: alb")
    assert codes(text.replace("ingressClassName: other", "")) == {"header-not-sent"}
    assert codes(text) == set(), "the field counts"


RANGES = ("35.191.0.0/16", "130.211.0.0/22")


@pytest.mark.parametrize("missing", [RANGES, RANGES[:1], RANGES[1:]])
def test_googles_ranges_that_are_missing(missing: tuple[str, ...]) -> None:
    trusted = ",".join([*(network for network in RANGES if network not in missing), "203.0.113.80"])
    environ = GOOGLE.replace("35.191.0.0/16,130.211.0.0/22,203.0.113.80", trusted)
    found = only("balancer-range-missing", behind("gce", environ))
    assert found.variable == "KONG_TRUSTED_IPS behind app.yaml, document 3, Ingress web"
    assert f" {' and '.join(missing)} too" in found.problem
    assert found.fix.startswith(f"add {', '.join(missing)} and ")
    assert found.example.peer == missing[0].rpartition(".")[0] + ".5"
    assert found.example.headers == (f"X-Forwarded-For: {CLIENT}, 198.51.100.10",)
    assert (found.example.client, found.example.right) == (found.example.peer, CLIENT)
    assert "balancer-range-missing" not in codes(behind("gce-internal", environ)), (
        "proxies inside of the network"
    )


def test_googles_own_address() -> None:
    without = GOOGLE.replace(",203.0.113.80", "")
    found = only("balancer-range-missing", behind("gce", without))
    assert found.variable == "KONG_TRUSTED_IPS behind app.yaml, document 3, Ingress web"
    assert found.example.client == "198.51.100.10"
    assert codes(behind("gce", GOOGLE)) == set()
    # Inside of the network its own address is private as well.
    assert (
        codes(behind("gce-internal", without.replace("35.191.0.0/16,130.211.0.0/22", "10.0.0.0/8"))) == set()
    )


@pytest.mark.parametrize("kind", ["gce", "gce-internal"])
@pytest.mark.parametrize("own", [",203.0.113.80", ""])
def test_google_without_recursive(own: str, kind: str) -> None:
    text = behind(kind, GOOGLE.replace("=on", "=off").replace(",203.0.113.80", own))
    found = only("google-without-recursive", text)
    assert codes(text) == {"google-without-recursive"}
    assert found.variable == "KONG_REAL_IP_RECURSIVE behind app.yaml, document 3, Ingress web"
    assert found.example.client == "198.51.100.10"
    assert found.fix.startswith("set KONG_REAL_IP_RECURSIVE=on, ")


def test_settings_from_a_file_are_told_with_it() -> None:
    """Nothing in these files is the container, and so the settings are those that the command was given."""
    text = service(spec=INSIDE) + ingress("gce")
    for conf, code, key in (
        ("trusted_ips = 203.0.113.80", "balancer-range-missing", "trusted_ips"),
        ("trusted_ips = 35.191.0.0/16, 130.211.0.0/22", "balancer-range-missing", "trusted_ips"),
        (
            "trusted_ips = 10.0.0.0/8\nreal_ip_recursive = off",
            "google-without-recursive",
            "real_ip_recursive",
        ),
        ("trusted_ips = 10.0.0.0/8\nreal_ip_header = X-Real-IP", "header-not-sent", "real_ip_header"),
    ):
        header = "" if "real_ip_header" in conf else "\nreal_ip_header = X-Forwarded-For"
        recursive = "" if "recursive" in conf else "\nreal_ip_recursive = on"
        found = manifest_findings(manifest(text), Settings.load({}, conf + header + recursive))
        assert f"{key} in kong.conf behind app.yaml, document 2, Ingress web" in [
            finding.variable for finding in found if finding.code == code
        ]


def test_an_ingress_is_held_against_what_it_leads_to() -> None:
    text = behind("alb", NOT_SENT)
    assert codes(text) == {"header-not-sent"}
    both = behind("alb", NOT_SENT).replace(
        "metadata:\n  name: web\n  annotations: {}", f"metadata:\n  name: web\n  annotations: {{{NLB}}}", 1
    )
    assert codes(both.replace("type: ClusterIP", "type: LoadBalancer")) == {
        "header-not-sent",
        "header-behind-l4",
    }
    assert len(manifest(f"{text}---{text}").ingresses) == 2
    default = text.partition("  rules: ")[0] + "  defaultBackend: {service: {name: web}}\n"
    assert codes(default) == {"header-not-sent"}
    assert codes(text.replace("service: {name: web,", "service: {name: other,")) == set()
    elsewhere = text.replace("kind: Ingress\nmetadata:", "kind: Ingress\nmetadata:\n  namespace: other")
    assert codes(elsewhere) == set()
    assert codes(behind("alb", PEER)) == set(), "nobody is trusted, so that no header is read"
    relay = NOT_SENT.replace("KONG_REAL_IP_HEADER=X-Real-IP; KONG_PROXY_LISTEN", "KONG_STREAM_LISTEN")
    assert codes(behind("alb", relay)) == set(), "it reads no header"


# --- compose ----------------------------------------------------------------------------------

ELSEWHERE = L7.replace("10.0.0.0/8", "127.0.0.1")


def test_the_network_beside() -> None:
    found = only("balancer-range-missing", compose(ELSEWHERE, networks=SUBNET))
    assert found.variable == "KONG_TRUSTED_IPS in app.yaml, document 1, service app"
    assert "their network, 10.203.0.0/24, " in found.problem
    assert found.example.peer == "10.203.0.2", "the first is the gateway's"
    one = SUBNET.replace("10.203.0.0/24", "10.203.0.9/32")
    assert only("balancer-range-missing", compose(ELSEWHERE, networks=one)).example.peer == "10.203.0.9"
    pair = SUBNET.replace("10.203.0.0/24", "10.203.0.8/31")
    assert only("balancer-range-missing", compose(ELSEWHERE, networks=pair)).example.peer == "10.203.0.9"
    two = SUBNET.replace("}]}}}", "}, {subnet: 10.204.0.1/24}]}}}")
    assert (
        "10.203.0.0/24, 10.204.0.0/24, "
        in only("balancer-range-missing", compose(ELSEWHERE, networks=two)).problem
    )
    assert codes(compose(L7.replace("10.0.0.0/8", "10.204.0.0/24"), networks=two)) == set(), (
        "one of them will do"
    )
    unknown = only("balancer-range-missing", compose(ELSEWHERE))
    assert "one of Docker's" in unknown.problem
    assert unknown.example.peer == "10.0.0.2"
    assert codes(compose(PEER)) == set(), "nobody is trusted"


@pytest.mark.parametrize("private", ["10.1.0.0/16", "172.18.0.0/16", "192.168.1.0/24"])
def test_without_a_subnet_any_that_docker_takes_will_do(private: str) -> None:
    assert codes(compose(L7.replace("10.0.0.0/8", private))) == set()


@pytest.mark.parametrize(
    ("image", "is_proxy"),
    [("haproxy:2.8", True), ("docker.io/library/nginx", True), ("envoyproxy/envoy:v1", True), ("traefik", True),
     ("caddy:2", True), ("${IMAGE:-haproxy}", True), ("kong/kong-gateway:3", True), ("postgres:17", False),
     ("nginx.example/app", False), ("${IMAGE}", False)],
)  # fmt: skip
def test_images_of_proxies(image: str, is_proxy: bool) -> None:
    assert ("balancer-range-missing" in codes(compose(ELSEWHERE, proxy=image))) == is_proxy


@pytest.mark.parametrize(
    ("networks", "is_beside"),
    [("[a]", True), ("{a: {}}", True), ("[b, a]", True), ("[b]", False), ("[default]", False), ("[]", False)],
)
def test_who_is_in_another_network_is_not_beside(networks: str, is_beside: bool) -> None:
    text = compose(ELSEWHERE, more=", networks: [a]").replace('2.8"', f'2.8", networks: {networks}')
    assert ("balancer-range-missing" in codes(text)) == is_beside
    default = compose(ELSEWHERE).replace('2.8"', f'2.8", networks: {networks}')
    assert ("balancer-range-missing" in codes(default)) == (networks in ("[default]", "[]"))


def test_the_subnets_of_its_own_networks_count() -> None:
    networks = "networks: {a: {ipam: {config: [{subnet: 10.1.0.0/24}]}}, b: {ipam: {config: [{subnet: 10.2.0.0/24}]}}}"
    text = compose(ELSEWHERE, more=", networks: [b]", networks=networks).replace(
        '2.8"', '2.8", networks: [a, b]'
    )
    assert "their network, 10.2.0.0/24, " in only("balancer-range-missing", text).problem
