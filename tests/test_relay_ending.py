"""``kongrealip relay`` as an operator runs it: started, watched, renewed and ended, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.nginx import certificate
from tests.relay_lab import Echo, Upstream, exactly, is_reset, to_the_end
from tests.running import (
    LOOPBACK,
    Program,
    accepts,
    clean_environ,
    connect,
    exchange,
    fetch,
    free_port,
    running,
    wait_until,
)
from tests.test_cli import run
from tests.test_relay_outgoing import CLIENT, SERVICE, Told, form_v2, v1
from tests.test_workers import IN_FORCE, STAYS, renew, stopped, wait_for_workers, workers_of

STANDS = "Started server process"
TRUST = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32"}
WORKERS = pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "two"])


@contextmanager
def relaying(
    port: int, *args: str | Path, environ: Mapping[str, str] | None = None, flags: str = ""
) -> Iterator[Program]:
    """Until it stands. Nobody has connected by then, and the end is the caller's affair."""
    command = [sys.executable, "-m", "kongrealip", "relay", *args]
    listen = {"KONG_STREAM_LISTEN": f"{LOOPBACK}:{port} {flags}"}
    with running(command, {**clean_environ(), **listen, **(environ or {})}, []) as program:
        count = 2 if "--workers" in args else 1
        wait_until(lambda: program.stderr.count(STANDS) == count, "the relay")
        yield program


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@contextmanager
def open_clients(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(port)) for _ in range(count)]


def each_other(client: socket.socket, upstream: socket.socket) -> None:
    """Whether they hear each other."""
    client.sendall(b"a question")
    assert exactly(upstream, 10) == b"a question"
    upstream.sendall(b"an answer")
    assert exactly(client, 9) == b"an answer"


# The end


@WORKERS
def test_connections_go_on_to_their_own_end(workers: tuple[str, ...], upstream: Upstream) -> None:
    port = free_port()
    with relaying(port, "--upstream", upstream.name, *workers) as relay, open_clients(port, 2) as clients:
        accepted = [upstream.accept() for _ in clients]
        for client in clients:
            client.sendall(b"x")
        relay.terminate()
        wait_until(lambda: not accepts(port), "newcomers to be turned away")
        # Whose is whose is up to the workers.
        for sock in accepted:
            assert exactly(sock, 1) == b"x"
            sock.sendall(b"goes on" * 10_000)
        for client in clients:
            assert exactly(client, 70_000) == b"goes on" * 10_000
            client.shutdown(socket.SHUT_WR)
        for sock in accepted:
            assert to_the_end(sock) == b""
            sock.close()
        assert [to_the_end(client) for client in clients] == [b"", b""]
        assert relay.wait() == 0


@WORKERS
def test_the_end_has_a_limit(workers: tuple[str, ...], upstream: Upstream) -> None:
    """What is left then is reset: nobody should take a piece for the whole."""
    port = free_port()
    args = ("--upstream", upstream.name, "--drain-timeout", "300ms", *workers)
    with relaying(port, *args) as relay, open_clients(port, 3) as clients:
        accepted = [upstream.accept() for _ in clients]
        clients[0].sendall(b"x" * 100_000)
        clients[1].shutdown(socket.SHUT_WR)
        relay.terminate()
        assert all(map(is_reset, clients))
        # Of the one that has heard the end already there is nothing more to hear.
        assert sorted(map(is_reset, accepted)) == [False, True, True]
        assert relay.wait() == 0


def test_one_that_is_still_connecting_has_the_same_limit() -> None:
    """To an upstream that never answers."""
    port = free_port()
    silent = Upstream(backlog=0)
    with contextlib.ExitStack() as stack:
        stack.callback(silent.close)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((LOOPBACK, silent.port))
        relay = stack.enter_context(
            relaying(port, "--upstream", silent.name, "--drain-timeout", "300ms", "--connect-timeout", "1h")
        )
        client = stack.enter_context(connect(port))
        relay.terminate()
        with contextlib.suppress(ConnectionResetError):
            assert to_the_end(client) == b""
        assert relay.wait() == 0


