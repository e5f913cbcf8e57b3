"""Settings: what the vectors of Kong's configuration do not say."""

from __future__ import annotations

import base64

import pytest

from kongrealip import Settings, SettingsError
from kongrealip.config.check import serve_warnings
from kongrealip.config.kongconf import nginx_time, nginx_word
from kongrealip.config.listen import HTTP_FLAGS, Keepalive, parse_listen
from kongrealip.config.names import READ, READ_OF_OURS
from kongrealip.config.proxy import load_proxy
from kongrealip.config.relay import load_relay
from kongrealip.config.settings import DEFAULT_PROXY_LISTEN
from tests.nginx import starts_with


def problems(environ: dict[str, str], conf: str | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, conf)
    return caught.value.problems


def test_defaults() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert ", ".join(map(str, settings.proxy_listen)) == DEFAULT_PROXY_LISTEN.replace(
        "http2 ssl", "ssl http2"
    )
    assert settings.trusted_ips == ()
    assert settings.client_header_timeout == 60.0


def test_the_guides_own_example() -> None:
    settings = Settings.load(
        {
            "KONG_TRUSTED_IPS": "0.0.0.0/0,::/0",
            "KONG_PROXY_LISTEN": "0.0.0.0:8000 proxy_protocol, 0.0.0.0:8443 ssl proxy_protocol",
            "KONG_REAL_IP_HEADER": "proxy_protocol",
        }
    )
    assert [(listen.ssl, listen.proxy_protocol) for listen in settings.proxy_listen] == [
        (False, True),
        (True, True),
    ]
    assert settings.given["trusted_ips"] == "KONG_TRUSTED_IPS"


def test_every_problem_is_reported_one_line_each() -> None:
    found = problems(
        {
            "KONG_TRUSTED_IPS": "kong.local, 10.0.0.0/33",
            "KONG_PROXY_LISTEN": "0.0.0.0:8000 http3, 0.0.0.0:99999",
            "KONG_REAL_IP_RECURSIVE": "true",
            "KONG_PORT_MAPS": "80",
            "KONG_LOG_LEVEL": "loud",
            "KONG_NGINX_WORKER_PROCESSES": "0",
            "KONG_SSL_CERT": "a.pem, b.pem",
            "KONG_SSL_CERT_KEY": "a.key",
            "KONG_SSL_PROTOCOLS": "TLSv9",
            "KONG_SSL_CIPHER_SUITE": "custom",
            "KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT": "soon",
            "KONGREALIP_PREAMBLE_MAX_BYTES": "70000",
        },
        "real_ip_header = X A",
    )
    expected = [
        "KONG_TRUSTED_IPS: entry 1 'kong.local': write an IPv4 or IPv6 address, a CIDR block",
        "KONG_TRUSTED_IPS: entry 2 '10.0.0.0/33': the prefix must be a plain number from 0 to 32",
        "real_ip_header in kong.conf: 'X A': nginx cannot read ' ' inside a value",
        "KONG_REAL_IP_RECURSIVE: 'true': nginx takes on or off",
        "KONG_PROXY_LISTEN: entry 1 '0.0.0.0:8000 http3': unknown or repeated flag 'http3', the flags are ssl,",
        "KONG_PROXY_LISTEN: entry 2 '0.0.0.0:99999': the port must be within 1 to 65535",
        "KONG_PORT_MAPS: entry 1 '80': write <port outside>:<port of the listener>",
        "KONG_SSL_PROTOCOLS: 'TLSv9': write some of SSLv2",
        "KONG_LOG_LEVEL: 'loud': write one of debug,",
        "KONG_NGINX_WORKER_PROCESSES: '0': write auto or a number",
        "KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT: 'soon': write a time above 0",
        "KONGREALIP_PREAMBLE_MAX_BYTES: '70000': write a number of bytes from 107 to 65551",
        "KONG_SSL_CERT: 2 certificates and 1 keys, give one entry of KONG_SSL_CERT_KEY",
        "KONG_SSL_CIPHER_SUITE: 'custom': name the ciphers in KONG_SSL_CIPHERS",
    ]
    assert len(found) == len(expected)
    for line, beginning in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(beginning)
        assert "\n" not in line


