"""``async with kongrealip.server.serve(app, settings)``: what it opens, serves, and leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kongrealip import Settings, resolution_of
from kongrealip.config import Listen
from kongrealip.errors import StartError
from kongrealip.server import serve
from tests.lab import LOOPS, client_tls, connect

PREAMBLE = b"PROXY TCP4 203.0.113.7 127.0.0.1 51000 8443\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
ANY_PORT = Listen("127.0.0.1", 0)
BEHIND_A_BALANCER = Settings(
    trusted_ips=("127.0.0.1/32",),
    real_ip_header="proxy_protocol",
    proxy_listen=(Listen("127.0.0.1", 0, ("proxy_protocol",)),),
    proxy_access_log="off",
)
EVERY_LOOP = pytest.mark.parametrize("loop", LOOPS)


def run(main: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, 20))


async def seen(request: Request) -> JSONResponse:
    client = request.client
    source = resolution_of(request).source
    return JSONResponse({"client": None if client is None else client.host, "source": source})


APP = Starlette(routes=[Route("/", seen)])


async def ask(
    target: int | str, preamble: bytes = b"", tls: ssl.SSLContext | None = None, path: str = "/"
) -> Any:
    """One request on a connection of its own, and the JSON of the answer."""
    reader, writer = await connect(target)
    writer.write(preamble)
    if tls is not None:
        await writer.start_tls(tls, server_hostname="a.test")
    writer.write(REQUEST.replace(b"/", path.encode(), 1))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def descriptors() -> Counter[str]:
    """How many there are of each kind, but for the spare one of uvloop's, which stays with the loop."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:
            # That of the listing itself.
            continue
    del found[os.devnull]
    return found


def signal_handlers() -> list[object]:
    return [signal.getsignal(number) for number in signal.valid_signals()]


@contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors and tasks are the same at both ends of the block, signal handlers all along."""
    # What earlier tests left must not go in between.
    gc.collect()
    before = descriptors(), asyncio.all_tasks()
    yield
    assert (descriptors(), asyncio.all_tasks()) == before


@contextmanager
def untouched_signals() -> Iterator[None]:
    before = signal_handlers()
    yield
    assert signal_handlers() == before


@EVERY_LOOP
def test_the_application_sees_the_client_that_kong_would_have_seen(loop: str) -> None:
    async def main() -> None:
        with nothing_left():
            async with serve(APP, BEHIND_A_BALANCER) as server:
                answer = await ask(server.proxy_listen[0].port, PREAMBLE)
        assert answer == {"client": "203.0.113.7", "source": "proxy_protocol"}

    run(main(), loop)


@EVERY_LOOP
def test_listeners_of_every_kind_in_their_order(loop: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    listens = (
        ANY_PORT,
        Listen("127.0.0.1", 0, ("proxy_protocol",)),
        Listen(f"unix:{path}", 0, ("proxy_protocol",)),
        Listen("127.0.0.1", 0, ("ssl", "http2", "proxy_protocol")),
    )
    settings = BEHIND_A_BALANCER._replace(proxy_listen=listens, trusted_ips=("127.0.0.1", "unix:"))

    async def main() -> None:
        with nothing_left():
            async with serve(APP, settings) as server:
                plain, proxied, unix, tls = server.proxy_listen
                assert [one.flags for one in server.proxy_listen] == [one.flags for one in listens]
                assert len({plain.port, proxied.port, tls.port, 0}) == 4
                assert unix == listens[2]
                assert await ask(plain.port) == {"client": "127.0.0.1", "source": "peer"}
                for target, context in ((proxied.port, None), (path, None), (tls.port, client_tls())):
                    answer = await ask(target, PREAMBLE, context)
                    assert answer == {"client": "203.0.113.7", "source": "proxy_protocol"}

    run(main(), loop)
    assert not os.path.exists(path)


def test_a_name_has_a_listener_for_each_of_its_addresses() -> None:
    async def main() -> None:
        settings = BEHIND_A_BALANCER._replace(proxy_listen=(Listen("localhost", 0), ANY_PORT))
        async with serve(APP, settings) as server:
            found = {entry[4][0] for entry in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
            assert [one.host for one in server.proxy_listen] == ["localhost"] * len(found) + ["127.0.0.1"]

    run(main())


def test_the_status_listener_is_opened_and_told() -> None:
    async def main() -> None:
        async with serve(APP, BEHIND_A_BALANCER._replace(status_listen=(ANY_PORT,))) as server:
            await ask(server.proxy_listen[0].port, PREAMBLE)
            status = await ask(server.status_listen[0].port, path="/status")
            assert status["server"]["connections_accepted"] == 2, status

    run(main())


def test_the_access_log_is_written_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def main() -> None:
        with nothing_left():
            async with serve(APP, BEHIND_A_BALANCER._replace(proxy_access_log=str(path))) as server:
                await ask(server.proxy_listen[0].port, PREAMBLE)

    run(main())
    assert path.read_text().startswith("203.0.113.7 - - [")


def test_who_trusts_everybody_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve(APP, BEHIND_A_BALANCER._replace(trusted_ips=("0.0.0.0/0",))):
            assert "everybody is trusted" in caplog.text

    run(main())


@EVERY_LOOP
def test_whatever_a_client_does_nothing_is_left(loop: str) -> None:
    """Idle, silent, in the middle of a preamble, and in the middle of a handshake."""
    listens = (ANY_PORT, *BEHIND_A_BALANCER.proxy_listen, Listen("127.0.0.1", 0, ("ssl",)))
    # A handshake record whose message, by its length, goes on.
    begun_handshake = b"\x16\x03\x01\x00\x04\x01\x00\x02\x00"

    async def main() -> None:
        with untouched_signals(), nothing_left(), ExitStack() as clients:
            async with serve(APP, BEHIND_A_BALANCER._replace(proxy_listen=listens)) as server:
                plain, proxied, tls = (one.port for one in server.proxy_listen)
                beginnings = ((plain, b""), (proxied, b"PROXY TCP"), (tls, b""), (tls, begun_handshake))
                for port, data in beginnings:
                    client = clients.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                    client.sendall(data)
                idle, writer = await connect(plain)
                writer.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                assert (await idle.readline()).startswith(b"HTTP/1.1 200")
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            await idle.read()
            writer.close()
            await writer.wait_closed()

    run(main(), loop)


@EVERY_LOOP
def test_whoever_has_connected_is_served_though_the_block_ends(loop: str) -> None:
    async def main() -> None:
        async with serve(APP, BEHIND_A_BALANCER) as server:
            address = ("127.0.0.1", server.proxy_listen[0].port)
            clients = [socket.create_connection(address, 5) for _ in range(20)]
            for sock in clients:
                sock.sendall(PREAMBLE + REQUEST)
            # Not a moment for the loop: nobody has been accepted when the end begins.
        for sock in clients:
            with sock, sock.makefile("rb") as file:
                assert file.readline() == b"HTTP/1.1 200 OK\r\n"

    run(main(), loop)


@EVERY_LOOP
def test_an_open_request_is_answered_though_the_block_ends(loop: str) -> None:
    async def main() -> None:
        begun, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(request: Request) -> JSONResponse:
            begun.set()
            await may_answer.wait()
            return JSONResponse("late")

        app = Starlette(routes=[Route("/", slow)])
        async with serve(app, BEHIND_A_BALANCER) as server:
            answer = asyncio.create_task(ask(server.proxy_listen[0].port, PREAMBLE))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.05, may_answer.set)
        assert await answer == "late"

    run(main(), loop)


@EVERY_LOOP
def test_the_lifespan_is_run_and_its_state_reaches_requests(loop: str) -> None:
    told = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        told.append("begun")
        yield {"pool": "open"}
        told.append("ended")

    async def pool(request: Request) -> JSONResponse:
        return JSONResponse(request.state.pool)

    async def main() -> None:
        app = Starlette(routes=[Route("/", pool)], lifespan=lifespan)
        async with serve(app, BEHIND_A_BALANCER) as server:
            assert told == ["begun"]
            assert await ask(server.proxy_listen[0].port, PREAMBLE) == "open"
            assert told == ["begun"]
        assert told == ["begun", "ended"]

    run(main(), loop)


def test_an_application_without_a_lifespan_is_served() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await JSONResponse("bare")(scope, receive, send)

    async def main() -> None:
        async with serve(bare, BEHIND_A_BALANCER) as server:
            assert await ask(server.proxy_listen[0].port, PREAMBLE) == "bare"

    run(main())


def failing_at_start(reason: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError(reason)
        yield

    return Starlette(lifespan=lifespan)


async def start_in_vain(app: Any, settings: Settings) -> str:
    """The text of the StartError, behind which nothing is left."""
    with untouched_signals(), nothing_left(), pytest.raises(StartError) as caught:
        async with serve(app, settings):
            pytest.fail("it cannot start")
    (line,) = str(caught.value).splitlines()
    return line


@EVERY_LOOP
def test_a_lifespan_that_fails_is_an_error_that_names_its_cause(loop: str, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    settings = BEHIND_A_BALANCER._replace(proxy_listen=(Listen(f"unix:{path}", 0), ANY_PORT))

    async def main() -> None:
        line = await start_in_vain(failing_at_start("the database is down"), settings)
        assert line.endswith("lifespan failed at start: RuntimeError: the database is down")
        assert not path.exists()

    run(main(), loop)


def test_a_lifespan_may_fail_without_a_word() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    async def main() -> None:
        assert "lifespan failed at start" in await start_in_vain(app, BEHIND_A_BALANCER)

    run(main())


@pytest.mark.parametrize("key", ["proxy_listen", "status_listen"])
def test_a_port_in_use_is_an_error_and_the_others_are_closed(key: str) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            listens = {key: (ANY_PORT, Listen("127.0.0.1", port))}
            settings = BEHIND_A_BALANCER._replace(**listens)  # type: ignore[arg-type]
            assert f"cannot listen on 127.0.0.1:{port}" in await start_in_vain(APP, settings)

    run(main())


def test_a_certificate_that_is_none_is_an_error() -> None:
    settings = BEHIND_A_BALANCER._replace(
        proxy_listen=(Listen("127.0.0.1", 0, ("ssl",)),), ssl_cert=("/nowhere",), ssl_cert_key=("/nowhere",)
    )

    async def main() -> None:
        assert "no such file: /nowhere" in await start_in_vain(APP, settings)

    run(main())


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """No more than so many can be opened in here."""
    probes = [os.open(os.devnull, os.O_RDONLY) for _ in range(number)]
    highest = probes[-1]
    for descriptor in probes:
        os.close(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_wherever_descriptors_run_out_at_start_nothing_is_left() -> None:
    settings = BEHIND_A_BALANCER._replace(proxy_listen=(ANY_PORT,) * 2, status_listen=(ANY_PORT,))
    ended = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ended.append(False)
        yield
        ended[-1] = True

    async def main() -> None:
        app = Starlette(lifespan=lifespan)
        async with serve(app, settings):
            pass  # What is imported the first time needs descriptors too.
        # Three listening sockets and what each of them waits with.
        for number in range(1, 6):
            too_many = pytest.raises(StartError, match="Too many open files")
            with nothing_left(), descriptors_left(number), too_many:
                async with serve(app, settings):
                    pytest.fail("it cannot start")
        with descriptors_left(6):
            async with serve(app, settings):
                pass
        assert ended == [True] * 5, "once for each start that came so far"

    run(main())


@EVERY_LOOP
def test_cancelling_the_block_ends_it_in_good_order(loop: str) -> None:
    async def main() -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            ended.set()

        app = Starlette(routes=[Route("/", seen)], lifespan=lifespan)

        async def block() -> None:
            async with serve(app, BEHIND_A_BALANCER) as server:
                await ask(server.proxy_listen[0].port, PREAMBLE)
                asked.set()
                await asyncio.Event().wait()

        with nothing_left():
            serving = asyncio.create_task(block())
            await asked.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
        assert ended.is_set()

    run(main(), loop)


@EVERY_LOOP
@pytest.mark.parametrize("flags", [("proxy_protocol",), ("ssl", "proxy_protocol")], ids=" ".join)
def test_cancelling_the_end_cuts_off_what_never_ends(loop: str, flags: tuple[str, ...]) -> None:
    async def main() -> None:
        begun, cancelled, leaving = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def endless(request: Request) -> JSONResponse:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return JSONResponse("never")

        settings = BEHIND_A_BALANCER._replace(proxy_listen=(Listen("127.0.0.1", 0, flags),))

        async def block() -> None:
            async with serve(Starlette(routes=[Route("/", endless)]), settings) as server:
                port = server.proxy_listen[0].port
                tls = client_tls() if "ssl" in flags else None
                asking.append(asyncio.create_task(ask(port, PREAMBLE, tls)))
                await begun.wait()
                leaving.set()

        asking: list[asyncio.Task[Any]] = []
        with nothing_left():
            serving = asyncio.create_task(block())
            await leaving.wait()
            # Beyond the moment that is given to clients which are on their way.
            _, pending = await asyncio.wait([serving], timeout=1.5)
            assert pending, "the end waits for the answer"
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert cancelled.is_set()
            with pytest.raises((AssertionError, OSError)):
                await asking[0]

    run(main(), loop)


@EVERY_LOOP
def test_cancelling_the_start_ends_the_lifespan(loop: str) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            begun.set()
            await asyncio.Event().wait()
            yield

        async def block() -> None:
            async with serve(Starlette(lifespan=lifespan), BEHIND_A_BALANCER):
                pytest.fail("it never starts")

        with nothing_left():
            serving = asyncio.create_task(block())
            await begun.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    run(main(), loop)


def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async def main() -> None:
        error = KeyError("mine")
        with nothing_left(), pytest.raises(KeyError) as caught:
            async with serve(APP, BEHIND_A_BALANCER):
                raise error
        assert caught.value is error

    run(main())


@EVERY_LOOP
def test_servers_side_by_side_in_one_loop(loop: str) -> None:
    async def main() -> None:
        by_header = BEHIND_A_BALANCER._replace(real_ip_header="X-Real-IP", proxy_listen=(ANY_PORT,))
        with nothing_left():
            async with serve(APP, BEHIND_A_BALANCER) as first:
                async with serve(APP, by_header) as second:
                    assert await ask(second.proxy_listen[0].port) == {"client": "127.0.0.1", "source": "peer"}
                answer = await ask(first.proxy_listen[0].port, PREAMBLE)
                assert answer == {"client": "203.0.113.7", "source": "proxy_protocol"}

    run(main(), loop)


def test_one_after_the_other_on_one_port() -> None:
    async def main() -> None:
        settings = BEHIND_A_BALANCER
        for _ in range(3):
            async with serve(APP, settings) as server:
                await ask(server.proxy_listen[0].port, PREAMBLE)
            settings = server

    run(main())


def test_importing_the_room_brings_no_server() -> None:
    code = (
        "import sys, kongrealip.server;"
        "print(*sorted({'asyncio', 'ssl', 'socket', 'starlette', 'uvicorn', 'logging'} & set(sys.modules)))"
    )
    # An empty environment: coverage would follow into the process, and bring modules of its own.
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
