"""What stands in front: HTTP/2, TLS, preambles, the access log, and WebSocket through all of it."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from kongrealip.server.access_log import AccessLog, logged
from tests.lab import LOOPS, client_tls
from tests.proxy.lab import (
    OK,
    TRUSTING,
    Peer,
    Upstream,
    answering,
    ask,
    echoing_heads,
    get,
    lines_of,
    request,
    sidecar,
    split,
    upstream,
)
from tests.proxy.test_pool import ENDLESS, send_until_refused
from tests.running import LOOPBACK, client, connect, wait_until
from tests.test_http2 import http2

PREAMBLE = b"PROXY TCP4 203.0.113.7 198.51.100.9 51000 443\r\n"
CHAT = [Subprotocol("chat.v1")]
FROM_PREAMBLE = TRUSTING | {"KONG_REAL_IP_HEADER": "proxy_protocol"}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 17\r\n\r\n"


@pytest.mark.parametrize("tls", [False, True])
def test_a_preamble_names_the_client(tls: bool) -> None:
    flags = "proxy_protocol" + " ssl" * tls
    with upstream(echoing_heads) as behind, sidecar(behind.url, environ=FROM_PREAMBLE, flags=flags) as front:  # noqa: SIM117
        with connect(front.port, LOOPBACK) as sock:
            sock.sendall(PREAMBLE)
            sock = client_tls().wrap_socket(sock) if tls else sock
            sock.sendall(request("Connection: close"))
            lines = dict(lines_of(split(Peer(sock).read_to_end())[2]))
            sock.close()
    assert lines[b"x-real-ip"] == b"203.0.113.7"
    assert lines[b"x-forwarded-for"] == b"203.0.113.7"
    assert lines[b"x-forwarded-proto"] == (b"https" if tls else b"http")


@pytest.mark.parametrize("tls", [False, True])
def test_http2(tls: bool) -> None:
    flags = "http2" + " ssl" * tls
    with upstream(echoing_heads) as behind, sidecar(behind.url, flags=flags, preserve_host=True) as front:  # noqa: SIM117
        with http2(front.port, tls=tls) as client:
            streams = [
                client.ask(f"/{number}?q", [("x-real-ip", "203.0.113.7"), ("te", "trailers")])
                for number in range(20)
            ]
            heads = [client.answer(stream).body for stream in streams]
    for number, head in enumerate(heads):
        assert head.startswith(b"GET /%d?q HTTP/1.1\r\n" % number)
        lines = dict(lines_of(head))
        assert (lines[b"host"], lines[b"x-real-ip"], lines[b"te"]) == (
            b"service.test",
            b"203.0.113.7",
            b"trailers",
        )
        assert not {b"content-length", b"transfer-encoding"} & set(lines)
    assert behind.connections < 20 + 1


def taking_bodies(made: Upstream, peer: Peer) -> None:
    while head := peer.read_head():
        lines = dict(lines_of(head))
        if b"transfer-encoding" in lines:
            body = peer.read_until(b"0\r\n\r\n")
        else:
            body = peer.read(int(lines.get(b"content-length", b"0")))
        made.heads.append(head + body)
        peer.send(CHUNKED)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("size", [5, 300_000])
def test_http2_bodies(size: int, told: bool) -> None:
    with (
        upstream(taking_bodies) as behind,
        sidecar(behind.url, flags="http2") as front,
        http2(front.port) as client,
    ):
        headers = [("content-length", str(size))] if told else []
        assert client.answer(client.ask("/", headers, method="POST", body=b"x" * size)).body == b"ok"
        assert client.answer(client.ask("/", method="POST", body=b"")).body == b"ok"
        assert client.answer(client.ask("/", method="DELETE")).body == b"ok"
    assert behind.heads[0].count(b"x") >= size
    assert behind.connections == 1


def test_http2_trailers_and_a_broken_answer() -> None:
    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot"

    def handle(made: Upstream, peer: Peer) -> None:
        while head := peer.read_head():
            peer.send(broken if b"/broken" in head else CHUNKED)
            if b"/broken" in head:
                return

    with upstream(handle) as behind, sidecar(behind.url, flags="http2") as front, http2(front.port) as client:
        stream = client.ask("/", [("te", "trailers")])
        assert client.answer(stream).body == b"ok"
        trailers = [event for event in client.events_of(stream) if type(event).__name__ == "TrailersReceived"]
        assert [list(event.headers) for event in trailers] == [[("x-sum", "17")]]  # type: ignore[attr-defined]
        client.reset_of(client.ask("/broken"))
        assert client.answer(client.ask("/")).body == b"ok", "the other streams go on"


def test_requests_in_a_pipeline_are_answered_in_order() -> None:
    with upstream(echoing_heads) as behind, sidecar(behind.url) as front:
        data = b"".join(request(target=f"/{number}") for number in range(20))
        answers = ask(front.port, data + request("Connection: close"))
    assert re.findall(rb"GET /(\d+) ", answers) == [b"%d" % number for number in range(20)]


def test_the_access_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(str(path), "json")

    with upstream(answering(OK)) as behind, sidecar(behind.url, layers=lambda app: logged(app, log)) as front:  # type: ignore[arg-type]
        get(front.port, "X-Real-IP: 203.0.113.7", target="/a")
    log.close()
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["client.address"], line["url.path"], line["http.response.status_code"]) == (
        "203.0.113.7",
        "/a",
        200,
    )
    assert line["http.response.body.size"] == 2


class Echo:
    """A WebSocket server in a thread: what comes goes back, ``close CODE`` closes."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._echo, LOOPBACK, 0, subprotocols=[Subprotocol("chat.v2"), *CHAT], process_request=self._judge
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(403, "not you\n") if request.path == "/refused" else None

    async def _echo(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.headers.append(dict(socket.request.headers.raw_items()))
        try:
            async for message in socket:
                if isinstance(message, str) and message.startswith("close "):
                    await socket.close(int(message[6:]), "as you like")
                else:
                    await socket.send(message)
        except websockets.ConnectionClosed:
            pass
        self.closes.append((socket.close_code, socket.close_reason))

    def __enter__(self) -> Echo:
        self._thread.start()
        assert self._ready.wait(8)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(8)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [False, True])
