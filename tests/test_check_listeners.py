"""Findings about listeners and what depends on them, and what the commands say of them at start."""

from __future__ import annotations

import pytest

from kongrealip import Settings
from kongrealip.config.check import proxy_warnings, relay_warnings, serve_warnings
from kongrealip.config.proxy import load_proxy
from kongrealip.config.relay import load_relay
from tests.test_check import CLIENT, FLAG, L4, L7, PLAIN, RELAY, codes, env, found_in, loud
from tests.test_check_findings import FORGED, only

UNFLAGGED = L4.replace(" proxy_protocol", "")


def test_the_flag_that_the_source_needs() -> None:
    found = only("source-without-flag", UNFLAGGED.replace("0.0.0.0:8000", "10.0.0.1:7000, 0.0.0.0:8000"))
    assert "no listener of KONG_PROXY_LISTEN reads one" in found.problem
    assert 'as in KONG_PROXY_LISTEN="10.0.0.1:7000 proxy_protocol"' in found.fix
    assert found.example[:3] == (
        "gets 400, for a preamble is no request", "10.0.0.5", f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 7000",
    )  # fmt: skip
    (in_file,) = found_in(env("TRUSTED_IPS=10.0.0.0/8; REAL_IP_HEADER=proxy_protocol"), "proxy_listen = a:1")
    assert "no listener of proxy_listen in kong.conf reads one" in in_file.problem
    assert codes(env(UNFLAGGED.replace("0.0.0.0:8000", "off"))) == set(), "another server listens"
    both = L4.replace("0.0.0.0:8000", "0.0.0.0:9000, 0.0.0.0:8000")
    assert codes(env(both)) == set()


def test_the_source_that_the_flag_needs() -> None:
    found = only("flag-without-source", f"{L7}, 0.0.0.0:8443 ssl proxy_protocol")
    assert found.problem.startswith(
        "0.0.0.0:8443 demands a preamble, and the address is taken from X-Forwarded-For,"
    )
    assert found.example.preamble == f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8443"
    assert found.example.headers == (f"X-Forwarded-For: {FORGED}",)
    assert (found.example.client, found.example.right) == (FORGED, CLIENT)
    assert loud(env(f"REAL_IP_HEADER=X-Real-IP; {FLAG}")) == {"preamble-unused"}, "nobody is believed"


def test_every_listener_demands_a_preamble() -> None:
    found = only("all-listeners-flagged", L4)
    assert found.variable == "KONG_PROXY_LISTEN"
    assert found.example[1:] == ("10.0.0.5", "", ("GET /health HTTP/1.1",), None, None)
    assert codes(env(L4.replace("0.0.0.0:8000", "0.0.0.0:9000, 0.0.0.0:8000"))) == set()
    assert codes(env(RELAY)) == set(), "who asks for health asks over HTTP"


def test_what_is_believed_behind_a_balancer_below_http() -> None:
    undecided = L4.replace("; KONGREALIP_FORWARDED_HEADERS=auto", "")
    found = only("believed-forwarded-proto", undecided)
    assert (found.variable, found.example.peer) == ("KONGREALIP_FORWARDED_HEADERS", "10.0.0.5")
    assert found.example.headers == ("X-Forwarded-Proto: https",)
    assert found.example.preamble == f"PROXY TCP4 {CLIENT} 10.0.0.9 51000 8000"
    for decided in ("off", "auto", "trusted"):
        assert "believed-forwarded-proto" not in codes(
            env(f"{undecided}; KONGREALIP_FORWARDED_HEADERS={decided}")
        )
    for other in (
        undecided.replace("10.0.0.0/8", ""),
        undecided.replace("10.0.0.0/8", "::ffff:10.0.0.0/104"),
        undecided.replace(" proxy_protocol", ""),
        undecided.replace("0.0.0.0:8000 proxy_protocol", "off"),
        undecided.replace("=proxy_protocol", "=X-Real-IP"),
        RELAY,
    ):
        assert "believed-forwarded-proto" not in codes(env(other))


@pytest.mark.parametrize(("size", "is_long"), [("4096", False), ("4097", True), ("65551", True)])
def test_preambles_that_kong_would_not_take(size: str, is_long: bool) -> None:
    text = f"{L4}; KONGREALIP_PREAMBLE_MAX_BYTES={size}"
    assert ("preamble-longer-than-nginx" in codes(env(text))) == is_long
    if is_long:
        found = only("preamble-longer-than-nginx", text)
        assert f"up to {size} bytes" in found.problem
        assert str(found.example).startswith(f"a preamble of {size} bytes")
    relay = f"{RELAY}; KONGREALIP_PREAMBLE_MAX_BYTES={size}"
    assert ("preamble-longer-than-nginx" in codes(env(relay))) == is_long
    assert "preamble-longer-than-nginx" not in codes(env(f"{L7}; KONGREALIP_PREAMBLE_MAX_BYTES={size}"))


IN_VAIN = {
    "PROXY_PROTOCOL_OPTIONAL_FROM": ("10.1.0.0/16", ""),
    "PROXY_PROTOCOL_STRICT": ("on", "off"),
    "PREAMBLE_MAX_BYTES": ("2048", "4096"),
    "SCHEME_FROM_PREAMBLE": ("on", "off"),
}


