"""Hostile clients: a little of each scenario of hostile.py, and what has a right and a wrong answer.

The bounds are wide, for the machine may be busy; benchmarks/faults_hostile.py has the real ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from kongrealip.preamble.tlv import crc32c
from tests.faults import hostile
from tests.faults.hostile import (
    HELD,
    REQUEST,
    SIGNATURE,
    Figures,
    holding,
    is_open,
    server,
    talk,
    version_1,
    version_2,
)
from tests.lab import LOOPS, client_tls
from tests.running import LOOPBACK, Seen, client, connect, exchange, free_port, received, wait_until

_PATIENCE_SECONDS = 20.0
_AT_ONCE = 8
LISTED, UNLISTED = "127.0.0.8", "127.0.0.7"
CLIENT = "203.0.113.7"

each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_loop
def test_half_open_connections_do_not_keep_the_good_from_their_answers(loop: str) -> None:
    figures = hostile.beside_good(loop, held=500, rate=100, idle_seconds=0.5, seconds=2)
    assert figures["good requests that failed"] == 0
    assert figures["held connections that were closed"] == 0


@pytest.mark.parametrize("kind", hostile.HELD_KINDS)
def test_a_held_connection_costs_little(kind: str) -> None:
    figures = hostile.memory("uvloop", kind, count=1000, rest=0.2)
    assert figures["KB each"] < 8


@pytest.mark.parametrize("drip", [hostile.drip, hostile.perhaps_drip])
@each_loop
def test_a_byte_now_and_then_does_not_extend_the_deadline(loop: str, drip: Callable[..., Figures]) -> None:
    figures = drip(loop, clients=50, deadline=1)
    assert figures["first close after the deadline, s"] > -0.1
    assert figures["last close after the deadline, s"] < 3
    assert figures["bytes that came back"] == 0
    assert figures["share of a core, %"] < 60


@each_loop
def test_what_can_become_no_preamble_is_closed_at_once_and_said_seldom(loop: str) -> None:
    figures = hostile.broken(loop, rate=100, seconds=2)
    assert figures["p99 to the close, ms"] < 3000
    assert figures["bytes that came back"] == 0
    assert figures["log lines a second"] < 25


@each_loop
def test_the_longest_preambles_are_read(loop: str) -> None:
    figures = hostile.longest(loop, count=50, pause=0.5)
    assert figures["not answered"] == 0
    assert figures["memory at the most, MB more"] < 32


@pytest.mark.parametrize("recursive", ["on", "off"])
@pytest.mark.parametrize("kind", list(hostile.FORWARDED)[::2])
def test_many_hops_take_time_in_proportion(kind: str, recursive: str) -> None:
    figures = hostile.forwarded("uvloop", kind, recursive, repeats=5)
    assert figures["time for 100 KB, ms, 0 where refused"] < 1000
    assert figures["not answered up to that"] == 0
    assert figures["grows with the size to the power of"] < 1.7


async def seen_over_tls(port: int, pieces: Callable[[bytes], Sequence[bytes]], source: str) -> Seen | None:
    """Ask over TLS. ``pieces`` makes of the ClientHello what is sent in its place, one after the other."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls().wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await asyncio.open_connection(LOOPBACK, port, local_addr=(source, 0))

    async def until_done(step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
                if reader.at_eof():
                    incoming.write_eof()

    try:
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        for piece in pieces(outgoing.read()):
            writer.write(piece)
            await asyncio.sleep(random.uniform(0, 0.003))
        await until_done(tls.do_handshake)
        tls.write(REQUEST)
        answer = b""
        while piece := await until_done(lambda: tls.read(65536)):
            answer += piece
        return _seen(answer)
    except OSError:
        return None
    finally:
        writer.close()


def _seen(answer: bytes) -> Seen | None:
    """What the application tells, or None where the connection was closed without a byte."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return json.loads(body) if head.startswith(b"HTTP/1.1 200 ") else {} if head else None


def failed_handshakes(loop: str, count: int = 1000) -> Figures:
    """Preamble and ClientHello, cut at one or two random points; the answer must be that preamble's."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def succeeds(port: int) -> bool:
        ip, client_port = f"203.0.113.{random.randrange(256)}", random.randrange(1, 65536)
        preamble = random.choice((version_1, version_2))(ip, client_port)
        async with gate, asyncio.timeout(_PATIENCE_SECONDS):
            seen = await seen_over_tls(port, lambda hello: _cut(preamble + hello), LOOPBACK)
        return seen is not None and (seen.get("client_ip"), seen.get("client_port")) == (ip, client_port)

    async def play(port: int) -> list[bool]:
        return await asyncio.gather(*(succeeds(port) for _ in range(count)))

    with server(loop, "ssl proxy_protocol", "--no-access-log") as program:
        return {"handshakes that failed": asyncio.run(play(program.port)).count(False)}


def _cut(data: bytes) -> list[bytes]:
    edges = [0, *sorted(random.sample(range(1, len(data)), random.choice((1, 2)))), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@each_loop
def test_preamble_and_client_hello_may_be_cut_anywhere(loop: str) -> None:
    assert failed_handshakes(loop, 60) == {"handshakes that failed": 0}


def half_open_cap(loop: str, cap: int = 100, good: int = 50) -> Figures:
    """One more than may be half-open, and good connections after that."""
    half = version_2()[:14]
    environ = {**HELD, "KONGREALIP_HALF_OPEN_CONNECTIONS": str(cap)}
    with (
        server(loop, "proxy_protocol", "--no-access-log", **environ) as program,
        holding(program.port, half, cap) as held,
    ):
        time.sleep(0.3)
        early = sum(not is_open(sock) for sock in held)
        with holding(program.port, half, 1) as newest:
            wait_until(lambda: not is_open(held[0]), "the end of the oldest")
            others = sum(not is_open(sock) for sock in (*held[1:], *newest))
            answers = [exchange(program.port, version_2() + REQUEST)[0] for _ in range(good)]
    return {
        "closed below the cap": early,
        "closed beside the oldest": others,
        "good requests that failed": sum(not answer.startswith(b"HTTP/1.1 200 ") for answer in answers),
    }


@each_loop
def test_the_oldest_half_open_connection_makes_room(loop: str) -> None:
    assert set(half_open_cap(loop, 20, 10).values()) == {0}


def connection_cap(loop: str, cap: int = 50, seconds: int = 4) -> Figures:
    """One more than may be connected: it waits in the queue until another goes."""
    environ = {"KONG_NGINX_EVENTS_WORKER_CONNECTIONS": str(cap)}
    with server(loop, "proxy_protocol", "--no-access-log", **environ) as program, ExitStack() as stack:
        opened = [stack.enter_context(ExitStack()) for _ in range(cap)]
        clients = [one.enter_context(client(program.port, preamble=version_2())) for one in opened]
        asked = sum(one.get()["method"] == "GET" for one in clients)
        waiting = stack.enter_context(connect(program.port))
        waiting.sendall(version_2() + REQUEST)
        for _ in range(seconds):
            time.sleep(1)
            asked += sum(one.get()["method"] == "GET" for one in clients)
        lines = program.stderr.count("worker_connections are not enough")
        waiting.setblocking(False)
        went_ahead = not is_open(waiting)
        waiting.settimeout(_PATIENCE_SECONDS)
        opened[0].close()
        began = time.monotonic()
        answer = b"".join(received(waiting))
        waited = time.monotonic() - began
    return {
        "answers that failed": cap * (seconds + 1) - asked + (not answer.startswith(b"HTTP/1.1 200 ")),
        "served beyond the cap": went_ahead,
        "log lines": lines,
        "served after another's end, s": waited,
    }


@each_loop
def test_what_is_more_than_the_cap_waits_in_the_queue(loop: str) -> None:
    figures = connection_cap(loop, cap=5, seconds=1)
    assert figures.pop("served after another's end, s") < 5
    assert figures == {"answers that failed": 0, "served beyond the cap": 0, "log lines": 1}


class Case(NamedTuple):
    """What a peer sends, and who the client then is: None where nothing is answered.

    ``strictly`` is that for a server that checks strictly, where it differs.
    """

    pieces: Sequence[bytes]
    client: str | None
    source: str = LISTED
    target: str = "plain"
    strictly: str | None = "the same"

    def due(self, strict: bool) -> str | None:
        return self.strictly if strict and self.strictly != "the same" else self.client


def _singly(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def _header(at: int, byte: int) -> bytes:
    """Version 2 with another byte in one place."""
    data = version_2()
    return data[:at] + bytes([byte]) + data[at + 1 :] + REQUEST


def _checked(difference: int) -> bytes:
    """Version 2 with a CRC32C that is wrong by so many."""
    data = version_2(tlvs=b"\x03\x00\x04" + bytes(4))
    return data[:-4] + (crc32c(data) ^ difference).to_bytes(4, "big") + REQUEST


# The server looks as soon as it has accepted.
SILENCE = b""
SHORT = b"GET / HTTP/1.0\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n"
V1, V2 = version_1(), version_2()
CASES = {
    "version 1": Case([V1 + REQUEST], CLIENT),
    "version 1, byte by byte": Case([SILENCE, *_singly(V1), SHORT], CLIENT),
    "version 1, its first byte apart": Case([SILENCE, V1[:1], V1[1:] + REQUEST], CLIENT),
    "version 2": Case([V2 + REQUEST], CLIENT),
    "version 2, byte by byte": Case([SILENCE, *_singly(V2), SHORT], CLIENT),
    "version 2, its signature apart": Case([SILENCE, V2[:12], V2[12:], REQUEST], CLIENT),
    "no preamble": Case([REQUEST], LISTED),
    "no preamble, after a silence": Case([SILENCE, SILENCE, REQUEST], LISTED),
    "no preamble, byte by byte": Case([SILENCE, *_singly(SHORT)], LISTED),
    "P of POST": Case([SILENCE, POST[:1], POST[1:], b"he", b"llo"], LISTED),
    "P of POST, at once": Case([POST[:1], POST[1:] + b"hello"], LISTED),
    "PR of PROPFIND": Case([SILENCE, b"PR", b"OP", b"FIND / HTTP/1.0\r\n\r\n"], LISTED),
    "line end in front": Case([SILENCE, b"\r\n", SHORT], LISTED),
    "two line ends in front": Case([SILENCE, b"\r", b"\n\r\n", SHORT], LISTED),
    "a body like a preamble": Case([SILENCE, POST, V1[:5]], LISTED),
    "TLS": Case([], LISTED, target="tls"),
    "TLS, behind version 1": Case([SILENCE, V1], CLIENT, target="tls"),
    "TLS, behind version 2": Case([SILENCE, *_singly(V2)], CLIENT, target="tls"),
    "Unix socket, no preamble": Case([REQUEST], "unix:", target="unix", strictly=None),
    "Unix socket, P of POST": Case([b"P", POST[1:] + b"hello"], "unix:", target="unix", strictly=None),
    "Unix socket, version 1": Case([V1 + REQUEST], CLIENT, target="unix"),
    "Unix socket, version 2, byte by byte": Case([*_singly(V2), SHORT], CLIENT, target="unix"),
    "junk behind PROXY": Case([b"PROXY junk" + REQUEST], None),
    "junk behind PROXY, apart": Case([SILENCE, b"PROXY ", b"junk\r\n" + REQUEST], None),
    "junk behind the signature": Case([SIGNATURE + b"junk" + REQUEST], None),
    "junk behind the signature, apart": Case([SILENCE, SIGNATURE, b"junk" + REQUEST], None),
    "unlisted, version 1": Case([V1 + REQUEST], CLIENT, UNLISTED),
    "unlisted, version 2, byte by byte": Case([SILENCE, *_singly(V2), SHORT], CLIENT, UNLISTED),
    "unlisted, no preamble": Case([REQUEST], None, UNLISTED),
    "unlisted, P of POST": Case([SILENCE, b"P", POST[1:] + b"hello"], None, UNLISTED),
    "unlisted, line end in front": Case([b"\r\n" + REQUEST], None, UNLISTED),
    "unlisted, TLS": Case([], None, UNLISTED, "tls"),
    "a checksum": Case([_checked(0)], CLIENT),
    "a wrong checksum": Case([_checked(1)], CLIENT, strictly=None),
    "an undefined command": Case([_header(12, 0x27)], LISTED, strictly=None),
    "an undefined family": Case([_header(13, 0x71)], LISTED, strictly=None),
    "LOCAL": Case([_header(12, 0x20)], LISTED),
    "leading zeros": Case([V1.replace(b"113.7", b"113.007") + REQUEST], CLIENT, strictly=None),
    "IPv6 as TCP4": Case([b"PROXY TCP4 ::1 ::2 1 2\r\n" + REQUEST], "::1", strictly=None),
}
_ENVIRONS = {
    False: {"KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": f"{LISTED}/32,unix:"},
    True: {
        "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": f"{LISTED}/32",
        "KONGREALIP_PROXY_PROTOCOL_STRICT": "on",
    },
}


def wrong_answers(loop: str, strict: bool) -> list[str]:
    """The cases that did not end as they should, all played at the same time."""
    with TemporaryDirectory() as folder:
        targets = {"plain": free_port(), "tls": free_port()}
        path = f"{folder}/unix.sock"
        environ = {
            "KONG_TRUSTED_IPS": "127.0.0.0/8,unix:",
            "KONG_PROXY_LISTEN": "{}:{plain} proxy_protocol, {}:{tls} ssl proxy_protocol".format(
                *[LOOPBACK] * 2, **targets
            ),
        }
        arguments = "--no-access-log", "--uds", f"{path} proxy_protocol"
        with server(loop, "", *arguments, **environ, **_ENVIRONS[strict]) as program:
            clients = asyncio.run(_clients({**targets, "unix": path}))
            log = program.stderr
    wrong = [f"{name}: {clients[name]}" for name, case in CASES.items() if clients[name] != case.due(strict)]
    return wrong + ["a traceback"] * ("Traceback" in log)


async def _clients(targets: dict[str, int | str]) -> dict[str, str | None]:
    found = await asyncio.gather(*(_client(case, targets[case.target]) for case in CASES.values()))
    return dict(zip(CASES, found, strict=True))


async def _client(case: Case, target: int | str) -> str | None:
    if case.target == "tls":
        assert isinstance(target, int)
        seen = await seen_over_tls(target, lambda hello: [*case.pieces, hello], case.source)
    else:
        ended = await talk(target, *case.pieces, pause=0.06, source=case.source)
        if not ended.ended.done():
            return "no end"
        seen = _seen(bytes(ended.received))
    return None if seen is None else seen.get("client_ip", "an error")


@pytest.mark.parametrize("strict", [False, True])
@each_loop
def test_who_may_come_without_a_preamble(loop: str, strict: bool) -> None:
    assert wrong_answers(loop, strict) == []
