"""``kongrealip check``: planted faults are found, their twins and all that is shipped are clean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from kongrealip import Settings
from kongrealip.address import Address, parse_hop
from kongrealip.cli.check import check
from kongrealip.cli.whoami import app as whoami
from kongrealip.config.findings import HINT, SEVERITIES, Finding, findings_of, invalid_findings
from kongrealip.config.kongconf import parse_environment
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.errors import SettingsError
from kongrealip.preamble.header import parse
from kongrealip.pytest_plugin import StartServer
from kongrealip.realip import Rules, TrustedNetworks
from kongrealip.realip.trace import trace
from tests.running import clean_environ

ROOT = Path(__file__).parent.parent
Environ = dict[str, str]


def env(text: str) -> Environ:
    """``TRUSTED_IPS=10.0.0.0/8; ...`` with KONG_ before what has no prefix."""
    pairs = (entry.partition("=") for entry in text.split("; "))
    return {name if name.startswith(("KONG", "kong")) else f"KONG_{name}": value for name, _, value in pairs}


FLAG = "PROXY_LISTEN=0.0.0.0:8000 proxy_protocol"
PLAIN = "PROXY_LISTEN=0.0.0.0:8000"
L4 = f"TRUSTED_IPS=10.0.0.0/8; REAL_IP_HEADER=proxy_protocol; {FLAG}; KONGREALIP_FORWARDED_HEADERS=auto"
L7 = f"TRUSTED_IPS=10.0.0.0/8; REAL_IP_HEADER=X-Forwarded-For; {PLAIN}"
RELAY = "TRUSTED_IPS=10.0.0.0/8; STREAM_LISTEN=0.0.0.0:9000 proxy_protocol"

# The code, a configuration with the fault, and its twin without.
PLANTED = [
    ("trust-everybody", L7.replace("10.0.0.0/8", "0.0.0.0/0"), L7),
    ("trust-everybody", L7.replace("10.0.0.0/8", "0.0.0.0/0,::/0"), L7),
    ("trust-everybody", L7.replace("10.0.0.0/8", "0.0.0.0/1,128.0.0.0/1"), L7),
    ("trust-everybody", L7.replace("10.0.0.0/8", "::/0"), L7),
    ("trust-everybody", "TRUSTED_IPS=0.0.0.0/0", "TRUSTED_IPS=10.0.0.0/8"),
    ("trust-everybody", L4.replace("10.0.0.0/8", "0.0.0.0/0,::/0"), L4),
    ("trust-everybody", RELAY.replace("10.0.0.0/8", "0.0.0.0/0"), RELAY),
    ("trust-everybody", f"{L7.replace('10.0.0.0/8', '0.0.0.0/0')}; REAL_IP_RECURSIVE=on".replace("X-Forwarded-For", "X-Real-IP"), L7),
    ("trust-everybody-recursive", f"{L7.replace('10.0.0.0/8', '0.0.0.0/0,::/0')}; REAL_IP_RECURSIVE=on", f"{L7}; REAL_IP_RECURSIVE=on"),
    ("trust-everybody-recursive", f"{L7.replace('10.0.0.0/8', '::/0')}; NGINX_PROXY_REAL_IP_RECURSIVE=ON", f"{L7.replace('10.0.0.0/8', 'fd00::/8')}; REAL_IP_RECURSIVE=on"),
    ("trust-public-range", L7.replace("10.0.0.0/8", "10.0.0.0/8,203.0.0.0/8"), L7),
    ("trust-public-range", L7.replace("10.0.0.0/8", "10.0.0.0/8,2001:db8::/32"), L7.replace("10.0.0.0/8", "10.0.0.0/8,2001:db8::5")),
    ("trust-public-range", L7.replace("10.0.0.0/8", "10.0.0.0/7"), L7),
    ("trust-public-range", RELAY.replace("10.0.0.0/8", "203.0.113.0/24,10.0.0.0/8"), RELAY.replace("10.0.0.0/8", "203.0.113.9,10.0.0.0/8")),
    ("trust-without-effect", L7.replace("10.0.0.0/8", "::ffff:10.0.0.0/104"), L7),
    ("trust-without-effect", L4.replace("10.0.0.0/8", "::ffff:10.0.0.0/104"), L4),
    ("nobody-trusted", f"REAL_IP_HEADER=X-Forwarded-For; {PLAIN}", L7),
    ("nobody-trusted", "REAL_IP_HEADER=X-Forwarded-For; TRUSTED_IPS=; REAL_IP_RECURSIVE=on", f"{L7}; REAL_IP_RECURSIVE=on"),
    ("nobody-trusted", "REAL_IP_HEADER=proxy_protocol; PROXY_LISTEN=off", "REAL_IP_HEADER=proxy_protocol; PROXY_LISTEN=off; TRUSTED_IPS=10.0.0.0/8"),
    ("nobody-trusted", "REAL_IP_RECURSIVE=on", "REAL_IP_RECURSIVE=on; TRUSTED_IPS=10.0.0.0/8"),
    ("preamble-unused", FLAG, L4),
    ("preamble-unused", f"{FLAG}; REAL_IP_HEADER=proxy_protocol", L4),
    ("preamble-unused", "STREAM_LISTEN=0.0.0.0:9000 proxy_protocol", RELAY),
    ("unix-alone", L7.replace("10.0.0.0/8", "unix:"), L7.replace("10.0.0.0/8", "unix:,10.0.0.0/8")),
    ("unix-alone", "TRUSTED_IPS=unix:", "TRUSTED_IPS=unix:; PROXY_LISTEN=off"),
    ("unix-alone", L4.replace("10.0.0.0/8", "unix:"), L4),
    ("unix-alone", RELAY.replace("10.0.0.0/8", "unix:"), RELAY),
    ("no-private-range", L7.replace("10.0.0.0/8", "203.0.113.9"), L7.replace("10.0.0.0/8", "203.0.113.9,10.0.0.0/8")),
    ("mapped-peers", f"{L7.replace('0.0.0.0:8000', '[::]:8000 ipv6only=off')}", L7.replace("0.0.0.0:8000", "0.0.0.0:8000, [::]:8000 ipv6only=on")),
    ("header-letter-case", L7.replace("X-Forwarded-For", "x-forwarded-for"), L7),
    ("header-letter-case", L7.replace("X-Forwarded-For", "X-Forwarded-for"), L7),
    ("header-for-preamble", L4.replace("=proxy_protocol", "=Proxy_Protocol"), L4),
    ("header-for-preamble", L4.replace("=proxy_protocol", "=proxy-protocol"), L4),
    ("header-rfc7239", L7.replace("X-Forwarded-For", "Forwarded"), L7),
    ("header-unknown", L7.replace("X-Forwarded-For", "X-Forwaded-For"), L7),
    ("header-unknown", L7.replace("X-Forwarded-For", "X-Client"), L7.replace("X-Forwarded-For", "X-Client-IP")),
    ("source-without-flag", L4.replace(" proxy_protocol", ""), L4),
    ("source-without-flag", "TRUSTED_IPS=10.0.0.0/8; REAL_IP_HEADER=proxy_protocol", L4),
    ("source-without-flag", "TRUSTED_IPS=10.0.0.0/8; NGINX_PROXY_REAL_IP_HEADER=proxy_protocol; REAL_IP_HEADER=X-Real-IP", L4),
    ("flag-without-source", L4.replace("REAL_IP_HEADER=proxy_protocol; ", ""), L4),
    ("flag-without-source", f"{L7}, 0.0.0.0:8443 ssl proxy_protocol", L7),
    ("believed-forwarded-proto", L4.replace("; KONGREALIP_FORWARDED_HEADERS=auto", ""), L4),
    ("believed-forwarded-proto", L4.replace("; KONGREALIP_FORWARDED_HEADERS=auto", ""), L4.replace("=auto", "=trusted")),
    ("all-listeners-flagged", f"{L4}, 0.0.0.0:8443 ssl proxy_protocol".replace(f"{FLAG}; ", "").replace("auto,", "auto; PROXY_LISTEN=0.0.0.0:8000 proxy_protocol,"), f"{L4}; STATUS_LISTEN=127.0.0.1:8100"),
    ("all-listeners-flagged", L4, f"{L4}; KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM=10.1.0.0/16"),
    ("no-effect", f"{L7}; KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM=10.1.0.0/16", L7),
    ("no-effect", f"{L7}; KONGREALIP_SCHEME_FROM_PREAMBLE=on", f"{L7}; KONGREALIP_SCHEME_FROM_PREAMBLE=off"),
    ("no-effect", f"{L7}; KONGREALIP_PROXY_PROTOCOL_STRICT=on", f"{L4}; KONGREALIP_PROXY_PROTOCOL_STRICT=on"),
    ("preamble-longer-than-nginx", f"{L4}; KONGREALIP_PREAMBLE_MAX_BYTES=16384", f"{L4}; KONGREALIP_PREAMBLE_MAX_BYTES=2048"),
    ("port-map-without-listener", f"{L7}; PORT_MAPS=80:9000", f"{L7}; PORT_MAPS=80:8000"),
    ("port-map-without-listener", f"{L7}; PORT_MAPS=80: 8000", f"{L7}; PORT_MAPS=80:8000"),
    ("port-map-without-listener", "PORT_MAPS=443:9443", "PORT_MAPS=443:8443"),
    ("port-map-twice", f"{L7}; PORT_MAPS=80:8000,443:8000", f"{L7}; PORT_MAPS=80:8000"),
    ("misspelt-name", "KONG_TRUSTED_IP=10.0.0.0/8", "TRUSTED_IPS=10.0.0.0/8"),
    ("misspelt-name", "kong_trusted_ips=10.0.0.0/8", "TRUSTED_IPS=10.0.0.0/8"),
    ("misspelt-name", f"{L7}; KONGREALIP_FORWARDED_HEADER=auto", f"{L7}; KONGREALIP_FORWARDED_HEADERS=auto"),
    ("not-read-here", f"{L7}; NGINX_PROXY_SET_REAL_IP_FROM=10.0.0.0/8", L7),
    ("invalid", "TRUSTED_IPS=10.0.0.0/33", "TRUSTED_IPS=10.0.0.0/8"),
    ("invalid", f"{L7}; REAL_IP_RECURSIVE=true", f"{L7}; REAL_IP_RECURSIVE=on"),
    ("invalid", f"{L7} proxy-protocol", L7),
]  # fmt: skip
IDS = [f"{code}-{number}" for number, (code, _, _) in enumerate(PLANTED)]
EACH_PLANTED = pytest.mark.parametrize(("code", "faulty", "right"), PLANTED, ids=IDS)
#: Codes of manifests are planted in test_manifest.py.
OF_MANIFESTS = {
    "annotation-without-flag", "flag-without-annotation", "annotation-value", "cluster-policy",
    "ip-target-without-preservation", "header-behind-l4", "header-not-sent", "header-not-appended",
    "balancer-range-missing", "google-without-recursive", "probe-without-preamble", "unknown-value",
}  # fmt: skip
#: The fault is not in the client's address, or nothing gets one.
NOT_OF_ADDRESSES = {
    "invalid", "misspelt-name", "not-read-here", "source-without-flag", "believed-forwarded-proto",
    "all-listeners-flagged", "no-effect", "preamble-longer-than-nginx", "port-map-without-listener", "port-map-twice",
    "mapped-peers",
}  # fmt: skip
CLIENT = "203.0.113.7"
NAMES = {f"KONG_{key.upper()}" for key in READ} | {f"KONGREALIP_{key.upper()}" for key in READ_OF_OURS}
#: The name is told as the operator wrote it.
AS_WRITTEN = {"misspelt-name", "not-read-here"}


def found_in(environ: Environ, conf: str | None = None) -> list[Finding]:
    try:
        return findings_of(Settings.load(environ, conf))
    except SettingsError as error:
        return invalid_findings(error)


def codes(environ: Environ) -> set[str]:
    return {finding.code for finding in found_in(environ)}


def loud(environ: Environ) -> set[str]:
    """All but hints."""
    return {code for code in codes(environ) if SEVERITIES[code] != HINT}


@EACH_PLANTED
def test_planted_faults_are_found_and_nothing_else(code: str, faulty: str, right: str) -> None:
    assert loud(env(faulty)) | {code} == {code}
    assert code in codes(env(faulty))
    assert not loud(env(right))
    assert code not in codes(env(right))


def test_to_switch_off_what_is_off_is_no_slip() -> None:
    assert codes(env("REAL_IP_RECURSIVE=off; TRUSTED_IPS=")) == set()
    assert codes({}) == set()


def test_where_no_preamble_is_read_none_can_be_forged() -> None:
    assert loud(env(L4.replace("10.0.0.0/8", "0.0.0.0/0").replace(" proxy_protocol", ""))) == {
        "source-without-flag"
    }
    assert loud(env(L4.replace("10.0.0.0/8", "203.0.0.0/8").replace(" proxy_protocol", ""))) == {
        "source-without-flag"
    }


def test_every_code_is_planted() -> None:
    assert {code for code, _, _ in PLANTED} | OF_MANIFESTS == set(SEVERITIES)
    assert len(PLANTED) >= 25


def planted(code: str, faulty: str) -> Finding:
    return next(finding for finding in found_in(env(faulty)) if finding.code == code)


def client_of(finding: Finding, settings: Settings) -> str:
    """Who sends the example's request, asked anew from its text."""
    example, is_relay = finding.example, not {"real_ip_header", "proxy_listen"} & set(settings.given)
    listens = settings.stream_listen if settings.stream_listen and is_relay else settings.proxy_listen
    header = "proxy_protocol" if listens is settings.stream_listen else settings.real_ip_header
    rules = Rules(TrustedNetworks(settings.trusted_ips), header, settings.real_ip_recursive)
    preamble = None
    if example.preamble and (not listens or any(listen.proxy_protocol for listen in listens)):
        preamble, _ = parse(f"{example.preamble}\r\n".encode()) or (None, 0)
    pairs = [line.split(": ") for line in example.headers]
    lines = [value.encode() for name, value in pairs if name.lower() == header.lower()]
    told = trace(rules, settings.trusted_ips, Address(example.peer, 40000), preamble, lines)
    return told.resolution.client.ip


