"""Clients and upstreams that mean ill: what was found by trying to break the sidecar, and must not come back."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from tests.proxy.lab import (
    OK,
    PATIENCE,
    Peer,
    Upstream,
    answering,
    ask,
    get,
    request,
    sidecar,
    split,
    upstream,
)
from tests.running import connect, wait_until
from tests.test_http2 import http2

TWO_ANSWERS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nSet-Cookie: evil\r\nContent-Length: 0\r\n\r\n"
)


def hanging(made: Upstream, peer: Peer) -> None:
    """Answers the first request of all, and no other."""
    while head := peer.read_head():
        made.heads.append(head)
        if len(made.heads) == 1:
            peer.send(OK)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_what_took_too_long_is_not_asked_again(method: str) -> None:
    with upstream(hanging) as behind, sidecar(behind.url, read_timeout=0.3) as front:
        get(front.port)
        assert split(get(front.port, method=method))[0] == 504
    assert len(behind.heads) == 2


def test_a_body_that_does_not_come_lets_the_upstream_go() -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        made.heads.append(peer.read_head())
        peer.read_to_end()
        made.heads.append(b"gone")

    with upstream(handle) as behind, sidecar(behind.url, read_timeout=0.3) as front:
        with connect(front.port) as sock:
            sock.settimeout(PATIENCE)
            sock.sendall(request("Content-Length: 10", method="POST"))
            assert Peer(sock).read_to_end().startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: b"gone" in behind.heads, "the upstream to be let go")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_an_http2_request_that_is_given_up_is_not_a_whole_one(method: str) -> None:
    with (
        upstream(answering(OK)) as behind,
        sidecar(behind.url, flags="http2") as front,
        http2(front.port) as client,
    ):
        stream = client.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", "/given-up")]
        client.h2.send_headers(stream, pseudo)
        client.h2.reset_stream(stream)
        client.send()
        assert client.answer(client.ask("/after")).body == b"ok"
    assert [head.split()[1] for head in behind.heads] == [b"/after"]


@pytest.mark.parametrize("path", ["http://evil.example/x", "evil.example:80", "?q"])
def test_a_path_of_http2_that_is_none(path: str) -> None:
    with (
        upstream(answering(OK)) as behind,
        sidecar(behind.url, flags="http2") as front,
        http2(front.port) as client,
    ):
        stream = client.ask(path)
        status = 400
        # Or a reset.
        with suppress(AssertionError, ConnectionError):
            status = client.answer(stream).status
        assert status == 400
    assert behind.heads == []


def test_an_absolute_target_with_a_fragment_does_not_bring_a_host() -> None:
    with upstream(answering(OK)) as behind, sidecar(behind.url) as front:
        get(front.port, target="http://evil.example/x?q#f")
    (head,) = behind.heads
    assert head.startswith(b"GET /x?q")
    assert b"evil.example/" not in head


@pytest.mark.parametrize(
    "where", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"]
)
def test_lines_without_end_are_not_kept(where: bytes) -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(where)
        for _ in range(4000):
            made.heads.append(b"")
            peer.send(b"X-A: " + b"a" * 10_000 + b"\r\n")

    with upstream(handle) as behind, sidecar(behind.url) as front:
        ask(front.port, request("TE: trailers", "Connection: close, TE"))
        wait_until(lambda: not front.proxy.pool.open, "the connection to be given up")
    assert len(behind.heads) < 4000


def test_of_a_second_answer_nothing_is_passed_on() -> None:
    with upstream(answering(TWO_ANSWERS, OK)) as behind, sidecar(behind.url) as front:
        for _ in range(2):
            answer = ask(front.port, request("TE: trailers", "Connection: close, TE"))
            assert split(answer)[0] == 200
            assert b"evil" not in answer


def test_a_body_of_an_interim_answer_is_not_the_answers() -> None:
    odd = b"HTTP/1.1 199 Odd\r\nContent-Length: 5\r\n\r\nXXXXX"
    with upstream(answering(odd + OK)) as behind, sidecar(behind.url) as front:
        assert b"XXXXX" not in get(front.port)


def test_another_protocol_in_answer_to_head_is_not_kept() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: upgrade\r\n\r\n"
    with upstream(answering(switching, OK)) as behind, sidecar(behind.url) as front:
        get(front.port, method="HEAD")
        assert split(get(front.port))[2] == b"ok"
        assert behind.connections == 2


def endless(made: Upstream, peer: Peer) -> None:
    made.heads.append(peer.read_head())
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        while True:
            peer.send(b"1\r\nx\r\n")
            time.sleep(0.05)
    except OSError:
        made.heads.append(b"gone")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_pipelines_and_leaves_is_noticed(loop: str) -> None:
    """uvicorn tells the newest request alone. The server's end is waited for as well."""
    with upstream(endless) as behind, sidecar(behind.url, loop=loop) as front:
        with connect(front.port) as sock:
            sock.sendall(request() + request(target="/second"))
            assert sock.recv(100)
        wait_until(lambda: b"gone" in behind.heads, "the upstream to be let go")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_pipeline_is_read_no_faster_than_it_is_answered(loop: str) -> None:
    """What waits takes a hundred times the memory of its bytes, so it waits in the client."""
    with (
        upstream(hanging) as behind,
        sidecar(behind.url, loop=loop, read_timeout=2.0) as front,
        connect(front.port) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.settimeout(1)
        pipeline = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
        sent = 0
        with suppress(TimeoutError):
            for _ in range(1000):
                sock.sendall(pipeline)
                sent += len(pipeline)
        assert sent < 16 << 20
        assert len(behind.heads) <= 3
