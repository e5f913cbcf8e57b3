"""What the relay is asked for: its own variables, Kong's, and the words of the command line."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.check import relay_warnings
from kongrealip.config.relay import RelaySettings, Upstream, load_relay, parse_upstream
from tests.nginx import certificate, starts_with

CERTIFICATE = "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE"
VERIFY = "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT"
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"


def relay(**ours: str) -> RelaySettings:
    """From KONGREALIP_* variables."""
    return load_relay({f"KONGREALIP_{name.upper()}": value for name, value in ours.items()})[1]


def problems(environ: dict[str, str], conf: str | None = None, **options: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_relay(environ, conf, options)
    return caught.value.problems


def test_defaults() -> None:
    settings, relay = load_relay({})
    assert settings == Settings()
    assert relay == RelaySettings()
    assert relay == ((), "off", (), False, True, None, (), None, "off", 5.0, 600.0, 20.0, {})


def test_every_value() -> None:
    settings, relay = load_relay(
        {
            "KONG_STREAM_LISTEN": "0.0.0.0:9443 ssl proxy_protocol",
            "KONGREALIP_UPSTREAM": "db.local:5432, 10.0.0.1:1,[2001:db8::1]:65535, unix:/run/a b.sock,",
            "KONGREALIP_SEND_PROXY": "v2",
            "KONGREALIP_ALLOW": "10.0.0.0/8, unix:",
            "KONGREALIP_UPSTREAM_TLS": "on",
            "KONGREALIP_UPSTREAM_TLS_VERIFY": "off",
            "KONGREALIP_UPSTREAM_TLS_CA": "/etc/ca.pem",
            "KONGREALIP_ALPN": "h2, http/1.1",
            "KONGREALIP_CONNECT_TIMEOUT": "500ms",
            "KONGREALIP_IDLE_TIMEOUT": "1h",
            "KONGREALIP_DRAIN_TIMEOUT": "30",
            CERTIFICATE: "/etc/clients.pem",
            VERIFY: "optional",
        }
    )
    assert [str(listen) for listen in settings.stream_listen] == ["0.0.0.0:9443 ssl proxy_protocol"]
    assert relay._replace(given={}) == RelaySettings(
        upstreams=(
            Upstream("db.local", 5432),
            Upstream("10.0.0.1", 1),
            Upstream("2001:db8::1", 65535),
            Upstream("unix:/run/a b.sock", 0),
        ),
        send_proxy="v2",
        allow=("10.0.0.0/8", "unix:"),
        upstream_tls=True,
        upstream_tls_verify=False,
        upstream_tls_ca="/etc/ca.pem",
        alpn=("h2", "http/1.1"),
        client_ca="/etc/clients.pem",
        client_verify="optional",
        connect_timeout=0.5,
        idle_timeout=3600.0,
        drain_timeout=30.0,
    )
    assert relay.given["upstreams"] == "KONGREALIP_UPSTREAM"
    assert relay.given["client_ca"] == CERTIFICATE
    assert set(RelaySettings._fields) - {"given"} <= set(relay.given), "each field finds its name"


def test_empty_is_the_default() -> None:
    names = [
        name
        for name in RelaySettings._fields
        if name not in ("given", "upstreams", "allow", "client_ca", "client_verify")
    ]
    assert relay(upstream="", **dict.fromkeys(names, " "))._replace(given={}) == RelaySettings()
    for word in ("", "NONE"):
        _, found = load_relay({CERTIFICATE: word, VERIFY: word})
        assert (found.client_ca, found.client_verify) == (None, "off")


@pytest.mark.parametrize("word", ["", " ", ","])
def test_an_allow_list_that_is_empty_lets_nobody_in_by_mistake(word: str) -> None:
    """As from an unset variable. Everybody is let in where there is no list at all."""
    assert problems({"KONGREALIP_ALLOW": word})[-1].startswith("KONGREALIP_ALLOW: is empty, ")


def test_every_problem_of_both_is_reported_one_line_each() -> None:
    found = problems(
        {
            "KONG_TRUSTED_IPS": "kong.local",
            "KONG_STREAM_LISTEN": "0.0.0.0:9000, 0.0.0.0:53 udp",
            "KONGREALIP_UPSTREAM": "a:1, b:0, 10.0.0.1, ::1:9000",
            "KONGREALIP_SEND_PROXY": "v3",
            "KONGREALIP_ALLOW": "10.0.0.1, 10.0.0.0/33",
            "KONGREALIP_UPSTREAM_TLS": "yes",
            "KONGREALIP_UPSTREAM_TLS_VERIFY": "no",
            "KONGREALIP_ALPN": "h2 http/1.1",
            "KONGREALIP_CONNECT_TIMEOUT": "0",
            "KONGREALIP_IDLE_TIMEOUT": "soon",
            "KONGREALIP_DRAIN_TIMEOUT": "-1",
            VERIFY: "on",
        }
    )
    assert found == (
        "KONG_TRUSTED_IPS: entry 1 'kong.local': write an IPv4 or IPv6 address, a CIDR block such as"
        " 10.0.0.0/8, or unix:",
        "KONG_STREAM_LISTEN: entry 2 '0.0.0.0:53 udp': the relay passes on TCP alone, leave udp or the entry out",
        "KONGREALIP_UPSTREAM: entry 2 'b:0': the port must be within 1 to 65535",
        "KONGREALIP_UPSTREAM: entry 3 '10.0.0.1': write HOST:PORT, [IPv6]:PORT or unix:/path, and nothing else",
        "KONGREALIP_UPSTREAM: entry 4 '::1:9000': write an IPv6 address in brackets, as in [2001:db8::1]:9000",
        "KONGREALIP_SEND_PROXY: 'v3': write one of off, v1, v2",
        "KONGREALIP_ALLOW: entry 2 '10.0.0.0/33': the prefix must be a plain number from 0 to 32",
        "KONGREALIP_UPSTREAM_TLS: 'yes': write one of on, off",
        "KONGREALIP_UPSTREAM_TLS_VERIFY: 'no': write one of on, off",
        "KONGREALIP_ALPN: entry 1 'h2 http/1.1': write up to 255 ASCII characters without blanks,"
        " as in h2, http/1.1",
        "KONGREALIP_CONNECT_TIMEOUT: '0': write a time above 0 as nginx does, as in 60s or 500ms",
        "KONGREALIP_IDLE_TIMEOUT: 'soon': write a time above 0 as nginx does, as in 60s or 500ms",
        "KONGREALIP_DRAIN_TIMEOUT: '-1': write a time above 0 as nginx does, as in 60s or 500ms",
        f"{VERIFY}: 'on': name the file of the authorities in {CERTIFICATE}",
    )


@pytest.mark.parametrize(
    "entry",
    ["a:1", "a.b-c_d.:65535", "10.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "[::ffff:10.0.0.1]:80", "unix:/run/a:b",
     "unix:/" + "a" * 106],
)  # fmt: skip
def test_an_upstream_is_printed_as_it_is_written(entry: str) -> None:
    upstream = parse_upstream(entry)
    assert str(upstream) == entry
    assert upstream.is_unix == entry.startswith("unix:")
    assert (upstream.port == 0) == upstream.is_unix
    assert "[" not in upstream.host


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("a", "HOST:PORT"),
        (":80", "HOST:PORT"),
        ("[]:80", "HOST:PORT"),
        ("[a]:80", "HOST:PORT"),
        ("[10.0.0.1]:80", "HOST:PORT"),
        ("a:", "HOST:PORT"),
        ("a:http", "HOST:PORT"),
        ("a:+80", "HOST:PORT"),
        ("a:80 ssl", "HOST:PORT"),
        ("a b:80", "HOST:PORT"),
        ("tcp://a:80", "HOST:PORT"),
        ("a/b:80", "HOST:PORT"),
        ("user@a:80", "HOST:PORT"),
        ("10.1:80", "HOST:PORT"),
        ("10.0.0.256:80", "HOST:PORT"),
        ("010.0.0.1:80", "HOST:PORT"),
        ("a:0", "within 1 to 65535"),
        ("a:65536", "within 1 to 65535"),
        ("a:" + "9" * 5000, "within 1 to 65535"),
        ("2001:db8::1:80", "IPv6 address in brackets"),
        ("[::1]", "IPv6 address in brackets"),
        ("[::1]80", "IPv6 address in brackets"),
        ("a:80:80", "IPv6 address in brackets"),
        ("unix:", "from the root on"),
        ("unix:run/a", "from the root on"),
        ("unix:/" + "a" * 107, "at most 107 bytes"),
        ("unix:/" + "ä" * 54, "at most 107 bytes"),
    ],
)
def test_upstreams_that_cannot_be(entry: str, reason: str) -> None:
    (problem,) = problems({"KONGREALIP_UPSTREAM": f"a:1, {entry}"})
    assert problem.startswith(f"KONGREALIP_UPSTREAM: entry 2 {entry!r}: ")
    assert reason in problem


def test_protocol_names() -> None:
    assert relay(alpn="x" * 255).alpn == ("x" * 255,)
    for name in ("x" * 256, "é", "a\tb"):
        (problem,) = problems({"KONGREALIP_ALPN": f"h2,{name}"})
        assert problem.startswith("KONGREALIP_ALPN: entry 2 ")


def test_authorities_as_path_text_or_base64() -> None:
    encoded = base64.b64encode(PEM.encode()).decode()
    assert relay(upstream_tls_ca="/etc/a,b.pem").upstream_tls_ca == "/etc/a,b.pem"
    assert relay(upstream_tls_ca=PEM).upstream_tls_ca == relay(upstream_tls_ca=encoded).upstream_tls_ca == PEM


@pytest.mark.parametrize("word", ["off", "on", "optional", "ON", "Optional", '"on"', "yes", "true", "on off"])
def test_words_for_client_certificates_as_the_real_nginx_reads_them(word: str) -> None:
    path = str(certificate())
    try:
        _, relay = load_relay({VERIFY: word, CERTIFICATE: path})
    except SettingsError:
        accepted = False
    else:
        accepted = True
        assert relay.client_verify in ("off", "on", "optional")
        assert relay.client_ca == path
    server = f"listen 127.0.0.1:1 ssl; ssl_client_certificate {path}; ssl_verify_client {word};"
    assert accepted == starts_with(server, stream=True)


def test_client_certificates_that_nobody_would_check() -> None:
    (problem,) = problems({VERIFY: "optional_no_ca"})
    assert problem == (
        f"{VERIFY}: 'optional_no_ca': nobody behind the relay could check the certificate, write optional or off"
    )
    assert problems({}, "nginx_sproxy_ssl_verify_client = optional") == (
        "nginx_sproxy_ssl_verify_client in kong.conf: 'optional': name the file of the authorities in "
        + CERTIFICATE,
    )
    (problem,) = problems({CERTIFICATE: "a b.pem"})
    assert problem.startswith(f"{CERTIFICATE}: 'a b.pem': nginx cannot read ' ' inside a value")


def test_udp_is_right_where_nothing_is_relayed() -> None:
    environ = {"KONG_STREAM_LISTEN": "0.0.0.0:1, 0.0.0.0:99999, 0.0.0.0:2  udp  reuseport"}
    port, udp = problems(environ)
    assert port.startswith("KONG_STREAM_LISTEN: entry 2 ")
    assert udp.startswith(
        "KONG_STREAM_LISTEN: entry 3 '0.0.0.0:2  udp  reuseport': the relay passes on TCP alone"
    )
    assert Settings.load({"KONG_STREAM_LISTEN": "0.0.0.0:2 udp"}).stream_listen[0].flags == ("udp",)
    (found,) = problems({}, "stream_listen = a:1 udp")
    assert found.startswith("stream_listen in kong.conf: entry 1 'a:1 udp': ")


def test_options_win_over_environment_and_file() -> None:
    environ = {"KONGREALIP_UPSTREAM": "a:1", "KONGREALIP_SEND_PROXY": "v1", "KONG_STREAM_LISTEN": "0.0.0.0:1"}
    options = {"upstream": "b:2,c:3", "stream_listen": "0.0.0.0:2 ssl", "connect_timeout": "2s"}
    settings, relay = load_relay(environ, "stream_listen = 0.0.0.0:3", options)
    assert relay.upstreams == (Upstream("b", 2), Upstream("c", 3))
    assert [str(listen) for listen in settings.stream_listen] == ["0.0.0.0:2 ssl"]
    assert (relay.send_proxy, relay.connect_timeout) == ("v1", 2.0)
    assert relay.given == settings.given == {
        "upstream": "--upstream", "upstreams": "--upstream", "send_proxy": "KONGREALIP_SEND_PROXY",
        "stream_listen": "--listen", "connect_timeout": "--connect-timeout",
    }  # fmt: skip


def test_options_are_named_in_problems() -> None:
    found = problems(
        {"KONGREALIP_UPSTREAM": "a:1"},
        upstream="b",
        send_proxy="on",
        allow="x",
        stream_listen="a:1 udp",
        connect_timeout="x",
        idle_timeout="0",
    )
    assert [line.partition(": ")[0] for line in found] == [
        "--listen", "--upstream", "--send-proxy", "--allow", "--connect-timeout", "--idle-timeout",
    ]  # fmt: skip


LISTEN = {"KONG_STREAM_LISTEN": "a:1"}
PREAMBLE = {"KONG_STREAM_LISTEN": "a:1 proxy_protocol", "KONG_TRUSTED_IPS": "10.0.0.0/8"}
TLS = {"KONG_STREAM_LISTEN": "a:1 ssl"}
UPSTREAM_TLS = {**LISTEN, "KONGREALIP_UPSTREAM_TLS": "on", "KONGREALIP_UPSTREAM_TLS_CA": "/a"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        PREAMBLE,
        {**PREAMBLE, "KONG_REAL_IP_HEADER": "X-Forwarded-For", "KONG_REAL_IP_RECURSIVE": "on"},
        {
            **PREAMBLE,
            "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": "10.0.0.0/8",
            "KONGREALIP_ALLOW": "10.0.0.0/8",
        },
        {**LISTEN, "KONG_REAL_IP_HEADER": "proxy_protocol", "KONG_TRUSTED_IPS": "0.0.0.0/0"},
        {**LISTEN, "KONG_PROXY_LISTEN": "off"},
        {**TLS, "KONGREALIP_ALPN": "h2", CERTIFICATE: "/a", VERIFY: "on"},
        UPSTREAM_TLS,
    ],
)
def test_nothing_to_say(environ: dict[str, str]) -> None:
    assert relay_warnings(*load_relay(environ)) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({**LISTEN, "KONGREALIP_UPSTREAMS": "a:1"}, "is not a name that is read; write KONGREALIP_UPSTREAM"),
        (
            {**PREAMBLE, "KONG_TRUSTED_IPS": "0.0.0.0/0"},
            "KONG_TRUSTED_IPS: everybody is trusted, so whoever reaches the port",
        ),
        ({"KONG_STREAM_LISTEN": "a:1, a:2 proxy_protocol"}, "nobody is trusted, so they are not used"),
        (
            {**LISTEN, "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": "10.0.0.0/8"},
            "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM: has no effect: no listener has the flag proxy_protocol",
        ),
        ({**UPSTREAM_TLS, "KONGREALIP_UPSTREAM_TLS": "off"},
         "KONGREALIP_UPSTREAM_TLS_CA has no effect: set KONGREALIP_UPSTREAM_TLS=on"),
        ({**UPSTREAM_TLS, "KONGREALIP_UPSTREAM_TLS_VERIFY": "off"},
         "KONGREALIP_UPSTREAM_TLS_CA has no effect: KONGREALIP_UPSTREAM_TLS_VERIFY is off"),
        ({**LISTEN, "KONG_PROXY_LISTEN": "a:2"}, "KONG_PROXY_LISTEN has no effect here: relay opens stream_listen"),
        ({**LISTEN, "KONGREALIP_ALPN": "h2"}, "KONGREALIP_ALPN has no effect: no listener has the flag ssl"),
        ({**LISTEN, CERTIFICATE: "/a", VERIFY: "on"}, f"{CERTIFICATE} has no effect: no listener has the flag ssl"),
        ({**TLS, CERTIFICATE: "/a"}, f"{CERTIFICATE} has no effect: set {VERIFY} to on or optional"),
    ],
)  # fmt: skip
def test_what_relay_says_at_start(environ: dict[str, str], expected: str) -> None:
    (warning,) = relay_warnings(*load_relay(environ))
    assert expected in warning


def test_the_middleware_does_not_pay_for_it() -> None:
    code = "import sys, kongrealip, kongrealip.config; print('kongrealip.config.relay' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
