"""What arrives where no balancer, or the wrong kind of traffic, is in front."""

from __future__ import annotations

import pytest

from tests.balancers.conftest import SERVER_NAME, Certificates, served
from tests.running import (
    LOOPBACK,
    TRUST_THE_BALANCER,
    Program,
    client,
    connect,
    exchange,
    received,
)

REQUEST = b"GET / HTTP/1.1\r\nHost: service.test\r\n\r\n"
VERSION_1 = b"PROXY TCP4 203.0.113.7 203.0.113.8 40000 443\r\n"
VERSION_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([203, 0, 113, 7, 203, 0, 113, 8, 156, 64, 1, 187])


def refusals(server: Program, peer: str) -> list[str]:
    """The lines of standard error about this peer, of which there is at least one."""
    server.wait_for_stderr(peer)
    return [line for line in server.stderr.splitlines() if peer in line]


def test_plain_http_at_a_proxy_protocol_port_is_closed_without_a_byte(preamble_server: Program) -> None:
    answer, peer = exchange(preamble_server.port, REQUEST)
    assert answer == b""
    (line,) = refusals(preamble_server, peer)
    assert line.endswith(
        f"WARNING refused {peer} on {LOOPBACK}:{preamble_server.port}:"
        " plain HTTP reached a proxy_protocol port"
    )


def test_tls_at_an_ssl_proxy_protocol_port_is_closed_without_a_byte(
    tls_preamble_server: Program, certificates: Certificates
) -> None:
    tls = certificates.client_context()
    with connect(tls_preamble_server.port) as sock:
        peer = "{}:{}".format(*sock.getsockname())
        # The server closes with the ClientHello unread, which is an end of file or a reset.
        with pytest.raises(OSError, match=r"EOF|reset"):
            tls.wrap_socket(sock, server_hostname=SERVER_NAME)
    (line,) = refusals(tls_preamble_server, peer)
    assert line.endswith("TLS without a preamble reached a proxy_protocol port")


def test_preamble_at_a_plain_port_gets_400_and_a_hint(forwarded_server: Program) -> None:
    for preamble in (VERSION_1, VERSION_2):
        answer, peer = exchange(forwarded_server.port, preamble + REQUEST)
        assert answer.startswith(b"HTTP/1.1 400 ")
        (line,) = refusals(forwarded_server, peer)
        assert line.endswith(
            f"refused {peer} on {LOOPBACK}:{forwarded_server.port}:"
            " a PROXY preamble reached a port without proxy_protocol"
        )


def test_preamble_or_http_at_an_ssl_port_gets_a_hint(loop: str, certificates: Certificates) -> None:
    with served(loop, "ssl", TRUST_THE_BALANCER | certificates.environ()) as server:
        for data in (VERSION_1, VERSION_2, REQUEST):
            _, peer = exchange(server.port, data)
            (line,) = refusals(server, peer)
            assert line.endswith("plain HTTP, or a preamble, reached an ssl port without proxy_protocol")


def test_preamble_in_single_bytes_is_waited_for(preamble_server: Program) -> None:
    """nginx would close the connection: the one wanted difference on the wire."""
    with connect(preamble_server.port, LOOPBACK) as sock:
        for byte in VERSION_2 + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"):
            sock.sendall(bytes([byte]))
        answer = b"".join(received(sock))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"client_ip":"203.0.113.7","client_port":40000' in answer


def test_bad_traffic_leaves_the_others_alone(preamble_server: Program) -> None:
    """A connection that was there before, and one that comes afterwards."""
    with connect(preamble_server.port, LOOPBACK) as sock:
        sock.sendall(VERSION_2[:20])
        for _ in range(20):
            assert exchange(preamble_server.port, REQUEST)[0] == b""
        sock.sendall(VERSION_2[20:] + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"".join(received(sock)).startswith(b"HTTP/1.1 200 ")
    with client(preamble_server.port, LOOPBACK, preamble=VERSION_1) as asking:
        assert asking.get()["client_ip"] == "203.0.113.7"
