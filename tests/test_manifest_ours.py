"""Which containers of manifests are ours, what their commands say, and what a document's values come to."""

from __future__ import annotations

import pytest

from kongrealip import Settings
from kongrealip.config.findings_manifest import has_settings, manifest_findings
from kongrealip.config.manifest_model import mapping_of, number_of, text_of, texts_of
from tests.test_manifest import L4, L7, NLB, PROXY, deployment, loud, manifest, service


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        (deployment("KONG_TRUSTED_IPS=x"), True),
        (deployment("KONGREALIP_FORWARDED_HEADERS=x"), True),
        (deployment("KONG_TRUSTED_IP=x"), True),
        (deployment("KONG_ADMIN_URL=x"), False),
        (deployment("").replace("shop:1", "kong"), True),
        (deployment("").replace("shop:1", "kong/kong-gateway:3.9"), True),
        (deployment("").replace("shop:1", "registry:5000/kong:3"), True),
        (deployment("").replace("shop:1", "kong/ingress-controller:3"), False),
        (deployment("").replace("shop:1", "ghcr.io/kongrealip/server:1"), True),
        (deployment("", more="args: [kongrealip, serve]"), True),
        (deployment("", more="args: [serve]"), False),
        (deployment("").replace("env: []", "env: [{name: KONG_TRUSTED_IPS, valueFrom: {}}]"), True),
    ],
)
def test_which_containers_are_ours(text: str, is_ours: bool) -> None:
    assert has_settings(manifest(text)) == is_ours
    assert has_settings(manifest(deployment("") + "\n---\n" + text)) == is_ours


UNUSED = "KONG_TRUSTED_IPS=10.0.0.0/8; KONG_REAL_IP_HEADER=proxy_protocol"
WITHOUT_LISTENERS = {"source-without-flag"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("command: [proxy]", WITHOUT_LISTENERS),
        ("command: [serve, --listen]", WITHOUT_LISTENERS),
        ("command: [serve, --uds]", set()),
        ("command: [serve, --uds=]", set()),
        ("command: [serve, --udss, x]", WITHOUT_LISTENERS),
        ("command: [python, app.py]", set()),
        ("args: [python, -m, kongrealip, serve]", WITHOUT_LISTENERS),
    ],
)
def test_what_a_command_says_of_listeners(more: str, expected: set[str]) -> None:
    found = manifest_findings(manifest(deployment(UNUSED, more=more)))
    assert loud(found) - {"believed-forwarded-proto"} == expected


@pytest.mark.parametrize("listen", ["--listen, '0.0.0.0:9000{}'", "'--listen=0.0.0.0:9000{}'"])
def test_a_relays_listener_is_held_against_what_is_trusted(listen: str) -> None:
    """It has no HTTP, so that one with the flag and one without it are both right."""
    for flag in ("", " proxy_protocol"):
        more = f"command: [kongrealip, relay, {listen.format(flag)}]"
        assert manifest_findings(manifest(deployment("KONG_TRUSTED_IPS=10.0.0.0/8", more=more))) == []
        assert manifest_findings(manifest(deployment(UNUSED, more=more))) == [], "not even where it was set"
    more = f"command: [kongrealip, relay, {listen.format(' proxy_protocol')}]"
    (alone,) = manifest_findings(manifest(deployment("KONG_TRUSTED_IPS=unix:", more=more)))
    assert "and 0.0.0.0:9000 is none" in alone.problem
    more = f"command: [relay, {listen.format(' proxy_protocol')}]"
    assert loud(manifest_findings(manifest(deployment("KONG_TRUSTED_IPS=", more=more)))) == {
        "preamble-unused"
    }


def test_listeners_that_are_told_count_with_any_command() -> None:
    for command in ("python", "kongrealip"):
        more = f"command: [{command}]"
        assert loud(
            manifest_findings(manifest(deployment(f"{UNUSED}; KONG_PROXY_LISTEN=0.0.0.0:1", more=more)))
        ) == (WITHOUT_LISTENERS)


