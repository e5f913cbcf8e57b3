"""HAProxy in front: both versions of the preamble, TLVs, TLS, chains, health checks, headers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import connect as connect_websocket

from tests.balancers.conftest import CLIENT_NAME, FROM_THE_PREAMBLE, SERVER_NAME, Certificates, served
from tests.balancers.programs import haproxy
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    Program,
    client,
    connect,
    exchange,
    fetch,
    free_port,
    received,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

FORGED = [("X-Forwarded-For", "203.0.113.66"), ("X-Real-IP", "203.0.113.66")]
OTHER_CLIENT_IP = "127.0.0.10"


def forward(port: int, upstream: Program | int | Path, send: str, *lines: str, flags: str = "") -> str:
    """Listen at ``port`` and pass everything on to a server, a port or a Unix socket."""
    if isinstance(upstream, Program):
        upstream = upstream.port
    address = f"{LOOPBACK}:{upstream}" if isinstance(upstream, int) else f"unix@{upstream}"
    parts = [f"listen at-{port}", f"bind {LOOPBACK}:{port} {flags}", f"server upstream {address} {send}"]
    return "\n    ".join([*parts, *lines]) + "\n"


@pytest.mark.parametrize(("send", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_client_comes_from_the_preamble(
    preamble_server: Program, tmp_path: Path, send: str, version: int
) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, preamble_server, send), port), client(port) as asking:
        seen = asking.get(headers=FORGED)
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
        assert seen["preamble"] == {
            "version": version,
            "command": "PROXY",
            "source_ip": CLIENT_IP,
            "source_port": asking.port,
            "destination_ip": LOOPBACK,
            "destination_port": port,
            "tlvs": {},
            "said": {},
        }


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_ipv6_client_over_an_ipv4_upstream(preamble_server: Program, tmp_path: Path, send: str) -> None:
    port = free_port()
    config = forward(port, preamble_server, send, f"bind [::1]:{port}")
    with haproxy(tmp_path, config, port), client(port, "::1") as asking:
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == ("::1", asking.port)
        assert (seen["peer_ip"], seen["preamble"]["destination_ip"]) == (LOOPBACK, "::1")


def test_access_log_names_the_client(preamble_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, preamble_server, "send-proxy-v2"), port), client(port) as asking:
        asking.get("/logged")
        client_field = f'client: "{CLIENT_IP}:{asking.port}" peer: "{LOOPBACK}:'
        wait_until(lambda: client_field in preamble_server.stdout, "the access log")
        (line,) = [line for line in preamble_server.stdout.splitlines() if client_field in line]
        assert line.startswith(f"{CLIENT_IP} - - [")
        assert '"GET /logged HTTP/1.1" 200' in line
        assert line.endswith('source: "proxy_protocol"')


def test_preamble_counts_for_every_request_of_a_connection(preamble_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, preamble_server, "send-proxy-v2"), port), client(port) as asking:
        for headers in ([], FORGED, [("X-Forwarded-For", "not an address")], []):
            seen = asking.get(headers=headers)
            assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)


def test_preamble_of_an_untrusted_balancer_is_read_and_not_believed(loop: str, tmp_path: Path) -> None:
    environ = FROM_THE_PREAMBLE | {"KONG_TRUSTED_IPS": "192.0.2.0/24"}
    port = free_port()
    with (
        served(loop, "proxy_protocol", environ) as server,
        haproxy(tmp_path, forward(port, server, "send-proxy-v2"), port),
    ):
        seen = fetch(port)
    assert (seen["client_ip"], seen["source"]) == (LOOPBACK, "peer")
    assert seen["preamble"]["source_ip"] == CLIENT_IP


@pytest.mark.parametrize("with_certificate", [False, True], ids=["anonymous", "certificate"])
def test_tlvs_of_tls_that_ended_at_the_balancer(
    preamble_server: Program, tmp_path: Path, certificates: Certificates, with_certificate: bool
) -> None:
    port = free_port()
    flags = f"ssl crt {certificates.bundle} ca-file {certificates.ca} verify optional alpn http/1.1"
    options = "crc32c,unique-id,authority,cert-key,cert-sig,ssl-cipher"
    send = f"send-proxy-v2-ssl-cn proxy-v2-options {options}"
    unique_id = "unique-id-format balancer-%[dst_port]-%cp"
    config = forward(port, preamble_server, send, unique_id, flags=flags)
    tls = certificates.client_context(with_certificate=with_certificate)
    with haproxy(tmp_path, config, port), client(port, tls=tls, server_name=SERVER_NAME) as asking:
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        asking_port = asking.port
    # The connection that reached the server was plain: TLS was the balancer's.
    assert (seen["tls"], seen["scheme"]) == (False, "http")
    tlvs = {int(kind, 16): bytes.fromhex(value) for kind, value in seen["preamble"]["tlvs"].items()}
    assert next(iter(tlvs)) == 0x03
    assert len(tlvs[0x03]) == 4
    assert tlvs[0x01] == b"http/1.1"
    assert tlvs[0x02] == SERVER_NAME.encode()
    assert tlvs[0x05] == f"balancer-{port}-{asking_port}".encode()
    check_ssl_tlv(tlvs[0x20], with_certificate)


def check_ssl_tlv(value: bytes, with_certificate: bool) -> None:
    """Flags, the result of the verification, and TLVs of its own."""
    # HAProxy says that the verification succeeded (0) also where there was nothing to verify:
    # whether a certificate was shown is told by the flags CERT_CONN and CERT_SESS alone.
    assert value[0] == (0x07 if with_certificate else 0x01)
    assert value[1:5] == bytes(4)
    inner = value[5:]
    found = {}
    while inner:
        end = 3 + int.from_bytes(inner[1:3], "big")
        found[inner[0]] = inner[3:end]
        inner = inner[end:]
    assert found[0x21].startswith(b"TLSv1.")
    assert found.get(0x22) == (CLIENT_NAME.encode() if with_certificate else None)
    assert {0x23, 0x24, 0x25} <= found.keys()


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_tls_passed_through_to_an_ssl_proxy_protocol_listener(
    tls_preamble_server: Program, tmp_path: Path, certificates: Certificates, send: str
) -> None:
    port = free_port()
    tls = certificates.client_context()
    with (
        haproxy(tmp_path, forward(port, tls_preamble_server, send), port),
        client(port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        for _ in range(2):
            seen = asking.get()
            assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
            assert (seen["tls"], seen["scheme"], seen["source"]) == (True, "https", "proxy_protocol")


@pytest.mark.parametrize(
    ("outer", "inner"), [("send-proxy", "send-proxy-v2"), ("send-proxy-v2", "send-proxy")]
)
def test_chain_of_two_balancers_keeps_the_client(
    preamble_server: Program, tmp_path: Path, outer: str, inner: str
) -> None:
    port, between = free_port(), free_port()
    config = forward(between, preamble_server, inner, flags="accept-proxy") + forward(port, between, outer)
    with haproxy(tmp_path, config, port, between), client(port) as asking:
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        assert seen["preamble"]["destination_port"] == port


@pytest.mark.parametrize("outer", ["send-proxy", "send-proxy-v2"])
def test_chain_without_accept_proxy_leaves_a_second_preamble_that_is_no_request(
    preamble_server: Program, tmp_path: Path, outer: str
) -> None:
    port, between = free_port(), free_port()
    config = forward(between, preamble_server, "send-proxy") + forward(port, between, outer)
    with haproxy(tmp_path, config, port, between):
        answer, _ = exchange(port, b"GET / HTTP/1.1\r\nHost: service.test\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


# An application that whoami's description of the last health check can be fetched from.
REMEMBERS_CHECKS = """
from kongrealip.cli.whoami import describe
from starlette.requests import Request
from starlette.responses import JSONResponse

