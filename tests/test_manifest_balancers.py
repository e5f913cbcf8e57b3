"""A Service in front of containers: each provider's words, what does not matter, and fixes that are fixes."""

from __future__ import annotations

import re

import pytest

from kongrealip import Settings
from kongrealip.config.findings import Finding
from kongrealip.config.findings_manifest import manifest_findings
from tests.test_check import CLIENT, NAMES, client_of
from tests.test_manifest import (
    AWS,
    CLUSTER,
    IDS,
    IP,
    L4,
    L7,
    LOCAL,
    NLB,
    PEER,
    PLANTED,
    PROXY,
    deployment,
    manifest,
    service,
)

ATTACKER = "203.0.113.66"
# The fault is in what the balancer does, and no request is answered, or none is put to the settings.
NOT_OF_ADDRESSES = {
    "annotation-without-flag", "flag-without-annotation", "annotation-value", "cluster-policy", "invalid",
    "ip-target-without-preservation", "probe-without-preamble", "unknown-value", "misspelt-name",
    "source-without-flag", "believed-forwarded-proto", "all-listeners-flagged",
}  # fmt: skip
BETA = "service.beta.kubernetes.io/"
#: What a balancer is called in annotations, and how it is asked for preambles.
PROVIDERS = {
    f"{AWS}-type: external": f"{AWS}-proxy-protocol: '*'",
    f"{BETA}do-loadbalancer-name: a": f"{BETA}do-loadbalancer-enable-proxy-protocol: 'true'",
    f"{BETA}scw-loadbalancer-zone: a": f"{BETA}scw-loadbalancer-proxy-protocol-v2: 'true'",
    "loadbalancer.openstack.org/flavor: a": "loadbalancer.openstack.org/proxy-protocol: 'true'",
    "load-balancer.hetzner.cloud/name: a": "load-balancer.hetzner.cloud/uses-proxyprotocol: 'true'",
    f"{BETA}linode-loadbalancer-tags: a": f"{BETA}linode-loadbalancer-default-proxy-protocol: 'true'",
    f"{BETA}azure-pls-name: a": f"{BETA}azure-pls-proxy-protocol: 'true'",
}


def found_in(*texts: str) -> list[Finding]:
    return manifest_findings(manifest(*texts))


def codes(*texts: str) -> set[str]:
    return {finding.code for finding in found_in(*texts)}


def only(code: str, *texts: str) -> Finding:
    (finding,) = (finding for finding in found_in(*texts) if finding.code == code)
    return finding


@pytest.mark.parametrize(("code", "faulty", "right"), PLANTED, ids=IDS)
def test_the_example_shows_the_fault(code: str, faulty: str, right: str) -> None:
    for finding in found_in(faulty):
        example = finding.example
        assert isinstance(example.preamble, str)
        if finding.code in NOT_OF_ADDRESSES:
            assert example.client is example.right is None
            assert example.peer in ("", "10.0.0.5")
        else:
            settings = Settings.load(manifest(faulty).workloads[0].environ)
            assert client_of(finding, settings) == example.client != example.right
            # Below HTTP nothing tells of the client.
            honest = {ATTACKER} if finding.code == "header-behind-l4" else {CLIENT, example.peer}
            assert example.right in honest


@pytest.mark.parametrize(("code", "faulty", "right"), PLANTED, ids=IDS)
def test_the_name_is_one_that_can_be_set(code: str, faulty: str, right: str) -> None:
    for finding in found_in(faulty):
        name = re.split(" in | behind ", finding.variable)[0]
        if name.startswith("KONG") and finding.code != "misspelt-name":
            assert name in NAMES


@pytest.mark.parametrize(("name", "asking"), PROVIDERS.items())
def test_each_provider_is_asked_in_its_own_words(name: str, asking: str) -> None:
    assert codes(deployment(L4) + service(name, asking)) == set()
    found = only("annotation-without-flag", deployment(L7) + service(asking))
    assert found.variable.startswith(f"{asking.partition(': ')[0]} in ")
    found = only("flag-without-annotation", deployment(L4) + service(name))
    annotation = re.search(r'annotate (\S+: ".*?")', found.fix)
    assert annotation
    assert annotation[1].replace('"', "'") == asking


