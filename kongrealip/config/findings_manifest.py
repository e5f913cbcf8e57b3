"""Manifests -> findings: each container's settings, and those against what stands in front of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kongrealip.config.findings import findings_of, invalid_findings
from kongrealip.config.findings_ingress import ingress_findings
from kongrealip.config.findings_model import BALANCER, CLIENT, Door, Example, Finding, claim, doors
from kongrealip.config.findings_service import service_findings
from kongrealip.config.findings_trust import networks_of, overlap
from kongrealip.config.manifest_model import Manifest, Workload
from kongrealip.config.names import READ, READ_OF_OURS, unread_names
from kongrealip.config.settings import Settings
from kongrealip.errors import SettingsError

# Variables that say nothing of addresses: they may well come from where we cannot look.
_NO_MATTER = ("ssl_", "upstream", "log_level", "proxy_access_log", "proxy_error_log", "nginx_worker")
# Options that bring settings which are not in the environment, of other servers as well.
_OPTIONS_WITH_FILES = ("--conf", "--env-file")
# An image has the program's name as its entry point.
_COMMANDS = (("serve",), ("relay",), ("proxy",))
# Who probes is said in the manifest, and more of the environment may be in the image.
_NOT_OF_MANIFESTS: tuple[str, ...] = ("all-listeners-flagged",)
# Kong reads those directives, and has no way not to believe.
_NOT_OF_KONG = ("not-read-here", "believed-forwarded-proto")
_ANY_PRIVATE = networks_of(("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


def manifest_findings(manifest: Manifest, base: Settings | None = None) -> list[Finding]:
    """Every finding about the containers of these files that have settings of ours, and their Services.

    ``base`` are settings from elsewhere: those of a container that has none in these files, and of a
    Service that selects no container in them.
    """
    found: list[Finding] = []
    known: list[tuple[Workload, Settings]] = []
    for workload in manifest.workloads:
        settings = None
        if _is_ours(workload):
            settings, findings = _settings_of(workload)
            found += [_of(finding, workload) for finding in findings]
        elif len(manifest.workloads) == 1 or any(map(_matters, workload.unknown)):
            settings = base
        if settings is not None:
            known.append((workload, settings))
            found += _of_workload(workload, settings)
    for service in manifest.services:
        behind = [(workload, settings) for workload, settings in known if service.selects(workload)]
        if base is not None and not any(map(service.selects, manifest.workloads)):
            behind = [(Workload("", {}), base)]
        for workload, settings in behind:
            found += service_findings(service, workload, settings)
            for ingress in manifest.ingresses:
                if service.name in ingress.services and service.namespace == ingress.namespace:
                    found += ingress_findings(ingress, settings)
    return list(dict.fromkeys(found))


def has_settings(manifest: Manifest) -> bool:
    """Whether any container of these files has settings of ours."""
    return any(map(_is_ours, manifest.workloads))


def _of(finding: Finding, workload: Workload) -> Finding:
    return finding._replace(variable=f"{finding.variable} in {workload.where}")


def _is_ours(workload: Workload) -> bool:
    """A container that talks to Kong has KONG_* variables as well: it has to be one that is read."""
    if _is_kong(workload) or any("kongrealip" in word for word in (workload.image, *workload.words)):
        return True
    names = {f"KONG_{key.upper()}" for key in READ} | {f"KONGREALIP_{key.upper()}" for key in READ_OF_OURS}
    return bool(names & {*workload.environ, *workload.unknown} or unread_names(workload.environ, {}))


def _is_kong(workload: Workload) -> bool:
    return workload.image.rpartition("/")[2].partition(":")[0] in ("kong", "kong-gateway")


def _settings_of(workload: Workload) -> tuple[Settings | None, list[Finding]]:
    """Settings, where they are known, and the findings about them."""
    unknown = [name for name in workload.unknown if _matters(name)]
    unknown += [name for name in _OPTIONS_WITH_FILES if _option(workload.words, name) is not None]
    if unknown:
        example = Example("whatever it is, this check does not see it")
        problem = "is not in these files, so that this container is not checked"
        fix = "give the file that has it as well, or check its environment with --env-file"
        return None, [Finding("unknown-value", name, problem, example, fix) for name in unknown]
    try:
        settings = Settings.load({**_environ(workload), **_of_command(workload)})
    except SettingsError as error:
        return None, invalid_findings(error)
    passed_over = _NOT_OF_MANIFESTS + (_NOT_OF_KONG if _is_kong(workload) else ())
    return settings, [finding for finding in findings_of(settings) if finding.code not in passed_over]


def _environ(workload: Workload) -> Mapping[str, str]:
    """What is read of it. Kong itself takes more in its logs than there is here, syslog for instance."""
    if not _is_kong(workload):
        return workload.environ
    others = {f"KONG_{key.upper()}" for key in READ if not _matters(f"KONG_{key.upper()}")}
    return {name: value for name, value in workload.environ.items() if name not in others}


def _matters(name: str) -> bool:
    key = name.lower().partition("_")[2]
    if not name.startswith(("KONG_", "KONGREALIP_")):
        # An environment file, a ConfigMap, or a service that is extended: anything may be in it.
        return not name.isidentifier() or name == "extends"
    return key in READ + READ_OF_OURS and not key.startswith(_NO_MATTER)


def _of_command(workload: Workload) -> Mapping[str, str]:
    """What the command says of the listeners: another server's are not known, nor is --uds one of them."""
    words = workload.words
    listen = _option(words, "--listen")
    if "relay" in words:
        # Whatever the environment says of HTTP, it opens none of it.
        return {"KONG_PROXY_LISTEN": "off"} | ({"KONG_STREAM_LISTEN": listen} if listen is not None else {})
    is_ours = (
        words[:1] in _COMMANDS
        or any("kongrealip" in word for word in words)
        or _is_kong(workload)
        or not words
    )
    is_elsewhere = not is_ours or _option(words, "--uds") is not None
    return (
        {"KONG_PROXY_LISTEN": "off"} if is_elsewhere and "KONG_PROXY_LISTEN" not in workload.environ else {}
    )


