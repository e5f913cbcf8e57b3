"""What is read of manifests, place by place: the containers, their environment, and what names them."""

from __future__ import annotations

import pytest

from kongrealip.config.manifest import Document, Workload, read_manifest
from kongrealip.config.manifest_kubernetes import services_of
from kongrealip.config.manifest_yaml import load_documents
from tests.test_manifest import MAP, deployment, environ_of, manifest


def workload(text: str, files: dict[str, str] | None = None) -> Workload:
    (found,) = manifest(text, files=files).workloads
    return found


def pod(container: str, kind: str = "Pod") -> str:
    return (
        f"kind: {kind}\nmetadata: {{name: web, labels: {{a: b}}}}\nspec: {{containers: [{{{container}}}]}}\n"
    )


# --- Kubernetes -------------------------------------------------------------------------------


def test_a_container() -> None:
    found = workload(
        pod(
            "name: app, image: 'shop:1', command: [serve, 1], args: [x, {}, true],"
            " ports: [{name: http, containerPort: 8000}, {name: odd, containerPort: x}, {containerPort: 9}],"
            " env: [{name: A, value: b}]"
        )
    )
    assert found == Workload(
        where="app.yaml, document 1, container app",
        environ={"A": "b"},
        namespace="default",
        labels={"a": "b"},
        words=("serve", "1", "x", "true"),
        image="shop:1",
        ports={"http": 8000},
    )


def test_all_containers_of_all_documents_with_their_places() -> None:
    text = pod("name: a}, {name: b") + "---\n" + pod("name: c")
    assert [found.where for found in manifest(text).workloads] == [
        "app.yaml, document 1, container a",
        "app.yaml, document 1, container b",
        "app.yaml, document 2, container c",
    ]


@pytest.mark.parametrize(
    "kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"]
)
def test_kinds_with_a_template(kind: str) -> None:
    text = deployment("A=b").replace("kind: Deployment", f"kind: {kind}")
    assert environ_of(text) == {"A": "b"}
    assert workload(text).labels == {"app": "web"}


@pytest.mark.parametrize("kind", ["Secret", "Kustomization", "Pod2", ""])
def test_other_kinds_are_passed_over(kind: str) -> None:
    assert manifest(deployment("A=b").replace("kind: Deployment", f"kind: '{kind}'")).workloads == ()


def test_namespaces() -> None:
    spaced = deployment("").replace("metadata: {name: web}", "metadata: {name: web, namespace: shop}", 1)
    assert workload(spaced).namespace == "shop"
    assert workload(deployment("")).namespace == "default"
    # A ConfigMap counts in its own.
    text = spaced.replace("env: []", "envFrom: [{configMapRef: {name: app}}]")
    shared = MAP.replace("{name: app}", "{name: app, namespace: shop}")
    assert environ_of(text, shared) == {"KONG_TRUSTED_IPS": "10.0.0.0/8", "port": "8000"}
    (lost,) = manifest(text, MAP).workloads
    assert (lost.environ, lost.unknown) == ({}, ("ConfigMap app",))


def variables(*entries: str) -> Workload:
    (found,) = manifest(deployment("").replace("env: []", f"env: [{', '.join(entries)}]"), MAP).workloads
    return found


FROM_MAP = "valueFrom: {configMapKeyRef: {name: app, key: port}}"
FROM_SECRET = "valueFrom: {secretKeyRef: {name: app, key: port}}"


def test_variables_in_their_order() -> None:
    found = variables("{name: A, value: '1'}", "{name: B, value: '$(A)-$(C)'}", "{name: C, value: '$(B)'}")
    assert found.environ == {"A": "1", "B": "1-$(C)", "C": "1-$(C)"}
    assert variables("{name: A, value: '1'}", "{name: A, value: '2'}").environ == {"A": "2"}
    assert variables("{name: A}", "{name: B, value: ''}").environ == {"A": "", "B": ""}
    assert variables("{name: A, value: '$$(B) $x $'}").environ == {"A": "$(B) $x $"}