def test_an_error_is_a_value_error_with_all_lines() -> None:
    with pytest.raises(ValueError, match=r"KONG_NGINX.*\nKONG_LOG_LEVEL") as caught:
        Settings.load({"KONG_LOG_LEVEL": "x", "KONG_NGINX_WORKER_PROCESSES": "x"})
    assert isinstance(caught.value, SettingsError)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("unix:/run/kong.sock", "use kongrealip serve --uds"),
        ("0.0.0.0:8000 ssl ssl", "unknown or repeated flag 'ssl'"),
        ("0.0.0.0", "not of the form <ip>:<port>"),
        ("0.0.0.0:0", "a port within 1 to 65535"),
        ("0.0.0.0:8000 backlog=0", "refuses backlog=0"),
        ("0.0.0.0:8000 so_keepalive=::", "none of them 0"),
        ("0.0.0.0:8000 so_keepalive=0::", "none of them 0"),
        ("0.0.0.0:8000 so_keepalive=500ms::", "none of them 0"),
        ("foo 0.0.0.0:8000", "cannot listen on 'foo 0.0.0.0'"),
        ("[]:8000", r"cannot listen on '\[\]'"),
        ("0.0.0.0:8000, *:8000", "twice"),
        ("[::1]:70000", "within 1 to 65535"),
    ],
)
def test_listen_entries_that_cannot_be(entry: str, reason: str) -> None:
    (problem,) = problems({"KONG_PROXY_LISTEN": entry})
    assert problem.startswith("KONG_PROXY_LISTEN: entry ")
    with pytest.raises(SettingsError, match=reason):
        Settings.load({"KONG_PROXY_LISTEN": entry})


def test_the_flags_of_a_listener() -> None:
    listen = parse_listen(
        "[::]:8443 so_keepalive=on so_keepalive=1h::9 backlog=5 ssl proxy_protocol", HTTP_FLAGS
    )
    assert listen.keepalive == Keepalive(3600, None, 9)
    assert (listen.backlog, listen.ssl, listen.proxy_protocol) == (5, True, True)
    assert parse_listen("a:1 so_keepalive=off", HTTP_FLAGS).keepalive is False
    assert parse_listen("a:1", HTTP_FLAGS).keepalive is None
    assert parse_listen("a:1", HTTP_FLAGS).backlog is None


WORDS = ["X-A", "X A", '"X-A"', "'X-A'", '"X A"', "X-A;", "X-A{", "X${a}", "X-#A", "#A", "X-A #b", "X\\A", "X-A\\",
         '"X', 'X"A', '"X"A', "X}A", "{", "}", "$", "${", "a\tb", ";", "''", "a\\ b", "a\\;b", "\\"]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_words_as_the_real_nginx_reads_them(word: str) -> None:
    try:
        nginx_word(word)
    except ValueError:
        accepted = False
    else:
        accepted = True
    assert accepted == starts_with(f"listen 127.0.0.1:1; real_ip_header {word};\n")


@pytest.mark.parametrize(
    "text",
    ["60", "60s", "1m", "500ms", "1m30s", "1m30", "1d", "1w", "1h30m", "30s10", "1s1ms", "1y", "1M", "-1", "1.5",
     "1s30m", "s", "1ss", "1mss", "1m1m"],
)  # fmt: skip
def test_times_as_the_real_nginx_reads_them(text: str) -> None:
    accepted = starts_with(f"listen 127.0.0.1:1; client_header_timeout {text};")
    assert (nginx_time(text) is not None) == accepted


def test_how_long_a_time_is() -> None:
    assert [nginx_time(text) for text in ("90", "1m30s", "500ms", "2h", "1w1d")] == [
        90,
        90,
        0.5,
        7200,
        691200,
    ]
    environ = {
        "KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT": "30s",
        "KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "5s",
    }
    assert Settings.load(environ).client_header_timeout == 5.0
    environ["KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT"] = "NONE"
    assert Settings.load(environ).client_header_timeout == 30.0
    assert problems({"KONG_NGINX_PROXY_CLIENT_HEADER_TIMEOUT": "0"})


def test_certificates_as_path_text_or_base64() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    encoded = base64.b64encode(pem.encode()).decode()
    environ = {"KONG_SSL_CERT": f"/etc/a.pem, {pem}, {encoded}, abcd", "KONG_SSL_CERT_KEY": "1,2,3,4"}
    assert Settings.load(environ).ssl_cert == ("/etc/a.pem", pem, pem, "abcd")


