"""The addresses of server spans, with the real instrumentations in every arrangement."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient
from websockets.sync.client import connect as connect_websocket

from kongrealip import RealIPMiddleware, Settings, resolution_of
from kongrealip.address import Address
from kongrealip.middleware.opentelemetry import server_request_hook
from kongrealip.realip import EXTENSION_KEY, Resolution
from tests.running import CLIENT_IP, LOOPBACK, Seen, connect, fetch, free_port

ROOT = Path(__file__).parent.parent
SETTINGS = Settings(trusted_ips=(LOOPBACK,), real_ip_header="X-Forwarded-For", real_ip_recursive=True)
HEADERS = [
    {"X-Forwarded-For": "203.0.113.7"},
    {"X-Forwarded-For": "203.0.113.7:51000"},
    {"X-Forwarded-For": "[2001:db8::1]:8443"},
    {},
]
Make = Callable[[TracerProvider], Any]


def shop() -> FastAPI:
    app = FastAPI()

    def seen(connection: Request | WebSocket) -> Seen:
        client, peer = resolution_of(connection)[:2]
        return {"client": client, "peer": peer}

    @app.get("/")
    def index(request: Request) -> Seen:
        return seen(request)

    @app.websocket("/ws")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(seen(websocket))
        await websocket.close()

    return app


def instrumented(app: FastAPI, provider: TracerProvider) -> FastAPI:
    FastAPIInstrumentor.instrument_app(app, server_request_hook=server_request_hook, tracer_provider=provider)
    return app


def fastapi_inside(provider: TracerProvider) -> Any:
    """The instrumentation puts itself in front of every middleware of the application."""
    app = shop()
    app.add_middleware(RealIPMiddleware, settings=SETTINGS)
    return instrumented(app, provider)


def fastapi_outside(provider: TracerProvider) -> Any:
    return RealIPMiddleware(instrumented(shop(), provider), SETTINGS)


def fastapi_both(provider: TracerProvider) -> Any:
    """The inner one is what the application sees."""
    return RealIPMiddleware(fastapi_inside(provider), Settings())


def asgi_inside(provider: TracerProvider) -> Any:
    app = RealIPMiddleware(shop(), SETTINGS)
    return OpenTelemetryMiddleware(app, server_request_hook=server_request_hook, tracer_provider=provider)


def asgi_outside(provider: TracerProvider) -> Any:
    app = OpenTelemetryMiddleware(shop(), server_request_hook=server_request_hook, tracer_provider=provider)
    return RealIPMiddleware(app, SETTINGS)


ARRANGEMENTS = [fastapi_inside, fastapi_outside, fastapi_both, asgi_inside, asgi_outside]


@pytest.fixture(params=["", "http", "http/dup"], ids=["old", "new", "both"])
def conventions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the semantic conventions are in force."""
    chosen: str = request.param
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", chosen)
    # It is read once in a process.
    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)
    return chosen


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """uvicorn, in a thread."""
    port = free_port()
    config = uvicorn.Config(app, port=port, proxy_headers=False, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Spans:
    """What is exported of one application, and what the application itself saw."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def server_spans(self) -> list[Mapping[str, Any]]:
        finished = self._exporter.get_finished_spans()
        return [dict(span.attributes or {}) for span in finished if span.kind is SpanKind.SERVER]


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield Spans()
    # What it replaced for all applications.
    FastAPIInstrumentor.uninstrument_app(FastAPI())


def addresses(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in attributes.items()
        if re.match(r"(client|network\.peer|net\.peer)\.|http\.client", name)
    }


def wanted(seen: Seen, conventions: str, port_written: bool) -> dict[str, Any]:
    """From what the application saw, and whether another ``client.port`` was there before."""
    (client, client_port), (peer, peer_port) = seen["client"], seen["peer"]
    found = {"client.address": client, "network.peer.address": peer, "network.peer.port": peer_port}
    if client_port is not None:
        found["client.port"] = client_port
    elif port_written:
        found["client.port"] = 0
    if conventions != "http":
        found |= {"http.client_ip": client, "net.peer.ip": peer, "net.peer.port": peer_port}
    return found


@pytest.mark.parametrize("make", ARRANGEMENTS)
def test_requests(make: Make, conventions: str, spans: Spans) -> None:
    # Of old conventions only ours writes it.
    written = make is fastapi_both or (conventions != "" and make in (fastapi_inside, asgi_inside))
    with serving(make(spans.provider)) as port:
        seen = [fetch(port, source_ip=LOOPBACK, headers=list(one.items())) for one in HEADERS]
        seen.append(fetch(port, source_ip=CLIENT_IP, headers=list(HEADERS[0].items())))
    clients = [one["client"][0] for one in seen]
    assert clients == ["203.0.113.7", "203.0.113.7", "2001:db8::1", LOOPBACK, CLIENT_IP]
    assert [addresses(one) for one in spans.server_spans()] == [
        wanted(one, conventions, written) for one in seen
    ]


@pytest.mark.parametrize("make", ARRANGEMENTS)
def test_websockets(make: Make, conventions: str, spans: Spans) -> None:
    with serving(make(spans.provider)) as port:
        sock = connect(port, LOOPBACK)
        with connect_websocket(
            "ws://a.test/ws", sock=sock, additional_headers=HEADERS[1], proxy=None
        ) as opened:
            seen = json.loads(opened.recv(timeout=10))
    assert seen["client"] == ["203.0.113.7", 51000]
    assert [addresses(one) for one in spans.server_spans()] == [wanted(seen, conventions, port_written=False)]


def test_addresses_that_are_not_known() -> None:
    """Of a Unix socket, and of a peer that was gone at once."""
    spans = Spans()
    for ip, found in [("unix:", {"client.address": "unix:", "network.peer.address": "unix:"}), ("", {})]:
        unknown = Address(ip, None)
        scope = {"extensions": {EXTENSION_KEY: Resolution(unknown, unknown, False, "peer", None)}}
        with spans.provider.get_tracer("tests").start_as_current_span("a", kind=SpanKind.SERVER) as span:
            server_request_hook(span, scope)
        assert spans.server_spans()[-1] == found


async def test_a_span_that_has_ended_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    spans = Spans()
    span = spans.provider.get_tracer("tests").start_span("a", kind=SpanKind.SERVER)
    scope: dict[str, Any] = {"type": "http", "client": (LOOPBACK, 1), "headers": []}
    server_request_hook(span, scope)
    span.end()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    await RealIPMiddleware(app, SETTINGS)(scope, None, None)  # type: ignore[arg-type]
    assert spans.server_spans() == [{}]
    assert caplog.records == []


def test_the_guide_runs() -> None:
    """Without an SDK that would record anything."""
    guide = (ROOT / "docs" / "opentelemetry.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(compile(code, "opentelemetry.md", "exec"), names)
    assert TestClient(names["app"], client=("10.0.0.1", 5)).get("/openapi.json").status_code == 200
    FastAPIInstrumentor.uninstrument_app(names["app"])


@pytest.mark.parametrize(
    ("make", "address"),
    [("inside", LOOPBACK), ("outside", "203.0.113.7")],
)
def test_without_the_hook_it_is_as_the_guide_says(
    make: str, address: str, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)
    if make == "inside":
        app: Any = OpenTelemetryMiddleware(RealIPMiddleware(shop(), SETTINGS), tracer_provider=spans.provider)
    else:
        app = RealIPMiddleware(OpenTelemetryMiddleware(shop(), tracer_provider=spans.provider), SETTINGS)
    with serving(app) as port:
        fetch(port, source_ip=LOOPBACK, headers=list(HEADERS[0].items()))
    (found,) = spans.server_spans()
    assert found["client.address"] == address
    assert "network.peer.address" not in found
