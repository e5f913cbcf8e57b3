"""What passes through a relay is what was sent: bytes, ends, resets and pressure, and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import random
import resource
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kongrealip.relay import connecting, flow, upstreams
from kongrealip.relay.connecting import Connecting
from kongrealip.relay.deadlines import Deadlines
from kongrealip.relay.pipes import Pipes
from kongrealip.relay.readiness import CAN_READ, Readiness
from kongrealip.server import refusals
from tests.lab import LOOPS
from tests.relay_lab import (
    Echo,
    Ends,
    Load,
    RelayLab,
    Upstream,
    descriptors,
    exactly,
    is_reset,
    reset,
    soon,
    to_the_end,
)
from tests.running import LOOPBACK, clean_environ, free_port, running, wait_until

MEGABYTE = 1 << 20
STRANGER = "127.0.0.9"
# What the kernel may hold of a connection on loopback, in both sockets, twice, and much to spare.
MOST_IN_FLIGHT = 96 * MEGABYTE
V2 = {"KONGREALIP_SEND_PROXY": "v2"}


@pytest.fixture(autouse=True)
def _all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LINES_A_SECOND", 1000)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=LOOPS)
def shared(request: pytest.FixtureRequest) -> Iterator[RelayLab]:
    lab = RelayLab()
    lab.add_upstream()
    lab.listen()
    with lab.running(request.param):
        yield lab


@pytest.fixture
def lab(shared: RelayLab) -> Iterator[RelayLab]:
    """One upstream, no preamble."""
    yield shared
    shared.clean()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def both_ways(ends: Ends, upward: bool) -> Ends:
    """The two in the order of sender and receiver."""
    return ends if upward else Ends(ends.upstream, ends.client)


UPWARD = pytest.mark.parametrize("upward", [True, False], ids=["upward", "downward"])


# Ends


@UPWARD
def test_half_close_and_data_after_it(lab: RelayLab, upward: bool) -> None:
    first, second = both_ways(lab.ends(), upward)
    first.sendall(b"all that I have")
    first.shutdown(socket.SHUT_WR)
    assert to_the_end(second) == b"all that I have"
    for piece in (b"then", b"hear" * 50_000, b"me"):
        second.sendall(piece)
        assert exactly(first, len(piece)) == piece
    second.shutdown(socket.SHUT_WR)
    assert to_the_end(first) == b""
    soon(lambda: not lab.relay.open, "the pair to be gone")


def test_both_end_at_once(lab: RelayLab) -> None:
    ends = lab.ends()
    with lab.held():
        for sock in ends:
            sock.sendall(b"last words")
            sock.shutdown(socket.SHUT_WR)
    assert [to_the_end(sock) for sock in ends] == [b"last words"] * 2
    soon(lambda: not lab.relay.open, "the pair to be gone")


def test_who_has_ended_is_not_asked_again(lab: RelayLab) -> None:
    """It was to go on, and came to its end before that: to tell it twice would be an error, and a reset."""
    client, upstream = lab.ends()
    client.shutdown(socket.SHUT_WR)
    assert to_the_end(upstream) == b""
    (pair,) = lab.relay.pairs
    with lab.held():
        upstream.sendall(b"an answer")
        upstream.close()
        lab.call_later(pair.from_client._go_on)
    assert to_the_end(client) == b"an answer"


@UPWARD
def test_half_close_while_the_other_does_not_read(lab: RelayLab, upward: bool) -> None:
    """What was said before the end is not overtaken by it, however long it has to wait."""
    first, second = both_ways(lab.ends(), upward)
    sent = send_until_stopped(first)
    first.shutdown(socket.SHUT_WR)
    second.sendall(b"slowly")
    assert exactly(first, 6) == b"slowly"
    assert len(to_the_end(second)) == sent
    second.sendall(b"now I have it")
    second.shutdown(socket.SHUT_WR)
    assert to_the_end(first) == b"now I have it"


@UPWARD
@pytest.mark.parametrize("before", [b"", b"some words"])
def test_a_reset_arrives_as_a_reset(lab: RelayLab, upward: bool, before: bytes) -> None:
    first, second = both_ways(lab.ends(), upward)
    if before:
        first.sendall(before)
        assert exactly(second, len(before)) == before
    reset(first)
    assert is_reset(second)
    soon(lambda: not lab.relay.open, "the pair to be gone")


@UPWARD
def test_a_reset_after_half_close(lab: RelayLab, upward: bool) -> None:
    """One that has said all and then goes for good: nobody need work for it any more."""
    first, second = both_ways(lab.ends(), upward)
    first.sendall(b"a question")
    first.shutdown(socket.SHUT_WR)
    assert to_the_end(second) == b"a question"
    reset(first)
    # The end has been read already, so only an error can tell.
    soon(lambda: not lab.relay.open, "the reset to be noticed")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_until_stopped(second)


@UPWARD
def test_an_end_and_a_reset_at_once(lab: RelayLab, upward: bool) -> None:
    """To a read it looks like an end and no more, and nothing is told of it again."""
    first, second = both_ways(lab.ends(), upward)
    with lab.held():
        first.sendall(b"a question")
        first.shutdown(socket.SHUT_WR)
        reset(first)
    soon(lambda: not lab.relay.open, "the reset to be noticed")
    with contextlib.suppress(ConnectionResetError):
        assert to_the_end(second) in (b"a question", b"")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_until_stopped(second)


@UPWARD
def test_a_reset_of_one_that_waits_for_the_end(lab: RelayLab, upward: bool) -> None:
    """The other has said all, and this one goes for good in the middle of its answer."""
    first, second = both_ways(lab.ends(), upward)
    second.shutdown(socket.SHUT_WR)
    assert to_the_end(first) == b""
    first.sendall(b"the ans")
    assert exactly(second, 7) == b"the ans"
    reset(first)
    assert is_reset(second)


@UPWARD
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_reset_while_nobody_reads(lab: RelayLab, upward: bool, who: str) -> None:
    sender, receiver = both_ways(lab.ends(), upward)
    send_until_stopped(sender)
    if who == "sender":
        reset(sender)
        assert is_reset(receiver)
    else:
        reset(receiver)
        assert is_reset(sender)
    soon(lambda: not lab.relay.open, "the pair to be gone")


@UPWARD
def test_a_reset_in_both_directions_at_once(lab: RelayLab, upward: bool) -> None:
    ends = both_ways(lab.ends(), upward)
    with lab.held():
        for sock in ends:
            reset(sock)
    soon(lambda: not lab.relay.open, "the pair to be gone")


def test_a_client_that_leaves_at_once(lab: RelayLab) -> None:
    with lab.held():
        lab.connect().close()
    assert to_the_end(lab.upstream.accept()) == b""


@pytest.mark.parametrize("size", [1, 32768, 100_000, 5 * MEGABYTE])
def test_a_client_that_sends_and_leaves_at_once(lab: RelayLab, size: int, pool: ThreadPoolExecutor) -> None:
    sending = pool.submit(send_and_leave, lab.connect(), size)
    assert Load(0, size).receive(lab.upstream.accept()) == sending.result()


def send_and_leave(client: socket.socket, size: int) -> str:
    with client:
        return Load(size, size).send(client, half_close=False)


def test_an_upstream_that_closes_at_once(lab: RelayLab) -> None:
    client = lab.connect()
    lab.upstream.accept().close()
    assert to_the_end(client) == b""


def test_an_upstream_that_speaks_first(lab: RelayLab) -> None:
    client, upstream = lab.ends()
    upstream.sendall(b"220 ready\r\n")
    assert exactly(client, 11) == b"220 ready\r\n"


def test_an_upstream_that_speaks_and_closes_at_once(lab: RelayLab) -> None:
    client = lab.connect()
    upstream = lab.upstream.accept()
    with lab.held():
        upstream.sendall(b"too many connections")
        upstream.close()
    assert to_the_end(client) == b"too many connections"


def test_a_client_that_is_reset_in_the_queue(lab: RelayLab) -> None:
    """Of those that leave before they are seen no trace is left."""
    with lab.held():
        for _ in range(20):
            reset(lab.connect())
    client, upstream = lab.ends()
    client.sendall(b"x")
    while not exactly(upstream, 1):
        upstream = lab.upstream.accept()
    client.close()
    assert to_the_end(upstream) == b""


# Bytes


@pytest.mark.parametrize("pipes", [None, 0, 1], ids=["spliced", "copied", "one pipe"])
def test_all_sizes_both_ways_at_once(loop: str, pipes: int | None, pool: ThreadPoolExecutor) -> None:
    """Small and large pieces in any order, of three connections, read and written with pauses."""
    with started(loop, pipes) as lab:
        loads = [
            (one, Load(seed * 2 + way, 3 * MEGABYTE, (1, MEGABYTE // 2), 0.003))
            for seed in range(3)
            for way, one in enumerate(opposite(lab.ends()))
        ]
        sent = [pool.submit(load.send, sender) for (sender, _), load in loads]
        came = [threaded(load.receive, receiver) for (_, receiver), load in loads]
        assert [one() for one in came] == [one.result() for one in sent]
        soon(lambda: not lab.relay.open, "the pairs to be gone")
        assert lab.relay.pipes._lent == 0


@contextlib.contextmanager
def started(
    loop: str, pipes: int | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[RelayLab]:
    """One upstream and a listener, and as many pipes as there may be."""
    lab = RelayLab(environ or {})
    lab.add_upstream()
    lab.listen()
    with lab.running(loop):
        if pipes is not None:
            lab.relay.pipes = Pipes(pipes)
        yield lab


def opposite(ends: Ends) -> list[Ends]:
    return [both_ways(ends, True), both_ways(ends, False)]


def threaded(function: Callable[[socket.socket], str], sock: socket.socket) -> Callable[[], str]:
    """Run it aside: what it returns, when it has come to an end."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(function(sock)))
    thread.start()

    def answer() -> str:
        thread.join()
        return answers[0]

    return answer