def test_one_provider_knows_both_versions() -> None:
    first = service(f"{BETA}scw-loadbalancer-proxy-protocol-v1: 'true'")
    assert codes(deployment(L7) + first) == {"annotation-without-flag"}


@pytest.mark.parametrize("word", ["", "false", "False", "none", "no", "off"])
def test_words_that_do_not_ask(word: str) -> None:
    name = f"{BETA}linode-loadbalancer-default-proxy-protocol: '{word}'"
    assert codes(deployment(L7) + service(name)) == set()
    assert codes(deployment(L4) + service(name)) == {"flag-without-annotation"}


@pytest.mark.parametrize("word", ["v2", "true", "on"])
def test_words_that_ask(word: str) -> None:
    name = f"{BETA}linode-loadbalancer-default-proxy-protocol: '{word}'"
    assert codes(deployment(L4) + service(name)) == set()


def test_an_attribute_among_others() -> None:
    attributes = f"{AWS}-target-group-attributes: 'deregistration_delay=9, proxy_protocol_v2.enabled = true'"
    assert codes(deployment(L4) + service(NLB, attributes)) == set()
    found = only("annotation-without-flag", deployment(L7) + service(NLB, attributes))
    assert found.variable.startswith(f"{AWS}-target-group-attributes in ")
    kept = f"{AWS}-target-group-attributes: 'a=b, preserve_client_ip.enabled = true'"
    assert codes(deployment(PEER) + service(NLB, IP, kept)) == set()


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_without_a_balancer_no_annotation_is_missing(kind: str) -> None:
    assert codes(deployment(L4) + service(NLB, spec=f"type: {kind}")) == set()


def test_a_kind_that_is_not_told_is_inside_the_cluster() -> None:
    assert codes(deployment(PEER) + service(spec="internalTrafficPolicy: Cluster")) == set()
    found = only("cluster-policy", deployment(PEER) + service(spec="type: NodePort"))
    assert "with Cluster, " in found.problem, "spelt as it is written there"
    assert found.fix.startswith("set externalTrafficPolicy: Local, ")


@pytest.mark.parametrize("kind", ["external", "nlb", "nlb-ip"])
def test_balancers_below_http(kind: str) -> None:
    assert codes(deployment(L7) + service(f"{AWS}-type: {kind}")) == {"header-behind-l4"}


def test_a_balancer_of_requests_may_name_the_client() -> None:
    assert codes(deployment(L7) + service(f"{AWS}-type: clb", spec=CLUSTER)) == set()


def test_ip_targets_are_of_one_kind_of_balancer_alone() -> None:
    """Elsewhere the annotation has no effect, and the policy counts."""
    assert codes(deployment(PEER) + service(f"{AWS}-type: nlb", IP)) == {"cluster-policy"}
    assert codes(deployment(PEER) + service(f"{AWS}-type: nlb", IP, spec=LOCAL)) == set()
    assert codes(deployment(PEER) + service(NLB, f"{AWS}-nlb-target-type: instance")) == {"cluster-policy"}
    assert codes(deployment(PEER) + service(f"{AWS}-type: nlb-ip")) == {"ip-target-without-preservation"}


BOTH = L4.replace("8000 proxy_protocol", "8000 proxy_protocol, 0.0.0.0:8100")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http", set()),
        ("8000", set()),
        ("status", {"annotation-without-flag"}),
        ("8100", {"annotation-without-flag"}),
        # Where it leads to is not said, and the listeners differ.
        ("elsewhere", set()),
        ("9999", set()),
    ],
)
def test_the_listener_that_the_target_leads_to(target: str, expected: set[str]) -> None:
    assert codes(deployment(BOTH) + service(NLB, PROXY, target=target)) == expected