async def test_websocket(echo: Echo, loop: str, tls: bool) -> None:
    with sidecar(echo.url, flags="ssl http2" if tls else "", loop=loop) as front:
        url = f"ws{'s' * tls}://{LOOPBACK}:{front.port}/path?query"
        more: dict[str, Any] = {"ssl": client_tls()} if tls else {}
        async with connect_websocket(
            url, subprotocols=CHAT, additional_headers={"X-Real-IP": "203.0.113.7"}, **more
        ) as socket:
            assert socket.subprotocol == "chat.v1"
            for message in ("text \u20ac", b"\x00\xff" * 4, "", b"", "x" * 300_000, b"y" * 300_000):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send(["frag", "ments"])
            assert await socket.recv() == "fragments"
            await (await socket.ping(b"through"))
        seen = {name.lower(): value for name, value in echo.headers[-1].items()}
        assert seen["x-real-ip"] == "203.0.113.7"
        assert (seen["connection"], seen["upgrade"]) == ("keep-alive, Upgrade", "websocket")
        wait_until(lambda: front.proxy.pool.open == 0, "the upstream to see the end")
    assert echo.closes[-1][0] == 1000


async def test_websocket_close_codes(echo: Echo) -> None:
    with sidecar(echo.url) as front:
        url = f"ws://{LOOPBACK}:{front.port}/"
        async with connect_websocket(url, subprotocols=CHAT) as socket:
            await socket.close(4001, "enough")
        wait_until(lambda: echo.closes[-1] == (4001, "enough"), "the client's code at the upstream")
        async with connect_websocket(url, subprotocols=CHAT) as socket:
            await socket.send("close 4002")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4002, "as you like")


async def test_websocket_refused(echo: Echo) -> None:
    with sidecar(echo.url) as front:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connect_websocket(f"ws://{LOOPBACK}:{front.port}/refused"):
                pass
        assert refused.value.response.status_code == 403
        assert refused.value.response.body == b"not you\n"


async def test_a_websocket_does_not_keep_the_server_from_its_end(echo: Echo) -> None:
    with sidecar(echo.url) as front:
        socket = await connect_websocket(f"ws://{LOOPBACK}:{front.port}/", subprotocols=CHAT)
    await socket.close()
    assert socket.close_code == 1006


HANDSHAKE = request(
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
)


def test_bytes_in_front_of_the_upstreams_consent_are_nobodys() -> None:
    with upstream(answering(OK)) as behind, sidecar(behind.url) as front:
        ask(front.port, HANDSHAKE + request(target="/smuggled"))
        with connect(front.port, LOOPBACK) as sock:
            sock.sendall(HANDSHAKE)
            peer = Peer(sock)
            status, lines, _ = split(peer.read_head())
            assert (status, (b"connection", b"close") in lines) == (200, True)
            assert peer.read_to_end() == b"ok"
    assert not any(b"smuggled" in head for head in behind.heads)