checks = []

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/check":
        checks.append(describe(Request(scope)))
    await JSONResponse({"checks": checks[-1:]})(scope, receive, send)
"""


@pytest.fixture
def checked_server(loop: str, tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "remembers.py").write_text(REMEMBERS_CHECKS)
    args = "--app-dir", tmp_path, "remembers:app"
    with served(loop, "proxy_protocol", FROM_THE_PREAMBLE, *args) as server:
        yield server


def test_http_health_check_is_local_and_keeps_the_upstream_up(
    checked_server: Program, tmp_path: Path
) -> None:
    """LOCAL of family 0 and length 0: the check is the balancer's own, so the peer is the client."""
    port, stats = free_port(), free_port()
    config = checked(port, stats, checked_server, "mode http", "option httpchk GET /check")
    with haproxy(tmp_path, config, port, stats):
        wait_until(lambda: checks(stats) == ("UP", "L7OK", "200", "0"), "three passed checks")
        (check,) = fetch(port)["checks"]
    assert (check["client_ip"], check["source"]) == (LOOPBACK, "peer")
    assert check["preamble"] == {
        "version": 2,
        "command": "LOCAL",
        "source_ip": None,
        "source_port": None,
        "destination_ip": None,
        "destination_port": None,
        "tlvs": {},
        "said": {},
    }


