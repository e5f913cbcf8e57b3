"""What a client gets of an upstream's answers, which come byte for byte."""

from __future__ import annotations

import logging
import threading
from functools import partial

import pytest

from tests.lab import LOOPS
from tests.proxy.lab import (
    OK,
    Peer,
    Upstream,
    answering,
    ask,
    get,
    once,
    request,
    reset,
    sidecar,
    split,
    upstream,
)
from tests.running import LOOPBACK, connect, wait_until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN_OFF = "closed in the middle of its answer"


def body_of(answer: bytes, chunked: bool = True) -> bytes:
    """The body of an answer to HTTP/1.1, which must be whole."""
    _, lines, body = split(answer)
    if (b"transfer-encoding", b"chunked") not in lines:
        assert not chunked
        return body
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return whole
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("answer", "chunked"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", False),
        (CHUNKED + b"2\r\nwh\r\n3;x=y\r\nole\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\nwhole", True),
        (b"HTTP/1.0 200 OK\r\n\r\nwhole", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nwhole", False),
    ],
    ids=["length", "chunks", "until close", "until close, HTTP/1.0", "length and close"],
)
def test_framings(answer: bytes, chunked: bool, loop: str) -> None:
    with upstream(once(answer)) as behind, sidecar(behind.url, loop=loop) as front:
        assert body_of(get(front.port), chunked) == b"whole"
        head, _, body = get(front.port, version="1.0").partition(b"\r\n\r\n")
        assert body == b"whole"
        assert b"chunked" not in head


def test_a_body_in_many_pieces() -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        made.heads.append(peer.read_head())
        peer.send(CHUNKED)
        for letter in b"one by one":
            peer.send(b"1\r\n%c\r\n" % letter)
        peer.send(b"0\r\n\r\n")

    with upstream(handle) as behind, sidecar(behind.url) as front:
        assert body_of(get(front.port)) == b"one by one"


def test_a_head_does_not_wait_for_its_body() -> None:
    go_on = threading.Event()

    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(CHUNKED)
        assert go_on.wait(8)
        peer.send(b"2\r\nok\r\n0\r\n\r\n")

    with upstream(handle) as behind, sidecar(behind.url) as front, connect(front.port, LOOPBACK) as sock:
        sock.sendall(request())
        client = Peer(sock)
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        go_on.set()
        assert client.read_until(b"0\r\n\r\n").endswith(b"ok\r\n0\r\n\r\n")


