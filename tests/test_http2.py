"""HTTP/2 over real sockets: who the client is on every stream, and that uvicorn's HTTP/2 serves well."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol
from uvicorn.server import ServerState

from kongrealip import Settings
from kongrealip.address import Address
from kongrealip.cli import whoami
from kongrealip.realip import Connection
from kongrealip.server import http2 as http2_module
from kongrealip.server.http2 import HTTP2Protocol
from kongrealip.server.protocols import HTTP1Protocol
from tests.balancers.programs import haproxy
from tests.lab import LOOPS, Lab
from tests.running import CLIENT_IP, LOOPBACK, Seen, connect, free_port, received, wait_until

FROM_PREAMBLE = Settings(trusted_ips=("127.0.0.1/32",), real_ip_header="proxy_protocol")
FROM_HEADER = Settings(
    trusted_ips=("127.0.0.1/32", "10.0.0.0/8"), real_ip_header="X-Forwarded-For", real_ip_recursive=True
)
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.9 51000 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes.fromhex("cb007107c6336409c73801bb")
NAMED = ("203.0.113.7", 51000)
FORGED = [("x-forwarded-for", "6.6.6.6"), ("x-real-ip", "6.6.6.6")]
OTHER_CLIENT_IP = "127.0.0.10"
# Many times what the window of a stream and the buffers of a socket hold.
LARGE = 1_000_000
ENDLESS = 32 << 20

QUIET_SECONDS = 0.2

Headers = Sequence[tuple[str, str]]


@pytest.fixture(autouse=True)
def _less_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With clients that wait for the server to close."""
    monkeypatch.setattr(http2_module, "_QUIET_SECONDS", QUIET_SECONDS)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One HTTP/2 connection on a connected socket. Without ``takes_data`` no window opens again."""

    def __init__(self, sock: socket.socket, *, slowly: bool = False) -> None:
        self.sock = sock
        self.slowly = slowly
        self.events: list[Event] = []
        self.takes_data = True
        # The server is what is tested, also with what a client must not send.
        config = H2Configuration(
            header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        self.send()

    def send(self) -> None:
        data = self.h2.data_to_send()
        if self.slowly:
            send_slowly(self.sock, data)
        else:
            self.sock.sendall(data)

    def ask(
        self, path: str = "/", headers: Headers = (), *, method: str = "GET", body: bytes | None = None
    ) -> int:
        """Send a request and return its stream."""
        stream = self.h2.get_next_available_stream_id()
        scheme = "https" if isinstance(self.sock, ssl.SSLSocket) else "http"
        pseudo = [(":method", method), (":scheme", scheme), (":authority", "service.test"), (":path", path)]
        self.h2.send_headers(stream, [*pseudo, *headers], end_stream=body is None)
        self.send()
        if body is not None:
            self._upload(stream, body)
        return stream

    def _upload(self, stream: int, body: bytes) -> None:
        while body:
            if (window := self.h2.local_flow_control_window(stream)) == 0:
                self.read()
            count = min(window, self.h2.max_outbound_frame_size)
            self.h2.send_data(stream, body[:count])
            body = body[count:]
            self.send()
        self.h2.end_stream(stream)
        self.send()

    def read(self) -> bool:
        """Read once; False where the server has closed."""
        data = self.sock.recv(1 << 16)
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, DataReceived) and self.takes_data and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if data:
            self.send()
        return bool(data)

    def events_of(self, stream: int) -> list[Event]:
        return [event for event in self.events if getattr(event, "stream_id", None) == stream]

    def wait_for_head(self, stream: int) -> None:
        while not self.events_of(stream):
            assert self.read(), "closed before an answer"

    def answer(self, stream: int) -> Answer:
        """Wait for a whole answer."""
        assert isinstance(self._end(stream), StreamEnded)
        (head,) = [event for event in self.events_of(stream) if isinstance(event, ResponseReceived)]
        status, *fields = [(str(name), str(value)) for name, value in head.headers]
        body = b"".join(event.data for event in self.events_of(stream) if isinstance(event, DataReceived))
        return Answer(int(status[1]), dict(fields), body)

    def reset_of(self, stream: int) -> int:
        """Wait for a stream's reset, and return why."""
        end = self._end(stream)
        assert isinstance(end, StreamReset)
        return int(end.error_code or 0)

    def _end(self, stream: int) -> Event:
        while True:
            events = self.events_of(stream)
            if events and isinstance(events[-1], StreamEnded | StreamReset):
                return events[-1]
            assert self.read(), "closed before the end of a stream"

    def get(self, path: str = "/", headers: Headers = ()) -> Seen:
        """What whoami saw of a request."""
        answer = self.answer(self.ask(path, headers))
        assert answer.status == 200
        seen: Seen = json.loads(answer.body)
        return seen

    def goodbye(self) -> int:
        """Read to the end, which a GOAWAY must announce, and return its last stream."""
        while self.read():
            pass
        event = self.events[-1]
        assert isinstance(event, ConnectionTerminated)
        assert event.error_code == ErrorCodes.NO_ERROR
        return event.last_stream_id or 0

    def take_data(self, stream: int) -> None:
        """Open the windows, for as much as there is."""
        self.takes_data = True
        for increased in (None, stream):
            self.h2.increment_flow_control_window(2 * ENDLESS, increased)
        self.send()


