"""The command line: each option, each exit code, in processes as an operator starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import kongrealip
from kongrealip.cli import main as command_line
from kongrealip.server.tls import self_signed
from tests.lab import client_tls
from tests.running import clean_environ, connect, fetch, free_port, serving, wait_until


def run(
    *args: str, environ: dict[str, str] | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """A process that ends by itself."""
    command = [sys.executable, "-m", "kongrealip", *args]
    env = {**clean_environ(), **(environ or {})}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def listen_on_loopback() -> dict[str, str]:
    return {"KONG_PROXY_LISTEN": f"127.0.0.1:{free_port()}"}


def test_version() -> None:
    result = run("--version")
    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"kongrealip {kongrealip.__version__}, Python {python}, uvicorn {version('uvicorn')}"
    assert (result.returncode, result.stdout) == (0, f"{expected}, uvloop {version('uvloop')}\n")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(command_line.cli, args)


@pytest.mark.parametrize("command", [(), ("serve",), ("demo",)])
def test_help(command: tuple[str, ...]) -> None:
    assert invoke(*command, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("serve", "main"), "APP must be module:attribute"),
        (("serve", ":app"), "APP must be module:attribute"),
        (("serve", "--factory"), "--factory needs an APP"),
        (("serve", "--conf", "/no/such/file"), "does not exist"),
        (("serve", "--loop", "trio"), "is not one of"),
        (("serve", "--wrong"), "No such option"),
        (("wrong",), "No such command"),
    ],
)
def test_wrong_usage_is_2(args: tuple[str, ...], message: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output


def app_file(folder: Path, text: str) -> None:
    (folder / "some_app.py").write_text(text)


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("", ("no_such_module:app",), "cannot import the application"),
        ("", ("some_app:app",), 'Attribute "app" not found'),
        ("1 / 0", ("some_app:app",), "ZeroDivisionError"),
        ("def app(): 1 / 0", ("some_app:app", "--factory"), "cannot call the factory 'some_app:app'"),
    ],
)
def test_an_application_that_cannot_be_imported_is_3(
    tmp_path: Path, text: str, args: tuple[str, ...], message: str
) -> None:
    app_file(tmp_path, text)
    result = run("serve", *args, "--app-dir", str(tmp_path), environ=listen_on_loopback())
    assert result.returncode == 3
    assert message in result.stderr.splitlines()[-1]


def test_a_lifespan_that_fails_is_3(tmp_path: Path) -> None:
    app_file(tmp_path, FAILING_LIFESPAN)
    result = run("serve", "some_app:app", "--app-dir", str(tmp_path), environ=listen_on_loopback())
    assert result.returncode == 3
    assert "no database" in result.stderr


FAILING_LIFESPAN = """
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""


def test_a_port_in_use_is_3() -> None:
    environ = listen_on_loopback()
    with serving(environ):
        result = run("serve", environ=environ)
    assert result.returncode == 3
    assert (
        f"kongrealip: cannot listen on {environ['KONG_PROXY_LISTEN']}: Address already in use"
        in result.stderr
    )


def test_a_configuration_that_cannot_be_used_is_3_with_a_line_for_each_problem() -> None:
    result = run("serve", environ={"KONG_TRUSTED_IPS": "a, b", "KONG_LOG_LEVEL": "loud"})
    assert result.returncode == 3
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        ["kongrealip", "KONG_TRUSTED_IPS", "entry 1 'a'"],
        ["kongrealip", "KONG_TRUSTED_IPS", "entry 2 'b'"],
        ["kongrealip", "KONG_LOG_LEVEL", "'loud'"],
    ]


@pytest.mark.parametrize(
    ("environ", "args", "message"),
    [
        ({"KONG_PROXY_LISTEN": "off"}, (), "off leaves nothing to serve on"),
        ({}, ("--uds", "/no/such/folder/sock"), "cannot listen on unix:/no/such/folder/sock"),
        ({}, ("--uds", "/tmp/x wrong"), "unknown flag 'wrong'"),
        (
            {
                "KONG_PROXY_LISTEN": "127.0.0.1:1 ssl",
                "KONG_SSL_CERT": "/no/cert",
                "KONG_SSL_CERT_KEY": "/no/key",
            },
            (),
            "KONG_SSL_CERT / KONG_SSL_CERT_KEY: entry 1 cannot be loaded: no such file: /no/cert",
        ),
        (
            {"KONG_PROXY_LISTEN": "127.0.0.1:1 ssl", "KONG_SSL_PROTOCOLS": "SSLv3"},
            (),
            "none of these can be served",
        ),
    ],
)
def test_what_else_keeps_it_from_starting(
    environ: dict[str, str], args: tuple[str, ...], message: str
) -> None:
    result = run("serve", *args, environ=environ)
    assert result.returncode == 3
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_as_asked_is_0(number: int) -> None:
    with serving(listen_on_loopback()) as server:
        os.kill(server.pid, number)
        assert server.wait() == 0


def test_the_start_says_what_is_in_force() -> None:
    port = free_port()
    environ = {
        "KONG_PROXY_LISTEN": f"127.0.0.1:{port} proxy_protocol http2",
        "KONG_TRUSTED_IPS": "0.0.0.0/0,::/0",
        "KONG_REAL_IP_HEADER": "X-Forwarded-For",
        "KONG_REAL_IP_RECURSIVE": "on",
        "KONG_TRUSTED_IP": "10.0.0.1",
    }
    with serving(environ) as server:
        log = server.wait_for_stderr("Application startup complete")
    assert f"INFO listening on 127.0.0.1:{port} http2 proxy_protocol" in log
    assert "INFO client address from X-Forwarded-For, recursive, trusted: 0.0.0.0/0, ::/0" in log
    assert "WARNING KONG_TRUSTED_IPS: everybody is trusted" in log
    assert "WARNING KONG_TRUSTED_IP: is not a name that is read; write KONG_TRUSTED_IPS" in log


