"""The current request's variable and the log filter: each line has its own client, and no other's."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect as connect_websocket

import kongrealip
from kongrealip import RealIPMiddleware, Settings, resolution_of
from kongrealip.address import Address
from kongrealip.middleware import asgi, wsgi
from kongrealip.middleware.current import ClientFilter, current
from kongrealip.realip import Resolution
from tests import running
from tests.lab import LOOPS, Lab, connect
from tests.running import LOOPBACK, clean_environ, free_port

ROOT = Path(__file__).parent.parent
SETTINGS = Settings(
    trusted_ips=(LOOPBACK,), real_ip_header="X-Forwarded-For", real_ip_recursive=True, proxy_access_log="off"
)
UNKNOWN = Address("", None)
# The import counts for the whole process. Other tests are to run as if nobody had asked for it.
HOOKS = {name: getattr(asgi, name) for name in ("on_resolution", "around")}
asgi.on_resolution = asgi.around = None
EVERY_LOOP = pytest.mark.parametrize("loop", LOOPS)
logger = logging.getLogger("tests.shop")


class Lines(logging.Handler):
    """What is written, as ``(client, peer, message)``."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(ClientFilter())
        self.seen: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.client, record.peer, record.getMessage()))  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hook in HOOKS.items():
        monkeypatch.setattr(asgi, name, hook)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


# An application that writes what its client should be, from everywhere


def expected(request: Request | WebSocket) -> str:
    """The client, as the request alone tells it."""
    return request.headers["x-forwarded-for"]


def in_a_thread(request: Request) -> PlainTextResponse:
    logger.info(expected(request))
    return PlainTextResponse("ok", background=BackgroundTask(logger.info, expected(request)))


async def in_the_loop(request: Request) -> PlainTextResponse:
    for _ in range(3):
        await asyncio.sleep(0.001)
        logger.info(expected(request))
    task = asyncio.create_task(outlive(expected(request)))
    request.app.state.tasks.add(task)
    return PlainTextResponse("ok")


async def outlive(client: str) -> None:
    await asyncio.sleep(0.02)
    logger.info(client)
    await asyncio.to_thread(logger.info, client)


async def take_all(request: Request) -> PlainTextResponse:
    async for _ in request.stream():
        logger.info(expected(request))
    logger.info(expected(request))
    return PlainTextResponse("ok")


async def with_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    logger.info(expected(websocket))
    await websocket.send_text(await websocket.receive_text())
    logger.info(expected(websocket))
    await websocket.close()


def shop() -> Starlette:
    made = Starlette(
        routes=[
            Route("/thread", in_a_thread),
            Route("/loop", in_the_loop),
            Route("/all", take_all, methods=["POST"]),
            WebSocketRoute("/ws", with_websocket),
        ]
    )
    made.state.tasks = set()
    return made


class WatchedLab(Lab):
    """With something outside of the middleware that looks at the variable."""

    outside: list[Resolution | None]

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        self.outside.append(current.get())
        await super()._dispatch(scope, receive, send)
        self.outside.append(current.get())


@contextmanager
def laboratory(loop: str, *flags: str) -> Iterator[tuple[int, Starlette]]:
    """A port and the application behind it, which must have kept the variable to its requests."""
    app = shop()
    lab = WatchedLab(app)
    lab.outside = []
    port = lab.add(SETTINGS, flags=flags)
    with lab.running(loop):
        yield port, app
    assert set(lab.outside) == {None}


