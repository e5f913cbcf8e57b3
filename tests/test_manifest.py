"""Manifests: what is read of them, faults planted between annotations and environment, and no YAML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongrealip import Settings
from kongrealip.config.findings import HINT, Finding
from kongrealip.config.findings_manifest import has_settings, manifest_findings
from kongrealip.config.manifest import Document, Manifest, read_manifest
from kongrealip.config.manifest_compose import interpolated
from kongrealip.config.manifest_yaml import load_documents
from kongrealip.errors import StartError
from tests.test_check import OF_MANIFESTS, SECTIONS, run

AWS = "service.beta.kubernetes.io/aws-load-balancer"
NLB = f"{AWS}-type: external"
IP = f"{AWS}-nlb-target-type: ip"
PROXY = f'{AWS}-proxy-protocol: "*"'
KEEPS = f"{AWS}-target-group-attributes: preserve_client_ip.enabled=true"


def manifest(*texts: str, files: dict[str, str] | None = None) -> Manifest:
    documents = [document for text in texts for document in load_documents("app.yaml", text.encode())]
    return read_manifest(documents, lambda manifest, path: (files or {}).get(path))


def deployment(environ: str, probe: str = "", more: str = "") -> str:
    """Environment lines as ``NAME=value; …``; a probe's port."""
    pairs = (pair.partition("=") for pair in environ.split("; ") if pair)
    variables = ", ".join(f"{{name: {name}, value: {json.dumps(value)}}}" for name, _, value in pairs)
    asked = f"readinessProbe: {{httpGet: {{path: /, port: {probe}}}}}" if probe else ""
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
        - name: web
          image: shop:1
          env: [{variables}]
          ports: [{{name: http, containerPort: 8000}}, {{name: status, containerPort: 8100}}]
          {asked}
          {more}
"""


def service(*annotations: str, spec: str = "type: LoadBalancer", target: str = "http") -> str:
    lines = "".join(f"\n    {annotation}" for annotation in annotations)
    return f"""
---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations: {"" if lines else "{}"}{lines}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: {target}}}]
  {spec}
"""


def ingress(kind: str, *annotations: str) -> str:
    lines = "".join(f"\n    {annotation}" for annotation in annotations)
    return f"""
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  annotations: {"" if lines else "{}"}{lines}
spec:
  ingressClassName: {kind}
  rules: [{{http: {{paths: [{{path: /, backend: {{service: {{name: web, port: {{name: http}}}}}}}}]}}}}]
"""


L4 = (
    "KONG_TRUSTED_IPS=10.0.0.0/8; KONG_REAL_IP_HEADER=proxy_protocol; KONGREALIP_FORWARDED_HEADERS=auto;"
    " KONG_PROXY_LISTEN=0.0.0.0:8000 proxy_protocol"
)
L7 = "KONG_TRUSTED_IPS=10.0.0.0/8; KONG_REAL_IP_HEADER=X-Forwarded-For; KONG_PROXY_LISTEN=0.0.0.0:8000"
PEER = "KONG_PROXY_LISTEN=0.0.0.0:8000"
GOOGLE = L7.replace("10.0.0.0/8", "35.191.0.0/16,130.211.0.0/22,203.0.113.80") + "; KONG_REAL_IP_RECURSIVE=on"
LOCAL = "type: LoadBalancer\n  externalTrafficPolicy: Local"
CLUSTER = "type: LoadBalancer\n  externalTrafficPolicy: Cluster"
INSIDE = "type: ClusterIP"
MODE = "alb.ingress.kubernetes.io/load-balancer-attributes: routing.http.xff_header_processing.mode"


def compose(environ: str, proxy: str = "haproxy:2.8", networks: str = "", more: str = "") -> str:
    pairs = (pair.partition("=") for pair in environ.split("; "))
    variables = ", ".join(f"{name}: {json.dumps(value)}" for name, _, value in pairs)
    return f"""
