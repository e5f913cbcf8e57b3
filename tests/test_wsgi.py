"""RealIPMiddleware at the level of PEP 3333: any server, Flask, Django."""

from __future__ import annotations

import contextvars
import gc
import io
import subprocess
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongrealip import ResolutionMissingError, Settings, SettingsError
from kongrealip.address import Address
from kongrealip.middleware import asgi
from kongrealip.middleware.wsgi import ORIGINAL_KEY, RealIPMiddleware, resolution_of
from kongrealip.preamble import Preamble
from tests import golden
from tests.test_forwarded_vectors import LISTEN_PORT, request_of, seen_in, settings_of, wanted
from tests.test_forwarded_vectors import VECTORS as FORWARDED_VECTORS
from tests.test_resolve_vectors import PEER_PORT, SERVED, by_id, nginx_view, peer_of, rules_of, split_preamble

BALANCER = {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "1234"}
XFF: dict[str, Any] = {"trusted_ips": "10.0.0.0/8", "real_ip_header": "X-Forwarded-For"}
PROXY: dict[str, Any] = {"trusted_ips": "10.0.0.0/8,unix:", "real_ip_header": "proxy_protocol"}
HTTPS = {"HTTP_X_FORWARDED_PROTO": "https"}
CLIENT = {"HTTP_X_FORWARDED_FOR": "203.0.113.7"}


class App:
    """Remembers the environ that reached it."""

    environ: dict[str, Any]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environ = environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


def answer(app: Any, environ: dict[str, Any]) -> bytes:
    """One request, as a server makes it."""
    parts = app(environ, lambda status, headers, exc_info=None: lambda data: None)
    try:
        return b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()


def bare(**more: Any) -> dict[str, Any]:
    """An environ without a peer."""
    environ: dict[str, Any] = {"HTTP_HOST": "shop.test", "SERVER_NAME": "inside", "SERVER_PORT": "8000"}
    setup_testing_defaults(environ)
    return environ | {"QUERY_STRING": ""} | more


