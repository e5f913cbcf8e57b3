"""gunicorn reads preambles itself, and schemes: whom it believes is one question, whom we do another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kongrealip.address import Address
from kongrealip.preamble import writing
from kongrealip.server import tls
from tests.lab import client_tls
from tests.running import CLIENT_IP, LOOPBACK, Seen, connect
from tests.servers.programs import (
    BY_PREAMBLE,
    CONFIGURED,
    NOBODY_NAMED,
    Refused,
    ask,
    fetch,
    fetch_unix,
    serving,
    serving_unix,
    where_from,
)

CLIENT = "203.0.113.7"
BALANCER_END = Address("10.0.0.1", 443)
PREAMBLES = {
    "v1": writing.v1(Address(CLIENT, 51000), BALANCER_END),
    "v2": writing.v2(Address(CLIENT, 51000), BALANCER_END),
    "v2 with TLVs": writing.v2(Address(CLIENT, 51000), BALANCER_END, writing.tlv(0xEA, b"\x01vpce-1")),
}
IPV6 = writing.v2(Address("2001:db8::100", 51000), Address("::1", 80))
# gunicorn's own list, and for some peers another one than ours.
READS = ("--proxy-protocol", "auto", "--proxy-allow-from", f"{LOOPBACK},{CLIENT_IP}")
WSGI = ["gunicorn, sync", "gunicorn, gthread"]


class Started:
    """Each server once, by name and configuration, and only those that are asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._ports: dict[Any, int] = {}

    def port(self, name: str, environ: dict[str, str] = BY_PREAMBLE) -> int:
        key = (name, *sorted(environ.items()))
        if key not in self._ports:
            self._ports[key] = self._stack.enter_context(serving(name, environ, *READS)).port
        return self._ports[key]


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(stack)


def answered(seen: Seen | Refused) -> Seen:
    assert not isinstance(seen, Refused), seen
    return seen


@pytest.mark.parametrize("form", PREAMBLES)
@pytest.mark.parametrize("name", WSGI)
def test_a_trusted_peer_names_the_client(started: Started, name: str, form: str) -> None:
    seen = answered(fetch(started.port(name), preamble=PREAMBLES[form]))
    assert (seen["client"], seen["port"]) == (CLIENT, 51000)
    assert (seen["peer"], seen["peer_trusted"], seen["source"]) == (LOOPBACK, True, "proxy_protocol")
    assert seen["preamble"] == ["PROXY", CLIENT]


@pytest.mark.parametrize("name", WSGI)
def test_addresses_are_printed_as_by_nginx(started: Started, name: str) -> None:
    assert where_from(fetch(started.port(name), preamble=IPV6)) == ("2001:db8::100", "proxy_protocol")


@pytest.mark.parametrize("name", WSGI)
def test_who_is_trusted_by_gunicorn_alone_is_not_believed(started: Started, name: str) -> None:
    """gunicorn has the forged address in REMOTE_ADDR by then."""
    seen = fetch(started.port(name), source_ip=CLIENT_IP, preamble=PREAMBLES["v1"])
    assert where_from(seen) == NOBODY_NAMED


@pytest.mark.parametrize("name", WSGI)
def test_a_preamble_from_anybody_else_is_refused_by_gunicorn(started: Started, name: str) -> None:
    seen = fetch(started.port(name), source_ip="127.0.0.66", preamble=PREAMBLES["v1"])
    assert seen in (Refused(403), Refused(None))


@pytest.mark.parametrize("name", WSGI)
def test_without_a_preamble_the_peer_is_the_client(started: Started, name: str) -> None:
    """Unlike at a listener of kongrealip serve, which demands one."""
    assert where_from(fetch(started.port(name))) == (LOOPBACK, "peer")


@pytest.mark.parametrize("name", WSGI)
def test_preambles_that_name_nobody(started: Started, name: str) -> None:
    assert where_from(fetch(started.port(name), preamble=writing.LOCAL_V2)) == (LOOPBACK, "peer")
    # nginx and the specification take this one.
    assert fetch(started.port(name), preamble=writing.UNKNOWN_V1) in (Refused(400), Refused(None))


@pytest.mark.parametrize("name", WSGI)
def test_a_header_where_the_header_counts(started: Started, name: str) -> None:
    """The balancer is the peer, and not whom its preamble names."""
    port = started.port(name, CONFIGURED)
    seen = fetch(port, [("X-Forwarded-For", "203.0.113.8")], preamble=PREAMBLES["v1"])
    assert where_from(seen) == ("203.0.113.8", "X-Forwarded-For")
    assert where_from(fetch(port, preamble=PREAMBLES["v1"])) == (LOOPBACK, "peer")


def test_later_requests_of_a_connection(started: Started) -> None:
    """Of the preamble gunicorn tells with the first one alone."""
    with connect(started.port("gunicorn, gthread"), LOOPBACK) as sock:
        sock.sendall(PREAMBLES["v2"])
        for _ in range(3):
            assert where_from(ask(sock)) == (CLIENT, "proxy_protocol")
    with connect(started.port("gunicorn, gthread"), LOOPBACK) as sock:
        for _ in range(2):
            assert where_from(ask(sock)) == (LOOPBACK, "peer")