@UPWARD
def test_single_bytes(lab: RelayLab, upward: bool) -> None:
    first, second = both_ways(lab.ends(), upward)
    data = bytes(range(256)) * 8
    for number in range(len(data)):
        first.sendall(data[number : number + 1])
    first.shutdown(socket.SHUT_WR)
    assert to_the_end(second) == data


@UPWARD
def test_small_after_large_after_small(lab: RelayLab, upward: bool, pool: ThreadPoolExecutor) -> None:
    """From copying to splicing and back, and not a byte out of its turn."""
    first, second = both_ways(lab.ends(), upward)
    for size in (1, 100, 32768, 5, 2 * MEGABYTE, 3, 32767, 32769, 65536, MEGABYTE, 16384, 16383, 1, 300_000):
        data = random.Random(size).randbytes(size)
        sending = pool.submit(first.sendall, data)
        assert exactly(second, size) == data
        sending.result()
        # And the other way, meanwhile.
        second.sendall(b"ack")
        assert exactly(first, 3) == b"ack"


def test_neither_end_waits_for_more_to_send(lab: RelayLab) -> None:
    """Who writes small pieces has decided on it: they are not collected until the last is acknowledged."""
    lab.ends()
    (pair,) = lab.relay.pairs
    for end in (pair.client, pair.upstream):
        assert isinstance(end, socket.socket)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@UPWARD
