"""Servers that are ended, renewed, killed, crowded and out of open files, seen by their clients.

The load is an open loop: requests come at fixed times, whatever becomes of those before. Clients
of a closed loop would wait along with a server that does not answer, and miss what it does wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.running import LOOPBACK, Program, clean_environ, free_port, running

APP = "tests.faults.processes:app"
ANSWER_SECONDS, BUSY_SECONDS = 0.2, 1.0
#: Version 2, TCP over IPv4, 203.0.113.7:40001 to 198.51.100.9:443.
PREAMBLE = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes.fromhex("cb007107c63364099c4101bb")
#: What becomes of a request.
ANSWERED, REFUSED, RESET = "answered", "refused", "reset"
CUT, CLOSED, UNANSWERED = "cut short", "closed without a byte", "unanswered"
#: What must not become of one whose connection was established.
LOST = (RESET, CUT, CLOSED, UNANSWERED)

_BODY = b"x" * 2000
_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
# Between connect and the first byte, as it is with a balancer on another machine.
_SILENCE_SECONDS = 0.005
# Around a kill: the moment is not the same for who kills and who dies.
_BLUR_SECONDS = 0.1


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Tells its process. ``/later`` takes its time, ``/named`` too, but names the process at once."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/busy":
        time.sleep(BUSY_SECONDS)  # noqa: ASYNC251 - an application that does what it should not
    if path == "/later":
        await asyncio.sleep(ANSWER_SECONDS)
    headers = [(b"content-length", b"%d" % len(_BODY)), (b"pid", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path == "/named":
        await asyncio.sleep(ANSWER_SECONDS)
    await send({"type": "http.response.body", "body": _BODY})


@dataclass(eq=False)
class Request:
    began: float = field(default_factory=time.monotonic)
    answer: bytearray = field(default_factory=bytearray)
    result: str = UNANSWERED

    @property
    def pid(self) -> int | None:
        """The process that it got to, where that is known."""
        found = re.search(rb"pid: (\d+)", self.answer)
        return int(found[1]) if found else None

    @property
    def is_complete(self) -> bool:
        _, separator, body = self.answer.partition(b"\r\n\r\n")
        return bool(separator) and len(body) == len(_BODY)


@dataclass(eq=False)
class Load:
    """Requests at a fixed rate, each on a connection of its own or on one that stayed open."""

    port: int
    path: str = "/later"
    keep_alive: bool = False
    preamble: bytes = b""
    rate: float = 200.0
    requests: list[Request] = field(default_factory=list)
    # The one that has been idle for longest goes first, so that all of them are in use.
    _idle: deque[socket.socket] = field(default_factory=deque)
    _is_over: bool = False

    def count(self, *results: str) -> int:
        return sum(request.result in results for request in self.requests)

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """Until the block ends, and then until all have been answered."""
        arriving = asyncio.create_task(self._arrive())
        try:
            yield
        finally:
            self._is_over = True
            await arriving

    async def _arrive(self) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._is_over:
                self.requests.append(Request())
                group.create_task(self._run(self.requests[-1]))
                due += 1 / self.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        for sock in self._idle:
            sock.close()

    async def _run(self, request: Request) -> None:
        sock = self._idle_one()
        fresh = sock is None
        sock = sock or socket.socket()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._exchange(request, sock, fresh)
            request.result = ANSWERED
        except ConnectionRefusedError:
            request.result = REFUSED
        except TimeoutError:
            request.result = UNANSWERED
        except EOFError:
            request.result = CUT if request.answer else CLOSED
        except OSError:
            request.result = RESET
        is_last = not self.keep_alive or b"connection: close" in request.answer.lower()
        if request.result == ANSWERED and not is_last:
            self._idle.append(sock)
        else:
            sock.close()

    async def _exchange(self, request: Request, sock: socket.socket, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        if fresh:
            sock.setblocking(False)
            await loop.sock_connect(sock, (LOOPBACK, self.port))
            if self.preamble:
                await asyncio.sleep(_SILENCE_SECONDS)
        await loop.sock_sendall(sock, (self.preamble if fresh else b"") + get(self.path))
        while not request.is_complete:
            data = await loop.sock_recv(sock, 65536)
            if not data:
                raise EOFError
            request.answer += data

    def _idle_one(self) -> socket.socket | None:
        """One that the server has not closed meanwhile, which is what a client can know."""
        while self._idle:
            sock = self._idle.popleft()
            try:
                sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return sock
            except OSError:
                pass
            sock.close()
        return None


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: example.test\r\n\r\n".encode()


@contextmanager
def served(flags: str, *args: str, files: int | None = None) -> Iterator[Program]:
    """``kongrealip serve`` on one listener, with a limit of open files where one is given."""
    port = free_port()
    environ = {
        "KONG_TRUSTED_IPS": f"{LOOPBACK}/32",
        "KONG_REAL_IP_HEADER": "proxy_protocol",
        "KONG_PROXY_LISTEN": f"{LOOPBACK}:{port} {flags}".strip(),
    }
    limited = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh"] if files else []
    command = [*limited, sys.executable, "-m", "kongrealip", "serve", APP, "--no-access-log", *args]
    with running(command, {**clean_environ(), **environ}, [port]) as server:
        server.wait_for_stderr("Application startup complete")
        yield server
        assert server.stop() == 0, "SIGTERM is the ordinary end"


def connected(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), _PATIENCE_SECONDS)


def ask(port: int, path: str, preamble: bytes = b"") -> Request:
    """One request on a connection of its own."""
    with connected(port) as sock:
        return ask_on(sock, preamble + get(path))


def ask_on(sock: socket.socket, data: bytes) -> Request:
    """Send, and take what comes back."""
    request = Request()
    with contextlib.suppress(OSError):
        sock.sendall(data)
        while not request.is_complete and (data := sock.recv(65536)):
            request.answer += data
    return request


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def cpu_seconds(pid: int) -> float:
    """Time on the processor of all threads, in nanosecond steps."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


