"""Every public vector of nginx's realip and PROXY protocol, at the level of the pure core."""

from __future__ import annotations

import pytest

from kongrealip.address import Address
from kongrealip.errors import PreambleError
from kongrealip.preamble import Preamble, first_tlvs, parse
from kongrealip.realip import Resolution, Rules, TrustedNetworks, resolve
from tests import golden
from tests.differences import DIFFERENCES


def wanted(vector: golden.Vector) -> str:
    """The outcome that we want: nginx's, but for the listed differences."""
    difference = DIFFERENCES.get(vector["id"])
    return difference.outcome if difference else str(vector["expect"]["outcome"])


def nginx(vector: golden.Vector) -> str:
    return str(vector["expect"]["outcome"])


ALL = golden.load("realip")
SERVED = [vector for vector in ALL if nginx(vector) == wanted(vector) == "ok"]
CLOSED = [vector for vector in ALL if "closed" in (nginx(vector), wanted(vector))]
REFUSED = [vector for vector in ALL if wanted(vector) == "config_error"]
PEER_PORT = 40000


def by_id(vector: golden.Vector) -> str:
    return str(vector["id"])


def rules_of(vector: golden.Vector) -> Rules:
    config = vector["config"]
    return Rules(
        TrustedNetworks(config["trusted_ips"]), config["real_ip_header"], config["real_ip_recursive"] == "on"
    )


def peer_of(vector: golden.Vector) -> Address:
    return Address(vector["peer"], None if vector["peer"] == "unix:" else PEER_PORT)


def split_preamble(vector: golden.Vector) -> tuple[Preamble | None, bytes]:
    """The preamble, and the HTTP behind it."""
    data = b"".join(golden.segments(vector))
    preamble = None
    if vector["config"]["proxy_protocol"]:
        parsed = parse(data)
        assert parsed is not None
        preamble, end = parsed
        data = data[end:]
    return preamble, data + b"".join(golden.segments(vector, "tls_segments"))


def nginx_view(resolution: Resolution) -> dict[str, str | None]:
    """A Resolution as nginx's variables."""
    preamble = resolution.preamble or Preamble(0, "")
    known = preamble.source_ip is not None

    def port(number: int | None) -> str:
        return "$peer_port" if number == PEER_PORT else str(number or "")

    return {
        "remote_addr": resolution.client.ip,
        "remote_port": port(resolution.client.port),
        "realip_remote_addr": resolution.peer.ip,
        "realip_remote_port": port(resolution.peer.port),
        "proxy_protocol_addr": preamble.source_ip,
        "proxy_protocol_port": str(preamble.source_port or "") if known else None,
        "proxy_protocol_server_addr": preamble.destination_ip,
        "proxy_protocol_server_port": str(preamble.destination_port or "") if known else None,
    }


@pytest.mark.parametrize("vector", SERVED, ids=by_id)
def test_nginx_served_it(vector: golden.Vector) -> None:
    preamble, data = split_preamble(vector)
    rules = rules_of(vector)
    requests = list(golden.requests(data))
    served = [expect for expect in golden.expectations(vector) if expect["outcome"] == "ok"]
    assert len(requests) >= len(served)
    for headers, expect in zip(requests, served, strict=False):
        lines = [value for name, value in headers if name == rules.header_name]
        view = nginx_view(resolve(rules, peer_of(vector), preamble, lines))
        assert view == {key: expect[key] for key in view}


@pytest.mark.parametrize("vector", SERVED, ids=by_id)
def test_tlvs(vector: golden.Vector) -> None:
    preamble, _ = split_preamble(vector)
    found = first_tlvs(preamble.tlv_area) if preamble else {}
    for name, value in vector["expect"].get("tlv", {}).items():
        assert tlv(found, name) == bytes.fromhex(value)


TLV_NAMES = {"alpn": 1, "authority": 2, "unique_id": 5, "ssl": 0x20, "netns": 0x30}
SSL_NAMES = {"version": 0x21, "cn": 0x22, "cipher": 0x23, "sig_alg": 0x24, "key_alg": 0x25}


def tlv(found: dict[int, bytes], name: str) -> bytes | None:
    """Look a value up by the name of nginx's ``proxy_protocol_tlv_*`` variable."""
    ssl = found.get(0x20, b"")
    if name == "ssl_verify":
        return str(int.from_bytes(ssl[1:5], "big")).encode()
    if name.startswith("ssl_"):
        name = name.removeprefix("ssl_")
        return first_tlvs(ssl[5:]).get(SSL_NAMES.get(name) or int(name, 16))
    return found.get(TLV_NAMES.get(name) or int(name, 16))


@pytest.mark.parametrize("vector", CLOSED, ids=by_id)
def test_nginx_or_we_close_it(vector: golden.Vector) -> None:
    data = b"".join(golden.segments(vector))
    if golden.segments(vector, "tls_segments"):
        data += b"\x16\x03\x01"  # the client goes on with its ClientHello
    if wanted(vector) == "closed":
        with pytest.raises(PreambleError):
            parse(data)
    else:
        assert (parse(data) is None) == (wanted(vector) == "waits")


@pytest.mark.parametrize("vector", REFUSED, ids=by_id)
def test_nginx_or_kong_refuses_the_trusted_entries(vector: golden.Vector) -> None:
    with pytest.raises(ValueError, match=r"write|prefix|brackets"):
        TrustedNetworks(vector["config"]["trusted_ips"])