services:
  app: {{image: "shop:1", environment: {{{variables}}}{more}}}
  front: {{image: "{proxy}"}}
{networks}
"""


SUBNET = "networks: {default: {ipam: {config: [{subnet: 10.203.0.0/24}]}}}"
HELM = """
env:
  trusted_ips: 10.0.0.0/8
  real_ip_header: proxy_protocol
proxy:
  annotations:
    {annotation}
  http: {{parameters: [{flag}]}}
  tls: {{parameters: [http2, {flag}]}}
"""

# The code, manifests with the fault, and their twins without.
PLANTED = [
    ("annotation-without-flag", deployment(L4.replace(" proxy_protocol", "").replace("=proxy_protocol", "=X-Forwarded-For")) + service(NLB, PROXY), deployment(L4) + service(NLB, PROXY)),
    ("annotation-without-flag", deployment(L7) + service('service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol: "true"'), deployment(L4) + service('service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol: "true"')),
    ("annotation-without-flag", deployment(L7) + service('service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2: "*"'), deployment(L4) + service('service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2: "*"')),
    ("annotation-without-flag", deployment(L7) + service('loadbalancer.openstack.org/proxy-protocol: "true"'), deployment(L4) + service('loadbalancer.openstack.org/proxy-protocol: "true"')),
    ("annotation-without-flag", deployment(L7) + service('service.beta.kubernetes.io/azure-pls-proxy-protocol: "true"'), deployment(L4) + service('service.beta.kubernetes.io/azure-pls-proxy-protocol: "true"')),
    ("annotation-without-flag", deployment(L7) + service(NLB, f"{AWS}-target-group-attributes: proxy_protocol_v2.enabled=true"), deployment(L4) + service(NLB, f"{AWS}-target-group-attributes: proxy_protocol_v2.enabled=true")),
    ("annotation-without-flag", HELM.format(annotation=PROXY, flag="").replace("proxy_protocol", "X-Forwarded-For"), HELM.format(annotation=PROXY, flag="proxy_protocol") .replace("env:", "env:\n  x: y")),
    ("flag-without-annotation", deployment(L4) + service(NLB), deployment(L4) + service(NLB, PROXY)),
    ("flag-without-annotation", deployment(L4) + service('service.beta.kubernetes.io/do-loadbalancer-name: "a"'), deployment(f"{L4}; KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM=10.0.0.0/8") + service('service.beta.kubernetes.io/do-loadbalancer-name: "a"')),
    ("annotation-value", deployment(PEER) + service(NLB, f'{AWS}-proxy-protocol: "true"', spec=LOCAL), deployment(PEER) + service(NLB, spec=LOCAL)),
    ("annotation-value", deployment(L4) + service("loadbalancer.openstack.org/proxy-protocol: true"), deployment(L4) + service('loadbalancer.openstack.org/proxy-protocol: "true"')),
    ("cluster-policy", deployment(PEER) + service(), deployment(PEER) + service(spec=LOCAL)),
    ("cluster-policy", deployment(PEER) + service(spec="type: NodePort"), deployment(PEER) + service(spec=INSIDE)),
    ("cluster-policy", deployment(PEER) + service(NLB, spec=CLUSTER), deployment(L7) + service(spec=CLUSTER)),
    ("ip-target-without-preservation", deployment(PEER) + service(NLB, IP), deployment(PEER) + service(NLB, IP, KEEPS)),
    ("ip-target-without-preservation", deployment(PEER) + service(f"{AWS}-type: nlb-ip", spec=LOCAL), deployment(L4) + service(NLB, IP, PROXY)),
    ("header-behind-l4", deployment(L7) + service(NLB, IP), deployment(L7) + service(NLB, IP, KEEPS)),
    ("header-behind-l4", deployment(L7) + service(f"{AWS}-type: nlb"), deployment(L7) + service(f"{AWS}-type: nlb", spec=LOCAL)),
    ("header-not-sent", deployment(L7.replace("X-Forwarded-For", "X-Real-IP")) + service(spec=INSIDE) + ingress("alb"), deployment(L7) + service(spec=INSIDE) + ingress("alb")),
    ("header-not-sent", deployment(L4) + service(spec=INSIDE) + ingress("nginx", "alb.ingress.kubernetes.io/scheme: internal"), deployment(L7) + service(spec=INSIDE) + ingress("nginx")),
    ("header-not-appended", deployment(L7) + service(spec=INSIDE) + ingress("alb", f"{MODE}=preserve"), deployment(L7) + service(spec=INSIDE) + ingress("alb", f"{MODE}=append")),
    ("header-not-appended", deployment(L7) + service(spec=INSIDE) + ingress("alb", f"{MODE}=remove"), deployment(L7) + service(spec=INSIDE) + ingress("alb")),
    ("balancer-range-missing", deployment(f"{L7}; KONG_REAL_IP_RECURSIVE=on") + service(spec=INSIDE) + ingress("gce"), deployment(GOOGLE) + service(spec=INSIDE) + ingress("gce")),
    ("balancer-range-missing", deployment(GOOGLE.replace(",203.0.113.80", "")) + service(spec=INSIDE) + ingress("gce"), deployment(GOOGLE) + service(spec=INSIDE) + ingress("gce")),
    ("balancer-range-missing", deployment(L4.replace("10.0.0.0/8", "203.0.113.80")) + service(NLB, PROXY), deployment(L4) + service(NLB, PROXY)),
    ("balancer-range-missing", compose(L7.replace("10.0.0.0/8", "172.16.0.0/12"), networks=SUBNET), compose(L7, networks=SUBNET)),
    ("balancer-range-missing", compose(L7.replace("10.0.0.0/8", "127.0.0.1")), compose(L7.replace("10.0.0.0/8", "127.0.0.1"), more=", network_mode: host")),
    ("google-without-recursive", deployment(GOOGLE.replace("=on", "=off")) + service(spec=INSIDE) + ingress("gce"), deployment(GOOGLE) + service(spec=INSIDE) + ingress("gce")),
    ("probe-without-preamble", deployment(L4, probe="http") + service(NLB, PROXY), deployment(L4, probe="status") + service(NLB, PROXY)),
    ("probe-without-preamble", deployment(L4, probe="8000"), deployment(f"{L4}; KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM=10.0.0.0/8", probe="8000")),
    ("unknown-value", deployment("").replace("env: []", "env: [{name: KONG_TRUSTED_IPS, valueFrom: {secretKeyRef: {name: a, key: b}}}]"), deployment(L7)),
    ("unknown-value", deployment(L7, more="envFrom: [{configMapRef: {name: other}}]"), deployment(L7, more="envFrom: [{secretRef: {name: other}}]")),
    ("unknown-value", deployment(L7, more='command: [kongrealip, serve, "main:app", --env-file, /etc/app.env]'), deployment(L7, more='command: [kongrealip, serve, "main:app"]')),
    ("unknown-value", compose(L7.replace("10.0.0.0/8", "${TRUSTED}")), compose(L7.replace("10.0.0.0/8", "${TRUSTED:-10.0.0.0/8}"))),
    ("invalid", HELM.format(annotation=PROXY, flag="proxy_protocol").replace("env:", "env:\n  real_ip_recursive: on"), HELM.format(annotation=PROXY, flag="proxy_protocol").replace("env:", 'env:\n  real_ip_recursive: "on"')),
    ("misspelt-name", deployment("KONG_TRUSTED_IP=10.0.0.0/8"), deployment("KONG_TRUSTED_IPS=10.0.0.0/8")),
    ("source-without-flag", compose(L4.replace("8000 proxy_protocol", "8000")), compose(L4)),
    ("trust-everybody", deployment(L7.replace("10.0.0.0/8", "0.0.0.0/0,::/0")), deployment(L7)),
    ("believed-forwarded-proto", compose(L4.replace("KONGREALIP_FORWARDED_HEADERS=auto; ", "")), compose(L4)),
]  # fmt: skip
IDS = [f"{code}-{number}" for number, (code, _, _) in enumerate(PLANTED)]


def loud(found: list[Finding]) -> set[str]:
    return {finding.code for finding in found if finding.severity != HINT}


@pytest.mark.parametrize(("code", "faulty", "right"), PLANTED, ids=IDS)
def test_planted_faults_are_found_and_nothing_else(code: str, faulty: str, right: str) -> None:
    found = manifest_findings(manifest(faulty))
    assert code in {finding.code for finding in found}
    assert loud(found) <= {code}
    assert not loud(manifest_findings(manifest(right)))
    assert code not in {finding.code for finding in manifest_findings(manifest(right))}


def test_every_code_of_manifests_is_planted() -> None:
    assert {code for code, _, _ in PLANTED} >= OF_MANIFESTS


@pytest.mark.parametrize(("code", "faulty", "right"), PLANTED, ids=IDS)
def test_it_is_said_where(code: str, faulty: str, right: str) -> None:
    for finding in manifest_findings(manifest(faulty)):
        assert re.search(
            r" (in|behind) app\.yaml, document \d, (Helm values|(container|service|Service|Ingress) \w+)$",
            finding.variable,
        )
        assert finding.example.client is None or finding.example.client != finding.example.right


# --- what is read -----------------------------------------------------------------------------


def environ_of(*texts: str, files: dict[str, str] | None = None) -> dict[str, str]:
    (workload,) = manifest(*texts, files=files).workloads
    return dict(workload.environ)


MAP = "kind: ConfigMap\nmetadata: {name: app}\ndata: {KONG_TRUSTED_IPS: 10.0.0.0/8, port: '8000'}\n"


def test_config_maps_of_all_files_count_whole_and_by_key() -> None:
    reference = "[{name: P, valueFrom: {configMapKeyRef: {name: app, key: port}}}, {name: Q, value: '$(P) $$(P) $(R)'}]"
    text = deployment("").replace("env: []", f"env: {reference}")
    assert environ_of(text.replace("image:", "envFrom: [{configMapRef: {name: app}, prefix: X_}]\n          image:"), MAP) == {
        "X_KONG_TRUSTED_IPS": "10.0.0.0/8", "X_port": "8000", "P": "8000", "Q": "8000 $(P) $(R)",
    }  # fmt: skip


def test_what_refers_to_something_unknown_is_unknown() -> None:
    entries = "[{name: P, valueFrom: {fieldRef: {fieldPath: x}}}, {name: Q, value: '$(P)'}]"
    (workload,) = manifest(deployment("").replace("env: []", f"env: {entries}")).workloads
    assert workload.unknown == ("P", "Q")
    assert workload.environ == {}


@pytest.mark.parametrize(
    "text",
    [
        "kind: Pod\nspec: {containers: [{env: [{name: KONG_TRUSTED_IPS, value: x}]}]}",
        "kind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{env: [{name: KONG_TRUSTED_IPS, value: x}]}]}}}}}",
        "kind: List\nitems: [{kind: Pod, spec: {containers: [{env: [{name: KONG_TRUSTED_IPS, value: x}]}]}}]",
        "services: {web: {environment: [KONG_TRUSTED_IPS=x]}}",
        "services: {web: {environment: {KONG_TRUSTED_IPS: x}}}",
        "x-of: &of {KONG_TRUSTED_IPS: x}\nservices: {web: {environment: {<<: *of}}}",
        "services: {web: {env_file: app.env}}",
        "services: {web: {env_file: [other.env, {path: app.env, required: true}]}}",
    ],
)
def test_places_of_an_environment(text: str) -> None:
    files = {"app.env": "KONG_TRUSTED_IPS=x\n", "other.env": "KONG_TRUSTED_IPS=y\n"}
    assert environ_of(text, files=files) == {"KONG_TRUSTED_IPS": "x"}


def test_words_without_quotes_are_what_their_readers_take_them_for() -> None:
    assert environ_of("services: {web: {environment: {A: on, B: 010, C: 22:22}}}") == {
        "A": "on",
        "B": "010",
        "C": "22:22",
    }
    helm = environ_of(
        "env: {trusted_ips: x, a: on, b: 'on', c: off}\nproxy: {http: {enabled: false}, tls: {enabled: no}}\nstatus: {enabled: false}"
    )
    assert helm == {
        "KONG_TRUSTED_IPS": "x", "KONG_A": "true", "KONG_B": "on", "KONG_C": "false", "KONG_PROXY_LISTEN": "off",
    }  # fmt: skip


def test_what_the_chart_makes_of_its_values() -> None:
    stream = "stream: [{containerPort: 9000, parameters: [ssl]}]"
    text = f"kong: {{proxy: {{http: {{containerPort: 80, parameters: [proxy_protocol]}}, {stream}}}}}"
    assert environ_of(text) == {
        "KONG_PROXY_LISTEN": "0.0.0.0:80 proxy_protocol, [::]:80 proxy_protocol, 0.0.0.0:8443 http2 ssl, [::]:8443 http2 ssl",
        "KONG_STREAM_LISTEN": "0.0.0.0:9000 ssl, [::]:9000 ssl",
        "KONG_PORT_MAPS": "80:80, 443:8443",
        "KONG_STATUS_LISTEN": "0.0.0.0:8100, [::]:8100",
    }  # fmt: skip
    Settings.load(environ_of(text))
    odd = "stream: [{containerPort: 53, protocol: UDP}, {}]"
    more = f"addresses: ['10.0.0.9'], http: {{servicePort: 0}}, tls: {{enabled: false}}, {odd}"
    assert environ_of(f"proxy: {{{more}}}\nstatus: {{http: {{enabled: false}}}}") == {
        "KONG_PROXY_LISTEN": "10.0.0.9:8000",
        "KONG_STREAM_LISTEN": "10.0.0.9:53 udp",
        "KONG_PORT_MAPS": "",
    }
    own = environ_of("proxy: {http: {}}\nenv: {proxy_listen: '0.0.0.0:9000'}")
    assert own["KONG_PROXY_LISTEN"] == "0.0.0.0:9000"
    assert "KONG_PORT_MAPS" not in own


@pytest.mark.parametrize(
    "service_of_compose",
    [
        "{env_file: missing.env}",
        "{env_file: broken.env}",
        "{environment: [KONG_TRUSTED_IPS]}",
        "{extends: {service: base}}",
    ],
)
def test_what_a_compose_file_does_not_say_is_unknown(service_of_compose: str) -> None:
    text = f"services: {{web: {service_of_compose}}}"
    (workload,) = manifest(text, files={"broken.env": "no pair\\n"}).workloads
    assert workload.unknown
    more = service_of_compose.replace("{", "{image: kongrealip, command: 'serve main:app', ", 1)
    (finding,) = manifest_findings(manifest(f"services: {{web: {more}}}"))
    assert finding.code == "unknown-value"


def test_values_of_helm_may_come_from_a_secret() -> None:
    (finding,) = manifest_findings(
        manifest("env: {trusted_ips: {valueFrom: {secretKeyRef: {name: a, key: b}}}}")
    )
    assert (finding.code, finding.variable) == (
        "unknown-value",
        "KONG_TRUSTED_IPS in app.yaml, document 1, Helm values",
    )


def test_a_subnet_that_is_none_is_passed_over() -> None:
    assert not loud(
        manifest_findings(manifest(compose(L7, networks=SUBNET.replace("10.203.0.0/24", "'${SUBNET}'"))))
    )


def test_a_command_is_words_or_a_line() -> None:
    (as_line, as_list, broken) = manifest(
        """services: {a: {command: "serve 'main:app'"}, b: {command: [serve, 'main:app']}, c: {command: "'"}}"""
    ).workloads
    assert as_line.words == as_list.words == ("serve", "main:app")
    assert broken.words == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        ("$$a", "$a"),
        ("${A:-b}c", "bc"),
        ("${A-b}", "b"),
        ("${A:-}c", "c"),
        ("${A}", None),
        ("$A", None),
        ("${A:?e}", None),
    ],
)
def test_references_of_compose_files(text: str, value: str | None) -> None:
    assert interpolated(text) == value


@pytest.mark.parametrize(
    ("more", "is_found"),
    [
        ("command: [uvicorn, 'main:app']", False),
        ("command: [gunicorn, app]\n          args: [--proxy-protocol, auto]", False),
        ("args: [kongrealip, serve, --uds, /run/app.sock]", False),
        ("args: [kongrealip, serve, --uds=/run/app.sock]", False),
        ("command: [sh, -c, 'exec hypercorn app']", False),
        ("command: [sh, -c, 'exec kongrealip serve']", True),
        ("args: [serve, 'main:app']", True),
        ("command: [kongrealip, serve]", True),
        ("", True),
    ],
)
def test_another_server_may_read_preambles_by_itself(more: str, is_found: bool) -> None:
    environ = "KONG_TRUSTED_IPS=10.0.0.0/8; KONG_REAL_IP_HEADER=proxy_protocol"
    found = manifest_findings(manifest(deployment(environ, more=more)))
    assert ("source-without-flag" in loud(found)) == is_found


def test_a_relays_listener_may_be_an_option() -> None:
    for listen in ("--listen, '0.0.0.0:8000 proxy_protocol'", "'--listen=0.0.0.0:8000 proxy_protocol'"):
        more = f"command: [kongrealip, relay, {listen}, --upstream, 'db:5432']"
        assert loud(manifest_findings(manifest(deployment("", more=more)))) == {"preamble-unused"}


@pytest.mark.parametrize(
    "environ",
    ["", "KONG_ADMIN_URL=http://kong:8001", "DATABASE_URL=x", "CONTROLLER_KONG_ADMIN_URL=x"],
)
def test_containers_of_others_are_none_of_our_business(environ: str) -> None:
    read = manifest(deployment(environ) + service())
    assert not has_settings(read)
    assert manifest_findings(read) == []


def test_services_without_containers_are_held_against_the_environment() -> None:
    pairs = [pair.split("=", 1) for pair in L7.split("; ")]
    found = manifest_findings(manifest(service(NLB, PROXY)), Settings.load(dict(pairs)))
    assert loud(found) == {"annotation-without-flag"}


def test_kong_itself_takes_more_and_believes_always() -> None:
    more = "; KONG_PROXY_ACCESS_LOG=/dev/stdout custom; KONG_NGINX_PROXY_SET_REAL_IP_FROM=10.0.0.0/8"
    text = deployment(L4.replace(" KONGREALIP_FORWARDED_HEADERS=auto;", "") + more)
    assert loud(manifest_findings(manifest(text))) == {"invalid"}
    assert manifest_findings(manifest(text.replace("shop:1", "kong:3.9"))) == []


def test_a_content_networks_header_passes_a_balancer() -> None:
    environ = L7.replace("X-Forwarded-For", "CF-Connecting-IP")
    assert manifest_findings(manifest(deployment(environ) + service(spec=INSIDE) + ingress("alb"))) == []


def test_the_environment_stands_for_containers_that_have_it_from_elsewhere() -> None:
    base = Settings.load(dict(pair.split("=", 1) for pair in L4.split("; ")))
    from_a_map = deployment("", probe="8000", more="envFrom: [{configMapRef: {name: other}}]")
    assert loud(manifest_findings(manifest(from_a_map), base)) == {"probe-without-preamble"}
    secret = "env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: a, key: b}}}]"
    others = "\n---\n" + deployment("", probe="8000").replace("env: []", secret)
    assert loud(manifest_findings(manifest(deployment("") + others), base)) == set()


def test_two_namespaces_do_not_meet() -> None:
    elsewhere = service(NLB, PROXY).replace("name: web", "name: web\n  namespace: other")
    assert manifest_findings(manifest(deployment(L7) + elsewhere)) == []


# --- the command ------------------------------------------------------------------------------


def test_files_are_read_together(tmp_path: Path) -> None:
    paths: list[str | Path] = []
    for name, text in {"a": deployment(L7), "b": service(NLB, PROXY)}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        paths += ["--manifest", tmp_path / f"{name}.yaml"]
    result = run(*paths)
    assert result.exit_code == 1
    assert (
        f"annotation-without-flag: {AWS}-proxy-protocol in {tmp_path}/b.yaml, document 1, Service web\n"
        in result.stdout
    )


def test_an_environment_file_beside_a_compose_file(tmp_path: Path) -> None:
    (tmp_path / "app.env").write_text("KONG_TRUSTED_IPS=0.0.0.0/0\nKONG_REAL_IP_HEADER=X-Real-IP\n")
    (tmp_path / "compose.yaml").write_text("services: {web: {image: shop, env_file: app.env}}\n")
    result = run("--manifest", tmp_path / "compose.yaml")
    assert result.exit_code == 1
    assert "warning trust-everybody: KONG_TRUSTED_IPS in " in result.stdout


def test_standard_input() -> None:
    result = run("--manifest", "-", stdin=deployment(L4, probe="http"))
    assert (
        "probe-without-preamble: readinessProbe in standard input, document 1, container web\n"
        in result.stdout
    )


def test_the_own_environment_does_not_count_beside_containers_with_settings(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text(deployment(L7))
    environ = {"KONG_TRUSTED_IPS": "0.0.0.0/0"}
    assert run("--manifest", tmp_path / "app.yaml", environ=environ).exit_code == 0
    (tmp_path / "app.env").write_text("\n")
    assert (
        run(
            "--manifest", tmp_path / "app.yaml", "--env-file", tmp_path / "app.env", environ=environ
        ).exit_code
        == 1
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [\n", 3),
        ("a: {{ .Values.x }}\n", 1),
        ("a: 1\n---\nb: *nobody\n", 3),
        ("a: b: c\n", 1),
    ],
)
def test_no_yaml_is_one_line_with_its_place(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text(text)
    result = run("--manifest", tmp_path / "app.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"kongrealip: {tmp_path}/app.yaml:{line}: no YAML: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\xff", b"a: \x01", b"[" * 5000, b"? {a: b}\n: c", b"!!python/object:os.system {}"]
)
def test_no_yaml_at_all(data: bytes) -> None:
    with pytest.raises(StartError) as caught:
        load_documents("app.yaml", data)
    assert "\n" not in str(caught.value)


def test_tags_of_others_and_circles_are_passed_over() -> None:
    assert (
        manifest("services: {web: {environment: !reset [], ports: !override {a: b}, image: !x y}}")
        .workloads[0]
        .image
        == "y"
    )
    assert manifest("&a {kind: List, items: [*a]}") == Manifest()


# --- docs/check.md ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(OF_MANIFESTS))
def test_what_is_told_of_a_code_is_so(code: str) -> None:
    (faulty,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[code], re.S)
    (finding,) = manifest_findings(manifest(faulty))
    assert finding.code == code
    assert f"> {finding.example}\n" in SECTIONS[code]


# --- properties -------------------------------------------------------------------------------

KEYS = [
    "kind",
    "spec",
    "template",
    "metadata",
    "containers",
    "env",
    "name",
    "value",
    "services",
    "environment",
    "proxy",
    "http",
    "items",
    "ports",
    "data",
    "selector",
    "annotations",
    "labels",
    "networks",
    "env_file",
    "rules",
    "image",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["Pod", "Service", "Ingress", "List", "ConfigMap", "KONG_TRUSTED_IPS", "x", "80"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=30,
)


@given(ANYTHING, ANYTHING)
def test_nothing_in_a_document_can_make_it_fail(one: object, other: object) -> None:
    read = read_manifest([Document("a", 1, one), Document("a", 2, other)])
    manifest_findings(read)
    manifest_findings(read, Settings())
