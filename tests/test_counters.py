"""Counters in shared memory, and the layer that counts requests."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from kongrealip import RealIPMiddleware, Settings
from kongrealip.address import Address
from kongrealip.config import Listen
from kongrealip.preamble import REASONS, Preamble
from kongrealip.realip import CONNECTION_KEY, Connection
from kongrealip.server.counters import REFUSALS, STATES, Counters, Row, counted, keys_of

LISTENER = "127.0.0.1:8000"
KEYS = [("requests",), ("accepted", LISTENER), ("connections", LISTENER, "open")]
BALANCER = ("10.0.0.1", 1234)
STRANGER = ("8.8.8.8", 1234)
XFF = "X-Forwarded-For"


def in_a_child(work: Callable[[], object]) -> None:
    """Run it in a forked process, which must end well."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, and other tests may have left some of libuv's behind.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_everything_begins_at_zero() -> None:
    assert Counters(KEYS, 3).total() == dict.fromkeys(KEYS, 0)


def test_what_a_child_counts_its_parent_reads() -> None:
    counters = Counters(KEYS, 3)

    def child() -> None:
        row = counters.row(2)
        row.add("requests")
        row.cells[row.place("accepted", LISTENER)] += 1 << 40
        row.set("connections", LISTENER, "open", value=5)

    counters.row(0).add("requests", amount=2)
    in_a_child(child)
    assert counters.total() == dict(zip(KEYS, (3, 1 << 40, 5), strict=True))


def test_a_child_reads_what_its_parent_and_another_child_counted() -> None:
    counters = Counters(KEYS, 2)
    counters.row(0).add("requests")
    in_a_child(lambda: counters.row(1).add("requests"))

    def child() -> None:
        assert counters.total()["requests",] == 2

    in_a_child(child)


def test_no_row_reaches_into_another() -> None:
    counters = Counters(KEYS, 2)
    for key in KEYS:
        counters.row(0).add(*key)
    assert list(counters.row(1).cells) == [0, 0, 0]
    with pytest.raises(IndexError):
        counters.row(0).cells[len(KEYS)] += 1
    for number in (-1, counters.rows):
        with pytest.raises(IndexError):
            counters.row(number)


def test_a_key_that_is_given_twice_is_one_number() -> None:
    counters = Counters([*KEYS, *KEYS], 1)
    counters.row(0).add("requests")
    assert counters.total()["requests",] == 1


def test_what_nobody_can_count_has_no_place() -> None:
    with pytest.raises(KeyError):
        Counters(KEYS, 1).row(0).add("accepted", "somewhere else")


def test_a_process_that_ends_leaves_what_it_counted() -> None:
    counters = Counters(KEYS, 2)
    counters.row(0).add("requests")
    in_a_child(lambda: [counters.row(1).add(*key, amount=7) for key in KEYS])  # type: ignore[func-returns-value]
    counters.row(1).leave_to(counters.row(0))
    assert counters.total() == dict(zip(KEYS, (8, 7, 0), strict=True)), "its connections are gone"
    assert list(counters.row(1).cells) == [0, 0, 0], "the row is ready for another process"


def test_a_listener_that_is_gone_is_left_out() -> None:
    old, new = Counters(KEYS, 1), Counters([("requests",), ("accepted", "127.0.0.1:9000")], 1)
    for key in KEYS:
        old.row(0).add(*key)
    old.row(0).leave_to(new.row(0))
    assert new.total() == {("requests",): 1, ("accepted", "127.0.0.1:9000"): 0}


def test_what_can_be_counted() -> None:
    settings = Settings(
        real_ip_header=XFF,
        proxy_listen=(Listen("127.0.0.1", 8000, ("ssl",)), Listen("unix:/run/app.sock", 0)),
        status_listen=(Listen("127.0.0.1", 8100),),
    )
    keys = keys_of(settings)
    for listener in (LISTENER, "unix:/run/app.sock", "127.0.0.1:8100"):
        assert ("accepted", listener) in keys
        assert ("tls_failures", listener) in keys
        assert {("connections", listener, state) for state in STATES} <= set(keys)
    assert {("decisions", "peer"), ("decisions", XFF)} <= set(keys)
    assert {("refused", reason) for reason in (*REASONS, "timeout", "cut_off", "crowded_out")} <= set(keys)
    assert len(set(REFUSALS)) == len(REFUSALS)