@EACH_PLANTED
def test_the_example_shows_the_fault(code: str, faulty: str, right: str) -> None:
    finding = planted(code, faulty)
    example = finding.example
    assert str(example)
    assert isinstance(example.preamble, str)
    if code in NOT_OF_ADDRESSES:
        assert example.client is example.right is None
        return
    # The client, an attacker that connects, or one that an honest balancer put last.
    last = "".join(example.headers[-1:]).rpartition(", ")[2]
    assert example.right in (CLIENT, example.peer, last)
    assert client_of(finding, Settings.load(env(faulty))) == example.client != example.right
    assert example.client in str(example)
    assert example.right in str(example)


@EACH_PLANTED
def test_the_variable_is_one_that_can_be_set(code: str, faulty: str, right: str) -> None:
    variable = planted(code, faulty).variable
    assert variable in (env(faulty) if code in AS_WRITTEN else NAMES)


@EACH_PLANTED
def test_what_stands_in_a_file_is_told_as_that(code: str, faulty: str, right: str) -> None:
    environ = env(faulty)
    in_file = {name: value for name, value in environ.items() if name.startswith("KONG_")}
    conf = "".join(f"{name.removeprefix('KONG_').lower()} = {value}\n" for name, value in in_file.items())
    for finding in found_in({name: environ[name] for name in environ if name not in in_file}, conf):
        assert finding.variable not in in_file