def _option(words: tuple[str, ...], name: str) -> str | None:
    """The value of an option, in either of its forms, or None."""
    for number, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
        if word == name:
            return "".join(words[number + 1 : number + 2])
    return None


def _of_workload(workload: Workload, settings: Settings) -> Iterator[Finding]:
    for door in doors(settings):
        yield from _probes(workload, door)
        yield from _compose_range(workload, door)


def _probes(workload: Workload, door: Door) -> Iterator[Finding]:
    flagged = {listen.port: listen for listen in door.flagged}
    for probe in workload.probes:
        listen = flagged.get(probe.port or 0)
        if listen is not None and not door.settings.proxy_protocol_optional_from:
            yield Finding(
                "probe-without-preamble", f"{probe.name} in {workload.where}",
                f"asks port {listen.port}, which demands a preamble, and the kubelet sends none, so that it"
                " always fails",
                Example("the connection is closed without an answer", BALANCER, "", ("GET / HTTP/1.1",)),
                "ask the port of KONG_STATUS_LISTEN for /status/ready, or list the nodes' networks in"
                " KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM",
            )  # fmt: skip


def _compose_range(workload: Workload, door: Door) -> Iterator[Finding]:
    trusted = networks_of(door.settings.trusted_ips)
    if not workload.has_proxy or not trusted or not door.reads_its_source:
        return
    beside = networks_of(workload.subnets) or _ANY_PRIVATE
    if overlap(trusted, tuple(beside)):
        return
    shown = ", ".join(workload.subnets) or "one of Docker's, mostly within 172.16.0.0/12"
    peer = str(beside[0][min(2, beside[0].num_addresses - 1)])
    yield Finding(
        "balancer-range-missing", f"KONG_TRUSTED_IPS in {workload.where}",
        f"the proxy beside it connects from their network, {shown}, of which nothing is trusted",
        claim(door, peer, CLIENT, right=CLIENT),
        "give the network a subnet and list that in KONG_TRUSTED_IPS",
    )  # fmt: skip
