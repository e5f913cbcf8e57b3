"""Connections that wait: for the rest of a long preamble, for a ClientHello, for room."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kongrealip import Settings
from kongrealip.server import refusals
from tests.lab import LOOPS, Lab, client_tls
from tests.running import wait_until

SETTINGS = Settings(trusted_ips=("127.0.0.1/32",), real_ip_header="proxy_protocol")
HEAD = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
ADDRESSES = bytes.fromhex("cb007107c6336409c73801bb")
REQUEST = b"GET / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n\r\n"
LIMITS = Settings(preamble_max_bytes=65551, half_open_connections=3)


@pytest.fixture(autouse=True)
def _all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LINES_A_SECOND", 1000)


class Ports:
    plain: int
    tls: int
    tls_alone: int


@pytest.fixture(scope="module", params=LOOPS)
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    lab = Lab(settings=LIMITS, preamble_timeout=1.5)
    found = Ports()
    found.plain = lab.add(SETTINGS, flags=("proxy_protocol",))
    found.tls = lab.add(SETTINGS, flags=("ssl", "proxy_protocol"))
    found.tls_alone = lab.add(SETTINGS, flags=("ssl",))
    with lab.running(request.param):
        yield found


def preamble(tlv_bytes: int) -> bytes:
    tlv = b"\x04" + struct.pack("!H", tlv_bytes) + bytes(tlv_bytes)
    return HEAD + struct.pack("!H", len(ADDRESSES) + len(tlv)) + ADDRESSES + tlv


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_tls().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def ended(sock: socket.socket) -> bytes:
    """What comes until the server closes, be it with a reset."""
    try:
        return b"".join(iter(lambda: sock.recv(65536), b""))
    except ConnectionResetError:
        return b""


def seen(answer: bytes) -> Any:
    """What whoami answered with."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("tlv_bytes", [0, 4000, 5000, 65000])
@pytest.mark.parametrize("piece", [100_000, 4099, 1500])
@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_preamble_of_any_length_in_any_pieces(ports: Ports, tlv_bytes: int, piece: int, kind: str) -> None:
    data = preamble(tlv_bytes)
    with connect(ports.tls if kind == "tls" else ports.plain) as sock:
        for start in range(0, len(data), piece):
            sock.sendall(data[start : start + piece])
            time.sleep(0.002)
        asking = client_tls().wrap_socket(sock) if kind == "tls" else sock
        asking.sendall(REQUEST)
        answer = seen(ended(asking))
        asking.close()
    assert (answer["client_ip"], answer["client_port"]) == ("203.0.113.7", 51000)
    assert len(answer["preamble"]["tlvs"]["04"]) == 2 * tlv_bytes


@pytest.mark.parametrize("cut", [1, 4, 5, 50, -1])
def test_a_client_hello_in_two_pieces(ports: Ports, cut: int) -> None:
    hello = client_hello()
    with connect(ports.tls) as sock:
        sock.sendall(preamble(0) + hello[:cut])
        time.sleep(0.05)
        sock.sendall(hello[cut:])
        assert sock.recv(3)[:2] == b"\x16\x03", "a ServerHello"


def test_half_a_client_hello_and_the_end(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    for port, before in ((ports.tls, preamble(0)), (ports.tls_alone, b"")):
        for beginning in (b"", client_hello()[:40]):
            with connect(port) as sock:
                sock.sendall(before + beginning)
                time.sleep(0.05)
                sock.shutdown(socket.SHUT_WR)
                assert ended(sock) == b""
    assert "refused" not in caplog.text, "a probe that hangs up is nothing to tell"


def test_half_a_client_hello_and_silence(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    with connect(ports.tls_alone) as sock, caplog.at_level(logging.WARNING, "kongrealip.server"):
        sock.sendall(client_hello()[:40])
        assert ended(sock) == b""
        wait_until(lambda: "no TLS handshake before the deadline" in caplog.text, "the line")


def test_a_handshake_that_stops_half_way(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    with connect(ports.tls) as sock, caplog.at_level(logging.WARNING, "kongrealip.server"):
        sock.sendall(preamble(0) + client_hello())
        assert ended(sock).startswith(b"\x16\x03")
        wait_until(lambda: "no whole TLS handshake before the deadline" in caplog.text, "the line")


def test_the_oldest_makes_room(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    waiting = []
    for port in (ports.plain, ports.tls, ports.plain):
        waiting.append(connect(port))
        time.sleep(0.05)
    with caplog.at_level(logging.WARNING, "kongrealip.server"):
        waiting[0].sendall(preamble(0)[:20])
        time.sleep(0.1)
        waiting[1].sendall(preamble(0) + client_hello())
        assert waiting[1].recv(1) == b"\x16"
        waiting[2].sendall(preamble(0)[:20])
        time.sleep(0.1)
        newer = []
        for oldest, text in ((0, "too many connections are waiting"), (1, "are in their handshake")):
            newer.append(connect(ports.plain))
            newer[-1].sendall(preamble(0)[:20])
            ended(waiting[oldest])
            wait_until(lambda text=text: text in caplog.text, "the line")  # type: ignore[misc]
        waiting[2].sendall(preamble(0)[20:] + REQUEST)
        assert seen(ended(waiting[2]))["client_ip"] == "203.0.113.7"
    for sock in (*waiting, *newer):
        sock.close()