@pytest.mark.parametrize("before", [b"", b"x" * 3 * MEGABYTE], ids=["copied", "spliced"])
@pytest.mark.parametrize("at_once", [True, False])
def test_urgent_data_stops_nothing(
    lab: RelayLab, upward: bool, before: bytes, at_once: bool, pool: ThreadPoolExecutor
) -> None:
    """A read ends in front of an urgent byte, as telnet and FTP send it, though more is there."""
    first, second = both_ways(lab.ends(), upward)
    sending = pool.submit(first.sendall, before)
    assert exactly(second, len(before)) == before
    sending.result()
    with lab.held() if at_once else contextlib.nullcontext():
        first.sendall(b"before")
        first.send(b"!", socket.MSG_OOB)
        first.sendall(b"behind")
    got = exactly(second, 12)
    while got.replace(b"!", b"") != b"beforebehind":
        got += exactly(second, 1)
    first.shutdown(socket.SHUT_WR)
    assert to_the_end(second) == b""


def test_urgent_data_before_there_is_an_upstream(lab: RelayLab) -> None:
    with lab.held():
        client = lab.connect()
        client.sendall(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"behind")
    got = exactly(lab.upstream.accept(), 12)
    assert got.replace(b"!", b"") in (b"beforebehind", b"beforebehin")


def test_urgent_data_and_the_end(lab: RelayLab, pool: ThreadPoolExecutor) -> None:
    """What stands behind the urgent byte is not lost with the end."""
    client, upstream = lab.ends()
    before = b"x" * 3 * MEGABYTE
    sending = pool.submit(client.sendall, before)
    assert exactly(upstream, len(before)) == before
    sending.result()
    with lab.held():
        client.sendall(b"y" * 40_000)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"z" * 40_000)
        client.shutdown(socket.SHUT_WR)
    assert to_the_end(upstream).replace(b"!", b"") == b"y" * 40_000 + b"z" * 40_000


# Pressure


def send_until_stopped(sock: socket.socket) -> int:
    """Send as long as somebody takes it, and return how much that was."""
    sent = 0
    block = bytes(MEGABYTE)
    sock.setblocking(False)
    # Not writable for a while is stopped; should it go on later, nothing is wrong.
    while select.select([], [sock], [], 0.05)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(block)
        assert sent < MOST_IN_FLIGHT, "nobody reads, and nobody says so"
    sock.settimeout(15)
    return sent


