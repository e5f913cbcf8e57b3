"""Values one by one: where they may come from, their bounds, and the line that says what is wrong with one."""

from __future__ import annotations

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.names import unread_names
from kongrealip.config.proxy import load_proxy
from kongrealip.config.relay import load_relay
from kongrealip.config.source import OURS, Source


def told(environ: dict[str, str], conf: str | None = None) -> list[str]:
    """The problems, those of the relay and of the proxy included."""
    found: list[str] = []
    for load in (load_relay, load_proxy):
        try:
            load(environ, conf)
        except SettingsError as error:
            found += error.problems
    return list(dict.fromkeys(found))


# --- where from -------------------------------------------------------------------------------


def test_an_option_wins_then_the_environment_then_the_file() -> None:
    source = Source(
        {"KONG_A_B": " env ", "KONGREALIP_C": "ours"},
        {"a_b": "file", "d": "file", "c": "file"},
        {"e": "word"},
    )
    assert [source.text("a_b"), source.text("d"), source.text("e"), source.text("f")] == [
        "env",
        "file",
        "word",
        None,
    ]
    assert (source.text("c"), source.text("c", OURS)) == ("file", "ours")
    assert source.given == {"a_b": "KONG_A_B", "d": "d in kong.conf", "e": "--e", "c": "KONGREALIP_C"}
    assert Source({}, {"c": "file"}).text("c", OURS) is None, "what is ours does not stand in a kong.conf"


def test_options_by_their_names() -> None:
    options = {"stream_listen": "x", "connect_timeout": "x"}
    source = Source({"KONG_STREAM_LISTEN": "y"}, {}, options)
    assert source.text("stream_listen") == source.text("connect_timeout") == "x"
    assert source.given == {"stream_listen": "--listen", "connect_timeout": "--connect-timeout"}
    arguments = Source({}, {}, options, "the argument")
    arguments.text("stream_listen")
    assert arguments.given == {"stream_listen": "the argument stream_listen"}


def test_ours_are_not_read_of_a_file() -> None:
    assert Settings.load({}, "preamble_max_bytes = 200\nproxy_protocol_strict = on") == Settings()


# --- bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high", "what"),
    [
        ("KONGREALIP_PREAMBLE_MAX_BYTES", 107, 65551, "a number of bytes"),
        ("KONGREALIP_HALF_OPEN_CONNECTIONS", 1, 10_000_000, "a number"),
        ("KONG_UPSTREAM_KEEPALIVE_POOL_SIZE", 0, 100_000_000, "a number"),
        ("KONG_UPSTREAM_KEEPALIVE_MAX_REQUESTS", 0, 100_000_000, "a number"),
        ("KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT", 0, 100_000_000, "a number"),
    ],
)
def test_numbers_and_their_bounds(name: str, low: int, high: int, what: str) -> None:
    key = name.partition("_")[2].lower()
    for value in (low, high):
        settings, proxy = load_proxy({name: str(value)})
        assert getattr(proxy, key, None) == value or getattr(settings, key, None) == value
    beyond = (str(high + 1), f"{high}0", f"000000000{high}0", "1" * 5000)
    for text in (str(low - 1), *beyond, "x", "1.5", "²", "٣", "+1"):
        assert told({name: text}) == [f"{name}: {text!r}: write {what} from {low} to {high}"]


@pytest.mark.parametrize(
    ("name", "key", "high"),
    [
        ("KONG_NGINX_WORKER_PROCESSES", "nginx_worker_processes", 100_000),
        ("KONG_NGINX_MAIN_WORKER_PROCESSES", "nginx_worker_processes", 100_000),
        ("KONG_NGINX_EVENTS_WORKER_CONNECTIONS", "nginx_events_worker_connections", 10_000_000),
    ],
)
def test_numbers_or_auto(name: str, key: str, high: int) -> None:
    for value in (1, high - 1):
        settings = Settings.load({name: str(value)})
        assert getattr(settings, key) == value
        assert settings.given[key] == name
    assert getattr(Settings.load({name: "auto"}), key) is None
    for text in ("0", str(high), f"000000000{high}", "1" * 5000, "AUTO", "²", "1.5"):
        assert told({name: text}) == [f"{name}: {text!r}: write auto or a number of at least 1"]


def test_a_wrong_spelling_that_wins_is_told_and_the_other_not_read() -> None:
    environ = {"KONG_NGINX_MAIN_WORKER_PROCESSES": "x", "KONG_NGINX_WORKER_PROCESSES": "y"}
    assert told(environ) == ["KONG_NGINX_MAIN_WORKER_PROCESSES: 'x': write auto or a number of at least 1"]
    environ["KONG_NGINX_MAIN_WORKER_PROCESSES"] = "auto"
    assert Settings.load(environ).nginx_worker_processes is None


@pytest.mark.parametrize(("text", "lines"), [("1", 1), ("1000", 1000), ("0x10", 16), ("2.0", 2)])
def test_lines_of_a_request(text: str, lines: int) -> None:
    found = Settings.load({"KONG_LUA_MAX_REQ_HEADERS": text}).lua_max_req_headers
    assert (found, type(found)) == (lines, int)