def test_other_values() -> None:
    settings = Settings.load(
        {
            "KONG_NGINX_WORKER_PROCESSES": "4",
            "KONGREALIP_PREAMBLE_MAX_BYTES": "65551",
            "KONG_SSL_PROTOCOLS": "tlsv1.2 TLSV1.3",
            "KONG_STREAM_LISTEN": "0.0.0.0:9000 udp",
            "KONG_PORT_MAPS": "80:8000, 443:8443",
        }
    )
    assert settings.nginx_worker_processes == 4
    assert settings.preamble_max_bytes == 65551
    assert settings.ssl_protocols == ("TLSv1.2", "TLSv1.3")
    assert settings.stream_listen[0].flags == ("udp",)
    assert [(entry.host_port, entry.kong_port_text) for entry in settings.port_maps] == [
        (80, "8000"),
        (443, "8443"),
    ]
    assert Settings.load({"KONG_NGINX_WORKER_PROCESSES": "auto"}).nginx_worker_processes is None


def test_a_near_miss_is_told() -> None:
    environ = {"KONG_TRUSTED_IP": "10.0.0.1", "kong_real_ip_header": "X", "KONGREALIP_PREAMBLE_MAX_BYTE": "1"}
    warnings = Settings.load(environ, "real-ip-recursiv = on\nTrusted_IPs = 10.0.0.1\n").warnings
    assert warnings == (
        "KONG_TRUSTED_IP is not a name that is read, did you mean KONG_TRUSTED_IPS?",
        "kong_real_ip_header is not a name that is read, did you mean KONG_REAL_IP_HEADER?",
        "KONGREALIP_PREAMBLE_MAX_BYTE is not a name that is read, did you mean KONGREALIP_PREAMBLE_MAX_BYTES?",
        "Trusted_IPs is not a name that is read, did you mean trusted_ips?",
        "real_ip_recursiv is not a name that is read, did you mean real_ip_recursive?",
    )


def test_what_kong_lets_change_the_client_elsewhere() -> None:
    environ = {"KONG_NGINX_PROXY_SET_REAL_IP_FROM": "10.0.0.1", "KONG_NGINX_LOCATION_REAL_IP_HEADER": "X"}
    first, second = Settings.load(environ).warnings
    assert first == "KONG_NGINX_LOCATION_REAL_IP_HEADER is not read here, set real_ip_header instead"
    assert (
        second
        == "KONG_NGINX_PROXY_SET_REAL_IP_FROM is not read here, list the network in trusted_ips instead"
    )


KONGS_OWN = """
prefix log_level vaults proxy_access_log proxy_error_log proxy_stream_access_log proxy_stream_error_log
admin_access_log admin_error_log admin_gui_access_log admin_gui_error_log status_access_log status_error_log plugins
nginx_proxy_ssl_client_certificate nginx_proxy_ssl_verify_client nginx_http_ssl_client_certificate
nginx_stream_ssl_client_certificate nginx_sproxy_ssl_certificate nginx_sproxy_ssl_verify_depth nginx_sproxy_proxy_timeout
nginx_sproxy_ssl_trusted_certificate dedicated_config_processing pluginserver_names anonymous_reports proxy_server error_default_type role cluster_mtls
cluster_cert cluster_cert_key cluster_ca_cert cluster_allowed_common_names cluster_server_name cluster_control_plane
cluster_max_payload cluster_dp_labels cluster_listen cluster_telemetry_listen cluster_data_plane_purge_delay
cluster_ocsp cluster_use_proxy lmdb_environment_path lmdb_map_size proxy_url admin_listen admin_api_uri
admin_gui_listen admin_gui_url admin_gui_path admin_gui_api_url status_listen nginx_user nginx_daemon
upstream_keepalive_pool_size upstream_keepalive_max_requests upstream_keepalive_idle_timeout allow_debug_header
mem_cache_size client_ssl client_ssl_cert client_ssl_cert_key admin_ssl_cert admin_ssl_cert_key admin_gui_ssl_cert
admin_gui_ssl_cert_key status_ssl_cert status_ssl_cert_key headers headers_upstream tls_certificate_verify
ssl_dhparam ssl_session_tickets ssl_session_timeout ssl_session_cache_size ssl_prefer_server_ciphers
nginx_main_worker_rlimit_nofile nginx_events_worker_connections nginx_http_lua_regex_match_limit
nginx_proxy_proxy_buffer_size nginx_http_ssl_protocols database pg_host pg_port pg_ssl pg_ssl_version
declarative_config dns_resolver dns_hostsfile lua_ssl_trusted_certificate lua_ssl_verify_depth lua_ssl_protocols
lua_max_req_headers opentelemetry_tracing tracing_instrumentations untrusted_lua stream_proxy_ssl_enabled
kic worker_consistency worker_state_update_frequency nginx_worker_processes""".split()


