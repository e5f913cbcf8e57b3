"""Settings as others use them: arguments over them, rules made of them, and listeners one by one."""

from __future__ import annotations

import base64

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.address import Address
from kongrealip.config import Listen
from kongrealip.config.listen import (
    HTTP_FLAGS,
    STREAM_FLAGS,
    Keepalive,
    keepalive,
    parse_listen,
    parse_listens,
)
from kongrealip.config.settings import PortMap
from kongrealip.realip.networks import KongTrust, TrustedNetworks
from kongrealip.realip.resolve import resolve

# --- arguments --------------------------------------------------------------------------------


def test_arguments_win_and_none_leaves_what_there_is() -> None:
    base = Settings.load(
        {"KONG_TRUSTED_IPS": "10.0.0.1", "KONG_LOG_LEVEL": "info", "KONG_REAL_IP_HEADER": "X-A"}
    )
    changed = base.replaced(
        trusted_ips=["10.0.0.0/8", "unix:"],
        real_ip_header=None,
        real_ip_recursive=True,
        replace_host=False,
        forwarded_headers="auto",
    )
    assert changed == base._replace(
        trusted_ips=("10.0.0.0/8", "unix:"), real_ip_recursive=True, forwarded_headers="auto"
    )
    assert changed.replaced(real_ip_recursive=False).real_ip_recursive is False
    assert base.replaced(replace_host=True).replace_host is True
    assert base.replaced(trusted_ips="10.0.0.2, 10.0.0.3").trusted_ips == ("10.0.0.2", "10.0.0.3")
    assert base.replaced() == base


def test_a_wrong_argument_is_told_as_one() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().replaced(
            trusted_ips=["10.0.0.0/8", "x"], forwarded_headers="maybe", real_ip_recursive="yes"
        )
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "the argument trusted_ips",
        "the argument real_ip_recursive",
        "the argument forwarded_headers",
    ]


# --- rules ------------------------------------------------------------------------------------


def test_rules_are_what_was_asked_for() -> None:
    settings = Settings(("10.0.0.0/8",), "X-Forwarded-For", real_ip_recursive=True)
    rules = settings.rules()
    assert isinstance(rules.networks, TrustedNetworks)
    assert (rules.header, rules.recursive) == ("X-Forwarded-For", True)
    line = [b"203.0.113.7, 10.0.0.9"]
    assert resolve(rules, Address("10.0.0.5", 1), None, line).client.ip == "203.0.113.7"
    assert Settings().rules().recursive is False


def test_rules_of_forwarded_headers_are_what_was_asked_for() -> None:
    settings = Settings(
        ("10.0.0.0/8",),
        port_maps=(PortMap(80, 8000, "8000"), PortMap(443, 8443, "08443")),
        lua_max_req_headers=7,
        forwarded_headers="auto",
        scheme_from_preamble=True,
    )
    rules = settings.forwarded_rules()
    assert isinstance(rules.trust, KongTrust)
    assert rules.trust.trusts("10.0.0.5")
    assert not rules.trust.trusts("203.0.113.7")
    assert (rules.believe, rules.scheme_from_preamble, rules.most_lines) == ("auto", True, 7)
    assert rules.port_maps == {"8000": 80, "08443": 443}
    assert Settings().forwarded_rules().scheme_from_preamble is False


# --- listeners --------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["ssl", "http2", "proxy_protocol", "reuseport"])
def test_each_flag_is_its_own(flag: str) -> None:
    listen = parse_listen(f"0.0.0.0:8000 {flag}", HTTP_FLAGS)
    names = ("ssl", "http2", "proxy_protocol", "reuseport")
    assert [getattr(listen, name) for name in names] == [name == flag for name in names]
    assert str(listen) == f"0.0.0.0:8000 {flag}"


def test_an_address_with_and_without_flags() -> None:
    unix = Listen("unix:/run/app.sock", 0, ("proxy_protocol",))
    assert (unix.is_unix, unix.address, str(unix)) == (
        True,
        "unix:/run/app.sock",
        "unix:/run/app.sock proxy_protocol",
    )
    tcp = parse_listen("[::1]:8000", HTTP_FLAGS)
    assert (tcp.is_unix, tcp.address) == (False, f"[{'0000:' * 7}0001]:8000")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("on", True), ("off", False), ("1m:2:3", Keepalive(60, 2, 3)), ("::5", Keepalive(None, None, 5)),
     (":10s:", Keepalive(None, 10, None)), ("1h::", Keepalive(3600, None, None))],
)  # fmt: skip
def test_keepalives(value: str, expected: Keepalive | bool) -> None:
    assert keepalive(value) == expected
    assert parse_listen(f"a:1 so_keepalive={value}", HTTP_FLAGS).keepalive == expected


@pytest.mark.parametrize("value", ["::", "0::", ":0:", "::0", "500ms::", "1500ms::", ":1x:", "1:2:0"])
def test_keepalives_that_nginx_refuses(value: str) -> None:
    with pytest.raises(ValueError, match=r"^so_keepalive needs idle:interval:count, .* none of them 0$"):
        keepalive(value)


@pytest.mark.parametrize(
    "flag", ["ssl", "proxy_protocol", "backlog=5", "so_keepalive=on", "so_keepalive=1::"]
)
def test_flags_of_tcp_beside_udp(flag: str) -> None:
    _, (problem,) = parse_listens(f"0.0.0.0:53 udp {flag}", STREAM_FLAGS)
    assert f"nginx refuses {flag} together with udp" in problem
    assert parse_listens("0.0.0.0:53 udp reuseport bind", STREAM_FLAGS)[1] == []