def send_slowly(sock: socket.socket, data: bytes) -> None:
    """Byte by byte, each in a segment of its own and, behind TLS, in a record of its own."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in data:
        sock.sendall(bytes([byte]))
        time.sleep(0.0005)


def context(*alpn: str) -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


@contextmanager
def opened(
    port: int, preamble: bytes = b"", *, tls: ssl.SSLContext | None = None, source_ip: str = LOOPBACK
) -> Iterator[socket.socket]:
    with connect(port, source_ip) as sock:
        sock.sendall(preamble)
        if tls is None:
            yield sock
        else:
            with tls.wrap_socket(sock) as encrypted:
                yield encrypted


@contextmanager
def http2(
    port: int, preamble: bytes = b"", *, tls: bool = False, source_ip: str = LOOPBACK
) -> Iterator[Client]:
    alpn = context("h2", "http/1.1") if tls else None
    with opened(port, preamble, tls=alpn, source_ip=source_ip) as sock:
        if isinstance(sock, ssl.SSLSocket):
            assert sock.selected_alpn_protocol() == "h2"
        yield Client(sock)


def http1(sock: socket.socket, headers: bytes = b"") -> Seen:
    """What whoami saw of one request of HTTP/1.1, the last of its connection."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: service.test\r\nConnection: close\r\n" + headers + b"\r\n")
    head, _, body = b"".join(received(sock)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    seen: Seen = json.loads(body)
    return seen


def decided(seen: Seen) -> tuple[str, int | None]:
    return seen["client_ip"], seen["client_port"]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """whoami, and on some paths what it takes to see how bodies and headers travel."""
    others = {"/length": _length, "/large": _large, "/hop-by-hop": _hop_by_hop, "/broken": _broken}
    await others.get(scope.get("path"), whoami.app)(scope, receive, send)


async def _length(scope: Any, receive: Any, send: Any) -> None:
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message["body"])
        more = message["more_body"]
    await _send_answer(send, str(length).encode())


async def _large(scope: Any, receive: Any, send: Any) -> None:
    await _send_answer(send, b"x" * LARGE)


async def _hop_by_hop(scope: Any, receive: Any, send: Any) -> None:
    names = (b"Connection", b"keep-alive", b"Proxy-Connection", b"transfer-encoding", b"Upgrade", b"X-Kept")
    await _send_answer(send, b"", [(name, b"x") for name in names])


async def _broken(scope: Any, receive: Any, send: Any) -> None:
    await _send_answer(send, b"", [(b"x-broken", b"a\r\nx-smuggled: b")])


