"""Values of the Helm chart kong/kong: what its templates make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kongrealip.config.manifest_model import (
    Document,
    Plain,
    Service,
    Workload,
    list_of,
    mapping_of,
    text_of,
)
from kongrealip.config.names import READ

# Where charts that have this one inside keep its values.
_INSIDE = ("kong", "gateway")
_TRUE = ("true", "on", "yes", "y")
_OF_PROXY = ("http", "tls", "stream", "annotations", "externalTrafficPolicy")
_HOSTS, _STATUS_PORT = ["0.0.0.0", "[::]"], "8100"  # noqa: S104 - the chart's own
# Name, port of the container, port of the Service, flags.
_HTTP: tuple[str, int, int, list[str]] = ("http", 8000, 80, [])
_TLS: tuple[str, int, int, list[str]] = ("tls", 8443, 443, ["http2"])


def helm_of(document: Document) -> Iterator[tuple[Workload, Service]]:
    """The gateway's container and the Service in front of it, where the document holds such values."""
    content = mapping_of(document.content)
    for values in (content, *(mapping_of(content, key) for key in _INSIDE)):
        if not _is_ours(values):
            continue
        where = f"{document.where}, Helm values"
        proxy = mapping_of(values, "proxy")
        environ, unknown = _environment(values, proxy)
        # Nothing else in these files has this label.
        labels = {"of": where}
        yield (
            Workload(where, environ, unknown, labels=labels, image="kong"),
            Service(
                where, "proxy", "", text_of(proxy.get("type")) or "LoadBalancer",
                mapping_of(proxy, "annotations"), labels,
                text_of(proxy.get("externalTrafficPolicy")) or "Cluster",
                tuple(str(port) for port in _container_ports(proxy)),
            ),
        )  # fmt: skip


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Other charts have ``env`` and ``proxy`` as well: it has to be one of the names that are read."""
    if {"kind", "apiVersion", "services"} & set(values):
        return False
    env, proxy = mapping_of(values, "env"), mapping_of(values, "proxy")
    return bool(set(env) & set(READ)) or ("proxy" in values and bool(set(proxy) & set(_OF_PROXY)))


def _environment(
    values: Mapping[str, Any], proxy: Mapping[str, Any]
) -> tuple[dict[str, str], tuple[str, ...]]:
    environ, unknown = dict(_made(values, proxy)), []
    for key, value in mapping_of(values, "env").items():
        name, text = f"KONG_{key.upper()}", text_of(value)
        if text is None:
            environ.pop(name, None)
            unknown.append(name)
        elif isinstance(value, Plain):
            # What has no quotes is a truth value to Helm, and comes out as that.
            environ[name] = "true" if value.lower() in _TRUE else "false"
        else:
            environ[name] = text
    return environ, tuple(unknown)


def _made(values: Mapping[str, Any], proxy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The variables that the chart makes of ``proxy`` and ``status``."""
    listens, maps = [], []
    hosts = _texts(proxy.get("addresses")) or _HOSTS
    for name, port, outside, default in (_HTTP, _TLS):
        part = mapping_of(proxy, name)
        if _is_on(part):
            flags = _texts(part.get("parameters", default)) + ["ssl"] * (name == "tls")
            container = text_of(part.get("containerPort")) or str(port)
            listens += _listens(hosts, container, flags)
            maps.append(f"{text_of(part.get('servicePort')) or outside}:{container}")
    yield "KONG_PROXY_LISTEN", ", ".join(listens) or "off"
    # With listeners of one's own those of the chart are not opened, and what it maps to them does not matter.
    # A Service's port of 0 is none.
    if maps and "proxy_listen" not in mapping_of(values, "env"):
        yield "KONG_PORT_MAPS", ", ".join(entry for entry in maps if not entry.startswith("0:"))
    streams = [
        listen for stream in list_of(proxy.get("stream")) for listen in _stream(hosts, mapping_of(stream))
    ]
    if streams:
        yield "KONG_STREAM_LISTEN", ", ".join(streams)
    status = mapping_of(values, "status")
    if _is_on(status) and _is_on(mapping_of(status, "http")):
        port_text = text_of(mapping_of(status, "http").get("containerPort")) or _STATUS_PORT
        yield "KONG_STATUS_LISTEN", ", ".join(_listens(_HOSTS, port_text, []))


def _stream(hosts: list[str], stream: Mapping[str, Any]) -> list[str]:
    port, flags = text_of(stream.get("containerPort")), _texts(stream.get("parameters"))
    flags += ["udp"] * (text_of(stream.get("protocol")) == "UDP")
    return _listens(hosts, port, flags) if port else []


def _listens(hosts: list[str], port: str, flags: list[str]) -> list[str]:
    """A listener for each address, as the chart opens them."""
    return [" ".join((f"{host}:{port}", *flags)) for host in hosts]


def _texts(value: object) -> list[str]:
    return [text for item in list_of(value) if (text := text_of(item))]


def _container_ports(proxy: Mapping[str, Any]) -> Iterator[int | str]:
    for name, port, _, _ in (_HTTP, _TLS):
        part = mapping_of(proxy, name)
        if _is_on(part):
            yield text_of(part.get("containerPort")) or port


def _is_on(part: Mapping[str, Any]) -> bool:
    return (text_of(part.get("enabled")) or "true").lower() in _TRUE
