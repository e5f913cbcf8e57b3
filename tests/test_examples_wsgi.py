"""Flask and Django as examples and documentation have them, under the servers that are named there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kongrealip.address import Address
from kongrealip.preamble import writing
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    Program,
    clean_environ,
    client,
    fetch,
    free_port,
    running,
    wait_until,
)

ROOT = Path(__file__).parent.parent
# Kong takes X-Forwarded-Proto from the peer alone, so nobody but the balancer is trusted.
CONFIGURED = {
    "KONG_TRUSTED_IPS": LOOPBACK,
    "KONG_REAL_IP_HEADER": "X-Forwarded-For",
    "KONG_REAL_IP_RECURSIVE": "on",
}
COMMANDS = {
    "flask": ["gunicorn", "examples.flask_app:app"],
    "django": ["gunicorn", "examples.django_app:application"],
    "django, ASGI": ["uvicorn", "--no-proxy-headers", "examples.django_app:asgi_application"],
    "django, kongrealip serve": ["kongrealip", "serve", "examples.django_app:asgi_application"],
}
FORWARDED = [
    ("X-Forwarded-For", f"6.6.6.6, 203.0.113.7, {LOOPBACK}"),
    ("X-Forwarded-Proto", "https"),
]


@contextmanager
def started(
    command: list[str], folder: Path = ROOT, configured: Mapping[str, str] = CONFIGURED
) -> Iterator[Program]:
    """A command of the documentation, on a port of its own."""
    port = free_port()
    environ = clean_environ() | dict(configured)
    environ |= {
        "GUNICORN_CMD_ARGS": f"--bind={LOOPBACK}:{port} --no-control-socket --access-logfile=-",
        "UVICORN_PORT": str(port),
        "GRANIAN_PORT": str(port),
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}",
    }
    words = [word.format(f"{LOOPBACK}:{port}") for word in command]
    with running([sys.executable, "-m", *words], environ, [port], folder) as program:
        yield program


@pytest.fixture(scope="module", params=COMMANDS)
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    with started(COMMANDS[request.param]) as found:
        yield found


def test_a_trusted_peer_names_client_and_scheme(program: Program) -> None:
    assert fetch(program.port, source_ip=LOOPBACK, headers=FORWARDED) == {
        "client": "203.0.113.7",
        "peer": LOOPBACK,
        "source": "X-Forwarded-For",
        "secure": True,
        "link": f"https://{LOOPBACK}/",
    }


def test_nobody_else_does(program: Program) -> None:
    assert fetch(program.port, headers=FORWARDED) == {
        "client": CLIENT_IP,
        "peer": CLIENT_IP,
        "source": "peer",
        "secure": False,
        "link": f"http://{LOOPBACK}/",
    }


@pytest.mark.parametrize("name", ["flask_app", "django_app"])
def test_the_docstrings_have_these_commands(name: str) -> None:
    docstring = (ROOT / "examples" / f"{name}.py").read_text().split('"""')[1].replace("\\\\\n", "")
    told = [
        [word for word in shlex.split(line) if "=" not in word]
        for line in docstring.splitlines()
        if re.match(r" {4}(?!export)", line)
    ]
    assert told
    assert all(command in COMMANDS.values() for command in told)


def blocks(page: str, language: str) -> list[str]:
    """What is shown in a page, where it stands in a list as well."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def as_told(shown: str) -> tuple[dict[str, str], list[str]]:
    """A command line: its variables and its words. The balancer is on loopback here."""
    words = shlex.split(shown.replace("\\\n", " ").replace("10.0.0.0/8", LOOPBACK))
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    return variables, [word for word in words if not re.match(r"[A-Z_]+=", word)]


def test_flask_in_three_steps(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(blocks("flask.md", "python")[0])
    install, run, run_with_preamble = map(as_told, blocks("flask.md", "sh"))
    assert install[1][:2] == ["pip", "install"]
    with started(run[1], tmp_path, run[0]) as program:
        headers = [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https")]
        seen = fetch(program.port, source_ip=LOOPBACK, headers=headers)
        assert seen == {"client": "203.0.113.7", "secure": True}
        assert fetch(program.port, headers=headers) == {"client": CLIENT_IP, "secure": False}
        wait_until(lambda: "203.0.113.7 - - [" in program.stdout, "the line of the access log")
    with started(run_with_preamble[1], tmp_path, run_with_preamble[0]) as program:
        preamble = writing.v2(Address("203.0.113.7", 5), Address("10.0.0.1", 80))
        with client(program.port, LOOPBACK, preamble=preamble) as asking:
            assert asking.get() == {"client": "203.0.113.7", "secure": False}


VIEW = """
from django.http import JsonResponse
from django.urls import path
from kongrealip.middleware.wsgi import resolution_of

def seen(request):
    because = resolution_of(request).source
    return JsonResponse({"client": request.META["REMOTE_ADDR"], "link": request.build_absolute_uri(), "why": because})

urlpatterns = [path("", seen)]
"""


@pytest.fixture(scope="module")
def mysite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("django")
    command = [sys.executable, "-m", "django", "startproject", "mysite", str(folder)]
    subprocess.run(command, check=True, timeout=60, env=clean_environ())
    for name, block in zip(("wsgi", "asgi"), blocks("django.md", "python"), strict=True):
        (folder / "mysite" / f"{name}.py").write_text(block)
    (folder / "mysite" / "urls.py").write_text(VIEW)
    return folder


@pytest.mark.parametrize("number", [1, 2], ids=["wsgi", "asgi"])
def test_django_in_three_steps(mysite: Path, number: int) -> None:
    variables, command = as_told(blocks("django.md", "sh")[number])
    with started(command, mysite, variables) as program:
        headers = [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https")]
        seen = fetch(program.port, source_ip=LOOPBACK, headers=headers)
        assert seen == {"client": "203.0.113.7", "link": f"https://{LOOPBACK}/", "why": "X-Forwarded-For"}
        seen = fetch(program.port, headers=headers)
        assert seen == {"client": CLIENT_IP, "link": f"http://{LOOPBACK}/", "why": "peer"}


BOTH_SPELLINGS = [("X-Forwarded-For", "203.0.113.7"), ("X_Forwarded_For", "6.6.6.6")]


# For hypercorn the port stands in the command: it has no variable for that.
@pytest.mark.parametrize(
    "command",
    ["hypercorn --bind {} app:app", "granian --interface asgi app:app", "kongrealip serve app:app"],
)
def test_flask_under_servers_that_mix_spellings_up(tmp_path: Path, command: str) -> None:
    (tmp_path / "app.py").write_text(blocks("servers.md", "python")[0])
    with started(command.split(), tmp_path) as program:
        seen = fetch(program.port, source_ip=LOOPBACK, headers=BOTH_SPELLINGS)
        assert seen == {"client": "203.0.113.7"}