def resident() -> int:
    """Bytes of memory that this process has, kernel buffers aside."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@UPWARD
@pytest.mark.parametrize("pipes", [None, 0], ids=["spliced", "copied"])
def test_who_does_not_read_stops_the_sender(
    loop: str, upward: bool, pipes: int | None, pool: ThreadPoolExecutor
) -> None:
    with started(loop, pipes) as lab:
        sender, receiver = both_ways(lab.ends(), upward)
        warm_up(sender, receiver, pool)
        before = resident()
        sent = send_until_stopped(sender)
        assert resident() - before < 4 * MEGABYTE
        # The other direction does not know of it.
        receiver.sendall(b"meanwhile")
        assert exactly(sender, 9) == b"meanwhile"
        load = Load(1, 24 * MEGABYTE)
        sending = pool.submit(load.send, sender)
        assert exactly_zeros(receiver, sent)
        assert load.receive(receiver) == sending.result()
        assert resident() - before < 16 * MEGABYTE


def warm_up(sender: socket.socket, receiver: socket.socket, pool: ThreadPoolExecutor) -> None:
    """Once through all that takes memory."""
    sending = pool.submit(sender.sendall, bytes(4 * MEGABYTE))
    assert exactly_zeros(receiver, 4 * MEGABYTE)
    sending.result()


def exactly_zeros(sock: socket.socket, size: int) -> bool:
    while size:
        data = sock.recv(min(size, MEGABYTE))
        size -= len(data)
        if data.strip(b"\0"):
            return False
    return True


@UPWARD
@pytest.mark.parametrize("pipes", [None, 0], ids=["spliced", "copied"])
def test_who_does_not_read_costs_no_turns(loop: str, upward: bool, pipes: int | None) -> None:
    """What comes while it cannot go on is not told, and does not so much as wake the loop."""
    with started(loop, pipes) as lab:
        sender, _ = both_ways(lab.ends(), upward)
        (pair,) = lab.relay.pairs
        flow_of_sender = pair.from_client if upward else pair.from_upstream
        while not flow_of_sender.is_blocked:
            sender.sendall(bytes(65536))
            lab.wait_for_rest()
        # The first may be told, to learn that nobody wants to hear.
        sender.sendall(b"x")
        lab.wait_for_rest()
        with lab.held():
            for _ in range(10):
                sender.sendall(b"x")
            assert select.select([lab.relay.readiness._epoll.fileno()], [], [], 0.05)[0] == []


@pytest.mark.parametrize("most", [0, 1])
def test_readers_that_hold_all_the_pipes(loop: str, most: int, pool: ThreadPoolExecutor) -> None:
    """Who does not read may keep a pipe, and others are copied: they come through all the same."""
    with started(loop, most) as lab:
        stopped = [lab.ends() for _ in range(3)]
        sent = [send_until_stopped(ends.client) for ends in stopped]
        load = Load(2, 8 * MEGABYTE)
        client, upstream = lab.ends()
        sending = pool.submit(load.send, client)
        assert load.receive(upstream) == sending.result()
        for ends, size in zip(stopped, sent, strict=True):
            ends.client.shutdown(socket.SHUT_WR)
            assert len(to_the_end(ends.upstream)) == size


def test_a_pipe_with_something_in_it_is_never_lent_again(loop: str, pool: ThreadPoolExecutor) -> None:
    """Those of resets are closed; otherwise another client would get what was in there."""
    with started(loop, 2) as lab:
        for _ in range(2):
            ends = [lab.ends() for _ in range(3)]
            for client, _ in ends:
                send_until_stopped(client)
            for client, _ in ends:
                reset(client)
            for _, upstream in ends:
                assert is_reset(upstream)
            client, upstream = lab.ends()
            load = Load(3, 4 * MEGABYTE)
            sending = pool.submit(load.send, client)
            assert load.receive(upstream) == sending.result()
            lab.clean()
        assert lab.relay.pipes._lent == 0


def test_others_have_their_turn(lab: RelayLab) -> None:
    """However fast one sends, it goes on once in a turn, and not once more for each event."""
    again = lab.relay.readiness._again
    longest = 0
    entered = flow.Flow._go_on

    def go_on(one: flow.Flow) -> None:
        nonlocal longest
        entered(one)
        longest = max(longest, len(lab.relay.readiness._again))

    client, upstream = lab.ends()
    assert len(again) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow.Flow, "_go_on", go_on)
        # More reads than there are in a turn, each of them told anew.
        patch.setattr(flow, "_TURNS", 1)
        patch.setattr(flow, "_CHUNK", 64)
        patch.setattr(flow.Flow, "_splice", lambda one: one.pair.relay.readiness.again(one._go_on))
        with lab.held():
            client.sendall(b"x" * 64)
        for _ in range(20):
            with lab.held():
                client.sendall(b"x" * 64)
    assert longest <= 1
    assert upstream is not None


# Whom it is for


def test_the_allow_list(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    environ = {"KONG_TRUSTED_IPS": f"{LOOPBACK}/32", "KONGREALIP_ALLOW": f"203.0.113.0/24, {STRANGER}/32"}
    with started(loop, environ=environ) as lab, caplog.at_level(logging.WARNING, "kongrealip.server"):
        client, upstream = lab.ends(source=STRANGER)
        client.sendall(b"x")
        assert exactly(upstream, 1) == b"x"
        refused = lab.connect(source="127.0.0.8")
        assert to_the_end(refused) == b""
        assert lab.upstream.has_none()
        lab.wait_for_count("refused", "not_allowed")
        assert "refused 127.0.0.8:" in caplog.text
        assert "the client 127.0.0.8 is not in the allow list" in caplog.text


@pytest.mark.parametrize(
    ("peer", "source_ip", "is_allowed"),
    [
        (LOOPBACK, "203.0.113.7", True),
        (LOOPBACK, "203.0.114.7", False),
        # Nobody says who it is for, so it is for the balancer.
        (LOOPBACK, "UNKNOWN", False),
        # Who is not trusted is itself, whatever it says.
        (STRANGER, "203.0.113.7", False),
        ("127.0.0.7", "203.0.113.7", True),
        ("127.0.0.7", "203.0.114.7", True),
    ],
)
def test_the_client_is_who_has_to_be_allowed(
    allowing: RelayLab, peer: str, source_ip: str, is_allowed: bool
) -> None:
    line = "UNKNOWN" if source_ip == "UNKNOWN" else f"TCP4 {source_ip} 198.51.100.9 1 2"
    client = allowing.connect(source=peer)
    client.sendall(f"PROXY {line}\r\n".encode())
    client.shutdown(socket.SHUT_WR)
    if is_allowed:
        upstream = allowing.upstream.accept()
        assert to_the_end(upstream) == b""
        upstream.close()
    assert to_the_end(client) == b""
    assert allowing.upstream.has_none()
    allowing.clean()


@pytest.fixture(scope="module", params=LOOPS)
def allowing(request: pytest.FixtureRequest) -> Iterator[RelayLab]:
    environ = {
        "KONG_TRUSTED_IPS": f"{LOOPBACK}/32",
        "KONGREALIP_ALLOW": "203.0.113.0/24, 127.0.0.7/32",
    }
    lab = RelayLab(environ)
    lab.add_upstream()
    lab.listen("proxy_protocol")
    with lab.running(request.param):
        yield lab


# Where to


@pytest.fixture
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "REST_SECONDS", 0.2)


def nobody() -> str:
    """An address that refuses."""
    return f"{LOOPBACK}:{free_port()}"


def test_round_robin(loop: str) -> None:
    lab = RelayLab()
    several = [lab.add_upstream() for _ in range(3)]
    lab.listen()
    with lab.running(loop):
        order = []
        for _ in range(9):
            client = lab.connect()
            client.sendall(b"x")
            order.append(who_got_it(several))
        assert sorted(order[:3]) == [0, 1, 2]
        assert order == order[:3] * 3


def who_got_it(several: list[Upstream]) -> int:
    ready = select.select([one.sock for one in several], [], [], 10)[0]
    (number,) = (number for number, one in enumerate(several) if one.sock in ready)
    assert exactly(several[number].accept(), 1) == b"x"
    return number


@pytest.mark.usefixtures("short_rest")
def test_one_that_refuses_rests_and_comes_back(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    lab = RelayLab()
    name = nobody()
    lab.add_name(name)
    well = lab.add_upstream()
    lab.listen()
    with lab.running(loop), caplog.at_level(logging.INFO, "kongrealip.relay"):
        for _ in range(8):
            ask(lab, well)
        # While it rests nobody is sent there; one time is enough to know.
        assert lab.counted("upstream_failures", name) <= 2
        assert lab.counted("upstream_connections", well.name) == 8
        assert f"upstream {name}: Connection refused, rests for 0.2 s" in caplog.text
        with Upstream.at(name) as recovered:
            wait_until(lambda: asks(lab, [well, recovered]) is recovered, "the one that rested")
            assert f"upstream {name} can be reached again" in caplog.text
            taken = {asks(lab, [well, recovered]) for _ in range(2)}
            assert taken == {well, recovered}


def ask(lab: RelayLab, upstream: Upstream) -> None:
    client = lab.connect()
    client.sendall(b"hello")
    accepted = upstream.accept()
    assert exactly(accepted, 5) == b"hello"
    accepted.sendall(b"there")
    assert exactly(client, 5) == b"there"
    client.close()
    accepted.close()


def asks(lab: RelayLab, several: list[Upstream]) -> Upstream:
    client = lab.connect()
    client.sendall(b"x")
    number = who_got_it(several)
    client.close()
    return several[number]


@pytest.mark.usefixtures("short_rest")
def test_nobody_is_there(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client is closed. All that rest are tried for each client all the same."""
    lab = RelayLab()
    names = [nobody() for _ in range(3)]
    for name in names:
        lab.add_name(name)
    lab.listen()
    with lab.running(loop), caplog.at_level(logging.WARNING, "kongrealip.server"):
        for number in (1, 2):
            client = lab.connect()
            assert to_the_end(client) == b""
            lab.wait_for_count("refused", "no_upstream", count=number)
            assert [lab.counted("upstream_failures", name) for name in names] == [number] * 3
        assert "no upstream could be reached: Connection refused" in caplog.text
        assert not lab.relay.open


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """An address that does not answer: the queue of who listens there is full."""
    with contextlib.ExitStack() as stack:
        silent = Upstream(backlog=0)
        stack.callback(silent.close)
        while True:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex((LOOPBACK, silent.port)) == errno.EINPROGRESS
            if not select.select([], [filler], [], 0.1)[1]:
                break
        yield silent.name


