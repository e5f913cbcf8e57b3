"""Connections that are kept, those that cannot be had, and how long anybody waits."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.lab import (
    OK,
    Peer,
    Upstream,
    answering,
    ask,
    echoing_heads,
    get,
    lines_of,
    once,
    request,
    reset,
    sidecar,
    split,
    upstream,
)
from tests.running import LOOPBACK, connect, free_port, wait_until
from tests.test_http2 import http2

# As much as the buffers of all sockets on the way hold, many times over.
ENDLESS = 64 << 20
PIECE = bytes(1 << 16)


@contextmanager
def deaf() -> Iterator[socket.socket]:
    """A port that takes no connections and refuses none: its queue is full."""
    with (
        socket.create_server((LOOPBACK, 0), backlog=0) as listener,
        socket.socket() as first,
        socket.socket() as second,
    ):
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener


def the_line(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    return line


def test_connections_are_kept() -> None:
    with upstream(answering(OK)) as behind, sidecar(behind.url) as front:
        for _ in range(5):
            assert split(get(front.port))[0] == 200
        ask(front.port, request() * 5 + request("Connection: close"))
        assert behind.connections == 1
        assert front.counters.total()["upstream_connections", behind.url.removeprefix("http://")] == 1


@pytest.mark.parametrize(
    ("setting", "connections"),
    [
        ({"upstream_keepalive_max_requests": 2}, 3),
        ({"upstream_keepalive_pool_size": 0}, 5),
        ({"upstream_keepalive_max_requests": 0}, 1),
    ],
)
def test_how_long_connections_are_kept(setting: dict[str, Any], connections: int) -> None:
    with upstream(answering(OK)) as behind, sidecar(behind.url, **setting) as front:
        for _ in range(5):
            assert split(get(front.port))[0] == 200
        assert behind.connections == connections


def test_idle_connections_are_closed() -> None:
    with (
        upstream(answering(OK)) as behind,
        sidecar(behind.url, upstream_keepalive_idle_timeout=0.2, read_timeout=2) as front,
    ):
        get(front.port)
        assert front.proxy.pool.open == 1
        wait_until(lambda: front.proxy.pool.open == 0, "the idle connection to be closed")


def test_no_more_idle_connections_than_asked_for() -> None:
    everybody = threading.Barrier(4)

    def handle(made: Upstream, peer: Peer) -> None:
        while peer.read_head():
            everybody.wait(8)
            peer.send(OK)

    with upstream(handle) as behind, sidecar(behind.url, upstream_keepalive_pool_size=2) as front:
        threads = [threading.Thread(target=get, args=(front.port,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: front.proxy.pool.open == 2, "two to be left")
        assert behind.connections == 4


def closing_the_kept(made: Upstream, peer: Peer) -> None:
    """Answers the first request of a connection, and closes when the second one comes."""
    made.heads.append(peer.read_head())
    peer.send(OK)
    if head := peer.read_head():
        made.heads.append(head)
        if made.connections % 2:
            reset(peer.sock)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_a_stale_connection_is_noticed_by_nobody(method: str) -> None:
    with upstream(closing_the_kept) as behind, sidecar(behind.url) as front:
        get(front.port)
        assert split(get(front.port, method=method))[0] == 200
        assert [head.split()[0].decode() for head in behind.heads] == ["GET", method, method]


def test_a_stale_connection_under_http2() -> None:
    with (
        upstream(closing_the_kept) as behind,
        sidecar(behind.url, flags="http2") as front,
        http2(front.port) as client,
    ):
        for _ in range(2):
            assert client.answer(client.ask("/")).status == 200
        assert behind.connections == 2


@pytest.mark.parametrize(("method", "body"), [("POST", b""), ("PATCH", b""), ("PUT", b"abc")])
def test_what_may_have_had_an_effect_is_not_sent_twice(
    method: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with upstream(closing_the_kept) as behind, sidecar(behind.url) as front:
        get(front.port)
        lines = [f"Content-Length: {len(body)}"] * bool(body)
        assert split(ask(front.port, request(*lines, "Connection: close", method=method) + body))[0] == 502
        assert [head.split()[0].decode() for head in behind.heads] == ["GET", method]
    assert "closed without an answer" in the_line(caplog)


def test_a_new_connection_that_fails_is_not_tried_again() -> None:
    with upstream(once(b"")) as behind, sidecar(behind.url) as front:
        assert split(get(front.port))[0] == 502
        assert behind.connections == 1


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with sidecar(f"http://{LOOPBACK}:{port}") as front:
        status, lines, body = split(get(front.port))
        assert front.counters.total()["upstream_failures", f"{LOOPBACK}:{port}"] == 1
    assert (status, body) == (502, b"the upstream failed\n")
    assert {name for name, _ in lines} == {b"content-type", b"content-length", b"date", b"connection"}
    assert the_line(caplog) == f"upstream {LOOPBACK}:{port}: Connection refused"


def test_no_connection_in_time(caplog: pytest.LogCaptureFixture) -> None:
    with deaf() as listener:
        port = listener.getsockname()[1]
        with sidecar(f"http://{LOOPBACK}:{port}", connect_timeout=0.2) as front:
            status, _, body = split(get(front.port))
    assert (status, body) == (504, b"the upstream took too long\n")
    assert the_line(caplog) == f"upstream {LOOPBACK}:{port}: no connection in time"


@pytest.mark.parametrize("begun", [False, True])
def test_no_answer_in_time(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot" * begun)
        peer.read_to_end()

    with upstream(handle) as behind, sidecar(behind.url, read_timeout=0.3) as front:
        status, _, body = split(get(front.port))
    assert (status, body) == ((200, b"not") if begun else (504, b"the upstream took too long\n"))
    assert the_line(caplog).endswith("nothing moved for 0.3 s")


def test_an_upstream_that_takes_nothing_of_a_body_in_time(caplog: pytest.LogCaptureFixture) -> None:
    end = threading.Event()

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        end.wait(8)

    with (
        upstream(handle) as behind,
        sidecar(behind.url, read_timeout=0.3) as front,
        connect(front.port, LOOPBACK) as sock,
    ):
        sock.sendall(request(f"Content-Length: {ENDLESS}", "Connection: close", method="POST"))
        sent = send_until_refused(sock)
        assert split(Peer(sock).read_head())[0] == 504
        end.set()
    assert sent < ENDLESS
    assert the_line(caplog).endswith("nothing moved for 0.3 s")


def send_until_refused(sock: socket.socket) -> int:
    """How much is taken before nothing is for a while."""
    sent = 0
    sock.settimeout(0.2)
    try:
        while sent < ENDLESS:
            sent += sock.send(PIECE)
    except OSError:
        pass
    sock.settimeout(8)
    return sent


def test_a_slow_client_is_not_the_upstreams_fault() -> None:
    """Nothing is read from the upstream that the client does not take, and no time runs out."""
    sent = [0]

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ENDLESS)
        sent[0] = send_until_refused(peer.sock)
        peer.send(bytes(ENDLESS - sent[0]))

    with (
        upstream(handle) as behind,
        sidecar(behind.url, read_timeout=0.3) as front,
        connect(front.port, LOOPBACK) as sock,
    ):
        sock.sendall(request("Connection: close"))
        wait_until(lambda: sent[0] > 0, "the upstream to be stopped")
        assert sent[0] < ENDLESS // 2
        answer = Peer(sock)
        assert answer.read_head()
        assert answer.skip(ENDLESS) == ENDLESS


def test_a_slow_upstream_stops_the_client() -> None:
    go_on = threading.Event()

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        go_on.wait(8)
        made.heads.append(b"%d" % peer.skip(ENDLESS))
        peer.send(OK)

    with upstream(handle) as behind, sidecar(behind.url) as front, connect(front.port, LOOPBACK) as sock:
        sock.sendall(request(f"Content-Length: {ENDLESS}", "Connection: close", method="POST"))
        sent = send_until_refused(sock)
        assert sent < ENDLESS // 2
        go_on.set()
        sock.sendall(bytes(ENDLESS - sent))
        assert split(Peer(sock).read_to_end())[0] == 200
        assert behind.heads == [b"%d" % ENDLESS]


@pytest.mark.parametrize("when", ["before", "amid", "sending"])
def test_when_the_client_leaves_the_upstream_sees_it(when: str, caplog: pytest.LogCaptureFixture) -> None:
    left, came = threading.Event(), threading.Event()

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        if when == "amid":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot")
        came.set()
        peer.read_to_end()
        left.set()

    with upstream(handle) as behind, sidecar(behind.url) as front:
        with connect(front.port, LOOPBACK) as sock:
            lines = ["Content-Length: 9"] if when == "sending" else []
            sock.sendall(request(*lines, method="POST" if lines else "GET"))
            assert came.wait(8)
            if when == "amid":
                assert Peer(sock).read_head()
        assert left.wait(8)
        wait_until(lambda: front.proxy.pool.open == 0, "the connection to be gone")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_several_upstreams_take_turns_and_those_that_fail_rest() -> None:
    with upstream(echoing_heads) as one, upstream(echoing_heads) as two:
        dead = f"http://{LOOPBACK}:{free_port()}"
        with sidecar(one.url, dead, two.url) as front:
            hosts = [dict(lines_of(split(get(front.port))[2]))[b"host"] for _ in range(12)]
    assert {b"http://" + host for host in hosts} == {one.url.encode(), two.url.encode()}
    assert min(one.connections, two.connections) == 1


def test_all_upstreams_fail(caplog: pytest.LogCaptureFixture) -> None:
    with sidecar(*[f"http://{LOOPBACK}:{free_port()}" for _ in range(2)]) as front:
        assert split(get(front.port))[0] == 502
    assert the_line(caplog).endswith("Connection refused")


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with upstream(echoing_heads, listener), sidecar(f"unix:{path}") as front:
            lines = lines_of(split(get(front.port))[2])
            assert (b"host", b"localhost") in lines
            assert split(get(front.port))[0] == 200