@pytest.mark.parametrize(("name", "values"), IN_VAIN.items())
def test_what_has_no_effect_without_preambles(name: str, values: tuple[str, str]) -> None:
    changed, default = values
    assert only("no-effect", f"{L7}; KONGREALIP_{name}={changed}").variable == f"KONGREALIP_{name}"
    assert codes(env(f"{L7}; KONGREALIP_{name}={default}")) == set(), "the default changes nothing"
    for other in (L4, RELAY, L7.replace("0.0.0.0:8000", "off")):
        assert "no-effect" not in codes(env(f"{other}; KONGREALIP_{name}={changed}"))


def test_port_maps_of_nobody() -> None:
    listens = L7.replace("0.0.0.0:8000", "0.0.0.0:8000, 0.0.0.0:443")
    found = only("port-map-without-listener", f"{listens}; PORT_MAPS=80:8000,81:9000")
    assert found.problem == "81:9000: the port '9000' is no listener's, so the entry has no effect"
    assert str(found.example) == "nobody is told of port 81"
    assert found.fix == "write the port of a listener, of 443, 8000, as a plain number without blanks"
    odd = only("port-map-without-listener", f"{listens}; PORT_MAPS=81:08000,80:8000")
    assert odd.problem == (
        "81:08000: the port '08000' is compared as text, and is spelt otherwise, so the entry has no effect"
    )
    assert codes(env(f"{listens}; PORT_MAPS=80:8000,81:443")) == set()
    assert codes(env(f"{RELAY}; PORT_MAPS=80:9000")) == set()
    assert codes(env(f"{L7.replace('0.0.0.0:8000', 'off')}; PORT_MAPS=80:9000")) == set(), (
        "another server listens"
    )
    assert [finding.code for finding in found_in(env(f"{L7}; PORT_MAPS=80:1,81:2"))] == [
        "port-map-without-listener"
    ] * 2


def test_two_maps_of_one_listener() -> None:
    found = only("port-map-twice", f"{L7}; PORT_MAPS=80:8000,443:8000,8443:8000")
    assert (
        found.problem
        == "80:8000 and 443:8000 and 8443:8000 are for the same listener, and the last one counts"
    )
    assert str(found.example) == "behind port 80 it is said to be 8443"
    assert "port-map-twice" not in codes(env(f"{L7}; PORT_MAPS=80:8000,443:8443"))


# --- at start ---------------------------------------------------------------------------------


def test_warnings_are_lines() -> None:
    (line,) = serve_warnings(Settings.load(env("KONG_TRUSTED_IP=x")))
    assert line == "KONG_TRUSTED_IP: is not a name that is read; write KONG_TRUSTED_IPS"
    assert serve_warnings(Settings.load(env(L4))) == [], "hints are for who asks"
    lines = serve_warnings(Settings.load(env(f"{L7}; STREAM_LISTEN=a:1 proxy_protocol")))
    assert lines == ["KONG_STREAM_LISTEN has no effect here: serve opens proxy_listen"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_proxy_may_be_its_own_upstream(host: str) -> None:
    environ = {
        **env(PLAIN),
        "KONGREALIP_UPSTREAM": f"http://{host}:8000,http://{host}:8001,http://10.0.0.1:8000,unix:/a",
    }
    (line,) = proxy_warnings(*load_proxy(environ))
    assert line == f"KONGREALIP_UPSTREAM: {host}:8000 may be this proxy itself, which listens on that port"
    assert proxy_warnings(*load_proxy(env(PLAIN))) == []


def test_what_a_relay_was_given_in_vain() -> None:
    ca = "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE=/a"
    verify = "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT"
    of_tls = f"KONGREALIP_ALPN=h2; {ca}; {verify}=on"
    assert relay_warnings(*load_relay(env(f"{RELAY}; {of_tls}"))) == [
        "KONGREALIP_ALPN has no effect: no listener has the flag ssl",
        "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE has no effect: no listener has the flag ssl",
    ]
    tls = RELAY.replace("proxy_protocol", "ssl proxy_protocol")
    assert relay_warnings(*load_relay(env(f"{tls}; {of_tls}"))) == []
    assert relay_warnings(*load_relay(env(f"{tls}; {ca}"))) == [
        f"KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE has no effect: set {verify} to on or optional"
    ]
    upstream = "KONGREALIP_UPSTREAM_TLS_CA=/a"
    assert relay_warnings(*load_relay(env(f"{RELAY}; {upstream}"))) == [
        "KONGREALIP_UPSTREAM_TLS_CA has no effect: set KONGREALIP_UPSTREAM_TLS=on"
    ]
    off = f"{upstream}; KONGREALIP_UPSTREAM_TLS=on; KONGREALIP_UPSTREAM_TLS_VERIFY=off"
    assert relay_warnings(*load_relay(env(f"{RELAY}; {off}"))) == [
        "KONGREALIP_UPSTREAM_TLS_CA has no effect: KONGREALIP_UPSTREAM_TLS_VERIFY is off"
    ]
    assert relay_warnings(*load_relay(env(f"{RELAY}; {PLAIN}"))) == [
        "KONG_PROXY_LISTEN has no effect here: relay opens stream_listen"
    ]
    assert relay_warnings(*load_relay(env(f"{RELAY}; PROXY_LISTEN=off"))) == []