def test_one_that_does_not_answer(loop: str) -> None:
    """What the client has sent in the meantime goes to the next, whole."""
    with deaf() as name:
        lab = RelayLab({**V2, "KONGREALIP_CONNECT_TIMEOUT": "200ms"})
        well = lab.add_upstream()
        # The second in the list is the first to be tried.
        lab.add_name(name)
        lab.listen()
        with lab.running(loop):
            load = Load(1, 100_000)
            client = lab.connect()
            digest = load.send(client)
            accepted = well.accept()
            assert exactly(accepted, 28).startswith(b"\r\n\r\n\0")
            assert load.receive(accepted) == digest
            lab.wait_for_count("upstream_failures", name)


def test_a_client_that_leaves_while_nobody_answers(loop: str) -> None:
    """A reset ends the attempt; one that only closes may have a request on its way."""
    with deaf() as name:
        lab = RelayLab({"KONGREALIP_CONNECT_TIMEOUT": "1h"})
        lab.add_name(name)
        lab.listen()
        with lab.running(loop):
            before = lab.descriptors()
            clients = [lab.connect() for _ in range(5)]
            soon(lambda: len(lab.relay.connecting) == 5, "all to be connecting")
            clients[0].close()
            for client in clients[1:]:
                client.sendall(b"x")
                reset(client)
            soon(lambda: len(lab.relay.connecting) == 1, "those that were reset to be gone")
            (left,) = lab.relay.connecting._waiting
            lab.call(left.give_up)
            assert lab.descriptors() <= before