@pytest.mark.parametrize("entries", ["0.0.0.0:1 0.0.0.0:2", "0.0.0.0:1 0.0.0.0:3 0.0.0.0:2", "[::]:1 a:2"])
def test_a_comma_that_is_missing(entries: str) -> None:
    _, (problem,) = parse_listens(entries, HTTP_FLAGS)
    assert f"unknown or repeated flag {entries.split()[-1]!r}" in problem


def test_a_unix_socket_is_an_option() -> None:
    _, (problem,) = parse_listens("unix:/run/app.sock", HTTP_FLAGS)
    assert problem.endswith(": Kong has no Unix sockets here, use kongrealip serve --uds PATH")


def test_the_word_that_is_no_flag_is_shown() -> None:
    _, (problem,) = parse_listens("0.0.0.0:1 ssl tls http2", HTTP_FLAGS)
    assert "unknown or repeated flag 'tls', the flags are ssl, http2, proxy_protocol, deferred," in problem
    _, (problem,) = parse_listens("0.0.0.0:1 http2", STREAM_FLAGS)
    assert "unknown or repeated flag 'http2', the flags are udp, ssl, proxy_protocol, bind," in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3.4:80", ("1.2.3.4", 80)),
        ("001.002.003.004:00080", ("1.2.3.4", 80)),
        ("255.255.255.255:65535", ("255.255.255.255", 65535)),
        ("[::]:1", ("[" + ":".join(["0000"] * 8) + "]", 1)),
        ("[ABCD::1]:1", ("[abcd:" + "0000:" * 6 + "0001]", 1)),
        ("[1:2:3:4:5:6:7:8]:1", ("[0001:0002:0003:0004:0005:0006:0007:0008]", 1)),
        ("[1:2:3:4:5:6:7::]:1", ("[0001:0002:0003:0004:0005:0006:0007:0000]", 1)),
        ("[::2:3:4:5:6:7:8]:1", ("[0000:0002:0003:0004:0005:0006:0007:0008]", 1)),
        ("*:80", ("*", 80)),
        ("app.local:80", ("app.local", 80)),
        ("app.local:0000000000080", ("app.local", 80)),
    ],
)
def test_addresses_as_kong_writes_them(text: str, expected: tuple[str, int]) -> None:
    listen = parse_listen(text, HTTP_FLAGS)
    assert (listen.host, listen.port) == expected


@pytest.mark.parametrize(
    "text", ["1.2.3.256:80", "1.2.3:80", "[::1::]:80", "[1::2:3:4:5::6]:80", "[1:2:3:4:5:6:7]:80", "[1:2:3:4:5:6:7:8:9]:80", "[12345::]:1", "::1:80"]
)  # fmt: skip
def test_addresses_that_kong_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        parse_listen(text, HTTP_FLAGS)


@pytest.mark.parametrize("text", ["1.2.3.4:65536", "[::]:65536", "1.2.3.4:100000", "1.2.3.4:" + "9" * 5000])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="the port must be within 1 to 65535"):
        parse_listen(text, HTTP_FLAGS)


def test_ports_of_names_are_nginx_s_to_refuse() -> None:
    """Kong takes any number behind a name."""
    assert parse_listen("app:65536", HTTP_FLAGS).port == 65536
    assert parse_listens("app:1, app:65535", HTTP_FLAGS)[1] == []
    for port in ("0", "65536"):
        assert parse_listens(f"app:{port}", HTTP_FLAGS)[1] == [
            f"entry 1 'app:{port}': nginx needs a port within 1 to 65535"
        ]


def test_twice_is_by_address_and_port() -> None:
    assert parse_listens("0.0.0.0:1, 0.0.0.0:2, 127.0.0.1:1, [::]:1", HTTP_FLAGS)[1] == []
    for same in ("*:1", "0.0.0.0:1", "000.0.0.0:01 ssl"):
        listens, problems = parse_listens(f"*:1, {same}", HTTP_FLAGS)
        assert len(listens) == 1
        assert problems[0].startswith(f"entry 2 {same!r}: nginx refuses to listen twice on ")


@pytest.mark.parametrize(("text", "count"), [("off", 0), ("off, 0.0.0.0:1", 0), ("0.0.0.0:1, ,", 1)])
def test_off_is_none(text: str, count: int) -> None:
    listens, problems = parse_listens(text, HTTP_FLAGS)
    assert (len(listens), problems) == (count, [])


# --- certificates -----------------------------------------------------------------------------

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"


def certificate(text: str) -> str:
    return Settings.load({"KONG_SSL_CERT": text, "KONG_SSL_CERT_KEY": "/key.pem"}).ssl_cert[0]


def test_base64_in_lines_is_one() -> None:
    encoded = base64.encodebytes((PEM * 3).encode()).decode()
    assert "\n" in encoded.strip()
    assert certificate(encoded) == PEM * 3


def test_what_is_base64_of_something_else_is_a_path() -> None:
    path = base64.b64encode(b"no certificate").decode()
    assert certificate(path) == path
    with_a_stranger = base64.b64encode(PEM.encode()).decode().replace("L", "L!", 1)
    assert certificate(with_a_stranger) == with_a_stranger
