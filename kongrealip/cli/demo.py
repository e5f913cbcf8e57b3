"""``kongrealip demo``: five clients, real sockets, and what an application sees of them.

The preambles are packed by the ``proxy-protocol`` package, so that the server is not checked
with its own understanding of the protocol.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import click
from proxyprotocol import ProxyProtocol
from proxyprotocol.result import ProxyResultIPv4
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

# Linux answers on all of 127.0.0.0/8, so each part gets an address of its own, and only the
# balancer's is trusted.
_HOST = "127.0.0.1"
_BALANCER = "127.0.0.1"
_CLIENT = "127.0.0.9"
_SPOOFER = "127.0.0.66"
_PATIENCE = 20.0
_VPC_ENDPOINT = 0xEA


class Part(NamedTuple):
    """One client of the play: who connects, what is sent first, and what must come out."""

    who: str
    peer: str
    listener: str
    claimed: str
    preamble: bytes
    headers: dict[str, str]
    client: str


def play(stay: bool) -> int:
    """Run the demo and return the exit code: 0 where every client was seen as it should be."""
    if not sys.platform.startswith("linux"):
        click.echo("kongrealip demo needs Linux: it connects from several loopback addresses", err=True)
        return 3
    l4, l7 = _free_port(), _free_port()
    servers = {
        "proxy_protocol": {
            "KONG_TRUSTED_IPS": f"{_BALANCER}/32",
            "KONG_PROXY_LISTEN": f"{_HOST}:{l4} proxy_protocol",
            "KONG_REAL_IP_HEADER": "proxy_protocol",
            "KONGREALIP_FORWARDED_HEADERS": "auto",
        },
        "plain": {
            "KONG_TRUSTED_IPS": f"{_BALANCER}/32",
            "KONG_PROXY_LISTEN": f"{_HOST}:{l7}",
            "KONG_REAL_IP_HEADER": "X-Forwarded-For",
            "KONG_REAL_IP_RECURSIVE": "on",
        },
    }
    ports = {"proxy_protocol": l4, "plain": l7}
    with ExitStack() as stack:
        for name, environ in servers.items():
            click.echo(" ".join(f'{key}="{value}"' for key, value in environ.items()) + " kongrealip serve")
            stack.enter_context(_serving(environ, ports[name]))
        click.echo()
        seen = [(part, _ask(part, ports[part.listener])) for part in _parts()]
        _print_table(seen)
        if stay:
            click.echo(f"\nServing on {_HOST}:{l4} (proxy_protocol) and {_HOST}:{l7}. Ctrl-C ends it.")
            while True:
                time.sleep(3600)
    return 0 if all(answer["client_ip"] == part.client for part, answer in seen) else 1


def _parts() -> list[Part]:
    endpoint = ProxyProtocolTLV(init={_VPC_ENDPOINT: b"\x01vpce-08d2bf15fac5001c9"})
    nlb = _pack(ProxyProtocolV2(), "203.0.113.7", 51000, endpoint)
    haproxy = _pack(ProxyProtocolV1(), "198.51.100.23", 40001, None)
    forged = {"X-Forwarded-For": "6.6.6.6, 203.0.113.50"}
    lie = {"X-Forwarded-For": "8.8.8.8"}
    return [
        Part("a client, directly", _CLIENT, "plain", "nothing", b"", {}, _CLIENT),
        Part("an NLB", _BALANCER, "proxy_protocol", "v2 203.0.113.7:51000, TLV ea", nlb, {}, "203.0.113.7"),
        Part("HAProxy", _BALANCER, "proxy_protocol", "v1 198.51.100.23:40001", haproxy, {}, "198.51.100.23"),
        Part("an L7 balancer", _BALANCER, "plain", _as_claim(forged), b"", forged, "203.0.113.50"),
        Part("a spoofer", _SPOOFER, "plain", _as_claim(lie), b"", lie, _SPOOFER),
    ]


def _as_claim(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}" for name, value in headers.items())


def _why(answer: dict[str, Any]) -> str:
    """The reason, from what the server itself says."""
    if not answer["peer_trusted"]:
        return "the peer is not trusted, whatever it claims"
    if answer["source"] == "proxy_protocol":
        return "a trusted peer's preamble"
    return "a trusted peer's header, its last hop that is not trusted"


def _pack(protocol: ProxyProtocol, source: str, port: int, tlv: ProxyProtocolTLV | None) -> bytes:
    destination = (IPv4Address("198.51.100.9"), 443)
    more: dict[str, Any] = {} if tlv is None else {"tlv": tlv}
    result = ProxyResultIPv4((IPv4Address(source), port), destination, protocol=socket.SOCK_STREAM, **more)
    return protocol.pack(result)


def _ask(part: Part, port: int) -> dict[str, Any]:
    """Connect as the part's peer, send its preamble and a request, and return what whoami saw."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=5, source_address=(part.peer, 0))
    connection.connect()
    try:
        connection.sock.sendall(part.preamble)
        connection.request("GET", "/", headers=part.headers)
        answer: dict[str, Any] = json.load(connection.getresponse())
        return answer
    finally:
        connection.close()


def _print_table(seen: list[tuple[Part, dict[str, Any]]]) -> None:
    rows = [("who connected", "from", "claimed", "the app saw", "source", "why")]
    for part, answer in seen:
        client = answer["client_ip"]
        if answer["client_port"] and answer["source"] != "peer":
            client += f":{answer['client_port']}"
        rows.append((part.who, part.peer, part.claimed, client, answer["source"], _why(answer)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]))
        if number == 0:
            click.echo("  ".join("-" * width for width in [*widths, len(row[-1])]))


@contextmanager
def _serving(environ: dict[str, str], port: int) -> Iterator[None]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONG")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kongrealip", "serve", "--no-access-log"],
        env={**inherited, **environ, "KONG_LOG_LEVEL": "warn"},
    )
    try:
        _wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(0.05)
    click.echo("the server did not start", err=True)
    sys.exit(3)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        return int(sock.getsockname()[1])
