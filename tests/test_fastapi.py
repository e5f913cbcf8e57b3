"""``ClientAddress``: what endpoints get, and what the OpenAPI document does not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.testclient import TestClient
from websockets.sync.client import connect as connect_websocket

from kongrealip import ResolutionMissingError, Settings
from kongrealip.address import Address
from kongrealip.middleware.fastapi import ClientAddress
from kongrealip.realip import EXTENSION_KEY, Resolution
from tests.lab import LOOPS, Lab
from tests.running import CLIENT_IP, LOOPBACK, connect, fetch

ROOT = Path(__file__).parent.parent
SETTINGS = Settings(
    trusted_ips=(LOOPBACK,), real_ip_header="X-Forwarded-For", real_ip_recursive=True, proxy_access_log="off"
)
HEADERS: list[tuple[dict[str, str], list[Any]]] = [
    ({"X-Forwarded-For": "203.0.113.7"}, ["203.0.113.7", None]),
    ({"X-Forwarded-For": "6.6.6.6, 203.0.113.7:51000"}, ["203.0.113.7", 51000]),
    ({"X-Forwarded-For": "[2001:db8::1]:8443"}, ["2001:db8::1", 8443]),
]

app = FastAPI()


def is_ipv6(client: ClientAddress) -> bool:
    return ":" in client.ip


@app.get("/sync")
def sync(client: ClientAddress) -> list[Any]:
    return [client.ip, client.port]


@app.get("/async")
async def asynchronous(client: ClientAddress) -> list[Any]:
    return [client.ip, client.port]


@app.get("/dependency")
def through_a_dependency(ipv6: Annotated[bool, Depends(is_ipv6)], request: Request) -> list[Any]:
    assert request.client is not None
    return [request.client.host, ipv6]


@app.websocket("/ws")
async def websocket(websocket: WebSocket, client: ClientAddress) -> None:
    await websocket.accept()
    await websocket.send_json(client)
    await websocket.close()


@pytest.fixture(scope="module", params=LOOPS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    lab = Lab(app)
    port = lab.add(SETTINGS)
    with lab.running(request.param):
        yield port


@pytest.mark.parametrize("path", ["/sync", "/async"])
@pytest.mark.parametrize(("headers", "client"), HEADERS)
def test_an_endpoint_gets_the_client(
    port: int, path: str, headers: dict[str, str], client: list[Any]
) -> None:
    assert ask(port, path, headers) == client


def test_who_is_not_trusted_is_the_client(port: int) -> None:
    (ip, client_port) = ask(port, "/sync", HEADERS[0][0], source_ip=CLIENT_IP)
    assert ip == CLIENT_IP
    assert client_port > 0


@pytest.mark.parametrize(("headers", "client"), HEADERS)
def test_a_dependency_gets_it(port: int, headers: dict[str, str], client: list[Any]) -> None:
    assert ask(port, "/dependency", headers) == [client[0], ":" in client[0]]


@pytest.mark.parametrize(("headers", "client"), HEADERS)
def test_a_websocket_gets_it(port: int, headers: dict[str, str], client: list[Any]) -> None:
    sock = connect(port, LOOPBACK)
    with connect_websocket("ws://a.test/ws", sock=sock, additional_headers=headers, proxy=None) as opened:
        assert json.loads(opened.recv(timeout=10)) == client


def test_a_unix_socket() -> None:
    unix = Address("unix:", None)
    found: list[Address] = []
    local = FastAPI()

    @local.get("/")
    def index(client: ClientAddress) -> None:
        found.append(client)

    async def decided(scope: Any, receive: Any, send: Any) -> None:
        resolution = Resolution(unix, unix, False, "peer", None)
        await local({**scope, "extensions": {EXTENSION_KEY: with_rules(resolution)}}, receive, send)

    TestClient(decided).get("/")
    assert found == [unix]


def with_rules(resolution: Resolution) -> Resolution:
    """As a middleware leaves it."""
    decided: Resolution = SETTINGS.forwarded_rules().resolution(*resolution)
    return decided


def test_the_openapi_document_shows_nothing_of_it() -> None:
    with_it, without_it = FastAPI(), FastAPI()

    @with_it.get("/")
    def index(client: ClientAddress, ipv6: Annotated[bool, Depends(is_ipv6)]) -> str:
        return client.ip

    @without_it.get("/", operation_id="index__get")
    def other() -> str:
        return ""

    documents = [
        json.loads(json.dumps(one.openapi()).replace('"Other"', '"Index"')) for one in (with_it, without_it)
    ]
    assert documents[0] == documents[1]


def test_without_the_middleware_the_error_says_what_to_do() -> None:
    with pytest.raises(ResolutionMissingError, match="add_middleware"):
        TestClient(app).get("/sync")


def test_the_guide_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "fastapi.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "fastapi.md", "exec"), names)
    client = TestClient(names["app"], client=("10.0.0.1", 5))
    assert client.get("/").json() == {"ip": "10.0.0.1", "port": 5}
    answers = [
        client.get("/limited", headers={"X-Forwarded-For": f"6.6.6.{n}"}).status_code for n in range(3)
    ]
    assert answers == [200, 200, 429]


def ask(port: int, path: str, headers: dict[str, str], source_ip: str = LOOPBACK) -> Any:
    return fetch(port, source_ip=source_ip, path=path, headers=list(headers.items()))