def call(environ: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """What the application gets to see."""
    app = App()
    answer(RealIPMiddleware(app, Settings(), **(arguments or XFF)), bare(**environ))
    return app.environ


class Accepted:
    """A socket as far as gunicorn's is looked at; tests/servers has real ones."""

    def __init__(self, peer: tuple[str, int] | None, here: object = ("10.0.0.9", 8000)) -> None:
        self._peer = peer
        self._here = here

    def getsockname(self) -> object:
        return self._here

    def getpeername(self) -> tuple[str, int]:
        if self._peer is None:
            raise OSError("not connected any more")
        return self._peer


class AcceptedTLS(Accepted):
    def cipher(self) -> None:
        """What tells it apart."""


SAID = {"PROXY_PROTOCOL": "TCP4", "PROXY_ADDR": "10.0.0.9", "PROXY_PORT": "443"}
SAID_CLIENT = {**SAID, "REMOTE_ADDR": "203.0.113.7", "REMOTE_PORT": "51000"}


def test_it_is_a_wsgi_application() -> None:
    """By the checker of the standard library, on both sides."""
    wrapped = validator(RealIPMiddleware(validator(App()), Settings(), **XFF))
    assert answer(wrapped, bare(**BALANCER, **CLIENT, **HTTPS)) == b"done"


def test_one_hop() -> None:
    environ = call({**BALANCER, **CLIENT})
    assert environ["REMOTE_ADDR"] == "203.0.113.7"
    assert "REMOTE_PORT" not in environ, "the balancer's port is not the client's"
    resolution = resolution_of(environ)
    assert resolution.client == Address("203.0.113.7", None)
    assert resolution.peer == Address("10.0.0.1", 1234)
    assert (resolution.source, resolution.peer_trusted) == ("X-Forwarded-For", True)
    assert environ[ORIGINAL_KEY]["REMOTE_ADDR"] == "10.0.0.1"
    assert environ[ORIGINAL_KEY]["REMOTE_PORT"] == "1234"


def test_the_port_of_the_hop() -> None:
    environ = call({**BALANCER, "HTTP_X_FORWARDED_FOR": "203.0.113.7:51000"})
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("203.0.113.7", "51000")


def test_an_untrusted_peer_is_the_client() -> None:
    environ = call({"REMOTE_ADDR": "8.8.8.8", "REMOTE_PORT": 5, **CLIENT, **HTTPS})
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("8.8.8.8", "5")
    assert environ["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    "peer", [{}, {"REMOTE_ADDR": ""}, {"REMOTE_ADDR": "localhost", "REMOTE_PORT": "None"}], ids=str
)
def test_a_peer_that_the_server_does_not_know_is_trusted_by_nobody(peer: dict[str, str]) -> None:
    """Not even where Unix sockets are: anybody could be it."""
    environ = call({**peer, **CLIENT}, trusted_ips="unix:,0.0.0.0/0,::/0", real_ip_header="X-Forwarded-For")
    assert environ["REMOTE_ADDR"] == peer.get("REMOTE_ADDR", "")
    assert "REMOTE_PORT" not in environ
    assert not resolution_of(environ).peer_trusted


@pytest.mark.parametrize(
    ("value", "scheme"), [("https", "https"), ("HTTPS", "https"), ("wss", "https"), ("ws", "http"), ("junk", "http"), ("", "http"), ("https,http", "http")]
)  # fmt: skip
def test_the_scheme(value: str, scheme: str) -> None:
    environ = call({**BALANCER, "HTTP_X_FORWARDED_PROTO": value})
    assert environ["wsgi.url_scheme"] == scheme


def test_the_scheme_is_believed_down_as_well() -> None:
    environ = call({**BALANCER, "wsgi.url_scheme": "https", "HTTPS": "on", "HTTP_X_FORWARDED_PROTO": "http"})
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("http", "off")
    assert call({**BALANCER, **HTTPS, "HTTPS": "off"})["HTTPS"] == "on"
    assert "HTTPS" not in call({**BALANCER, **HTTPS})


def test_a_header_that_connection_names_is_not_for_us() -> None:
    assert call({**BALANCER, **HTTPS, "HTTP_CONNECTION": "x-forwarded-proto"})["wsgi.url_scheme"] == "http"


def test_forwarded_headers_off() -> None:
    assert call({**BALANCER, **HTTPS}, **XFF, forwarded_headers="off")["wsgi.url_scheme"] == "http"


def test_host_and_prefix_stay_unless_they_are_asked_for() -> None:
    told = {"HTTP_X_FORWARDED_HOST": "outside.test:8443", "HTTP_X_FORWARDED_PREFIX": "/shop"}
    environ = call({**BALANCER, **told, "PATH_INFO": "/cart"})
    assert (environ["HTTP_HOST"], environ["SCRIPT_NAME"]) == ("shop.test", "")
    environ = call(
        {**BALANCER, **told, "PATH_INFO": "/cart"}, **XFF, replace_host=True, replace_root_path=True
    )
    assert (environ["HTTP_HOST"], environ["SCRIPT_NAME"]) == ("outside.test:8443", "/shop")
    assert environ["PATH_INFO"] == "/cart"
    assert environ[ORIGINAL_KEY]["HTTP_HOST"] == "shop.test"
    # An odd value would end up in links.
    odd = {"HTTP_X_FORWARDED_HOST": "evil.test/", "HTTP_X_FORWARDED_PREFIX": "//evil.test"}
    environ = call({**BALANCER, **odd}, **XFF, replace_host=True, replace_root_path=True)
    assert (environ["HTTP_HOST"], environ["SCRIPT_NAME"]) == ("shop.test", "")


def test_forwarded_values_are_those_of_the_request_as_it_came() -> None:
    """Whoever asks does so behind what routes: SCRIPT_NAME and PATH_INFO are others by then."""
    more = {"SCRIPT_NAME": "/app", "PATH_INFO": "/caf\u00c3\u00a9 %", "HTTP_X_FORWARDED_HOST": "outside.test"}
    environ = call({**BALANCER, **CLIENT, **more}, **XFF, replace_host=True)
    environ |= {"SCRIPT_NAME": "/app/caf\u00c3\u00a9 %", "PATH_INFO": ""}
    resolution = resolution_of(environ)
    assert resolution.forwarded.prefix == "/app"
    assert resolution.forwarded.path == "/app/caf\u00c3\u00a9 %25"
    assert resolution.forwarded.request.host == b"shop.test"
    assert resolution.upstream_headers == {
        "X-Real-IP": "203.0.113.7",
        "X-Forwarded-For": "203.0.113.7, 10.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "outside.test",
        "X-Forwarded-Port": "8000",
        "X-Forwarded-Path": "/app/caf%C3%A9%20%25",
        "X-Forwarded-Prefix": "/app",
    }
    assert resolution_of(environ) is resolution


@pytest.mark.parametrize(
    ("target", "path"), [("/a%2Fb/../c?x=1", "/a%2Fb/../c"), ("http://h/a%2Fb?x", "/a/b"), ("*", "/a/b")]
)
@pytest.mark.parametrize("name", ["RAW_URI", "REQUEST_URI"])
def test_the_path_as_it_was_written(name: str, target: str, path: str) -> None:
    environ = call({**BALANCER, name: target, "PATH_INFO": "/a/b"})
    assert resolution_of(environ).upstream_headers["X-Forwarded-Path"] == path


def test_two_of_them_decide_from_the_same_peer() -> None:
    app = App()
    inner = RealIPMiddleware(app, Settings(), trusted_ips="10.0.0.1", real_ip_header="X-Real-IP")
    outer = RealIPMiddleware(inner, Settings(), **XFF)
    answer(outer, bare(**BALANCER, **CLIENT, **HTTPS, HTTP_X_REAL_IP="203.0.113.8"))
    assert app.environ["REMOTE_ADDR"] == "203.0.113.8"
    assert resolution_of(app.environ).peer == Address("10.0.0.1", 1234)
    assert app.environ[ORIGINAL_KEY]["REMOTE_ADDR"] == "10.0.0.1"
    answer(RealIPMiddleware(inner, Settings(), **XFF, forwarded_headers="off"), app.environ)
    assert app.environ["wsgi.url_scheme"] == "https"


def test_it_is_configured_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONG_TRUSTED_IPS", "10.0.0.0/8")
    monkeypatch.setenv("KONG_REAL_IP_HEADER", "not one word")
    app = App()
    answer(RealIPMiddleware(app, real_ip_header="X-Forwarded-For"), bare(**BALANCER, **CLIENT))
    assert app.environ["REMOTE_ADDR"] == "203.0.113.7"
    with pytest.raises(SettingsError, match="KONG_REAL_IP_HEADER"):
        RealIPMiddleware(app)


def test_a_name_that_no_environ_can_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"X_Client.*dashes"):
        RealIPMiddleware(App(), Settings(real_ip_header="X_Client"))
    RealIPMiddleware(App(), Settings(real_ip_header="proxy_protocol"))