# What the fix says, done, is the end of the fault.
CURED = (
    "header-letter-case",
    "header-for-preamble",
    "header-unknown",
    "trust-without-effect",
    "misspelt-name",
)


@pytest.mark.parametrize(("code", "faulty", "right"), [case for case in PLANTED if case[0] in CURED])
def test_what_the_fix_says_cures(code: str, faulty: str, right: str) -> None:
    finding, environ = planted(code, faulty), env(faulty)
    word = finding.fix.removeprefix("write ").partition(",")[0].partition(" or ")[0]
    if code == "misspelt-name":
        environ[word] = environ.pop(finding.variable)
    else:
        environ[finding.variable] = word
    assert loud(environ) == set()


# Of these the twin gives the same request the right client. Elsewhere other requests are right now.
HEALED = {
    "trust-everybody", "trust-everybody-recursive", "trust-public-range", "trust-without-effect", "nobody-trusted",
    "preamble-unused", "unix-alone", "no-private-range", "header-letter-case", "header-for-preamble", "flag-without-source",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "faulty", "right"),
    [
        case
        for case in PLANTED
        if case[0] in HEALED and ", 0.0.0.0:8443" not in case[1] and "unix:; " not in case[2]
    ],
)
def test_the_twin_gives_the_examples_request_its_client(code: str, faulty: str, right: str) -> None:
    finding = planted(code, faulty)
    assert client_of(finding, Settings.load(env(right))) == finding.example.right


