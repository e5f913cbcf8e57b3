"""Envoy in front: both versions of the preamble, TLVs added and passed through, X-Forwarded-For."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.balancers.programs import envoy, haproxy
from tests.running import CLIENT_IP, LOOPBACK, Program, client, fetch, free_port

if TYPE_CHECKING:
    from pathlib import Path

FORGED_IP = "203.0.113.66"
TYPES = "type.googleapis.com/envoy.extensions"
ADDED_TLV = (0xEA, b"added by the balancer")


def config(port: int, server: Program, network_filter: Any, listener_filters: Any, transport: Any) -> str:
    """One listener, one filter, one upstream. Envoy reads JSON where it reads YAML."""
    return json.dumps(
        {
            "static_resources": {
                "listeners": [
                    {
                        "name": "listener",
                        "address": address(port),
                        "listener_filters": listener_filters,
                        "filter_chains": [{"filters": [network_filter]}],
                    }
                ],
                "clusters": [
                    {
                        "name": "upstream",
                        "connect_timeout": "5s",
                        "load_assignment": {
                            "cluster_name": "upstream",
                            "endpoints": [
                                {"lb_endpoints": [{"endpoint": {"address": address(server.port)}}]}
                            ],
                        },
                        "transport_socket": transport,
                    }
                ],
            }
        }
    )


def address(port: int) -> Any:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def typed(name: str, type_url: str, **settings: Any) -> Any:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{type_url}", **settings}}


RAW = typed("envoy.transport_sockets.raw_buffer", "transport_sockets.raw_buffer.v3.RawBuffer")


def tcp(port: int, server: Program, preamble: Any, listener_filters: Any = ()) -> str:
    """Passes TCP on, behind the ``preamble`` of these settings."""
    proxy = typed(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="tcp",
        cluster="upstream",
    )
    transport = typed(
        "envoy.transport_sockets.upstream_proxy_protocol",
        "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        config=preamble,
        transport_socket=RAW,
    )
    return config(port, server, proxy, list(listener_filters), transport)


def http(port: int, server: Program, **connection_manager: Any) -> str:
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                }
            ]
        },
        http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        **connection_manager,
    )
    return config(port, server, manager, [], RAW)


@pytest.mark.parametrize("version", [1, 2])
def test_client_comes_from_the_preamble(preamble_server: Program, tmp_path: Path, version: int) -> None:
    port = free_port()
    settings = tcp(port, preamble_server, {"version": f"V{version}"})
    with envoy(tmp_path, settings, port), client(port) as asking:
        seen = asking.get(headers=[("X-Forwarded-For", FORGED_IP)])
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "proxy_protocol")
        preamble = seen["preamble"]
        assert (preamble["version"], preamble["command"]) == (version, "PROXY")
        assert (preamble["destination_ip"], preamble["destination_port"]) == (LOOPBACK, port)


def test_tlvs_are_added_and_passed_through(preamble_server: Program, tmp_path: Path) -> None:
    """HAProxy sends a unique id, and Envoy passes it on beside a TLV of its own."""
    port, between = free_port(), free_port()
    outer = f"""
listen outer
    bind {LOOPBACK}:{port}
    unique-id-format balancer-%cp
    server inner {LOOPBACK}:{between} send-proxy-v2 proxy-v2-options unique-id
"""
    kind, value = ADDED_TLV
    everything = {"match_type": "INCLUDE_ALL"}
    accept = typed(
        "envoy.filters.listener.proxy_protocol",
        "filters.listener.proxy_protocol.v3.ProxyProtocol",
        pass_through_tlvs=everything,
    )
    preamble = {
        "version": "V2",
        "pass_through_tlvs": everything,
        "added_tlvs": [{"type": kind, "value": base64.b64encode(value).decode()}],
    }
    settings = tcp(between, preamble_server, preamble, [accept])
    with (
        envoy(tmp_path, settings, between),
        haproxy(tmp_path, outer, port),
        client(port) as asking,
    ):
        seen = asking.get()
        assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, asking.port)
        tlvs = {int(kind, 16): bytes.fromhex(value) for kind, value in seen["preamble"]["tlvs"].items()}
        assert tlvs == {0x05: f"balancer-{asking.port}".encode(), kind: value}


def test_x_forwarded_for_with_a_comma_and_no_blank(forwarded_server: Program, tmp_path: Path) -> None:
    """From a client at 127.0.0.1, and only from there, Envoy would write an address of its own."""
    port = free_port()
    with envoy(tmp_path, http(port, forwarded_server, use_remote_address=True), port):
        seen = fetch(port, headers=[("X-Forwarded-For", FORGED_IP)])
    assert ["x-forwarded-for", f"{FORGED_IP},{CLIENT_IP}"] in seen["headers"]
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
    assert (seen["peer_ip"], seen["source"]) == (LOOPBACK, "X-Forwarded-For")


def test_without_use_remote_address_a_forged_header_wins(forwarded_server: Program, tmp_path: Path) -> None:
    """Envoy's default adds nothing and passes on what the client wrote.

    Nothing behind it can tell, so this is what has to be configured in Envoy.
    """
    port = free_port()
    with envoy(tmp_path, http(port, forwarded_server), port):
        seen = fetch(port, headers=[("X-Forwarded-For", FORGED_IP)])
    assert ["x-forwarded-for", FORGED_IP] in seen["headers"]
    assert seen["client_ip"] == FORGED_IP
