"""RealIPMiddleware at the ASGI level: any server, Starlette, FastAPI."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from kongrealip import (
    RealIPMiddleware,
    Resolution,
    ResolutionMissingError,
    Settings,
    SettingsError,
    resolution_of,
)
from kongrealip.address import Address
from kongrealip.middleware import asgi
from kongrealip.preamble import Preamble
from kongrealip.realip import CONNECTION_KEY, Connection, resolve

BALANCER = ("10.0.0.1", 1234)
XFF: dict[str, Any] = {"trusted_ips": "10.0.0.0/8", "real_ip_header": "X-Forwarded-For"}


class App:
    """Remembers the scope that reached it."""

    scope: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope


async def run(app: Any, scope: Any) -> None:
    """One request, for applications that neither receive nor send."""
    await app(scope, None, None)


async def call(client: object = BALANCER, *headers: tuple[str, str], **scope: Any) -> Any:
    app = App()
    wrapped = RealIPMiddleware(app, **XFF)
    raw = [(name.encode(), value.encode()) for name, value in headers]
    await run(wrapped, {"type": "http", "client": client, "headers": raw, **scope})
    return app.scope


async def test_one_hop() -> None:
    scope = await call(BALANCER, ("host", "x"), ("x-forwarded-for", "203.0.113.7"))
    assert scope["client"] == ("203.0.113.7", 0)
    resolution = resolution_of(scope)
    assert resolution == Resolution(
        Address("203.0.113.7", None), Address("10.0.0.1", 1234), True, "X-Forwarded-For", None
    )


async def test_the_port_of_the_hop() -> None:
    assert (await call(BALANCER, ("x-forwarded-for", "203.0.113.7:51000")))["client"] == (
        "203.0.113.7",
        51000,
    )


async def test_several_lines_are_all_read() -> None:
    lines = (("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7"))
    assert (await call(BALANCER, *lines))["client"] == ("203.0.113.7", 0)


async def test_an_untrusted_peer_is_the_client() -> None:
    peer = ("8.8.8.8", 1)
    scope = await call(peer, ("x-forwarded-for", "203.0.113.7"))
    assert scope["client"] == peer
    assert not resolution_of(scope).peer_trusted


async def test_a_peer_that_comes_again() -> None:
    """All that is remembered of a peer: silence, the last line, and that both may change."""
    app = App()
    wrapped = RealIPMiddleware(app, **XFF)
    line = (b"x-forwarded-for", b"203.0.113.7")
    other = (b"x-forwarded-for", b"203.0.113.8")
    host = (b"host", b"x")
    for headers, client in [
        ([host], BALANCER),
        ([host], BALANCER),
        ([host], BALANCER),
        ([host, line], ("203.0.113.7", 0)),
        ([host, line], ("203.0.113.7", 0)),
        ([host, other], ("203.0.113.8", 0)),
        ([line, other], ("203.0.113.8", 0)),
        ([host], BALANCER),
        ([(b"x-forwarded-for", b"junk")], BALANCER),
        ([(b"x-forwarded-for", b"")], BALANCER),
    ]:
        await run(wrapped, {"type": "http", "client": BALANCER, "headers": headers})
        assert app.scope["client"] == client
        assert resolution_of(app.scope).client.ip == client[0]


async def test_a_server_that_gives_lists_for_pairs() -> None:
    """ASGI allows it, and Mangum does it."""
    app = App()
    wrapped = RealIPMiddleware(app, **XFF)
    host, line = [b"host", b"x"], [b"x-forwarded-for", b"203.0.113.7"]
    for headers, client in [([host], BALANCER), ([host], BALANCER), ([host, line], ("203.0.113.7", 0))]:
        await run(wrapped, {"type": "http", "client": BALANCER, "headers": headers})
        assert app.scope["client"] == client


async def test_no_more_peers_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "_KNOWN_PEERS", 3)
    app = App()
    wrapped = RealIPMiddleware(app, **XFF)
    for number in range(20):
        peer = (f"10.0.0.{number % 5}", number)
        headers = [(b"x-forwarded-for", b"203.0.113.%d" % number)]
        await run(wrapped, {"type": "http", "client": peer, "headers": headers})
        assert app.scope["client"] == (f"203.0.113.{number}", 0)


def test_servers_see_a_coroutine_function() -> None:
    """By that they tell ASGI 3 from 2. What is called is none: it gives back the application's coroutine."""
    wrapped = RealIPMiddleware(App(), **XFF)
    assert inspect.isfunction(wrapped)
    assert inspect.iscoroutinefunction(wrapped)
    asked = wrapped({"type": "lifespan"}, None, None)
    assert asked.__name__ == "__call__"
    asked.close()


async def test_websocket() -> None:
    scope = await call(BALANCER, ("x-forwarded-for", "203.0.113.7"), type="websocket", extensions={"a": {}})
    assert scope["client"] == ("203.0.113.7", 0)
    assert scope["extensions"]["a"] == {}


