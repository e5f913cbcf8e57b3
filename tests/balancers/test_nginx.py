"""nginx in front: version 1 from its stream module, its forwarding headers, and HAProxy before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.balancers.conftest import SERVER_NAME, Certificates
from tests.balancers.programs import haproxy, nginx
from tests.running import CLIENT_IP, LOOPBACK, Program, client, connect, fetch, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from kongrealip.pytest_plugin import StartServer

FORGED_IP = "203.0.113.66"


def stream(port: int, server: Program, listen_flags: str = "") -> str:
    """Passes TCP on, behind a version 1 preamble."""
    return f"""
stream {{
    server {{
        listen {LOOPBACK}:{port} {listen_flags};
        set_real_ip_from {LOOPBACK}/32;
        proxy_pass {LOOPBACK}:{server.port};
        proxy_protocol on;
    }}
}}
"""


def http(port: int, server: Program, header: str, value: str) -> str:
    return f"""
http {{
    access_log off;
    server {{
        listen {LOOPBACK}:{port};
        location / {{
            proxy_pass http://{LOOPBACK}:{server.port};
            proxy_set_header {header} {value};
        }}
    }}
}}
"""


def test_stream_sends_version_1(preamble_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with nginx(tmp_path, stream(port, preamble_server), port), client(port) as asking:
        for _ in range(2):
            seen = asking.get(headers=[("X-Forwarded-For", FORGED_IP), ("X-Real-IP", FORGED_IP)])
            assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
            assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
            preamble = seen["preamble"]
            assert (preamble["version"], preamble["command"]) == (1, "PROXY")
            assert (preamble["destination_ip"], preamble["destination_port"]) == (LOOPBACK, port)


def test_stream_passes_tls_through(
    tls_preamble_server: Program, tmp_path: Path, certificates: Certificates
) -> None:
    port = free_port()
    tls = certificates.client_context()
    with (
        nginx(tmp_path, stream(port, tls_preamble_server), port),
        client(port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        assert (seen["tls"], seen["scheme"]) == (True, "https")


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_chain_of_haproxy_and_nginx_keeps_the_client(
    preamble_server: Program, tmp_path: Path, send: str
) -> None:
    port, between = free_port(), free_port()
    outer = f"""
listen outer
    bind {LOOPBACK}:{port}
    server inner {LOOPBACK}:{between} {send}
"""
    with (
        nginx(tmp_path, stream(between, preamble_server, "proxy_protocol"), between),
        haproxy(tmp_path, outer, port),
        client(port) as asking,
    ):
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        assert seen["preamble"]["version"] == 1


def test_x_forwarded_for_ends_with_the_client(forwarded_server: Program, tmp_path: Path) -> None:
    port = free_port()
    config = http(port, forwarded_server, "X-Forwarded-For", "$proxy_add_x_forwarded_for")
    with nginx(tmp_path, config, port):
        for headers in ([], [("X-Forwarded-For", FORGED_IP)]):
            seen = fetch(port, headers=headers)
            lines = [value for name, value in seen["headers"] if name == "x-forwarded-for"]
            assert lines == [", ".join([*(value for _, value in headers), CLIENT_IP])]
            assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
            assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "X-Forwarded-For")


def test_x_real_ip_is_the_client(x_real_ip_server: Program, tmp_path: Path) -> None:
    port = free_port()
    config = http(port, x_real_ip_server, "X-Real-IP", "$remote_addr")
    with nginx(tmp_path, config, port):
        seen = fetch(port, headers=[("X-Real-IP", FORGED_IP), ("X-Forwarded-For", FORGED_IP)])
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
    assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "X-Real-IP")


def test_port_in_the_header_is_the_clients(forwarded_server: Program, tmp_path: Path) -> None:
    """``$remote_addr:$remote_port``, as Azure's Application Gateway also writes it."""
    port = free_port()
    config = http(port, forwarded_server, "X-Forwarded-For", "$remote_addr:$remote_port")
    with nginx(tmp_path, config, port), client(port) as asking:
        assert (asking.get()["client_ip"], asking.get()["client_port"]) == (CLIENT_IP, asking.port)


def test_a_body_behind_an_upgrade_is_no_request(kongrealip_server: StartServer, tmp_path: Path) -> None:
    """nginx as it is set up for WebSocket passes any upgrade on: what it takes for a body must not be
    a request that it has never seen, with a client of its sender's choice."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    server = kongrealip_server(app, KONG_TRUSTED_IPS=LOOPBACK, KONG_REAL_IP_HEADER="X-Real-IP")
    port = free_port()
    config = f"""
http {{
    access_log off;
    server {{
        listen {LOOPBACK}:{port};
        location / {{
            proxy_pass http://{LOOPBACK}:{server.port};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header X-Real-IP $remote_addr;
        }}
        location /hidden {{ return 403; }}
    }}
}}
"""
    body = b"GET /hidden HTTP/1.1\r\nHost: x\r\nX-Real-IP: 6.6.6.6\r\n\r\n"
    with nginx(tmp_path, config, port):
        for padding in range(3700, 4000, 2):
            head = (
                b"POST /front HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: foo\r\n"
                b"A: %b\r\nContent-Length: %d\r\n\r\n" % (b"a" * padding, len(body))
            )
            with connect(port, CLIENT_IP) as sock:
                sock.sendall(head + body)
                assert sock.recv(12).startswith(b"HTTP/1.1 400")
    assert seen == []
