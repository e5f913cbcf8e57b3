"""The fixture ``kongrealip_server``, as users' tests have it, and what docs/embedding.md promises."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
import tomllib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kongrealip import SettingsError, pytest_plugin
from kongrealip.cli import whoami
from kongrealip.errors import StartError
from kongrealip.pytest_plugin import StartServer
from tests.running import accepts, exchange, free_port, wait_until

pytest_plugins = ["pytester"]
kongrealip_server = pytest_plugin.kongrealip_server

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
TRUST = {"KONG_TRUSTED_IPS": "127.0.0.1"}
BY_PREAMBLE = {**TRUST, "KONG_REAL_IP_HEADER": "proxy_protocol"}
# Whether or not the plugin is registered for everybody here.
ALONE = ("-p", "kongrealip.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")


@pytest.mark.parametrize("flags", ["proxy_protocol", "ssl proxy_protocol"])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("ip", ["203.0.113.7", "2001:db8::7"])
def test_preambles_of_both_versions(
    kongrealip_server: StartServer, flags: str, version: str, ip: str
) -> None:
    server = kongrealip_server(whoami.app, flags, **BY_PREAMBLE)
    preamble = {"v1": server.v1, "v2": server.v2}[version](ip, 51000)
    answer = server.get("/a?b=c", preamble=preamble)
    assert answer.status == 200
    assert answer.headers["CONTENT-TYPE"] == "application/json"
    seen = answer.json()
    assert (seen["client_ip"], seen["client_port"], seen["source"]) == (ip, 51000, "proxy_protocol")
    assert (seen["path"], seen["tls"]) == ("/a", flags.startswith("ssl"))


def test_tlvs(kongrealip_server: StartServer) -> None:
    server = kongrealip_server(whoami.app, "proxy_protocol", **BY_PREAMBLE)
    tlvs = {0xEA: b"\x01vpce-0a1b2c", 0x02: b"a.test"}
    seen = server.get(preamble=server.v2("203.0.113.7", 51000, tlvs)).json()
    assert seen["preamble"]["tlvs"] == {"ea": b"\x01vpce-0a1b2c".hex(), "02": b"a.test".hex()}


@pytest.mark.parametrize("ip", ["balancer", "", "203.0.113"])
def test_a_preamble_that_would_name_nobody_is_an_error(kongrealip_server: StartServer, ip: str) -> None:
    server = kongrealip_server(whoami.app, "proxy_protocol", **BY_PREAMBLE)
    for make in (server.v1, server.v2):
        with pytest.raises(ValueError, match="no IP address"):
            make(ip, 1)


def test_headers_count_from_trusted_peers_only(kongrealip_server: StartServer) -> None:
    server = kongrealip_server(whoami.app, KONG_REAL_IP_HEADER="X-Forwarded-For", **TRUST)
    lines = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "203.0.113.7")]
    for headers in ({"X-Forwarded-For": "203.0.113.7"}, lines):
        assert server.get(headers=headers).json()["client_ip"] == "203.0.113.7"
        seen = server.get(headers=headers, source_ip="127.0.0.9").json()
        assert (seen["client_ip"], seen["source"]) == ("127.0.0.9", "peer")


@pytest.mark.parametrize("flags", ["proxy_protocol", "ssl proxy_protocol"])
def test_no_preamble_is_no_answer(kongrealip_server: StartServer, flags: str) -> None:
    server = kongrealip_server(whoami.app, flags, **BY_PREAMBLE)
    with pytest.raises(OSError):  # noqa: PT011 - TLS and HTTP have different ones
        server.get()


def test_a_connection_for_what_is_no_get(kongrealip_server: StartServer) -> None:
    server = kongrealip_server(whoami.app, "ssl proxy_protocol", **BY_PREAMBLE)
    with server.connect(server.v1("203.0.113.7", 1), server_name="a.test") as sock:
        sock.sendall(b"POST / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        with sock.makefile("rb") as file:
            assert b'"method":"POST"' in file.read()


def test_the_access_log_is_off_unless_it_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "access.log"
    # A line is written behind the answer, so the servers are to end first.
    with ExitStack() as stack:
        start = StartServer(stack)
        start(whoami.app).get("/quiet")
        start(whoami.app, KONG_PROXY_ACCESS_LOG=str(path)).get("/loud")
    assert "GET /loud" in path.read_text()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "environ", "error"),
    [
        ("proxy_protocl", {}, ValueError),
        ("", {"KONG_TRUSTED_IP": "127.0.0.1"}, TypeError),
        ("", {"KONG_PROXY_LISTEN": "127.0.0.1:8000"}, TypeError),
        ("", {"KONG_TRUSTED_IPS": "nonsense"}, SettingsError),
        ("ssl", {"KONG_SSL_CERT": "/nowhere", "KONG_SSL_CERT_KEY": "/nowhere"}, StartError),
    ],
)
def test_what_cannot_be_served_is_an_error_at_once(
    kongrealip_server: StartServer, flags: str, environ: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        kongrealip_server(whoami.app, flags, **environ)


def test_servers_end_with_the_test() -> None:
    threads = set(threading.enumerate())
    with ExitStack() as stack:
        start = StartServer(stack)
        servers = [start(whoami.app) for _ in range(3)]
        assert [server.get().status for server in servers] == [200] * 3
    for server in servers:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port), 5):
            pass
    assert set(threading.enumerate()) == threads


def test_an_application_that_never_answers_does_not_hold_up_the_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pytest_plugin, "_PATIENCE_SECONDS", 1.5)
    begun = threading.Event()

    async def endless(request: Request) -> JSONResponse:
        begun.set()
        await asyncio.Event().wait()
        return JSONResponse("never")

    with ExitStack() as stack:
        stack.enter_context(pytest.raises(TimeoutError, match="still answering"))
        server = StartServer(stack)(Starlette(routes=[Route("/", endless)]))
        sock = server.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert begun.wait(5)
    with sock:
        assert sock.recv(1) == b""


def test_importing_the_plugin_brings_no_server() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import kongrealip.pytest_plugin;"
        "print(*sorted({'asyncio', 'ssl', 'uvicorn', 'starlette', 'anyio', 'kongrealip.server'}"
        " & set(sys.modules) - before))"
    )
    # An empty environment: coverage would follow into the process, and bring modules of its own.
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_pytest_finds_the_plugin_by_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"kongrealip": "kongrealip.pytest_plugin"}


@pytest.fixture
def fresh(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory of a user's, in which no plugin is there that is not asked for."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester


def run_tests(fresh: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return fresh.runpytest_subprocess(*ALONE, *arguments, timeout=60)


def test_the_guides_tests_run_as_they_stand(fresh: pytest.Pytester) -> None:
    program, asynchronous, synchronous = BLOCKS
    fresh.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    fresh.makepyfile(main=program)
    fresh.makepyfile(test_async=f"from main import app\n{asynchronous}")
    fresh.makepyfile(test_fixture=f"from main import app\n{synchronous}")
    run_tests(fresh, "-p", "pytest_asyncio.plugin").assert_outcomes(passed=3)


def test_the_guides_program_runs_until_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "docs/embedding.md", "exec"), names)
    port = free_port()
    monkeypatch.setenv("KONG_PROXY_LISTEN", f"127.0.0.1:{port}")
    monkeypatch.setenv("KONG_PROXY_ACCESS_LOG", "off")

    async def main() -> None:
        until = asyncio.Event()
        program = asyncio.create_task(names["main"](until))
        answer = await asyncio.to_thread(answer_of, port)
        until.set()
        await program
        assert answer.endswith(b"127.0.0.9")

    asyncio.run(asyncio.wait_for(main(), 20))


def answer_of(port: int) -> bytes:
    wait_until(partial(accepts, port), f"port {port}")
    answer, _ = exchange(port, b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
    return answer


def test_who_does_not_use_the_fixture_is_not_disturbed(fresh: pytest.Pytester) -> None:
    fresh.makepyfile(
        test_of_a_user="""
        import sys, threading

        def test_nothing_is_there():
            assert "kongrealip.server" not in sys.modules
            assert "uvicorn" not in sys.modules
            assert threading.active_count() == 1
        """
    )
    run_tests(fresh).assert_outcomes(passed=1)


def test_a_failing_test_of_a_user_fails_and_ends(fresh: pytest.Pytester) -> None:
    fresh.makepyfile(
        test_of_a_user="""
        async def app(scope, receive, send):
            raise RuntimeError

        def test_in_vain(kongrealip_server):
            assert kongrealip_server(app).get("/").status == 200
        """
    )
    result = run_tests(fresh)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 500 == 200*"])
