"""The status listener's application: JSON, readiness, and Prometheus' text format."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from kongrealip import Settings
from kongrealip.address import Address
from kongrealip.config import Listen
from kongrealip.realip import CONNECTION_KEY, Connection
from kongrealip.server.counters import REFUSALS, Counters, Key, keys_of
from kongrealip.server.status import status_app, write_open
from tests.test_counters import in_a_child

WEB, STATUS = "127.0.0.1:8000", "127.0.0.1:8100"
SETTINGS = Settings(
    real_ip_header="X-Forwarded-For",
    proxy_listen=(Listen("127.0.0.1", 8000, ("ssl",)),),
    status_listen=(Listen("127.0.0.1", 8100),),
)
# How the first word of a counter's key is called in /metrics.
METRICS = {
    "accepted": "connections_accepted_total",
    "connections": "connections",
    "tls_failures": "tls_failures_total",
    "preambles": "preambles_total",
    "refused": "preambles_refused_total",
    "decisions": "decisions_total",
    "header_values_refused": "header_values_refused_total",
    "requests": "requests_total",
    "worker_restarts": "worker_restarts_total",
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json; charset=utf-8"
        return json.loads(self.body)


@dataclass
class Asking:
    """The application, with counters and what its server tells it."""

    settings: Settings = SETTINGS
    ready: bool = True
    refreshed: int = 0
    counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        self.counters = Counters(keys_of(self.settings), 2)
        self._app = status_app(self.counters, lambda: self.ready, self._refresh)

    def _refresh(self) -> None:
        self.refreshed += 1
        self.counters.row(0).set("connections", STATUS, "open", value=self.refreshed)

    async def ask(self, path: str, method: str = "GET") -> Answer:
        sent = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app({"type": "http", "method": method, "path": path}, None, send)  # type: ignore[arg-type]
        start, body = sent
        assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert len(headers) == len(start["headers"])
        return Answer(start["status"], headers, body["body"])

    async def metrics(self) -> dict[str, Metric]:
        answer = await self.ask("/metrics")
        assert answer.status == 200
        return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}

    async def samples(self) -> dict[tuple[str, ...], float]:
        """Name and label values of each sample, and its number."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in (await self.metrics()).values()
            for sample in family.samples
        }


@pytest.fixture
def asking() -> Asking:
    return Asking()


def count_everything(counters: Counters) -> dict[Key, int]:
    """Give every number a value of its own, over two processes."""
    for number, key in enumerate(counters.keys, 100):
        counters.row(0).add(*key, amount=number)
        counters.row(1).add(*key, amount=1000)
    return counters.total()


async def test_status(asking: Asking) -> None:
    row, other = asking.counters.row(0), asking.counters.row(1)
    row.add("accepted", WEB, amount=10)
    other.add("accepted", WEB, amount=5)
    row.add("accepted", STATUS)
    row.set("connections", WEB, "preamble", value=1)
    other.set("connections", WEB, "handshake", value=2)
    other.set("connections", WEB, "open", value=4)
    other.add("tls_failures", WEB, amount=3)
    row.add("preambles", "2", amount=6)
    row.add("refused", "crowded_out", amount=2)
    row.add("refused", "http")
    row.add("decisions", "peer", amount=8)
    row.add("decisions", "X-Forwarded-For", amount=9)
    row.add("requests", amount=17)
    row.add("header_values_refused")
    row.add("worker_restarts")
    answer = await asking.ask("/status")
    assert answer.status == 200
    assert answer.json == {
        "server": {
            "connections_accepted": 16,
            "connections_handled": 14,
            "connections_active": 8,
            "connections_reading": 3,
            "total_requests": 17,
        },
        "listeners": {
            WEB: {
                "accepted": 15,
                "connections": {"preamble": 1, "handshake": 2, "open": 4},
                "tls_failures": 3,
            },
            STATUS: {
                "accepted": 1,
                "connections": {"preamble": 0, "handshake": 0, "open": 1},
                "tls_failures": 0,
            },
        },
        "preambles": {
            "1": 0,
            "2": 6,
            "none": 0,
            "refused": {**dict.fromkeys(REFUSALS, 0), "crowded_out": 2, "http": 1},
        },
        "decisions": {"peer": 8, "X-Forwarded-For": 9},
        "header_values_refused": 1,
        "tls_failures": 3,
        "worker_restarts": 1,
    }


async def test_any_process_answers_for_all(asking: Asking) -> None:
    in_a_child(lambda: asking.counters.row(1).add("requests", amount=7))
    assert (await asking.ask("/status")).json["server"]["total_requests"] == 7
    assert (await asking.samples())["kongrealip_requests_total",] == 7


async def test_gauges_are_fresh(asking: Asking) -> None:
    for number in (1, 2):
        open_ones = (await asking.ask("/status")).json["listeners"][STATUS]["connections"]["open"]
        assert open_ones == asking.refreshed == number


async def test_readiness(asking: Asking) -> None:
    answer = await asking.ask("/status/ready")
    assert (answer.status, answer.json) == (200, {"message": "ready"})
    asking.ready = False
    answer = await asking.ask("/status/ready")
    assert answer.status == 503
    assert answer.json["message"].startswith("not ready")
    assert (await asking.ask("/status")).status == 200, "it still tells how it is"