def test_http2_without_the_package_for_it(tmp_path: Path) -> None:
    (tmp_path / "zttp.py").write_text("raise ImportError")
    environ = {"KONG_PROXY_LISTEN": f"127.0.0.1:{free_port()} http2", "PYTHONPATH": str(tmp_path)}
    with serving(environ) as server:
        assert fetch(server.port)["http_version"] == "1.1"
        assert "HTTP/1.1 is served, http2 needs pip install 'kongrealip[http2]'" in server.stderr


def test_a_kong_conf_and_the_environment_over_it(tmp_path: Path) -> None:
    conf = tmp_path / "kong.conf"
    port = free_port()
    conf.write_bytes(
        b"trusted_ips = 127.0.0.0/8 # loopback\r\nreal_ip_header = X-Client-IP\r\n"
        + f"proxy_listen = 127.0.0.1:{port}\r\n".encode()
    )
    headers = (("X-Client-IP", "203.0.113.7"), ("X-Other", "203.0.113.8"))
    with serving({"KONG_PROXY_LISTEN": f"127.0.0.1:{port}"}, "--conf", conf):
        assert fetch(port, headers=headers)["client_ip"] == "203.0.113.7"
    with serving(
        {"KONG_PROXY_LISTEN": f"127.0.0.1:{port}", "KONG_REAL_IP_HEADER": "X-Other"}, "--conf", conf
    ):
        assert fetch(port, headers=headers)["client_ip"] == "203.0.113.8"


def test_factory_app_dir_and_access_log(tmp_path: Path) -> None:
    app_file(tmp_path, "from kongrealip.cli import whoami\ndef make(): return whoami.app\n")
    environ = {**listen_on_loopback(), "KONG_TRUSTED_IPS": "127.0.0.0/8"}
    with serving(environ, "some_app:make", "--factory", "--app-dir", tmp_path) as server:
        assert fetch(server.port, headers=(("X-Real-IP", "203.0.113.7:9"),))["source"] == "X-Real-IP"
        wait_until(lambda: '"GET / HTTP/1.1" 200' in server.stdout, "a line for the request")
    with serving(environ, "some_app:make", "--factory", "--app-dir", tmp_path, "--no-access-log") as server:
        fetch(server.port)
        server.terminate()
        assert server.wait() == 0
        assert server.stdout == ""


def unix_request(path: Path, data: bytes) -> bytes:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


def test_uds_alone_and_beside_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    request = b"GET / HTTP/1.1\r\nHost: x\r\nX-Real-IP: 203.0.113.7\r\nConnection: close\r\n\r\n"
    environ = {**listen_on_loopback(), "KONG_TRUSTED_IPS": "unix:"}
    with serving(environ, "--uds", path):
        assert b'"client_ip":"203.0.113.7","client_port":null,"peer_ip":"unix:"' in unix_request(
            path, request
        )
    assert not path.exists(), "it is taken away at the end"
    preamble = b"PROXY TCP4 198.51.100.23 1.1.1.1 40001 443\r\n"
    environ = {**listen_on_loopback(), "KONG_TRUSTED_IPS": "unix:", "KONG_REAL_IP_HEADER": "proxy_protocol"}
    with serving(environ, "--uds", f"{path} proxy_protocol") as server:
        assert b'"client_ip":"198.51.100.23","client_port":40001' in unix_request(path, preamble + request)
        assert "no listener has that flag" not in server.stderr


def test_certificates_from_files_and_from_text(tmp_path: Path) -> None:
    certificate, key = self_signed()
    (tmp_path / "cert.pem").write_text(certificate)
    (tmp_path / "key.pem").write_text(key)
    for pair in ((str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")), (certificate, key)):
        port = free_port()
        environ = {
            "KONG_PROXY_LISTEN": f"127.0.0.1:{port} ssl",
            "KONG_SSL_CERT": pair[0],
            "KONG_SSL_CERT_KEY": pair[1],
        }
        with serving(environ), client_tls().wrap_socket(connect(port), server_hostname="localhost") as sock:
            assert sock.version() == "TLSv1.3"
            assert sock.selected_alpn_protocol() is None


def test_without_cryptography_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(kongrealip.KongRealIPError, match=r"pip install 'kongrealip\[selfsigned\]'"):
        self_signed()


def test_demo() -> None:
    result = run("demo", environ={"KONG_TRUSTED_IPS": "not read by the demo"})
    assert result.returncode == 0
    for expected in ("203.0.113.7:51000", "198.51.100.23:40001", "203.0.113.50", "127.0.0.9", "127.0.0.66"):
        assert expected in result.stdout
    assert "refused" not in result.stderr


def test_demo_that_stays() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "kongrealip", "demo", "--stay"],
        env=clean_environ(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    with process.stdout as output:
        line = next(line for line in output if line.startswith("Serving on "))
        port = int(line.split("127.0.0.1:")[2].split(".")[0])
        assert fetch(port)["client_ip"] == "127.0.0.9"
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_main_takes_arguments(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--version"])
    assert ended.value.code == 0
    assert "kongrealip" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "worker"])
def test_garbage_is_collected_by_whoever_serves(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """It is not while a server starts."""
    (tmp_path / "collecting.py").write_text(
        "import gc\n"
        "from starlette.responses import JSONResponse\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await JSONResponse({'is_enabled': gc.isenabled()})(scope, receive, send)\n"
    )
    port = free_port()
    listen = {"KONG_PROXY_LISTEN": f"127.0.0.1:{port}"}
    with serving(listen, "collecting:app", "--app-dir", tmp_path, *workers):
        assert fetch(port) == {"is_enabled": True}
