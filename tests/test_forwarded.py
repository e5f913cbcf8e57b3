"""The forwarded view: what must hold whatever is sent, and what is put into the scope."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from kongrealip import RealIPMiddleware, Settings, SettingsError, resolution_of
from kongrealip.address import Address
from kongrealip.preamble import Preamble
from kongrealip.realip import (
    CONNECTION_KEY,
    Connection,
    Forwarded,
    ForwardedRules,
    KongTrust,
    Request,
    Resolution,
    Rules,
    TrustedNetworks,
    resolve,
)
from tests.test_middleware import App, run

BALANCER, STRANGER, CLIENT = Address("10.0.0.1", 1234), Address("8.8.8.8", 9), Address("203.0.113.7", 51000)
NETWORKS = ("10.0.0.0/8",)
BY_PREAMBLE = Preamble(2, "PROXY", *CLIENT, "198.51.100.9", 80)
LOCAL = Preamble(2, "LOCAL")
HOST = (b"host", b"Example.Test:8080")
NAMES = [
    b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-path", b"x-forwarded-prefix",
    b"x-real-ip", b"x_forwarded_proto", b"x_forwarded_host", b"x-forwarded_port", b"x_forwarded-prefix",
    b"x_forwarded_path", b"forwarded", b"x-forwarded-scheme", b"x_real_ip", b"connection",
]  # fmt: skip
VALUES = st.sampled_from(
    [b"https", b"http, https", b"", b"evil.example:99", b"a@b:c@d", b"[::1]:80", b"443", b"0x1bb", b"/p", b"//e", b"6.6.6.6",
     b"x-forwarded-proto, x-forwarded-for", b"close"]
) | st.binary(max_size=20)  # fmt: skip
LINES = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8)


def view(
    peer: Address,
    *lines: tuple[bytes, bytes],
    preamble: Preamble | None = None,
    header: str = "X-Real-IP",
    client: Address | None = None,
    port: int | None = 8000,
    **rules: Any,
) -> Forwarded:
    headers = [HOST, *lines]
    decided = Rules(TrustedNetworks(NETWORKS), header, recursive=False)
    resolution = resolve(
        decided, peer, preamble, [value for name, value in lines if name == decided.header_name]
    )
    if client is not None:
        resolution = resolution._replace(client=client)
    request = Request(headers, "http", b"/a/../b%2fc", port, None)
    return Forwarded(ForwardedRules(KongTrust(NETWORKS), **rules), resolution, request)


def fields(forwarded: Forwarded) -> dict[str, Any]:
    return {
        name: getattr(forwarded, name)
        for name in ("scheme", "host", "port", "path", "prefix", "host_header", "root_path")
    } | forwarded.upstream_headers


@given(LINES)
def test_no_header_of_an_untrusted_peer_changes_anything(lines: list[tuple[bytes, bytes]]) -> None:
    assert fields(view(STRANGER, *lines)) == fields(view(STRANGER))


@given(LINES, st.binary(max_size=20).filter(lambda value: b"connection" not in value))
def test_kong_appends_to_x_forwarded_for_for_everybody(
    lines: list[tuple[bytes, bytes]], value: bytes
) -> None:
    lines = [line for line in lines if line[0] != b"connection"]
    seen = fields(view(STRANGER, *lines, (b"x-forwarded-for", value)))
    own = value.rstrip(b" ").decode("latin-1")
    assert seen == fields(view(STRANGER)) | {"X-Forwarded-For": f"{own}, {STRANGER.ip}"}


@given(LINES)
def test_reading_never_raises_and_says_the_same_again(lines: list[tuple[bytes, bytes]]) -> None:
    forwarded = view(BALANCER, *lines, (b"x-forwarded-for", b"1"))
    assert fields(forwarded) == fields(forwarded)
    for text in forwarded.upstream_headers.values():
        text.encode("latin-1")


@given(LINES, st.sampled_from([BY_PREAMBLE, LOCAL, Preamble(1, "PROXY")]))
def test_off_and_auto_behind_a_preamble_believe_nobody(
    lines: list[tuple[bytes, bytes]], preamble: Preamble
) -> None:
    for believe, given_preamble in (("off", None), ("off", preamble), ("auto", preamble)):
        seen = view(BALANCER, *lines, preamble=given_preamble, header="proxy_protocol", believe=believe)
        silent = view(BALANCER, preamble=given_preamble, header="proxy_protocol", believe=believe)
        assert fields(seen) == fields(silent)


@given(LINES)
def test_auto_without_a_preamble_is_as_trusted(lines: list[tuple[bytes, bytes]]) -> None:
    assert fields(view(BALANCER, *lines, believe="auto")) == fields(view(BALANCER, *lines))


@given(
    LINES, st.sampled_from(NAMES[:5]), st.sampled_from(["{}", "close, {}", "keep-alive,{} ", "X-A, {}, x-b"])
)
def test_what_connection_names_is_not_believed(
    lines: list[tuple[bytes, bytes]], name: bytes, form: str
) -> None:
    lines = [line for line in lines if line[0] != b"connection"]
    listed = (b"connection", form.format(name.decode().title()).encode())
    without = [line for line in lines if line[0].replace(b"_", b"-") != name]
    assert fields(view(BALANCER, *lines, listed)) == fields(view(BALANCER, *without))


def test_a_trusted_peer_is_believed() -> None:
    lines = [
        (b"x-forwarded-proto", b"HTTPS"),
        (b"x-forwarded-host", b"Shop.Example"),
        (b"x-forwarded-port", b"8443"),
        (b"x-forwarded-path", b"/api/x"),
        (b"x-forwarded-prefix", b"/api"),
    ]
    forwarded = view(BALANCER, *lines)
    assert fields(forwarded) == {
        "scheme": "https", "host": "shop.example", "port": 8443, "path": "/api/x", "prefix": "/api",
        "host_header": b"Shop.Example:8443", "root_path": b"/api",
        "X-Real-IP": "10.0.0.1", "X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "HTTPS",
        "X-Forwarded-Host": "Shop.Example", "X-Forwarded-Port": "8443", "X-Forwarded-Path": "/api/x",
        "X-Forwarded-Prefix": "/api",
    }  # fmt: skip


def test_port_maps_stand_for_the_listener() -> None:
    assert view(STRANGER, port_maps={"8000": 80.0}).port == 80
    assert view(STRANGER, port_maps={"8000": 80.5}).upstream_headers["X-Forwarded-Port"] == "80.5"
    assert view(STRANGER, port_maps={"08000": 80.0}).port == 8000
    assert "X-Forwarded-Port" not in view(STRANGER, port=None, port_maps={"None": 1.0}).upstream_headers


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ({b"host": b"shop.example"}, b"shop.example"),
        ({b"host": b"shop.example:81", b"port": b"8443"}, b"shop.example:81"),
        ({b"host": b"shop.example", b"port": b"80"}, b"shop.example"),
        ({b"host": b"shop.example", b"port": b"443", b"proto": b"https"}, b"shop.example"),
        ({b"host": b"shop.example", b"port": b"443.5"}, b"shop.example"),
        ({b"host": b"[2001:db8::1]", b"port": b"81"}, b"[2001:db8::1]:81"),
        ({b"host": b"user@shop.example"}, b"shop.example"),
        ({b"host": b"evil.example/path"}, None),
        ({b"host": b"evil.example\\@x y"}, None),
        ({b"host": b"a.example, b.example"}, None),
        ({b"host": b""}, None),
        ({b"host": b"shop.example:99999"}, None),
        ({b"host": b"shop.example:0"}, None),
        ({b"host": b"[:::]"}, None),
        ({b"host": b"[1.2.3.4]"}, None),
        ({b"host": b"shop.example", b"port": b"443", b"proto": b"wss"}, b"shop.example"),
        ({b"host": b"shop.example", b"port": b"80", b"proto": b"ws"}, b"shop.example"),
        ({b"host": b"shop.example", b"port": b"443", b"proto": b"ws"}, b"shop.example:443"),
        ({b"port": b"8443"}, None),
    ],
)  # fmt: skip
def test_the_host_header_that_the_client_wrote(lines: dict[bytes, bytes], seen: bytes | None) -> None:
    headers = [(b"x-forwarded-" + name, value) for name, value in lines.items()]
    assert view(BALANCER, *headers).host_header == seen


@pytest.mark.parametrize(
    ("prefix", "seen"),
    [
        (b"/api", b"/api"), (b"/Api/V1/", b"/Api/V1"), (b"/~a_b-c.0", b"/~a_b-c.0"), (b"/", None), (b"", None), (b"api", None),
        (b"//evil.example", None), (b"/a//b", None), (b"/a/../b", None), (b"/a?b", None), (b"/a%2fb", None),
        (b"/\\evil.example", None), (b"/a b", None),
    ],
)  # fmt: skip
def test_only_a_plain_prefix_becomes_the_root_path(prefix: bytes, seen: bytes | None) -> None:
    assert view(BALANCER, (b"x-forwarded-prefix", prefix)).root_path == seen


# The scheme that a preamble tells of.

SSL_TLV = b"\x20\x00\x05\x01\x00\x00\x00\x00"
NO_TLS_TLV = b"\x20\x00\x05\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("preamble", "scheme"),
    [
        (BY_PREAMBLE, "http"),
        (BY_PREAMBLE._replace(destination_port=443), "https"),
        (BY_PREAMBLE._replace(tlv_area=SSL_TLV), "https"),
        (BY_PREAMBLE._replace(tlv_area=NO_TLS_TLV, destination_port=443), "http"),
        (BY_PREAMBLE._replace(tlv_area=b"\x20\x00\x02\x01\x00", destination_port=443), "https"),
        (LOCAL, "http"),
        (None, "http"),
    ],
)
def test_https_of_a_preamble(preamble: Preamble | None, scheme: str) -> None:
    more: dict[str, Any] = {"preamble": preamble, "header": "proxy_protocol"}
    assert view(BALANCER, scheme_from_preamble=True, **more).scheme == scheme
    assert view(BALANCER, **more).scheme == "http"
    assert view(STRANGER, scheme_from_preamble=True, **more).scheme == "http"
    told = (b"x-forwarded-proto", b"wss")
    assert view(BALANCER, told, scheme_from_preamble=True, **more).scheme == "wss"
    hidden = view(BALANCER, told, scheme_from_preamble=True, believe="auto", **more)
    assert hidden.scheme == ("wss" if preamble is None else scheme)


# Into the scope.

TRUST: dict[str, Any] = {"trusted_ips": NETWORKS, "real_ip_header": "X-Forwarded-For"}


async def scope_of(
    peer: object, *lines: tuple[bytes, bytes], scope: dict[str, Any] | None = None, **arguments: Any
) -> Any:
    """What the application sees, the third time that the peer comes."""
    app = App()
    wrapped = RealIPMiddleware(app, **{**TRUST, **arguments})
    for headers in ([], list(lines), list(lines)):
        given: dict[str, Any] = {
            "type": "http", "scheme": "http", "client": peer, "server": ("10.0.0.9", 8000), "root_path": "",
            "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": [(b"host", b"internal:8000"), *headers],
        }  # fmt: skip
        await run(wrapped, given | (scope or {}))
    return app.scope


@pytest.mark.parametrize(
    ("value", "http", "websocket"),
    [
        (b"https", "https", "wss"), (b"HTTPS", "https", "wss"), (b"wss", "https", "wss"), (b"http", "http", "ws"),
        (b"ws", "http", "ws"), (b"ftp", "http", "ws"), (b"https, http", "http", "ws"), (b"", "http", "ws"),
    ],
)  # fmt: skip
async def test_scheme(value: bytes, http: str, websocket: str) -> None:
    for name in (b"x-forwarded-proto", b"x_forwarded_proto"):
        line = (name, value)
        assert (await scope_of(tuple(BALANCER), line))["scheme"] == http
        socket = {"type": "websocket", "scheme": "ws"}
        assert (await scope_of(tuple(BALANCER), line, scope=socket))["scheme"] == websocket
        assert (await scope_of(tuple(STRANGER), line))["scheme"] == "http"
        assert (await scope_of(tuple(BALANCER), line, forwarded_headers="off"))["scheme"] == "http"
        assert (await scope_of(tuple(BALANCER), line, (b"connection", name)))["scheme"] == "http"
        assert (await scope_of(tuple(BALANCER), line, (b"x-forwarded-for", b"1.2.3.4")))["scheme"] == http


async def test_the_scheme_is_told_by_the_header_of_the_address_as_well() -> None:
    line = (b"x-forwarded-proto", b"https")
    scope = await scope_of(tuple(BALANCER), line, real_ip_header="X-Forwarded-Proto")
    assert (scope["scheme"], scope["client"]) == ("https", tuple(BALANCER))
    mapped = ("::ffff:10.0.0.1", 5)
    scope = await scope_of(mapped, line, real_ip_header="X-Forwarded-Proto")
    assert scope["scheme"] == "http", "Kong does not trust this peer, nginx does"


async def test_scheme_and_client_are_trusted_by_different_tests() -> None:
    """Reference, section 3.3: an IPv4-mapped peer is an IPv6 address for Kong."""
    lines = ((b"x-forwarded-proto", b"https"), (b"x-forwarded-for", b"203.0.113.7"))
    mapped = ("::ffff:10.0.0.1", 5)
    scope = await scope_of(mapped, *lines)
    assert (scope["scheme"], scope["client"]) == ("http", ("203.0.113.7", 0))
    scope = await scope_of(mapped, *lines, trusted_ips="::/0")
    assert (scope["scheme"], scope["client"]) == ("https", mapped)


async def test_our_own_servers_connections() -> None:
    cases: list[tuple[Preamble | None, dict[str, Any], str]] = [
        (BY_PREAMBLE, {}, "https"),
        (BY_PREAMBLE, {"forwarded_headers": "auto"}, "http"),
        (None, {"forwarded_headers": "auto"}, "https"),
        (BY_PREAMBLE._replace(destination_port=443), {"forwarded_headers": "auto", "scheme_from_preamble": True}, "https"),
    ]  # fmt: skip
    for preamble, arguments, scheme in cases:
        connection = Connection(BALANCER, ("10.0.0.9", 8000), preamble, tls=False)
        more = {"state": {CONNECTION_KEY: connection}, "client": None}
        line = (b"x-forwarded-proto", b"https")
        found = await scope_of(None, line, scope=more, real_ip_header="proxy_protocol", **arguments)
        assert found["scheme"] == scheme, (preamble, arguments)
        assert resolution_of(found).forwarded.request.scheme == "http"


@pytest.mark.parametrize(("tls", "scheme"), [(True, "https"), (False, "http")])
async def test_the_scheme_of_our_own_servers_connection(tls: bool, scheme: str) -> None:
    """It is the connection's, whatever stands in the scope, and nobody believed says otherwise."""
    connection = Connection(STRANGER, ("10.0.0.9", 8000), None, tls=tls)
    found = await scope_of(None, scope={"state": {CONNECTION_KEY: connection}, "scheme": "ws"})
    assert resolution_of(found).forwarded.request.scheme == scheme