def test_variables_are_told_with_their_origin(tmp_path: Path) -> None:
    conf, env_file = tmp_path / "kong.conf", tmp_path / "app.env"
    conf.write_text("trusted_ips = 0.0.0.0/0\n")
    env_file.write_text("KONG_REAL_IP_HEADER=x-forwarded-for\n")
    result = run("--conf", conf, "--env-file", env_file)
    assert result.exit_code == 1
    assert "warning trust-everybody: trusted_ips in kong.conf\n" in result.stdout
    assert f"warning header-letter-case: KONG_REAL_IP_HEADER in {env_file}\n" in result.stdout


# --- the command ------------------------------------------------------------------------------


def run(*args: str | Path, environ: Environ | None = None, stdin: str | None = None) -> Result:
    names = [name for name in os.environ if name.upper().startswith(("KONG_", "KONGREALIP_"))]
    without = dict.fromkeys(names, None)
    return CliRunner().invoke(check, [*map(str, args)], env={**without, **(environ or {})}, input=stdin)


def test_clean() -> None:
    result = run(environ=env(L7))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "no findings\n", "")


def test_hints_are_shown_and_no_fault() -> None:
    result = run(environ=env(L4))
    assert result.exit_code == 0
    assert result.stdout.startswith("hint all-listeners-flagged: KONG_PROXY_LISTEN\n    problem: ")


