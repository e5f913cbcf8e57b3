"""Clients that mean ill, or only look so, against ``kongrealip serve`` over real sockets.

Each scenario starts a server of its own, plays its clients, and returns what it measured, by
name. test_hostile.py plays a little of each, benchmarks/faults_hostile.py all of it, with bars.
"""

from __future__ import annotations

import asyncio
import math
import socket
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import cycle
from pathlib import Path

from tests.running import LOOPBACK, Program, free_port, received, serving, wait_until

Figures = dict[str, float]

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: service.test\r\nConnection: close\r\n\r\n"
#: Longer than any scenario, so that what is held is really held.
HELD = {"KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "90s"}
_ROOT = Path(__file__).parent.parent.parent
_SMALL_APP = ("benchmarks.app:app", "--app-dir", str(_ROOT), "--no-access-log")
_PATIENCE_SECONDS = 30.0


def version_1(ip: str = "203.0.113.7", port: int = 51000) -> bytes:
    return f"PROXY TCP4 {ip} 198.51.100.9 {port} 443\r\n".encode()


def version_2(ip: str = "203.0.113.7", port: int = 51000, tlvs: bytes = b"") -> bytes:
    ends = socket.inet_aton(ip) + socket.inet_aton("198.51.100.9") + struct.pack("!HH", port, 443)
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(ends) + len(tlvs)) + ends + tlvs


@contextmanager
def server(loop: str, flags: str, *args: str, **environ: str) -> Iterator[Program]:
    """One listener on a port of loopback, whose peers are trusted with their preambles."""
    listen = {"KONG_PROXY_LISTEN": f"{LOOPBACK}:{free_port()} {flags}"}
    rules = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32", "KONG_REAL_IP_HEADER": "proxy_protocol"}
    with serving({**listen, **rules, **environ}, *args, "--loop", loop) as program:
        # With workers the port is open before anybody is there who serves it.
        workers = int(args[args.index("--workers") + 1]) if "--workers" in args else 1
        wait_until(lambda: program.stderr.count("startup complete") == workers, "the workers")
        yield program


def processes(program: Program) -> list[int]:
    """The workers, or the one process where there are none."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    return [int(pid) for pid in children] or [program.pid]


def cpu_seconds(program: Program) -> float:
    tasks = [task for pid in processes(program) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(program: Program, field: str = "VmRSS") -> int:
    """What a server of one process holds, or with ``VmHWM`` the most that it has held."""
    return int(Path(f"/proc/{program.pid}/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


class Talk(asyncio.Protocol):
    """One connection: what came back, and ``ended``, the seconds from connect to its end."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.began = time.monotonic()
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(time.monotonic() - self.began)

    @property
    def seconds(self) -> float:
        """Until the server closed, without end where it did not."""
        return self.ended.result() if self.ended.done() else math.inf

    @property
    def is_answered(self) -> bool:
        return self.received.startswith(b"HTTP/1.1 200 ")


async def talk(target: int | str, *pieces: bytes, pause: float = 0.0, source: str | None = None) -> Talk:
    """Connect, say the pieces, and wait for the end. A Talk without an answer where that fails."""
    made = Talk()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            if isinstance(target, str):
                await loop.create_unix_connection(lambda: made, target)
            else:
                local = None if source is None else (source, 0)
                await loop.create_connection(lambda: made, LOOPBACK, target, local_addr=local)
            for piece in pieces:
                made.transport.write(piece)
                ended, _ = await asyncio.wait([made.ended], timeout=pause)
                if ended:
                    break
            await made.ended
    except (OSError, TimeoutError):
        if hasattr(made, "transport"):
            made.transport.abort()
    return made


async def open_loop(seconds: float, rate: int, begin: Callable[[], Awaitable[Talk]]) -> list[Talk]:
    """Begin at fixed times, whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    start, begun = loop.time(), []
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0, start + number / rate - loop.time()))
        begun.append(asyncio.ensure_future(begin()))
    return list(await asyncio.gather(*begun))


def percentile_99(talks: Sequence[Talk]) -> float:
    return sorted(one.seconds for one in talks)[math.ceil(len(talks) * 0.99) - 1]


@contextmanager
def holding(port: int, data: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Connections that say ``data`` and no more."""
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            held.append(socket.create_connection((LOOPBACK, port), _PATIENCE_SECONDS))
            held[-1].sendall(data)
            held[-1].setblocking(False)
        yield held
    finally:
        for sock in held:
            sock.close()


