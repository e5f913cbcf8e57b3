"""What an upstream is sent of a request."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.nginx import binary
from tests.proxy.lab import (
    OK,
    TRUSTING,
    Peer,
    Upstream,
    ask,
    echoing_heads,
    get,
    lines_of,
    request,
    sidecar,
    split,
    upstream,
)
from tests.running import CLIENT_IP, LOOPBACK, clean_environ, connect, free_port, running
from tests.test_http2 import http2

GENERATED = 2000
FAMILY = [b"x-real-ip"] + [
    b"x-forwarded-" + word for word in (b"for", b"proto", b"host", b"port", b"path", b"prefix")
]

Lines = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def echo() -> Iterator[Upstream]:
    with upstream(echoing_heads) as made:
        yield made


def sent(port: int, *lines: str, source_ip: str = LOOPBACK, **more: str) -> tuple[bytes, Lines]:
    """Request line and lines that the upstream saw of a request."""
    answer = ask(port, request(*lines, "Connection: close", **more), source_ip)
    _, _, head = split(answer)
    return head.partition(b"\r\n")[0], lines_of(head)


def test_what_is_passed_on_and_what_is_not(echo: Upstream) -> None:
    lines = [
        "X-A: 1", "x-b:  two  words", "X-A: 3", "Accept: \xe9", "Empty:", "Proxy-Authorization: Basic YQ==",
        "Cookie: a=1", "Keep-Alive: 5", "Proxy-Connection: keep-alive", "Proxy: http://evil.example",
        "Upgrade: h2c", "TE: gzip", "Expect: nothing", "X_Forwarded_Proto: ftp", "X-Forwarded-Server: s",
        "Via: 1.1 a", "Trailer: X-T",
    ]  # fmt: skip
    with sidecar(echo.url) as front:
        line, got = sent(front.port, *lines, target="/a%2Fb//c/../d?q=%zz&x")
    assert line == b"GET /a%2Fb//c/../d?q=%zz&x HTTP/1.1"
    assert [line for line in got if line[0] not in FAMILY] == [
        (b"host", echo.url.removeprefix("http://").encode()),
        (b"connection", b"keep-alive"),
        (b"x-a", b"1"),
        (b"x-b", b"two  words"),
        (b"x-a", b"3"),
        (b"accept", b"\xe9"),
        (b"empty", b""),
        (b"proxy-authorization", b"Basic YQ=="),
        (b"cookie", b"a=1"),
        (b"x_forwarded_proto", b"ftp"),
        (b"x-forwarded-server", b"s"),
        (b"via", b"1.1 a"),
        (b"trailer", b"X-T"),
    ]


def test_what_connection_names_is_dropped_but_for_what_is_set_here(echo: Upstream) -> None:
    named = "close, X-Hop, X-Real-IP, x-forwarded-for, Host, proxy-authorization, X-Forwarded-Proto"
    with sidecar(echo.url) as front:
        answer = ask(
            front.port,
            request(
                f"Connection: {named}",
                "X-Hop: 1",
                "X-Stays: 1",
                "Proxy-Authorization: a",
                "X-Real-IP: 9.9.9.9",
            ),
        )
    names = dict(lines_of(split(answer)[2]))
    assert not {b"x-hop", b"proxy-authorization"} & set(names)
    assert {b"host", b"x-stays", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-proto"} <= set(names)


@pytest.mark.parametrize("target", ["/", "/?", "/a?b?c", "/a#b", "//a", "/%00%0d%0a", "/*"])
def test_the_target_is_passed_on_byte_for_byte(echo: Upstream, target: str) -> None:
    with sidecar(echo.url) as front:
        assert sent(front.port, target=target)[0] == f"GET {target} HTTP/1.1".encode()


def test_an_absolute_target_becomes_a_path(echo: Upstream) -> None:
    with sidecar(echo.url) as front:
        assert sent(front.port, target="http://other.test/a?b")[0] == b"GET /a?b HTTP/1.1"


@pytest.mark.parametrize(
    ("preserve", "version"), [(False, "1.1"), (True, "1.1"), (False, "1.0"), (True, "1.0")]
)
def test_host(echo: Upstream, preserve: bool, version: str) -> None:
    own = echo.url.removeprefix("http://").encode()
    with sidecar(echo.url, preserve_host=preserve) as front:
        line, got = sent(front.port, version=version)
        assert line == b"GET / HTTP/1.1"
        assert [value for name, value in got if name == b"host"] == [b"example.test" if preserve else own]
        answer = ask(front.port, b"GET / HTTP/1.0\r\n\r\n")
        assert (b"host", own) in lines_of(split(answer)[2]), "where the client names none"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_that_nginx_refuses_as_well(echo: Upstream, method: str) -> None:
    with sidecar(echo.url) as front:
        target = "example.test:443" if method == "CONNECT" else "/"
        assert split(get(front.port, method=method, target=target))[0] in (400, 405)


def reading_bodies(made: Upstream, peer: Peer) -> None:
    """Keeps what came behind a head, as it was framed, and answers."""
    while head := peer.read_head():
        lines = dict(lines_of(head))
        body = b""
        if length := int(lines.get(b"content-length", b"0")):
            body = peer.read(length)
        elif b"transfer-encoding" in lines:
            while not body.endswith(b"0\r\n\r\n"):
                body += peer.read_until(b"\r\n")
                if body.endswith(b"0\r\n") and not body.startswith(b"0\r\n0"):
                    body += peer.read_until(b"\r\n\r\n") if b"trailer" in lines else peer.read(2)
                    break
        made.heads.append(head + body)
        peer.send(OK)


def test_bodies() -> None:
    chunks = b"3\r\nabc\r\n8;x\r\ndefghijk\r\n0\r\n\r\n"
    with upstream(reading_bodies) as behind, sidecar(behind.url) as front:
        data = request("Content-Length: 003", method="PUT") + b"abc"
        data += request("Transfer-Encoding: chunked", method="POST") + chunks
        data += request("Content-Length: 0", method="POST") + request(method="DELETE")
        answers = ask(front.port, data + request("Connection: close"))
        assert answers.count(b"HTTP/1.1 200 ") == 5
        assert behind.connections == 1, "kept for the next"
    framings = [
        [
            value
            for name, value in lines_of(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            if name in (b"content-length", b"transfer-encoding")
        ]
        for head in behind.heads
    ]
    assert framings == [[b"3"], [b"chunked"], [b"0"], [], []]
    bodies = [head.partition(b"\r\n\r\n")[2] for head in behind.heads]
    assert bodies[0] == b"abc"
    assert bodies[1].replace(b"b\r\n", b"").startswith(b"abcdefghijk") or b"abc" in bodies[1]
    assert bodies[1].endswith(b"0\r\n\r\n")


def test_trailers_of_a_request() -> None:
    chunks = b"3\r\nabc\r\n0\r\nX-Sum: 6\r\nX-Real-IP: 9.9.9.9\r\nHost: evil\r\n\r\n"
    with upstream(reading_bodies) as behind, sidecar(behind.url) as front:
        ask(
            front.port,
            request("Transfer-Encoding: chunked", "Trailer: X-Sum", "Connection: close", method="POST")
            + chunks,
        )
    assert behind.heads[0].endswith(b"3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n")


def test_a_client_that_waits_for_100_gets_it() -> None:
    with (
        upstream(reading_bodies) as behind,
        sidecar(behind.url) as front,
        connect(front.port, LOOPBACK) as sock,
    ):
        sock.sendall(request("Content-Length: 3", "Expect: 100-continue", "Connection: close", method="POST"))
        client = Peer(sock)
        assert client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert client.read_to_end().startswith(b"HTTP/1.1 200 ")
    assert b"expect" not in behind.heads[0]


def test_a_client_that_waits_for_100_and_is_told_something_else_is_left() -> None:
    """Or the next request would be read as the body that it kept."""
    port = free_port()
    with sidecar(f"http://{LOOPBACK}:{port}") as front, connect(front.port, LOOPBACK) as sock:
        sock.sendall(request("Content-Length: 3", "Expect: 100-continue", method="POST"))
        status, lines, _ = split(Peer(sock).read_to_end())
        assert status == 502
        assert (b"connection", b"close") in lines


@pytest.mark.parametrize(
    "smuggled",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\n\nGET /smuggled HTTP/1.1",
        "X: a\0b",
        "X: a\r\n folded",
    ],
)
def test_nothing_is_smuggled(smuggled: str) -> None:
    body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with upstream(reading_bodies) as behind, sidecar(behind.url) as front:
        answer = ask(front.port, request(smuggled, "Connection: close", method="POST") + body)
        assert split(answer)[0] in (400, 501)
        assert behind.heads == [] or not any(
            b"smuggled" in head.partition(b"\r\n")[0] for head in behind.heads
        )


@pytest.mark.parametrize(
    ("headers", "path", "body"),
    [
        ([("x", "a\r\nx-injected: 1")], "/", None),
        ([("x", "a\nb")], "/", None),
        ([("x: y", "a")], "/", None),
        ([("x y", "a")], "/", None),
        ([], "/ HTTP/1.1\r\nX: y", None),
        ([], "/a b", None),
        ([("content-length", "5, 5")], "/", b"hello"),
        ([("content-length", "3")], "/", b"hello"),
        ([("content-length", "9")], "/", b"hello"),
        ([("transfer-encoding", "chunked")], "/", b"hello"),
    ],
)
def test_nothing_is_smuggled_through_http2(
    headers: list[tuple[str, str]], path: str, body: bytes | None
) -> None:
    with upstream(reading_bodies) as behind, sidecar(behind.url, flags="http2") as front:  # noqa: SIM117
        with http2(front.port) as client:
            stream = client.ask(path, headers, method="POST" if body else "GET", body=body)
            status = None
            # Or a reset, or the connection's end.
            with suppress(AssertionError, ConnectionError):
                status = client.answer(stream).status
            assert status in (None, 400, 502)
    assert not any(b"injected" in head or b"hello" in head.partition(b"\r\n\r\n")[2] for head in behind.heads)
    assert len(behind.heads) <= 1


# What the rules say (reference, 9.2), in a few lines of their own.
def wanted(
    lines: Lines, peer: str, trusted: bool, client: bytes, host: bytes, port: int, path: bytes
) -> Lines:
    def received(name: bytes) -> bytes | None:
        for spelling in (name.replace(b"-", b"_"), name):
            for found, value in lines:
                if found.lower() == spelling:
                    return value
        return None

    told = received(b"x-forwarded-for")
    out = {b"x-real-ip": client, b"x-forwarded-for": client if told is None else told + b", " + peer.encode()}
    own = {b"proto": b"http", b"host": host, b"port": b"%d" % port, b"path": path, b"prefix": b""}
    for word, value in own.items():
        told = received(b"x-forwarded-" + word) if trusted else None
        out[b"x-forwarded-" + word] = value if told is None else told
    return [(name, value) for name, value in out.items() if value]


class Generator:
    """Requests that the parsers of nginx and uvicorn read alike."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def address(self) -> str:
        return self.random.choice(
            [
                "127.0.0.1",
                "127.0.0.9",
                "203.0.113.7",
                "203.0.113.7:5100",
                "2001:db8::1",
                "[2001:db8::1]:80",
                "unknown",
                "1..3.4",
                "",
            ]
        )

    def line(self) -> tuple[str, str]:
        pick = self.random
        name = pick.choice(
            ["X-Real-IP", "X-Forwarded-For", "x-forwarded-for", "X-Forwarded-Proto", "X-Forwarded-Host",
             "X-Forwarded-Port", "X-Forwarded-Path", "X-Forwarded-Prefix", "X_Forwarded_Proto", "X_Forwarded_For",
             "X_Real_IP", "Accept", "X-A", "x-a", "Cookie", "Proxy", "TE", "Keep-Alive"]
        )  # fmt: skip
        low = name.lower().replace("_", "-")
        if low in ("x-real-ip", "x-forwarded-for"):
            return name, ", ".join(self.address() for _ in range(pick.randrange(1, 4))).strip()
        values = {"x-forwarded-proto": ["https", "HTTP", "ws", ""], "x-forwarded-port": ["443", "x", "0", ""]}
        return name, pick.choice(values.get(low, ["a", "/p/q", "example.test:8443", "b c", ""])).strip()

    def lines(self) -> list[tuple[str, str]]:
        return [self.line() for _ in range(self.random.randrange(8))]

    def path(self) -> str:
        return self.random.choice(["/", "/a", "/a/../b", "/%41", "//x", "/a;b"]) + self.random.choice(
            ["", "?q=1", "?"]
        )