def test_what_comes_from_a_map_or_a_secret() -> None:
    found = variables(f"{{name: A, {FROM_MAP}}}", f"{{name: B, {FROM_SECRET}}}", "{name: C, value: 'a$(B)'}")
    assert (found.environ, found.unknown) == ({"A": "8000"}, ("B", "C"))
    hidden = variables("{name: A, value: '1'}", f"{{name: A, {FROM_SECRET}}}")
    assert (hidden.environ, hidden.unknown) == ({}, ("A",))
    missing = variables("{name: A, value: '1'}", f"{{name: A, {FROM_MAP.replace('port', 'none')}}}")
    assert (missing.environ, missing.unknown) == ({}, ("A",))


def test_a_variable_wins_over_a_map() -> None:
    text = deployment("KONG_TRUSTED_IPS=x").replace(
        "env:", "envFrom: [{configMapRef: {name: app}}]\n          env:"
    )
    assert environ_of(text, MAP) == {"KONG_TRUSTED_IPS": "x", "port": "8000"}
    (found,) = manifest(text, MAP.replace("name: app", "name: other")).workloads
    assert (found.environ, found.unknown) == ({"KONG_TRUSTED_IPS": "x"}, ("ConfigMap app",))
    two = text.replace("envFrom: [", "envFrom: [{configMapRef: {name: b}}, ").replace("=x", "=y")
    assert environ_of(two, MAP, "---\nkind: ConfigMap\nmetadata: {name: b}\ndata: {B: '1'}")["B"] == "1"
    (secret,) = manifest(text.replace("configMapRef", "secretRef"), MAP).workloads
    assert secret.unknown == ()


def test_a_service() -> None:
    text = """
kind: Service
metadata: {name: web, namespace: shop, annotations: {a: b, c: 1}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: web, n: 1}
  ports: [{port: 80, targetPort: http}, {port: 81}, {port: 53, protocol: UDP}, {port: 82, protocol: TCP}, {}]
"""
    (found,) = services_of(load_documents("a.yaml", text.encode())[0])
    assert found == (
        "a.yaml, document 1, Service web", "web", "shop", "NodePort", {"a": "b", "c": "1"}, {"app": "web", "n": "1"},
        "Local", ("http", "81", "82"),
    )  # fmt: skip
    (plain,) = manifest("kind: Service").services
    assert plain[:4] == (
        "app.yaml, document 1, Service without a name",
        "without a name",
        "default",
        "ClusterIP",
    )
    assert plain[4:] == ({}, {}, "Cluster", ())


def test_an_ingress() -> None:
    text = """
kind: Ingress
metadata: {name: web, namespace: shop, annotations: {kubernetes.io/ingress.class: gce}}
spec:
  defaultBackend: {service: {name: a}}
  rules:
    - http: {paths: [{backend: {service: {name: b}}}, {backend: {resource: {name: x}}}]}
    - host: y
    - http: {paths: [{backend: {service: {name: c}}}]}
"""
    (found,) = manifest(text).ingresses
    assert found == (
        "app.yaml, document 1, Ingress web", "shop", "gce", {"kubernetes.io/ingress.class": "gce"}, ("a", "b", "c")
    )  # fmt: skip
    (plain,) = manifest("kind: Ingress").ingresses
    assert plain == ("app.yaml, document 1, Ingress without a name", "default", "", {}, ())


def test_probes() -> None:
    probes = "startupProbe: {httpGet: {port: http}}, livenessProbe: {httpGet: {port: 9}}, readinessProbe: {exec: {}}"
    ports = "ports: [{name: http, containerPort: 80}]"
    assert workload(pod(f"{ports}, {probes}")).probes == (("startupProbe", 80), ("livenessProbe", 9))
    assert workload(pod("readinessProbe: {httpGet: {port: http}}")).probes == (("readinessProbe", None),)


def test_a_container_of_which_little_is_said() -> None:
    assert workload(pod("name: a")) == Workload(
        "app.yaml, document 1, container a", {}, namespace="default", labels={"a": "b"}
    )


