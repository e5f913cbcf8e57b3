"""Each server with our middleware behind it: who is the peer, and which header lines arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kongrealip.address import Address
from kongrealip.preamble import writing
from tests.running import CLIENT_IP, LOOPBACK, Program
from tests.servers.programs import (
    CONFIGURED,
    NOBODY_NAMED,
    SERVERS,
    Refused,
    fetch,
    fetch_unix,
    serving,
    serving_unix,
    where_from,
)

# They hand names over in which underscores and dashes are the same.
MIXED_UP = {"hypercorn, WSGI", "granian, WSGI"}
CLIENT = "203.0.113.7"
TOLD = [("X-Forwarded-For", f"6.6.6.6, {CLIENT}, {LOOPBACK}"), ("X-Forwarded-Proto", "https")]
PREAMBLES = {
    "v1": writing.v1(Address(CLIENT, 51000), Address("10.0.0.1", 443)),
    "v2": writing.v2(Address(CLIENT, 51000), Address("10.0.0.1", 443)),
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Program]]:
    with serving(request.param, CONFIGURED) as program:
        yield request.param, program


def test_a_trusted_peer_names_the_client(server: tuple[str, Program]) -> None:
    _, program = server
    seen = fetch(program.port, TOLD)
    assert not isinstance(seen, Refused)
    upstream = seen.pop("upstream")
    assert seen == {
        "client": CLIENT,
        "port": None,
        "scheme": "https",
        "peer": LOOPBACK,
        "peer_trusted": True,
        "source": "X-Forwarded-For",
        "preamble": None,
    }
    assert upstream["X-Real-IP"] == CLIENT
    assert upstream["X-Forwarded-Port"] == str(program.port)


def test_nobody_else_does(server: tuple[str, Program]) -> None:
    _, program = server
    seen = fetch(program.port, TOLD, source_ip=CLIENT_IP)
    assert where_from(seen) == NOBODY_NAMED
    assert not isinstance(seen, Refused)
    assert seen["scheme"] == "http"


def test_several_lines(server: tuple[str, Program]) -> None:
    """The walk goes from the last line to those before it."""
    _, program = server
    lines = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", CLIENT), ("X-Forwarded-For", LOOPBACK)]
    assert where_from(fetch(program.port, lines)) == (CLIENT, "X-Forwarded-For")


def test_an_empty_line_in_front(server: tuple[str, Program]) -> None:
    """It comes from the client, and must not hide what the balancer wrote behind it."""
    _, program = server
    lines = [("X-Forwarded-For", ""), ("X-Forwarded-For", CLIENT)]
    assert where_from(fetch(program.port, lines)) == (CLIENT, "X-Forwarded-For")


@pytest.mark.parametrize("first", [False, True])
def test_a_spelling_with_underscores_is_another_header(server: tuple[str, Program], first: bool) -> None:
    name, program = server
    forged, own = ("X_Forwarded_For", "6.6.6.6"), ("X-Forwarded-For", CLIENT)
    lines = [forged, own] if first else [own, forged]
    seen = where_from(fetch(program.port, lines))
    assert name in MIXED_UP or seen == (CLIENT, "X-Forwarded-For")


def test_where_the_two_spellings_are_mixed_up(server: tuple[str, Program]) -> None:
    """A client can forge its address then. Once this fails a line of docs/servers.md can go."""
    name, program = server
    lines = [("X-Forwarded-For", CLIENT), ("X_Forwarded_For", "6.6.6.6")]
    forged = where_from(fetch(program.port, lines))[0] == "6.6.6.6"
    assert forged == (name in MIXED_UP)


@pytest.mark.parametrize("form", PREAMBLES)
def test_a_preamble_that_nobody_reads(server: tuple[str, Program], form: str) -> None:
    _, program = server
    assert fetch(program.port, preamble=PREAMBLES[form]) in (Refused(400), Refused(None))


# The two development servers have no such option.
ON_UNIX = [name for name in SERVERS if name not in ("werkzeug", "runserver")]
# What they say of a Unix socket could be a TCP peer as well that is not known.
UNKNOWN = {"hypercorn, WSGI", "granian, WSGI"}


@pytest.mark.parametrize("name", ON_UNIX)
def test_unix_sockets(tmp_path: Path, name: str) -> None:
    path = tmp_path / "app.sock"
    with serving_unix(name, path, CONFIGURED | {"KONG_TRUSTED_IPS": "unix:"}):
        seen = fetch_unix(path, [("X-Forwarded-For", CLIENT)])
    assert where_from(seen) == (("", "peer") if name in UNKNOWN else (CLIENT, "X-Forwarded-For"))
    assert not isinstance(seen, Refused)
    assert name in UNKNOWN or "X-Forwarded-Port" not in seen["upstream"]


@pytest.mark.parametrize("name", ON_UNIX)
def test_unix_sockets_that_are_not_trusted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "app.sock"
    with serving_unix(name, path, CONFIGURED | {"KONG_TRUSTED_IPS": "0.0.0.0/0"}):
        assert where_from(fetch_unix(path, [("X-Forwarded-For", CLIENT)])) == ("", "peer")