def is_open(sock: socket.socket) -> bool:
    """Whether the server has neither closed nor said anything."""
    try:
        sock.recv(1)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def beside_good(
    loop: str, held: int = 5000, rate: int = 400, idle_seconds: float = 20, seconds: float = 60
) -> Figures:
    """Half-open connections, and good ones at the same time, on two workers."""

    def good(port: int, duration: float) -> list[Talk]:
        return asyncio.run(open_loop(duration, rate, lambda: talk(port, version_2() + REQUEST)))

    with server(loop, "proxy_protocol", *_SMALL_APP, "--workers", "2", **HELD) as program:
        good(program.port, 2)
        idle = percentile_99(good(program.port, idle_seconds))
        with holding(program.port, version_2()[:14], held) as sockets:
            talks = good(program.port, seconds)
            lost = sum(not is_open(sock) for sock in sockets)
        busy = percentile_99(talks)
    return {
        "good requests that failed": sum(not one.is_answered for one in talks),
        "held connections that were closed": lost,
        "p99 idle, ms": idle * 1000,
        "p99 beside them, ms": busy * 1000,
        "p99 to what it may be": busy / max(2 * idle, 0.005),
    }


#: What is held, by name: the listener's flags, and what has been sent.
HELD_KINDS = {
    "plain, half a preamble": ("proxy_protocol", version_2()[:14]),
    "ssl, half a preamble": ("ssl proxy_protocol", version_2()[:14]),
    "ssl, a preamble and silence": ("ssl proxy_protocol", version_2()),
    "ssl, 3 bytes of ClientHello": ("ssl proxy_protocol", version_2() + b"\x16\x03\x01"),
}


def memory(loop: str, kind: str, count: int = 5000, rest: float = 10) -> Figures:
    """What a held connection costs, and what is left of it ``rest`` seconds after its end."""
    flags, data = HELD_KINDS[kind]
    with server(loop, flags, *_SMALL_APP, **HELD) as program:
        # What runs for the first time brings memory of its own, which no connection costs.
        _held_and_left(program, data, 20, min(rest, 1))
        start = resident_bytes(program)
        held, left = zip(*(_held_and_left(program, data, count, rest) for _ in range(2)), strict=True)
    return {
        "KB each": (held[0] - start) / count / 1024,
        "left after the first, %": (left[0] / start - 1) * 100,
        "the second adds, %": (held[1] / held[0] - 1) * 100,
    }


def _held_and_left(program: Program, data: bytes, count: int, rest: float) -> tuple[int, int]:
    with holding(program.port, data, count):
        time.sleep(0.5)
        held = resident_bytes(program)
    time.sleep(rest)
    return held, resident_bytes(program)


def drip(
    loop: str, clients: int = 1000, deadline: int = 5, *, data: bytes = version_2(), **environ: str
) -> Figures:
    """A byte each half second: no byte extends the deadline, and each costs little."""
    environ["KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT"] = f"{deadline}s"
    # Silence first, for the server looks at a connection as soon as it has accepted it.
    pieces = [b"", *(bytes([byte]) for byte in data)]

    async def play(port: int) -> list[Talk]:
        return await open_loop(0.5, clients * 2, lambda: talk(port, *pieces, pause=0.5))

    with server(loop, "proxy_protocol", *_SMALL_APP, "--workers", "2", **environ) as program:
        began, cpu = time.monotonic(), cpu_seconds(program)
        talks = asyncio.run(play(program.port))
        share = (cpu_seconds(program) - cpu) / (time.monotonic() - began)
    return {
        "first close after the deadline, s": min(one.seconds for one in talks) - deadline,
        "last close after the deadline, s": max(one.seconds for one in talks) - deadline,
        "bytes that came back": sum(len(one.received) for one in talks),
        "share of a core, %": share * 100,
    }


def perhaps_drip(loop: str, clients: int = 1000, deadline: int = 5) -> Figures:
    """A first byte that may be a preamble's, of peers that need not send one, and nothing more."""
    optional = {"KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": f"{LOOPBACK}/32"}
    return drip(loop, clients, deadline, data=b"P", **optional)


BROKEN = (
    REQUEST,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff" * 40,
    SIGNATURE[:-1] + b"?",
    b"PROXY junk\r\n",
    b"PROXY TCP4 203.0.113.7 198.51.100.9 65536 443\r\n",
    b"PROXY UNKNOWN" + b"x" * 5000,
    SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
    SIGNATURE + b"\x21\x11\xff\xff",
)


