"""Every public vector of what Kong sends upstream that a loopback peer can play, as bytes through the sidecar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kongrealip import RealIPMiddleware, Settings
from kongrealip.config.listen import Listen
from kongrealip.config.proxy import ProxySettings, parse_url
from kongrealip.proxy.proxy import Proxy
from kongrealip.proxy.server import ProxyServer, keys_of
from kongrealip.relay.upstreams import resolve_targets
from kongrealip.server.counters import Counters
from kongrealip.server.sockets import Opened, bind
from tests import golden
from tests.proxy.lab import ask, echoing_heads, lines_of, running_server, split, upstream
from tests.running import LOOPBACK
from tests.test_forwarded_vectors import BRACKETS, settings_of

VECTORS = [
    vector
    for vector in golden.load("kong_forwarded")
    if vector["peer"] in (LOOPBACK, "127.0.0.2") and not vector["config"].get("ssl")
]
TOPICS = sorted({vector["topic"] for vector in VECTORS})
PREFIX = b"x-forwarded-prefix"


def key_of(vector: golden.Vector) -> str:
    return json.dumps(vector["config"], sort_keys=True)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A sidecar with a listener for each configuration."""
    with upstream(echoing_heads) as behind:
        targets = resolve_targets([parse_url(behind.url)], "")
        opened, ports, apps = [], {}, {}
        counters = Counters(keys_of(Settings(proxy_listen=()), targets), 1)
        proxy = Proxy(ProxySettings(), targets, counters.row(0))
        for key, vector in {key_of(vector): vector for vector in VECTORS}.items():
            listen = Listen(LOOPBACK, 0, ("proxy_protocol",) * vector["config"]["proxy_protocol"])
            (sock,) = bind(listen)
            port = ports[key] = sock.getsockname()[1]
            opened.append(Opened(sock, listen._replace(port=port)))
            apps[port] = RealIPMiddleware(proxy.app, settings_of(vector, port))

        async def dispatch(scope: Any, receive: Any, send: Any) -> None:
            await apps[scope["server"][1]](scope, receive, send)

        settings = Settings(proxy_listen=tuple(one.listen for one in opened))
        counters = Counters(keys_of(settings, targets), 1)
        server = ProxyServer(dispatch, proxy, settings, opened=opened, contexts={}, counters=counters)
        with running_server(server):
            yield ports


def wanted(vector: golden.Vector, port: int) -> list[tuple[bytes, bytes]]:
    """Without the prefix that Kong's route takes off: the sidecar has no routes."""
    route = vector["config"].get("route_prefix", "").encode()
    client = BRACKETS.get(vector["id"])
    lines = []
    for name, value in vector["expect"]["upstream_headers"]:
        text = str(value).replace("$listen_port", str(port))
        if client and name == "x-real-ip":
            text = client
        lines.append((name.encode(), text.encode("latin-1")))
    # nginx leaves tabs round a value, and uvicorn's parser those behind it alone.
    return sorted(
        (name, value.replace(b"\t", b"")) for name, value in lines if (name, value) != (PREFIX, route)
    )


@pytest.mark.parametrize("topic", TOPICS)
def test_the_upstream_sees_what_kong_would_send(topic: str, ports: dict[str, int]) -> None:
    different = {}
    for vector in (vector for vector in VECTORS if vector["topic"] == topic):
        port = ports[key_of(vector)]
        data = b"".join(golden.segments(vector))
        status, _, head = split(ask(port, data, vector["peer"]))
        if not data.partition(b" HTTP/")[0].rpartition(b" ")[2].isascii():
            # uvicorn's parser takes no such target (docs/parity.md).
            assert status == 400
            continue
        route = vector["config"].get("route_prefix", "").encode()
        seen = sorted(
            (name, value.replace(b"\t", b""))
            for name, value in lines_of(head)
            if name.startswith((b"x-forwarded-", b"x-real-ip", b"x_f", b"x_r"))
            and (name, value) != (PREFIX, route)
        )
        if status != 200 or seen != wanted(vector, port):
            different[vector["id"]] = (status, set(seen) ^ set(wanted(vector, port)))
    assert different == {}
