"""Kubernetes: containers with their environment, Services and Ingresses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kongrealip.config.manifest_model import (
    Document,
    Ingress,
    Probe,
    Service,
    Workload,
    list_of,
    mapping_of,
    number_of,
    text_of,
    texts_of,
)

#: Names and data of ConfigMaps, by namespace and name.
ConfigMaps = Mapping[tuple[str, str], Mapping[str, str]]

_TEMPLATES = {
    "Pod": (),
    **dict.fromkeys(
        ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"),
        ("spec", "template"),
    ),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
_REFERENCE = r"\$(\$|\((\w+)\))"
_DEFAULT_NAMESPACE = "default"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def objects_of(document: Document) -> list[Mapping[str, Any]]:
    """The objects of a document: one, or those of a List."""
    content = mapping_of(document.content)
    items = list_of(content.get("items")) if content.get("kind") == "List" else [content]
    return [item for item in map(mapping_of, items) if "kind" in item]


def config_maps_of(documents: list[Document]) -> ConfigMaps:
    """Every ConfigMap, for the containers of all documents."""
    found = [item for document in documents for item in objects_of(document)]
    return {
        (_namespace(item), text_of(mapping_of(item, "metadata").get("name")) or ""): texts_of(
            item.get("data")
        )
        for item in found
        if item["kind"] == "ConfigMap"
    }


def workloads_of(document: Document, config_maps: ConfigMaps) -> Iterator[Workload]:
    """The containers of all pods of a document."""
    for item in objects_of(document):
        path = _TEMPLATES.get(text_of(item.get("kind")) or "")
        if path is None:
            continue
        pod = mapping_of(item, *path)
        labels = texts_of(mapping_of(pod, "metadata").get("labels"))
        for container in list_of(mapping_of(pod, "spec").get("containers")):
            workload = _container(mapping_of(container), _namespace(item), config_maps)
            where = f"{document.where}, {workload.where}"
            yield workload._replace(where=where, namespace=_namespace(item), labels=labels)


def services_of(document: Document) -> Iterator[Service]:
    """The Services of a document."""
    for item in objects_of(document):
        if item["kind"] == "Service":
            spec, name = mapping_of(item, "spec"), _name(item)
            yield Service(
                where=f"{document.where}, Service {name}",
                name=name,
                namespace=_namespace(item),
                kind=text_of(spec.get("type")) or "ClusterIP",
                annotations=mapping_of(item, "metadata", "annotations"),
                selector=texts_of(spec.get("selector")),
                policy=text_of(spec.get("externalTrafficPolicy")) or "Cluster",
                targets=tuple(_targets(spec)),
            )


def ingresses_of(document: Document) -> Iterator[Ingress]:
    """The Ingresses of a document."""
    for item in objects_of(document):
        if item["kind"] == "Ingress":
            spec, annotations = mapping_of(item, "spec"), mapping_of(item, "metadata", "annotations")
            kind = text_of(spec.get("ingressClassName") or annotations.get("kubernetes.io/ingress.class"))
            where = f"{document.where}, Ingress {_name(item)}"
            yield Ingress(where, _namespace(item), kind or "", annotations, tuple(_backends(spec)))


def _targets(spec: Mapping[str, Any]) -> Iterator[str]:
    for port in list_of(spec.get("ports")):
        target = text_of(mapping_of(port).get("targetPort") or mapping_of(port).get("port"))
        if target and mapping_of(port).get("protocol", "TCP") == "TCP":
            yield target


def _backends(spec: Mapping[str, Any]) -> Iterator[str]:
    backends = [spec.get("defaultBackend")]
    for rule in list_of(spec.get("rules")):
        backends += [
            mapping_of(path).get("backend") for path in list_of(mapping_of(rule, "http").get("paths"))
        ]
    for backend in backends:
        name = text_of(mapping_of(backend, "service").get("name"))
        if name:
            yield name


def _name(item: Mapping[str, Any]) -> str:
    return text_of(mapping_of(item, "metadata").get("name")) or "without a name"


def _namespace(item: Mapping[str, Any]) -> str:
    return text_of(mapping_of(item, "metadata").get("namespace")) or _DEFAULT_NAMESPACE


def _container(container: Mapping[str, Any], namespace: str, config_maps: ConfigMaps) -> Workload:
    environ, unknown = _environment(container, namespace, config_maps)
    ports = {}
    for port in list_of(container.get("ports")):
        name, number = text_of(mapping_of(port).get("name")), number_of(mapping_of(port).get("containerPort"))
        if name and number:
            ports[name] = number
    words = [*list_of(container.get("command")), *list_of(container.get("args"))]
    return Workload(
        where=f"container {text_of(container.get('name'))}",
        environ=environ,
        unknown=tuple(unknown),
        words=tuple(text for word in words if (text := text_of(word)) is not None),
        image=text_of(container.get("image")) or "",
        ports=ports,
        probes=tuple(_probes(container, ports)),
    )


def _probes(container: Mapping[str, Any], ports: Mapping[str, int]) -> Iterator[Probe]:
    for name in _PROBES:
        port = mapping_of(container, name, "httpGet").get("port")
        if port is not None:
            yield Probe(name, number_of(port) or ports.get(text_of(port) or ""))


def _environment(
    container: Mapping[str, Any], namespace: str, config_maps: ConfigMaps
) -> tuple[dict[str, str], list[str]]:
    """Values by name, and what has none in these files."""
    environ: dict[str, str] = {}
    unknown: list[str] = []
    for source in list_of(container.get("envFrom")):
        # What is in a Secret is none of our business, and of KONG_* only keys and passwords should be.
        reference = mapping_of(source, "configMapRef")
        name, prefix = text_of(reference.get("name")), text_of(mapping_of(source).get("prefix")) or ""
        data = config_maps.get((namespace, name or ""))
        if data is not None:
            environ |= {prefix + key: value for key, value in data.items()}
        elif name:
            unknown.append(f"ConfigMap {name}")
    for entry in list_of(container.get("env")):
        _variable(mapping_of(entry), namespace, config_maps, environ, unknown)
    return environ, unknown


def _variable(
    entry: Mapping[str, Any],
    namespace: str,
    config_maps: ConfigMaps,
    environ: dict[str, str],
    unknown: list[str],
) -> None:
    name = text_of(entry.get("name")) or ""
    value = text_of(entry.get("value")) or ""
    if "valueFrom" in entry:
        reference = mapping_of(entry, "valueFrom", "configMapKeyRef")
        data = config_maps.get((namespace, text_of(reference.get("name")) or ""), {})
        value = data.get(text_of(reference.get("key")) or "", "")
        if not value:
            unknown.append(name)
            environ.pop(name, None)
            return
    if any(f"$({other})" in value for other in unknown):
        unknown.append(name)
        return
    environ[name] = re.sub(_REFERENCE, lambda found: _expanded(found, environ), value)


def _expanded(found: re.Match[str], environ: Mapping[str, str]) -> str:
    """``$(NAME)`` is another variable where there is one, and ``$$`` a dollar sign."""
    return "$" if found[1] == "$" else environ.get(found[2], found[0])