def passed_on(lines: Lines) -> Lines:
    dropped = {*FAMILY, b"proxy", b"te", b"keep-alive", b"host", b"connection"}
    return [(name.lower(), value) for name, value in lines if name.lower() not in dropped]


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off; {temporary}
    underscores_in_headers on;
    set_real_ip_from 127.0.0.1/32; real_ip_header {header}; real_ip_recursive {recursive};
    server {{
        listen {host}:{port};
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Connection keep-alive;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_pass http://{upstream};
        }}
    }}
}}
"""


@contextmanager
def nginx(upstream: str, header: str, recursive: str) -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        conf = Path(folder, "nginx.conf")
        conf.write_text(
            NGINX.format(
                folder=folder,
                temporary=temporary,
                header=header,
                recursive=recursive,
                host=LOOPBACK,
                port=port,
                upstream=upstream,
            )
        )
        with running([binary(), "-p", folder, "-c", str(conf), "-e", "stderr"], clean_environ(), [port]):
            yield port


class KeptOpen:
    """A connection to a proxy in front of what echoes heads."""

    def __init__(self, sock: socket.socket) -> None:
        self._peer = Peer(sock)

    def ask(self, data: bytes) -> bytes:
        """The head that the upstream saw."""
        self._peer.send(data)
        answer = self._peer.read_head()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return self._peer.read(int(dict(lines_of(answer))[b"content-length"]))


@pytest.mark.parametrize(
    ("header", "recursive"),
    [("X-Real-IP", "off"), ("X-Forwarded-For", "on"), ("X-Forwarded-For", "off"), ("X-A", "on")],
)
def test_generated_requests(echo: Upstream, header: str, recursive: str) -> None:
    """Equal to the rules, and to nginx with Kong's own lines in who the client is."""
    generator = Generator(20251125)
    environ = TRUSTING | {"KONG_REAL_IP_HEADER": header, "KONG_REAL_IP_RECURSIVE": recursive}
    with (
        sidecar(echo.url, environ=environ) as front,
        nginx(echo.url.removeprefix("http://"), header, recursive) as beside,
        ExitStack() as stack,
    ):
        pairs = {
            ip: [KeptOpen(stack.enter_context(connect(port, ip))) for port in (front.port, beside)]
            for ip in (LOOPBACK, CLIENT_IP)
        }
        for _ in range(GENERATED // 4):
            peer = generator.random.choice((LOOPBACK, LOOPBACK, CLIENT_IP))
            lines, target = generator.lines(), generator.path()
            data = request(*(f"{name}: {value}" for name, value in lines), target=target)
            ours, theirs = (lines_of(proxy.ask(data)) for proxy in pairs[peer])
            client = dict(theirs)[b"x-real-ip"]
            assert dict(ours)[b"x-real-ip"] == client, data
            sent = [(name.encode(), value.encode()) for name, value in lines]
            path = target.partition("?")[0].encode()
            expected = wanted(sent, peer, peer == LOOPBACK, client, b"example.test", front.port, path)
            got = [line for line in ours if line[0] in FAMILY]
            assert sorted(got) == sorted(expected), data
            assert ours[:2] == [
                (b"host", echo.url.removeprefix("http://").encode()),
                (b"connection", b"keep-alive"),
            ]
            assert [line for line in ours[2:] if line[0] not in FAMILY] == passed_on(sent), data


def test_several_thousand_lines_are_too_many_or_pass(echo: Upstream) -> None:
    with sidecar(echo.url) as front:
        _, got = sent(front.port, *[f"X-{number}: {number}" for number in range(500)])
        assert [name for name, _ in got if name.startswith(b"x-4")] != []
        assert split(get(front.port, "X: " + "a" * 40000))[0] == 400
