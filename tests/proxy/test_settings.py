"""What an operator may say of the sidecar, and ``kongrealip proxy`` as one starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kongrealip.config.check import proxy_warnings
from kongrealip.config.proxy import ProxySettings, load_proxy, parse_url
from kongrealip.config.relay import Upstream
from kongrealip.errors import SettingsError
from tests.proxy.lab import OK, answering, echoing_heads, get, lines_of, split, upstream
from tests.running import LOOPBACK, Program, clean_environ, free_port, running, wait_until


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000),
        ("HTTP://app/", "app", 80),
        ("http://[2001:db8::1]:9000", "2001:db8::1", 9000),
        ("http://[::1]", "::1", 80),
        ("unix:/run/app.sock", "unix:/run/app.sock", 0),
    ],
)
def test_upstreams(text: str, host: str, port: int) -> None:
    assert parse_url(text) == Upstream(host, port)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://app:443", "there is no TLS to an upstream"),
        ("app:9000", "write http://HOST:PORT"),
        ("ftp://app", "write http://HOST:PORT"),
        ("http://app/path", "write http://HOST:PORT"),
        ("http://app?x", "write http://HOST:PORT"),
        ("http://user@app", "write http://HOST:PORT"),
        ("http://", "behind http://"),
        ("http://app:0", "the port must be within 1 to 65535"),
        ("http://::1:80", "in brackets"),
        ("unix:run", "from the root"),
    ],
)
def test_upstreams_that_are_none(text: str, hint: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_proxy({"KONGREALIP_UPSTREAM": f"http://fine:1, {text}"})
    (problem,) = error.value.problems
    assert problem.startswith(f"KONGREALIP_UPSTREAM: entry 2 {text!r}: ")
    assert hint in problem


def test_everything_else() -> None:
    environ = {
        "KONGREALIP_UPSTREAM": "http://a:1, unix:/b",
        "KONGREALIP_PRESERVE_HOST": "on",
        "KONGREALIP_CONNECT_TIMEOUT": "500ms",
        "KONGREALIP_READ_TIMEOUT": "1m",
        "KONG_UPSTREAM_KEEPALIVE_POOL_SIZE": "0",
        "KONG_UPSTREAM_KEEPALIVE_MAX_REQUESTS": "1",
    }
    _, proxy = load_proxy(environ, "upstream_keepalive_idle_timeout = 5", {"preserve_host": "off"})
    assert proxy._replace(given={}) == ProxySettings(
        (Upstream("a", 1), Upstream("unix:/b", 0)), False, 0.5, 60.0, 0, 1, 5
    )
    assert proxy.given["preserve_host"] == "--preserve-host"
    assert load_proxy({})[1]._replace(given={}) == ProxySettings()


def test_every_problem_at_once() -> None:
    names = ["PRESERVE_HOST", "CONNECT_TIMEOUT", "READ_TIMEOUT"]
    environ = {f"KONGREALIP_{name}": "x" for name in names}
    environ |= {"KONG_UPSTREAM_KEEPALIVE_POOL_SIZE": "-1", "KONG_REAL_IP_RECURSIVE": "x"}
    with pytest.raises(SettingsError) as error:
        load_proxy(environ)
    assert {problem.partition(":")[0] for problem in error.value.problems} == set(environ)


def test_a_proxy_in_front_of_itself() -> None:
    settings, proxy = load_proxy(
        {"KONG_PROXY_LISTEN": "0.0.0.0:8000", "KONGREALIP_UPSTREAM": "http://localhost:8000, http://a:8000"}
    )
    (warning,) = proxy_warnings(settings, proxy)
    assert warning.startswith("KONGREALIP_UPSTREAM: localhost:8000 may be this proxy itself")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "kongrealip", *args]


@contextmanager
def proxying(url: str, environ: Mapping[str, str], *args: str) -> Iterator[Program]:
    port = free_port()
    more = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}", "KONG_TRUSTED_IPS": f"{LOOPBACK}/32"}
    with running(
        command("proxy", "--upstream", url, *args), {**clean_environ(), **more, **environ}, [port]
    ) as program:
        yield program
        assert program.stop() == 0


@pytest.mark.parametrize("workers", [None, "2"])
def test_the_command(workers: str | None) -> None:
    more = ["--workers", workers] if workers else []
    status_port = free_port()
    environ = {"KONG_STATUS_LISTEN": f"{LOOPBACK}:{status_port}"}
    with (
        upstream(echoing_heads) as behind,
        proxying(behind.url, environ, "--preserve-host", "on", *more) as program,
    ):
        lines = dict(lines_of(split(get(program.port, "X-Real-IP: 203.0.113.7"))[2]))
        assert (lines[b"x-real-ip"], lines[b"host"]) == (b"203.0.113.7", b"example.test")
        name = behind.url.removeprefix("http://")
        status = split(get(status_port, target="/status"))[2]
        assert name.encode() in status
        metrics = split(get(status_port, target="/metrics"))[2].decode()
        assert f'kongrealip_upstream_connections_total{{upstream="{name}"}} 1.0' in metrics
        assert f"passing on to {name}, Host: the client's" in program.stderr
        assert '"GET / HTTP/1.1" 200 ' in program.stdout
        assert 'client: "203.0.113.7"' in program.stdout


def test_the_configuration_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "env"
    with (
        upstream(answering(OK.replace(b"ok", b"1!"))) as one,
        upstream(answering(OK.replace(b"ok", b"2!"))) as two,
    ):
        file.write_text(f"KONGREALIP_UPSTREAM={one.url}\n")
        port = free_port()
        environ = {**clean_environ(), "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port}"}
        with running(command("proxy", "--env-file", str(file), "--workers", "1"), environ, [port]) as program:
            assert get(port).endswith(b"1!")
            file.write_text(f"KONGREALIP_UPSTREAM={two.url}\n")
            program._process.send_signal(signal.SIGHUP)
            program.wait_for_stderr("the new configuration is in force")
            # The last of the old worker's queue may still be its own.
            wait_until(lambda: get(port).endswith(b"2!"), "the new upstream")
            assert program.stop() == 0


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "KONGREALIP_UPSTREAM: there is nowhere to pass requests on to"),
        (
            ["--upstream", "https://app"],
            "--upstream: entry 1 'https://app': there is no TLS to an upstream of the proxy",
        ),
        (["--upstream", "http://no.such.name.invalid"], "--upstream: entry 1 'no.such.name.invalid:80': "),
        (
            ["--upstream", "http://a", "--read-timeout", "never"],
            "--read-timeout: 'never': write a time above 0",
        ),
    ],
)
def test_what_cannot_start(args: list[str], line: str) -> None:
    result = subprocess.run(
        command("proxy", *args), env=clean_environ(), capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 3
    assert result.stderr.startswith(f"kongrealip: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["http://app:9000", "app:9000", "unix:/app"])
def test_the_settings_are_shown(url: str) -> None:
    environ = clean_environ() | {"KONGREALIP_UPSTREAM": url, "KONGREALIP_READ_TIMEOUT": "5s"}
    result = subprocess.run(
        command("config"), env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    lines = result.stdout.splitlines()
    assert f"upstreams = {url.removeprefix('http://')}  (KONGREALIP_UPSTREAM)" in lines
    assert "read_timeout = 5.0  (KONGREALIP_READ_TIMEOUT)" in lines
    assert "upstream_keepalive_pool_size = 512  (default)" in lines