class Counting:
    """The middleware, the counting layer and an application that does nothing."""

    def __init__(self, header: str = XFF, app: Any = None) -> None:
        settings = Settings(trusted_ips=("10.0.0.0/8",), real_ip_header=header)
        self.counters = Counters(keys_of(settings), 1)
        self.scopes: list[Any] = []
        self.app = RealIPMiddleware(counted(app or self._remember, self.row, header), settings)

    @property
    def row(self) -> Row:
        return self.counters.row(0)

    async def _remember(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)

    async def ask(self, client: tuple[str, int], *lines: str, name: str = "x-forwarded-for") -> None:
        headers = [(b"host", b"x"), *((name.encode(), line.encode("latin-1")) for line in lines)]
        await self.app({"type": "http", "client": client, "headers": headers}, None, None)  # type: ignore[arg-type]

    @property
    def counts(self) -> dict[str, int]:
        """By the last word of each key, where there is something to tell."""
        return {key[-1]: count for key, count in self.counters.total().items() if count}


async def test_requests_and_decisions() -> None:
    counting = Counting()
    await counting.ask(BALANCER, "203.0.113.7")
    await counting.ask(BALANCER, "203.0.113.8")
    await counting.ask(STRANGER, "203.0.113.7")
    assert counting.counts == {"requests": 3, XFF: 2, "peer": 1}
    assert len(counting.scopes) == 3


GARBAGE = ["unknown", "", " ", ",1.2.3.4", "1.2.3.4.5", "203.0.113.7, nobody", "\xff", "999.1.1.1"]


@pytest.mark.parametrize("line", GARBAGE)
async def test_a_value_without_an_address(line: str) -> None:
    counting = Counting()
    await counting.ask(BALANCER, line)
    assert counting.counts == {"requests": 1, "peer": 1, "header_values_refused": 1}


async def test_a_request_counts_once_however_many_lines_it_has() -> None:
    counting = Counting()
    await counting.ask(BALANCER, "unknown", "203.0.113.7", "nobody")
    assert counting.counts == {"requests": 1, "peer": 1, "header_values_refused": 1}
    await counting.ask(BALANCER, "unknown", "203.0.113.7")
    assert counting.counts == {"requests": 2, "peer": 1, XFF: 1, "header_values_refused": 1}


async def test_a_stranger_may_send_what_it_likes() -> None:
    counting = Counting()
    await counting.ask(STRANGER, "unknown")
    assert counting.counts == {"requests": 1, "peer": 1}


async def test_no_header_is_nothing_to_refuse() -> None:
    counting = Counting()
    await counting.ask(BALANCER)
    await counting.ask(BALANCER, "unknown", name="x-real-ip")
    assert counting.counts == {"requests": 2, "peer": 2}


async def test_the_letter_case_of_the_configured_name() -> None:
    counting = Counting("X-REAL-ip")
    await counting.ask(BALANCER, "unknown", name="x-real-ip")
    await counting.ask(BALANCER, "203.0.113.7", name="x-real-ip")
    assert counting.counts == {"requests": 2, "peer": 1, "X-REAL-ip": 1, "header_values_refused": 1}


@pytest.mark.parametrize(
    ("preamble", "source"),
    [
        (Preamble(2, "PROXY", "203.0.113.7", 51000, "10.0.0.5", 80), "proxy_protocol"),
        (Preamble(2, "LOCAL"), "peer"),
        (None, "peer"),
    ],
)
async def test_preambles(preamble: Preamble | None, source: str) -> None:
    counting = Counting("proxy_protocol")
    connection = Connection(Address(*BALANCER), ("10.0.0.5", 80), preamble, False)
    scope = {
        "type": "http",
        "client": None,
        "headers": [(b"proxy_protocol", b"unknown")],
        "state": {CONNECTION_KEY: connection},
    }
    await counting.app(scope, None, None)  # type: ignore[arg-type]
    assert counting.counts == {"requests": 1, source: 1}


async def test_the_lifespan_passes_uncounted() -> None:
    counting = Counting()
    await counting.app({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert counting.counts == {}
    assert counting.scopes == [{"type": "lifespan"}]


def test_a_websocket_counts_as_well() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    counting = Counting(app=Starlette(routes=[WebSocketRoute("/", echo)]))
    with (
        TestClient(counting.app, client=BALANCER) as client,
        client.websocket_connect("/", headers={XFF: "203.0.113.7"}) as websocket,
    ):
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
    assert counting.counts == {"requests": 1, XFF: 1}


async def test_what_the_application_raises_is_counted_and_passed_on() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    counting = Counting(app=fails)
    with pytest.raises(ZeroDivisionError):
        await counting.ask(STRANGER)
    assert counting.counts == {"requests": 1, "peer": 1}


def test_a_server_still_sees_a_coroutine_function() -> None:
    """The layer itself is none, so it must not be the outermost."""
    assert inspect.iscoroutinefunction(Counting().app)
