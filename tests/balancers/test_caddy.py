"""Caddy in front: its preambles name neither the client's port nor a destination."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.balancers.programs import caddy
from tests.running import CLIENT_IP, LOOPBACK, Program, client, fetch, free_port

if TYPE_CHECKING:
    from pathlib import Path

FORGED_IP = "203.0.113.66"
OTHER_CLIENT_IP = "127.0.0.10"


def reverse_proxy(port: int, server: Program, transport: str = "") -> str:
    return f"""
http://:{port} {{
    bind {LOOPBACK}
    reverse_proxy {LOOPBACK}:{server.port} {{
        {transport}
    }}
}}
"""


def with_preamble(port: int, server: Program, version: int) -> str:
    transport = f"transport http {{\n            proxy_protocol v{version}\n        }}"
    return reverse_proxy(port, server, transport)


@pytest.mark.parametrize("version", [1, 2])
def test_preamble_without_ports_and_destination_is_accepted(
    preamble_server: Program, tmp_path: Path, version: int
) -> None:
    port = free_port()
    with caddy(tmp_path, with_preamble(port, preamble_server, version), port):
        seen = fetch(port)
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
    assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
    assert seen["preamble"] == {
        "version": version,
        "command": "PROXY",
        "source_ip": CLIENT_IP,
        "source_port": 0,
        "destination_ip": "0.0.0.0",
        "destination_port": 0,
        "tlvs": {},
        "said": {},
    }


def test_clients_that_share_an_upstream_are_kept_apart(preamble_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with (
        caddy(tmp_path, with_preamble(port, preamble_server, 2), port),
        client(port) as one,
        client(port, OTHER_CLIENT_IP) as other,
    ):
        for _ in range(2):
            assert one.get()["client_ip"] == CLIENT_IP
            assert other.get()["client_ip"] == OTHER_CLIENT_IP


def test_x_forwarded_for_replaces_what_the_client_forged(forwarded_server: Program, tmp_path: Path) -> None:
    port = free_port()
    with caddy(tmp_path, reverse_proxy(port, forwarded_server), port):
        seen = fetch(port, headers=[("X-Forwarded-For", FORGED_IP)])
    assert ["x-forwarded-for", CLIENT_IP] in seen["headers"]
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
