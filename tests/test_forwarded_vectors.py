"""Every public vector of Kong's forwarded values, at the level of the pure core."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kongrealip import Settings
from kongrealip.preamble import parse
from kongrealip.realip import Forwarded, Request, resolve
from kongrealip.realip.paths import normalised
from tests import golden
from tests.test_resolve_vectors import PEER_PORT, by_id, peer_of

VECTORS = golden.load("kong_forwarded")
LISTEN_PORT = 9080
# A bracketed address without port, which nginx takes since 1.27.3 and Kong's nginx does not: here it
# is the client (docs/parity.md). The address, instead of the peer's.
BRACKETS = {"fwd_random-439dc53dd597": "dbb4:ffff::ffff:ff4a:69:0"}


def settings_of(vector: golden.Vector, listen_port: int) -> Settings:
    config = vector["config"]
    port_maps = config.get("port_maps", "").replace("$listen_port", str(listen_port))
    return Settings.load(
        {
            "KONG_TRUSTED_IPS": ",".join(config["trusted_ips"]),
            "KONG_REAL_IP_HEADER": config["real_ip_header"],
            "KONG_REAL_IP_RECURSIVE": config["real_ip_recursive"],
            "KONG_PORT_MAPS": port_maps,
        }
    )


def request_of(vector: golden.Vector, data: bytes) -> Request:
    """The request as nginx reads it: the host of an absolute target wins over the header's."""
    target = data.split(b" ", 2)[1]
    headers = next(golden.requests(data))
    if not target.startswith(b"/"):
        host, slash, path = target.partition(b"://")[2].partition(b"/")
        target = slash + path
        headers = [(name, host if name == b"host" else value) for name, value in headers]
    prefix = vector["config"].get("route_prefix")
    scheme = "https" if vector["config"].get("ssl") else "http"
    port = None if vector["peer"] == "unix:" else LISTEN_PORT
    return Request(headers, scheme, target.partition(b"?")[0], port, prefix)


def seen_in(forwarded: Forwarded, vector: golden.Vector, data: bytes) -> dict[str, Any]:
    """What the vectors have, by their names."""
    request = forwarded.request
    passed_on = [(name, value) for name, value in request.headers if name.startswith((b"x_f", b"x_r"))]
    lines = [*forwarded.upstream_lines, *passed_on]
    return {
        "upstream_headers": sorted([name.decode(), value.decode("latin-1")] for name, value in lines),
        "getters": {
            "forwarded_scheme": forwarded.scheme,
            "forwarded_host": forwarded.host,
            "forwarded_port": forwarded.port,
            "forwarded_path": forwarded.path,
            "forwarded_prefix": forwarded.prefix,
            "host": request.host.decode("latin-1"),
            "port": request.port,
            "scheme": request.scheme,
        },
    }


def wanted(vector: golden.Vector) -> dict[str, Any]:
    text = json.dumps(vector["expect"]).replace('"$listen_port"', str(LISTEN_PORT))
    expect = json.loads(text)
    lines = expect["upstream_headers"] = [
        [name, str(value) if name == "x-forwarded-port" else value]
        for name, value in expect["upstream_headers"]
    ]
    client = BRACKETS.get(vector["id"])
    if client:
        expect["getters"] |= {"client_forwarded_ip": client, "client_forwarded_port": None}
        lines[:] = [[name, client if name == "x-real-ip" else value] for name, value in lines]
    return {"upstream_headers": lines, "getters": expect["getters"]}


@pytest.mark.parametrize("vector", VECTORS, ids=by_id)
def test_kong_saw_the_same(vector: golden.Vector) -> None:
    data = b"".join(golden.segments(vector))
    preamble = None
    if vector["config"]["proxy_protocol"]:
        parsed = parse(data)
        assert parsed is not None
        preamble, end = parsed
        data = data[end:]
    data += b"".join(golden.segments(vector, "tls_segments"))
    settings = settings_of(vector, LISTEN_PORT)
    rules = settings.rules()
    request = request_of(vector, data)
    lines = [value for name, value in request.headers if name == rules.header_name]
    resolution = resolve(rules, peer_of(vector), preamble, lines)
    expect = wanted(vector)
    for address, name in ((resolution.client, "client_forwarded"), (resolution.peer, "client")):
        assert expect["getters"].pop(f"{name}_ip") == address.ip
        port = "$peer_port" if address.port == PEER_PORT else address.port
        assert expect["getters"].pop(f"{name}_port") == port
    seen = seen_in(Forwarded(settings.forwarded_rules(), resolution, request), vector, data)
    path = expect["getters"].pop("path")
    assert seen == expect
    assert normalised(request.path).decode("latin-1") == path
