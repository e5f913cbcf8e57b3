"""What server/asgi.py takes from uvicorn without a promise. One name in each failure."""

from __future__ import annotations

import inspect
import re

import pytest
import uvicorn
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from kongrealip.cli import whoami

PROTOCOLS = pytest.mark.parametrize("protocol", [HttpToolsProtocol, WebSocketsSansIOProtocol])


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["startup", "shutdown"])
def test_server_methods_that_are_overridden(name: str) -> None:
    method = getattr(uvicorn.Server, name)
    assert inspect.iscoroutinefunction(method)
    assert parameters(method) == ["self", "sockets"]


@PROTOCOLS
def test_how_a_protocol_is_made(protocol: type) -> None:
    assert parameters(protocol)[:4] == ["config", "server_state", "app_state", "_loop"]


@PROTOCOLS
def test_the_app_state_is_copied_into_each_scope(protocol: type) -> None:
    assert '"state": self.app_state.copy()' in inspect.getsource(protocol)


def test_connection_made_sets_what_we_set() -> None:
    """Ours replaces it, so a line that is new there may be missing here."""
    source = inspect.getsource(HttpToolsProtocol.connection_made)
    assigned = re.findall(r"^ +(self\.\w+) = ", source, re.MULTILINE)
    assert assigned == ["self.transport", "self.flow", "self.server", "self.client", "self.scheme"]
    assert "self.connections.add(self)" in source
    assert parameters(FlowControl) == ["transport"]


def test_what_happens_behind_an_answer() -> None:
    """Ours replaces it, without the timer."""
    source = inspect.getsource(HttpToolsProtocol.on_response_complete)
    steps = [line.strip() for line in source.splitlines()[1:] if line.strip() and "#" not in line]
    assert steps == [
        "self.server_state.total_requests += 1",
        "if self.transport.is_closing():",
        "return",
        "self._unset_keepalive_if_required()",
        "self.flow.resume_reading()",
        "if self.pipeline:",
        "cycle, app = self.pipeline.pop()",
        "self._start_asgi_task(cycle, app)",
        "else:",
        "self.timeout_keep_alive_task = self.loop.call_later(",
        "self.timeout_keep_alive, self.timeout_keep_alive_handler",
        ")",
    ]


def test_the_default_headers_end_up_in_each_answer() -> None:
    """So a server that ends can have each answer close its connection."""
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "default_headers=self.server_state.default_headers" in source
    assert "headers = self.default_headers + list(" in inspect.getsource(RequestResponseCycle.send)


def test_a_request_in_flight_is_told_to_close_behind_itself() -> None:
    assert "self.cycle.keep_alive = False" in inspect.getsource(HttpToolsProtocol.shutdown)
    assert "self.response_complete" in inspect.getsource(RequestResponseCycle.__init__)


def test_how_signals_come_in() -> None:
    assert "signal.signal(sig, self.handle_exit)" in inspect.getsource(uvicorn.Server.capture_signals)
    assert parameters(uvicorn.Server.handle_exit) == ["self", "sig", "frame"]


def test_the_lifespan_state() -> None:
    assert LifespanOn(uvicorn.Config(whoami.app)).state == {}


def test_a_lifespan_runs_in_a_task_and_is_told_of_by_messages() -> None:
    assert "create_task(self.main())" in inspect.getsource(LifespanOn.startup)
    assert "await app(scope, self.receive, self.send)" in inspect.getsource(LifespanOn.main)
    assert parameters(LifespanOn.send) == ["self", "message"]
    assert "if self.lifespan.should_exit:\n            sys.exit(" in inspect.getsource(uvicorn.Server.startup)


def test_a_server_can_be_run_without_its_signal_handlers() -> None:
    """The embedded one does what this does, step by step."""
    source = inspect.getsource(uvicorn.Server._serve)
    steps = re.findall(r"self\.lifespan = config\.lifespan_class\(config\)|await self\.(\w+)\(", source)
    assert steps == ["", "startup", "main_loop", "shutdown"]
    assert list(vars(uvicorn.server.ServerState())) == [
        "total_requests", "connections", "tasks", "default_headers",
    ]  # fmt: skip


def test_the_version_is_one_that_was_tried() -> None:
    assert uvicorn.__version__.startswith("0.54.")