async def _send_answer(send: Any, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class Ports(NamedTuple):
    """``tls`` and ``clear`` take the client from the preamble, ``header`` and the last from the header."""

    lab: Lab
    tls: int
    clear: int
    header: int
    tls_header: int


@pytest.fixture(scope="module", params=LOOPS)
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    lab = Lab(app)
    found = Ports(
        lab,
        lab.add(FROM_PREAMBLE, flags=("ssl", "http2", "proxy_protocol")),
        lab.add(FROM_PREAMBLE, flags=("http2", "proxy_protocol")),
        lab.add(FROM_HEADER, flags=("http2",)),
        lab.add(FROM_HEADER, flags=("ssl", "http2")),
    )
    with lab.running(request.param):
        yield found


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Who the client is


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
def test_preamble_and_alpn(ports: Ports, preamble: bytes) -> None:
    with http2(ports.tls, preamble, tls=True) as client:
        for _ in range(3):
            seen = client.get("/path?query", FORGED)
            assert decided(seen) == NAMED
            assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
            assert (seen["http_version"], seen["scheme"], seen["tls"]) == ("2", "https", True)
            assert (seen["host"], seen["path"]) == ("service.test", "/path")


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
def test_preamble_and_prior_knowledge(ports: Ports, preamble: bytes) -> None:
    with http2(ports.clear, preamble) as client:
        for _ in range(3):
            seen = client.get("/path?query", FORGED)
            assert decided(seen) == NAMED
            assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
            assert (seen["http_version"], seen["scheme"], seen["tls"]) == ("2", "http", False)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_preamble_of_a_peer_that_is_not_trusted(ports: Ports, tls: bool) -> None:
    with http2(ports.tls if tls else ports.clear, V2, tls=tls, source_ip=CLIENT_IP) as client:
        seen = client.get("/", FORGED)
        assert decided(seen) == client.sock.getsockname()
        assert seen["source"] == "peer"


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_without_a_preamble_the_peer_is_the_client(ports: Ports, tls: bool) -> None:
    with http2(ports.tls_header if tls else ports.header, tls=tls, source_ip=CLIENT_IP) as client:
        assert decided(client.get("/", FORGED)) == client.sock.getsockname()


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_many_streams_at_once_each_with_its_own_client(ports: Ports, tls: bool) -> None:
    with http2(ports.tls_header if tls else ports.header, tls=tls) as client:
        for round_ in range(3):
            clients = [f"198.51.{round_}.{number}" for number in range(100)]
            streams = [
                client.ask(f"/{ip}", [("x-forwarded-for", f"6.6.6.6, {ip}, 10.0.0.1")]) for ip in clients
            ]
            for ip, stream in reversed(list(zip(clients, streams, strict=True))):
                seen = json.loads(client.answer(stream).body)
                assert (seen["client_ip"], seen["path"]) == (ip, f"/{ip}")


def test_many_streams_at_once_of_one_preamble(ports: Ports) -> None:
    with http2(ports.tls, V2, tls=True) as client:
        streams = [client.ask("/", [("x-forwarded-for", f"198.51.100.{number}")]) for number in range(100)]
        assert {decided(json.loads(client.answer(stream).body)) for stream in streams} == {NAMED}


def test_header_of_several_lines(ports: Ports) -> None:
    lines = [("x-forwarded-for", "6.6.6.6"), ("x-other", "1"), ("x-forwarded-for", "198.51.100.7, 10.0.0.1")]
    with http2(ports.header) as client:
        assert decided(client.get("/", lines)) == ("198.51.100.7", None)
        assert client.get("/", [*lines, ("x-forwarded-for", "10.0.0.2")])["client_ip"] == "198.51.100.7"
        assert client.get("/", lines[::-1])["client_ip"] == "6.6.6.6"
        assert decided(client.get("/")) == client.sock.getsockname()
        assert client.get("/", [("x-forwarded-for", "nonsense")])["source"] == "peer"


def test_the_forwarded_view(ports: Ports) -> None:
    lines = [
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/api"),
        ("x-forwarded-for", "203.0.113.7"),
    ]
    with http2(ports.header) as client:
        seen = client.get("/a/../b?c", lines)
    assert seen["scheme"] == "https"
    assert seen["forwarded"] == {
        "scheme": "https", "host": "service.test", "port": ports.header, "path": "/b", "prefix": "/api",
    }  # fmt: skip
    assert seen["upstream_headers"] == {
        "X-Real-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.7, 127.0.0.1", "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "service.test", "X-Forwarded-Port": str(ports.header), "X-Forwarded-Path": "/a/../b",
        "X-Forwarded-Prefix": "/api",
    }  # fmt: skip


# Which protocol it is


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("other", "http/1.1")])
def test_http1_where_alpn_does_not_say_h2(ports: Ports, alpn: tuple[str, ...]) -> None:
    with opened(ports.tls, V2, tls=context(*alpn)) as sock:
        assert isinstance(sock, ssl.SSLSocket)
        assert sock.selected_alpn_protocol() == ("http/1.1" if alpn else None)
        seen = http1(sock)
    assert decided(seen) == NAMED
    assert (seen["http_version"], seen["scheme"]) == ("1.1", "https")