def test_each_listener_that_is_led_to_counts() -> None:
    two = service(NLB, PROXY).replace(
        "targetPort: http}", "targetPort: http}, {port: 81, targetPort: status}"
    )
    assert (
        "to 0.0.0.0:8100, which has no flag"
        in only("annotation-without-flag", deployment(BOTH) + two).problem
    )


def test_a_target_of_no_name_leads_to_listeners_that_are_alike() -> None:
    text = service(NLB, PROXY, target="elsewhere")
    assert codes(deployment(L7) + text) == {"annotation-without-flag"}
    assert codes(deployment(L4) + text) == set()
    without = service(NLB, PROXY).replace("ports: [{port: 80, targetPort: http}]", "")
    assert codes(deployment(L7) + without) == {"annotation-without-flag"}


def test_a_port_without_target_is_its_own() -> None:
    text = service(NLB, PROXY).replace("{port: 80, targetPort: http}", "{port: 8100}")
    assert codes(deployment(BOTH) + text) == {"annotation-without-flag"}
    udp = text.replace("{port: 8100}", "{port: 8000, protocol: TCP}, {port: 8100, protocol: UDP}")
    assert codes(deployment(BOTH) + udp) == set(), "of TCP alone"


def test_values_without_quotes_and_of_no_meaning() -> None:
    plain = service(f"{BETA}do-loadbalancer-enable-proxy-protocol: false")
    found = only("annotation-value", deployment(L7) + plain)
    assert found.problem.startswith("false without quotes")
    assert found.fix == 'write "false"'
    assert found.variable.startswith(f"{BETA}do-loadbalancer-enable-proxy-protocol in app.yaml, document 2, ")
    found = only("annotation-value", deployment(PEER) + service(f"{AWS}-proxy-protocol: 'yes'", spec=LOCAL))
    assert found.problem.startswith("'yes' is not \"*\"")
    assert found.fix == 'write "*"'
    # Of others any word asks, but for those that say no.
    word = service(f"{BETA}scw-loadbalancer-proxy-protocol-v2: 'web'")
    assert codes(deployment(L4) + word) == set()


def test_the_balancers_subnets() -> None:
    public = deployment(L4.replace("10.0.0.0/8", "203.0.113.80"))
    example = only("balancer-range-missing", public + service(NLB, PROXY)).example
    assert example.preamble == f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8000"
    others = service(f"{BETA}scw-loadbalancer-proxy-protocol-v2: 'true'")
    for trusted, is_missing in {"203.0.113.80": True, "203.0.113.80,172.31.0.0/16": False}.items():
        text = deployment(L4.replace("10.0.0.0/8", trusted))
        assert ("balancer-range-missing" in codes(text + service(NLB, PROXY))) == is_missing
        assert "balancer-range-missing" not in codes(text + others), "AWS alone connects from there for sure"
    assert "balancer-range-missing" not in codes(deployment(PEER) + service(NLB, PROXY)), "nobody is trusted"


def test_what_a_service_selects() -> None:
    asking = service(NLB, PROXY)
    assert codes(deployment(L7) + asking.replace("selector: {app: web}", "")) == set(), "nothing"
    both = asking.replace("{app: web}", "{app: web, tier: x}")
    assert codes(deployment(L7) + both) == set(), "all labels count"
    more = deployment(L7).replace("labels: {app: web}", "labels: {app: web, tier: x}")
    assert codes(more + both) == codes(more + asking) == {"annotation-without-flag"}


def test_a_probe_of_any_kind() -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        text = deployment(L4, probe="8000").replace("readinessProbe", name)
        found = only("probe-without-preamble", text)
        assert found.variable == f"{name} in app.yaml, document 1, container web"
        assert "asks port 8000," in found.problem
    for port in ("8100", "status", "nobody", "'80000'"):
        assert codes(deployment(L4, probe=port)) == set()
    assert codes(deployment(L4.replace(":8000", ":1"), probe="nobody")) == set()