async def test_extensions_of_the_server_are_copied_not_changed() -> None:
    shared: dict[str, Any] = {"http.response.push": {}}
    scope = await call(BALANCER, extensions=shared)
    assert set(scope["extensions"]) == {"http.response.push", "kongrealip"}
    assert set(shared) == {"http.response.push"}


async def test_lifespan_is_untouched() -> None:
    app = App()
    scope = {"type": "lifespan", "state": {}}
    await run(RealIPMiddleware(app, **XFF), scope)
    assert app.scope == {"type": "lifespan", "state": {}}


async def test_a_unix_socket() -> None:
    app = App()
    wrapped = RealIPMiddleware(app, trusted_ips="unix:", real_ip_header="X-Real-IP")
    scope: Any = {"type": "http", "client": None, "server": ("/run/app.sock", None), "headers": []}
    await run(wrapped, dict(scope))
    assert app.scope["client"] is None
    assert resolution_of(app.scope).peer == Address("unix:", None)
    await run(wrapped, {**scope, "headers": [(b"x-real-ip", b"203.0.113.7")]})
    assert app.scope["client"] == ("203.0.113.7", 0)


async def test_a_tcp_peer_that_hung_up_is_no_unix_socket() -> None:
    """uvicorn gives no client once the peer has reset the connection; that must not be trusted."""
    app = App()
    wrapped = RealIPMiddleware(app, trusted_ips="unix:", real_ip_header="X-Real-IP")
    headers = [(b"x-real-ip", b"203.0.113.7")]
    scope = {"type": "http", "client": None, "server": ("10.0.0.9", 80), "headers": headers}
    await run(wrapped, scope)
    assert app.scope["client"] is None
    assert not resolution_of(app.scope).peer_trusted


@pytest.mark.parametrize(
    ("client", "shown"), [(("FE80::1%eth0", 5), ("fe80::1", 5)), (["10.0.0.1", 7], ("10.0.0.1", 7))]
)
async def test_peers_that_are_spelt_otherwise(client: object, shown: tuple[str, int]) -> None:
    assert (await call(client))["client"] == shown


async def test_a_peer_that_is_no_address() -> None:
    scope = await call(("testclient", 50000), ("x-forwarded-for", "203.0.113.7"))
    assert scope["client"] == ("testclient", 50000)


async def test_inside_another_one_the_decision_is_made_anew_from_the_same_peer() -> None:
    """The outer one's client must not be taken for the peer: 10.0.0.7 would then be trusted."""
    inner = App()
    app = RealIPMiddleware(RealIPMiddleware(inner, **XFF), **XFF)
    for lines, client in [
        ((b"203.0.113.7, 10.0.0.7",), "10.0.0.7"),
        ((b"203.0.113.7",), "203.0.113.7"),
        ((), "10.0.0.1"),
    ]:
        headers = [(b"x-forwarded-for", line) for line in lines]
        await run(app, {"type": "http", "client": BALANCER, "headers": headers})
        assert inner.scope["client"][0] == client
        assert resolution_of(inner.scope).peer == Address(*BALANCER)


async def test_the_connection_of_our_own_server_wins() -> None:
    preamble = Preamble(2, "PROXY", "203.0.113.7", 51000, "198.51.100.9", 443)
    connection = Connection(Address(*BALANCER), ("10.0.0.9", 80), preamble, tls=False)
    app = App()
    settings = Settings(trusted_ips=("10.0.0.0/8",), real_ip_header="proxy_protocol")
    wrapped = RealIPMiddleware(app, settings)
    for client in (("8.8.8.8", 1), None, BALANCER):
        scope: Any = {"type": "http", "client": client, "headers": [], "state": {CONNECTION_KEY: connection}}
        await run(wrapped, scope)
        assert app.scope["client"] == ("203.0.113.7", 51000)
        assert resolution_of(app.scope).preamble is preamble


async def test_uvicorns_own_proxy_headers_are_noticed_once(caplog: pytest.LogCaptureFixture) -> None:
    asgi._warn_of_another_middleware.cache_clear()
    for _ in range(2):
        await call(("203.0.113.7", 0))
    assert [record.getMessage()[:25] for record in caplog.records] == ["a client with port 0 reac"]


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONG_TRUSTED_IPS", "nope")
    with pytest.raises(SettingsError, match=r"^KONG_TRUSTED_IPS: entry 1 'nope': "):
        RealIPMiddleware(App())
    # What an argument overrules need not be right.
    RealIPMiddleware(App(), trusted_ips=["10.0.0.0/8"])


def test_arguments_win_over_settings_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONG_NGINX_PROXY_REAL_IP_HEADER", "X-A")
    with pytest.raises(SettingsError, match=r"^the argument trusted_ips: entry 2 'kong.local': "):
        RealIPMiddleware(App(), trusted_ips=["10.0.0.1", "kong.local"])
    settings = Settings().replaced(trusted_ips=["10.0.0.1"], real_ip_header="X-B", real_ip_recursive=True)
    assert (settings.trusted_ips, settings.real_ip_header, settings.real_ip_recursive) == (
        ("10.0.0.1",),
        "X-B",
        True,
    )
    assert Settings(real_ip_recursive=True).replaced(real_ip_recursive="off").real_ip_recursive is False
    assert Settings(real_ip_recursive=True).replaced().real_ip_recursive is True