def request(path: str, client: str, body: bytes = b"") -> bytes:
    head = f"POST {path}" if body else f"GET {path}"
    return (
        f"{head} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def answers(reader: asyncio.StreamReader, count: int) -> None:
    for _ in range(count):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert await reader.readexactly(2) == b"ok"


def a_client(rng: random.Random) -> str:
    return f"203.0.113.{rng.randrange(256)}:{rng.randrange(1, 65536)}"


@EVERY_LOOP
def test_many_requests_at_once_on_connections_that_stay(loop: str, lines: Lines) -> None:
    rng = random.Random(7)
    peers = set()

    async def one_connection(port: int) -> None:
        reader, writer = await connect(port)
        peers.add("{}:{}".format(*writer.get_extra_info("sockname")))
        for _ in range(15):
            writer.write(request(rng.choice(["/thread", "/loop"]), a_client(rng)))
            await answers(reader, 1)
        writer.close()
        await writer.wait_closed()

    async def everybody(port: int) -> None:
        await asyncio.gather(*(one_connection(port) for _ in range(20)))

    with laboratory(loop) as (port, app):
        asyncio.run(everybody(port))
        running.wait_until(lambda: all(task.done() for task in app.state.tasks), "tasks that live on")
    assert len(lines.seen) >= 20 * 15 * 2
    assert [client for client, _, _ in lines.seen] == [client for _, _, client in lines.seen]
    assert {peer for _, peer, _ in lines.seen} == peers


@EVERY_LOOP
def test_what_a_server_does_next_is_not_this_request(loop: str, lines: Lines) -> None:
    """Requests on the heels of others, and bodies that stop the reading: uvicorn goes on from inside."""
    rng = random.Random(11)

    async def talk(port: int) -> None:
        reader, writer = await connect(port)
        pieces = [request("/loop", a_client(rng)), request("/thread", a_client(rng))] * 2
        writer.write(b"".join(pieces))
        await answers(reader, 4)
        for body in (b"x" * 1_000_000, b"x" * 1_000_000, b"y"):
            writer.write(request("/all", a_client(rng), body)[:-1])
            # So that reading stops and goes on before the end is there.
            await asyncio.sleep(0.1)
            writer.write(body[-1:])
            await answers(reader, 1)
        # uvicorn has something to say of it.
        writer.write(b"\0\r\n\r\n")
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()

    server = logging.getLogger("uvicorn.error")
    server.addHandler(heard := Lines())
    try:
        with laboratory(loop) as (port, app):
            asyncio.run(talk(port))
            running.wait_until(lambda: all(task.done() for task in app.state.tasks), "tasks that live on")
    finally:
        server.removeHandler(heard)
    assert [client for client, _, _ in lines.seen] == [client for _, _, client in lines.seen]
    complaints = [line for line in heard.seen if "Invalid" in line[2]]
    assert [line[:2] for line in complaints] == [("-", "-")]


@EVERY_LOOP
def test_many_streams_of_one_http2_connection(loop: str, lines: Lines) -> None:
    rng = random.Random(13)

    async def everybody(port: int) -> None:
        transport = httpx2.AsyncHTTPTransport(
            http1=False, http2=True, limits=httpx2.Limits(max_connections=1)
        )
        async with httpx2.AsyncClient(transport=transport, timeout=10) as client:
            asking = [
                client.get(
                    f"http://127.0.0.1:{port}{rng.choice(['/thread', '/loop'])}",
                    headers={"X-Forwarded-For": a_client(rng)},
                )
                for _ in range(60)
            ]
            answered = await asyncio.gather(*asking)
        assert {(one.status_code, one.http_version) for one in answered} == {(200, "HTTP/2")}

    with laboratory(loop, "http2") as (port, app):
        asyncio.run(everybody(port))
        running.wait_until(lambda: all(task.done() for task in app.state.tasks), "tasks that live on")
    assert len(lines.seen) >= 60 * 2
    assert [client for client, _, _ in lines.seen] == [client for _, _, client in lines.seen]
    assert len({peer for _, peer, _ in lines.seen}) == 1


@EVERY_LOOP
def test_websockets(loop: str, lines: Lines) -> None:
    with laboratory(loop) as (port, _):
        for client in ("203.0.113.7:1", "203.0.113.8:2"):
            sock = socket.create_connection((LOOPBACK, port), 10)
            with connect_websocket(
                "ws://a.test/ws", sock=sock, additional_headers={"X-Forwarded-For": client}, proxy=None
            ) as opened:
                opened.send("hello")
                assert opened.recv(timeout=10) == "hello"
    assert [client for client, _, _ in lines.seen] == [message for _, _, message in lines.seen]
    assert len(lines.seen) == 4


# In one task


async def ask(app: Any, peer: tuple[str, int], client: str) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"", "client": peer,
        "headers": [(b"x-forwarded-for", client.encode())],
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app(scope, receive, send)


async def test_a_caller_in_the_same_task_has_its_own_again() -> None:
    """As with a test client, or an application that asks another one of its process."""
    seen: list[tuple[str, str | None]] = []

    def look(where: str) -> None:
        resolution = current.get()
        seen.append((where, None if resolution is None else resolution.client.ip))

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        look("inner")
        raise ValueError("on purpose")

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        look("outer")
        with pytest.raises(ValueError, match="on purpose"):
            await ask(RealIPMiddleware(inner, SETTINGS), (LOOPBACK, 1), "203.0.113.8")
        look("outer")

    look("nobody")
    await ask(RealIPMiddleware(outer, SETTINGS), (LOOPBACK, 1), "203.0.113.7")
    look("nobody")
    assert seen == [
        ("nobody", None), ("outer", "203.0.113.7"), ("inner", "203.0.113.8"), ("outer", "203.0.113.7"),
        ("nobody", None),
    ]  # fmt: skip


async def test_of_two_middlewares_the_inner_one_counts() -> None:
    seen = []

    async def endpoint(request: Request) -> PlainTextResponse:
        assert current.get() == resolution_of(request)
        seen.append(resolution_of(request).client.ip)
        return PlainTextResponse("ok")

    believing = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(RealIPMiddleware, settings=SETTINGS)]
    )
    outer = Starlette(
        routes=[Mount("/", believing)], middleware=[Middleware(RealIPMiddleware, settings=Settings())]
    )
    await ask(outer, (LOOPBACK, 1), "203.0.113.7")
    assert seen == ["203.0.113.7"]