@pytest.mark.parametrize("text", ["0", "0.5", "1001", "1.5", "x", "-1", "nan", "inf"])
def test_lines_of_a_request_that_cannot_be(text: str) -> None:
    assert told({"KONG_LUA_MAX_REQ_HEADERS": text}) == [
        f"KONG_LUA_MAX_REQ_HEADERS: {text!r}: write a whole number from 1 to 1000"
    ]


@pytest.mark.parametrize(
    ("entry", "is_one"),
    [("1:1", True), ("65535:65535", True), ("0x50:1e3", True), ("0:1", False), ("1:0", False), ("65536:1", False),
     ("1:65536", False), ("80", False), (":80", False), ("80:", False), ("1:2:3", False)],
)  # fmt: skip
def test_entries_of_port_maps(entry: str, is_one: bool) -> None:
    problems = told({"KONG_PORT_MAPS": f"80:8000,{entry}"})
    if is_one:
        outside, _, inside = entry.partition(":")
        (_, found) = Settings.load({"KONG_PORT_MAPS": f"80:8000,{entry}"}).port_maps
        assert (found.host_port, found.kong_port_text) == (
            float.fromhex(outside) if "x" in outside else float(outside),
            inside,
        )
        assert found.kong_port == float(inside)
        assert problems == []
    else:
        assert problems == [
            f"KONG_PORT_MAPS: entry 2 {entry!r}: write <port outside>:<port of the listener>, both within 1 to 65535,"
            " as in 80:8000"
        ]


def test_a_port_map_is_printed_as_it_is_meant() -> None:
    (found,) = Settings.load({"KONG_PORT_MAPS": "0x50: 08000"}).port_maps
    assert str(found) == "80: 08000"


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["on", "off", "ON", "Off", '"on"'])
def test_recursive_in_either_letter_case(text: str) -> None:
    assert Settings.load({"KONG_REAL_IP_RECURSIVE": text}).real_ip_recursive == ("on" in text.lower())


@pytest.mark.parametrize("text", ["yes", "true", "1", "on off"])
def test_recursive_that_nginx_refuses(text: str) -> None:
    (problem,) = told({"KONG_REAL_IP_RECURSIVE": text})
    assert problem.startswith(f"KONG_REAL_IP_RECURSIVE: {text!r}: nginx ")


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"KONG_SSL_CERT": "a, b", "KONG_SSL_CERT_KEY": "c"}, "KONG_SSL_CERT: 2 certificates and 1 keys"),
        ({"KONG_SSL_CERT": "a"}, "KONG_SSL_CERT: 1 certificates and 0 keys"),
        ({"KONG_SSL_CERT_KEY": "a"}, "KONG_SSL_CERT_KEY: 0 certificates and 1 keys"),
        ({"KONG_SSL_CERT": "", "KONG_SSL_CERT_KEY": "a"}, "KONG_SSL_CERT_KEY: 0 certificates and 1 keys"),
    ],
)
def test_certificates_and_keys_come_in_pairs(environ: dict[str, str], problem: str) -> None:
    assert told(environ) == [f"{problem}, give one entry of KONG_SSL_CERT_KEY for each of KONG_SSL_CERT"]


def test_ciphers() -> None:
    assert told({"KONG_SSL_CIPHER_SUITE": "custom"}) == [
        "KONG_SSL_CIPHER_SUITE: 'custom': name the ciphers in KONG_SSL_CIPHERS"
    ]
    assert told({"KONG_SSL_CIPHER_SUITE": "custom", "KONG_SSL_CIPHERS": "A"}) == []
    assert told({"KONG_SSL_CIPHER_SUITE": "old"}) == []


def test_protocols() -> None:
    versions = "SSLv2 SSLv3 TLSv1 TLSv1.1 TLSv1.2 TLSv1.3"
    assert Settings.load({"KONG_SSL_PROTOCOLS": versions.lower()}).ssl_protocols == tuple(versions.split())
    assert Settings.load({"KONG_SSL_PROTOCOLS": ""}).ssl_protocols == ("TLSv1.2", "TLSv1.3")
    assert told({"KONG_SSL_PROTOCOLS": "TLSv1.2 x y"}) == [
        f"KONG_SSL_PROTOCOLS: {word!r}: write some of {versions}" for word in "xy"
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("KONG_LOG_LEVEL", "debug, info, notice, warn, error, crit, alert, emerg"),
        ("KONG_SSL_CIPHER_SUITE", "modern, intermediate, old, fips, custom"),
        ("KONGREALIP_ACCESS_LOG_FORMAT", "kong, json"),
        ("KONGREALIP_FORWARDED_HEADERS", "trusted, off, auto"),
        ("KONGREALIP_PROXY_PROTOCOL_STRICT", "on, off"),
        ("KONGREALIP_SEND_PROXY", "off, v1, v2"),
    ],
)
def test_words_that_there_are(name: str, words: str) -> None:
    assert told({name: "X"}) == [f"{name}: 'X': write one of {words}"]
    key = name.partition("_")[2].lower()
    for word in words.split(", "):
        if word != "custom":
            settings, relay = load_relay({name: word})
            value = getattr(settings, key, None) if hasattr(settings, key) else getattr(relay, key)
            assert value in (word, word == "on")