def test_other_upgrades_are_passed_over() -> None:
    offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"]
    with upstream(echoing_heads) as behind, sidecar(behind.url) as front:
        status, lines, head = split(ask(front.port, request(*offer) + request(target="/never")))
        assert (status, (b"connection", b"close") in lines) == (200, True)
        assert b"upgrade" not in head
        assert b"settings" not in head
        for framing, body in (("Content-Length: 3", b"abc"), ("Transfer-Encoding: chunked", b"0\r\n\r\n")):
            # The parser takes such a body for another protocol.
            answer = ask(front.port, request(*offer, framing, method="POST") + body)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"a body and an upgrade at once\n")
    assert len(behind.heads) == 1


def test_an_upgrade_that_connection_does_not_name_is_none() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    with upstream(answering(switching)) as behind, sidecar(behind.url) as front:
        assert split(get(front.port, "Upgrade: websocket"))[0] == 502
    assert b"upgrade" not in behind.heads[0]


def test_what_is_used_of_uvicorn() -> None:
    """Named here, so that a release without one of them is understood at once."""
    cycle = inspect.signature(RequestResponseCycle).parameters
    assert {
        "scope",
        "transport",
        "flow",
        "default_headers",
        "message_event",
        "keep_alive",
        "on_response",
    } <= set(cycle)
    source = inspect.getsource(RequestResponseCycle)
    for name in (
        "disconnected",
        "waiting_for_100_continue",
        "body",
        "more_body",
        "response_started",
        "response_complete",
    ):
        assert f"self.{name} = " in source
    assert "self.receive, self.send" in source, "what the application is given"
    for method in ("_should_upgrade", "_get_upgrade", "_unsupported_upgrade_warning"):
        assert f"self.{method}()" in inspect.getsource(HttpToolsProtocol)


def test_a_tunnel_in_which_nothing_moves_ends(caplog: pytest.LogCaptureFixture) -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello"
        )
        peer.read_to_end()

    with upstream(handle) as behind, sidecar(behind.url, read_timeout=0.3) as front:  # noqa: SIM117
        with connect(front.port, LOOPBACK) as sock:
            sock.sendall(HANDSHAKE)
            peer = Peer(sock)
            assert split(peer.read_head())[0] == 101
            assert peer.read_to_end() == b"hello"
    assert "nothing moved for 0.3 s" in caplog.text
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"


def test_a_slow_end_of_a_tunnel_stops_the_other_and_both_are_in_the_log(tmp_path: Path) -> None:
    go_on, log = threading.Event(), AccessLog(str(tmp_path / "log"), "json")

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(SWITCHING)
        go_on.wait(8)
        made.heads.append(b"%d" % peer.skip(ENDLESS))
        peer.send(b"bye")

    with (
        upstream(handle) as behind,
        sidecar(behind.url, layers=lambda app: logged(app, log)) as front,  # type: ignore[arg-type]
        connect(front.port, LOOPBACK) as sock,
    ):
        sock.sendall(HANDSHAKE)
        client = Peer(sock)
        assert split(client.read_head())[0] == 101
        sent = send_until_refused(sock)
        assert sent < ENDLESS // 2
        go_on.set()
        sock.sendall(bytes(ENDLESS - sent))
        assert client.read_to_end() == b"bye"
        assert behind.heads == [b"%d" % ENDLESS]
    log.close()
    line = json.loads((tmp_path / "log").read_text())
    assert (line["http.response.status_code"], line["http.response.body.size"]) == (101, 3)


def test_bytes_of_a_second_segment_in_front_of_the_consent_close(caplog: pytest.LogCaptureFixture) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        asked.set()
        go_on.wait(8)
        peer.send(SWITCHING)
        made.heads.append(peer.read_to_end())

    with (
        upstream(handle) as behind,
        sidecar(behind.url) as front,
        connect(front.port, LOOPBACK) as sock,
    ):
        sock.sendall(HANDSHAKE)
        assert asked.wait(8)
        sock.sendall(b"early")
        assert Peer(sock).read_to_end() == b""
        go_on.set()
        wait_until(lambda: behind.heads == [b""], "the upstream to be left, and to see nothing of it")


def test_an_http1_client_of_an_http2_listener() -> None:
    with upstream(echoing_heads) as behind, sidecar(behind.url, flags="http2 ssl") as front:
        with client(front.port, LOOPBACK, tls=client_tls()) as asking:
            assert asking._http is not None
        assert split(get_tls(front.port))[0] == 200


def get_tls(port: int) -> bytes:
    with connect(port, LOOPBACK) as sock, client_tls().wrap_socket(sock) as encrypted:
        encrypted.sendall(request("Connection: close"))
        return Peer(encrypted).read_to_end()