def test_http1_in_clear_text(ports: Ports) -> None:
    with opened(ports.clear, V2) as sock:
        seen = http1(sock)
    assert decided(seen) == NAMED
    assert (seen["http_version"], seen["scheme"]) == ("1.1", "http")


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_http1_is_served_as_everywhere(ports: Ports, tls: bool) -> None:
    with opened(ports.tls if tls else ports.clear, V2, tls=context() if tls else None) as sock:
        port = sock.getsockname()[1]
        sock.sendall(b"GET / HTTP/1.1\r\nHost: service.test\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        connections: set[Any] = ports.lab._server.server_state.connections
        (mine,) = [one for one in connections if one.connection.peer.port == port]
        assert isinstance(mine, HTTP1Protocol)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "PROPFIND"])
def test_http1_that_begins_like_the_preface(ports: Ports, method: str) -> None:
    """Byte by byte, so that some are undecided for a while."""
    with opened(ports.clear, V2) as sock:
        send_slowly(sock, f"{method} / HTTP/1.1\r\nHost: service.test\r\nConnection: close\r\n\r\n".encode())
        assert b'"client_ip":"203.0.113.7"' in b"".join(received(sock))


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_websocket_over_http1(ports: Ports, tls: bool) -> None:
    request = (
        b"GET /live HTTP/1.1\r\nHost: service.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with opened(ports.tls if tls else ports.clear, V2, tls=context("http/1.1") if tls else None) as sock:
        sock.sendall(request)
        answer = b""
        while b"}" not in answer:
            answer += sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b'"client_ip":"203.0.113.7","client_port":51000' in answer


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_preamble_preface_and_request_byte_by_byte(ports: Ports, tls: bool) -> None:
    with connect(ports.tls if tls else ports.clear, LOOPBACK) as plain:
        send_slowly(plain, V2)
        with context("h2").wrap_socket(plain) if tls else plain as sock:
            assert decided(Client(sock, slowly=True).get()) == NAMED


def test_preamble_preface_and_request_in_one_piece(ports: Ports) -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours, connect(ports.clear, LOOPBACK) as sock:
        client = Client(ours)
        stream = client.ask()
        sock.sendall(V2 + theirs.recv(1 << 16))
        client.sock = sock
        assert decided(json.loads(client.answer(stream).body)) == NAMED


def test_silence_is_not_waited_for_longer_than_for_the_next_request(ports: Ports) -> None:
    config = ports.lab._server.config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "timeout_keep_alive", 0.1)
        for begun in (b"", b"PRI * HTT"):
            with opened(ports.clear, V2 + begun) as sock:
                assert list(received(sock)) == []
        with http2(ports.clear, V2) as client:
            assert client.goodbye() == 0


@pytest.mark.parametrize("preamble", [V1, V2], ids=["v1", "v2"])
def test_preamble_at_a_port_without_the_flag_gets_a_hint(
    ports: Ports, preamble: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ports.header, preamble) as sock:
        peer = "{}:{}".format(*sock.getsockname())
        Client(sock)
        assert b"".join(received(sock)).startswith(b"HTTP/1.1 400 ")
    (line,) = [record.getMessage() for record in caplog.records if peer in record.getMessage()]
    assert line.endswith("a PROXY preamble reached a port without proxy_protocol")


# Bodies, headers and streams


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_request_body(ports: Ports, size: int) -> None:
    with http2(ports.tls, V2, tls=True) as client:
        answer = client.answer(client.ask("/length", method="POST", body=b"x" * size))
        assert (answer.status, answer.body) == (200, str(size).encode())
        assert decided(client.get()) == NAMED


def test_request_without_a_body_has_an_end(ports: Ports) -> None:
    """Which zttp tells with the head of the request, where uvicorn does not look for it."""
    with http2(ports.clear, V2) as client:
        for method in ("GET", "POST"):
            assert client.answer(client.ask("/length", method=method)).body == b"0"


def test_large_answers_side_by_side(ports: Ports) -> None:
    with http2(ports.tls, V2, tls=True) as client:
        large = [client.ask("/large") for _ in range(4)]
        small = client.ask()
        assert decided(json.loads(client.answer(small).body)) == NAMED
        assert [len(client.answer(stream).body) for stream in large] == [LARGE] * 4


def test_head(ports: Ports) -> None:
    with http2(ports.clear, V2) as client:
        answer = client.answer(client.ask("/large", method="HEAD"))
        assert (answer.status, answer.body) == (200, b"")


def test_forbidden_headers_of_an_answer_are_left_out(ports: Ports) -> None:
    with http2(ports.clear, V2) as client:
        answer = client.answer(client.ask("/hop-by-hop"))
        assert set(answer.headers) - {"date", "server"} == {"x-kept"}