def test_tcp_health_check_keeps_the_upstream_up_and_the_log_clean(
    checked_server: Program, tmp_path: Path
) -> None:
    """It hangs up behind its preamble, with a reset, every time."""
    port, stats = free_port(), free_port()
    with haproxy(tmp_path, checked(port, stats, checked_server), port, stats):
        wait_until(lambda: checks(stats) == ("UP", "L4OK", "", "0"), "three passed checks")
        assert fetch(port) == {"checks": []}
    assert {line.split()[2] for line in checked_server.stderr.splitlines()} == {"INFO"}


def checked(port: int, stats: int, server: Program, *lines: str) -> str:
    """HAProxy starts with "UP 1/4", and three checks must pass before it says "UP"."""
    return f"""
global
    stats socket ipv4@{LOOPBACK}:{stats}
""" + forward(port, server, "send-proxy-v2 check inter 100ms fall 4", "timeout check 5s", *lines)


def checks(stats: int) -> tuple[str, str, str, str]:
    """Of the upstream: its state, its last check's result and status code, and how many checks failed."""
    with connect(stats, LOOPBACK) as sock:
        sock.sendall(b"show stat\n")
        table = b"".join(received(sock)).decode()
    (row,) = (row for row in csv.DictReader(table.splitlines()) if row["svname"] == "upstream")
    return row["status"], row["check_status"], row["check_code"], row["chkfail"]


def test_forwarded_for_of_the_balancer_is_a_second_line_that_wins(
    forwarded_server: Program, tmp_path: Path
) -> None:
    port = free_port()
    config = forward(port, forwarded_server, "", "mode http", "option forwardfor")
    with haproxy(tmp_path, config, port):
        seen = fetch(port, headers=FORGED)
    lines = [value for name, value in seen["headers"] if name == "x-forwarded-for"]
    assert lines == ["203.0.113.66", CLIENT_IP]
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
    assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "X-Forwarded-For")


def test_http_mode_keeps_apart_the_clients_that_share_an_upstream(
    preamble_server: Program, tmp_path: Path
) -> None:
    """It may reuse upstream connections for other clients, but none that carries a preamble."""
    port = free_port()
    config = forward(port, preamble_server, "send-proxy-v2", "mode http", "http-reuse always")
    with haproxy(tmp_path, config, port), client(port) as one, client(port, OTHER_CLIENT_IP) as other:
        for _ in range(2):
            for asking in (one, other):
                seen = asking.get()
                assert (seen["client_ip"], seen["client_port"]) == (asking.ip, asking.port)


def test_websocket_sees_the_client(preamble_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, preamble_server, "send-proxy-v2"), port), connect(port) as sock:
        client_port = sock.getsockname()[1]
        with connect_websocket(f"ws://{LOOPBACK}:{port}/live", sock=sock) as websocket:
            seen = json.loads(websocket.recv(timeout=5))
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, client_port)
    assert (seen["scheme"], seen["path"], seen["source"]) == ("ws", "/live", "proxy_protocol")


def test_unix_socket(loop: str, tmp_path: Path) -> None:
    """The preamble tells what a Unix socket cannot: where the client is."""
    port, path = free_port(), tmp_path / "upstream"
    environ = FROM_THE_PREAMBLE | {"KONG_TRUSTED_IPS": "unix:"}
    args = "--loop", loop, "--uds", f"{path} proxy_protocol"
    with serving(environ, *args) as server:
        server.wait_for_stderr("listening on unix:")
        with haproxy(tmp_path, forward(port, path, "send-proxy-v2"), port), client(port) as asking:
            seen = asking.get()
            assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
            assert (seen["peer_ip"], seen["source"]) == ("unix:", "proxy_protocol")