def test_lists_hold_objects() -> None:
    mixed = "kind: List\nitems: [{kind: Service}, {kind: Pod, spec: {containers: [{name: a}, {name: b}]}}]"
    assert len(manifest(mixed).workloads) == 2
    found = manifest("kind: List\nitems: [{kind: Service, metadata: {name: a}}, {kind: Pod}]")
    assert [found.name for found in found.services] == ["a"]
    assert manifest("items: [{kind: Service}]").services == ()
    assert manifest("kind: List\nitems: [1, {a: b}, [], null]") == ((), (), ())


# --- compose ----------------------------------------------------------------------------------


def test_a_service_of_a_compose_file() -> None:
    text = "services: {web: {image: '${I:-shop}:1', entrypoint: kongrealip, command: [serve, 'a:b'], environment: [A=1, B=2=3]}}"
    assert workload(text) == Workload(
        where="app.yaml, document 1, service web",
        environ={"A": "1", "B": "2=3"},
        words=("kongrealip", "serve", "a:b"),
        image="shop:1",
    )
    assert workload("services: {web: {image: '${I}'}}").image == ""
    assert workload("services: {web: {}}") == Workload("app.yaml, document 1, service web", {})
    assert manifest("kind: X\nservices: {web: {}}").workloads == ()


def test_later_files_and_then_the_environment_win() -> None:
    files = {"a": "A=1\nB=1\nC=1\n", "b": "B=2\nC=2\n"}
    text = "services: {web: {env_file: [a, {path: b}, {format: raw}], environment: {C: 3, D: '${X-4}$$'}}}"
    assert environ_of(text, files=files) == {"A": "1", "B": "2", "C": "3", "D": "4$"}
    assert environ_of("services: {web: {env_file: {path: a}}}", files=files) == {"A": "1", "B": "1", "C": "1"}


@pytest.mark.parametrize("entry", ["[A]", "{A: null}", "{A: '${X}'}", "['A=${X}']"])
def test_a_value_from_whoever_starts_it_hides_that_of_the_file(entry: str) -> None:
    found = workload(f"services: {{web: {{env_file: a, environment: {entry}}}}}", {"a": "A=1\nB=1\n"})
    assert (found.environ, found.unknown) == ({"B": "1"}, ("A",))


def test_what_is_not_there_is_named() -> None:
    text = "services: {web: {extends: {service: x}, env_file: [missing, broken], environment: [A]}}"
    assert workload(text, {"broken": "no pair\n"}).unknown == ("extends", "missing", "broken", "A")


def test_a_file_is_asked_for_as_seen_from_its_manifest() -> None:
    asked = []

    def read(manifest: str, path: str) -> str:
        asked.append((manifest, path))
        return "A=1\n"

    content = {"services": {"web": {"env_file": "app.env"}}}
    read_manifest([Document("dir/compose.yaml", 1, content)], read)
    assert asked == [("dir/compose.yaml", "app.env")]
    (found,) = read_manifest([Document("dir/compose.yaml", 1, content)]).workloads
    assert found.unknown == ("app.env",), "nobody to ask"


def test_subnets() -> None:
    networks = "networks: {a: {ipam: {config: [{gateway: x}, {subnet: 10.1.2.3/16}]}}, b: {ipam: {config: [{subnet: fd00::/64}]}}}"
    beside = "db: {networks: [a], image: x}, front: {networks: [a], image: 'library/nginx:1'}"
    text = f"services: {{web: {{networks: [b, a]}}, {beside}}}\n{networks}"
    web, db, front = manifest(text).workloads
    assert (web.subnets, web.has_proxy) == (("10.1.0.0/16", "fd00::/64"), True)
    assert (db.subnets, db.has_proxy) == (("10.1.0.0/16",), True)
    assert front.has_proxy is False, "none but itself"
    host, default = manifest(
        f"services: {{a: {{network_mode: host}}, b: {{image: nginx}}}}\n{networks}"
    ).workloads
    assert (host.subnets, host.has_proxy, default.subnets) == ((), False, ())


# --- Helm -------------------------------------------------------------------------------------

STATUS = "status: {enabled: false}"