def broken(loop: str, rate: int = 500, seconds: float = 10) -> Figures:
    """What can become no preamble, of every kind in turn, on two workers."""
    with server(loop, "proxy_protocol", *_SMALL_APP, "--workers", "2") as program:
        before = len(program.stderr)
        kinds = cycle(BROKEN)
        talks = asyncio.run(open_loop(seconds, rate, lambda: talk(program.port, next(kinds))))
        lines = program.stderr[before:].splitlines()
    return {
        "p99 to the close, ms": percentile_99(talks) * 1000,
        "bytes that came back": sum(len(one.received) for one in talks),
        "log lines a second": len(lines) / seconds,
        "log lines in the fullest second": _in_the_fullest_second(lines),
    }


def _in_the_fullest_second(lines: Sequence[str]) -> int:
    """Of any second, whenever it begins."""
    times = [datetime.fromisoformat(line[:23].replace(",", ".")).timestamp() for line in lines]
    return max((sum(0 <= other - one < 1 for other in times) for one in times), default=0)


def longest(loop: str, count: int = 500, pause: float = 2) -> Figures:
    """The longest preambles that there can be, all held but for their ends at one moment."""
    data = version_2(tlvs=b"\xea\xff\xf0" + bytes(65520)) + REQUEST

    async def play(port: int, talks: int) -> list[Talk]:
        pieces = data[:65000], data[65000:]
        return await asyncio.gather(*(talk(port, *pieces, pause=pause) for _ in range(talks)))

    with server(loop, "proxy_protocol", *_SMALL_APP, KONGREALIP_PREAMBLE_MAX_BYTES="65551") as program:
        asyncio.run(play(program.port, 1))
        # From here on VmHWM counts anew. See proc_pid_clear_refs(5).
        Path(f"/proc/{program.pid}/clear_refs").write_text("5")
        before = resident_bytes(program)
        talks = asyncio.run(play(program.port, count))
        most = resident_bytes(program, "VmHWM")
    return {
        "memory at the most, MB more": (most - before) / 2**20,
        "not answered": sum(not one.is_answered for one in talks),
    }


#: Hops, each with two numbers below 250 in it, and how long a line is, or 0 for a single one.
FORWARDED = {
    "IPv4, one line": ("10.1.{}.{}", 0),
    "IPv6, one line": ("2001:db8::{:x}:{:x}", 0),
    "shortest IPv6, one line": ("::{1:x}", 0),
    "IPv4, 1000 lines": ("10.1.{}.{}", 100),
    "IPv6, 1000 lines": ("2001:db8::{:x}:{:x}", 100),
}


def forwarded(loop: str, kind: str, recursive: str, repeats: int = 15) -> Figures:
    """X-Forwarded-For of trusted hops alone, from a trusted peer: 100 KB, and what is always taken."""
    sizes, huge = (6_000, 12_000, 24_000), 100_000
    environ = {"KONG_TRUSTED_IPS": "0.0.0.0/0,::/0", "KONG_REAL_IP_HEADER": "X-Forwarded-For"}
    with server(loop, "", *_SMALL_APP, KONG_REAL_IP_RECURSIVE=recursive, **environ) as program:
        data = {size: _with_hops(*FORWARDED[kind], size) for size in (*sizes, huge)}
        asked = {size: [_ask(program.port, data[size]) for _ in range(repeats)] for size in data}
    # The fastest of each size: what came in between is not the size's.
    fastest = [math.log(min(asked[size])[0]) for size in sizes]
    growth = statistics.linear_regression([math.log(size) for size in sizes], fastest)
    decided = [seconds for seconds, status in asked[huge] if status == b"200"]
    return {
        "time for 100 KB, ms, 0 where refused": statistics.median(decided or [0]) * 1000,
        "time for 24 KB, ms": statistics.median_low(asked[sizes[-1]])[0] * 1000,
        "not answered up to that": sum(status != b"200" for size in sizes for _, status in asked[size]),
        "grows with the size to the power of": growth.slope,
    }


def _with_hops(hop: str, line: int, size: int) -> bytes:
    count = size // (len(hop.format(99, 99)) + 2)
    hops = [hop.format(number // 250 % 250, number % 250) for number in range(count)]
    each = count * line // size or count
    lines = (", ".join(hops[start : start + each]) for start in range(0, count, each))
    return REQUEST[:-2] + "".join(f"X-Forwarded-For: {line}\r\n" for line in lines).encode() + b"\r\n"


def _ask(port: int, data: bytes) -> tuple[float, bytes]:
    """Seconds to the answer on a connection that stood already, and its status, if there was one."""
    with socket.create_connection((LOOPBACK, port), _PATIENCE_SECONDS) as sock:
        time.sleep(0.01)
        began = time.monotonic()
        # Refused in the middle, it may be reset.
        with suppress(OSError):
            sock.sendall(data)
        answer = b"".join(received(sock))
        return time.monotonic() - began, answer[9:12]
