"""Compose files: services with their environment, and who stands beside them."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from kongrealip.config.kongconf import parse_environment
from kongrealip.config.manifest_model import (
    Document,
    ReadFile,
    Workload,
    list_of,
    mapping_of,
    text_of,
)

_PROXIES = ("haproxy", "nginx", "envoy", "traefik", "caddy", "kong")
# ${NAME:-default}, ${NAME-default}, ${NAME} and its kin, $NAME, and $$.
_REFERENCE = r"\$(?:(\$)|\{(\w+)(?::?(-)([^{}]*)|[^{}]*)\}|(\w+))"


def compose_of(document: Document, read_file: ReadFile) -> Iterator[Workload]:
    """The services of a compose file; nothing where the document is none."""
    content = mapping_of(document.content)
    services = {name: mapping_of(service) for name, service in mapping_of(content, "services").items()}
    if "kind" in content:
        return
    for name, service in services.items():
        environ, unknown = _environment(service, document.file, read_file)
        networks = _networks(service)
        others = [other for key, other in services.items() if key != name and _networks(other) & networks]
        yield Workload(
            where=f"{document.where}, service {name}",
            environ=environ,
            unknown=tuple(unknown),
            words=(*_words(service.get("entrypoint")), *_words(service.get("command"))),
            image=_image(service),
            subnets=tuple(_subnets(content, networks)),
            has_proxy=any(_is_proxy(other) for other in others),
        )


def _environment(
    service: Mapping[str, Any], file: str, read_file: ReadFile
) -> tuple[dict[str, str], list[str]]:
    environ: dict[str, str] = {}
    unknown = ["extends"] if "extends" in service else []
    for path in _env_files(service.get("env_file")):
        content = read_file(file, path)
        try:
            values = None if content is None else parse_environment(content)
        except ValueError:
            values = None
        if values is None:
            unknown.append(path)
        else:
            environ |= values
    for name, value in _pairs(service.get("environment")):
        text = None if value is None else interpolated(value)
        if text is None:
            unknown.append(name)
            environ.pop(name, None)
        else:
            environ[name] = text
    return environ, unknown


def interpolated(text: str) -> str | None:
    """A value with its references filled in from their defaults; None where one has none."""
    if any(not (found[1] or found[3]) for found in re.finditer(_REFERENCE, text)):
        return None
    return re.sub(_REFERENCE, lambda found: "$" if found[1] else found[4], text)


def _pairs(environment: object) -> Iterator[tuple[str, str | None]]:
    """Names and values; None is a value that comes from whoever starts it."""
    for entry in list_of(environment):
        name, equals, value = (text_of(entry) or "").partition("=")
        yield name, value if equals else None
    for name, value in mapping_of(environment).items():
        yield name, text_of(value)


def _env_files(value: object) -> Iterator[str]:
    for entry in value if isinstance(value, list) else [value]:
        path = text_of(entry) or text_of(mapping_of(entry).get("path"))
        if path:
            yield path


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError:
            return ()
    return tuple(text for word in list_of(value) if (text := text_of(word)) is not None)


def _networks(service: Mapping[str, Any]) -> set[str]:
    """Names of the networks it is in: that of all where it names none, and none with ``network_mode``."""
    if "network_mode" in service:
        return set()
    given = service.get("networks")
    return set(mapping_of(given)) | {text for item in list_of(given) if (text := text_of(item))} or {
        "default"
    }


def _subnets(content: Mapping[str, Any], networks: set[str]) -> Iterator[str]:
    for name in sorted(networks):
        for entry in list_of(mapping_of(content, "networks", name, "ipam").get("config")):
            try:
                yield str(ipaddress.ip_network(text_of(mapping_of(entry).get("subnet")) or "", strict=False))
            except ValueError:
                continue


def _is_proxy(service: Mapping[str, Any]) -> bool:
    return _image(service).rpartition("/")[2].startswith(_PROXIES)


def _image(service: Mapping[str, Any]) -> str:
    return interpolated(text_of(service.get("image")) or "") or ""