@WORKERS
def test_who_waits_in_the_queue_is_served(workers: tuple[str, ...]) -> None:
    port = free_port()
    with Echo() as echo, relaying(port, "--upstream", echo.name, *workers) as relay:
        with contextlib.ExitStack() as stopping:
            for pid in (relay.pid, *workers_of(relay)):
                stopping.enter_context(stopped(pid))
            clients = [connect(port) for _ in range(20)]
            for client in clients:
                client.sendall(b"hello")
            relay.terminate()
        for client in clients:
            with client:
                client.shutdown(socket.SHUT_WR)
                assert to_the_end(client) == b"hello"
        assert relay.wait() == 0


def test_who_has_not_shown_a_whole_preamble_is_waited_for(upstream: Upstream) -> None:
    """Not longer than the limit; whoever completes it is served."""
    port = free_port()
    args = ("--upstream", upstream.name, "--drain-timeout", "1s")
    with (
        relaying(port, *args, environ=TRUST, flags="proxy_protocol") as relay,
        open_clients(port, 2) as (quick, slow),
    ):
        preamble = v1("TCP4 203.0.113.7 198.51.100.9 1 2")
        for client in (quick, slow):
            client.sendall(preamble[:20])
        wait_for_queue(port)
        relay.terminate()
        quick.sendall(preamble[20:] + b"x")
        sock = upstream.accept()
        assert exactly(sock, 1) == b"x"
        sock.close()
        assert to_the_end(quick) == b""
        quick.close()
        with contextlib.suppress(ConnectionResetError):
            assert to_the_end(slow) == b""
        assert relay.wait() == 0


def wait_for_queue(port: int) -> None:
    """Until nobody waits to be accepted there any more: /proc/net/tcp shows it as rx_queue."""

    def is_empty() -> bool:
        lines = Path("/proc/net/tcp").read_text().splitlines()
        fields = [line.split() for line in lines if f":{port:04X} 00000000:0000 0A" in line]
        return [one[4].partition(":")[2] for one in fields] == ["00000000"]

    wait_until(is_empty, "the queue to be empty")


def test_a_second_interrupt_does_not_wait(upstream: Upstream) -> None:
    port = free_port()
    args = ("--upstream", upstream.name, "--drain-timeout", "1h")
    with relaying(port, *args) as relay, open_clients(port, 1) as (client,):
        sock = upstream.accept()
        each_other(client, sock)
        os.kill(relay.pid, signal.SIGINT)
        wait_until(lambda: not accepts(port), "the end to begin")
        os.kill(relay.pid, signal.SIGINT)
        assert is_reset(client)
        assert is_reset(sock)
        relay.wait()


# Workers


def test_each_worker_relays_and_one_that_dies_is_replaced() -> None:
    port = free_port()
    with Echo() as echo, relaying(port, "--upstream", echo.name, "--workers", "2") as relay:
        first, second = wait_for_workers(relay, 2)
        for idle in (first, second):
            with stopped(idle):
                assert echoes(port)
        os.kill(first, signal.SIGKILL)
        wait_for_workers(relay, 2, but=[first])
        assert all(echoes(port) for _ in range(10))
        relay.wait_for_stderr(f"worker {first} ended with -9, starting another")
        assert relay.stop() == 0


def echoes(port: int) -> bool:
    with connect(port) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        return to_the_end(client) == b"hello"


def test_a_renewal_brings_another_upstream(tmp_path: Path, upstream: Upstream) -> None:
    """For those who come then. Who is connected goes on where it is."""
    port, other, file = free_port(), Upstream(), tmp_path / "env"
    file.write_text(f"KONGREALIP_UPSTREAM={upstream.name}\n")
    with contextlib.ExitStack() as stack:
        stack.callback(other.close)
        relay = stack.enter_context(relaying(port, "--env-file", file, "--workers", "2"))
        before = wait_for_workers(relay, 2)
        client = stack.enter_context(connect(port))
        sock = upstream.accept()
        each_other(client, sock)

        file.write_text(f"KONGREALIP_UPSTREAM={other.name}\nKONGREALIP_SEND_PROXY=v1\n")
        assert f"relaying to {other.name}, preamble: v1" in renew(relay, IN_FORCE)
        each_other(client, sock)
        # One that is asked to end accepts for a moment longer.
        wait_until(lambda: b"PROXY TCP4 127.0.0.9 " in first_words(port, upstream, other), "the other")
        each_other(client, sock)
        client.close()
        assert to_the_end(sock) == b""
        sock.close()
        wait_until(lambda: not set(before) & set(workers_of(relay)), "the workers of yesterday to be gone")


