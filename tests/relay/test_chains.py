"""The relay before, behind and between real balancers: addresses, TLVs, TLS, checks, half-closes."""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from kongrealip.preamble import first_tlvs
from tests.balancers import programs
from tests.balancers.conftest import CLIENT_NAME, FROM_THE_PREAMBLE, SERVER_NAME, Certificates
from tests.balancers.programs import caddy, envoy, haproxy, nginx
from tests.balancers.test_caddy import with_preamble
from tests.balancers.test_envoy import tcp, typed
from tests.balancers.test_haproxy import REMEMBERS_CHECKS, checked, checks, forward
from tests.balancers.test_nginx import stream
from tests.relay.conftest import RawUpstream, relaying
from tests.running import (
    CLIENT_IP,
    LOOPBACK,
    Program,
    Seen,
    client,
    connect,
    exchange,
    fetch,
    free_port,
    received,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

Running = AbstractContextManager[Program]

FORGED = [("X-Forwarded-For", "203.0.113.66"), ("X-Real-IP", "203.0.113.66")]
REQUEST = b"GET / HTTP/1.1\r\nHost: service.test\r\nConnection: close\r\n\r\n"


def whoami(folder: Path, flags: str = "", *args: str, **environ: str) -> Running:
    """``kongrealip serve``, with its built-in application unless ``args`` name one of ``folder``."""
    listen = f"{LOOPBACK}:{free_port()} proxy_protocol {flags}"
    environ |= {"KONG_PROXY_LISTEN": listen, **FROM_THE_PREAMBLE}
    return serving(environ, "--app-dir", folder, *args)


def nginx_end(folder: Path, flags: str = "", settings: str = "", **answer: str) -> Running:
    """Answers with the client as its realip module has it, and with ``answer``."""
    port = free_port()
    addresses = {
        "client_ip": "$remote_addr",
        "client_port": "$remote_port",
        "destination_port": "$proxy_protocol_server_port",
    }
    config = f"""
http {{
    access_log off;
    server {{
        listen {LOOPBACK}:{port} proxy_protocol {flags};
        set_real_ip_from {LOOPBACK}/32;
        real_ip_header proxy_protocol;
        {settings}
        location / {{ return 200 '{json.dumps(addresses | answer)}'; }}
    }}
}}
"""
    return nginx(folder, config, port)


def haproxy_end(folder: Path, flags: str = "") -> Running:
    """Answers with what the preamble says; where that has a checksum, HAProxy has verified it."""
    port = free_port()
    answer = {
        "client_ip": "%[src]",
        "client_port": "%[src_port]",
        "destination_port": "%[dst_port]",
        "authority": "%[fc_pp_authority]",
        "unique_id": "%[fc_pp_unique_id]",
    }
    config = f"""
frontend end
    mode http
    bind {LOOPBACK}:{port} accept-proxy {flags}
    http-request return status 200 content-type application/json lf-string '{json.dumps(answer)}'
"""
    return haproxy(folder, config, port)


def caddy_end(folder: Path) -> Running:
    """Answers with the client alone: Caddy does not tell the destination."""
    port = free_port()
    options = f"""
    servers {{
        listener_wrappers {{
            proxy_protocol {{
                allow {LOOPBACK}/32
                fallback_policy reject
            }}
        }}
    }}
"""
    config = f"""
http://:{port} {{
    bind {LOOPBACK}
    respond `{{"client_ip": "{{remote_host}}", "client_port": "{{remote_port}}"}}`
}}
"""
    return programs.caddy(folder, config, port, options=options)


def relay_hop(folder: Path, upstream: Program, form: str, takes: bool) -> Running:
    return relaying(upstream, form, flags="proxy_protocol" if takes else "")


def haproxy_hop(folder: Path, upstream: Program, form: str, takes: bool) -> Running:
    port = free_port()
    send = {"v1": "send-proxy", "v2": "send-proxy-v2"}[form]
    return haproxy(folder, forward(port, upstream, send, flags="accept-proxy" if takes else ""), port)


def nginx_hop(folder: Path, upstream: Program, form: str, takes: bool) -> Running:
    port = free_port()
    assert form == "v1", "its stream module writes nothing else"
    return nginx(folder, stream(port, upstream, "proxy_protocol" if takes else ""), port)


def envoy_hop(folder: Path, upstream: Program, form: str, takes: bool) -> Running:
    port = free_port()
    name = "envoy.filters.listener.proxy_protocol"
    accept = typed(name, "filters.listener.proxy_protocol.v3.ProxyProtocol")
    return envoy(folder, tcp(port, upstream, {"version": form.upper()}, [accept] if takes else []), port)


ENDS: dict[str, Callable[[Path], Running]] = {
    "whoami": whoami, "nginx": nginx_end, "haproxy": haproxy_end, "caddy": caddy_end
}  # fmt: skip
HOPS = {"relay": relay_hop, "haproxy": haproxy_hop, "nginx": nginx_hop, "envoy": envoy_hop}


@contextmanager
def chain(text: str, folder: Path) -> Iterator[Program]:
    """Start what ``text`` names, from its end on, and yield the first."""
    *hops, end = text.split(" > ")
    with ExitStack() as stack:
        first = stack.enter_context(ENDS[end](folder))
        for number in reversed(range(len(hops))):
            name, form = hops[number].split()
            # They write files of the same names.
            room = folder / str(number)
            room.mkdir()
            first = stack.enter_context(HOPS[name](room, first, form, number > 0))
        yield first


def check_client(seen: Seen, ip: str, port: int, destination_port: int | None) -> None:
    """None where it is not known to the end."""
    assert (seen["client_ip"], str(seen["client_port"])) == (ip, str(port))
    told = (seen.get("preamble") or seen).get("destination_port")
    assert destination_port is None or str(told) == str(destination_port)


@pytest.mark.parametrize(
    "text",
    [
        "relay v1 > nginx",
        "relay v2 > nginx",
        "relay v1 > haproxy",
        "relay v2 > haproxy",
        "relay v1 > caddy",
        "relay v2 > caddy",
        "relay v2 > whoami",
        "relay v1 > nginx v1 > haproxy",
        "relay v2 > nginx v1 > haproxy",
        "relay v1 > envoy v2 > nginx",
        "relay v2 > envoy v1 > nginx",
        "haproxy v1 > relay v2 > nginx",
        "haproxy v2 > relay v1 > haproxy",
        "nginx v1 > relay v1 > nginx",
        "nginx v1 > relay v2 > haproxy",
        "envoy v1 > relay v2 > nginx",
        "envoy v2 > relay v1 > nginx",
        "relay v1 > relay v2 > nginx",
        "relay v2 > relay v1 > nginx",
        "haproxy v2 > relay v1 > relay v2 > nginx",
    ],
)
def test_client_is_known_at_the_end(text: str, tmp_path: Path) -> None:
    # nginx writes its own port, whatever stood in the preamble that it took.
    is_lost = text.endswith("caddy") or "> nginx v1" in text
    with chain(text, tmp_path) as first, client(first.port) as asking:
        for _ in range(2):
            destination = None if is_lost else first.port
            check_client(asking.get(headers=FORGED), CLIENT_IP, asking.port, destination)


@pytest.mark.parametrize(
    "text",
    ["relay v1 > nginx", "relay v2 > haproxy", "relay v1 > relay v2 > envoy v1 > nginx"],
)
def test_ipv6_client_over_ipv4(text: str, tmp_path: Path) -> None:
    with chain(text, tmp_path) as first, client(first.port, "::1") as asking:
        check_client(asking.get(), "::1", asking.port, first.port)


@pytest.mark.parametrize(("version", "form"), [(1, "v2"), (2, "v1")])
def test_caddy_in_front_names_no_ports(tmp_path: Path, version: int, form: str) -> None:
    port = free_port()
    with (
        whoami(tmp_path) as end,
        relaying(end, form, flags="proxy_protocol") as relay,
        caddy(tmp_path, with_preamble(port, relay, version), port),
    ):
        seen = fetch(port)
    assert (seen["client_ip"], seen["client_port"]) == (CLIENT_IP, None)
    preamble = seen["preamble"]
    assert f"v{preamble['version']}" == form
    assert (preamble["destination_ip"], preamble["destination_port"]) == ("0.0.0.0", 0)


def ending_tls(port: int, upstream: int, certificates: Certificates) -> str:
    """HAProxy, which tells all that it knows of the client's TLS."""
    flags = f"ssl crt {certificates.bundle} ca-file {certificates.ca} verify optional alpn http/1.1"
    options = "crc32c,unique-id,authority,cert-key,cert-sig,ssl-cipher"
    send = f"send-proxy-v2-ssl-cn proxy-v2-options {options}"
    return forward(port, upstream, send, "unique-id-format balancer-%cp", flags=flags)


def test_preamble_of_haproxy_goes_through_two_relays_unchanged(
    raw_upstream: RawUpstream, tmp_path: Path, certificates: Certificates
) -> None:
    """To the last byte, and so the order of the TLVs and the checksum are as they were."""
    port, tls = free_port(), certificates.client_context(with_certificate=True)
    with (
        haproxy(tmp_path, ending_tls(port, raw_upstream.port, certificates), port),
        client(port, tls=tls, server_name=SERVER_NAME),
        raw_upstream.take() as sent,
    ):
        assert list(first_tlvs(sent.preamble.tlv_area)) == [0x03, 0x01, 0x02, 0x05, 0x20]
    with (
        relaying(raw_upstream, "v2", flags="proxy_protocol") as inner,
        relaying(inner, "v2", flags="proxy_protocol") as outer,
        # From where HAProxy would connect: nobody else is believed.
        client(outer.port, LOOPBACK, preamble=sent.head),
        raw_upstream.take() as arrived,
    ):
        assert arrived.head == sent.head


def test_tlvs_from_haproxy_to_haproxy(tmp_path: Path, certificates: Certificates) -> None:
    port, tls = free_port(), certificates.client_context()
    with (
        haproxy_end(tmp_path) as end,
        relaying(end, "v2", flags="proxy_protocol") as relay,
        haproxy(tmp_path, ending_tls(port, relay.port, certificates), port),
        client(port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        seen = asking.get()
        check_client(seen, CLIENT_IP, asking.port, port)
        assert (seen["authority"], seen["unique_id"]) == (SERVER_NAME, f"balancer-{asking.port}")


def test_tlvs_from_haproxy_to_serve(tmp_path: Path, certificates: Certificates) -> None:
    port, tls = free_port(), certificates.client_context()
    with (
        whoami(tmp_path, KONGREALIP_PROXY_PROTOCOL_STRICT="on") as end,
        relaying(end, "v2", flags="proxy_protocol") as relay,
        haproxy(tmp_path, ending_tls(port, relay.port, certificates), port),
        client(port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        seen = asking.get()
        check_client(seen, CLIENT_IP, asking.port, port)
        assert list(seen["preamble"]["tlvs"]) == ["03", "01", "02", "05", "20"]


def test_relay_adds_its_tls_to_what_the_balancer_said(
    raw_upstream: RawUpstream, tmp_path: Path, certificates: Certificates
) -> None:
    """And the checksum, which stays where it was, is that of the whole."""
    port, tls = free_port(), certificates.client_context()
    options = "--alpn", "http/1.1"
    send = "send-proxy-v2 proxy-v2-options crc32c,unique-id"
    with (
        relaying(
            raw_upstream, "v2", *options, flags="proxy_protocol ssl", environ=certificates.environ()
        ) as relay,
        haproxy(tmp_path, forward(port, relay, send, "unique-id-format one"), port),
        client(port, tls=tls, server_name=SERVER_NAME),
        raw_upstream.take() as taken,
    ):
        tlvs = first_tlvs(taken.preamble.tlv_area)
    assert list(tlvs) == [0x01, 0x02, 0x20, 0x03, 0x05]
    assert (tlvs[0x01], tlvs[0x02], tlvs[0x05]) == (b"http/1.1", SERVER_NAME.encode(), b"one")


@pytest.mark.parametrize(("form", "command"), [("v1", "PROXY"), ("v2", "LOCAL")])
def test_health_check_stays_one(tmp_path: Path, form: str, command: str) -> None:
    """LOCAL of version 2 is UNKNOWN in version 1: nobody's address, so the peer is the client."""
    (tmp_path / "remembers.py").write_text(REMEMBERS_CHECKS)
    port, stats = free_port(), free_port()
    with (
        whoami(tmp_path, "", "remembers:app") as server,
        relaying(server, form, flags="proxy_protocol") as relay,
        haproxy(tmp_path, checked(port, stats, relay, "mode http", "option httpchk GET /check"), port, stats),
    ):
        wait_until(lambda: checks(stats) == ("UP", "L7OK", "200", "0"), "three passed checks")
        (check,) = fetch(port)["checks"]
    assert (check["client_ip"], check["source"]) == (LOOPBACK, "peer")
    assert (check["preamble"]["command"], check["preamble"]["source_ip"]) == (command, None)


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_tls_passes_through_with_a_preamble_in_front(
    tmp_path: Path, certificates: Certificates, form: str
) -> None:
    tls = certificates.client_context()
    with (
        whoami(tmp_path, "ssl", **certificates.environ()) as server,
        relaying(server, form) as relay,
        client(relay.port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        seen = asking.get()
        check_client(seen, CLIENT_IP, asking.port, relay.port)
        assert (seen["tls"], seen["scheme"]) == (True, "https")


# What nginx makes of the TLVs.
OF_TLS = {
    "version": "$proxy_protocol_tlv_ssl_version",
    "cipher": "$proxy_protocol_tlv_ssl_cipher",
    "name": "$proxy_protocol_tlv_ssl_cn",
    "verify": "$proxy_protocol_tlv_ssl_verify",
    "alpn": "$proxy_protocol_tlv_alpn",
    "authority": "$proxy_protocol_tlv_authority",
}


def asking_for_certificates(certificates: Certificates, verify: str) -> dict[str, str]:
    return certificates.environ() | {
        "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE": str(certificates.ca),
        "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT": verify,
    }


@pytest.mark.parametrize(("with_certificate", "name", "verify"), [(True, CLIENT_NAME, "0"), (False, "", "1")])
def test_tls_that_ends_at_the_relay(
    tmp_path: Path, certificates: Certificates, with_certificate: bool, name: str, verify: str
) -> None:
    tls = certificates.client_context(with_certificate=with_certificate)
    environ = asking_for_certificates(certificates, "optional")
    with (
        nginx_end(tmp_path, **OF_TLS) as end,
        relaying(end, "v2", "--alpn", "h2,http/1.1", flags="ssl", environ=environ) as relay,
        client(relay.port, tls=tls, server_name=SERVER_NAME) as asking,
    ):
        seen = asking.get()
        check_client(seen, CLIENT_IP, asking.port, relay.port)
    assert (seen["name"], seen["verify"]) == (name, verify)
    assert (seen["alpn"], seen["authority"]) == ("http/1.1", SERVER_NAME)
    assert (seen["version"], seen["cipher"][:4]) == ("TLSv1.3", "TLS_")


def test_resumed_session_keeps_its_certificate(tmp_path: Path, certificates: Certificates) -> None:
    """Which the client does not show again."""
    tls, session = certificates.client_context(with_certificate=True), None
    environ = asking_for_certificates(certificates, "on")
    with nginx_end(tmp_path, **OF_TLS) as end, relaying(end, "v2", flags="ssl", environ=environ) as relay:
        for is_resumed in (False, True):
            with (
                connect(relay.port) as sock,
                tls.wrap_socket(sock, server_hostname=SERVER_NAME, session=session) as asking,
            ):
                asking.sendall(REQUEST)
                seen = json.loads(b"".join(received(asking)).partition(b"\r\n\r\n")[2])
                session = asking.session
                assert asking.session_reused == is_resumed
                assert (seen["name"], seen["verify"], seen["authority"]) == (CLIENT_NAME, "0", SERVER_NAME)


def test_without_a_certificate_nobody_comes_through(tmp_path: Path, certificates: Certificates) -> None:
    environ = asking_for_certificates(certificates, "on")
    with (
        nginx_end(tmp_path) as end,
        relaying(end, "v2", flags="ssl", environ=environ) as relay,
    ):
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            fetch(relay.port, tls=certificates.client_context(), server_name=SERVER_NAME)
        relay.wait_for_stderr("TLS handshake failed: PEER_DID_NOT_RETURN_A_CERTIFICATE")


def nginx_with_tls(folder: Path, certificates: Certificates) -> Running:
    pair = f"ssl_certificate {certificates.server}; ssl_certificate_key {certificates.server_key};"
    return nginx_end(folder, "ssl", pair)


def haproxy_with_tls(folder: Path, certificates: Certificates) -> Running:
    return haproxy_end(folder, f"ssl crt {certificates.bundle}")


@pytest.mark.parametrize("end_with_tls", [nginx_with_tls, haproxy_with_tls])
@pytest.mark.parametrize("form", ["v1", "v2"])
def test_tls_that_begins_at_the_relay(
    tmp_path: Path, certificates: Certificates, end_with_tls: Callable[..., Running], form: str
) -> None:
    verified = "--upstream-tls", "on", "--upstream-tls-ca", str(certificates.ca)
    with (
        end_with_tls(tmp_path, certificates) as end,
        relaying(end, form, *verified) as relay,
        client(relay.port) as asking,
    ):
        for _ in range(2):
            check_client(asking.get(), CLIENT_IP, asking.port, relay.port)


def test_upstream_with_a_certificate_of_strangers_gets_nothing(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        haproxy_with_tls(tmp_path, certificates) as end,
        relaying(end, "v2", "--upstream-tls", "on") as relay,
    ):
        assert exchange(relay.port, REQUEST)[0] == b""
        relay.wait_for_stderr("TLS failed: unable to get local issuer certificate")


@contextmanager
def plain(folder: Path, upstream: RawUpstream, pem: Certificates, *options: str) -> Iterator[Program]:
    port = free_port()
    with (
        relaying(upstream, "v2", *options, flags="proxy_protocol") as relay,
        haproxy(folder, forward(port, relay, "send-proxy-v2"), port) as first,
    ):
        yield first


@contextmanager
def tls_to_relay(folder: Path, upstream: RawUpstream, pem: Certificates, *options: str) -> Iterator[Program]:
    port, flags = free_port(), "proxy_protocol ssl"
    send = f"send-proxy-v2 ssl ca-file {pem.ca} verify required"
    with (
        relaying(upstream, "v2", *options, flags=flags, environ=pem.environ()) as relay,
        haproxy(folder, forward(port, relay, send), port) as first,
    ):
        yield first


@contextmanager
def tls_from_relay(
    folder: Path, upstream: RawUpstream, pem: Certificates, *options: str
) -> Iterator[Program]:
    port, flags = free_port(), f"accept-proxy ssl crt {pem.bundle}"
    verified = "--upstream-tls", "on", "--upstream-tls-ca", str(pem.ca)
    with (
        haproxy(folder, forward(port, upstream.port, "send-proxy-v2", flags=flags), port) as end,
        relaying(end, "v1", *verified, *options) as first,
    ):
        yield first


@pytest.fixture(scope="module", params=[plain, tls_to_relay, tls_from_relay])
def first(
    request: pytest.FixtureRequest,
    loop: str,
    tmp_path_factory: pytest.TempPathFactory,
    raw_upstream: RawUpstream,
    certificates: Certificates,
) -> Iterator[Program]:
    """In front of ``raw_upstream``, with HAProxy and the relay between."""
    folder = tmp_path_factory.mktemp("first")
    with request.param(folder, raw_upstream, certificates, "--loop", loop) as program:
        yield program


def turn_round(upstream: RawUpstream) -> None:
    """Send back the last byte first: nothing can go before everything has come."""
    with upstream.take() as taken:
        taken.sock.sendall(taken.read()[::-1])


def test_answer_comes_after_the_client_has_said_all(first: Program, raw_upstream: RawUpstream) -> None:
    for size in (5, 3_000_000):
        data = random.Random(size).randbytes(size)
        with ThreadPoolExecutor() as pool, connect(first.port) as sock:
            turned = pool.submit(turn_round, raw_upstream)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert b"".join(received(sock)) == data[::-1]
            turned.result()


def speak_first(upstream: RawUpstream, words: bytes) -> bytes:
    """Say all there is to say, and return what the client says then."""
    with upstream.take() as taken:
        taken.sock.sendall(words)
        taken.sock.shutdown(socket.SHUT_WR)
        return taken.read()


def test_client_goes_on_after_the_upstream_has_said_all(first: Program, raw_upstream: RawUpstream) -> None:
    with ThreadPoolExecutor() as pool, connect(first.port) as sock:
        heard = pool.submit(speak_first, raw_upstream, b"all")
        assert b"".join(received(sock)) == b"all"
        sock.sendall(b"and now the client")
        sock.shutdown(socket.SHUT_WR)
        assert heard.result() == b"and now the client"