def test_the_gateway_and_its_service() -> None:
    text = "proxy: {type: NodePort, annotations: {a: b}, externalTrafficPolicy: Local, http: {containerPort: 80}}"
    read = manifest(text)
    (found,), (served,) = read.workloads, read.services
    assert (found.where, found.image, found.unknown) == ("app.yaml, document 1, Helm values", "kong", ())
    assert (served.where, served.name, served.kind, served.policy) == (
        found.where,
        "proxy",
        "NodePort",
        "Local",
    )
    assert (served.annotations, served.targets) == ({"a": "b"}, ("80", "8443"))
    assert served.selects(found)
    (plain,) = manifest("proxy: {http: {enabled: false}}").services
    assert (plain.kind, plain.policy, plain.targets) == ("LoadBalancer", "Cluster", ("8443",))
    assert manifest("proxy: {tls: {enabled: false}}").services[0].targets == ("8000",)
    other, one = manifest(f"{text}\n---\n{text}").services
    assert not other.selects(manifest(text).workloads[0]._replace(labels=one.selector))


@pytest.mark.parametrize("word", ["'true'", "true", "'on'", "yes", "y", "'TRUE'"])
def test_words_that_switch_on(word: str) -> None:
    found = environ_of(f"proxy: {{http: {{enabled: {word}}}, tls: {{enabled: false}}}}\n{STATUS}")
    assert found == {"KONG_PROXY_LISTEN": "0.0.0.0:8000, [::]:8000", "KONG_PORT_MAPS": "80:8000"}


def test_listeners_of_the_chart() -> None:
    odd = (
        "proxy: {addresses: [10.0.0.1, '[::1]'], http: {servicePort: 8080, containerPort: 80, parameters: [reuseport]},"
        " tls: {parameters: []}, stream: [{containerPort: 1, parameters: [ssl], protocol: TCP}, {containerPort: 2, protocol: UDP}]}"
    )
    assert environ_of(f"{odd}\nstatus: {{http: {{containerPort: 9}}}}") == {
        "KONG_PROXY_LISTEN": "10.0.0.1:80 reuseport, [::1]:80 reuseport, 10.0.0.1:8443 ssl, [::1]:8443 ssl",
        "KONG_PORT_MAPS": "8080:80, 443:8443",
        "KONG_STREAM_LISTEN": "10.0.0.1:1 ssl, [::1]:1 ssl, 10.0.0.1:2 udp, [::1]:2 udp",
        "KONG_STATUS_LISTEN": "0.0.0.0:9, [::]:9",
    }
    for off in ("status: {enabled: false}", "status: {http: {enabled: 'off'}}"):
        assert "KONG_STATUS_LISTEN" not in environ_of(f"proxy: {{http: {{}}}}\n{off}")


def test_values_of_the_chart() -> None:
    found = workload(
        "env: {trusted_ips: x, status_listen: {valueFrom: {}}, a: 1, b: on, c: Off, d: 'on', e: TRUE}"
    )
    assert found.unknown == ("KONG_STATUS_LISTEN",)
    assert "KONG_STATUS_LISTEN" not in found.environ
    read = {name: found.environ[f"KONG_{name}"] for name in ("A", "B", "C", "D", "E")}
    assert read == {"A": "1", "B": "true", "C": "false", "D": "on", "E": "true"}


@pytest.mark.parametrize("inside", ["", "kong: ", "gateway: "])
@pytest.mark.parametrize(
    ("values", "is_ours"),
    [
        ("{env: {trusted_ips: x}}", True),
        ("{env: {other: x}}", False),
        ("{proxy: {http: {}}}", True),
        ("{proxy: {tls: {}}}", True),
        ("{proxy: {stream: []}}", True),
        ("{proxy: {annotations: {}}}", True),
        ("{proxy: {externalTrafficPolicy: Local}}", True),
        ("{proxy: {other: 1}}", False),
        ("{env: {trusted_ips: x}, kind: X}", False),
        ("{env: {trusted_ips: x}, apiVersion: X}", False),
        ("{env: {trusted_ips: x}, services: {}}", False),
    ],
)
def test_which_values_are_the_charts(values: str, is_ours: bool, inside: str) -> None:
    assert bool(manifest(f"{inside}{values}").workloads) == is_ours
