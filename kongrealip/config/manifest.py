"""YAML documents -> what they say of a service and of what stands in front of it.

Kubernetes objects, values of the Helm chart kong/kong, and compose files; ConfigMaps count for the
containers of all documents. What is none of these is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from kongrealip.config.manifest_compose import compose_of
from kongrealip.config.manifest_helm import helm_of
from kongrealip.config.manifest_kubernetes import config_maps_of, ingresses_of, services_of, workloads_of
from kongrealip.config.manifest_model import Document, Ingress, Manifest, Plain, ReadFile, Service, Workload

__all__ = ["Document", "Ingress", "Manifest", "Plain", "ReadFile", "Service", "Workload", "read_manifest"]


def read_manifest(documents: Sequence[Document], read_file: ReadFile = lambda file, path: None) -> Manifest:
    """Read the documents of all files together. ``read_file`` is asked for environment files."""
    config_maps = config_maps_of(list(documents))
    workloads: list[Workload] = []
    services: list[Service] = []
    ingresses: list[Ingress] = []
    for document in documents:
        workloads += [*workloads_of(document, config_maps), *compose_of(document, read_file)]
        services += services_of(document)
        ingresses += ingresses_of(document)
        for workload, service in helm_of(document):
            workloads.append(workload)
            services.append(service)
    return Manifest(tuple(workloads), tuple(services), tuple(ingresses))