def test_deadlines_have_one_timer() -> None:
    """Also where what times out enters again."""

    class Loop:
        now = 0.0
        timers: list[tuple[float, Callable[[], None]]] = []  # noqa: RUF012

        def time(self) -> float:
            return self.now

        def call_at(self, when: float, call: Callable[[], None]) -> object:
            self.timers.append((when, call))
            return self

        def run(self, until: float) -> None:
            while self.timers and min(self.timers, key=lambda one: one[0])[0] <= until:
                first = min(self.timers, key=lambda one: one[0])
                self.timers.remove(first)
                self.now = first[0]
                first[1]()

    class One:
        deadline = 0.0
        times = 0

        def time_out(self) -> None:
            self.times += 1
            waiting.enter(self)

    loop: Any = Loop()
    waiting: Deadlines[One] = Deadlines(loop, 5.0)
    everybody = [One() for _ in range(10)]
    for number, one in enumerate(everybody):
        loop.now = number / 10
        waiting.enter(one)
    loop.run(100.0)
    assert {one.times for one in everybody} == {19, 20}
    assert len(loop.timers) == 1


# Unix sockets


@pytest.fixture(params=LOOPS)
def unix(request: pytest.FixtureRequest) -> Iterator[RelayLab]:
    lab = RelayLab()
    lab.add_unix_upstream()
    lab.listen()
    with lab.running(request.param):
        yield lab


def test_an_upstream_on_a_unix_socket(unix: RelayLab, pool: ThreadPoolExecutor) -> None:
    ends = unix.ends()
    loads = [(one, Load(number, 4 * MEGABYTE, (1, MEGABYTE))) for number, one in enumerate(opposite(ends))]
    sent = [pool.submit(load.send, sender) for (sender, _), load in loads]
    came = [pool.submit(load.receive, receiver) for (_, receiver), load in loads]
    assert [one.result() for one in came] == [one.result() for one in sent]
    first, second = unix.ends()
    first.shutdown(socket.SHUT_WR)
    assert to_the_end(second) == b""
    second.sendall(b"after it")
    second.close()
    assert to_the_end(first) == b"after it"