def first_words(port: int, *several: Upstream) -> bytes:
    """What one of the upstreams hears of a newcomer."""
    with connect(port) as newcomer:
        newcomer.sendall(b"x")
        newcomer.shutdown(socket.SHUT_WR)
        ready = select.select([one.sock for one in several], [], [], 10)[0]
        (chosen,) = (one for one in several if one.sock in ready)
        with chosen.accept() as sock:
            return to_the_end(sock)


def test_a_renewal_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "env"
    with Echo() as echo:
        file.write_text(f"KONGREALIP_UPSTREAM={echo.name}\n")
        with relaying(port, "--env-file", file, "--workers", "2") as relay:
            for line, told in (
                ("KONGREALIP_UPSTREAM=nowhere", "write HOST:PORT"),
                ("", "KONGREALIP_UPSTREAM: there is nowhere to relay to"),
                (
                    f"KONGREALIP_UPSTREAM={echo.name}\nKONGREALIP_SEND_PROXY=v3",
                    "'v3': write one of off, v1, v2",
                ),
                (
                    f"KONGREALIP_UPSTREAM={echo.name}\nKONGREALIP_UPSTREAM_TLS=on\n"
                    f"KONGREALIP_UPSTREAM_TLS_CA={tmp_path}/none",
                    "no certificates in",
                ),
            ):
                file.write_text(f"{line}\n")
                assert told in renew(relay, STAYS)
            assert echoes(port)
            assert relay.stop() == 0


# Numbers


@WORKERS
def test_status_and_metrics(workers: tuple[str, ...]) -> None:
    """After traffic that is known; of two processes either answers for both."""
    port, status, nobody = free_port(), free_port(), free_port()
    with Echo() as echo:
        environ = {
            **TRUST,
            "KONG_STATUS_LISTEN": f"{LOOPBACK}:{status}",
            "KONGREALIP_ALLOW": "203.0.113.0/24",
            "KONGREALIP_UPSTREAM": f"{echo.name},{LOOPBACK}:{nobody}",
        }
        with relaying(port, *workers, environ=environ, flags="proxy_protocol") as relay:
            allowed = v1("TCP4 203.0.113.7 198.51.100.9 1 2")
            for preamble in (allowed, allowed, form_v2(Told(CLIENT, SERVICE))):
                assert exchange_with_end(port, preamble + b"x" * 1000) == b"x" * 1000
            assert exchange_with_end(port, v1("TCP4 192.0.2.7 198.51.100.9 1 2")) == b""
            assert exchange_with_end(port, v1("UNKNOWN")) == b""
            exchange(port, b"GET / HTTP/1.1\r\n\r\n", LOOPBACK)
            with connect(port, LOOPBACK) as client:
                client.sendall(allowed + b"y")
                assert exactly(client, 1) == b"y"
                check_numbers(port, status, echo.name, f"{LOOPBACK}:{nobody}")
            wait_until(lambda: shown(status)["server"]["connections_active"] == 1, "only us to be left")
            assert relay.stop() == 0


def exchange_with_end(port: int, data: bytes) -> bytes:
    with connect(port, LOOPBACK) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return to_the_end(client)


def shown(status: int) -> dict[str, Any]:
    return fetch(status, path="/status")