def test_wsgi_keeps_the_same_variable() -> None:
    seen = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        seen.append(current.get())
        yield b""
        seen.append(current.get())

    environ = {"REMOTE_ADDR": LOOPBACK, "REMOTE_PORT": "1", "HTTP_X_FORWARDED_FOR": "203.0.113.7"}
    setup_testing_defaults(environ)
    list(wsgi.RealIPMiddleware(app, SETTINGS)(environ, lambda *_: lambda _: None))
    assert [resolution and resolution.client.ip for resolution in seen] == ["203.0.113.7"] * 2
    assert current.get() is None


async def test_the_lifespan_has_no_client() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current.get())

    await RealIPMiddleware(app, SETTINGS)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == [None]


def test_a_thread_of_ones_own_knows_nobody() -> None:
    token = current.set(decided(Address("203.0.113.7", None)))
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(current.get()))
    thread.start()
    thread.join(10)
    current.reset(token)
    assert seen == [None]


# The filter


def decided(client: Address, peer: Address = UNKNOWN) -> Resolution:
    return Resolution(client, peer, True, "X-Forwarded-For", None)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("203.0.113.7", 51000), "203.0.113.7:51000"),
        (Address("203.0.113.7", None), "203.0.113.7"),
        (Address("2001:db8::1", 51000), "[2001:db8::1]:51000"),
        (Address("2001:db8::1", None), "2001:db8::1"),
        (Address("unix:", None), "unix:"),
        (UNKNOWN, "-"),
    ],
)
def test_how_an_address_is_written(address: Address, text: str) -> None:
    for resolution, client, peer in [
        (decided(address), text, "-"),
        (decided(UNKNOWN, address), "-", text),
        (None, "-", "-"),
    ]:
        record = logging.makeLogRecord({"client": "what extra says"})
        token = current.set(resolution)
        assert ClientFilter().filter(record)
        current.reset(token)
        assert (record.client, record.peer) == (client, peer)  # type: ignore[attr-defined]


def test_the_guide_runs() -> None:
    guide = (ROOT / "docs" / "logging.md").read_text()
    setting_up, looking = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    code = f"{setting_up}\n{looking}\nlogging.info('%s', resolution)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert re.fullmatch(r"\S+ \S+ client=- peer=- None\n", result.stderr)


def test_uvicorns_own_lines_have_the_client(tmp_path: Path) -> None:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"client": {"()": "kongrealip.ClientFilter"}},
        "formatters": {"line": {"format": "%(client)s through %(peer)s: %(message)s"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "filters": ["client"], "formatter": "line"}},
        "root": {"handlers": ["out"], "level": "INFO"},
    }
    path = tmp_path / "logging.json"
    path.write_text(json.dumps(config))
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "--no-proxy-headers", "--port", str(port), "--log-config", str(path),
        "examples.starlette_app:app",
    ]  # fmt: skip
    environ = {**clean_environ(), "KONG_TRUSTED_IPS": LOOPBACK, "KONG_REAL_IP_HEADER": "X-Forwarded-For"}
    with running.running(command, environ, [port], ROOT) as server:
        head = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
        _, peer = running.exchange(port, head, LOOPBACK)
        server.wait_for_stderr(f'203.0.113.7 through {peer}: 203.0.113.7:0 - "GET / HTTP/1.1" 200')
        assert "- through -: Application startup complete." in server.stderr


def test_only_who_asks_for_the_filter_pays() -> None:
    code = (
        "import sys, kongrealip\n"
        "from kongrealip.middleware import asgi\n"
        "print('logging' in sys.modules, asgi.around)\n"
        "kongrealip.ClientFilter\n"
        "print('logging' in sys.modules, asgi.around is None)\n"
    )
    # An empty environment: coverage would follow into the process, and bring modules of its own.
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["False None", "True False"]


def test_no_other_name_is_made_up() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ClientFiller'"):
        kongrealip.ClientFiller  # type: ignore[attr-defined]  # noqa: B018