def test_forbidden_header_of_a_request_resets_the_stream_only(ports: Ports) -> None:
    forbidden = [
        ("connection", "close"), ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("te", "gzip"),
        ("X-Forwarded-For", "6.6.6.6"), ("x-a", "1\r\nx-forwarded-for: 6.6.6.6"), ("x-b", "1\0"), ("x c", "1"),
        ("host", "other.test"),
    ]  # fmt: skip
    with http2(ports.header) as client:
        for header in forbidden:
            assert client.reset_of(client.ask("/", [header])) == ErrorCodes.PROTOCOL_ERROR
        assert decided(client.get()) == client.sock.getsockname()


def test_header_that_an_application_must_not_send_resets_the_stream_only(ports: Ports) -> None:
    with http2(ports.clear, V2) as client:
        assert client.reset_of(client.ask("/broken")) == ErrorCodes.CANCEL
        assert decided(client.get()) == NAMED


@pytest.mark.parametrize("path", ["/\xfc", "/?\xfc"])
def test_target_that_is_not_ascii_resets_the_stream_only(ports: Ports, path: str) -> None:
    with http2(ports.clear, V2) as client:
        other = client.ask("/large")
        assert client.reset_of(client.ask(path)) == ErrorCodes.PROTOCOL_ERROR
        assert len(client.answer(other).body) == LARGE


def test_websocket_over_http2_is_neither_offered_nor_taken(ports: Ports) -> None:
    """A browser that is offered it uses nothing else, and uvicorn does not have it."""
    with http2(ports.tls, V2, tls=True) as client:
        assert decided(client.get()) == NAMED
        (settings,) = [event for event in client.events if isinstance(event, RemoteSettingsChanged)]
        assert settings.changed_settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value >= 100
        assert client.h2.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 0
        stream = client.ask("/live", [(":protocol", "websocket")], method="CONNECT")
        assert client.reset_of(stream) == ErrorCodes.PROTOCOL_ERROR


def test_cookies_arrive_as_one_header(ports: Ports) -> None:
    with http2(ports.clear, V2) as client:
        seen = client.get("/", [("cookie", "a=1"), ("x-between", "1"), ("cookie", "b=2"), ("cookie", "c=3")])
        assert [value for name, value in seen["headers"] if name == "cookie"] == ["a=1; b=2; c=3"]
        assert ["x-between", "1"] in seen["headers"]


# What is slow, and the end


