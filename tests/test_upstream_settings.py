"""What relay and proxy are asked for: upstreams, client certificates, protocols, and their defaults."""

from __future__ import annotations

import pytest

from kongrealip.config.proxy import ProxySettings, load_proxy, parse_url
from kongrealip.config.relay import RelaySettings, Upstream, load_relay, parse_upstream
from tests.test_settings_values import told

CERTIFICATE = "KONG_NGINX_SPROXY_SSL_CLIENT_CERTIFICATE"
VERIFY = "KONG_NGINX_SPROXY_SSL_VERIFY_CLIENT"


def test_what_the_relay_passes_on_is_tcp() -> None:
    environ = {"KONG_STREAM_LISTEN": "0.0.0.0:1 ssl, 0.0.0.0:2 udp"}
    (problem,) = (line for line in told(environ) if "relay" in line)
    assert problem == (
        "KONG_STREAM_LISTEN: entry 2 '0.0.0.0:2 udp': the relay passes on TCP alone, leave udp or the entry out"
    )
    assert len(load_relay(environ, only_to_look=True)[0].stream_listen) == 2


@pytest.mark.parametrize("text", ["Db-1.Example_X:80", "[2001:DB8::1]:80", "x:00080"])
def test_upstreams_in_any_letter_case(text: str) -> None:
    host, _, _ = text.rpartition(":")
    assert parse_upstream(text) == Upstream(host.strip("[]"), 80)


@pytest.mark.parametrize("text", ["a@b:80", "a]:80", "[a:80", "a\tb:80", "a\x0bb:80", "[::1:80", "::1]:80"])
def test_what_is_no_upstream(text: str) -> None:
    with pytest.raises(ValueError, match=r"^write (HOST:PORT|an IPv6 address in brackets)"):
        parse_upstream(text)


def test_the_longest_path() -> None:
    assert parse_upstream("unix:/" + "a" * 106).host == "unix:/" + "a" * 106
    with pytest.raises(
        ValueError, match=r"^the path of a Unix socket has at most 107 bytes, use a shorter one$"
    ):
        parse_upstream("unix:/" + "a" * 107)
    assert parse_upstream("unix:/\udcff").is_unix, "of any encoding"
    with pytest.raises(ValueError, match=r"^write the path from the root on, as in unix:/run/app\.sock$"):
        parse_upstream("unix:app.sock")


def test_client_certificates() -> None:
    for word, expected in {"OPTIONAL": "optional", "'on'": "on", "NONE": "off", "": "off"}.items():
        assert load_relay({CERTIFICATE: "/a", VERIFY: word})[1].client_verify == expected
    assert told({CERTIFICATE: "/a", VERIFY: "maybe"}) == [
        f"{VERIFY}: 'maybe': write one of off, on, optional"
    ]
    assert told({VERIFY: "maybe"}) == [f"{VERIFY}: 'maybe': write one of off, on, optional"], (
        "one line is enough"
    )
    assert told({VERIFY: "optional_no_ca"}) == [
        f"{VERIFY}: 'optional_no_ca': nobody behind the relay could check the certificate, write optional or off"
    ]
    assert told({VERIFY: "on"}) == [f"{VERIFY}: 'on': name the file of the authorities in {CERTIFICATE}"]
    assert load_relay({CERTIFICATE: "/a"})[1][7:9] == ("/a", "off")


def test_protocol_names_of_the_relay() -> None:
    assert load_relay({"KONGREALIP_ALPN": "!,~, h2"})[1].alpn == ("!", "~", "h2")
    for name in ("a b", "\x7f", "é", "x" * 256):
        assert told({"KONGREALIP_ALPN": f"h2,{name}"}) == [
            f"KONGREALIP_ALPN: entry 2 {name!r}: write up to 255 ASCII characters without blanks, as in h2, http/1.1"
        ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("https://app", "there is no TLS to an upstream of the proxy, write http://, or kongrealip relay with"
         " --upstream-tls on between them"),
        ("HTTPS://app", "there is no TLS to an upstream of the proxy"),
        ("https", "write http://HOST:PORT, http://[IPv6]:PORT or unix:/path, and nothing else"),
        ("http://a//", "write http://HOST:PORT"),
        ("http://a#b", "write http://HOST:PORT"),
        ("http://a?b", "write http://HOST:PORT"),
        ("http://[::1]x", "behind http://: "),
        ("http://a:b", "behind http://: write HOST:PORT"),
    ],
)  # fmt: skip
def test_what_is_no_upstream_of_the_proxy(entry: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is what is asked for
        parse_url(entry)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("http://X.Example", ("X.Example", 80)), ("http://a:8080/", ("a", 8080)), ("HTTP://[::1]/", ("::1", 80)),
     ("http://[::1]:1", ("::1", 1)), ("unix:/a", ("unix:/a", 0))],
)  # fmt: skip
def test_upstreams_of_the_proxy(entry: str, expected: tuple[str, int]) -> None:
    assert parse_url(entry) == expected


def test_defaults_beyond_the_settings() -> None:
    assert load_proxy({})[1] == ProxySettings() == ((), False, 5.0, 60.0, 512, 10000, 60, {})
    empty = {
        f"KONGREALIP_{name.upper()}": "" for name in ("connect_timeout", "idle_timeout", "drain_timeout")
    }
    assert load_relay(empty)[1]._replace(given={}) == RelaySettings()
    settings, proxy = load_proxy({"KONGREALIP_UPSTREAM": "http://a"})
    assert proxy.given["upstreams"] == settings.given["upstream"] == "KONGREALIP_UPSTREAM"
    settings, relay = load_relay({}, None, {"upstream": "a:1"})
    assert relay.given["upstreams"] == settings.given["upstream"] == "--upstream"