async def test_host_and_root_path_on_request() -> None:
    lines = ((b"x-forwarded-host", b"shop.example"), (b"x-forwarded-prefix", b"/api/"))
    asked: dict[str, Any] = {"replace_host": True, "replace_root_path": "on"}
    scope = await scope_of(tuple(BALANCER), *lines, **asked)
    assert [value for name, value in scope["headers"] if name == b"host"] == [b"shop.example"]
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", "/api/x", b"/api/x")
    view = resolution_of(scope).forwarded
    assert (view.request.path, view.request.host) == (b"/x", b"internal"), "the view is of what was received"
    assert view.upstream_headers["X-Forwarded-Path"] == "/x"
    for arguments, peer in (
        ({}, BALANCER),
        (asked, STRANGER),
        (asked | {"forwarded_headers": "off"}, BALANCER),
    ):
        scope = await scope_of(tuple(peer), *lines, **arguments)
        assert (b"host", b"internal:8000") in scope["headers"]
        assert (scope["root_path"], scope["path"]) == ("", "/x")
    scope = await scope_of(tuple(BALANCER), *lines, scope={"raw_path": None}, **asked)
    assert scope["raw_path"] is None


def test_links_and_redirects_are_the_clients() -> None:
    def index(request: StarletteRequest) -> JSONResponse:
        return JSONResponse([str(request.url), str(request.url_for("item"))])

    def item(request: StarletteRequest) -> RedirectResponse:
        return RedirectResponse(request.url_for("index"))

    inner = Starlette(routes=[Route("/", index, name="index"), Route("/item/", item, name="item")])
    app = RealIPMiddleware(inner, **TRUST, replace_host=True, replace_root_path=True)
    client = TestClient(app, client=("10.0.0.1", 1234), follow_redirects=False, headers={
        "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example", "X-Forwarded-Prefix": "/api",
    })  # fmt: skip
    assert client.get("/").json() == ["https://shop.example/api/", "https://shop.example/api/item/"]
    assert client.get("/item/").headers["location"] == "https://shop.example/api/"
    assert client.get("/item").headers["location"] == "https://shop.example/api/item/"