def test_kongs_own_names_are_passed_over_in_silence() -> None:
    environ = {f"KONG_{name.upper()}": "on" for name in KONGS_OWN if name not in READ}
    assert Settings.load({**environ, "KONG_VERSION": "3.9"}).warnings == ()


BEHIND_L4 = {
    "KONG_PROXY_LISTEN": "a:1 proxy_protocol",
    "KONG_REAL_IP_HEADER": "proxy_protocol",
    "KONG_TRUSTED_IPS": "10.0.0.0/8",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({**BEHIND_L4, "KONG_PROXY_LISTEN": "a:1"}, "no listener of KONG_PROXY_LISTEN reads one"),
        ({"KONG_PROXY_LISTEN": "a:1 proxy_protocol"}, "nobody is trusted, so they are not used"),
        ({"KONG_TRUSTED_IPS": "0.0.0.0/0"}, "everybody is trusted"),
        (
            {"KONG_TRUSTED_IP": "10.0.0.1"},
            "KONG_TRUSTED_IP: is not a name that is read; write KONG_TRUSTED_IPS",
        ),
        (
            {"KONG_PROXY_LISTEN": "a:1", "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM": "10.0.0.0/8"},
            "KONGREALIP_PROXY_PROTOCOL_OPTIONAL_FROM: has no effect: no listener has the flag",
        ),
        ({"KONG_PROXY_LISTEN": "a:1", "KONG_STREAM_LISTEN": "a:2"}, "KONG_STREAM_LISTEN has no effect here"),
        (BEHIND_L4, "set KONGREALIP_FORWARDED_HEADERS=auto"),
    ],
)
def test_what_serve_says_at_start(environ: dict[str, str], expected: str) -> None:
    (warning,) = serve_warnings(Settings.load(environ))
    assert expected in warning


@pytest.mark.parametrize("choice", ["trusted", "off", "auto"])
def test_who_has_decided_about_forwarded_headers_is_not_asked_again(choice: str) -> None:
    assert serve_warnings(Settings.load({**BEHIND_L4, "KONGREALIP_FORWARDED_HEADERS": choice})) == []


def test_every_name_that_is_read_is_listed() -> None:
    """The near misses are looked for in this list."""
    environ = {f"KONG_{name.upper()}": "" for name in READ if "listen" not in name}
    environ |= {f"KONGREALIP_{name.upper()}": "" for name in READ_OF_OURS}
    environ |= {"KONG_PROXY_LISTEN": "off", "KONG_STREAM_LISTEN": "off", "KONG_STATUS_LISTEN": "off"}
    environ["KONGREALIP_ALLOW"] = "10.0.0.0/8"
    settings, _ = load_relay(environ)
    assert {*READ, *READ_OF_OURS} <= {*settings.given, *load_proxy(environ)[0].given}
    assert settings.warnings == Settings.load(environ).warnings == ()


@pytest.mark.parametrize(
    "entry",
    ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7::/112", "2001:db8::255.255.255.255/64", "::255.255.255.255/96", "255.255.255.255",
     "255.255.255.255/32", "::ffff:ffff:ffff/96", "::ffff:10.0.0.0/104", "10.0.0.1/8", "2001:db8::1/32"],
)  # fmt: skip
def test_trusted_entries_as_the_real_nginx_reads_them(entry: str) -> None:
    try:
        Settings.load({"KONG_TRUSTED_IPS": entry})
    except SettingsError:
        accepted = False
    else:
        accepted = True
    assert accepted == starts_with(f"listen 127.0.0.1:1; set_real_ip_from {entry};")


@pytest.mark.parametrize(("text", "lines"), [("0x64", 100), ("1e2", 100), ("1000", 1000), ("", 100)])
def test_a_number_is_read_as_kong_reads_it(text: str, lines: int) -> None:
    assert Settings.load({"KONG_LUA_MAX_REQ_HEADERS": text}).lua_max_req_headers == lines