def test_a_finding_is_a_block() -> None:
    result = run(environ=env(L7.replace("10.0.0.0/8", "0.0.0.0/0")))
    assert result.exit_code == 1
    first, problem, example, fix = result.stdout.splitlines()
    assert first == "warning trust-everybody: KONG_TRUSTED_IPS"
    assert problem.startswith("    problem: everybody is trusted")
    assert example == (
        "    example: 203.0.113.66 sends X-Forwarded-For: 6.6.6.6: the client is 6.6.6.6, and should be 203.0.113.66"
    )
    assert fix.startswith("    fix:     list the balancer's own networks")


def test_json() -> None:
    result = run("--json", environ=env(L7.replace("10.0.0.0/8", "0.0.0.0/0")))
    (finding,) = json.loads(result.stdout)
    assert set(finding) == {"severity", "code", "variable", "problem", "example", "fix"}
    assert finding["example"]["peer"] == finding["example"]["right"] == "203.0.113.66"
    assert finding["example"]["headers"] == ["X-Forwarded-For: 6.6.6.6"]
    assert json.loads(run("--json", environ=env(L7)).stdout) == []


def test_what_cannot_be_used_is_a_finding() -> None:
    result = run(environ=env("TRUSTED_IPS=10.0.0.0/33,x; REAL_IP_RECURSIVE=yes; KONGREALIP_SEND_PROXY=v3"))
    assert result.exit_code == 1
    assert re.findall(r"^error invalid: (\w+)$", result.stdout, re.M) == [
        "KONG_TRUSTED_IPS", "KONG_TRUSTED_IPS", "KONG_REAL_IP_RECURSIVE", "KONGREALIP_SEND_PROXY",
    ]  # fmt: skip


