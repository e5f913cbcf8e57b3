"""What the operator is told is plain text: names in it are spelt as their owners spell them, and nothing else
has capitals. A name that is spelt otherwise cannot be copied from the message, nor searched for."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from kongrealip.config.check import relay_warnings, serve_warnings
from kongrealip.config.findings import Finding
from kongrealip.config.findings_manifest import manifest_findings
from kongrealip.config.manifest_yaml import load_documents
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.config.relay import load_relay
from kongrealip.errors import StartError
from tests import test_check, test_manifest
from tests.test_check import env, found_in
from tests.test_manifest import manifest
from tests.test_settings_values import told

NAMES = {f"KONG_{key.upper()}" for key in READ} | {f"KONGREALIP_{key.upper()}" for key in READ_OF_OURS}
# What has its capitals wherever it is written.
SPELT = {
    *NAMES, "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Google's", "Docker's", "Kubernetes", "TCP", "TLS",
    "IPv4", "IPv6", "CIDR", "RFC", "VPC", "YAML", "ASCII", "externalTrafficPolicy", "SSLv2", "SSLv3", "TLSv1",
    "TLSv1.1", "TLSv1.2", "TLSv1.3",
}  # fmt: skip
# What is a plain word as well.
CAPITALS = {
    "Kong", "Unix", "HTTP", "HTTP/1.1", "Cluster", "Local", "Service", "ConfigMap", "PROXY", "TCP4", "GET", "N", "PATH",
    "NAME", "HOST:PORT", "[IPv6]:PORT", "http://HOST:PORT", "http://[IPv6]:PORT", "-Host", "Forwarded",
}  # fmt: skip
_QUOTED = r"(?<!\w)'[^']*'(?!\w)"


def misspelt(text: str, given: str) -> set[str]:
    """Words with capitals that are nobody's name, and names without theirs, but for what the operator wrote."""
    words = {word.strip('.,:;?"()') for word in re.sub(_QUOTED, "", text).replace("=", " ").split()}
    words -= set(re.findall(r"[\w./:-]+", given)) - SPELT
    capitals = {word for word in words if word != word.lower()}
    in_small_letters = {word for word in words for name in SPELT if word == name.lower() != name}
    return in_small_letters | capitals - SPELT - CAPITALS


def texts(findings: Iterable[Finding]) -> set[str]:
    return {text for finding in findings for text in (finding.problem, str(finding.example), finding.fix)}


@pytest.mark.parametrize(("code", "faulty", "right"), test_check.PLANTED, ids=test_check.IDS)
def test_findings(code: str, faulty: str, right: str) -> None:
    for text in texts(found_in(env(faulty))):
        assert misspelt(text, faulty) == set(), text


@pytest.mark.parametrize(("code", "faulty", "right"), test_manifest.PLANTED, ids=test_manifest.IDS)
def test_findings_about_manifests(code: str, faulty: str, right: str) -> None:
    for text in texts(manifest_findings(manifest(faulty))):
        assert misspelt(text, faulty) == set(), text


WRONG = """
PROXY_LISTEN=unix:/a | PROXY_LISTEN=a | PROXY_LISTEN=a:0 | PROXY_LISTEN=1.1.1.1:65536 | PROXY_LISTEN=a:1 ssl ssl | PROXY_LISTEN=
PROXY_LISTEN=a:1 backlog=0 | PROXY_LISTEN=a:1 so_keepalive=:: | PROXY_LISTEN=[]:1 | PROXY_LISTEN=a:1, a:1 | STREAM_LISTEN=a:1 udp ssl
STREAM_LISTEN=a:1 udp | TRUSTED_IPS=x, 10.0.0.0/33, ::/129 | REAL_IP_HEADER=a b | REAL_IP_HEADER=# | REAL_IP_HEADER='a | REAL_IP_HEADER='a'b
REAL_IP_HEADER=a\\ | REAL_IP_RECURSIVE=x | PORT_MAPS=80 | LUA_MAX_REQ_HEADERS=0 | SSL_CERT=a | SSL_CIPHER_SUITE=custom | SSL_PROTOCOLS=x
NGINX_WORKER_PROCESSES=x | LOG_LEVEL=x | PROXY_ACCESS_LOG=syslog:x | PROXY_ACCESS_LOG=a b | NGINX_HTTP_CLIENT_HEADER_TIMEOUT=x
KONGREALIP_PREAMBLE_MAX_BYTES=x | KONGREALIP_UPSTREAM=::1:1, a, a:0, unix:a, https://a, http://a/b | KONGREALIP_ALLOW= | KONGREALIP_ALPN=a b
NGINX_SPROXY_SSL_VERIFY_CLIENT=on | NGINX_SPROXY_SSL_VERIFY_CLIENT=optional_no_ca | UPSTREAM_KEEPALIVE_POOL_SIZE=x
""".replace("\n", " | ").strip(" |").split(" | ")  # fmt: skip


@pytest.mark.parametrize("wrong", [f"KONGREALIP_UPSTREAM=unix:/{'a' * 107}", *WRONG])
def test_problems(wrong: str) -> None:
    problems = told(env(wrong))
    assert problems
    for problem in problems:
        assert misspelt(problem, wrong) == set(), problem


@pytest.mark.parametrize(
    "odd",
    [
        "STREAM_LISTEN=a:1; KONGREALIP_ALPN=h2; PROXY_LISTEN=a:2",
        "STREAM_LISTEN=a:1 ssl; NGINX_SPROXY_SSL_CLIENT_CERTIFICATE=/a; KONGREALIP_UPSTREAM_TLS_CA=/a",
        "STREAM_LISTEN=a:1; KONGREALIP_UPSTREAM_TLS_CA=/a; KONGREALIP_UPSTREAM_TLS=on; KONGREALIP_UPSTREAM_TLS_VERIFY=off",
        "KONG_TRUSTED_IP=x; NGINX_PROXY_SET_REAL_IP_FROM=x",
    ],
)
def test_warnings_at_start(odd: str) -> None:
    settings, relay = load_relay(env(odd))
    lines = [*relay_warnings(settings, relay), *serve_warnings(settings), *settings.warnings]
    assert lines
    for line in lines:
        assert misspelt(line, f"{odd} KONG_NGINX_PROXY_SET_REAL_IP_FROM") == set(), line


def test_no_yaml() -> None:
    for data in (b"a: [", b"a: b: c", b"a: \x01", b"? {a: b}\n: c"):
        with pytest.raises(StartError) as caught:
            load_documents("app.yaml", data)
        assert misspelt(str(caught.value), "") == set(), "None is no reason either"
