"""What our HTTP/1.1 protocol does beyond uvicorn's: trailers, absolute targets, what has no end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from kongrealip import Settings, resolution_of
from tests.lab import LOOPS, Lab, connect

TRUSTING = Settings(trusted_ips=("127.0.0.0/8",), real_ip_header="X-Forwarded-For")
HEAD = b"POST / HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and then looks at the headers."""
    request = Request(scope, receive)
    body = await request.body()
    names = [name.decode() for name, _ in scope["headers"]]
    forwarded = resolution_of(request).forwarded
    await JSONResponse([len(body), names, forwarded.scheme, forwarded.host])(scope, receive, send)


@pytest.fixture(params=LOOPS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    lab = Lab(app)
    found = lab.add(TRUSTING)
    with lab.running(request.param):
        yield found


async def ask(port: int, *pieces: bytes) -> Any:
    """The application's answer, or None where the connection was closed without one."""
    answer = await answers(port, *pieces)
    return json.loads(answer.partition(b"\r\n\r\n")[2] or b"null")


async def answers(port: int, *pieces: bytes) -> bytes:
    """All that comes back; nothing where the connection is reset, for what came before may be lost."""
    reader, writer = await connect(port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(reader.read(), 10)
    except (ConnectionResetError, BrokenPipeError):
        return b""
    finally:
        writer.close()


async def test_trailers_are_no_headers(port: int) -> None:
    """A balancer that passes trailers on passes on what the client wrote there."""
    body = b"\r\n2\r\nhi\r\n0\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nX-A: b\r\n\r\n"
    names = ["host", "connection", "transfer-encoding"]
    assert await ask(port, HEAD + body) == [2, names, "http", "example.test"]
    assert await ask(port, HEAD, body[:30], body[30:]) == [2, names, "http", "example.test"]


@pytest.mark.parametrize("line", [b"X-A: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
async def test_trailers_without_end_are_not_waited_for(port: int, line: bytes) -> None:
    begun = HEAD + b"\r\n2\r\nhi\r\n0\r\nX-B: "
    assert await ask(port, begun, *[line * 10] * 5, b"\r\n\r\n") is None
    assert (await ask(port, begun, line * 10, b"\r\n\r\n"))[0] == 2


async def test_a_long_body_in_small_chunks(port: int) -> None:
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    assert (await ask(port, HEAD + b"\r\n", *[chunk * 40] * 5, b"0\r\n\r\n"))[0] == 200_000


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://abs.example/x", "abs.example"),
        (b"http://abs.example:81/?y", "abs.example"),
        (b"http://user@ABS.example/x", "abs.example"),
        (b"/http://abs.example/", "example.test"),
    ],
)
async def test_the_host_of_an_absolute_target(port: int, target: bytes, host: str) -> None:
    """RFC 9112, 3.2.2, and nginx's $host."""
    request = HEAD.replace(b"POST /", b"GET " + target).replace(b"Transfer-Encoding: chunked\r\n", b"")
    seen = await ask(port, request + b"\r\n")
    assert seen[3] == host
    assert seen[1].count("host") == 1


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"foo"])
@pytest.mark.parametrize("framing", [b"Content-Length: 30", b"Transfer-Encoding: chunked"])
async def test_the_body_of_a_request_for_an_upgrade_is_not_the_next_request(
    port: int, upgrade: bytes, framing: bytes
) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        b"POST / HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade\r\nUpgrade: "
        + upgrade
        + b"\r\n"
        + framing
        + b"\r\n\r\n"
    )
    for pieces in ([head, hidden], [head + hidden]):
        reader, writer = await connect(port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1


async def test_a_request_for_an_upgrade_that_is_not_known_is_served(port: int) -> None:
    """As the first of Java's client is."""
    head = b"GET / HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    last = b"\r\nGET / HTTP/1.1\r\nHost: second.test\r\nConnection: close\r\n\r\n"
    reader, writer = await connect(port)
    for piece in (head + b"HTTP2-Settings: AAMAAABk\r\nContent-Length: 0\r\n\r\n", last[2:]):
        writer.write(piece)
        await asyncio.sleep(0.05)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b'"second.test"' in answer


async def test_a_head_behind_a_body_has_the_same_limit(port: int) -> None:
    """In one read with the end of a body: such reads are long."""
    lines = b"X: y\r\n" * 30_000
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    answer = await answers(port, first, b"x" + HEAD + lines + b"\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") <= 1, "the second is not for the application"
    assert answer == b"" or b"HTTP/1.1 400 Bad Request" in answer, "reset, or refused"
    few = await answers(port, first, b"x" + HEAD + b"\r\n0\r\n\r\n")
    assert few.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("lines", [b"X: y\r\n" * 300, b"X: " + b"y" * 9000 + b"\r\n"])
async def test_a_websocket_that_the_library_does_not_take_gets_an_answer(port: int, lines: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    reader, writer = await connect(port)
    writer.write(
        head + lines + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 8000, b"nonsense\r\n\r\n"])
async def test_a_refusal_is_not_written_into_the_answer_before_it(port: int, bad: bytes) -> None:
    """The request in front is still being answered: its client gets that answer first, as from nginx."""
    slow = b"POST / HTTP/1.1\r\nHost: example.test\r\nContent-Length: 2\r\n\r\nhi"
    reader, writer = await connect(port)
    answer = b""
    # Closed with bytes of the head unread, which can overtake what was answered.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        writer.write(slow + bad)
        while chunk := await asyncio.wait_for(reader.read(65536), 10):
            answer += chunk
    writer.close()
    if bad.startswith(b"nonsense"):
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
    assert not answer.startswith(b"HTTP/1.1 400")


class Stubborn:
    """Answers nobody, and counts those who leave."""

    def __init__(self) -> None:
        self.requests = self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.requests += 1
        await receive()
        message = await receive()
        self.left += message["type"] == "http.disconnect"


@pytest.mark.parametrize("loop", LOOPS)
async def test_who_pipelines_and_leaves_is_noticed(loop: str) -> None:
    """uvicorn tells the newest request alone, and the first would go on for ever."""
    stubborn = Stubborn()
    lab = Lab(stubborn)
    found = lab.add(TRUSTING)
    with lab.running(loop):
        _, writer = await connect(found)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        await asyncio.sleep(0.1)
        writer.close()
        for _ in range(200):
            if stubborn.left:
                break
            await asyncio.sleep(0.02)
    assert (stubborn.requests, stubborn.left) == (1, 1)


async def test_a_long_pipeline_is_answered_in_order(port: int) -> None:
    """In pieces of any size: what is read beyond those that wait is kept as it came."""
    count = 6001
    requests = [
        b"POST / HTTP/1.1\r\nHost: h%d\r\nContent-Length: %d\r\n\r\n" % (number, number % 7)
        + b"x" * (number % 7)
        for number in range(count)
    ]
    data = b"".join(requests) + HEAD + b"\r\n0\r\n\r\n"
    reader, writer = await connect(port)
    for start in range(0, len(data), 9973):
        writer.write(data[start : start + 9973])
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    bodies = [json.loads(one.partition(b"\r\n\r\n")[2]) for one in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [(body[0], body[3]) for body in bodies[:-1]] == [
        (number % 7, f"h{number}") for number in range(count)
    ]
    assert len(bodies) == count + 1


async def test_a_connection_without_requests_is_closed_after_a_while(port_of_impatient: int) -> None:
    """And not one of which a request is being answered, nor between requests that come often enough."""
    reader, writer = await connect(port_of_impatient)
    for path in (b"/slow", b"/", b"/"):
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 10)).startswith(b"HTTP/1.1 200 OK")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def slow_if_asked(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(2.5)
    await PlainTextResponse("ok")(scope, receive, send)


@pytest.fixture(params=LOOPS)
def port_of_impatient(request: pytest.FixtureRequest) -> Iterator[int]:
    lab = Lab(slow_if_asked)
    found = lab.add(TRUSTING)
    with lab.running(request.param):
        lab._server.config.timeout_keep_alive = 1
        yield found