def test_an_environment_file_with_a_slip(tmp_path: Path) -> None:
    (tmp_path / "app.env").write_text("KONG_TRUSTED_IPS: 10.0.0.0/8\n")
    result = run("--env-file", tmp_path / "app.env")
    assert result.exit_code == 1
    assert f"error invalid: {tmp_path}/app.env\n    problem: line 1: write NAME=value\n" in result.stdout


@pytest.mark.parametrize(
    "args", [["--conf", "/missing"], ["--manifest", "/missing"], ["extra"], ["--nothing"]]
)
def test_wrong_usage(args: list[str]) -> None:
    assert run(*args).exit_code == 2


def test_bytes_of_no_encoding_are_shown(tmp_path: Path) -> None:
    (tmp_path / "kong.conf").write_bytes(b"trusted_ips = \xff\n")
    result = run("--conf", tmp_path / "kong.conf")
    assert result.exit_code == 1
    assert "\\udcff" in result.stdout


# --- what is shipped --------------------------------------------------------------------------


def blocks_of(path: Path) -> Iterator[Environ]:
    """Each KONG_* block: a line of shell with its program, or the lines of an environment file."""
    if path.suffix == ".env":
        yield parse_environment(path.read_text(encoding="utf-8"))
        return
    text = path.read_text(encoding="utf-8").replace("\\\\\n", "\\\n").replace("\\\n", " ")
    for block in re.findall(
        r"(?:^[ >]*(?:export |Environment=|ENV )?\"?KONG(?:REALIP)?_[A-Z_]+=.*\n)+", text, re.M
    ):
        lines = [line.strip(" >") for line in block.splitlines()]
        words = re.findall(
            r"(KONG(?:REALIP)?_[A-Z_]+)=(?:\"([^\"]*)\"|(\S*(?: proxy_protocol(?=$))?))",
            "\n".join(lines),
            re.M,
        )
        environ = {name: quoted or bare for name, quoted, bare in words}
        if len(words) == len(lines) and not re.search(r"\s(kongrealip|uvicorn|gunicorn)\s", block):
            environ = parse_environment("\n".join(lines))
        if re.search(r"\b(gunicorn|uvicorn|hypercorn|granian)\b", block):
            # Another server listens: docs/check.md.
            environ.setdefault("KONG_PROXY_LISTEN", "off")
        yield environ


SHIPPED = [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "examples").rglob("*.env")),
]  # fmt: skip
# What the text itself says is wrong with it, in the README beside Kong's own example. The last two are to
# be written with KONGREALIP_FORWARDED_HEADERS=auto.
SAID = {
    "README.md": {"trust-everybody", "believed-forwarded-proto"},
}


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.name != "check.md"], ids=lambda path: path.name
)
def test_what_is_shipped_is_clean(path: Path) -> None:
    for environ in blocks_of(path):
        assert loud(environ) <= SAID.get(path.name, set()), environ


def test_blocks_are_found() -> None:
    shown = list(blocks_of(ROOT / "README.md"))
    assert len(shown) >= 5
    assert {"KONG_PROXY_LISTEN": "0.0.0.0:8000 proxy_protocol, 0.0.0.0:8443 ssl proxy_protocol",
            "KONG_TRUSTED_IPS": "0.0.0.0/0,::/0", "KONG_REAL_IP_HEADER": "proxy_protocol"} in shown  # fmt: skip