def check_numbers(port: int, status: int, name: str, nobody: str) -> None:
    wait_until(lambda: shown(status)["relayed_bytes"]["to_client"] == 3001, "what was relayed to be counted")
    listener = f"{LOOPBACK}:{port}"
    # Each process tells how many it has once a second.
    wait_until(lambda: shown(status)["listeners"][listener]["connections"]["open"] == 1, "what is open")
    found = shown(status)
    assert found["listeners"][listener]["accepted"] == 7
    assert {version: found["preambles"][version] for version in ("1", "2", "none")} == {
        "1": 5,
        "2": 1,
        "none": 0,
    }
    refused = {reason: count for reason, count in found["preambles"]["refused"].items() if count}
    assert refused == {"not_allowed": 2, "http": 1}
    assert found["decisions"] == {"peer": 1, "proxy_protocol": 5}
    assert found["relayed_bytes"] == {"to_upstream": 3001, "to_client": 3001}
    assert found["upstream_connections"] == {name: 4, nobody: 0}
    # One for each process that came to it before the others had told.
    assert 0 < found["upstream_failures"][nobody] <= 2
    assert "total_requests" not in found["server"]
    check_metrics(status, found)


def check_metrics(status: int, found: dict[str, Any]) -> None:
    answer, _ = exchange(status, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = answer.partition(b"\r\n\r\n")[2].decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for kind in ("relayed_bytes", "upstream_connections", "upstream_failures", "decisions"):
        for label, count in found[kind].items():
            assert samples[f"kongrealip_{kind}_total", label] == count
    assert samples["kongrealip_idle_closed_total",] == found["idle_closed"] == 0
    assert not any(name.startswith("kongrealip_requests") for name, *_ in samples)


# Who types wrong

UPSTREAM = ("--upstream", f"{LOOPBACK}:9")
LISTEN = ("--listen", f"{LOOPBACK}:9999")


@pytest.mark.parametrize(
    ("args", "environ", "told"),
    [
        (LISTEN, {}, ["KONGREALIP_UPSTREAM: there is nowhere to relay to, write <host>:<port> or use --upstream"]),
        (UPSTREAM, {}, ["KONG_STREAM_LISTEN: off leaves nothing to relay from"]),
        ((*UPSTREAM, "--listen", "off"), {}, ["off leaves nothing to relay from"]),
        ((*LISTEN, "--upstream", "no.such.name.invalid:80"), {}, ["--upstream: entry 1 'no.such.name.invalid:80': "]),
        (
            LISTEN,
            {"KONGREALIP_UPSTREAM": "127.0.0.1:1,no.such.name.invalid:80"},
            ["KONGREALIP_UPSTREAM: entry 2 'no.such.name.invalid:80': "],
        ),
        ((*UPSTREAM, "--listen", "127.0.0.1:9999 udp"), {}, ["--listen: entry 1 '127.0.0.1:9999 udp': "]),
        ((*UPSTREAM, "--listen", "127.0.0.1"), {}, ["--listen: entry 1 '127.0.0.1': "]),
        ((*UPSTREAM, "--listen", "127.0.0.1:99999"), {}, ["--listen: entry 1 '127.0.0.1:99999': "]),
        ((*UPSTREAM, "--listen", ""), {}, ["--listen: "]),
        ((*LISTEN, "--upstream", ""), {}, ["there is nowhere to relay to"]),
        ((*LISTEN, "--upstream", "127.0.0.1"), {}, ["--upstream: entry 1 '127.0.0.1': write HOST:PORT"]),
        ((*LISTEN, *UPSTREAM, "--send-proxy", "v3"), {}, ["--send-proxy: 'v3': write one of off, v1, v2"]),
        ((*LISTEN, *UPSTREAM, "--allow", "everybody"), {}, ["--allow: entry 1 'everybody': "]),
        ((*LISTEN, *UPSTREAM, "--upstream-tls", "yes"), {}, ["--upstream-tls: 'yes': write one of on, off"]),
        ((*LISTEN, *UPSTREAM, "--idle-timeout", "soon"), {}, ["--idle-timeout: 'soon': "]),
        ((*LISTEN, *UPSTREAM, "--connect-timeout", "0"), {}, ["--connect-timeout: '0': "]),
        ((*LISTEN, *UPSTREAM, "--drain-timeout", "-1"), {}, ["--drain-timeout: '-1': "]),
        ((*LISTEN, *UPSTREAM, "--alpn", "h2 h3"), {}, ["--alpn: entry 1 'h2 h3': "]),
        (
            (*LISTEN, *UPSTREAM, "--upstream-tls", "on", "--upstream-tls-ca", "/no/such/file"),
            {},
            ["--upstream-tls-ca: no certificates in '/no/such/file': No such file or directory; give the path"],
        ),
        (
            (*LISTEN, *UPSTREAM, "--upstream-tls", "on", "--upstream-tls-ca", "/etc/hostname"),
            {},
            ["--upstream-tls-ca: no certificates in '/etc/hostname': "],
        ),
        (
            (*UPSTREAM, "--listen", "127.0.0.1:9999 ssl"),
            {
                "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE": "/no/such/file",
                "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT": "on",
            },
            ["KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE: no certificates in '/no/such/file': "],
        ),
        (
            (*UPSTREAM, "--listen", "127.0.0.1:9999 ssl"),
            {"KONG_SSL_CERT": "/no/cert", "KONG_SSL_CERT_KEY": "/no/key"},
            ["KONG_SSL_CERT / KONG_SSL_CERT_KEY: entry 1 cannot be loaded: no such file: /no/cert"],
        ),
        (
            ("--listen", "here udp", "--upstream", "there", "--send-proxy", "on", "--allow", "x", "--upstream-tls", "1"),
            {"KONG_TRUSTED_IPS": "me"},
            [
                "KONG_TRUSTED_IPS: ", "--listen: entry 1 'here udp': ", "--listen: entry 1 'here udp': ",
                "--upstream: entry 1 ", "--send-proxy: ", "--allow: ", "--upstream-tls: ",
            ],
        ),
    ],
)  # fmt: skip
def test_what_keeps_it_from_starting(args: Sequence[str], environ: dict[str, str], told: list[str]) -> None:
    """A line for each problem, with what it was set by and what to write."""
    result = run("relay", *args, environ=environ)
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert len(lines) == len(told)
    for line, expected in zip(lines, told, strict=True):
        assert line.startswith("kongrealip: ")
        assert expected in line
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--workers", "0"), "write auto or a number"),
        (("--loop", "trio"), "is not one of"),
        (("--env-file", "/no/such/file"), "does not exist"),
        (("--upstreams", "a:1"), "No such option"),
        (("app:app",), "unexpected extra argument"),
        (("--upstream",), "requires an argument"),
    ],
)
def test_wrong_usage_is_2(args: tuple[str, ...], told: str) -> None:
    result = run("relay", *LISTEN, *UPSTREAM, *args)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@WORKERS