@pytest.mark.parametrize("path", ["/", "", "/status/", "/status/x", "/METRICS", "/metrics/"])
async def test_anything_else_is_not_found(asking: Asking, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await asking.ask(path, method)
        assert (answer.status, answer.json) == (404, {"message": "Not found"})


@pytest.mark.parametrize("path", ["/status", "/status/ready", "/metrics"])
async def test_methods(asking: Asking, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
        answer = await asking.ask(path, method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.json == {"message": "Method not allowed"}


@pytest.mark.parametrize("path", ["/status/ready", "/metrics", "/nowhere"])
async def test_head_is_get_without_its_body(asking: Asking, path: str) -> None:
    asking.counters.row(0).set("connections", STATUS, "open", value=1)
    get, head = await asking.ask(path), await asking.ask(path, "HEAD")
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
    assert int(get.headers["content-length"]) == len(get.body) > 0


@pytest.mark.parametrize("path", ["/status", "/status/ready", "/metrics", "/nowhere"])
async def test_nobody_may_keep_an_answer(asking: Asking, path: str) -> None:
    assert (await asking.ask(path)).headers["cache-control"] == "no-store"


async def test_every_counter_is_a_metric(asking: Asking) -> None:
    total = count_everything(asking.counters)
    samples = await asking.samples()
    # One of them is what refresh() wrote for this process.
    total["connections", STATUS, "open"] = 1 + 1000
    assert samples == {(f"kongrealip_{METRICS[key[0]]}", *key[1:]): count for key, count in total.items()}


async def test_metric_families(asking: Asking) -> None:
    families = await asking.metrics()
    assert set(families) == {f"kongrealip_{name.removesuffix('_total')}" for name in METRICS.values()}
    for name, family in families.items():
        assert family.type == ("gauge" if name == "kongrealip_connections" else "counter")
        assert family.documentation.endswith(".")
        assert all(set(sample.labels) == set(family.samples[0].labels) for sample in family.samples)
    assert set(families["kongrealip_connections"].samples[0].labels) == {"listener", "state"}
    assert set(families["kongrealip_decisions"].samples[0].labels) == {"source"}
    assert set(families["kongrealip_preambles"].samples[0].labels) == {"version"}
    assert set(families["kongrealip_preambles_refused"].samples[0].labels) == {"reason"}


async def test_metrics_are_not_those_of_the_application(asking: Asking) -> None:
    answer = await asking.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"python_info" not in answer.body
    assert not any(family.name.startswith("kongrealip") for family in REGISTRY.collect())


async def test_a_large_number_is_exact(asking: Asking) -> None:
    asking.counters.row(0).add("requests", amount=(1 << 53) - 1)
    assert (await asking.samples())["kongrealip_requests_total",] == (1 << 53) - 1


@pytest.mark.parametrize("name", ['X-"quoted"', "X-back\\slash", "X-ümlaut", "X-\udcff"])
async def test_odd_names_are_printed(name: str) -> None:
    asking = Asking(
        SETTINGS._replace(real_ip_header=name, proxy_listen=(Listen("unix:/run/\udcff.sock", 0),))
    )
    printed = name.replace("\udcff", "?")
    asking.counters.row(0).add("decisions", name)
    assert (await asking.samples())["kongrealip_decisions_total", printed] == 1
    status = (await asking.ask("/status")).json
    assert status["decisions"] == {"peer": 0, printed: 1}
    assert list(status["listeners"]) == ["unix:/run/?.sock", STATUS]


async def test_without_the_package(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = await asking.ask("/metrics")
    assert answer.status == 501
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"pip install 'kongrealip[metrics]'" in answer.body
    assert answer.body.count(b"\n") == 1
    assert (await asking.ask("/status")).status == 200


class Protocol:
    """What ``write_open`` needs to know of uvicorn's."""

    def __init__(self, listener: str) -> None:
        connection = Connection(Address("127.0.0.1", 1), ("127.0.0.1", 8000), None, False, listener)
        self.app_state = {"from the lifespan": 1, CONNECTION_KEY: connection}


class ProtocolOfAnotherServer:
    app_state: dict[str, Any] = {}  # noqa: RUF012


def test_open_connections_by_listener() -> None:
    counters = Counters(keys_of(SETTINGS), 1)
    connections = {
        *(Protocol(WEB) for _ in range(3)),
        Protocol(STATUS),
        Protocol("a listener of yesterday"),
        ProtocolOfAnotherServer(),
        object(),
    }
    write_open(counters.row(0), [WEB, STATUS], connections)
    assert [counters.total()["connections", listener, "open"] for listener in (WEB, STATUS)] == [3, 1]
    write_open(counters.row(0), [WEB, STATUS], set())
    assert sum(counters.total().values()) == 0, "a gauge falls as well"


def protocols_of_uvicorn() -> list[Any]:
    found: list[Any] = [HttpToolsProtocol, WebSocketsSansIOProtocol]
    try:
        from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
        from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol
    except ImportError:
        return found
    return [*found, AutoZttpProtocol, ZttpH2Protocol]


@pytest.mark.parametrize("kind", protocols_of_uvicorn())
async def test_every_protocol_of_uvicorn_knows_its_connection(kind: Any) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    counters = Counters(keys_of(SETTINGS), 1)
    state = ServerState()
    config = Config(nothing, log_config=None)
    state.connections.add(kind(config, state, Protocol(WEB).app_state, asyncio.get_running_loop()))
    write_open(counters.row(0), [WEB], state.connections)
    assert counters.total()["connections", WEB, "open"] == 1