def test_the_unit_of_systemd_is_clean() -> None:
    text = (ROOT / "examples/systemd/kongrealip.service").read_text()
    pairs = re.findall(r"^Environment=\"?(KONG\w+)=(.*?)\"?$", text, re.M)
    # The networks are in the environment file that it names.
    assert loud({**dict(pairs), "KONG_TRUSTED_IPS": "10.0.0.0/8"}) == set()


def manifests() -> list[Path]:
    return sorted({*ROOT.glob("*.y*ml"), *(ROOT / "examples").rglob("*.y*ml")})


@pytest.mark.parametrize("path", manifests(), ids=lambda path: str(path.relative_to(ROOT)))
def test_manifests_that_are_shipped_are_clean(path: Path) -> None:
    beside = path.parent / "app.env"
    environment: list[str | Path] = ["--env-file", beside] if beside.exists() else []
    result = run(*environment, "--manifest", path)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "overlay", sorted((ROOT / "examples/kubernetes/overlays").glob("*")), ids=lambda path: path.name
)
def test_overlays_that_are_shipped_are_clean(overlay: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kubectl = shutil.which("kubectl", path=path)
    if kubectl is None:
        pytest.skip("needs kubectl")
    rendered = subprocess.run(
        [kubectl, "kustomize", overlay], capture_output=True, text=True, check=True, timeout=60
    )
    result = run("--manifest", "-", stdin=rendered.stdout)
    assert (result.exit_code, result.stdout) == (0, "no findings\n")


# --- docs/check.md ----------------------------------------------------------------------------

DOCUMENT = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `([a-z0-9-]+)`\n(.*?)(?=^##|\Z)", DOCUMENT, re.M | re.S))


def test_the_block_that_is_told_is_the_real_one() -> None:
    assert f"```\n{run(environ=env('TRUSTED_IPS=0.0.0.0/0')).stdout}```\n" in DOCUMENT


def test_every_code_is_told_with_its_severity() -> None:
    assert {code: text.split(".")[0].strip().lower() for code, text in SECTIONS.items()} == SEVERITIES


@pytest.mark.parametrize("code", [code for code in SEVERITIES if code not in OF_MANIFESTS])
def test_what_is_told_of_a_code_is_so(code: str) -> None:
    faulty, right = (
        parse_environment(block) for block in re.findall(r"```sh\n(.*?)```", SECTIONS[code], re.S)
    )
    (finding,) = (finding for finding in found_in(faulty) if finding.code == code)
    assert f"> {finding.example}\n" in SECTIONS[code]
    assert code not in codes(right)


# --- properties -------------------------------------------------------------------------------

NETWORKS = [
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "unix:",
    "203.0.113.0/24",
    "::ffff:1.2.3.4",
    "fd00::/8",
    "127.0.0.1",
    "8.8.8.8",
]
LISTENS = [
    "0.0.0.0:8000",
    "0.0.0.0:8000 proxy_protocol",
    "0.0.0.0:8000, [::]:8443 ssl proxy_protocol ipv6only=off",
    "off",
]
HEADERS = [
    "X-Real-IP",
    "X-Forwarded-For",
    "x-forwarded-for",
    "proxy_protocol",
    "Proxy-Protocol",
    "Forwarded",
    "X-Odd",
]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "KONG_TRUSTED_IPS": st.lists(st.sampled_from(NETWORKS), max_size=4).map(",".join),
            "KONG_PROXY_LISTEN": st.sampled_from(LISTENS),
            "KONG_STREAM_LISTEN": st.sampled_from(LISTENS),
            "KONG_REAL_IP_HEADER": st.sampled_from(HEADERS),
            "KONG_REAL_IP_RECURSIVE": st.sampled_from(["on", "off"]),
            "KONG_PORT_MAPS": st.sampled_from(["80:8000", "80:1,81:1"]),
            "KONGREALIP_FORWARDED_HEADERS": st.sampled_from(["auto", "off", "trusted"]),
        },
    )
)
def test_no_finding_is_shown_by_a_request_that_goes_right(environ: Environ) -> None:
    for finding in findings_of(Settings.load(environ)):
        example = finding.example
        assert finding.problem
        assert finding.fix
        assert str(example)
        if example.client is not None:
            assert example.client != example.right
            assert parse_hop(example.client) is not None or example.client == "unix:"
        if finding.code in (
            "header-letter-case",
            "header-for-preamble",
            "header-unknown",
            "flag-without-source",
        ):
            assert example.client == "6.6.6.6"