async def end(server: Program, load: Load, before: float = 1.0, after: float = 0.5) -> tuple[int, float]:
    """SIGTERM in the middle of the load, which goes on for a while after the last process.

    Returns the exit code and how many seconds it took.
    """
    async with load.coming():
        # The server looks at its clock ten times a second. Each phase is to have its turn.
        await asyncio.sleep(before + random.random() / 10)
        began = time.monotonic()
        server.terminate()
        code = await asyncio.to_thread(server.wait)
        seconds = time.monotonic() - began
        await asyncio.sleep(after)
    return code, seconds


async def renew(server: Program, load: Load, workers: int, times: int, seconds: float) -> tuple[int, int]:
    """SIGHUP under load, again when the old processes are gone and ``seconds`` are over.

    Returns how many processes answered, and how many answers were an old one's after the last time.
    """
    seen = children(server.pid)
    async with load.coming():
        for _ in range(times):
            await asyncio.sleep(seconds / 2)
            began, old = time.monotonic(), children(server.pid)
            os.kill(server.pid, signal.SIGHUP)
            while (new := children(server.pid)) & old or len(new) != workers:
                assert time.monotonic() < began + _PATIENCE_SECONDS, f"{new} after SIGHUP, {old} before it"
                await asyncio.sleep(_LOOK_SECONDS)
            seen |= new
            over = len(load.requests)
            await asyncio.sleep(max(seconds / 2, began + seconds - time.monotonic()))
    answered = [request.pid for request in load.requests if request.result == ANSWERED]
    assert set(answered) <= seen
    return len(set(answered)), sum(request.pid in seen - new for request in load.requests[over:])


class Kill(NamedTuple):
    """``seconds`` is the time until a process answered that had not been there."""

    pid: int
    when: float
    seconds: float


async def kill(server: Program, load: Load, times: int, seconds: float) -> list[Kill]:
    """SIGKILL for one worker after the other, at these intervals."""
    kills = []
    async with load.coming():
        for _ in range(times):
            await asyncio.sleep(seconds)
            kills.append(await asyncio.to_thread(_kill_one, server))
        await asyncio.sleep(seconds)
    return kills


def _kill_one(server: Program) -> Kill:
    known = children(server.pid)
    victim = random.choice(sorted(known))
    when = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while (answered := ask(server.port, "/").pid) is None or answered in known:
        assert time.monotonic() < when + _PATIENCE_SECONDS, f"nobody took the place of {victim}"
        time.sleep(_LOOK_SECONDS)
    return Kill(victim, when, time.monotonic() - when)


def lost_by_others(load: Load, kills: Sequence[Kill]) -> int:
    """How many requests were lost though they were not those of a worker that was killed.

    One that no process had named itself to was its own only if it came at that very moment.
    """

    def is_own(request: Request, one: Kill) -> bool:
        if request.pid is None:
            return abs(request.began - one.when) < _BLUR_SECONDS
        return request.pid == one.pid

    lost = [request for request in load.requests if request.result in LOST]
    return sum(not any(is_own(request, one) for one in kills) for request in lost)


def burst(port: int, count: int) -> Mapping[str, float]:
    """Connect ``count`` times while the server's loop is blocked, and ask on each connection."""
    refused, asking = 0, []
    with ExitStack() as stack:
        busy = stack.enter_context(connected(port))
        busy.sendall(get("/busy"))
        time.sleep(0.1)
        began = time.monotonic()
        for _ in range(count):
            try:
                asking.append(stack.enter_context(connected(port)))
                asking[-1].sendall(get("/"))
            except OSError:
                refused += 1
        seconds = time.monotonic() - began
        busy.setblocking(False)
        was_busy = not ask_on(busy, b"").answer
        answered = sum(ask_on(sock, b"").is_complete for sock in asking)
    return {
        "refused or reset while connecting": refused,
        "answered": answered,
        "seconds to connect": seconds,
        "busy to the end": was_busy,
    }


def run_short(
    server: Program, preamble: bytes, count: int, seconds: float, asked: int
) -> Mapping[str, float]:
    """Hold more connections than there are descriptors, ask on the first ones, and let all go."""
    lines = len(server.stderr.splitlines())
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            held.append(stack.enter_context(connected(server.port)))
            held[-1].sendall(preamble)
        began, cpu = time.monotonic(), cpu_seconds(server.pid)
        time.sleep(seconds)
        core = (cpu_seconds(server.pid) - cpu) / (time.monotonic() - began)
        answered = sum(ask_on(sock, get("/")).is_complete for sock in held[:asked])
    began = time.monotonic()
    assert ask(server.port, "/", preamble).is_complete
    return {
        "share of a core": core,
        "log lines": len(server.stderr.splitlines()) - lines,
        "answered on open ones": answered,
        "seconds to an answer after release": time.monotonic() - began,
    }