def test_lines_pass_in_order_with_duplicates_and_without_those_of_the_hop() -> None:
    answer = (
        b"HTTP/1.1 404 Nothing Here\r\nServer: theirs\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nDate: now\r\n"
        b"Set-Cookie: a=1\r\nX-Odd:  \xe9 \xff\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nSet-Cookie: b=2\r\n"
        b"Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    )
    with upstream(answering(answer)) as behind, sidecar(behind.url) as front:
        status, lines, body = split(get(front.port))
    assert (status, body) == (404, b"")
    assert list(lines) == [
        (b"server", b"theirs"),
        (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (b"set-cookie", b"a=1"),
        (b"x-odd", b"\xe9 \xff"),
        (b"set-cookie", b"b=2"),
        (b"proxy-authenticate", b"Basic"),
        (b"content-length", b"0"),
        (b"connection", b"close"),
    ]


def test_an_answer_without_a_date_gets_one() -> None:
    with upstream(answering(OK)) as behind, sidecar(behind.url) as front:
        _, lines, _ = split(get(front.port))
    names = [name for name, _ in lines]
    assert names.count(b"date") == 1
    assert b"server" not in names


def test_heads_alone() -> None:
    no_body = [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ]
    with upstream(answering(*[answer for _, answer in no_body], OK)) as behind, sidecar(behind.url) as front:
        requests = b"".join(request(method=method) for method, _ in no_body)
        answers = ask(front.port, requests + request("Connection: close")).split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"200", b"200", b"304", b"204", b"204", b"200"]
        assert all(answer.endswith(b"\r\n\r\n") for answer in answers[:-1]), "nothing behind a head"
        assert [b"content-length" in answer for answer in answers] == [True, False, True, False, False, True]
        assert not any(b"chunked" in answer for answer in answers)
        assert behind.connections == 1


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
def test_interim_answers_are_swallowed(interim: bytes) -> None:
    answer = b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % interim
    with upstream(answering(answer * 2 + OK)) as behind, sidecar(behind.url) as front:
        status, lines, body = split(get(front.port))
        assert (status, body) == (200, b"ok")
        assert b"link" not in dict(lines)


@pytest.mark.parametrize("asked", [True, False])
def test_trailers_go_to_who_asks(asked: bool) -> None:
    answer = CHUNKED.replace(b"\r\n\r\n", b"\r\nTrailer: X-Sum\r\n\r\n")
    answer += b"2\r\nok\r\n0\r\nX-Sum: 17\r\nContent-Type: no/t\r\nX-More: \xe9\r\n\r\n"
    with upstream(answering(answer)) as behind, sidecar(behind.url) as front:
        _, _, body = split(get(front.port, *["TE: gzip, trailers"] * asked))
        assert body == b"2\r\nok\r\n0\r\n" + b"x-sum: 17\r\nx-more: \xe9\r\n" * asked + b"\r\n"
        te = [line for line in behind.heads[0].split(b"\r\n") if line.startswith(b"te:")]
        assert te == [b"te: trailers"] * asked


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot", True),
        (CHUNKED + b"3\r\nnot\r\n", True),
        (CHUNKED + b"3\r\nnot\r\nzz\r\n", True),
        (b"HTTP/1.1 200 O", False),
        (b"", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", False),
        (b"HTTP/1.1 200 OK\r\nX: a\x7f\r\nContent-Length: 1\r\n\r\na", False),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", False),
        (b"HTTP/1.1 777 Lucky\r\nContent-Length: 1\r\n\r\na", False),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", False),
    ],
    ids=[
        "length", "chunks", "no chunk", "head", "nothing", "no HTTP", "two framings", "unknown coding",
        "two lengths", "control character", "switching", "status", "endless head",
    ],
)  # fmt: skip
def test_broken_answers(answer: bytes, begins: bool, caplog: pytest.LogCaptureFixture) -> None:
    with upstream(once(answer)) as behind, sidecar(behind.url) as front:
        got = get(front.port)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, "one line for it"
    assert behind.url.removeprefix("http://") in lines[0].getMessage()
    status, _, body = split(got)
    if begins:
        # The client must not take it for the whole.
        assert status == 200
        assert b"not" in body
        assert not body.endswith(b"0\r\n\r\n")
    else:
        assert status == 502
        assert body == b"the upstream failed\n"


def test_an_answer_that_is_reset_is_reset_for_who_reads_to_the_end() -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nnot all")
        assert made.peers
        reset(peer.sock)

    with upstream(handle) as behind, sidecar(behind.url) as front, connect(front.port, LOOPBACK) as sock:
        sock.sendall(request(version="1.0"))
        with pytest.raises(ConnectionResetError):
            list(iter(partial(sock.recv, 4096), b""))


def test_an_early_answer_ends_the_request() -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        made.heads.append(peer.read_head())
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nless")
        peer.read_to_end()

    with upstream(handle) as behind, sidecar(behind.url) as front, connect(front.port, LOOPBACK) as sock:
        sock.sendall(request("Content-Length: 100000", method="POST"))
        client = Peer(sock)
        assert client.read_head().startswith(b"HTTP/1.1 413 ")
        assert client.read(4) == b"less"
        wait_until(lambda: front.proxy.pool.open == 0, "the upstream's connection to be closed")
        # What is left of the body is nobody's request.
        sock.sendall(
            b"GET /not HTTP/1.1\r\n\r\n".ljust(100000) + request("Connection: close", target="/next")
        )
        assert client.read_head().startswith(b"HTTP/1.1 413 ")
    assert [head.split()[1] for head in behind.heads] == [b"/", b"/next"]


def test_two_answers_to_one_request_do_not_reach_the_next() -> None:
    poison = OK + OK.replace(b"ok", b"no")
    with upstream(answering(poison, OK)) as behind, sidecar(behind.url) as front:
        answers = ask(front.port, request() + request("Connection: close"))
        assert b"no" not in answers
        assert answers.count(b"ok") == 2
        assert behind.connections == 2


def test_what_nobody_asked_for_closes_an_idle_connection() -> None:
    def handle(made: Upstream, peer: Peer) -> None:
        made.heads.append(peer.read_head())
        peer.send(OK)
        if made.connections == 1:
            peer.send(OK.replace(b"ok", b"no"))
        peer.read_to_end()

    with upstream(handle) as behind, sidecar(behind.url) as front:
        assert get(front.port).endswith(b"ok")
        wait_until(lambda: front.proxy.pool.open == 0, "the idle connection to be closed")
        assert get(front.port).endswith(b"ok")