@pytest.mark.parametrize("name", ["KONG_PROXY_ACCESS_LOG", "KONG_PROXY_ERROR_LOG"])
def test_where_logs_go(name: str) -> None:
    key = name.removeprefix("KONG_").lower()
    for text in ("off", "/var/log/a", " /dev/stdout "):
        assert getattr(Settings.load({name: text}), key) == text.strip()
    assert getattr(Settings.load({name: ""}), key) == getattr(Settings(), key)
    assert told({name: " syslog:server=h"}) == [
        f"{name}: 'syslog:server=h': there is no syslog here, write a path or /dev/stdout"
    ]
    for blank in " \t\v":
        assert told({name: f"/a{blank}basic"}) == [
            f"{name}: {f'/a{blank}basic'!r}: write a path alone; the form of the access log is KONGREALIP_ACCESS_LOG_FORMAT"
        ]


def test_when_a_client_has_to_have_spoken() -> None:
    first, second = "KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT", "KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT"
    for environ, seconds, name in (
        ({first: "1s", second: "2s"}, 1, first),
        ({first: "NONE", second: "2s"}, 2, second),
        ({first: "", second: "2s"}, 2, second),
        ({second: "2s"}, 2, second),
    ):
        settings = Settings.load(environ)
        assert (settings.client_header_timeout, settings.given["client_header_timeout"]) == (seconds, name)
    assert Settings.load({first: "NONE", second: "NONE"}).client_header_timeout == 60
    assert told({first: "0"}) == [f"{first}: '0': write a time above 0 as nginx does, as in 60s or 500ms"]
    assert told({second: "x"}) == [f"{second}: 'x': write a time above 0 as nginx does, as in 60s or 500ms"]


def test_lists_of_networks() -> None:
    for name in ("KONG_TRUSTED_IPS", "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM"):
        assert told({name: "unix:, 10.0.0.1, Unix:, 10.0.0.0/8, x"}) == [
            f"{name}: entry {position} {entry!r}: write an IPv4 or IPv6 address, a CIDR block such as 10.0.0.0/8, or unix:"
            for position, entry in ((3, "Unix:"), (5, "x"))
        ]


@pytest.mark.parametrize("name", ["KONG_PROXY_LISTEN", "KONG_STREAM_LISTEN", "KONG_STATUS_LISTEN"])
def test_lists_of_listeners(name: str) -> None:
    assert told({name: " "}) == [f"{name}: is empty, write off to open no listener"]
    (problem,) = told({name: "0.0.0.0:1, 0.0.0.0:2 x"})
    assert problem.startswith(f"{name}: entry 2 '0.0.0.0:2 x': unknown or repeated flag 'x'")
    assert (
        len(getattr(Settings.load({name: "0.0.0.0:1, 0.0.0.0:2"}), name.removeprefix("KONG_").lower())) == 2
    )


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("KONG_TRUSTED_IP", "KONG_TRUSTED_IPS"),
        ("Kong_trusted_ips", "KONG_TRUSTED_IPS"),
        ("KONG_trusted_ips", "KONG_TRUSTED_IPS"),
        ("KONGREALIP_UPSTREAMS", "KONGREALIP_UPSTREAM"),
        ("kongrealip_allow", "KONGREALIP_ALLOW"),
    ],
)
def test_slips_of_the_pen(name: str, spelling: str) -> None:
    assert unread_names({name: "x"}, {}) == [f"{name} is not a name that is read, did you mean {spelling}?"]


def test_slips_in_a_file() -> None:
    assert unread_names({}, {"trusted_ip": "x", "Log_Level": "x", "log_level": "x", "odd": "x"}) == [
        "Log_Level is not a name that is read, did you mean log_level?",
        "trusted_ip is not a name that is read, did you mean trusted_ips?",
    ]


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("nginx_proxy_set_real_ip_from", "list the network in trusted_ips"),
        ("nginx_http_set_real_ip_from", "list the network in trusted_ips"),
        ("nginx_location_real_ip_header", "set real_ip_header"),
        ("nginx_location_real_ip_recursive", "set real_ip_recursive"),
    ],
)
def test_what_cannot_be_done_here(key: str, instead: str) -> None:
    name = f"KONG_{key.upper()}"
    assert unread_names({name: "x"}, {}) == [f"{name} is not read here, {instead} instead"]
    assert unread_names({}, {key: "x"}) == [f"{key} is not read here, {instead} instead"]


def test_names_of_others() -> None:
    others = (
        "KONG_TRUSTED",
        "KONG_SSL",
        "KONG_PASSWORD",
        "KONG_",
        "TRUSTED_IPS",
        "KONGX_TRUSTED_IPS",
        "KONGREALIP_X",
    )
    assert unread_names(dict.fromkeys(others, "x"), {}) == []