def test_upper_case_is_that_of_ascii() -> None:
    """As nginx compares names: str.upper() would make SS of the sharp s."""
    environ = call(
        {**BALANCER, "HTTP_X_SS": "203.0.113.7"}, trusted_ips="10.0.0.1", real_ip_header="X-\u00df"
    )
    assert environ["REMOTE_ADDR"] == "10.0.0.1"


def test_an_empty_line_in_front_does_not_hide_the_client() -> None:
    """Servers join lines. The first is whatever a client writes, and the balancer adds its own."""
    for joined in (",203.0.113.7", ", 203.0.113.7", ",,203.0.113.7", " , ,203.0.113.7"):
        assert call({**BALANCER, "HTTP_X_FORWARDED_FOR": joined})["REMOTE_ADDR"] == "203.0.113.7"


@given(
    st.dictionaries(
        st.sampled_from(
            ["REMOTE_ADDR", "REMOTE_PORT", "SERVER_PORT", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO",
             "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT", "HTTP_X_FORWARDED_PREFIX", "HTTP_CONNECTION",
             "RAW_URI", "SCRIPT_NAME", "HTTP_HOST", "HTTPS"]
        ),
        st.text(st.characters(max_codepoint=255)) | st.sampled_from(["10.0.0.1", "https", "/", ",", "[", "1e9"]),
    )
)  # fmt: skip
def test_nothing_raises(environ: dict[str, str]) -> None:
    """And what is in the environ is text of the form that servers write."""
    seen = call(environ, **XFF, replace_host=True, replace_root_path=True, scheme_from_preamble=True)
    resolution = resolution_of(seen)
    assert seen["REMOTE_ADDR"] == resolution.client.ip
    assert seen["wsgi.url_scheme"] in ("http", "https")
    view = resolution.forwarded
    assert view.path is not None
    assert (view.scheme, view.host, view.port, view.prefix, resolution.upstream_headers) == (
        view.scheme, view.host, view.port, view.prefix, resolution.upstream_headers
    )  # fmt: skip