def test_the_view_inside_a_mount_is_that_of_the_server() -> None:
    def show(request: StarletteRequest) -> JSONResponse:
        forwarded = resolution_of(request).forwarded
        return JSONResponse([forwarded.prefix, forwarded.path, resolution_of(request).upstream_headers])

    app = Starlette(routes=[Mount("/shop", routes=[Route("/item", show)])])
    client = TestClient(RealIPMiddleware(app, **TRUST), client=("8.8.8.8", 9))
    prefix, path, upstream = client.get("/shop/item").json()
    assert (prefix, path) == (None, "/shop/item")
    assert upstream["X-Forwarded-Path"] == "/shop/item"
    assert "X-Forwarded-Prefix" not in upstream


async def test_the_view_is_made_once() -> None:
    scope = await scope_of(tuple(BALANCER), (b"x-forwarded-proto", b"https"))
    resolution = resolution_of(scope)
    assert resolution_of(scope) is resolution
    assert resolution.forwarded.scheme == "https"
    assert isinstance(resolution, Resolution)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"KONGREALIP_FORWARDED_HEADERS": "yes"}, "KONGREALIP_FORWARDED_HEADERS: 'yes': write one of trusted, off, auto"),
        ({"KONGREALIP_REPLACE_HOST": "1"}, "KONGREALIP_REPLACE_HOST: '1': write one of on, off"),
        ({"KONG_LUA_MAX_REQ_HEADERS": "0"}, "KONG_LUA_MAX_REQ_HEADERS: '0': write a whole number from 1 to 1000"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert caught.value.problems == (problem,)


def test_the_limit_of_lines_is_kongs_setting() -> None:
    rules = Settings.load(
        {"KONG_LUA_MAX_REQ_HEADERS": "2", "KONG_TRUSTED_IPS": "10.0.0.0/8"}
    ).forwarded_rules()
    late = ((b"a", b"b"), (b"x-forwarded-proto", b"https"))
    forwarded = view(BALANCER, *late, most_lines=rules.most_lines)
    assert (forwarded.scheme, forwarded.upstream_headers["X-Forwarded-Proto"]) == ("https", "http")


def test_a_long_name_in_connection_costs_no_more_than_its_length() -> None:
    """Each of its dashes could be an underscore: 2 to the power of thousands spellings."""
    connection = (b"connection", b"-a" * 2000)
    assert view(BALANCER, connection, (b"x-forwarded-proto", b"https")).scheme == "https"


@pytest.mark.parametrize("form", [b"%bx", b"0x%bg", b"0b%b", b"1e%b"])
def test_a_long_number_is_read_in_one_go(form: bytes) -> None:
    """Were the time quadratic, this would take half an hour, and a head of 32 KB a quarter of a minute."""
    number = form % (b"1" * 400_000)
    assert view(BALANCER, (b"x-forwarded-port", number), (b"x-forwarded-host", b"a:" + number)).port == 8000


async def test_two_middlewares_that_read_the_same_variables() -> None:
    lines = (
        (b"x-forwarded-host", b"shop.example"),
        (b"x-forwarded-prefix", b"/api"),
        (b"x-forwarded-proto", b"https"),
    )
    asked: dict[str, Any] = {**TRUST, "replace_host": True, "replace_root_path": True}
    for server in (
        {},
        {"state": {CONNECTION_KEY: Connection(BALANCER, ("10.0.0.9", 8000), None, tls=False)}},
    ):
        app = App()
        scope = {
            "type": "http", "scheme": "http", "client": tuple(BALANCER), "server": ("10.0.0.9", 8000), "root_path": "",
            "path": "/x", "raw_path": b"/x", "headers": [(b"host", b"internal"), *lines], **server,
        }  # fmt: skip
        await run(RealIPMiddleware(RealIPMiddleware(app, **asked), **asked), scope)
        seen = app.scope
        assert (seen["path"], seen["root_path"], seen["scheme"]) == ("/api/x", "/api", "https")
        request = resolution_of(seen).forwarded.request
        assert (request.path, request.host, request.scheme) == (b"/x", b"internal", "http")


async def test_the_inner_of_two_decides_about_the_scheme_anew() -> None:
    line = (b"x-forwarded-proto", b"https")
    app = App()
    inner = RealIPMiddleware(app, **TRUST, forwarded_headers="off")
    scope = {"type": "http", "scheme": "http", "client": tuple(BALANCER), "headers": [line], "path": "/"}
    await run(RealIPMiddleware(inner, **TRUST), scope)
    assert app.scope["scheme"] == "http"
    assert resolution_of(app.scope).forwarded.scheme == "http"


async def test_what_kong_sends_upstream_goes_by_the_connections_own_scheme() -> None:
    """A spelling that its getters find and its runloop does not."""
    scope = await scope_of(tuple(BALANCER), (b"x-forwarded_proto", b"https"))
    assert scope["scheme"] == "https"
    assert resolution_of(scope).upstream_headers["X-Forwarded-Proto"] == "http"