async def test_an_argument_beats_the_nginx_spelling_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONG_NGINX_PROXY_REAL_IP_HEADER", "X-A")
    scope = await call(BALANCER, ("x-forwarded-for", "203.0.113.7"), ("x-a", "6.6.6.6"))
    assert scope["client"][0] == "203.0.113.7"


def test_a_warning_for_a_misspelt_variable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KONG_TRUSTED_IP", "10.0.0.1")
    RealIPMiddleware(App())
    assert "did you mean KONG_TRUSTED_IPS?" in caplog.text


def test_resolution_of_without_middleware() -> None:
    with pytest.raises(ResolutionMissingError, match="add_middleware"):
        resolution_of({"type": "http"})


def seen(request: Request) -> JSONResponse:
    assert request.client is not None
    return JSONResponse([request.client.host, resolution_of(request).source])


async def seen_by_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    assert websocket.client is not None
    await websocket.send_json([websocket.client.host, resolution_of(websocket).source])
    await websocket.close()


ROUTES = [Route("/", seen), WebSocketRoute("/ws", seen_by_websocket)]


def starlette_by_list() -> Starlette:
    return Starlette(routes=ROUTES, middleware=[Middleware(RealIPMiddleware, **XFF)])


def starlette_by_call() -> Starlette:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealIPMiddleware, trusted_ips="10.0.0.0/8", real_ip_header="X-Forwarded-For")
    return app


def starlette_with_settings() -> Starlette:
    app = Starlette(routes=ROUTES)
    environ = {"KONG_TRUSTED_IPS": "10.0.0.0/8", "KONG_REAL_IP_HEADER": "X-Forwarded-For"}
    app.add_middleware(RealIPMiddleware, Settings.load(environ))
    return app


@pytest.mark.parametrize("make", [starlette_by_list, starlette_by_call, starlette_with_settings])
def test_starlette(make: Any) -> None:
    client = TestClient(make(), client=BALANCER, headers={"X-Forwarded-For": "203.0.113.7"})
    assert client.get("/").json() == ["203.0.113.7", "X-Forwarded-For"]
    with client.websocket_connect("/ws") as websocket:
        assert websocket.receive_json() == ["203.0.113.7", "X-Forwarded-For"]


def test_fastapi() -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.add_middleware(RealIPMiddleware, trusted_ips=["10.0.0.0/8"], real_ip_header="X-Forwarded-For")

    @app.get("/")
    def index(request: Request) -> str:
        return resolution_of(request).client.ip

    client = TestClient(app, client=BALANCER, headers={"X-Forwarded-For": "203.0.113.7"})
    assert client.get("/").json() == "203.0.113.7"


LINES = st.sampled_from(
    [b"", b"203.0.113.7", b"203.0.113.8, 10.0.0.7", b"203.0.113.7, 10.0.0.7", b"203.0.113.7,10.0.0.7", b"junk", b"10.0.0.9",
     b"junk, 10.0.0.7", b",10.0.0.7", b"6.6.6.6 203.0.113.7, 10.0.0.7", b"203.0.113.7,", b"10.0.0.7, 203.0.113.7:80"]
)  # fmt: skip
REQUESTS: st.SearchStrategy[Any] = st.lists(
    st.tuples(
        st.sampled_from([BALANCER, BALANCER, ("10.0.0.2", 1), ("8.8.8.8", 1)]),
        LINES.map(lambda line: [line]) | st.lists(LINES, max_size=2),
        st.sampled_from([None, None, {"websocket.http.response": {}}]),
    ),
    min_size=4,
    max_size=12,
)


@given(
    REQUESTS,
    st.sampled_from(["X-Forwarded-For", "x-forwarded-for", "X-Real-IP", "proxy_protocol"]),
    st.booleans(),
)
async def test_whatever_came_before_the_answer_is_that_of_resolve(
    requests: list[Any], header: str, recursive: bool
) -> None:
    """All that is remembered, of peers and of proxies, is only ever about speed."""
    settings = Settings(trusted_ips=("10.0.0.0/8",), real_ip_header=header, real_ip_recursive=recursive)
    app = App()
    wrapped = RealIPMiddleware(app, settings)
    for client, lines, extensions in requests:
        headers = [(b"host", b"x"), *((header.lower().encode(), line) for line in lines)]
        more = {} if extensions is None else {"extensions": extensions}
        await run(wrapped, {"type": "http", "client": client, "headers": headers, **more})
        expected = resolve(settings.rules(), Address(*client), None, lines)
        assert resolution_of(app.scope) == expected
        assert app.scope["client"] == (expected.client.ip, expected.client.port or 0)