def test_a_port_that_is_taken(workers: tuple[str, ...], upstream: Upstream) -> None:
    listen = f"{LOOPBACK}:{upstream.port}"
    result = run("relay", "--listen", listen, *UPSTREAM, *workers)
    assert result.returncode == 3
    assert f"kongrealip: cannot listen on {listen}: Address already in use\n" in result.stderr


def test_what_it_says_at_start(tmp_path: Path) -> None:
    port = free_port()
    ca = str(certificate())
    args = (
        "--upstream",
        "127.0.0.1:9",
        "--upstream",
        "[::1]:9",
        "--send-proxy",
        "v2",
        "--upstream-tls",
        "on",
    )
    with relaying(port, *args, "--upstream-tls-ca", ca, environ=TRUST, flags="ssl proxy_protocol") as relay:
        assert f"relaying from {LOOPBACK}:{port} ssl proxy_protocol" in relay.stderr
        assert "relaying to 127.0.0.1:9, [::1]:9 with TLS, preamble: v2" in relay.stderr
        assert f"client address from proxy_protocol, trusted: {LOOPBACK}/32" in relay.stderr
        assert "WARNING" not in relay.stderr
        assert relay.stop() == 0
        assert relay.stdout == ""


def test_a_name_that_is_none_is_a_line_and_no_more() -> None:
    """Bytes that no name has. Python cannot show them to us, and would tell everybody how it failed."""
    port = free_port()
    name = "x" * 30 + ".test"
    with relaying(port, *UPSTREAM, flags="ssl") as relay:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        client = context.wrap_bio(incoming, outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        with connect(port) as sock:
            sock.sendall(outgoing.read().replace(name.encode(), b"\xff" * len(name)))
            with contextlib.suppress(ConnectionResetError):
                to_the_end(sock)
        relay.wait_for_stderr("TLS handshake failed")
        assert relay.stop() == 0
        assert "Traceback" not in relay.stderr