def test_text_that_no_header_can_have() -> None:
    """Some servers add the process environment, where it may be anything."""
    environ = call({**BALANCER, **CLIENT, "HTTP_PROXY": "http://caf\u20ac", "SCRIPT_NAME": "/caf\u20ac"})
    assert resolution_of(environ).upstream_headers["X-Forwarded-Prefix"] == "/caf?"


def test_the_import_is_cheap() -> None:
    """A bare interpreter's modules: what has to be imported is, when it is needed."""
    code = (
        "import sys, kongrealip.middleware.wsgi;"
        "print(*sorted({'asyncio', 'ssl', 'socket', 'starlette', 'wsgiref', 'logging', 'urllib.parse'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


# gunicorn, whose environ has the accepted socket and what it read of a preamble.


def test_gunicorns_preamble_of_a_trusted_peer() -> None:
    environ = call({**SAID_CLIENT, "gunicorn.socket": Accepted(("10.0.0.1", 1234))}, **PROXY)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("203.0.113.7", "51000")
    resolution = resolution_of(environ)
    assert resolution.peer == Address("10.0.0.1", 1234)
    assert resolution.source == "proxy_protocol"
    assert resolution.preamble == Preamble(0, "PROXY", "203.0.113.7", 51000, "10.0.0.9", 443)


def test_gunicorns_preamble_of_anybody_else() -> None:
    """gunicorn has put its source where the peer should be."""
    environ = call({**SAID_CLIENT, "gunicorn.socket": Accepted(("8.8.8.8", 5))}, **PROXY)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("8.8.8.8", "5")
    assert environ[ORIGINAL_KEY]["REMOTE_ADDR"] == "203.0.113.7"


def test_a_peer_that_is_gone_is_nobody() -> None:
    environ = call({**SAID_CLIENT, "gunicorn.socket": Accepted(None)}, **PROXY)
    assert environ["REMOTE_ADDR"] == ""
    assert not resolution_of(environ).peer_trusted


def test_gunicorns_preamble_without_addresses() -> None:
    for kind, command in (("LOCAL", "LOCAL"), ("UNSPEC", "PROXY")):
        said = {"PROXY_PROTOCOL": kind, "REMOTE_ADDR": None, "REMOTE_PORT": "None"}
        environ = call({**said, "gunicorn.socket": Accepted(("10.0.0.1", 1234))}, **PROXY)
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("10.0.0.1", "1234")
        assert resolution_of(environ).preamble == Preamble(0, command)


def test_gunicorns_preamble_counts_as_long_as_the_connection() -> None:
    """gunicorn tells of it with the first request alone, of which the next ones know nothing."""
    app = App()
    wrapped = RealIPMiddleware(app, Settings(), **PROXY)
    sock, other = Accepted(("10.0.0.1", 1234)), Accepted(("10.0.0.1", 1235))
    for environ, client in [
        ({**SAID_CLIENT, "gunicorn.socket": sock}, "203.0.113.7"),
        ({**BALANCER, "gunicorn.socket": sock}, "203.0.113.7"),
        ({**BALANCER, "gunicorn.socket": other}, "10.0.0.1"),
    ]:
        answer(wrapped, bare(**environ))
        assert app.environ["REMOTE_ADDR"] == client
    del sock, environ, app.environ
    gc.collect()
    assert len(wrapped._preambles) == 0, "and no longer"


def test_what_looks_like_gunicorns_elsewhere_is_not_believed() -> None:
    """A server that adds the process environment may well have such names."""
    environ = call({**SAID_CLIENT, **BALANCER}, **PROXY)
    assert environ["REMOTE_ADDR"] == "10.0.0.1"
    assert resolution_of(environ).preamble is None


def test_a_unix_socket_of_gunicorn() -> None:
    on_unix = {"REMOTE_ADDR": "", "gunicorn.socket": Accepted(None, "/run/app.sock"), "SERVER_PORT": "99"}
    environ = call({**on_unix, **CLIENT}, trusted_ips="unix:", real_ip_header="X-Forwarded-For")
    assert environ["REMOTE_ADDR"] == "203.0.113.7"
    environ = call({**on_unix, **CLIENT})
    assert environ["REMOTE_ADDR"] == ""
    assert resolution_of(environ).peer == Address("unix:", None)
    assert resolution_of(environ).forwarded.port is None, "SERVER_PORT is what the client wrote as Host"


def test_gunicorns_own_idea_of_the_scheme_does_not_count() -> None:
    sock, over_tls = Accepted(("10.0.0.1", 1234)), AcceptedTLS(("10.0.0.1", 1234))
    assert (
        call({**BALANCER, "wsgi.url_scheme": "https", "gunicorn.socket": sock})["wsgi.url_scheme"] == "http"
    )
    assert (
        call({**BALANCER, "wsgi.url_scheme": "http", "gunicorn.socket": over_tls})["wsgi.url_scheme"]
        == "https"
    )


def test_the_scheme_from_gunicorns_preamble() -> None:
    sock = Accepted(("10.0.0.1", 1234))
    environ = call({**SAID_CLIENT, "gunicorn.socket": sock}, **PROXY, scheme_from_preamble=True)
    assert environ["wsgi.url_scheme"] == "https"


# Whom Flask, Django and others ask.


def test_flask() -> None:
    app = flask.Flask("shop")
    app.wsgi_app = RealIPMiddleware(app.wsgi_app, Settings(), **XFF)  # type: ignore[method-assign]

    @app.get("/")
    def index() -> dict[str, Any]:
        return {
            "client": flask.request.remote_addr,
            "secure": flask.request.is_secure,
            "source": resolution_of(flask.request).source,
        }

    got = app.test_client().get("/", environ_overrides={**BALANCER, **CLIENT, **HTTPS})
    assert got.json == {"client": "203.0.113.7", "secure": True, "source": "X-Forwarded-For"}


def test_a_request_that_came_by_asgi() -> None:
    """Django has both kinds, and views need not know."""

    request = SimpleNamespace(scope={"extensions": {}}, META={})
    with pytest.raises(ResolutionMissingError, match="add_middleware"):
        resolution_of(request)


def test_a_request_that_nobody_saw() -> None:
    with pytest.raises(ResolutionMissingError, match="wsgi_app"):
        resolution_of(bare())


# The hook by which a log knows the request.

SEEN: contextvars.ContextVar[object] = contextvars.ContextVar("SEEN", default=None)


class Streaming(io.BytesIO):
    """An answer that looks round while it is produced, and at its end."""

    seen: list[object]

    def __next__(self) -> bytes:
        self.seen.append(SEEN.get())
        return super().__next__()

    def close(self) -> None:
        self.seen.append(SEEN.get())
        super().close()


def test_the_hook_holds_until_the_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are used again: nothing may stay behind."""
    monkeypatch.setattr(asgi, "on_resolution", SEEN.set)
    streaming = Streaming(b"one\ntwo\n")
    streaming.seen = []

    def app(environ: dict[str, Any], start_response: Any) -> Streaming:
        streaming.seen.append(SEEN.get())
        start_response("200 OK", [])
        return streaming

    environ = bare(**BALANCER, **CLIENT)
    assert answer(RealIPMiddleware(app, Settings(), **XFF), environ) == b"one\ntwo\n"
    assert streaming.seen == [resolution_of(environ)] * 5, "called, two parts, their end, closed"
    assert SEEN.get() is None


def test_the_hook_with_answers_that_need_no_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "on_resolution", SEEN.set)
    assert answer(RealIPMiddleware(App(), Settings(), **XFF), bare(**BALANCER)) == b"done"


LOGGING = """
import logging, sys
from kongrealip import Settings
from kongrealip.middleware.current import ClientFilter
from kongrealip.middleware.wsgi import RealIPMiddleware

def app(environ, start_response):
    logging.warning("at work")
    yield b""
    logging.warning("still at it")

handler = logging.StreamHandler(sys.stdout)
handler.addFilter(ClientFilter())
logging.basicConfig(handlers=[handler], format="%(message)s %(client)s")
wrapped = RealIPMiddleware(app, Settings(), trusted_ips="10.0.0.1", real_ip_header="X-Real-IP")
environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_REAL_IP": "203.0.113.7", "wsgi.url_scheme": "http"}
list(wrapped(environ, None))
logging.warning("at rest")
"""


def test_the_log_knows_whom_it_is_about() -> None:
    """In a process of its own: who imports that module changes every application of the process."""
    result = subprocess.run(
        [sys.executable, "-c", LOGGING], env={}, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert lines == ["at work 203.0.113.7", "still at it 203.0.113.7", "at rest -"]


# Vectors: each request as a server would hand it over, of which nothing is lost but the border
# between two lines and the spelling with underscores.


def environ_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    environ: dict[str, str] = {}
    for name, value in headers:
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        if b"_" not in name:
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


def remote(vector: golden.Vector) -> dict[str, Any]:
    peer = peer_of(vector)
    if peer.ip == "unix:":
        return {"REMOTE_ADDR": "", "gunicorn.socket": Accepted(None, "/run/app.sock")}
    return {"REMOTE_ADDR": peer.ip, "REMOTE_PORT": str(peer.port)}


def requests_of(vector: golden.Vector) -> Iterator[tuple[list[tuple[bytes, bytes]], dict[str, Any]]]:
    """Each request's headers, and nginx's answer."""
    _, data = split_preamble(vector)
    served = [expect for expect in golden.expectations(vector) if expect["outcome"] == "ok"]
    return zip(golden.requests(data), served, strict=False)


def is_told_in_one_piece(vector: golden.Vector) -> bool:
    """Whether an environ has the header that nginx decided by, in the form that nginx had it.

    A comma in front stands for an empty line here.
    """
    name = rules_of(vector).header_name
    if vector["config"]["proxy_protocol"] or (name and b"_" in name):
        return False
    lines = [[value for key, value in headers if key == name] for headers, _ in requests_of(vector)]
    return all(len(found) < 2 and not b"".join(found).startswith(b",") for found in lines)


IN_ONE_PIECE = [vector for vector in SERVED if is_told_in_one_piece(vector)]


@pytest.mark.parametrize("vector", IN_ONE_PIECE, ids=by_id)
def test_nginx_served_it(vector: golden.Vector) -> None:
    config = vector["config"]
    settings = Settings(
        trusted_ips=tuple(config["trusted_ips"]),
        real_ip_header=config["real_ip_header"],
        real_ip_recursive=config["real_ip_recursive"] == "on",
    )
    app = App()
    wrapped = RealIPMiddleware(app, settings)
    for headers, expect in requests_of(vector):
        answer(wrapped, bare(**environ_of(headers), **remote(vector)))
        view = nginx_view(resolution_of(app.environ))
        assert view == {key: expect[key] for key in view}
        assert app.environ["REMOTE_ADDR"] == str(expect["remote_addr"]).removeprefix("unix:")
        port = str(expect["remote_port"]).replace("$peer_port", str(PEER_PORT))
        assert app.environ.get("REMOTE_PORT", "") == port


def sent(vector: golden.Vector) -> bytes:
    return b"".join(golden.segments(vector) + golden.segments(vector, "tls_segments"))


def is_told_to_wsgi(vector: golden.Vector) -> bool:
    """The same for the forwarded values, of which the target's form counts as well."""
    data = sent(vector)
    if vector["config"]["proxy_protocol"] or not data.split(b" ", 2)[1].startswith(b"/"):
        return False
    names = [name for name, _ in next(golden.requests(data))]
    return len(names) == len(set(names)) and not any(b"_" in name for name in names)


IN_ONE_FORM = [vector for vector in FORWARDED_VECTORS if is_told_to_wsgi(vector)]


@pytest.mark.parametrize("vector", IN_ONE_FORM, ids=by_id)
def test_kong_saw_the_same(vector: golden.Vector) -> None:
    data = sent(vector)
    told = {
        **environ_of(request_of(vector, data).headers),
        **remote(vector),
        "SERVER_PORT": str(LISTEN_PORT),
        "RAW_URI": data.split(b" ", 2)[1].decode("latin-1"),
        "wsgi.url_scheme": "https" if vector["config"].get("ssl") else "http",
        "SCRIPT_NAME": vector["config"].get("route_prefix") or "",
    }
    app = App()
    answer(RealIPMiddleware(app, settings_of(vector, LISTEN_PORT)), bare() | told)
    seen = seen_in(resolution_of(app.environ).forwarded, vector, data)
    expect = wanted(vector)
    assert seen["upstream_headers"] == expect["upstream_headers"]
    # SCRIPT_NAME is empty where routing takes nothing off.
    prefix = expect["getters"].pop("forwarded_prefix", None)
    assert (seen["getters"].pop("forwarded_prefix") or "") == (prefix or "")
    assert seen["getters"].items() <= expect["getters"].items()