class Held:
    """Answers with endless data on /endless, and elsewhere when it is let."""

    def __init__(self) -> None:
        self.sent = 0
        self.is_over = threading.Event()
        self.may_answer = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await whoami.app(scope, receive, send)
        elif scope["path"] == "/endless":
            await self._send_endlessly(send)
        elif scope["path"] == "/held":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.to_thread(self.may_answer.wait, 5)
            await send({"type": "http.response.body", "body": b"done"})
        else:
            await app(scope, receive, send)

    async def _send_endlessly(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        piece = b"x" * (1 << 16)
        while self.sent < ENDLESS:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.sent += len(piece)
        await send({"type": "http.response.body", "body": b""})
        self.is_over.set()

    def wait_until_held_up(self) -> int:
        """How much it could send before it had to wait."""
        before = -1
        while before != self.sent:
            before = self.sent
            time.sleep(0.2)
        return before


class Holding(NamedTuple):
    lab: Lab
    app: Held
    tls: int
    clear: int

    def protocol(self) -> HTTP2Protocol:
        """The server's end of the only connection."""
        (made,) = self.lab._server.server_state.connections
        assert isinstance(made, HTTP2Protocol)
        # Or the middleware could take it for a peer that it remembers from another server.
        assert made.client is None
        return made


@pytest.fixture
def holding(loop: str) -> Iterator[Holding]:
    app = Held()
    lab = Lab(app)
    flags = ("http2", "proxy_protocol")
    found = Holding(
        lab, app, lab.add(FROM_PREAMBLE, flags=("ssl", *flags)), lab.add(FROM_PREAMBLE, flags=flags)
    )
    with lab.running(loop):
        yield found


def test_application_waits_for_a_client_that_does_not_read(holding: Holding) -> None:
    with http2(holding.tls, V2, tls=True) as client:
        client.takes_data = False
        stream = client.ask("/endless")
        assert holding.app.wait_until_held_up() < 1 << 20
        # The connection's window is full as well, so nothing else could be answered before.
        client.take_data(stream)
        assert len(client.answer(stream).body) == ENDLESS
        assert decided(client.get()) == NAMED


def test_application_waits_for_a_client_whose_socket_is_full(holding: Holding) -> None:
    with http2(holding.tls, V2, tls=True) as client:
        client.takes_data = False
        stream = client.ask("/endless")
        client.take_data(stream)
        assert holding.app.wait_until_held_up() < ENDLESS
        assert len(client.answer(stream).body) == ENDLESS


def test_stream_that_waits_does_not_hold_up_the_others(holding: Holding) -> None:
    with http2(holding.clear, V2) as client:
        client.takes_data = False
        client.h2.increment_flow_control_window(ENDLESS)
        client.send()
        client.ask("/endless")
        holding.app.wait_until_held_up()
        assert decided(client.get()) == NAMED


@pytest.mark.parametrize("hangs_up", [True, False], ids=["hangs up", "resets the stream"])
def test_application_does_not_wait_for_a_client_that_is_gone(holding: Holding, hangs_up: bool) -> None:
    with http2(holding.clear, V2) as client:
        client.takes_data = False
        stream = client.ask("/endless")
        assert holding.app.wait_until_held_up() < ENDLESS
        if hangs_up:
            client.sock.close()
        else:
            client.h2.reset_stream(stream, ErrorCodes.CANCEL)
            client.send()
        assert holding.app.is_over.wait(5)


def test_idle_connection_is_closed_with_goodbye(holding: Holding) -> None:
    holding.lab._server.config.timeout_keep_alive = 0.2  # type: ignore[assignment]
    with http2(holding.tls, V2, tls=True) as client:
        assert decided(client.get()) == NAMED
        assert client.goodbye() == 1


def test_slow_download_is_no_idle_connection(holding: Holding) -> None:
    holding.lab._server.config.timeout_keep_alive = 0.1  # type: ignore[assignment]
    with http2(holding.clear, V2) as client:
        client.takes_data = False
        stream = client.ask("/large")
        time.sleep(0.4)
        client.take_data(stream)
        assert len(client.answer(stream).body) == LARGE
        assert client.goodbye() == stream


def test_client_says_goodbye_and_waits_for_its_answer(holding: Holding) -> None:
    holding.lab._server.config.timeout_keep_alive = 60
    with http2(holding.clear, V2) as client:
        client.takes_data = False
        stream = client.ask("/large")
        client.wait_for_head(stream)
        server = holding.protocol()
        client.sock.sendall(GoAwayFrame(0).serialize())
        wait_until(lambda: server.shutdown_requested, "the server's notice of it")
        client.take_data(stream)
        assert len(client.answer(stream).body) == LARGE
        assert client.goodbye() == stream


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_end_says_goodbye_to_the_idle(holding: Holding, tls: bool) -> None:
    with http2(holding.tls if tls else holding.clear, V2, tls=tls) as client:
        assert decided(client.get()) == NAMED
        with opened(holding.clear, V2 + b"PRI * HTT") as undecided:
            holding.lab.stop()
            assert list(received(undecided)) == []
        assert client.goodbye() == 1


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_end_waits_for_what_is_being_answered(holding: Holding, tls: bool) -> None:
    with http2(holding.tls if tls else holding.clear, V2, tls=tls) as client:
        client.takes_data = False
        large, held = client.ask("/large"), client.ask("/held")
        client.wait_for_head(held)
        holding.lab.stop()
        server = holding.protocol()
        wait_until(lambda: server.shutdown_requested, "the end of connections")
        # uvicorn's way to refuse what comes afterwards.
        late = client.ask()
        holding.app.may_answer.set()
        client.take_data(large)
        assert client.answer(held).body == b"done"
        assert client.answer(late).status == 503
        assert len(client.answer(large).body) == LARGE
        assert client.goodbye() == late


def send_in_vain(client: Client) -> None:
    """For longer than a client may be quiet."""
    for _ in range(8):
        client.h2.increment_flow_control_window(1)
        client.h2.ping(b"in vain!")
        client.send()
        time.sleep(QUIET_SECONDS / 2)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_credit_that_comes_late_costs_no_data(holding: Holding, tls: bool) -> None:
    """As it would from a socket that was closed already, and answers with a reset."""
    with http2(holding.tls if tls else holding.clear, V2, tls=tls) as client:
        client.takes_data = False
        stream = client.ask("/large")
        client.wait_for_head(stream)
        server = holding.protocol()
        client.take_data(stream)
        holding.lab.stop()
        wait_until(lambda: server.is_over, "the end of the connection")
        send_in_vain(client)
        assert len(client.answer(stream).body) == LARGE
        assert client.goodbye() == stream


def test_client_that_goes_on_is_closed_at_last(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_module, "_LINGER_SECONDS", 2 * QUIET_SECONDS)
    with http2(holding.clear, V2) as client:
        assert decided(client.get()) == NAMED
        server = holding.protocol()
        holding.lab.stop()
        wait_until(lambda: server.is_over, "the end of the connection")
        with pytest.raises(ConnectionError):
            send_in_vain(client)


class Written(asyncio.Transport):
    """Where a protocol writes to, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def asked(count: int, pieces: int) -> tuple[HTTP2Protocol, Written, H2Connection]:
    """Some requests that have come at once, each of which will be answered in some pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(1, pieces + 1):
            await send({"type": "http.response.body", "body": b"piece", "more_body": number < pieces})

    transport, client = Written(), H2Connection()
    config = uvicorn.Config(app, interface="asgi3", log_config=None, access_log=False)
    protocol = HTTP2Protocol(config, ServerState(), {}, asyncio.get_running_loop())
    protocol.connection = Connection(Address(CLIENT_IP, 1), (LOOPBACK, 2), None, tls=False)
    protocol.connection_made(transport)
    client.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "service.test"), (":path", "/")]
    for stream in range(1, 2 * count, 2):
        client.send_headers(stream, head, end_stream=True)
    protocol.data_received(client.data_to_send())
    client.receive_data(b"".join(transport.writes))
    transport.writes.clear()
    return protocol, transport, client