# --- the same over real sockets ---------------------------------------------------------------

BEHIND_US = {"KONG_TRUSTED_IPS": "127.0.0.1"}
REAL = [
    ("header-letter-case", "", {"KONG_REAL_IP_HEADER": "x-forwarded-for"}),
    ("header-unknown", "", {"KONG_REAL_IP_HEADER": "X-Odd"}),
    ("header-rfc7239", "", {"KONG_REAL_IP_HEADER": "Forwarded"}),
    ("header-for-preamble", "proxy_protocol", {"KONG_REAL_IP_HEADER": "Proxy-Protocol"}),
    ("flag-without-source", "proxy_protocol", {"KONG_REAL_IP_HEADER": "X-Real-IP"}),
    ("believed-forwarded-proto", "proxy_protocol", {"KONG_REAL_IP_HEADER": "proxy_protocol"}),
]


@pytest.mark.parametrize(("code", "flags", "environ"), REAL, ids=[code for code, _, _ in REAL])
def test_the_example_is_true_of_a_real_server(
    code: str, flags: str, environ: Environ, kongrealip_server: StartServer
) -> None:
    asked = {**BEHIND_US, **environ, "KONG_PROXY_LISTEN": f"0.0.0.0:8000 {flags}"}
    example = next(finding.example for finding in found_in(asked) if finding.code == code)
    server = kongrealip_server(whoami, flags, **BEHIND_US, **environ)
    preamble = f"{example.preamble}\r\n".encode() if example.preamble else b""
    headers = [(name, value) for name, value in (line.split(": ") for line in example.headers)]
    assert example.peer == "127.0.0.1"
    seen = server.get("/", preamble=preamble, headers=headers).json()
    if example.client is None:
        assert seen["scheme"] == "https"
    else:
        assert seen["client_ip"] == example.client


def test_what_gets_no_client_is_true_of_a_real_server_too(kongrealip_server: StartServer) -> None:
    without_flag = next(finding for finding in found_in(env(L4.replace(" proxy_protocol", ""))))
    assert without_flag.code == "source-without-flag"
    plain = kongrealip_server(whoami, KONG_REAL_IP_HEADER="proxy_protocol")
    assert plain.get("/", preamble=f"{without_flag.example.preamble}\r\n".encode()).status == 400
    assert "gets 400" in str(without_flag.example)
    (flagged,) = found_in(env(L4))
    assert flagged.code == "all-listeners-flagged"
    demanding = kongrealip_server(whoami, "proxy_protocol")
    with pytest.raises(OSError, match=r"closed|reset"):
        demanding.get("/health")
    assert "closed without an answer" in str(flagged.example)


def test_yaml_is_asked_for_only_where_there_are_manifests(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise ImportError\n")
    (tmp_path / "app.yaml").write_text("kind: List\n")
    environ = {**clean_environ(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code = "from kongrealip.cli.check import check; check()"

    def checked(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args], env=environ, capture_output=True, text=True, timeout=60
        )

    assert checked().returncode == 0
    missing = checked("--manifest", tmp_path / "app.yaml")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == "kongrealip: --manifest needs PyYAML, pip install 'kongrealip[check]'\n"
