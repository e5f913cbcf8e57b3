"""What manifests say of a service and of what stands in front of it.

The documents are as a YAML parser gives them, and may hold anything: whatever is not of the form
that is looked for is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: What an environment file holds that a manifest names, or None: the manifest's file, and the path in it.
ReadFile = Callable[[str, str], str | None]


class Plain(str):
    """``on``, ``yes``, ``true`` and their opposites without quotes: the programs that read them differ."""

    __slots__ = ()


class Document(NamedTuple):
    """One document of a file, counted from 1."""

    file: str
    number: int
    content: object

    @property
    def where(self) -> str:
        return f"{self.file}, document {self.number}"


class Probe(NamedTuple):
    """A health check over HTTP, and the container's port that it goes to."""

    name: str
    port: int | None


class Workload(NamedTuple):
    """One container and what it was told. ``words`` are its command and arguments, where they are given.

    ``unknown`` names the variables, and what else may hold some, whose values are not in these files.
    ``subnets`` are the networks of its composition; ``has_proxy`` tells of a proxy among the others.
    """

    where: str
    environ: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    namespace: str = ""
    labels: Mapping[str, str] = {}
    words: tuple[str, ...] = ()
    image: str = ""
    ports: Mapping[str, int] = {}
    probes: tuple[Probe, ...] = ()
    subnets: tuple[str, ...] = ()
    has_proxy: bool = False


class Service(NamedTuple):
    """A Kubernetes Service. ``targets`` are container ports, by number or by name."""

    where: str
    name: str
    namespace: str
    kind: str
    annotations: Mapping[str, object]
    selector: Mapping[str, str]
    policy: str
    targets: tuple[str, ...]

    def selects(self, workload: Workload) -> bool:
        labels = workload.labels.items()
        return (
            bool(self.selector) and self.namespace == workload.namespace and self.selector.items() <= labels
        )

    def text(self, annotation: str) -> str:
        """An annotation's text, or "" where there is none."""
        return text_of(self.annotations.get(annotation)) or ""


class Ingress(NamedTuple):
    """A Kubernetes Ingress and the names of the Services behind it."""

    where: str
    namespace: str
    kind: str
    annotations: Mapping[str, object]
    services: tuple[str, ...]


class Manifest(NamedTuple):
    """All documents together."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    ingresses: tuple[Ingress, ...] = ()


def mapping_of(value: object, *path: str) -> Mapping[str, Any]:
    """What a path of keys leads to, or nothing where there is no such mapping."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return (
        {key: item for key, item in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}
    )


def list_of(value: object) -> list[Any]:
    """A list, or nothing."""
    return value if isinstance(value, list) else []


def text_of(value: object) -> str | None:
    """A scalar's text, or None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def texts_of(value: object) -> dict[str, str]:
    """A mapping's scalars."""
    texts = {key: text_of(item) for key, item in mapping_of(value).items()}
    return {key: text for key, text in texts.items() if text is not None}


def number_of(value: object) -> int | None:
    """A port's number, or None."""
    text = text_of(value) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len("65535") else None