async def writes_for(count: int, pieces: int) -> int:
    protocol, transport, client = asked(count, pieces)
    await asyncio.wait(set(protocol.tasks))
    await asyncio.sleep(0)
    events = client.receive_data(b"".join(transport.writes))
    assert sum(isinstance(event, StreamEnded) for event in events) == count
    assert (
        sum(isinstance(event, DataReceived) and event.data == b"piece" for event in events) == count * pieces
    )
    protocol.connection_lost(None)
    return len(transport.writes)


async def test_short_answers_of_one_turn_leave_together() -> None:
    assert await writes_for(20, 1) == 1


async def test_pieces_of_long_answers_leave_one_by_one() -> None:
    """The application may not let anybody else have a turn between them."""
    assert await writes_for(1, 50) > 40


async def test_nothing_is_written_behind_the_end() -> None:
    protocol, transport, _ = asked(1, 1)
    # Between the application's turn and that of the flush.
    asyncio.get_running_loop().call_soon(protocol.connection_lost, None)
    await asyncio.wait(set(protocol.tasks))
    await asyncio.sleep(0)
    assert transport.writes == []


# Other clients


@cache
def curl_options() -> tuple[str, ...]:
    """What every curl gets; one that cannot do HTTP/2 skips the test."""
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "-V"], capture_output=True, text=True).stdout:
        pytest.skip("needs curl with HTTP/2")
    return (curl, "--silent", "--show-error", "--insecure", "--max-time", "8", "--interface", CLIENT_IP)


def curl(*arguments: str) -> Seen:
    done = subprocess.run([*curl_options(), *arguments], capture_output=True, text=True, check=True)
    seen: Seen = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize(("option", "http_version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_behind_haproxy_that_passes_tls_through(
    ports: Ports, tmp_path: Path, option: str, http_version: str
) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, ports.tls, "send-proxy-v2"), port):
        seen = curl(option, f"https://{LOOPBACK}:{port}/", "--header", "X-Forwarded-For: 6.6.6.6")
    assert (seen["client_ip"], seen["peer_ip"], seen["source"]) == (CLIENT_IP, LOOPBACK, "proxy_protocol")
    assert (seen["http_version"], seen["scheme"]) == (http_version, "https")


@pytest.mark.parametrize(
    ("option", "http_version"), [("--http2-prior-knowledge", "2"), ("--http2", "1.1"), ("--http1.1", "1.1")]
)
def test_curl_in_clear_text_with_a_preamble_of_its_own(ports: Ports, option: str, http_version: str) -> None:
    """--http2 asks to upgrade from HTTP/1.1, which is not served and answered with HTTP/1.1."""
    seen = curl("--haproxy-protocol", option, f"http://{LOOPBACK}:{ports.clear}/")
    assert (seen["client_ip"], seen["source"]) == (CLIENT_IP, "peer")
    assert (seen["preamble"]["source_ip"], seen["http_version"]) == (CLIENT_IP, http_version)