def test_kong_listens_by_its_settings_whatever_its_command() -> None:
    text = deployment(UNUSED, more="command: [/docker-entrypoint.sh]").replace("shop:1", "kong:3.9")
    assert loud(manifest_findings(manifest(text))) == WITHOUT_LISTENERS


@pytest.mark.parametrize("option", ["--conf, a", "--conf=a", "--env-file, a", "--env-file=a", "--conf"])
def test_options_that_bring_settings(option: str) -> None:
    (found,) = manifest_findings(manifest(deployment(L7, more=f"args: [kongrealip, serve, {option}]")))
    name = option.partition(",")[0].partition("=")[0]
    assert (found.code, found.variable) == ("unknown-value", f"{name} in app.yaml, document 1, container web")


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("KONG_TRUSTED_IPS", True),
        ("KONGREALIP_FORWARDED_HEADERS", True),
        ("KONG_PORT_MAPS", True),
        ("KONG_SSL_CERT", False),
        ("KONG_SSL_CERT_KEY", False),
        ("KONG_LOG_LEVEL", False),
        ("KONG_PROXY_ACCESS_LOG", False),
        ("KONG_PROXY_ERROR_LOG", False),
        ("KONG_NGINX_WORKER_PROCESSES", False),
        ("KONG_UPSTREAM_KEEPALIVE_POOL_SIZE", False),
        ("KONGREALIP_UPSTREAM_TLS_CA", False),
        ("KONG_ADMIN_LISTEN", False),
        ("PASSWORD", False),
        ("trusted_ips", False),
    ],
)
def test_which_unknown_values_matter(name: str, matters: bool) -> None:
    """Addresses are not decided by certificates, nor by logs."""
    secret = f"{{name: {name}, valueFrom: {{secretKeyRef: {{name: a, key: b}}}}}}"
    text = deployment(L7).replace("env: [", f"env: [{secret}, ")
    codes = {finding.code for finding in manifest_findings(manifest(text))}
    assert codes == ({"unknown-value"} if matters else set())


def test_the_environment_from_elsewhere_is_for_one_container() -> None:
    base = Settings.load(dict(pair.split("=", 1) for pair in L4.split("; ")))
    asking = service(NLB, PROXY)
    without = L4.replace("8000 proxy_protocol", "8000")
    plain = Settings.load(dict(pair.split("=", 1) for pair in without.split("; ")))
    assert loud(manifest_findings(manifest(deployment("") + asking), plain)) == {"annotation-without-flag"}
    assert manifest_findings(manifest(deployment("") + asking), base) == []
    assert manifest_findings(manifest(deployment("") + asking), None) == []
    # What is in the files wins, and a service that selects nothing in them is held against what is not.
    assert manifest_findings(manifest(deployment(L4) + asking), plain) == []
    elsewhere = asking.replace("{app: web}", "{app: other}")
    (found,) = manifest_findings(manifest(deployment(L4) + elsewhere), plain)
    assert (found.code, "Service web" in found.variable) == ("annotation-without-flag", True)
    assert manifest_findings(manifest(deployment(L4) + elsewhere), None) == []


def test_a_finding_is_told_once() -> None:
    text = deployment(L7) + service(NLB, PROXY)
    (found,) = manifest_findings(manifest(text + "\n---\n" + deployment(L7)))
    assert found.code == "annotation-without-flag"


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (None, None),
        ([], None),
        ({}, None),
    ],
)
def test_texts(value: object, text: str | None) -> None:
    assert text_of(value) == text
    assert texts_of({"key": value, 1: "x"}) == ({} if text is None else {"key": text})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("80", 80),
        (80, 80),
        ("65535", 65535),
        ("123456", None),
        ("x", None),
        ("", None),
        ("²", None),
        (None, None),
    ],
)
def test_numbers(value: object, number: int | None) -> None:
    assert number_of(value) == number


def test_paths() -> None:
    value = {"a": {"b": {"c": 1, 2: 3}}, "d": [1]}
    assert mapping_of(value, "a", "b") == {"c": 1}
    for path in (("a", "x"), ("a", "b", "c"), ("d",), ("x", "y")):
        assert mapping_of(value, *path) == {}
    assert mapping_of(None) == mapping_of([1]) == {}
