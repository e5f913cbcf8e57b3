"""docker-compose.yml, as far as it can be tested without an engine. tests/test_lab.py runs what it describes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from kongrealip import Settings
from kongrealip.config.check import serve_warnings
from tests.running import LOOPBACK, clean_environ, free_port, serving

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SERVING = {name: service for name, service in OURS.items() if "entrypoint" not in service}
EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_it_is_a_compose_file() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT, env=clean_environ(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_the_profiles() -> None:
    profiles = [profile for service in SERVICES.values() for profile in service["profiles"]]
    assert set(profiles) == {"l4", "l7", "chain", "kong"}


@EVERY_SERVICE
def test_images_are_pinned(service: Any) -> None:
    _, _, tag = service["image"].partition(":")
    assert tag == "local" if "build" in service else re.match(r"v?\d+\.\d+", tag)


@EVERY_SERVICE
def test_ports_are_published_on_this_host_alone(service: Any) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_no_port_is_published_twice() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published)) == 6
    header = (ROOT / "docker-compose.yml").read_text().partition("x-app")[0]
    assert all(port in header for port in published), "and each is told at the top"


@EVERY_SERVICE
def test_mounted_files_are_there_and_are_not_written_to(service: Any) -> None:
    for volume in service.get("volumes", []):
        source, _, mode = volume.split(":")
        assert (ROOT / source).is_file()
        assert mode == "ro"


@EVERY_SERVICE
def test_nobody_gains_privileges_and_everybody_is_asked_how_it_is(service: Any) -> None:
    assert "no-new-privileges:true" in service["security_opt"]
    # Our own image brings its health check along.
    assert "build" in service or service["healthcheck"]["test"][0] == "CMD"
    assert all(wanted["condition"] == "service_healthy" for wanted in service.get("depends_on", {}).values())


@pytest.mark.parametrize("service", OURS.values(), ids=OURS)
def test_our_containers_cannot_write_and_can_do_nothing(service: Any) -> None:
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


@pytest.mark.parametrize("name", SERVING)
def test_the_environment_is_what_check_would_have(name: str) -> None:
    settings = Settings.load(SERVING[name]["environment"])
    assert serve_warnings(settings) == []


@pytest.mark.parametrize("name", SERVING)
def test_only_what_stands_in_front_is_trusted(name: str) -> None:
    in_front = {
        service["networks"]["lab"]["ipv4_address"]
        for service in SERVICES.values()
        if name in service.get("depends_on", {})
    }
    assert set(Settings.load(SERVING[name]["environment"]).trusted_ips) == in_front


def test_nginx_trusts_haproxy_alone() -> None:
    haproxy = SERVICES["chain-haproxy"]["networks"]["lab"]["ipv4_address"]
    assert SERVICES["chain-nginx"]["environment"]["TRUSTED"] == haproxy


def test_templates_have_the_variables_that_are_set() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = ROOT / volume.split(":")[0]
            if source.suffix in (".template", ".cfg"):
                named = set(re.findall(r"^[^#]*?\$\{(\w+)\}", source.read_text(), re.MULTILINE))
                assert named == set(service["environment"]), source


# Kong


def test_kong_and_this_server_get_the_same() -> None:
    ours, kongs = SERVICES["app-kong"]["environment"], SERVICES["kong"]["environment"]
    assert ours.items() <= kongs.items()
    assert set(kongs) - set(ours) == {"KONG_DATABASE", "KONG_DECLARATIVE_CONFIG", "KONG_ADMIN_LISTEN"}
    assert SERVICES["kong"]["image"] == "kong:3.9"


def test_kong_answers_in_the_words_that_are_compared() -> None:
    kong = yaml.safe_load((ROOT / "examples/compose/kong/kong.yml").read_text())
    (service,) = kong["services"]
    (code,) = service["plugins"][0]["config"]["access"]
    answered = set(re.findall(r"(\w+) = kong\.\w+\.\w+\(\)", code))
    compare = (ROOT / "examples/compose/compare.py").read_text()
    assert answered == {"client_ip", "client_port", "peer_ip", "scheme", "host", "port", "path"}
    assert all(f'"{name}"' in compare for name in answered)


@pytest.fixture
def two_servers() -> Iterator[tuple[str, str, str]]:
    """Two as in the profile ``kong``, and one that does not walk past trusted hops."""
    asked = SERVICES["app-kong"]["environment"] | {"KONG_TRUSTED_IPS": f"{LOOPBACK},203.0.113.0/24"}
    del asked["KONG_STATUS_LISTEN"]
    with ExitStack() as stack:
        addresses = []
        for recursive in ("on", "on", "off"):
            port = free_port()
            own = {
                "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}",
                "KONG_PORT_MAPS": f"80:{port}",
                "KONG_REAL_IP_RECURSIVE": recursive,
            }
            stack.enter_context(serving(asked | own))
            addresses.append(f"{LOOPBACK}:{port}")
        first, second, third = addresses
        yield first, second, third


def test_compare_shows_what_is_equal_and_what_is_not(two_servers: tuple[str, str, str]) -> None:
    first, second, third = two_servers
    equal, different = (compare(first, other) for other in (second, third))
    rows = equal.stdout.splitlines()[1:]
    assert (equal.returncode, equal.stderr) == (0, "")
    assert len(rows) == 9
    assert all(row.endswith("yes") for row in rows)
    assert "203.0.113.7, port 51000, http://asked.example:80/a/b" in equal.stdout
    assert "https://shop.example:8443/a/b" in equal.stdout
    assert different.returncode == 1
    wrong = [row for row in different.stdout.splitlines() if row.endswith("NO")]
    assert [row.split("  ")[0] for row in wrong] == ["forged in front"]


def compare(*servers: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(ROOT / "examples/compose/compare.py"), *servers]
    return subprocess.run(
        command, env=clean_environ(), capture_output=True, text=True, timeout=60, check=False
    )