@pytest.mark.parametrize("name", WSGI)
@pytest.mark.parametrize(
    ("trusted", "seen"), [("unix:", (CLIENT, "proxy_protocol")), ("0.0.0.0/0", ("", "peer"))], ids=str
)
def test_unix_sockets(tmp_path: Path, name: str, trusted: str, seen: tuple[str, str]) -> None:
    path = tmp_path / "app.sock"
    with serving_unix(name, path, BY_PREAMBLE | {"KONG_TRUSTED_IPS": trusted}, *READS):
        assert where_from(fetch_unix(path, preamble=PREAMBLES["v1"])) == seen


@pytest.mark.parametrize("name", WSGI)
def test_the_scheme_of_the_preambles_destination(started: Started, name: str) -> None:
    """Its port is all that gunicorn passes on."""
    environ = BY_PREAMBLE | {"KONGREALIP_SCHEME_FROM_PREAMBLE": "on"}
    assert answered(fetch(started.port(name, environ), preamble=PREAMBLES["v1"]))["scheme"] == "https"


@pytest.mark.parametrize("name", WSGI)
def test_gunicorns_own_idea_of_the_scheme_does_not_count(started: Started, name: str) -> None:
    """It believes everybody on loopback, who here is not to be believed at all."""
    port = started.port(name, CONFIGURED | {"KONGREALIP_FORWARDED_HEADERS": "off"})
    assert answered(fetch(port, [("X-Forwarded-Proto", "https")]))["scheme"] == "http"


# gunicorn's own ASGI worker: the preamble's source is in scope["client"], and the peer is nowhere.


@pytest.mark.parametrize("form", PREAMBLES)
def test_asgi_the_client_is_right_and_the_peer_is_lost(started: Started, form: str) -> None:
    port = started.port("gunicorn, asgi")
    with connect(port, LOOPBACK) as sock:
        sock.sendall(PREAMBLES[form])
        for _ in range(2):
            seen = answered(ask(sock))
            assert (seen["client"], seen["port"]) == (CLIENT, 51000)
            assert (seen["peer"], seen["source"], seen["preamble"]) == (CLIENT, "peer", None)


def test_asgi_whom_gunicorn_alone_trusts_is_believed(started: Started) -> None:
    """There is nothing that we could tell it by: its list has to be ours (docs/servers.md)."""
    port = started.port("gunicorn, asgi")
    assert where_from(fetch(port, source_ip=CLIENT_IP, preamble=PREAMBLES["v1"])) == (CLIENT, "peer")
    assert fetch(port, source_ip="127.0.0.66", preamble=PREAMBLES["v1"]) in (Refused(400), Refused(None))


def test_asgi_preambles_that_name_nobody(started: Started) -> None:
    for preamble in (b"", writing.LOCAL_V2, writing.UNKNOWN_V1):
        assert where_from(fetch(started.port("gunicorn, asgi"), preamble=preamble)) == (LOOPBACK, "peer")


def test_asgi_a_header_is_not_believed_behind_a_preamble(started: Started) -> None:
    """Nobody trusts the client that has taken the balancer's place."""
    forged = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Proto", "https")]
    seen = answered(fetch(started.port("gunicorn, asgi", CONFIGURED), forged, preamble=PREAMBLES["v1"]))
    assert (seen["client"], seen["source"]) == (CLIENT, "peer")
    assert seen["scheme"] == "https", "this is gunicorn's own, see docs/servers.md"


def test_asgi_the_scheme(tmp_path: Path) -> None:
    """There is no socket to be asked for it, so gunicorn has to be told to believe nobody."""
    conf = tmp_path / "gunicorn.conf.py"
    nobody = CONFIGURED | {"KONGREALIP_FORWARDED_HEADERS": "off"}
    for text, scheme in (("", "https"), ("secure_scheme_headers = {}", "http")):
        conf.write_text(text)
        with serving("gunicorn, asgi", nobody, "--config", str(conf)) as program:
            assert answered(fetch(program.port, [("X-Forwarded-Proto", "https")]))["scheme"] == scheme


@pytest.mark.parametrize("name", WSGI)
def test_tls(tmp_path: Path, name: str) -> None:
    """gunicorn looks for a preamble inside of the encryption, where no balancer writes it."""
    pair = tmp_path / "pair.pem"
    pair.write_text("".join(tls.self_signed()))
    options = [*READS, "--certfile", str(pair), "--keyfile", str(pair)]
    with serving(name, BY_PREAMBLE, *options) as program:
        with connect(program.port, LOOPBACK) as sock:
            sock.sendall(PREAMBLES["v1"])
            with pytest.raises(OSError):  # noqa: PT011 - of OpenSSL, or of the connection
                client_tls().wrap_socket(sock)
        with client_tls().wrap_socket(connect(program.port, LOOPBACK)) as sock:
            sock.sendall(PREAMBLES["v1"])
            seen = answered(ask(sock))
    assert (seen["client"], seen["scheme"]) == (CLIENT, "https")