def test_pressure_over_a_unix_socket(unix: RelayLab) -> None:
    for upward in (True, False):
        sender, receiver = both_ways(unix.ends(), upward)
        sent = send_until_stopped(sender)
        sender.shutdown(socket.SHUT_WR)
        assert len(to_the_end(receiver)) == sent


def test_an_upstream_on_a_unix_socket_that_speaks_and_closes_at_once(
    unix: RelayLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a socket tells a close like a failure, and yet there is something to read."""
    connect = Connecting._connect

    def connect_and_be_greeted(one: Connecting, target: upstreams.Target) -> int:
        number = connect(one, target)
        accepted = unix.upstream.accept()
        accepted.sendall(b"too busy")
        accepted.close()
        return number

    monkeypatch.setattr(Connecting, "_connect", connect_and_be_greeted)
    assert to_the_end(unix.connect()) == b"too busy"
    assert unix.counted("upstream_failures", unix.upstream.name) == 0


def test_a_unix_socket_that_nobody_listens_on(loop: str) -> None:
    lab = RelayLab()
    well = lab.add_upstream()
    lab.add_name("unix:/no/such/socket")
    lab.listen()
    with lab.running(loop):
        ask(lab, well)
        ask(lab, well)
        assert lab.counted("upstream_failures", "unix:/no/such/socket") == 1


# Idle


def test_idle(loop: str) -> None:
    with started(loop, environ={"KONGREALIP_IDLE_TIMEOUT": "100ms"}) as lab:
        client, upstream = lab.ends()
        upstream.sendall(b"x")
        assert exactly(client, 1) == b"x"
        assert to_the_end(client) == to_the_end(upstream) == b""
        lab.wait_for_count("idle_closed")
        # Half-closed ones as well, and those that are stopped.
        client, upstream = lab.ends()
        client.shutdown(socket.SHUT_WR)
        assert to_the_end(upstream) == b""
        assert to_the_end(client) == b""
        lab.wait_for_count("idle_closed", count=2)
        assert not lab.relay.open


@UPWARD
@pytest.mark.parametrize("size", [1, 100_000, 3 * MEGABYTE])
def test_what_moves_in_one_direction_is_not_idle(
    lab: RelayLab, upward: bool, size: int, pool: ThreadPoolExecutor
) -> None:
    """The looks are taken by hand: ten in a row without anything are what it takes."""
    sender, receiver = both_ways(lab.ends(), upward)
    for _ in range(3):
        for _ in range(9):
            lab.call(lab.relay._look_for_idle)
        sending = pool.submit(sender.sendall, b"x" * size)
        assert exactly(receiver, size) == b"x" * size
        sending.result()
        lab.wait_for_rest()
    for _ in range(9):
        lab.call(lab.relay._look_for_idle)
    assert lab.relay.open
    for _ in range(2):
        lab.call(lab.relay._look_for_idle)
    assert not lab.relay.open
    assert to_the_end(sender) == to_the_end(receiver) == b""


# Descriptors


async def own_token(port: int, number: int) -> bool:
    """Whether a connection gets its own bytes back, and the end. Each third leaves in the middle."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    token = hashlib.sha256(str(number).encode()).digest() * (1 if number % 7 else 3000)
    try:
        writer.write(token)
        if number % 3 == 0:
            writer.transport.abort()
            return True
        writer.write_eof()
        return await reader.read() == token
    finally:
        writer.close()


async def many(port: int, numbers: range, at_once: int) -> set[bool]:
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> bool:
        async with gate:
            return await own_token(port, number)

    async with asyncio.timeout(30):
        return set(await asyncio.gather(*map(one, numbers)))


def test_2000_connections_leave_nothing_and_are_not_mixed_up(loop: str) -> None:
    """A descriptor's number is another connection's a moment later; an upstream refuses now and then."""
    with Echo() as echo:
        lab = RelayLab()
        lab.add_name(echo.name)
        lab.listen()
        with lab.running(loop):
            asyncio.run(many(lab.port, range(100), 10))
            soon(lambda: not lab.relay.open, "the first to be gone")
            before = lab.descriptors()
            assert asyncio.run(many(lab.port, range(2000), 60)) == {True}
            soon(lambda: not lab.relay.open, "all to be gone")
            assert lab.descriptors() <= before
            assert not lab.relay.readiness._handlers


def test_what_befell_a_descriptor_is_not_told_to_the_next() -> None:
    """Events come in batches, and within one a number may be closed and opened again."""
    told: list[int] = []

    async def watch() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        pairs = [socket.socketpair() for _ in range(2)]
        ends = [one for one, _ in pairs]
        successor, far_end = socket.socketpair()

        def replace(mine: int, events: int) -> None:
            """Whoever comes first closes the other, whose number is at once somebody else's."""
            nonlocal successor
            other = ends[1 - mine]
            if other.fileno() < 0 or not events & CAN_READ or ends[mine].fileno() < 0:
                return
            number = other.fileno()
            readiness.forget(number)
            other.close()
            if successor.fileno() != number:
                moved = socket.socket(fileno=os.dup2(successor.fileno(), number, False))
                successor.close()
                successor = moved
            readiness.watch(number, told.append)

        for number, one in enumerate(ends):
            readiness.watch(one.fileno(), lambda events, number=number: replace(number, events))  # type: ignore[misc]
        await asyncio.sleep(0)
        told.clear()
        for _, far in pairs:
            far.send(b"x")
        await asyncio.sleep(0.05)
        readiness.close()
        for sock in (successor, far_end, *ends, *(far for _, far in pairs)):
            sock.close()

    asyncio.run(watch())
    assert not any(events & CAN_READ for events in told)


def test_an_error_of_our_own_costs_one_connection(lab: RelayLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one connection brings up, the events of the others are not told again."""
    ends = [lab.ends() for _ in range(5)]
    victim = ends[0].client.getsockname()
    copy = flow.Flow._copy

    def fail_for_one(one: flow.Flow, to_the_end: int | bool) -> bool:
        if one.source.getpeername() == victim:  # type: ignore[attr-defined]
            raise RuntimeError("as asked for")
        return copy(one, to_the_end)

    monkeypatch.setattr(flow.Flow, "_copy", fail_for_one)
    with lab.held():
        for client, _ in ends:
            client.sendall(b"hello")
    for _, upstream in ends[1:]:
        assert exactly(upstream, 5) == b"hello"
    assert is_reset(ends[0].client)
    assert is_reset(ends[0].upstream)


def test_too_few_descriptors_are_no_end(loop: str) -> None:
    """Who finds none left waits in the queue; when others have gone, there is room again."""
    port, limit = free_port(), 64
    with Echo() as echo:
        command = [
            "prlimit", f"--nofile={limit}:{limit}", sys.executable, "-m", "kongrealip", "relay", "--loop", loop,
            "--listen", f"{LOOPBACK}:{port}", "--upstream", echo.name, "--drain-timeout", "100ms",
        ]  # fmt: skip
        with running(command, clean_environ(), [port]) as relay:
            wait_until(lambda: comes_through(port), "the relay to serve")
            before = descriptors(relay.pid)
            clients = [socket.create_connection((LOOPBACK, port), 10) for _ in range(3 * limit)]
            wait_until(lambda: any(map(answers, clients)), "one of them to be served")
            for client in clients:
                client.close()
            wait_until(lambda: comes_through(port), "room for another")
            assert descriptors(relay.pid) <= before
            assert relay.stop() == 0
            assert "worker_connections are not enough" in relay.stderr
            assert "Too many open files" not in relay.stderr
            assert "Traceback" not in relay.stderr


def answers(client: socket.socket) -> bool:
    """Whether it is served, as far as one can tell by now."""
    client.settimeout(0)
    try:
        client.send(b"x")
        return client.recv(1) == b"x"
    except OSError:
        return False


def comes_through(port: int) -> bool:
    with socket.create_connection((LOOPBACK, port), 10) as client, contextlib.suppress(OSError):
        client.sendall(b"x")
        return client.recv(1) == b"x"
    return False


def test_a_shortage_of_descriptors_is_not_the_upstreams_fault(
    lab: RelayLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not rest for it, and the client hears of it at once."""
    failures = lab.counted("upstream_failures", lab.upstream.name)
    refused = lab.counted("refused", "no_upstream")

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(connecting, "socket", SimpleNamespace(**{**vars(socket), "socket": fail}))
    assert to_the_end(lab.connect()) == b""
    monkeypatch.undo()
    lab.wait_for_count("refused", "no_upstream", count=refused + 1)
    assert lab.counted("upstream_failures", lab.upstream.name) == failures
    lab.ends()


# Numbers


def test_numbers(loop: str) -> None:
    with started(loop, environ=V2) as lab:
        for _ in range(3):
            client, upstream = lab.ends()
            client.sendall(b"x" * 1000)
            assert len(exactly(upstream, 1028)) == 1028
            upstream.sendall(b"y" * 100_000)
            assert len(exactly(client, 100_000)) == 100_000
        assert lab.counted("upstream_connections", lab.upstream.name) == 3
        lab.wait_for_count("relayed_bytes", "to_client", count=300_000)
        assert lab.counted("relayed_bytes", "to_client") == 300_000
        # Without preambles, as /metrics says.
        assert lab.counted("relayed_bytes", "to_upstream") == 3000
        assert lab.counted("decisions", "peer") == 3