def test_haproxy_passes_tls_through_for_many_clients(ports: Ports, tmp_path: Path) -> None:
    port = free_port()
    with haproxy(tmp_path, forward(port, ports.tls, "send-proxy-v2"), port):
        for source_ip in (CLIENT_IP, OTHER_CLIENT_IP):
            with http2(port, tls=True, source_ip=source_ip) as client:
                streams = [client.ask("/", FORGED) for _ in range(50)]
                seen = [decided(json.loads(client.answer(stream).body)) for stream in streams]
                assert set(seen) == {client.sock.getsockname()}


@pytest.mark.parametrize("options", ["proto h2", "ssl verify none alpn h2"])
def test_haproxy_speaks_http2_behind_a_preamble(ports: Ports, tmp_path: Path, options: str) -> None:
    """It has no connection that carries a preamble shared by two clients."""
    port, tls = free_port(), "ssl" in options
    upstream = ports.tls if tls else ports.clear
    config = forward(port, upstream, f"{options} send-proxy-v2", "mode http", "http-reuse always")
    with (
        haproxy(tmp_path, config, port),
        http2(port, source_ip=CLIENT_IP) as one,
        http2(port, source_ip=OTHER_CLIENT_IP) as other,
    ):
        for _ in range(2):
            for client in (one, other):
                seen = client.get("/", FORGED)
                assert decided(seen) == client.sock.getsockname()
                assert (seen["http_version"], seen["tls"]) == ("2", tls)
                assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")


@pytest.mark.parametrize("options", ["proto h2", "ssl verify none alpn h2"])
def test_haproxy_carries_many_clients_on_one_connection(ports: Ports, tmp_path: Path, options: str) -> None:
    port, tls = free_port(), "ssl" in options
    upstream = ports.tls_header if tls else ports.header
    config = forward(port, upstream, options, "mode http", "http-reuse always", "option forwardfor")
    clients = [f"127.0.0.{number}" for number in range(10, 20)]
    with haproxy(tmp_path, config, port):
        peers = set()
        for ip in clients * 2:
            with http2(port, source_ip=ip) as client:
                streams = [client.ask("/", FORGED) for _ in range(10)]
                seen = [json.loads(client.answer(stream).body) for stream in streams]
                assert {decided(one) for one in seen} == {(ip, None)}
                assert {one["http_version"] for one in seen} == {"2"}
                peers |= {one["peer_port"] for one in seen}
    assert len(peers) < 2 * len(clients)


def forward(port: int, upstream: int, server_options: str, *lines: str) -> str:
    """``proto h2`` for its clients in mode http, where HAProxy looks at what they say anyway."""
    proto = "proto h2" if "mode http" in lines else ""
    more = "\n    ".join(lines)
    return f"""
listen balancer
    bind {LOOPBACK}:{port} {proto}
    {more}
    server upstream {LOOPBACK}:{upstream} {server_options}
"""


# What is taken from uvicorn and zttp without a promise


def test_versions_are_those_that_were_tried() -> None:
    assert (version("uvicorn"), version("zttp")) == ("0.54.0", "0.0.35")


def test_connection_made_sets_what_we_set() -> None:
    """Ours replaces it, so a line that is new there may be missing here."""
    source = inspect.getsource(ZttpH2Protocol.connection_made)
    assigned = re.findall(r"^ +(self\.\w+) = ", source, re.MULTILINE)
    assert assigned == ["self.transport", "self.flow", "self.server", "self.client", "self.scheme"]
    assert "self.connections.add(self)" in source
    assert "self.conn.initiate_connection()" in source


def test_how_the_protocol_is_chosen() -> None:
    assert list(inspect.signature(AutoZttpProtocol._switch).parameters) == ["self", "http2", "initial_data"]
    assert AutoZttpProtocol.alpn_protocols == ["h2", "http/1.1"]


@pytest.mark.parametrize("protocol", [ZttpH2Protocol, AutoZttpProtocol])
def test_how_a_protocol_is_made(protocol: type) -> None:
    assert list(inspect.signature(protocol).parameters)[:4] == [
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    assert '"state": self.app_state.copy()' in inspect.getsource(ZttpH2Protocol)
